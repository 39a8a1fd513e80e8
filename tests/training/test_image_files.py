"""Data sets read from disk in their original formats, from tiny ones that the tests write."""

import builtins
import os
import pickle
import pickletools
import shutil

import numpy as np
import pytest
import torch

from sparsekern.training.catalogue import DATA
from sparsekern.training.data import load_data
from sparsekern.training.data.images import channel_statistics, split_validation

from .image_files import (
    python2_batch,
    random_images,
    save_image,
    write_cifar10_python,
    write_cifar100_python,
    write_cifar_binary,
    write_image_folder,
    write_tiny_imagenet,
)


def load(name, directory, held_out="test", seed=0, size=16):
    return load_data(name, seed=seed, held_out=held_out, directory=directory, size=size)


def everything(image_set):
    return image_set.batch(torch.arange(len(image_set.labels)))


def test_the_batch_written_by_hand_is_a_pickle_of_python_2():
    images, labels = random_images(3, 10)
    text = python2_batch(images, labels)
    pickletools.dis(text, out=open(os.devnull, "w"))  # noqa: SIM115
    loaded = pickle.loads(text, encoding="bytes")
    assert np.array_equal(loaded[b"data"], images)
    assert loaded[b"labels"] == labels.tolist()


@pytest.mark.parametrize(
    ("name", "write", "train", "test"),
    [
        ("cifar10", write_cifar10_python, 5, "test_batch"),
        ("cifar100", write_cifar100_python, 1, "test"),
        ("cifar10", lambda d: write_cifar_binary(d, 10), 5, "test_batch"),
        ("cifar100", lambda d: write_cifar_binary(d, 100, 200), 1, "test"),
    ],
    ids=["cifar10-python", "cifar100-python", "cifar10-binary", "cifar100-binary"],
)
def test_cifar_is_read_whole_and_normalised(name, write, train, test, tmp_path):
    files = write(tmp_path)
    dataset = load(name, tmp_path)
    assert (dataset.classes, dataset.channels, dataset.size) == (int(name[5:]), 3, 32)
    parts = [part for key, part in files.items() if key != test]
    assert len(parts) == train
    pixels = torch.from_numpy(np.concatenate([images for images, _ in parts]))
    labels = np.concatenate([labels for _, labels in parts])
    assert dataset.train.labels.tolist() == labels.tolist()
    assert dataset.train.labels.dtype == torch.int64
    expected = pixels.reshape(-1, 3, 32, 32).double() / 255
    mean, deviation = expected.mean(dim=(0, 2, 3)), expected.std(dim=(0, 2, 3), correction=0)
    expected = (expected - mean[:, None, None]) / deviation[:, None, None]
    assert torch.allclose(everything(dataset.train).double(), expected, atol=1e-5)
    held_out = torch.from_numpy(files[test][0]).reshape(-1, 3, 32, 32).double() / 255
    held_out = (held_out - mean[:, None, None]) / deviation[:, None, None]
    assert torch.allclose(everything(dataset.held_out).double(), held_out, atol=1e-5)
    assert dataset.held_out.labels.tolist() == files[test][1].tolist()


def test_cifar_validation_is_a_fifth_of_each_class_by_seed(tmp_path):
    write_cifar10_python(tmp_path, per_file=100)
    first, again, other = (load("cifar10", tmp_path, "validation", seed) for seed in (0, 0, 1))
    assert torch.bincount(first.train.labels).tolist() == [40] * 10
    assert torch.bincount(first.held_out.labels).tolist() == [10] * 10
    assert torch.equal(first.train.images, again.train.images)
    assert not torch.equal(first.train.images, other.train.images)
    rows = {
        bytes(i.flatten().tolist()) for part in (first.train, first.held_out) for i in part.images
    }
    assert len(rows) == 500


class _Runs:
    """A pickle of this calls print when it is read by an unpickler that lets it."""

    def __reduce__(self):
        return builtins.print, ("a batch ran code",)


@pytest.mark.parametrize(
    "content",
    [
        pickle.dumps({b"data": _Runs(), b"labels": []}),
        pickle.dumps({b"data": _Runs(), b"labels": []}, protocol=0),
        b"cos\nsystem\n(S'echo no'\ntR.",
    ],
)
def test_a_batch_cannot_run_code(content, tmp_path, capfd):
    write_cifar10_python(tmp_path)
    (tmp_path / "cifar-10-batches-py" / "data_batch_2").write_bytes(content)
    with pytest.raises(ValueError, match=r"data_batch_2 is no batch.* asks for"):
        load("cifar10", tmp_path)
    assert capfd.readouterr() == ("", "")


def test_damaged_batches_are_named(tmp_path):
    write_cifar10_python(tmp_path)
    path = tmp_path / "cifar-10-batches-py" / "data_batch_3"
    images, labels = random_images(20, 10)
    good = path.read_bytes()
    for content, told in (
        (good[:1000], "is no batch"),
        (b"", "is no batch"),
        (python2_batch(images, labels, b"other"), "is no batch.*labels"),
        (python2_batch(images[:, :100], labels), r"expected uint8 of shape \(n, 3072\)"),
        (python2_batch(images, labels[:5]), "expected an integer for each image"),
        (python2_batch(images, labels + 1), "labels from 1 to 10: expected 0 to 9"),
    ):
        path.write_bytes(content)
        with pytest.raises(ValueError, match=f"data_batch_3.*{told}"):
            load("cifar10", tmp_path)
    path.unlink()
    with pytest.raises(ValueError, match="data_batch_3 cannot be read: No such file"):
        load("cifar10", tmp_path)


def test_binary_files_of_another_length_are_named(tmp_path):
    write_cifar_binary(tmp_path, 100)
    path = tmp_path / "cifar-100-binary" / "train.bin"
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(ValueError, match=r"train.bin has 61479 bytes, no multiple of the 3074"):
        load("cifar100", tmp_path)


@pytest.mark.parametrize("name", [name for name, data in DATA.items() if data.files])
def test_what_is_missing_is_told_with_its_place(name, tmp_path):
    with pytest.raises(ValueError, match=r"put (one|it) there, or give its .* --data-dir") as told:
        load(name, tmp_path)
    assert str(tmp_path) in str(told.value)
    assert DATA[name].files.split()[0].split("<")[0].rstrip("/") in str(told.value)


def test_an_archive_that_is_still_packed_is_told(tmp_path):
    (tmp_path / "cifar-10-python.tar.gz").write_bytes(b"")
    with pytest.raises(ValueError, match=r"still packed: unpack it there with tar xzf"):
        load("cifar10", tmp_path)


def test_tiny_imagenet(tmp_path):
    names = write_tiny_imagenet(tmp_path)
    dataset = load("tinyimagenet", tmp_path)
    assert (dataset.classes, dataset.size) == (3, 64)
    assert torch.bincount(dataset.train.labels).tolist() == [5, 5, 5]
    ranks = [sorted(names).index(name) for name in names]
    assert dataset.held_out.labels.tolist() == ranks
    assert everything(dataset.train).shape == (15, 3, 64, 64)
    levels = torch.tensor([0.0, 60, 120])[:, None] / 255  # JPEG keeps images of one colour
    expected = (levels - torch.tensor([0.485, 0.456, 0.406])) / torch.tensor([0.229, 0.224, 0.225])
    assert torch.allclose(everything(dataset.held_out).mean(dim=(2, 3)), expected, atol=0.01)
    validation = load("tinyimagenet", tmp_path, "validation")
    assert len(validation.train.labels) == 12
    assert torch.bincount(validation.held_out.labels).tolist() == [1, 1, 1]
    listing = tmp_path / "tiny-imagenet-200" / "val" / "val_annotations.txt"
    listing.write_text("val_0.JPEG\tn77\n")
    with pytest.raises(ValueError, match="line 1: 'n77' is no class"):
        load("tinyimagenet", tmp_path)


def test_tiny_imagenets_of_another_size_are_named(tmp_path):
    (name, *_) = write_tiny_imagenet(tmp_path)
    path = tmp_path / "tiny-imagenet-200" / "train" / name / "images" / f"{name}_0.JPEG"
    save_image(path, np.zeros((10, 64, 3), np.uint8))
    with pytest.raises(ValueError, match=r"64 x 10 pixels: expected 64 x 64"):
        everything(load("tinyimagenet", tmp_path).train)


def test_image_folder(tmp_path):
    write_image_folder(tmp_path)
    dataset = load("imagefolder", tmp_path, size=14)
    assert (dataset.classes, dataset.channels, dataset.size) == (2, 3, 14)
    assert dataset.train.labels.tolist() == dataset.held_out.labels.tolist() == [0] * 5 + [1] * 5
    images = everything(dataset.held_out)
    assert images.shape == (10, 3, 14, 14)
    red = images[:, 0].mean(dim=(1, 2)) * 0.229 + 0.485
    assert torch.allclose(red, torch.tensor([0.0] * 5 + [80 / 255] * 5), atol=1e-3)
    # The shorter side, 30, stands for 16 pixels; the middle 14 of them are kept: 26.25 of 40.
    green = (images[0, 1] * 0.224 + 0.456).mean(dim=0)
    assert green.mean().item() == pytest.approx(0.5, abs=0.01)
    step = (green[-1] - green[0]).item() / 13
    assert step * 14 == pytest.approx(26.25 / 39, rel=0.03)


def test_image_folders_that_do_not_fit_are_named(tmp_path):
    write_image_folder(tmp_path)
    (tmp_path / "val" / "bird").mkdir()
    with pytest.raises(ValueError, match="bird is a class that"):
        load("imagefolder", tmp_path)
    (tmp_path / "val" / "bird").rmdir()
    (tmp_path / "train" / "cat" / "0.png").write_bytes(b"no image")
    with pytest.raises(ValueError, match=r"0.png cannot be read as an image"):
        everything(load("imagefolder", tmp_path).train)
    for file in (tmp_path / "train" / "cat").iterdir():
        file.unlink()
    with pytest.raises(ValueError, match="cat holds no image"):
        load("imagefolder", tmp_path)
    shutil.rmtree(tmp_path / "train" / "cat")
    with pytest.raises(ValueError, match="holds 1 folders: expected one for each class"):
        load("imagefolder", tmp_path)


def test_without_pillow_the_extra_is_named(tmp_path, monkeypatch):
    import sys

    monkeypatch.setitem(sys.modules, "PIL", None)
    with pytest.raises(ValueError, match=r"needs Pillow.*pip install 'sparsekern\[data\]'"):
        load("imagefolder", tmp_path)


def test_statistics_of_channels():
    images = torch.randint(0, 256, (7, 3, 5, 4), dtype=torch.uint8)
    images[:, 2] = 9
    mean, deviation = channel_statistics(images)
    values = images.double() / 255
    assert torch.allclose(mean.double(), values.mean(dim=(0, 2, 3)))
    expected = values.std(dim=(0, 2, 3), correction=0)
    assert torch.allclose(deviation[:2].double(), expected[:2])
    assert deviation[2] == pytest.approx(1 / 255)  # nothing is divided by 0


def test_validation_takes_a_fifth_of_each_class():
    labels = torch.tensor([0] * 10 + [1] * 5 + [2] * 4)
    kept, held_out = split_validation(labels, seed=0)
    assert labels[held_out].tolist() == [0, 0, 1]
    assert sorted(torch.cat([kept, held_out]).tolist()) == list(range(19))
