"""A sheet: a file that caches the teacher's logits of every view it was computed for.

At 32 pixels an image has 162 views, so 50,000 images have 8.1 million, and a cache of 8.1 million x
10 logits (356 MB) serves every seed, epoch, cell, response method and later command. It lies beside
the checkpoint, sparse, and is filled as views come up. Every row has a checksum, so a row that a
kill or a full disk left torn counts as missing.

The cache is exact: teacher and student see the same view (Beyer et al., CVPR 2022), and a view's
logits are bit for bit independent of batch composition (`check` tests it; else there is no sheet).
"""

import contextlib
import hashlib
import json
import math
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from engine.parallel import Ranks, all_gather, from_lead
from engine.teacher import CHUNK, Teacher, chunk_size
from images.sources import Data
from images.views import Split, Views, gather
from utils import OwnError, note, unique

FORM = 1  # of the file and its logits: raise it when a change in the code changes either
# The number of views grows with the square of the image's size, and few then come up twice. A sheet
# that could grow beyond this is made only where --teacher-cache names its folder.
AUTO_BYTES = 20e9
SALT = 0x5EED  # so that a row of zeros, a hole of the sparse file, fails its checksum


class Sheet:
    """Logits by row: row = view x images + image. Several commands may share the file.

    They write the same bits into the same places, so no lock is needed.
    """

    def __init__(self, path: Path, key: dict, views: int, classes: int):
        """Open or create it. Raises OSError where there is no room or no permission."""
        self.path, self.classes = path, classes
        self.full = self.unreadable = False
        header = json.dumps(key, sort_keys=True).encode().ljust(4096)
        self.start, self.width = len(header), 4 * (classes + 1)  # bytes
        size = self.start + views * self.width
        path.parent.mkdir(parents=True, exist_ok=True)
        if not path.exists():
            create(path, header, size)
        self.file = os.open(path, os.O_RDWR)
        if os.fstat(self.file).st_size != size or os.pread(self.file, len(header), 0) != header:
            raise OSError(0, "it is damaged or not a sheet: remove it")

    def _place(self, row: int) -> int:
        return self.start + row * self.width

    def read(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        """Logits [n, K] of the rows [n], and which of them are cached, bool [n]."""
        content = []
        try:
            # No memory map: on a full disk, touching one can kill the process.
            for row in [] if self.unreadable else rows.tolist():
                content.append(os.pread(self.file, self.width, self._place(row)))
        except OSError as error:
            self.unreadable, content = True, []
            self.give_up(error)
        hole = bytes(self.width)  # also for a file that was truncated while open
        whole = [row if len(row) == self.width else hole for row in content] or [hole] * len(rows)
        found = torch.frombuffer(bytearray().join(whole), dtype=torch.int32)
        found = found.view(len(rows), self.classes + 1)
        words = found[:, :-1].contiguous()
        return words.view(torch.float32), checksums(words) == found[:, -1]

    def write(self, rows: Tensor, logits: Tensor) -> None:
        """Cache logits float32 [n, K] of the rows [n]; on a full disk, print a line and stop."""
        if self.full:
            return
        words = logits.contiguous().view(torch.int32)
        whole = torch.cat([words, checksums(words)[:, None]], 1).numpy()
        try:
            for row, content in zip(rows.tolist(), whole, strict=True):
                os.pwrite(self.file, content.tobytes(), self._place(row))
        except OSError as error:
            self.give_up(error)

    def give_up(self, error: OSError) -> None:
        """Write no more, and print a line once."""
        if self.full:
            return
        self.full = True
        note(f"cannot cache more in {self.path} ({error.strerror}): missing logits are recomputed")


def checksums(words: Tensor) -> Tensor:
    """A checksum for each row of int32 [n, K]: a weighted sum."""
    weights = 2 * torch.arange(1, words.shape[1] + 1) + 1
    return ((words.long() * weights).sum(1) + SALT).to(torch.int32)


def create(path: Path, header: bytes, size: int) -> None:
    """An empty sheet, all holes, made atomically. Raises OSError where it will not fit."""
    free = shutil.disk_usage(path.parent).free
    if size > free:
        raise OSError(0, f"it may grow to {size / 1e6:,.2f} MB, and {free / 1e6:,.2f} MB are free")
    temporary = path.with_name(f".{path.name}.{unique()}.tmp")
    try:
        with temporary.open("wb") as file:
            file.write(header)
            file.truncate(size)
        with contextlib.suppress(FileExistsError):  # made by another command meanwhile
            os.link(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def open_sheet(
    folder: Path, teacher: Teacher, data: Data, machine: str, most: float = math.inf
) -> Sheet | None:
    """The sheet of this teacher, these images and this numerical setup, in `folder`.

    `machine` names the processor or GPU: another one rounds differently. None, with a line that
    gives the reason, where there cannot be one or it could grow beyond `most` bytes.
    """
    device, split = data.train.labels.device, data.train
    views = split.views * len(split)
    if (size := 4 * (len(data.classes) + 1) * views) > most:
        note(
            f"no cached teacher logits: with {split.views:,} views an image they could grow "
            f"to {size / 1e9:,.0f} GB, more than {most / 1e9:g}, so each epoch computes them; "
            "--teacher-cache DIR caches all the same; with --augment flip an image has 2 views"
        )
        return None
    key = {
        "teacher": teacher.sha,
        "data": data.fingerprint,
        "views": split.views,
        "device": device.type,
        "amp": teacher.amp,
        "threads": torch.get_num_threads() if device.type == "cpu" else 0,
        "torch": torch.__version__,
        "machine": machine,
        "form": FORM,
        "network": teacher.code,
    }
    name = hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()[:12]
    path = folder / f"{teacher.run_id}-{name}.sheet"
    try:
        sheet = Sheet(path, key, views, len(data.classes))
        check(teacher, split, sheet)
    except OSError as error:
        note(f"no cached teacher logits at {path} ({error.strerror}): each epoch computes them")
        return None
    return sheet


def check(teacher: Teacher, split: Split, sheet: Sheet) -> None:
    """Raise OSError unless a view's logits are independent of batch composition, and as cached.

    What this computes is cached, so that the next command has rows to compare its own with.
    """
    device = split.labels.device
    size = chunk_size(split, CHUNK[device.type])
    numbers = torch.arange(2 * size) * 7919 % (split.views * len(split))  # spread over all views
    views = Views.numbered(numbers.to(device), split)
    others = torch.randperm(2 * size, generator=torch.Generator().manual_seed(0))[:size]
    first = view_logits(teacher, split, views[:size])
    second = view_logits(teacher, split, views[others.to(device)])
    again = others < size
    if not torch.equal(first[others[again]], second[again]):
        raise OSError(0, "here the last bit of a view's logits depends on the rest of its batch")
    written, there = sheet.read(numbers[:size])
    if not torch.equal(first[there], written[there]):
        raise OSError(0, "its logits are not this teacher's: remove it")
    sheet.write(numbers[:size], first)


def view_logits(teacher: Teacher, split: Split, views: Views) -> Tensor:
    """The teacher's logits, float32 [n, K] on the CPU, of at most a chunk of views.

    Padded to a whole chunk: kernels are chosen by size, and each rounds differently. Raises
    UserError where they are not finite.
    """
    size = chunk_size(split, CHUNK[split.labels.device.type])
    filled = views[torch.arange(size, device=views.index.device) % len(views)]
    logits = teacher(gather(split, filled))[: len(views)].cpu()
    if not torch.isfinite(logits).all():
        raise OwnError(
            f"the logits of {teacher.folder}/{teacher.run_id}.pt are not finite: it cannot teach"
        )
    return logits


def epoch_logits(
    teacher: Teacher,
    split: Split,
    views: Views,
    sheet: Sheet | None,
    ranks: Ranks,
    tick: Callable[[float], None],
) -> Tensor:
    """The teacher's logits for an epoch's views, float32 [n, K] on the CPU.

    From the sheet where they are cached; the rest is computed in chunks, distributed over the
    ranks, and cached. `tick` is called after each chunk, with the share that is done.
    """
    device, numbers = views.index.device, views.numbers(split).cpu()
    # Read by one rank: all must agree on what is missing, and another command may be writing.
    known = from_lead(ranks, sheet.read(numbers) if sheet and ranks.lead else None)
    there = known[1] if known else torch.zeros(len(views), dtype=torch.bool)
    size = chunk_size(split, CHUNK[device.type])
    chunks = [part for part in (~there).nonzero()[:, 0].split(size) if len(part)]
    computed = {}
    for i in range(ranks.rank, len(chunks), ranks.world):
        computed[i] = view_logits(teacher, split, views[chunks[i].to(device)])
        if sheet:
            sheet.write(numbers[chunks[i]], computed[i])
        tick((i + 1) / len(chunks))
    for theirs in all_gather(ranks, computed):
        computed.update(theirs)
    logits = known[0] if known else torch.empty(len(views), computed[0].shape[1])
    for i, part in enumerate(chunks):
        logits[part] = computed[i]
    return logits
