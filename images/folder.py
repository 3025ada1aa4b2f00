"""Any images as ROOT/{train,test}/<class>/*: found, decoded once, cached beside them."""

import contextlib
import hashlib
import json
import math
import os
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps
from tqdm import tqdm

from utils import OwnError, UserError, brief, listed, note, unique

Arrays = dict[str, tuple[np.ndarray, np.ndarray]]  # split: uint8 [N, S, S, 3], int64 [N]
# Formats that are decoded. Not all that Pillow knows: EPS starts Ghostscript.
FORMATS = ("PNG", "JPEG", "PPM", "BMP", "TIFF", "WEBP", "GIF", "AVIF")
DECODER = 2  # part of a cache's key: a change of `rgb` makes older caches useless


@dataclass
class Tree:
    """The images of one split; a file is its path, and its size and times as text."""

    root: Path
    classes: list[str]
    files: list[tuple[str, str]]
    labels: list[int]


def folder(data_dir: Path, size: int) -> tuple[Arrays, list[str]]:
    """Any images as data_dir/{train,test}/<class>/*, resized to `size` pixels a side.

    Decoded once, then read from a cache beside them, one a size, until a file is added, removed or
    changed.
    Raises UserError for whatever is wrong with them.
    """
    trees = {name: image_tree(data_dir / name) for name in ("train", "test")}
    same = os.path.samefile(data_dir / "train", data_dir / "test")
    if same:
        note(f"{data_dir}: train/ and test/ are one folder, so accuracy is on the training images")
    classes = trees["train"].classes
    if trees["test"].classes != classes:
        odd = sorted(set(classes) ^ set(trees["test"].classes))
        raise UserError(f"{data_dir}: train/ and test/ differ in the class folders {odd}")
    count = sum(len(tree.files) for tree in trees.values())
    check_room(count, size, size, torch.device("cpu"), "fewer files, or a smaller --image-size")
    decoded = cached(
        data_dir / f".kd-arrays{'' if size == 32 else f'-{size}'}.npz",
        tree_key(trees),
        lambda: {name: decode(tree, name, size) for name, tree in trees.items()},
    )
    if not same:
        note_copies(data_dir, decoded["train"][0], decoded["test"][0])
    return decoded, classes


def note_copies(data_dir: Path, train: np.ndarray, test: np.ndarray) -> None:
    """A line where test images are training images, too, pixel for pixel."""
    seen = {hash(image.tobytes()) for image in train}
    copies = sum(hash(image.tobytes()) in seen for image in test)
    if copies:
        note(
            f"{data_dir}: {copies} of {len(test)} test images are among the training images, too, "
            "pixel for pixel, so accuracy is too high: remove them from one of the two"
        )


# ---------------------------------------------------------------- which files


def image_tree(root: Path) -> Tree:
    """Classes and files of one split; a line names what was left out, but for hidden files.

    Raises UserError: no such folder, fewer than two classes, a class without an image.
    """
    left_out = Counter()
    try:
        there = list(visible(root, left_out))
        classes = [entry.name for entry in there if os.path.isdir(entry.path)]
    except OSError as error:
        raise UserError(f"no image folder at {root} ({error.strerror})") from None
    tree = Tree(root, classes, [], [])
    if len(classes) < len(there):
        left_out["beside the class folders"] = len(there) - len(classes)
    empty = [name for name in classes if not read_class(tree, name, left_out)]
    what = ", ".join(f"{count} {kind}" for kind, count in sorted(left_out.items()))
    if len(classes) < 2:
        inside = []
        for name in classes:
            with contextlib.suppress(OSError):  # where it may not be read
                entries = visible(root / name, left_out)
                inside += [entry.name for entry in entries if os.path.isdir(entry.path)]
        raise UserError(
            f"{root} has {len(classes)} class folders ({listed(classes, 8)}), and one class is "
            f"nothing to learn: images go into {root}/<class>/"
            + f"; the folders one level down are {listed(inside, 8)}"
            * bool(inside)
        )
    if empty:
        raise UserError(
            f"no image in the class folders {listed(empty, 8)} of {root}"
            + f" (left out: {what})" * bool(what)
        )
    if what:
        note(f"{root}: left out {what}")
    return tree


def visible(folder: str | Path, left_out: Counter) -> Iterator[os.DirEntry]:
    """A folder's entries by name, without what systems hide in it. Raises OSError."""
    with os.scandir(folder) as entries:
        for entry in sorted(entries, key=lambda entry: entry.name):
            if entry.name.startswith("@") and entry.name != "@eaDir":
                left_out["with a name that begins with @"] += 1
            elif not entry.name.startswith(".") and entry.name not in ("@eaDir", "__MACOSX"):
                yield entry


def read_class(tree: Tree, name: str, left_out: Counter) -> bool:
    """Add a class's images, however deep, to the tree; whether there is one."""
    from torchvision.datasets.folder import IMG_EXTENSIONS  # slow to import

    found, seen, ahead = [], set(), [os.path.join(tree.root, name)]
    while ahead:
        here = ahead.pop()
        try:
            status = os.stat(here)
            if (status.st_dev, status.st_ino) in seen:  # a link back
                continue
            seen.add((status.st_dev, status.st_ino))
            for entry in visible(here, left_out):
                kind = os.path.splitext(entry.name)[1].lower()
                if os.path.isdir(entry.path):
                    ahead.append(entry.path)
                elif not os.path.isfile(entry.path):
                    left_out["broken link" if entry.is_symlink() else "pipe or device"] += 1
                elif kind not in IMG_EXTENSIONS:
                    left_out[kind or "without an ending"] += 1
                else:
                    status = os.stat(entry.path)
                    # mtime stays the same where another file is moved there, ctime does not.
                    times = f"{status.st_mtime_ns} {status.st_ctime_ns}"
                    found.append((here, entry.path, f"{status.st_size} {times}"))
        except OSError:
            left_out["in a folder that cannot be read"] += 1
    tree.files += [file for _, *file in sorted(found)]
    tree.labels += [tree.classes.index(name)] * len(found)
    return bool(found)


def tree_key(trees: dict[str, Tree]) -> str:
    """Changes whenever a file is added, removed, renamed, rewritten or put into another class."""
    digest = hashlib.sha256(f"decoder {DECODER}".encode())
    for tree in trees.values():
        for (path, status), label in zip(tree.files, tree.labels, strict=True):
            place = os.fsencode(os.path.relpath(path, tree.root))  # however the root is written
            digest.update(place + f"\0{label}\0{status}\n".encode())
    return digest.hexdigest()


# ---------------------------------------------------------------- from files to pixels


def decode(tree: Tree, name: str, size: int) -> tuple[np.ndarray, np.ndarray]:
    """Pixels and labels. Raises UserError for a file that cannot be read as an image."""
    images = np.empty((len(tree.files), size, size, 3), np.uint8)
    sizes, peaks, broken = Counter(), [], []
    Image.init()
    formats = [name for name in FORMATS if name in Image.OPEN]
    for i, (path, _) in enumerate(tqdm(tree.files, f"decoding {name}", disable=None)):
        try:
            with Image.open(path, formats=formats) as image:
                if image.mode.startswith("I"):  # (not getextrema: big-endian ones have none)
                    peaks.append(int(np.asarray(image).max()))
                if "RGB;16" in str(image.tile):  # of three channels Pillow keeps the high byte
                    peaks.append(257 * max(high for _, high in image.getextrema()))
                pixels = rgb(image)
        except Exception as error:  # Pillow's decoders raise whatever they like
            broken.append(f"{path} ({brief(error)})")
            continue
        sizes[pixels.size] += 1
        images[i] = np.asarray(pixels.resize((size, size)))
    if broken:
        what = f"{len(broken)} images," if len(broken) > 1 else "the image"
        raise UserError(f"cannot read {what} {listed(broken)}: mend or remove what cannot be read")
    others = len(images) - sizes.pop((size, size), 0)
    if others:
        (width, height), _ = sizes.most_common(1)[0]
        note(
            f"{tree.root}: {others} of {len(images)} images are not {size}x{size} (most of them "
            f"{width}x{height}) and were resized to that (bicubic), whatever their shape; "
            "--image-size N makes them NxN"
        )
    if peaks and max(peaks) < 2**15:
        note(
            f"{tree.root}: no pixel of the {len(peaks)} images with 16 bits goes beyond "
            f"{max(peaks)} of 65535: if that is meant to be white, save them with 8 bits"
        )
    return images, np.array(tree.labels, dtype=np.int64)


def rgb(image: Image.Image) -> Image.Image:
    """Upright by its EXIF data, 8 bits a channel, transparency on white.

    Raises ValueError for numbers of unknown range.
    """
    with contextlib.suppress(Exception):  # broken EXIF data are ignored
        image = ImageOps.exif_transpose(image)
    if image.mode == "F" or image.mode.startswith("I"):
        image = eight_bits(image)
    if image.has_transparency_data:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return image.convert("RGB")


def eight_bits(image: Image.Image) -> Image.Image:
    """Grey of 16 bits, or of floats from 0 to 1, in 8 bits. Raises ValueError for other ranges."""
    pixels = np.asarray(image).astype(float)
    low, high = pixels.min(), pixels.max()
    top = 1.0 if image.mode == "F" else 65535.0
    # 16-bit files with 8-bit values would become black, so values beyond 255 are required.
    if not 0 <= low <= high <= top or (image.mode != "F" and 0 < high <= 255):
        raise ValueError(f"mode {image.mode} with pixels from {low:g} to {high:g}: save 8 bits")
    return Image.fromarray(np.rint(pixels * (255 / top)).astype(np.uint8))


# ---------------------------------------------------------------- memory


def check_room(count: int, size: int, side: int, device: torch.device, advice: str) -> None:
    """Raise OwnError unless so many images, uint8 and `side` pixels a side, fit into what is free.

    `size` is their size without the padding, for the message.
    """
    each, free = 3 * side**2, free_bytes(device)
    if count * each > free:
        padded = f" ({side} with padding)" * (side > size)
        raise OwnError(
            f"{count:,} images of {size} pixels{padded} take {count * each / 2**30:.2f} GiB and "
            f"{free / 2**30:.2f} are free on {device}: at most {free // each:,} fit; {advice}"
        )


def free_bytes(device: torch.device) -> float:
    """Free memory of a GPU or of the machine; infinite where the system does not tell."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    with contextlib.suppress(OSError):
        for line in Path("/proc/meminfo").read_text().splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) * 1024
    return math.inf


# ---------------------------------------------------------------- the cache


def cached(cache: Path, key: str, make: Callable[[], Arrays]) -> Arrays:
    """What `make` makes, or made before under the same key and left in the file `cache`."""
    arrays = read_cache(cache, key)
    if arrays is None:
        arrays = make()
        write_cache(cache, key, arrays)
    return arrays


def read_cache(cache: Path, key: str) -> Arrays | None:
    """What was decoded of files with this key, or None."""
    try:
        with np.load(cache) as stored:
            if json.loads(str(stored["key"])) != key:
                return None
            return {n: (stored[f"{n}_images"], stored[f"{n}_labels"]) for n in ("train", "test")}
    except Exception:  # none yet, or broken, for which zipfile and NumPy raise many kinds
        return None


def write_cache(cache: Path, key: str, arrays: Arrays) -> None:
    """Cache what was decoded; a line where that fails."""
    named = {f"{name}_images": images for name, (images, _) in arrays.items()}
    named |= {f"{name}_labels": labels for name, (_, labels) in arrays.items()}
    temporary = cache.with_name(f"{cache.stem}.{unique()}.npz")
    try:
        np.savez(temporary, key=json.dumps(key), **named)
        temporary.replace(cache)
    except OSError as error:
        note(f"no cache of the decoded images ({error.strerror}): {cache}")
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)
