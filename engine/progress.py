"""Progress of training: a bar on a terminal, a line now and then in a log."""

import sys
import time

from tqdm import tqdm

QUIET_SECONDS = 30.0  # between two lines of a log


class Progress:
    """Steps of `epochs` x `steps`, from epoch `first` on; only the lead rank shows any.

    On a terminal a bar. Where stderr is a file, one line after an epoch, at most every
    QUIET_SECONDS.
    """

    def __init__(self, what: str, epochs: int, steps: int, first: int, lead: bool):
        self.what, self.epochs, self.first = what, epochs, first
        self.begun = self.said = time.monotonic()
        self.to_log = lead and not sys.stderr.isatty()
        self.bar = tqdm(total=epochs * steps, disable=not lead or self.to_log, unit="step")
        self.bar.update(first * steps)

    def doing(self, what: str) -> None:
        """Name what is under way."""
        self.bar.set_description(what)

    def step(self, count: int = 1) -> None:
        self.bar.update(count)

    def epoch(self, done: int, loss: float, accuracy: float | None) -> None:
        """`done` epochs are done; the figures are of one cell, the first."""
        measured = "" if accuracy is None else f", accuracy {accuracy:.4f}"
        figures = f"loss {loss:.3f}{measured}"
        self.bar.set_postfix_str(figures)
        now = time.monotonic()
        if self.to_log and now - self.said >= QUIET_SECONDS:
            self.said, gone = now, now - self.begun
            left = gone / (done - self.first) * (self.epochs - done)
            print(
                f"{self.what}: epoch {done} of {self.epochs}, {figures}, "
                f"{clock(gone)} gone, {clock(left)} left",
                file=sys.stderr,
                flush=True,
            )

    def close(self) -> None:
        self.bar.close()


def clock(seconds: float) -> str:
    """3725 as 1:02:05."""
    return tqdm.format_interval(seconds)
