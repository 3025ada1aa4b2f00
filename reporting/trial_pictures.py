"""The two pictures of the fair trial as PNG bytes: gains by number of images and by width."""

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import NullLocator

from reporting.pictures import COLOURS, INK, MARKERS, MUTED, draw
from reporting.tables import span
from reporting.trial import PLACE, Trial


def pictures(trial: Trial) -> dict[str, bytes]:
    """PNG bytes by name: gain over the student alone against images, and against width."""
    tests = trial.tests[trial.tests.against == "alone"]
    drawn = {}
    for name, along, other in (("trial-images", *PLACE), ("trial-width", *PLACE[::-1])):
        # Of all lines that could be drawn along one axis the one with the most places.
        counts = tests.groupby(other)[along].nunique()
        if len(counts) and counts.max() > 1:
            part = tests[tests[other] == counts.idxmax()]
            part = part[part.groupby("side")[along].transform("nunique") > 1]  # a point is no line
            drawn[name] = draw([(trial, part)], by_images if along == "images" else by_width,
                               lambda *_: 4.2)  # fmt: skip
    return drawn


def named(trial: Trial, width: float) -> str:
    """The student in words."""
    return f"student of width {width:g}" if width else f"student {trial.rows.model.iloc[0]}"


def by_images(part: Figure, trial: Trial, tests: pd.DataFrame) -> None:
    width = tests.width.iloc[0]
    axes = lines(part, trial, tests, "images", named(trial, width))
    axes.set_title("When distillation helps: by number of training images\n", linespacing=1.4)
    steps = trial.lengths.steps.xs(width, level="width")
    axes.set_xticklabels([f"{n:,.0f}\n{steps[n]:,.0f} steps" for n in axes.get_xticks()])
    axes.set_xlabel("training images (logarithmic)")


def by_width(part: Figure, trial: Trial, tests: pd.DataFrame) -> None:
    axes = lines(part, trial, tests, "width", f"{tests.images.iloc[0]:,.0f} training images")
    axes.set_title("When distillation helps: by width of the student\n", linespacing=1.4)
    axes.set_xlabel("width of the student (logarithmic)")


def lines(part: Figure, trial: Trial, tests: pd.DataFrame, along: str, where: str) -> Axes:
    """A line a side with the intervals of its gains, on a logarithmic axis."""
    axes = part.subplots()
    axes.axhline(0, color=INK, lw=1.2)
    shown = [side for side in trial.sides if side in set(tests.side)]
    ticks = sorted(tests[along].unique())
    for index, side in enumerate(shown):
        line = tests[tests.side == side].sort_values(along)
        aside = 0.012 * (index - (len(shown) - 1) / 2)  # of the axis: bars beside each other
        at = line[along] * (ticks[-1] / ticks[0]) ** aside
        look = {"color": COLOURS[index % 7], "marker": MARKERS[index % 7], "ms": 6}
        gains, halves = 100 * line.difference, 100 * line.half
        axes.errorbar(at, gains, halves, capsize=3, elinewidth=1.2, mfc="white", label=side, **look)
        significant = line.sign != 0
        axes.plot(at[significant], gains[significant], ls="", zorder=3, **look)
    axes.set_xscale("log")
    axes.set_xticks(ticks, [f"{tick:,.0f}" for tick in ticks])
    axes.xaxis.set_minor_locator(NullLocator())
    axes.set_ylabel("gain over the student alone,\npoints of test accuracy")
    axes.legend(frameon=False, ncols=len(shown))
    over = f"{span(tests.n)} {'draws' if tests.draws.max() > 1 else 'fresh seeds'}"
    what = f"{where}; {trial.asked.tries} tries a side; bars: 95 % intervals over {over}; "
    what += "filled: significant after correction"
    axes.text(0, 1.02, what, transform=axes.transAxes, size=9, color=MUTED, va="bottom")
    return axes
