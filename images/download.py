"""Download a published archive from the first mirror that has it, checked by its MD5.

`torchvision.datasets.CIFAR10(root, download=True)` knows one address. Since June 2026 that server
sends 50 to 80 kB/s (https://github.com/pytorch/vision/issues/9536), some 40 minutes for 170 MB. So
mirrors come first.
"""

import hashlib
import os
import queue
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from tqdm import tqdm

from utils import UserError, acquired, brief, check_writable, note

STALL_SECONDS = 20.0  # a source that sends nothing, or below FLOOR, for this long is left
FLOOR = 10_000  # bytes a second
# Some hosts refuse the user agents of libraries.
HEADERS = {"User-Agent": "Mozilla/5.0 (cifar download)", "Accept-Encoding": "identity"}


class Left(Exception):
    """Why a source is left for the next one."""


@dataclass
class Archive:
    """A published archive: its names, checksum and sources."""

    dataset: str  # its --dataset: cifar10
    title: str  # CIFAR-10
    archive: str  # its file's name
    md5: str
    size: int  # bytes
    sources: list[str]  # tried in this order, after the environment variable CIFAR10_URL


def ensure_archive(root: Path, wanted: Archive) -> Path:
    """The archive in `root`, downloaded unless it is there. Processes take turns, by a lock.

    Raises UserError where no source has it, or `root` cannot be written.
    """
    archive = Path(root).absolute() / wanted.archive
    check_writable(archive.parent)
    try:
        lock = archive.with_name(f".{wanted.title.lower()}.lock")
        with acquired(lock):  # released when its holder dies
            if not archive.exists():  # else another process has downloaded it meanwhile
                download(archive, wanted)
    except OSError as error:
        raise UserError(
            f"cannot keep {wanted.title} in {root} ({error}): "
            "make it writable with 360 MB free, or choose another folder"
        ) from error
    return archive


def download(archive: Path, wanted: Archive) -> None:
    """Download the archive from the first source that has it.

    Raises UserError where none has, and OSError where it cannot be written.
    """
    part = archive.with_name(f".{archive.name}.part")  # overwritten where a kill left one
    variable = f"{wanted.dataset.upper()}_URL"
    urls = list(dict.fromkeys(filter(None, [os.environ.get(variable), *wanted.sources])))
    try:
        for url in urls:
            try:
                fetch(url, part, wanted)
            except Left as why:
                note(f"{wanted.title}: left {url}: {brief(why)}")
            else:
                part.replace(archive)
                return
    finally:
        part.unlink(missing_ok=True)
    raise UserError(
        f"no source has {wanted.title} ({len(urls)} tried): put the archive (MD5 {wanted.md5}) at "
        f"{archive}, or set {variable} to the address of a copy, or run `sh exp.sh --quick`"
    )


def fetch(url: str, part: Path, wanted: Archive) -> None:
    """Write what a source sends. Raises Left where it is not the archive, OSError by the disk."""
    digest = hashlib.md5(usedforsecurity=False)
    bar = tqdm(total=wanted.size, desc=wanted.title, unit="B", unit_scale=True, disable=None)
    with bar, part.open("wb") as file:
        for block in blocks(url, wanted.size):
            file.write(block)
            digest.update(block)
            bar.update(len(block))
    if digest.hexdigest() != wanted.md5:
        raise Left(f"the MD5 of what it sends is {digest.hexdigest()}, not {wanted.md5}")


def blocks(url: str, size: int) -> Iterator[bytes]:
    """What a source sends, as it comes. Raises Left: it refuses, stalls, crawls or is too long."""
    # In a thread: a socket's timeout does not end a header or chunk length that trickles.
    came: queue.Queue[bytes | Left] = queue.Queue(8)
    threading.Thread(target=receive, args=(url, came), daemon=True).start()
    taken, before, since = 0, 0, time.monotonic()
    while True:
        try:
            block = came.get(timeout=STALL_SECONDS + 1)  # after requests' timeout, which says more
        except queue.Empty:
            silent = "it does not answer (a proxy or firewall in between?)"
            raise Left("it trickles" if taken else silent) from None
        if isinstance(block, Left):
            raise block
        taken += len(block)
        if taken > size:
            raise Left(f"it sends more than the archive's {size:,} bytes")
        if (spent := time.monotonic() - since) > STALL_SECONDS:
            if taken - before < FLOOR * spent:
                raise Left(f"{(taken - before) / spent:.0f} bytes a second are too few")
            before, since = taken, time.monotonic()
        if not block:
            return
        yield block


def receive(url: str, came: "queue.Queue[bytes | Left]") -> None:
    """Queue what a source sends, and at the end an empty block, or why it failed (Left)."""
    import requests  # slow to import, and most runs have the archive
    from urllib3.exceptions import HTTPError

    try:
        with requests.get(url, stream=True, timeout=STALL_SECONDS, headers=HEADERS) as reply:
            reply.raise_for_status()
            # read1 returns what has come; read would wait for a whole block.
            while block := reply.raw.read1(1 << 16):
                came.put(block)
        came.put(b"")
    # requests' errors are OSErrors. No file is open here, so none of these is the disk's.
    except (OSError, ValueError, HTTPError) as error:
        came.put(Left(str(error)))
