"""The names that ``sparsekern train`` knows, each with a line about it.

Needs no PyTorch, so that options can be checked and listed without loading it.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Model:
    """A network.

    Attributes:
        width: that of the paper, which ``--width`` changes.
        width_of: what the width counts.
        source: where the network is described.
    """

    width: int
    width_of: str
    source: str


@dataclass(frozen=True)
class Data:
    """A data set.

    Attributes:
        about: what it holds.
        files: where under ``--data-dir`` it is looked for; empty: it needs none.
        size: side of its images; None: as ``--image-size`` says.
    """

    about: str
    files: str
    size: int | None


@dataclass(frozen=True)
class Method:
    """A way to a sparse network.

    Attributes:
        about: what it does.
        source: where it is described.
    """

    about: str
    source: str


def _cifar_resnet() -> Model:
    return Model(16, "channels of the first stage", "He et al. 2016, section 4.2 (CIFAR)")


def _imagenet_resnet() -> Model:
    return Model(64, "channels of the first stage", "He et al. 2016, table 1 (ImageNet)")


MODELS = {
    "resnet8": _cifar_resnet(),
    "resnet20": _cifar_resnet(),
    "resnet32": _cifar_resnet(),
    "resnet56": _cifar_resnet(),
    "resnet18": _imagenet_resnet(),
    "resnet50": _imagenet_resnet(),
    "vgg19": Model(
        64,
        "channels of the first stage",
        "Simonyan & Zisserman 2015, configuration E, with batch norm",
    ),
    "mobilenet": Model(32, "channels of the first convolution", "Howard et al. 2017, table 1"),
    "lenet300": Model(
        100,
        "neurons of the second hidden layer, a third of the first's",
        "LeCun et al. 1998, LeNet-300-100",
    ),
    "mlp": Model(128, "neurons of each of the six hidden layers", "a plain ReLU network"),
    "vit": Model(
        192,
        "features of a token, a multiple of three",
        "Dosovitskiy et al. 2021, in the size of DeiT-Ti (Touvron et al. 2021)",
    ),
}

DATA = {
    "digits": Data("1,797 handwritten digits in 10 classes, part of scikit-learn", "", 8),
    "cifar10": Data(
        "60,000 photographs in 10 classes (Krizhevsky 2009)",
        "cifar-10-batches-py or cifar-10-batches-bin",
        32,
    ),
    "cifar100": Data(
        "60,000 photographs in 100 classes (Krizhevsky 2009)",
        "cifar-100-python or cifar-100-binary",
        32,
    ),
    "tinyimagenet": Data(
        "110,000 photographs in 200 classes (Stanford CS231n)", "tiny-imagenet-200", 64
    ),
    "imagefolder": Data(
        "ImageNet, or images of your own, a folder for each class",
        "train/<class>/* and val/<class>/*",
        None,
    ),
}

METHODS = {
    "dense": Method("no weight is removed", ""),
    "rst": Method("random masks, fixed (ERK densities)", "Liu et al. 2022; Ni et al. 2023"),
    "gmp": Method(
        "the smallest weights, ever more of them during training",
        "Zhu & Gupta 2017",
    ),
    "lth": Method(
        "lottery ticket: train, prune, rewind, again",
        "Frankle & Carbin 2019",
    ),
    "set": Method("smallest weights replaced by random ones", "Mocanu et al. 2018"),
    "rigl": Method("smallest weights replaced by those of largest gradient", "Evci et al. 2020"),
    "grasp": Method("before training, by the gradient's flow", "Wang et al. 2020"),
    "snip": Method("before training, by what the loss feels", "Lee et al. 2019"),
    "art": Method("weights pressed to zero by a growing HyperSparse loss", "Glandorf et al. 2023"),
    "optg": Method("masks learned through their gradients", "Zhang et al. 2022"),
}

REGULARIZERS = {
    "ckasr": "CKA-SR: layers of a stage made less similar (Ni et al. 2023)",
    "augckasr": "AugCKA-SR: the same over all layers (Ni et al. 2023)",
    "hypersparse": "HyperSparse: presses small weights to zero (Glandorf et al. 2023)",
    "layersparsity": "presses whole layers to weights >= 0 (Hebiri & Lederer 2020)",
}
