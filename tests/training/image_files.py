"""Tiny data sets in the formats that they are distributed in, written to a folder."""

import pickle
import struct

import numpy as np

SIDE, VALUES = 32, 3072


def random_images(count, classes, seed=0):
    """Images ``(n, 3072)`` uint8 and labels, each class as often as the others."""
    generator = np.random.default_rng(seed)
    images = generator.integers(0, 256, (count, VALUES), dtype=np.uint8)
    return images, np.arange(count) % classes


def python2_batch(images, labels, label=b"labels"):
    """The pickle that Python 2's cPickle wrote of ``{"data": uint8 array, "labels": list}``.

    Written out opcode by opcode, for Python 3 writes other ones: short byte strings, numpy's
    functions under their old place.
    """

    def string(text):
        return b"U" + bytes([len(text)]) + text

    def integer(value):
        return b"K" + bytes([value]) if value < 256 else b"M" + struct.pack("<H", value)

    shape = b"".join(integer(n) for n in images.shape)
    array = (
        b"cnumpy.core.multiarray\n_reconstruct\n(cnumpy\nndarray\n"
        + integer(0)
        + b"\x85"
        + string(b"b")
        + b"tR("  # an empty array; then its state: version, shape, dtype, C order, bytes
        + integer(1)
        + shape
        + b"\x86"
        + b"cnumpy\ndtype\n("
        + string(b"u1")
        + integer(0)
        + integer(1)
        + b"tR("
        + integer(3)
        + string(b"|")
        + b"NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xff"
        + integer(0)
        + b"tb\x89T"
        + struct.pack("<I", images.size)
        + images.tobytes()
        + b"tb"
    )
    listed = b"](" + b"".join(integer(int(n)) for n in labels) + b"e"
    return b"\x80\x02}(" + string(b"data") + array + string(label) + listed + b"u."


def write_cifar10_python(directory, per_file=20):
    folder = directory / "cifar-10-batches-py"
    folder.mkdir(parents=True)
    files = {}
    for seed, name in enumerate([*(f"data_batch_{n}" for n in range(1, 6)), "test_batch"]):
        files[name] = random_images(per_file, 10, seed)
        (folder / name).write_bytes(python2_batch(*files[name]))
    return files


def write_cifar100_python(directory, count=200):
    folder = directory / "cifar-100-python"
    folder.mkdir(parents=True)
    files = {}
    for seed, name in enumerate(("train", "test")):
        images, labels = files[name] = random_images(count, 100, seed)
        # As Python 3 writes it: bytes go through _codecs.encode in this protocol.
        batch = {b"data": images, b"fine_labels": labels.tolist(), b"coarse_labels": [0] * count}
        (folder / name).write_bytes(pickle.dumps(batch, protocol=2))
    return files


def write_cifar_binary(directory, classes, per_file=20):
    """Both binary versions: a byte (of CIFAR-100 two, the second counts) and 3072 of pixels."""
    if classes == 10:
        folder, names = "cifar-10-batches-bin", [f"data_batch_{n}" for n in range(1, 6)]
        names.append("test_batch")
    else:
        folder, names = "cifar-100-binary", ["train", "test"]
    (directory / folder).mkdir(parents=True)
    files = {}
    for seed, name in enumerate(names):
        images, labels = files[name] = random_images(per_file, classes, seed)
        rows = np.concatenate([labels[:, None].astype(np.uint8), images], axis=1)
        if classes == 100:
            rows = np.concatenate([np.full((per_file, 1), 7, np.uint8), rows], axis=1)
        (directory / folder / f"{name}.bin").write_bytes(rows.tobytes())
    return files


def save_image(path, image):
    """Writes ``(h, w, 3)`` uint8."""
    from PIL import Image

    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(image).save(path)


def write_tiny_imagenet(directory, classes=3, per_class=5):
    home = directory / "tiny-imagenet-200"
    generator = np.random.default_rng(0)
    names = [f"n0{9 - index}" for index in range(classes)]  # not sorted, as in the original
    annotations = []
    for index, name in enumerate(names):
        for number in range(per_class):
            image = generator.integers(0, 256, (64, 64, 3), dtype=np.uint8)
            save_image(home / "train" / name / "images" / f"{name}_{number}.JPEG", image)
        file = f"val_{index}.JPEG"
        save_image(home / "val" / "images" / file, np.full((64, 64, 3), 60 * index, np.uint8))
        annotations.append(f"{file}\t{name}\t0\t0\t63\t63\n")
    (home / "val" / "val_annotations.txt").write_text("".join(annotations))
    (home / "wnids.txt").write_text("\n".join(names) + "\n")
    return names


def write_image_folder(directory, per_class=5, classes=("cat", "dog"), size=(40, 30)):
    """Images of one colour by class, a gradient from left to right over it; PNG, exact."""
    for part in ("train", "val"):
        for index, name in enumerate(classes):
            for number in range(per_class):
                image = np.full((size[1], size[0], 3), 80 * index, np.uint8)
                image[:, :, 1] = np.linspace(0, 255, size[0])[None]
                save_image(directory / part / name / f"{number}.png", image)
