import pytest
import torch

from sparsekern.training.data import SMALLEST_BATCH, epoch_batches, load_digits
from sparsekern.training.measure import block_features
from sparsekern.training.models import BLOCKS_PER_STAGE, build_model, similarity_groups
from sparsekern.training.settings import MODELS


def test_the_options_know_every_model():
    assert set(MODELS) == set(BLOCKS_PER_STAGE)


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize(("channels", "size"), [(1, 8), (3, 32)])
def test_models_take_small_and_large_images(name, channels, size):
    model = build_model(name, width=4, channels=channels, classes=7, seed=0)
    images = torch.randn(2, channels, size, size)
    assert model(images).shape == (2, 7)
    for stage, group in enumerate([["stage1.0"], ["stage2.0"], ["stage3.0"]]):
        (features,) = block_features(model, group, images)
        assert features.shape == (2, 4 * 2**stage * (size // 2**stage) ** 2)
        assert features.min() == 0  # after the last ReLU


def test_resnet20_has_the_papers_size():
    model = build_model("resnet20", width=16, channels=3, classes=10, seed=0)
    convolutions = [p for name, p in model.named_parameters() if p.dim() == 4]
    assert len(convolutions) == 19
    assert 0.26e6 < sum(p.numel() for p in model.parameters()) < 0.28e6


def test_building_a_model_leaves_the_random_state():
    state = torch.get_rng_state()
    first, again, other = (
        build_model("resnet8", width=4, channels=1, classes=10, seed=seed) for seed in (0, 0, 1)
    )
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(first.fc.weight, again.fc.weight)
    assert not torch.equal(first.fc.weight, other.fc.weight)


@pytest.mark.parametrize("name", MODELS)
def test_similarity_groups_name_every_block_and_hold_pairs(name):
    model = build_model(name, width=4, channels=1, classes=10, seed=0)
    groups = similarity_groups(name)
    blocks = [n for n, module in model.named_modules() if type(module).__name__ == "BasicBlock"]
    assert [block for group in groups for block in group] == blocks
    assert all(len(group) >= 2 for group in groups)


def test_digits_are_split_by_class_and_seed():
    digits, again, other = (load_digits(seed) for seed in (0, 0, 1))
    assert digits.train_images.shape == (1437, 1, 8, 8)
    assert digits.held_out_images.shape == (360, 1, 8, 8)
    assert torch.equal(digits.train_images, again.train_images)
    assert not torch.equal(digits.train_labels, other.train_labels)
    shares = torch.bincount(digits.held_out_labels) / torch.bincount(digits.train_labels)
    assert (shares - 0.25).abs().max() < 0.01
    assert abs(digits.train_images.mean().item()) < 1e-5
    assert abs(digits.train_images.std().item() - 1) < 1e-5


def test_validation_images_come_from_the_training_images():
    test, validation = load_digits(0), load_digits(0, "validation")

    def rows(images):
        # Back to the 17 grey levels, for each split is scaled by its own training images.
        flat = images.flatten(1)
        levels = (flat - flat.min()) / (flat.max() - flat.min()) * 16
        return [tuple(row) for row in levels.round().int().tolist()]

    trained_on = set(rows(test.train_images))
    seen = rows(validation.train_images) + rows(validation.held_out_images)
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
