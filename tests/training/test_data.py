import torch

from sparsekern.training.data import SMALLEST_BATCH, epoch_batches, load_digits


def test_digits_are_split_by_class_and_seed():
    digits, again, other = (load_digits(seed) for seed in (0, 0, 1))
    assert digits.train.images.shape == (1437, 1, 8, 8)
    assert digits.held_out.images.shape == (360, 1, 8, 8)
    assert torch.equal(digits.train.images, again.train.images)
    assert not torch.equal(digits.train.labels, other.train.labels)
    shares = torch.bincount(digits.held_out.labels) / torch.bincount(digits.train.labels)
    assert (shares - 0.25).abs().max() < 0.01
    assert abs(digits.train.images.mean().item()) < 1e-5
    assert abs(digits.train.images.std().item() - 1) < 1e-5


def test_validation_images_come_from_the_training_images():
    test, validation = load_digits(0), load_digits(0, "validation")

    def rows(images):
        # Back to the 17 grey levels, for each split is scaled by its own training images.
        flat = images.flatten(1)
        levels = (flat - flat.min()) / (flat.max() - flat.min()) * 16
        return [tuple(row) for row in levels.round().int().tolist()]

    trained_on = set(rows(test.train.images))
    seen = rows(validation.train.images) + rows(validation.held_out.images)
    assert len(seen) == 1437
    assert set(seen) == trained_on


def test_every_epoch_shuffles_all_images_anew():
    first, again, later = (epoch_batches(1437, 128, 0, epoch) for epoch in (0, 0, 1))
    assert [len(batch) for batch in first] == [128] * 11 + [29]
    assert torch.equal(torch.cat(first), torch.cat(again))
    assert not torch.equal(torch.cat(first), torch.cat(later))
    assert torch.equal(torch.cat(first).sort().values, torch.arange(1437))


def test_a_last_batch_too_small_for_the_estimator_is_left_out():
    assert SMALLEST_BATCH == 4
    assert [len(batch) for batch in epoch_batches(131, 64, 0, 0)] == [64, 64]
    assert [len(batch) for batch in epoch_batches(132, 64, 0, 0)] == [64, 64, 4]
    assert [len(batch) for batch in epoch_batches(3, 64, 0, 0)] == [3]
