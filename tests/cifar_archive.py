"""CIFAR in small, in the very form it was published in 2009: a tar of Python 2's pickles."""

import io
import pickle
import tarfile
from pathlib import Path

import numpy as np
from PIL import Image

from images.cifar import CIFAR10, CIFAR100, Cifar, by_content, checksums


class Python2Pickler(pickle._Pickler):
    """Writes bytes as Python 2 wrote its strings."""

    dispatch = pickle._Pickler.dispatch.copy()

    def save_string(self, value: bytes) -> None:
        self.write(pickle.BINSTRING + len(value).to_bytes(4, "little") + value)

    dispatch[bytes] = save_string


def python2(content: dict) -> bytes:
    """As Python 2 and the NumPy of its day pickle it."""
    file = io.BytesIO()
    Python2Pickler(file, protocol=2).dump(content)
    return file.getvalue().replace(b"numpy._core", b"numpy.core")


def draw(train: int, test: int, classes: int = 10) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """So many images a class, each class of another brightness, in a random order."""
    rng, arrays = np.random.default_rng(0), {}
    for split, count in (("train", train), ("test", test)):
        labels = rng.permutation(np.repeat(np.arange(classes), count))
        pixels = 180 // (classes - 1) * labels[:, None, None, None]
        pixels = pixels + rng.integers(0, 60, (len(labels), 32, 32, 3))
        arrays[split] = pixels.astype(np.uint8), labels
    return arrays


def batches(arrays: dict, parts: int = 5) -> dict[str, dict[bytes, object]]:
    """What each file of CIFAR-10's archive holds."""
    files = {b"batches.meta": {b"label_names": [name.encode() for name in CIFAR10.classes]}}
    images, labels = arrays["train"]
    cut = [*zip(np.array_split(images, parts), np.array_split(labels, parts), strict=True)]
    named = {f"data_batch_{i + 1}": part for i, part in enumerate(cut)}
    for name, (pixels, own) in (named | {"test_batch": arrays["test"]}).items():
        files[name.encode()] = batch(pixels) | {b"labels": own.tolist()}
    return {name.decode(): content for name, content in files.items()}


def batch(pixels: np.ndarray) -> dict[bytes, object]:
    """What a file holds of images [N, 32, 32, 3], beside their labels."""
    rows = np.ascontiguousarray(pixels.transpose(0, 3, 1, 2)).reshape(len(pixels), -1)
    names = [b"%d.png" % i for i in range(len(pixels))]
    return {b"batch_label": b"a batch", b"data": rows, b"filenames": names}


def cifar100(arrays: dict) -> dict[str, bytes]:
    """The files of CIFAR-100's archive; a superclass has five classes."""
    names = [name.encode() for name in CIFAR100.classes]
    files = {"meta": python2({b"fine_label_names": names})}
    for name, (pixels, own) in arrays.items():
        labels = {b"coarse_labels": (own // 5).tolist(), b"fine_labels": own.tolist()}
        files[name] = python2(batch(pixels) | labels)
    return files


def archive(arrays: dict, which: Cifar = CIFAR10) -> bytes:
    """The tar.gz."""
    published = {name: python2(content) for name, content in batches(arrays).items()}
    files = published if which is CIFAR10 else cifar100(arrays)
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as tar:
        for name, raw in files.items():
            member = tarfile.TarInfo(f"{which.folder}/{name}")
            member.size = len(raw)
            tar.addfile(member, io.BytesIO(raw))
    return buffer.getvalue()


def as_files(arrays: dict, root: Path) -> None:
    """The same images as ROOT/{train,test}/<class>/*.png."""
    for split, (images, labels) in arrays.items():
        for i, (pixels, label) in enumerate(zip(images, labels, strict=True)):
            folder = root / split / CIFAR10.classes[label]
            folder.mkdir(parents=True, exist_ok=True)
            Image.fromarray(pixels).save(folder / f"{i}.png")


def known_by(arrays: dict) -> dict[str, int]:
    """The checksums that CIFAR10 would have if these were its images."""
    return checksums({name: by_content(*arrays[name]) for name in arrays})
