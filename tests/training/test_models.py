"""Networks: their published sizes, their shapes on images of several sizes, what is compared."""

import pytest
import torch
from torch import nn

from sparsekern.regularizers.discovery import resolve_stages
from sparsekern.training.catalogue import MODELS
from sparsekern.training.measure import block_features
from sparsekern.training.models import ARCHITECTURES, build_model, similarity_groups
from sparsekern.training.models.vit import patch_size

SMALL_WIDTH = {"vit": 6, "lenet300": 5}
NAMES = tuple(MODELS)


def parameters(model):
    return sum(p.numel() for p in model.parameters())


def small_model(name, size=8, channels=1, classes=7, seed=0):
    width = SMALL_WIDTH.get(name, 4)
    return build_model(name, width=width, channels=channels, classes=classes, seed=seed, size=size)


def test_the_catalogue_knows_every_network():
    assert set(MODELS) == set(ARCHITECTURES)


# He et al. 2016, table 6, gives 0.27, 0.46 and 0.85 million for CIFAR; the large ones are those
# that torchvision and timm publish for their weights (VGG, MobileNet and DeiT: 143.7, 4.2 and 5.7
# million in the papers); LeNet-300-100 is the 266 thousand of Frankle & Carbin 2019.
@pytest.mark.parametrize(
    ("name", "channels", "classes", "size", "count"),
    [
        ("resnet20", 3, 10, 32, 269_722),
        ("resnet32", 3, 10, 32, 464_154),
        ("resnet56", 3, 10, 32, 853_018),
        ("resnet18", 3, 1000, 224, 11_689_512),
        ("resnet50", 3, 1000, 224, 25_557_032),
        ("resnet18", 3, 10, 32, 11_173_962),
        ("resnet50", 3, 10, 32, 23_520_842),
        ("vgg19", 3, 1000, 224, 143_678_248),
        ("vgg19", 3, 10, 32, 20_040_522),
        ("mobilenet", 3, 1000, 224, 4_231_976),
        ("lenet300", 1, 10, 28, 266_610),
        ("vit", 3, 1000, 224, 5_717_416),
    ],
)
def test_sizes_are_the_published_ones(name, channels, classes, size, count):
    with torch.device("meta"):
        model = build_model(name, channels=channels, classes=classes, seed=0, size=size)
    assert parameters(model) == count


def test_sizes_of_the_rest_by_hand():
    # Stem 3·3·3·16 + 32, stages of two convolutions, classifier.
    with torch.device("meta"):
        resnet8 = build_model("resnet8", channels=3, classes=10, seed=0)
        mlp = build_model("mlp", channels=1, classes=10, seed=0, size=8)
    stages = sum(9 * (c_in + c) * c + 4 * c for c_in, c in ((16, 16), (16, 32), (32, 64)))
    assert parameters(resnet8) == 27 * 16 + 32 + stages + 64 * 10 + 10
    assert parameters(mlp) == 65 * 128 + 5 * 129 * 128 + 129 * 10


# 8 pixels are the digits', 32 CIFAR's, 64 TinyImageNet's, 128 take the stem for ImageNet.
@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(("channels", "size"), [(1, 8), (3, 32), (3, 64), (3, 128)])
def test_every_network_takes_every_size(name, channels, size):
    model = small_model(name, size, channels)
    images = torch.randn(2, channels, size, size)
    logits = model(images)
    assert logits.shape == (2, 7)
    logits.sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())


@pytest.mark.parametrize(
    ("name", "size", "side"),
    [("resnet18", 64, 8), ("resnet18", 128, 4), ("mobilenet", 64, 4), ("mobilenet", 128, 4)],
)
def test_large_images_take_the_stems_of_imagenet(name, size, side):
    model = small_model(name, size).eval()
    channels = {"resnet18": 8, "mobilenet": 32}[name] * 4
    last = similarity_groups(name)[-1][-1:]
    (features,) = block_features(model, last, torch.randn(1, 1, size, size))
    assert features.shape == (1, channels * side**2)


def test_vgg_has_the_papers_classifier_on_large_images():
    with torch.device("meta"):
        model = build_model("vgg19", channels=3, classes=1000, seed=0, size=224)
    linear = [m for m in model.modules() if isinstance(m, nn.Linear)]
    assert [(m.in_features, m.out_features) for m in linear] == [
        (25088, 4096),
        (4096, 4096),
        (4096, 1000),
    ]


@pytest.mark.parametrize(("size", "patch"), [(8, 2), (32, 4), (64, 8), (224, 16)])
def test_patches_of_the_vit(size, patch):
    assert patch_size(size) == patch
    assert small_model("vit", size).positions.shape[1] == 1 + (size // patch) ** 2


def test_the_vit_refuses_what_it_cannot_share_or_cut():
    with pytest.raises(ValueError, match="multiple of 3, got 16"):
        build_model("vit", width=16, channels=1, classes=2, seed=0, size=8)
    with pytest.raises(ValueError, match="multiple of it, got 33"):
        build_model("vit", channels=1, classes=2, seed=0, size=33)


def test_the_vits_attention_is_torchs():
    model = small_model("vit", 8)
    ours = model.blocks[0].attention.eval()
    theirs = nn.MultiheadAttention(6, 3, batch_first=True)
    theirs.load_state_dict(
        {
            "in_proj_weight": ours.qkv.weight,
            "in_proj_bias": ours.qkv.bias,
            "out_proj.weight": ours.projection.weight,
            "out_proj.bias": ours.projection.bias,
        }
    )
    x = torch.randn(2, 5, 6)
    assert torch.allclose(ours(x), theirs(x, x, x)[0], atol=1e-6)


@pytest.mark.parametrize("stage", [0, 1, 2])
def test_stages_of_cifar_networks_halve_and_end_in_relu(stage):
    model = small_model("resnet20", 32, 3)
    images = torch.randn(2, 3, 32, 32)
    (features,) = block_features(model, [f"stage{stage + 1}.0"], images)
    assert features.shape == (2, 4 * 2**stage * (32 // 2**stage) ** 2)
    assert features.min() == 0


@pytest.mark.parametrize("name", NAMES)
def test_similarity_groups_hold_pairs_of_modules_in_order(name):
    model = small_model(name)
    groups = similarity_groups(name)
    assert all(len(group) >= 2 for group in groups)
    resolved = resolve_stages(model, groups)
    assert [[block for block, _ in stage] for stage in resolved] == groups


@pytest.mark.parametrize("name", [n for n in NAMES if n != "vit"])
def test_compared_features_are_after_a_relu(name):
    groups = similarity_groups(name)
    images = torch.randn(4, 1, 8, 8)
    features = block_features(small_model(name), [b for g in groups for b in g], images)
    assert all(values.min() >= 0 for values in features)


@pytest.mark.parametrize("name", [n for n in NAMES if n != "vit"])
def test_every_relu_is_a_module_of_its_own(name):
    """Hooks that count dead neurons see each activation once."""
    model = small_model(name).eval()
    calls = []
    for module in model.modules():
        if isinstance(module, nn.ReLU):
            module.register_forward_hook(lambda module, _args, _output: calls.append(module))
    model(torch.randn(1, 1, 8, 8))
    assert len(calls) == len(set(calls)) == sum(isinstance(m, nn.ReLU) for m in model.modules())
    layers = sum(isinstance(m, nn.Conv2d | nn.Linear) for m in model.modules())
    projections = sum(1 for n, _ in model.named_modules() if n.endswith("shortcut.0"))
    assert len(calls) == layers - projections - 1  # all but the classifier


@pytest.mark.parametrize("name", NAMES)
def test_the_seed_decides_the_weights_and_the_random_state_is_left(name):
    state = torch.get_rng_state()
    first, again, other = (small_model(name, seed=seed) for seed in (0, 0, 1))
    assert torch.equal(torch.get_rng_state(), state)
    one, two, three = (
        torch.cat([p.detach().flatten() for p in model.parameters()])
        for model in (first, again, other)
    )
    assert torch.equal(one, two)
    assert not torch.equal(one, three)
