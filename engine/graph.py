"""A step recorded once and replayed: on a GPU a CUDA graph, one launch instead of hundreds."""

from collections.abc import Callable

import torch
from torch import Tensor

WARM_UP = 3  # steps before the capture: libraries choose their kernels, buffers come to be


def record(
    step: Callable[[], None],
    tensors: Callable[[], list[Tensor]],
    capture: Callable[[Callable[[], None]], Callable[[], None]],
) -> Callable[[], None]:
    """What replays `step`, a function of nothing: it reads and writes the same memory every time.

    `capture(step)` takes some steps to warm up; they leave no trace in `tensors()`, all that a step
    changes. What came to be by them (momentum) is zero, as before a first step. Raises RuntimeError
    where the step cannot be recorded; then too the tensors are as they were.
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
    side = torch.cuda.Stream()  # capture wants what it captures to have run on another stream
    side.wait_stream(here)
    try:
        with torch.cuda.stream(side):
            for _ in range(WARM_UP):
                step()
    finally:  # half a warm-up too has launched kernels, and its traces are about to be removed
        here.wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    try:
        with torch.cuda.graph(graph):
            step()
    finally:  # where the capture fails, torch leaves its own stream the current one
        torch.cuda.set_stream(here)
    return graph.replay


def reason(error: BaseException) -> str:
    """Why a recording failed, in a line: the first error, not those that closing it raised."""
    while error.__context__:
        error = error.__context__
    return (str(error).splitlines() or [type(error).__name__])[0]
