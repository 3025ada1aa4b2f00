"""Where images come from: CIFAR-10, a folder, drawn shapes; and which of them a run sees."""

import zlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from images import shapes
from images.cifar import cifar10
from images.folder import Arrays, folder
from images.views import PAD, SIZE, Split
from utils import UserError, stream

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
    measured_on: int  # CRC-32 of the held-out images and labels, if any, and the test set's


def load(
    dataset: str,
    data_dir: Path,
    device: torch.device,
    train_size: int = 0,
    val_size: int = 0,
    normalization: str = "reference",
) -> Data:
    """Load, split and pad a data set onto the device; sizes in images, as in `split_off`.

    `normalization` is reference, data, or three means and three stds: `0.5 0.5 0.5/0.2 0.2 0.2`.

    Raises UserError for whatever is wrong with the files or the sizes asked for.
    """
    arrays, classes = SOURCES[dataset](data_dir)
    images, labels = arrays["train"]
    train, val = split_off(labels, val_size, train_size, classes)
    mean, std = REFERENCE_MEAN, REFERENCE_STD
    if normalization == "data":
        mean, std = channel_moments(images[train])
    elif "/" in normalization:  # numbers of a teacher's own
        mean, std = (tuple(map(float, part.split())) for part in normalization.split("/"))
    splits = {
        "train": to_device(images, labels, train, device),
        "test": to_device(*arrays["test"], slice(None), device),
        "val": to_device(images, labels, val, device) if len(val) else None,
    }
    measured_on = crc(splits["test"], crc(splits["val"]) if len(val) else 0)
    return Data(**splits, classes=classes, mean=mean, std=std,
                fingerprint=crc(splits["train"]), measured_on=measured_on)  # fmt: skip


def crc(split: Split, before: int = 0) -> int:
    """CRC-32 of the padded pixels and then the labels."""
    pixels = zlib.crc32(split.padded.cpu().numpy(), before)
    return zlib.crc32(split.labels.cpu().numpy(), pixels)


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
    labels: np.ndarray, val_size: int, train_size: int, classes: list[str]
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
    labels: np.ndarray, among: np.ndarray, size: int, classes: list[str], purpose: str
) -> np.ndarray:
    """`size` of the indices `among`, the same number of each class (to within one)."""
    shuffled = stream(0, 0, purpose).permutation(among)
    picked = []
    for label, name in enumerate(classes):
        wanted = size // len(classes) + (label < size % len(classes))
        members = shuffled[labels[shuffled] == label]
        if wanted > len(members) - (purpose == "validation"):  # leave something to train on
            raise UserError(
                f"cannot take {size} class-balanced images for the {purpose}: class {name} has "
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
# Each returns {"train": (images, labels), "test": ...} and the class names.


def drawn_shapes(data_dir: Path) -> tuple[Arrays, list[str]]:
    """The project's own drawn data set; nothing is read or written."""
    seeds = {"train": 1, "test": 2}
    arrays = {name: shapes.draw(size, seeds[name]) for name, size in SHAPES_SIZES.items()}
    return arrays, list(shapes.CLASSES)


SOURCES = {"cifar10": cifar10, "folder": folder, "shapes": drawn_shapes}
