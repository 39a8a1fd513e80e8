"""Augmentation: shifted, flipped or cut parts of the images, as the generator decides."""

import numpy as np
import pytest
import torch
from torch.nn import functional

from sparsekern.training.data import BatchLoader, load_data
from sparsekern.training.data.augment import center_box, crop_and_flip, draw_boxes, flip
from sparsekern.training.data.images import MemorySet

from .image_files import write_cifar10_python, write_image_folder


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def test_half_of_the_images_are_flipped():
    images = torch.randn(400, 2, 3, 4)
    flipped = flip(images, generator())
    turned = (flipped == images.flip(3)).flatten(1).all(dim=1)
    kept = (flipped == images).flatten(1).all(dim=1)
    assert (turned ^ kept).all()
    assert 160 < int(turned.sum()) < 240


def test_crops_are_parts_of_the_framed_image_and_all_shifts_occur():
    images = torch.arange(300 * 3 * 6 * 5, dtype=torch.float32).reshape(300, 3, 6, 5) + 1
    framed = functional.pad(images, (2, 2, 2, 2))
    seen = set()
    for image, frame in zip(crop_and_flip(images, 2, generator()), framed, strict=True):
        found = [
            (y, x, turned)
            for y in range(5)
            for x in range(5)
            for turned in (False, True)
            if torch.equal(image.flip(2) if turned else image, frame[:, y : y + 6, x : x + 5])
        ]
        assert len(found) == 1
        seen |= set(found)
    assert len(seen) == 50


def test_boxes_have_the_areas_and_ratios_of_the_paper():
    boxes = draw_boxes(2000, generator())
    areas, ratios = [], []
    for position in range(2000):
        left, upper, right, lower = boxes(position, 400, 400)
        assert 0 <= left < right <= 400
        assert 0 <= upper < lower <= 400
        areas.append((right - left) * (lower - upper) / 160_000)
        ratios.append((right - left) / (lower - upper))
    assert pytest.approx(min(areas), abs=0.01) == 0.08
    assert max(areas) > 0.95
    assert 0.74 < min(ratios) < 0.78
    assert 1.3 < max(ratios) < 1.35
    assert np.mean(np.array(ratios) < 1) == pytest.approx(0.5, abs=0.08)


def test_what_never_fits_is_cut_in_the_middle():
    boxes = draw_boxes(5, generator())
    assert all(boxes(position, 1000, 10) == (495, 0, 505, 10) for position in range(5))
    assert center_box(40, 30, 0.5) == (12.5, 7.5, 27.5, 22.5)


def batches(loader, epoch=0):
    return [loader.get(epoch, batch)[0] for batch in range(len(loader))]


@pytest.mark.parametrize("name", ["cifar10", "imagefolder"])
def test_a_batch_follows_from_seed_epoch_and_place_alone(name, tmp_path):
    (write_cifar10_python if name == "cifar10" else write_image_folder)(tmp_path)
    images = load_data(name, seed=0, held_out="test", directory=tmp_path, size=16).train
    loader = BatchLoader(images, 4, seed=3)
    whole = batches(loader)
    late = BatchLoader(images, 4, seed=3)
    torch.rand(5)  # the global random state plays no part
    assert torch.equal(late.get(0, 1)[0], whole[1])
    assert not torch.equal(torch.cat(batches(loader, epoch=1)), torch.cat(whole))
    assert not torch.equal(torch.cat(batches(BatchLoader(images, 4, seed=4))), torch.cat(whole))
    loader.close()
    late.close()


def test_augmented_images_of_files_are_parts_of_them(tmp_path):
    write_image_folder(tmp_path, per_class=20)
    images = load_data("imagefolder", seed=0, held_out="test", directory=tmp_path, size=8).train
    green = images.batch(torch.arange(40), generator())[:, 1] * 0.224 + 0.456
    slopes = green[:, :, -1].mean(dim=1) - green[:, :, 0].mean(dim=1)
    assert 10 < int((slopes > 0).sum()) < 30  # half of the gradients run the other way
    widths = slopes.abs()
    assert widths.min() < 0.45 < widths.max()  # parts of several sizes
    assert images.batch(torch.tensor([0])).shape == (1, 3, 8, 8)


def test_digits_and_held_out_images_are_never_augmented(tmp_path):
    digits = load_data("digits", seed=0, held_out="test", directory=tmp_path, size=0)
    indices = torch.tensor([3, 1])
    assert torch.equal(digits.train.batch(indices, generator()), digits.train.images[indices])
    write_cifar10_python(tmp_path)
    cifar = load_data("cifar10", seed=0, held_out="test", directory=tmp_path, size=0)
    plain = cifar.train.batch(indices)
    assert not torch.equal(cifar.train.batch(indices, generator()), plain)
    assert torch.equal(cifar.held_out.batch(indices, generator()), cifar.held_out.batch(indices))


def test_zeros_come_before_normalisation():
    images = MemorySet(
        torch.full((50, 1, 4, 4), 255, dtype=torch.uint8),
        torch.zeros(50, dtype=torch.int64),
        mean=torch.tensor([0.5]),
        deviation=torch.tensor([0.25]),
        padding=2,
    )
    values = images.batch(torch.arange(50), generator()).unique()
    assert values.tolist() == [-2.0, 2.0]  # black and white
