"""data.batches: images with their labels, and what augmentation makes of them."""

import itertools
import os

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lockstep.pipeline.config import Run
from lockstep.pipeline.data.arrays import Part, open_part
from lockstep.pipeline.data.augment import augment
from lockstep.pipeline.data.batches import Batches
from lockstep.pipeline.data.shards import assign
from lockstep.pipeline.kinds import TASKS


def make(samples, shards, batch, seed=0, shift=0, flip=False, size=(6, 5, 2), **more):
    """Return batches of random images whose labels are their sample ids."""
    images = np.random.default_rng(1).integers(1, 256, (samples, *size), dtype=np.uint8)
    part = Part(images, np.arange(samples))
    shard = assign(np.zeros(samples, np.int64), "iid", shards, seed=3)
    members = [np.flatnonzero(shard == number) for number in range(shards)]
    values = {"shards": shards, "ranks": 1, "batch": batch, "seed": seed, "shift": shift}
    return Batches(part, members, Run(**values, flip=flip, **more))


def test_images_come_with_their_labels_steps_and_shards():
    batches = make(40, 2, 8)
    for epoch, index, shard in itertools.product(range(2), range(5), range(2)):
        found = batches.get(epoch, index, shard)
        assert np.array_equal(found.inputs, batches.part.inputs[found.targets])
        assert (found.step, found.shard) == (epoch * 5 + index, shard)


def test_the_order_of_asking_does_not_matter():
    places = list(itertools.product(range(3), range(5), range(4)))
    in_order, shuffled = (make(80, 4, 16, seed=5, shift=2, flip=True) for _ in range(2))
    first = {place: in_order.get(*place) for place in places}
    for place in np.random.default_rng(0).permutation(places):
        found, expected = shuffled.get(*place.tolist()), first[tuple(place.tolist())]
        assert found.inputs.tobytes() == expected.inputs.tobytes()
        assert found.targets.tobytes() == expected.targets.tobytes()
        assert (found.step, found.shard) == (expected.step, expected.shard)


def seen(batches, epoch):
    """Return the pixels of each sample that an epoch has seen, by id."""
    found = {}
    for index, shard in itertools.product(
        range(batches.steps_per_epoch), range(len(batches.sampler.members))
    ):
        micro_batch = batches.get(epoch, index, shard)
        for image, label in zip(micro_batch.inputs, micro_batch.targets, strict=True):
            found[int(label)] = image.tobytes()
    return found


def test_a_samples_augmentation_does_not_depend_on_its_shard_or_batch():
    layouts = [make(48, shards, batch, 9, 2, True) for shards, batch in ((1, 6), (4, 8), (8, 48))]
    for epoch in range(2):
        one, *others = (seen(layout, epoch) for layout in layouts)
        assert len(one) == 48
        assert all(other == one for other in others)
    assert seen(layouts[0], 0) != seen(layouts[0], 1)
    assert seen(layouts[0], 0) != seen(make(48, 1, 6, 10, 2, True), 0)


def slowly(image, word, shift, flip):
    """Augment one image pixel by pixel, as the docstring of `augment` has it."""
    height, width, _ = image.shape
    down = (word & 0x7FFFFFFF) % (2 * shift + 1) - shift
    right = (word >> 31 & 0x7FFFFFFF) % (2 * shift + 1) - shift
    result = np.zeros_like(image)
    for row in range(height):
        for column in range(width):
            source = width - 1 - column if flip and word >> 63 else column
            if 0 <= row + down < height and 0 <= source + right < width:
                result[row, column] = image[row + down, source + right]
    return result


@given(
    st.tuples(st.integers(1, 3), st.integers(1, 6), st.integers(1, 6), st.integers(1, 3)),
    st.integers(0, 7),
    st.booleans(),
    st.integers(0, 2**32 - 1),
)
def test_augmentation_is_what_a_slow_one_gives(shape, shift, flip, seed):
    random = np.random.default_rng(seed)
    images = random.integers(1, 256, shape, dtype=np.uint8)
    words = random.integers(0, 2**64, shape[0], dtype=np.uint64)
    before = images.copy()
    found = augment(images, words, shift, flip)
    assert found.dtype == np.uint8
    assert np.array_equal(images, before)
    for image, word, result in zip(images, words, found, strict=True):
        assert np.array_equal(result, slowly(image, int(word), shift, flip))


def test_every_shift_comes_about_as_often_and_half_are_mirrored():
    image = np.zeros((5, 5, 1), np.uint8)
    image[2, 2], image[2, 3] = 1, 2  # where it went, and which way it looks
    batches = make(5000, 1, 5000, shift=1, flip=True, size=(5, 5, 1))
    batches.part.inputs[:] = image
    images = batches.get(0, 0, 0).inputs[..., 0]
    _, rows, columns = np.nonzero(images == 1)
    ahead = np.nonzero(images == 2)[2] - columns
    assert set(ahead) == {-1, 1}
    assert abs((ahead == -1).mean() - 0.5) < 0.03
    shifts = np.stack([rows, columns], axis=1)
    places, counts = np.unique(shifts, axis=0, return_counts=True)
    assert len(places) == 9
    assert np.all(abs(counts / 5000 - 1 / 9) < 0.02)


@pytest.mark.parametrize(("shift", "flip"), [(0, False), (3, True)])
def test_micro_batches_are_whole_arrays_of_their_own(shift, flip):
    batches = make(20, 2, 4, shift=shift, flip=flip)
    before = batches.part.inputs.copy()
    found = batches.get(0, 0, 0)
    assert found.inputs.flags["C_CONTIGUOUS"]
    found.inputs[:] = 0
    assert np.array_equal(batches.part.inputs, before)


OTHERS = [
    {"crop": 0.3},
    {"augment": "trivial"},
    {"augment": "rand"},
    {"jitter": 0.5},
    {"erase": 0.9},
    {"crop": 0.5, "augment": "trivial", "jitter": 0.2, "erase": 0.5, "shift": 1, "flip": True},
]


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("how", OTHERS)
def test_torchvisions_transforms_depend_on_seed_epoch_and_sample_alone(how, channels):
    size = (20, 16, channels)
    layouts = [make(24, s, b, seed=9, size=size, **how) for s, b in ((1, 6), (4, 8), (8, 24))]
    state = torch.get_rng_state()
    for epoch in range(2):
        one, *others = (seen(layout, epoch) for layout in layouts)
        assert len(one) == 24
        assert all(other == one for other in others)
    assert torch.equal(torch.get_rng_state(), state)
    assert seen(layouts[0], 0) != seen(layouts[0], 1)
    assert seen(layouts[0], 0) != seen(make(24, 1, 6, seed=10, size=size, **how), 0)
    plain = seen(make(24, 1, 6, seed=9, size=size), 0)
    changed = sum(seen(layouts[0], 0)[sample] != plain[sample] for sample in plain)
    assert changed > 8


@pytest.mark.parametrize("how", [{"mixup": 0.4}, {"cutmix": 1.0}])
def test_images_are_mixed_with_others_of_their_micro_batch(how):
    batches, plain = (make(24, 2, 12, seed=4, size=(9, 8, 3), **more) for more in (how, {}))
    shares = []
    for epoch, index, shard in itertools.product(range(3), range(2), range(2)):
        found, known = batches.get(epoch, index, shard), plain.get(epoch, index, shard)
        again = batches.get(epoch, index, shard)
        assert found.inputs.tobytes() == again.inputs.tobytes()
        first, second, share = found.targets.T
        assert np.array_equal(first, known.targets)
        assert sorted(second) == sorted(first)
        assert len(set(share)) == 1
        shares.append(share[0])
        others = known.inputs[[list(known.targets).index(label) for label in second]]
        if "mixup" in how:
            mixed = share[0] * known.inputs + (1 - share[0]) * others
            assert np.abs(found.inputs - mixed).max() <= 0.5001
        else:
            same = (found.inputs == known.inputs).all(axis=3)
            assert ((found.inputs == others).all(axis=3) | same).all()
            pasted = 1 - share[0]
            assert (~same).mean() <= pasted + 1e-9
    assert len(set(shares)) > 6


def test_with_a_window_images_are_those_of_their_ids_and_come_from_files_too(tmp_path):
    in_memory = make(4000, 2, 8, size=(32, 32, 1), shuffle_window=64)
    np.save(tmp_path / "images.npy", in_memory.part.inputs)
    np.save(tmp_path / "labels.npy", in_memory.part.targets.astype(np.int64))
    mapped = open_part(tmp_path)
    windowed = Batches(mapped, in_memory.sampler.members, in_memory.run)
    assert windowed.sampler.block == in_memory.sampler.block == 32
    for epoch, index, shard in itertools.product(range(2), range(20), range(2)):
        found = windowed.get(epoch, index, shard)
        assert np.array_equal(found.inputs, in_memory.part.inputs[found.targets])
        assert np.array_equal(found.targets, in_memory.get(epoch, index, shard).targets)


def test_a_large_file_is_read_and_not_mapped_with_the_same_rows(tmp_path, monkeypatch):
    pixels = np.random.default_rng(0).integers(0, 256, (5000, 32, 32, 1), np.uint8)
    np.save(tmp_path / "images.npy", pixels)
    np.save(tmp_path / "labels.npy", np.arange(5000))
    np.save(tmp_path / "tokens.npy", np.arange(5000 * 9, dtype=np.int32).reshape(5000, 9))
    monkeypatch.setattr("lockstep.pipeline.data.arrays.MOST_MAPPED", 2**14)
    images, tokens = open_part(tmp_path), open_part(tmp_path, TASKS["language"])
    for some in [slice(0, 250), np.array([4999, 3, 3]), np.arange(5000)[::7], slice(4900, 5100)]:
        inputs, targets = images.read(some)
        assert np.array_equal(inputs, pixels[some]) and np.array_equal(inputs, pixels[targets])
        before, after = tokens.read(some)
        assert np.array_equal(before, tokens.inputs[some]) and before.flags.c_contiguous
        assert np.array_equal(after, before + 1)
    assert images.read(slice(5000, 5001))[0].shape == (0, 32, 32, 1)
    os.truncate(tmp_path / "images.npy", 4_000_000)
    with pytest.raises(OSError, match=r"images.npy: was cut"):
        images.read(np.array([4999]))
