"""CIFAR-10 in small, in the very form it was published in 2009: a tar of Python 2's pickles."""

import io
import pickle
import tarfile
from pathlib import Path

import numpy as np
from PIL import Image

from images.cifar import CLASSES, FOLDER, by_content, checksums


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


def draw(train: int, test: int) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """So many images a class, each class of another brightness, in a random order."""
    rng, arrays = np.random.default_rng(0), {}
    for split, count in (("train", train), ("test", test)):
        labels = rng.permutation(np.repeat(np.arange(10), count))
        noise = rng.integers(0, 60, (len(labels), 32, 32, 3))
        arrays[split] = (20 * labels[:, None, None, None] + noise).astype(np.uint8), labels
    return arrays


def batches(arrays: dict, parts: int = 5) -> dict[str, dict[bytes, object]]:
    """What each file of the archive holds."""
    files = {b"batches.meta": {b"label_names": [name.encode() for name in CLASSES]}}
    images, labels = arrays["train"]
    cut = [*zip(np.array_split(images, parts), np.array_split(labels, parts), strict=True)]
    named = {f"data_batch_{i + 1}": part for i, part in enumerate(cut)}
    for name, (pixels, own) in (named | {"test_batch": arrays["test"]}).items():
        rows = np.ascontiguousarray(pixels.transpose(0, 3, 1, 2)).reshape(len(pixels), -1)
        files[name.encode()] = {
            b"batch_label": b"a batch",
            b"labels": own.tolist(),
            b"data": rows,
            b"filenames": [b"%d.png" % i for i in range(len(own))],
        }
    return {name.decode(): content for name, content in files.items()}


def archive(arrays: dict) -> bytes:
    """The tar.gz."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as tar:
        for name, content in batches(arrays).items():
            raw = python2(content)
            member = tarfile.TarInfo(f"{FOLDER}/{name}")
            member.size = len(raw)
            tar.addfile(member, io.BytesIO(raw))
    return buffer.getvalue()


def as_files(arrays: dict, root: Path) -> None:
    """The same images as ROOT/{train,test}/<class>/*.png."""
    for split, (images, labels) in arrays.items():
        for i, (pixels, label) in enumerate(zip(images, labels, strict=True)):
            folder = root / split / CLASSES[label]
            folder.mkdir(parents=True, exist_ok=True)
            Image.fromarray(pixels).save(folder / f"{i}.png")


def known_by(arrays: dict) -> dict[str, int]:
    """The checksums that CIFAR10 would have if these were its images."""
    return checksums({name: by_content(*arrays[name]) for name in arrays})
