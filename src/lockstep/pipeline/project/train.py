"""A training loop of one's own: handwritten digits.

    python train.py
    lockstep launch -n 2 train.py             # the same bits
    lockstep verify train.py --ranks 1,2      # are they?

Called again, it goes on where it was cut off; remove `out` to begin anew.
"""

import lockstep
import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits

from models import small

images, labels = load_digits(return_X_y=True)
images = torch.from_numpy(images).float().view(-1, 1, 8, 8) / 16
labels = torch.from_numpy(labels)

with lockstep.init(shards=4, seed=0) as session:
    model = session.build(small, (1, 8, 8), 10)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
    run = session.run(model, optimizer, folder="out")
    for step in run.steps(len(labels), batch=128, epochs=10):
        for shard in step:
            x, y = images[shard.ids].to(session.device), labels[shard.ids].to(session.device)
            logits = model(x)
            loss = F.cross_entropy(logits, y, reduction="sum")
            shard.backward(loss, items=len(y), accuracy=(logits.argmax(1) == y).sum())
        optimizer.step()
    if session.rank == 0:
        print(run.history[-1])
        print(run.sha256)
