"""Where images come from: CIFAR-10, a folder, drawn shapes; and which of them a run sees."""

import contextlib
import hashlib
import json
import os
import sys
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING
from zipfile import BadZipFile

import numpy as np
import torch
from PIL import Image
from tqdm import tqdm

from images import shapes
from images.views import PAD, SIZE, Split
from utils import UserError, stream

if TYPE_CHECKING:
    from torchvision.datasets import ImageFolder

# The constants of the reference. This std is not the pixels' own (0.2470, 0.2435, 0.2616).
REFERENCE_MEAN, REFERENCE_STD = (0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010)
SHAPES_SIZES = {"train": 5_000, "test": 2_000}


@dataclass
class Data:
    """All a run sees of a data set."""

    train: Split
    test: Split
    val: Split | None
    classes: list[str]
    mean: tuple[float, ...]  # per channel, of pixels in [0, 1]
    std: tuple[float, ...]
    fingerprint: int  # CRC-32 of the training images and labels


def load(
    dataset: str,
    data_dir: Path,
    device: torch.device,
    train_size: int = 0,
    val_size: int = 0,
    normalization: str = "reference",
) -> Data:
    """Load, split and pad a data set onto the device; sizes in images, as in `split_off`.

    Raises UserError for whatever is wrong with the files or the sizes asked for.
    """
    arrays, classes = SOURCES[dataset](data_dir)
    images, labels = arrays["train"]
    train, val = split_off(labels, val_size, train_size, len(classes))
    mean, std = REFERENCE_MEAN, REFERENCE_STD
    if normalization == "data":
        mean, std = channel_moments(images[train])
    data = Data(
        train=to_device(images, labels, train, device),
        test=to_device(*arrays["test"], slice(None), device),
        val=to_device(images, labels, val, device) if len(val) else None,
        classes=classes,
        mean=mean,
        std=std,
        fingerprint=0,
    )
    pixels = zlib.crc32(data.train.padded.cpu().numpy())
    data.fingerprint = zlib.crc32(labels[train].tobytes(), pixels)
    return data


def to_device(
    images: np.ndarray, labels: np.ndarray, keep: np.ndarray | slice, device: torch.device
) -> Split:
    """The images numbered `keep`, padded; in pieces, for a second copy of all is memory lost."""
    labels, keep = labels[keep], np.arange(len(labels))[keep]
    padded = torch.zeros(len(keep), SIZE + 2 * PAD, SIZE + 2 * PAD, 3, dtype=torch.uint8)
    for start in range(0, len(keep), 5000):
        part = torch.from_numpy(images[keep[start : start + 5000]])
        padded[start : start + 5000, PAD : PAD + SIZE, PAD : PAD + SIZE] = part
    return Split(padded.to(device), torch.from_numpy(labels).to(device))


def split_off(
    labels: np.ndarray, val_size: int, train_size: int, classes: int
) -> tuple[np.ndarray, np.ndarray]:
    """Indices to train on and to validate on, each class-balanced, disjoint, in ascending order.

    Which images are held out depends on nothing but `val_size`; `train_size` then takes from the
    rest (0: all of it). Raises UserError where a class has too few images.
    """
    rest = np.arange(len(labels))
    val = balanced(labels, rest, val_size, classes, "validation")
    rest = np.setdiff1d(rest, val)
    if not train_size:
        return rest, val
    return balanced(labels, rest, train_size, classes, "subset"), val


def balanced(
    labels: np.ndarray, among: np.ndarray, size: int, classes: int, purpose: str
) -> np.ndarray:
    """`size` of the indices `among`, the same number of each class (to within one)."""
    shuffled = stream(0, 0, purpose).permutation(among)
    picked = []
    for label in range(classes):
        wanted = size // classes + (label < size % classes)
        members = shuffled[labels[shuffled] == label]
        if wanted > len(members) - (purpose == "validation"):  # leave something to train on
            raise UserError(
                f"cannot take {size} class-balanced images for the {purpose}: class {label} has "
                f"{len(members)}; ask for fewer with --train-size or --val-size"
            )
        picked.append(members[:wanted])
    return np.sort(np.concatenate(picked))


def channel_moments(images: np.ndarray) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Per-channel mean and standard deviation of pixels in [0, 1]."""
    counts = np.stack([np.bincount(images[..., c].ravel(), minlength=256) for c in range(3)])
    values = np.arange(256) / 255
    mean = (counts * values).sum(1) / counts.sum(1)
    variance = (counts * (values - mean[:, None]) ** 2).sum(1) / counts.sum(1)
    return tuple(mean.tolist()), tuple(np.sqrt(variance).clip(1e-6).tolist())


# ---------------------------------------------------------------- sources
# Each returns {"train": (images, labels), "test": ...} and the class names;
# images are uint8 [N, 32, 32, 3], labels int64 [N]. torchvision is imported where its readers are
# used: it takes longer to import than all else together.

Arrays = dict[str, tuple[np.ndarray, np.ndarray]]

# CRC-32 of each split's pixels and then its labels (int64), in the order of `by_content`.
CIFAR10_CRC = {"train": 0x50F49896, "test": 0x0AC19EBA}


def cifar10(data_dir: Path) -> tuple[Arrays, list[str]]:
    """CIFAR-10 (Krizhevsky 2009): the archive, downloaded where it is missing, or as image files.

    Images come in an order of their own, so both forms give the same runs, bit for bit.
    Raises UserError where data_dir/{train,test}/<class>/* are other images.
    """
    from images.download import FOLDER

    as_files = (data_dir / "train").is_dir() and not (data_dir / FOLDER).is_dir()
    arrays, classes = (folder if as_files else cifar10_archive)(data_dir)
    arrays = {name: by_content(*arrays[name]) for name in arrays}
    if as_files and checksums(arrays) != CIFAR10_CRC:
        raise UserError(
            f"the images in {data_dir} are not CIFAR-10's: --dataset folder reads any images"
        )
    return arrays, classes


def cifar10_archive(data_dir: Path) -> tuple[Arrays, list[str]]:
    """In torchvision's form on disk, as published."""
    from torchvision.datasets import CIFAR10

    from images.download import ensure_cifar10

    ensure_cifar10(data_dir)
    splits = {"train": CIFAR10(data_dir, train=True), "test": CIFAR10(data_dir, train=False)}
    arrays = {name: (s.data, np.array(s.targets, dtype=np.int64)) for name, s in splits.items()}
    return arrays, splits["train"].classes


def by_content(images: np.ndarray, labels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Sorted by label and then by a hash of the pixels: no file name or archive decides."""
    digests = [hashlib.blake2b(image, digest_size=8).digest() for image in images]
    order = np.lexsort((np.array(digests), labels))
    return images[order], labels[order]


def checksums(arrays: Arrays) -> dict[str, int]:
    """CRC-32 of each split's pixels and then its labels."""
    return {
        name: zlib.crc32(labels, zlib.crc32(images)) for name, (images, labels) in arrays.items()
    }


def drawn_shapes(data_dir: Path) -> tuple[Arrays, list[str]]:
    """The project's own drawn data set; nothing is read or written."""
    seeds = {"train": 1, "test": 2}
    arrays = {name: shapes.draw(size, seeds[name]) for name, size in SHAPES_SIZES.items()}
    return arrays, list(shapes.CLASSES)


def folder(data_dir: Path) -> tuple[Arrays, list[str]]:
    """Any images as data_dir/{train,test}/<class>/*, resized to 32x32 where they are not.

    Decoded once, then read from a cache beside them, until a file is added, removed or changed.
    """
    trees = {name: image_tree(data_dir / name) for name in ("train", "test")}
    classes = trees["train"].classes
    if trees["test"].classes != classes:
        odd = sorted(set(classes) ^ set(trees["test"].classes))
        raise UserError(f"{data_dir}: train/ and test/ differ in the class folders {odd}")
    key = tree_key(trees)
    cache = data_dir / ".kd-arrays.npz"
    arrays = read_cache(cache, key)
    if arrays is None:
        arrays = {name: decode(tree, name) for name, tree in trees.items()}
        write_cache(cache, key, arrays)
    return arrays, classes


def image_tree(root: Path) -> "ImageFolder":
    """Classes and files of one split. Raises UserError: no such folder, or an empty class."""
    from torchvision.datasets import ImageFolder

    try:
        return ImageFolder(str(root))
    except OSError as error:  # no such folder, no class folder, an empty or a forbidden one
        reason = str(error).splitlines()[0].split(" Supported extensions")[0]
        raise UserError(f"no image folder at {root}: {reason}") from None


def tree_key(trees: dict[str, "ImageFolder"]) -> str:
    """Changes whenever a file is added, removed, renamed, rewritten or put into another class."""
    digest = hashlib.sha256()
    for tree in trees.values():
        for path, label in tree.samples:
            stat = os.stat(path)
            digest.update(f"{path}\0{label}\0{stat.st_size}\0{stat.st_mtime_ns}\n".encode())
    return digest.hexdigest()


def decode(tree: "ImageFolder", name: str) -> tuple[np.ndarray, np.ndarray]:
    images = np.empty((len(tree.samples), SIZE, SIZE, 3), np.uint8)
    labels = np.array([label for _, label in tree.samples], dtype=np.int64)
    for i, (path, _) in enumerate(tqdm(tree.samples, f"decoding {name}", disable=None)):
        try:
            with Image.open(path) as image:
                rgb = image.convert("RGB")
        except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
            raise UserError(f"cannot read the image {path} ({error}): mend or remove it") from None
        images[i] = np.asarray(rgb if rgb.size == (SIZE, SIZE) else rgb.resize((SIZE, SIZE)))
    return images, labels


def read_cache(cache: Path, key: str) -> Arrays | None:
    try:
        with np.load(cache) as stored:
            if json.loads(str(stored["key"])) != key:
                return None
            return {n: (stored[f"{n}_images"], stored[f"{n}_labels"]) for n in ("train", "test")}
    except (OSError, ValueError, KeyError, EOFError, BadZipFile):  # none yet, or a broken one
        return None


def write_cache(cache: Path, key: str, arrays: Arrays) -> None:
    named = {f"{name}_images": images for name, (images, _) in arrays.items()}
    named |= {f"{name}_labels": labels for name, (_, labels) in arrays.items()}
    temporary = cache.with_name(f".kd-arrays.{os.getpid()}.npz")
    try:
        np.savez(temporary, key=json.dumps(key), **named)
        temporary.replace(cache)
    except OSError as error:
        with contextlib.suppress(OSError):
            temporary.unlink()
        print(f"no cache of the decoded images ({error.strerror}): {cache}", file=sys.stderr)


SOURCES = {"cifar10": cifar10, "folder": folder, "shapes": drawn_shapes}
