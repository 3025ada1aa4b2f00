"""Progress of training: a bar on a terminal, a line now and then in a log."""

import sys
import time

from tqdm import tqdm

QUIET_SECONDS = 30.0  # between two lines of a log
BAR = "{desc} |{bar:10}| {rate_fmt}, {remaining} left{postfix}"


class Progress:
    """Steps of `epochs` x `steps`, from epoch `first` on; only the lead rank shows any.

    `what` are the cells in words. On a terminal a bar. Where stderr is a file, one line after an
    epoch, at most every QUIET_SECONDS.
    """

    def __init__(self, what: str, epochs: int, steps: int, first: int, lead: bool):
        self.what, self.epochs, self.first = what, epochs, first
        self.begun = self.said = time.monotonic()
        self.to_log = lead and not sys.stderr.isatty()
        # smoothing=0: the mean speed, as the teacher's pass comes between two steps.
        how = {"unit": "step", "smoothing": 0, "dynamic_ncols": True, "bar_format": BAR}
        where = {"desc": what, "total": epochs * steps, "initial": first * steps}
        self.bar = tqdm(disable=not lead or self.to_log, **where, **how)

    def doing(self, epoch: int) -> None:
        """Epoch number `epoch`, from 1, is under way."""
        self.now = f"{self.what}: epoch {epoch} of {self.epochs}"
        self.bar.set_description_str(self.now)

    def taught(self, share: float) -> None:
        """This share of the epoch's teacher's logits is there."""
        self.bar.set_description_str(f"{self.now}, teacher's logits {share:.0%}")

    def step(self, count: int = 1) -> None:
        self.bar.update(count)

    def epoch(self, done: int, losses: list[float], accuracies: list[float]) -> None:
        """`done` epochs are done; the figures are every cell's, without accuracies unmeasured."""
        measured = f"test accuracy {span(accuracies)}" if accuracies else ""
        self.bar.set_postfix_str(measured)
        now = time.monotonic()
        if self.to_log and now - self.said >= QUIET_SECONDS:
            self.said, gone = now, now - self.begun
            left = gone / (done - self.first) * (self.epochs - done)
            figures = ", ".join(filter(None, [f"loss {span(losses)}", measured]))
            print(
                f"{self.what}: epoch {done} of {self.epochs}, {figures}, "
                f"{clock(gone)} gone, {clock(left)} left",
                file=sys.stderr,
                flush=True,
            )

    def close(self) -> None:
        self.bar.close()


def span(figures: list[float]) -> str:
    """`0.581`, or of several cells `0.581 to 0.632`."""
    ends = dict.fromkeys(f"{end(figures):.3f}" for end in (min, max))
    return " to ".join(ends)


def clock(seconds: float) -> str:
    """3725 as 1:02:05."""
    return tqdm.format_interval(seconds)
