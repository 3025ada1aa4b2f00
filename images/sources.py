"""Data sets (CIFAR, a folder, synthetic shapes), and which of their images a run uses."""

import zlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image

from images import shapes
from images.cifar import CIFAR10, CIFAR100, load_cifar
from images.folder import Arrays, check_room, folder
from images.views import Split, plain
from utils import UserError, note, stream

# The constants of the reference. This std is not the pixels' own (0.2470, 0.2435, 0.2616).
REFERENCE_MEAN, REFERENCE_STD = (0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010)
CIFAR100_MOMENTS = (0.5071, 0.4867, 0.4408), (0.2675, 0.2565, 0.2761)
SHAPES_SIZES = {"train": 5_000, "test": 2_000}
AUGMENTS = ("crop-flip", "flip", "none")
PIECE = 1_000  # images converted at a time


@dataclass
class Data:
    """A data set as a run uses it."""

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
    image_size: int = 32,
    augment: str = "crop-flip",
    draw: int = 0,
) -> Data:
    """Load, split, resize and pad a data set onto the device.

    Train and val size in images, as in `split_off`; image size in pixels a side.

    `normalization` is reference, data, or three means and three stds: `0.5 0.5 0.5/0.2 0.2 0.2`.

    Raises UserError for whatever is wrong with the files or the sizes.
    """
    arrays, classes = SOURCES[dataset](data_dir, image_size)
    images, labels = arrays["train"]
    train, val = split_off(labels, val_size, train_size, classes, draw)
    pad = image_size // 8 if "crop" in augment else 0
    count = len(train) + len(val) + len(arrays["test"][1])
    advice = "a smaller --train-size or --image-size"
    check_room(count, image_size, image_size + 2 * pad, device, advice)
    own = images.shape[1]
    if own != image_size:
        note(f"{dataset}: its images of {own}x{own} are resized to {image_size}x{image_size}")
    how = {"device": device, "size": image_size, "pad": pad, "flips": 1 + ("flip" in augment)}
    splits = {
        "train": to_device(images, labels, train, **how),
        "test": to_device(*arrays["test"], slice(None), **how),
        "val": to_device(images, labels, val, **how) if len(val) else None,
    }
    mean, std = reference_moments(dataset)
    if normalization == "data":
        mean, std = channel_moments(splits["train"])
    elif "/" in normalization:  # numbers of a teacher's own
        mean, std = (tuple(map(float, part.split())) for part in normalization.split("/"))
    measured_on = crc(splits["test"], crc(splits["val"]) if len(val) else 0)
    return Data(**splits, classes=classes, mean=mean, std=std,
                fingerprint=crc(splits["train"]), measured_on=measured_on)  # fmt: skip


def reference_moments(dataset: str) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation that --normalization reference stands for."""
    return CIFAR100_MOMENTS if dataset == "cifar100" else (REFERENCE_MEAN, REFERENCE_STD)


def crc(split: Split, before: int = 0) -> int:
    """CRC-32 of the pixels, padded as for crops whatever the augmentation, and then the labels."""
    lacks = split.size // 8 - split.pad
    for part in split.padded.split(PIECE):
        part = F.pad(part.cpu(), (0, 0, lacks, lacks, lacks, lacks))
        before = zlib.crc32(part.numpy(), before)
    return zlib.crc32(split.labels.cpu().numpy(), before)


def to_device(
    images: np.ndarray,
    labels: np.ndarray,
    keep: np.ndarray | slice,
    device: torch.device,
    size: int,
    pad: int,
    flips: int,
) -> Split:
    """The images with indices `keep`, resized to `size` pixels a side and padded, as a Split.

    In pieces, so that there is no second copy of all of them.
    """
    labels, keep = labels[keep], np.arange(len(labels))[keep]
    side, inside = size + 2 * pad, slice(pad, pad + size)
    padded = torch.zeros(len(keep), side, side, 3, dtype=torch.uint8, device=device)
    for start in range(0, len(keep), PIECE):
        part = images[keep[start : start + PIECE]]
        if part.shape[1] != size:
            part = np.stack([Image.fromarray(image).resize((size, size)) for image in part])
        padded[start : start + PIECE, inside, inside] = torch.from_numpy(part)
    return Split(padded, torch.from_numpy(labels).to(device), pad, flips)


def split_off(
    labels: np.ndarray, val_size: int, train_size: int, classes: list[str], draw: int = 0
) -> tuple[np.ndarray, np.ndarray]:
    """Indices to train on and to validate on, each class-balanced, disjoint, in ascending order.

    Which images are held out depends only on `val_size`; `train_size` then takes from the rest
    (0: all), other ones in another `draw`. Raises UserError where a class has too few images, or a
    draw would be of all.
    """
    rest = np.arange(len(labels))
    val = balanced(labels, rest, val_size, classes, "validation")
    rest = np.setdiff1d(rest, val)
    if not train_size:
        return rest, val
    if draw and train_size == len(rest):
        raise UserError(f"--draw {draw}: every draw has all {len(rest)} images, ask for fewer")
    return balanced(labels, rest, train_size, classes, "subset", draw), val


def balanced(
    labels: np.ndarray,
    among: np.ndarray,
    size: int,
    classes: list[str],
    purpose: str,
    draw: int = 0,
) -> np.ndarray:
    """`size` of the indices `among`, the same number of each class (to within one)."""
    shuffled = stream(draw, 0, purpose).permutation(among)
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


def channel_moments(split: Split) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Per-channel mean and standard deviation of pixels in [0, 1]."""
    counts = np.zeros((3, 256), dtype=np.int64)
    for start in range(0, len(split), PIECE):
        pixels = plain(split, slice(start, start + PIECE)).cpu().numpy()
        counts += [np.bincount(pixels[:, c].ravel(), minlength=256) for c in range(3)]
    values = np.arange(256) / 255
    mean = (counts * values).sum(1) / counts.sum(1)
    variance = (counts * (values - mean[:, None]) ** 2).sum(1) / counts.sum(1)
    return tuple(mean.tolist()), tuple(np.sqrt(variance).clip(1e-6).tolist())


# ---------------------------------------------------------------- sources
# Each returns {"train": (images, labels), "test": ...} and the class names. A folder's images are
# resized where they are decoded, all others' on their way to the device.


def drawn_shapes(data_dir: Path, size: int) -> tuple[Arrays, list[str]]:
    """The project's drawn data set; nothing is read or written."""
    seeds = {"train": 1, "test": 2}
    arrays = {name: shapes.draw(size, seeds[name]) for name, size in SHAPES_SIZES.items()}
    return arrays, list(shapes.CLASSES)


SOURCES = {"folder": folder, "shapes": drawn_shapes}
SOURCES |= {
    which.dataset: lambda data_dir, size, which=which: load_cifar(which, data_dir)
    for which in (CIFAR10, CIFAR100)
}
