"""Block discovery on look-alikes of the model families, and stages given by name, glob, function.

The classes below copy the module trees (attribute and class names) of torchvision, timm, Hugging
Face transformers and CIFAR ResNets; their forward passes play no part in discovery.
"""

import pytest
import torch
from torch import nn

from sparsekern.nn.wrappers import unwrap
from sparsekern.regularizers.discovery import find_stages, resolve_stages


class BasicBlock(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(4, 4, 3), nn.BatchNorm2d(4)
        self.relu = nn.ReLU(inplace=True)
        self.conv2, self.bn2 = nn.Conv2d(4, 4, 3), nn.BatchNorm2d(4)
        self.downsample = nn.Sequential(nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4))


class ResNet(nn.Module):
    """torchvision's and timm's tree; with other names and counts a CIFAR ResNet's."""

    def __init__(self, counts: tuple[int, ...] = (2, 2, 2, 2), prefix: str = "layer") -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(3, 4, 7), nn.BatchNorm2d(4)
        for index, count in enumerate(counts):
            blocks = nn.Sequential(*(BasicBlock() for _ in range(count)))
            self.add_module(f"{prefix}{index + 1}", blocks)
        self.fc = nn.Linear(4, 10)


class Mlp(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc1, self.act, self.fc2 = nn.Linear(4, 8), nn.GELU(), nn.Linear(8, 4)


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm1, self.attn = nn.LayerNorm(4), nn.MultiheadAttention(4, 2)
        self.norm2, self.mlp = nn.LayerNorm(4), Mlp()


class PatchEmbed(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.proj, self.norm = nn.Conv2d(3, 4, 4, 4), nn.LayerNorm(4)


class VisionTransformer(nn.Module):
    """timm's tree."""

    def __init__(self) -> None:
        super().__init__()
        self.patch_embed = PatchEmbed()
        self.blocks = nn.Sequential(*(Block() for _ in range(3)))
        self.head = nn.Linear(4, 10)


class BertEncoder(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.ModuleList(Block() for _ in range(3))


class BertModel(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embeddings = nn.Embedding(10, 4)
        self.encoder = BertEncoder()


class BertForClassification(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.bert, self.classifier = BertModel(), nn.Linear(4, 2)


class SwinTransformerStage(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.downsample = PatchEmbed()
        self.blocks = nn.Sequential(Block(), Block())


class SwinTransformer(nn.Module):
    """timm's tree: an nn.Sequential of stages of one class around the stages' own Sequentials."""

    def __init__(self) -> None:
        super().__init__()
        self.patch_embed = PatchEmbed()
        self.layers = nn.Sequential(SwinTransformerStage(), SwinTransformerStage())


class BasicLayer(nn.Module):
    """The original Swin's stage, told by its ``blocks`` and not by its name."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList([Block(), Block()])
        self.downsample = PatchEmbed()


class ConvLayer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.convolution, self.normalization = nn.Conv2d(4, 4, 3), nn.BatchNorm2d(4)


class HfResidual(nn.Module):
    """Hugging Face's residual block: a Sequential of equal convolution layers inside."""

    def __init__(self) -> None:
        super().__init__()
        self.shortcut = nn.Identity()
        self.layer = nn.Sequential(ConvLayer(), ConvLayer())


class ResNetStage(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(HfResidual(), HfResidual())


class ConvBnAct(nn.Sequential):
    def __init__(self) -> None:
        super().__init__(nn.Conv2d(4, 4, 3), nn.BatchNorm2d(4), nn.SiLU())


def names(model: nn.Module) -> list[list[str]]:
    return [[name for name, _ in stage] for stage in find_stages(unwrap(model))]


RESNET = [[f"layer{stage}.{block}" for block in range(2)] for stage in range(1, 5)]


@pytest.mark.parametrize(
    ("build", "expected"),
    [
        (ResNet, RESNET),
        (
            lambda: ResNet((3, 3, 3), "stage"),
            [[f"stage{stage}.{block}" for block in range(3)] for stage in (1, 2, 3)],
        ),
        (lambda: ResNet((1, 1, 1), "stage"), [["stage1.0"], ["stage2.0"], ["stage3.0"]]),
        (lambda: ResNet((2, 1)), [["layer1.0", "layer1.1"], ["layer2.0"]]),
        (VisionTransformer, [["blocks.0", "blocks.1", "blocks.2"]]),
        (BertForClassification, [[f"bert.encoder.layer.{index}" for index in range(3)]]),
        (
            SwinTransformer,
            [[f"layers.{stage}.blocks.{block}" for block in range(2)] for stage in range(2)],
        ),
        (
            lambda: nn.ModuleDict({"layers": nn.ModuleList([BasicLayer(), BasicLayer()])}),
            [[f"layers.{stage}.blocks.{block}" for block in range(2)] for stage in range(2)],
        ),
        (
            lambda: nn.ModuleDict({"stages": nn.ModuleList([ResNetStage(), ResNetStage()])}),
            [[f"stages.{stage}.layers.{block}" for block in range(2)] for stage in range(2)],
        ),
        (  # torchvision's EfficientNet: stages between two equal convolutions
            lambda: nn.Sequential(
                ConvBnAct(),
                nn.Sequential(BasicBlock(), BasicBlock()),
                nn.Sequential(BasicBlock(), BasicBlock()),
                ConvBnAct(),
            ),
            [["1.0", "1.1"], ["2.0", "2.1"]],
        ),
        (  # torchvision's MobileNetV2: blocks and convolutions in one Sequential
            lambda: nn.Sequential(ConvBnAct(), BasicBlock(), BasicBlock(), ConvBnAct()),
            [["1", "2"]],
        ),
        (
            lambda: nn.Transformer(8, 2, 2, 2, 8),
            [
                ["encoder.layers.0", "encoder.layers.1"],
                ["decoder.layers.0", "decoder.layers.1"],
            ],
        ),
        (  # neither parallel heads nor patch embeddings of a pyramid are a stage
            lambda: nn.ModuleDict(
                {
                    "patch_embeds": nn.ModuleList([PatchEmbed(), PatchEmbed()]),
                    "body": nn.Sequential(nn.Sequential(BasicBlock(), BasicBlock())),
                    "heads": nn.ModuleList([Mlp(), Mlp()]),
                }
            ),
            [["body.0.0", "body.0.1"]],
        ),
        (lambda: nn.DataParallel(ResNet()), RESNET),
        (lambda: torch.compile(ResNet()), RESNET),
        (lambda: nn.DataParallel(torch.compile(ResNet())), RESNET),
    ],
)
def test_finds_blocks(build, expected):
    assert names(build()) == expected


def test_blocks_compiled_one_by_one_are_tapped_from_outside():
    model = ResNet((2, 2))
    for stage in (model.layer1, model.layer2):
        for index, block in enumerate(stage):
            stage[index] = torch.compile(block)
    stages = find_stages(model)
    assert names(model) == RESNET[:2]
    assert stages[0][0][1] is model.layer1[0]


def test_a_container_under_two_names_is_one_stage():
    model = ResNet((2, 2))
    model.alias = model.layer1
    assert names(model) == RESNET[:2]


@pytest.mark.parametrize(
    "model",
    [
        nn.Linear(3, 3),
        nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 4, 3), nn.ReLU()),
        nn.Sequential(ConvBnAct(), ConvBnAct(), ConvBnAct()),
        nn.ModuleDict({"only": nn.Sequential(BasicBlock())}),
    ],
)
def test_nothing_found_says_what_was_looked_for(model):
    with pytest.raises(ValueError, match=r"nn\.Sequential or nn\.ModuleList.*stages=\[\["):
        resolve_stages(model)


def resolved(model, stages):
    return [[name for name, _ in stage] for stage in resolve_stages(model, stages)]


@pytest.mark.parametrize(
    ("stages", "expected"),
    [
        ([["layer1.0", "layer2.1"]], [["layer1.0", "layer2.1"]]),
        ([["layer2.1", "layer1.0"]], [["layer1.0", "layer2.1"]]),  # module order
        ([["layer1.*"], ["layer2.?", "layer[34].0"]], None),
        ([["layer1.*", "layer1.0"]], [["layer1.0", "layer1.1"]]),
        ([["*.0.conv1"]], [[f"layer{stage}.0.conv1" for stage in range(1, 5)]]),
        ([["_orig_mod.layer1.*"]], [["layer1.0", "layer1.1"]]),
        ([["module.layer1.*"]], [["layer1.0", "layer1.1"]]),
    ],
)
@pytest.mark.parametrize("wrap", [lambda m: m, nn.DataParallel, torch.compile])
def test_names_and_globs(stages, expected, wrap):
    if expected is None:
        expected = [RESNET[0], ["layer2.0", "layer2.1", "layer3.0", "layer4.0"]]
    assert resolved(wrap(ResNet()), stages) == expected


def test_function_gives_names_or_modules():
    model = ResNet()
    assert resolved(model, lambda m: [["layer1.*"], ["layer2.0", "layer2.1"]]) == RESNET[:2]
    assert resolved(model, lambda m: [list(m.layer1), list(m.layer2)]) == RESNET[:2]
    assert resolved(torch.compile(model), lambda m: [list(m.layer1)]) == RESNET[:1]


@pytest.mark.parametrize(
    ("stages", "error", "match"),
    [
        ([["layer1.*"], ["layr2.0"]], ValueError, r"'layr2\.0' in stages\[1\].*layer2\.0"),
        ([["encoder_blocks"]], ValueError, "matches no module"),
        ([], ValueError, "stages is empty"),
        ([[]], ValueError, r"stages\[0\] is empty"),
        ([["layer1.*"], ["layer1.0"]], ValueError, r"stages\[0\] and stages\[1\]"),
        (["layer1.0", "layer1.1"], TypeError, r"put it in a list"),
        ("layer1.*", TypeError, "got str"),
        ([[3]], TypeError, r"stages\[0\] holds 3"),
        (lambda m: [[nn.Linear(2, 2)]], ValueError, "no part of the model"),
        (lambda m: None, TypeError, "got NoneType"),
    ],
)
def test_wrong_stages_are_named(stages, error, match):
    with pytest.raises(error, match=match):
        resolve_stages(ResNet(), stages)


def test_a_module_list_has_no_output():
    with pytest.raises(ValueError, match=r'ModuleList.*"bert\.encoder\.layer\.\*"'):
        resolve_stages(BertForClassification(), [["bert.encoder.layer"]])
