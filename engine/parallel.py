"""Ranks under torchrun: which one this process is, and what they exchange."""

import ctypes
import datetime
import os
import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist

from utils import OwnError, UserError, brief, note, process_count


@dataclass(frozen=True)
class Ranks:
    """This process among those of the command; one of one where torchrun did not start it."""

    rank: int = 0
    world: int = 1
    apart: bool = False  # one of one beside others, with work in which they have no part

    @property
    def lead(self) -> bool:
        """The one rank that writes rows and prints."""
        return self.rank == 0


def start(device: str, threads: int) -> tuple[Ranks, torch.device]:
    """Choose the device (`auto`: a GPU where there is one), set the threads, join the ranks.

    Raises UserError for a device that torch does not have.
    """
    if threads:
        torch.set_num_threads(threads)
    local_rank = int(os.environ.get("LOCAL_RANK") or 0) if process_count() > 1 else 0
    if process_count() == 1 and os.environ.get("WORLD_SIZE", "1") not in ("", "1"):
        note("WORLD_SIZE is set, but not all else that torchrun sets: this process trains alone")
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
        if device == "cpu" and (other := accelerator()):
            note(
                f"training on the CPU: this has not been tried on the {other} device here, "
                f"and --device {other} tries it"
            )
    if device == "cuda":
        device = f"cuda:{local_rank}"
    try:
        chosen = torch.device(device)
        torch.empty(1, device=chosen)
        if chosen.type not in ("cpu", "cuda", accelerator()):
            raise RuntimeError("not supported here")
    except (RuntimeError, AssertionError, ImportError) as error:
        problem = f"cannot use --device {device} ({brief(error).split('. ')[0]}): try cpu or cuda"
        raise OwnError(f"{problem}, or fewer ranks" if local_rank else problem) from None
    prepare(chosen)
    if process_count() == 1:
        return Ranks(), chosen
    backend = "nccl" if chosen.type == "cuda" else "gloo"
    # A rank waits for the slowest one once an epoch, and on a laptop an epoch can take an hour;
    # torchrun itself notices a dead one.
    dist.init_process_group(backend, timeout=datetime.timedelta(days=1))
    return Ranks(dist.get_rank(), dist.get_world_size()), chosen


def accelerator() -> str | None:
    """The type of the device that torch can use here beside the CPU; None where there is none."""
    found = torch.accelerator.current_accelerator(check_available=True)
    return found.type if found else None


def prepare(device: torch.device) -> None:
    """Set torch up for training on `device`; nothing to do on the CPU.

    On a GPU: cudnn benchmarks its kernels, no TF32, and `device` becomes the current one.
    """
    if device.type != "cuda":
        return
    torch.backends.cudnn.benchmark = True
    torch.backends.cudnn.allow_tf32 = False  # lower precision is --amp's to choose
    if device.index is not None:
        torch.cuda.set_device(device)


def keep_freed_memory() -> None:
    """Have glibc keep what a step frees for the next one, instead of returning it to the system.

    A step allocates and frees megabytes. Where malloc returns them, every step faults in and zeroes
    fresh pages, which took as long as the student's arithmetic. Does nothing without glibc.
    """
    trim_threshold, mmap_threshold = -1, -3  # M_... of malloc.h
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" else None
    if mallopt:
        mallopt(trim_threshold, -1)  # never
        mallopt(mmap_threshold, 128 * 2**20)  # anything larger is a data set


def stop() -> None:
    """Leave the group of ranks, if there is one."""
    if dist.is_initialized():
        dist.destroy_process_group()


class Left(OwnError):
    """Another rank has left, at a signal or by a fault, while this one waited for it."""


def all_gather(ranks: Ranks, item: Any) -> list[Any]:
    """Every rank's `item`, in rank order, on every rank. Raises Left where one has gone."""
    if ranks.apart or not dist.is_initialized():
        return [item]
    items = [None] * ranks.world
    try:
        dist.all_gather_object(items, item)
    except torch.OutOfMemoryError:  # this rank's own
        raise
    except RuntimeError as error:
        raise Left(f"another process of this command has ended ({brief(error)})") from None
    return items


def lead_first(ranks: Ranks, work: Callable[[], Any]) -> Any:
    """Do `work` on the lead while the others wait; its result there, None elsewhere.

    Its UserError is raised on every rank, so that none waits for a lead that has left.
    """
    return agreed(ranks, work if ranks.lead else lambda: None)


def agreed(ranks: Ranks, work: Callable[[], Any]) -> Any:
    """Do `work` on every rank: this one's result.

    The first rank's UserError is raised on all, so that the lead prints it.
    """
    result = error = None
    try:
        result = work()
    except UserError as problem:
        error = str(problem)
    if errors := [theirs for theirs in all_gather(ranks, error) if theirs]:
        raise UserError(errors[0])
    return result


def by_lead(ranks: Ranks, work: Callable[[], Any]) -> Any:
    """What `work` gives on the lead, on every rank. Raises UserError as lead_first."""
    return from_lead(ranks, lead_first(ranks, work))


def from_lead(ranks: Ranks, item: Any) -> Any:
    """The lead's `item`, on every rank: a broadcast."""
    return all_gather(ranks, item if ranks.lead else None)[0]
