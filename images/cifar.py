"""CIFAR-10 (Krizhevsky 2009), known by its content, however it lies on the disk."""

import hashlib
import io
import pickle
import re
import tarfile
import zlib
from pathlib import Path

import numpy as np

from images.download import ARCHIVE, ensure_archive
from images.folder import Arrays, cached, folder
from images.views import SIZE
from utils import UserError, brief

FOLDER = "cifar-10-batches-py"  # what the archive unpacks to
BATCH = re.compile(r"data_batch_\d+|test_batch")
CLASSES = "airplane automobile bird cat deer dog frog horse ship truck".split()
# CRC-32 of each split's pixels and then its labels (int64), in the order of `by_content`.
CRC = {"train": 0x50F49896, "test": 0x0AC19EBA}


def cifar10(data_dir: Path) -> tuple[Arrays, list[str]]:
    """Its archive, the folder that unpacks to, or image files; downloaded where there is none.

    `data_dir` holds one of these, or is it. Images come in an order of their own, so all of them
    give the same runs, bit for bit, and so do batches that somebody has pickled anew.
    Raises UserError where what is there is something else; it is left as it is.
    """
    try:
        place = next(filter(is_cifar, (data_dir, data_dir / FOLDER, data_dir / ARCHIVE)), None)
        as_files = (data_dir / "train").is_dir() and not (place and place.is_dir())
    except OSError as error:
        raise UserError(f"cannot read {data_dir} ({error.strerror})") from None
    if not data_dir.exists() and data_dir.suffix in (".gz", ".tgz", ".tar"):
        raise UserError(f"there is no archive {data_dir}: --data-dir may also name a folder")
    if as_files:
        place, (arrays, _) = data_dir, folder(data_dir)
    else:
        place = place or ensure_archive(data_dir)
        arrays = read_batches(place) if place.is_dir() else read_archive(place)
    arrays = {name: by_content(*arrays[name]) for name in arrays}
    if checksums(arrays) != CRC:
        raise UserError(
            f"the images in {place} are not CIFAR-10's ({len(arrays['train'][0]):,} to train on, "
            f"{len(arrays['test'][0]):,} to test on): --dataset folder reads any image files; or "
            "move it away, and CIFAR-10 is downloaded"
        )
    return arrays, list(CLASSES)


def is_cifar(place: Path) -> bool:
    """Whether it is to be read as the archive or as the folder of batches."""
    if place.is_dir():
        return place.name == FOLDER or any(BATCH.fullmatch(p.name) for p in place.iterdir())
    return place.is_file()


def read_archive(archive: Path) -> Arrays:
    """Unpacked once, then read from a cache beside it. Raises UserError."""
    if not archive.is_file():
        raise UserError(f"{archive} is no file: move it away, and CIFAR-10 is downloaded")
    status = archive.stat()
    key = f"{archive.name} {status.st_size} {status.st_mtime_ns}"
    return cached(archive.with_name(".kd-cifar10.npz"), key, lambda: read_batches(archive))


def read_batches(place: Path) -> Arrays:
    """The published form, from the archive or the folder. Raises UserError."""
    try:
        if place.is_dir():
            files = {p.name: p.read_bytes() for p in place.iterdir() if BATCH.fullmatch(p.name)}
        else:
            with tarfile.open(place) as tar:  # in one pass: going back would unpack it again
                named = ((Path(m.name).name, m) for m in tar if m.isfile())
                files = {n: tar.extractfile(m).read() for n, m in named if BATCH.fullmatch(n)}
        test = read_batch(files.pop("test_batch"))
        train = [read_batch(files[name]) for name in sorted(files)]
        images, labels = map(np.concatenate, zip(*train, strict=True))
    except Exception as error:  # torn or strange in one of tar's, zlib's and pickle's many ways
        raise UserError(
            f"cannot read CIFAR-10 from {place} ({type(error).__name__}: {brief(error)}): "
            "move it away, and it is downloaded"
        ) from None
    return {"train": (images, labels), "test": test}


class PlainUnpickler(pickle.Unpickler):
    """Arrays, numbers and text alone: a file from somebody else is to run nothing."""

    ALLOWED = {
        ("numpy", "ndarray"),
        ("numpy", "dtype"),
        ("numpy._core.multiarray", "_reconstruct"),
        ("numpy._core.multiarray", "scalar"),
        ("numpy._core.numeric", "_frombuffer"),
        ("_codecs", "encode"),
    }

    def find_class(self, module: str, name: str) -> object:
        module = module.replace("numpy.core", "numpy._core")  # as it was called before NumPy 2
        if (module, name) not in self.ALLOWED:
            raise pickle.UnpicklingError(f"it asks for {module}.{name}")
        return super().find_class(module, name)


def read_batch(raw: bytes) -> tuple[np.ndarray, np.ndarray]:
    """Images [N, 32, 32, 3] and labels [N] of one file; its keys are text or, published, bytes."""
    content = PlainUnpickler(io.BytesIO(raw), encoding="bytes").load()
    content = {k.decode() if isinstance(k, bytes) else k: v for k, v in content.items()}
    pixels = np.asarray(content["data"], np.uint8).reshape(-1, 3, SIZE, SIZE)
    labels = np.asarray(content["labels"], np.int64)
    if labels.shape != (len(pixels),):
        raise ValueError("as many labels as images are needed")
    return pixels.transpose(0, 2, 3, 1), labels


def by_content(images: np.ndarray, labels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Sorted by label and then by a hash of the pixels: no file name or archive decides."""
    images = np.ascontiguousarray(images)  # batches are channels first: their views are not
    digests = [hashlib.blake2b(image, digest_size=8).digest() for image in images]
    order = np.lexsort((np.array(digests), labels))
    return images[order], labels[order]


def checksums(arrays: Arrays) -> dict[str, int]:
    """CRC-32 of each split's pixels and then its labels."""
    return {
        name: zlib.crc32(labels, zlib.crc32(images)) for name, (images, labels) in arrays.items()
    }
