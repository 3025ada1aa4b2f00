"""A step recorded once and replayed: on a GPU a CUDA graph, one launch instead of hundreds."""

from collections.abc import Callable

import torch
from torch import Tensor

WARM_UP = 3  # steps before the capture, in which libraries choose kernels and allocate buffers


def record(
    step: Callable[[], None],
    tensors: Callable[[], list[Tensor]],
    capture: Callable[[Callable[[], None]], Callable[[], None]],
) -> Callable[[], None]:
    """A function that replays `step`, which reads and writes the same memory every time.

    `capture(step)` takes some warm-up steps. Afterwards `tensors()`, all that a step changes, are
    restored, and those that were created (momentum) are zero. Raises RuntimeError where the step
    cannot be recorded; the tensors are restored then, too.
    """
    before = {tensor.data_ptr(): tensor.clone() for tensor in tensors()}
    try:
        return capture(step)
    finally:
        with torch.no_grad():
            for tensor in tensors():
                old = before.get(tensor.data_ptr())
                tensor.zero_() if old is None else tensor.copy_(old)


def cuda_graph(step: Callable[[], None]) -> Callable[[], None]:
    """Capture `step` on the current CUDA device, after a warm-up."""
    here = torch.cuda.current_stream()
    side = torch.cuda.Stream()  # torch wants the warm-up on another stream than the capture
    side.wait_stream(here)
    try:
        with torch.cuda.stream(side):
            for _ in range(WARM_UP):
                step()
    finally:  # also after a failed warm-up: `record` is about to restore the tensors
        here.wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    try:
        with torch.cuda.graph(graph):
            step()
    finally:  # a failed capture leaves its own stream the current one
        torch.cuda.set_stream(here)
    return graph.replay


def reason(error: BaseException) -> str:
    """Why a capture failed, in a line: the first error, not those raised while ending it."""
    while error.__context__:
        error = error.__context__
    return (str(error).splitlines() or [type(error).__name__])[0]
