"""`pytest` runs these: what must hold of the model and of the loop, whatever becomes of them."""

import subprocess
import sys
from pathlib import Path

import torch

from models import small


def test_the_model_gives_a_logit_for_each_class():
    assert small((1, 8, 8), 10)(torch.zeros(2, 1, 8, 8)).shape == (2, 10)


def test_the_loop_has_the_same_bits_on_one_rank_and_on_two():
    command = [sys.executable, "-m", "lockstep", "verify", "train.py", "--ranks", "1,2"]
    done = subprocess.run(command, cwd=Path(__file__).parent, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
