"""The fair trial's pictures as PNG bytes: gains by images and by width, and the best of n tries."""

import math
import textwrap

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import NullLocator

import sides
from reporting.pictures import COLOURS, INK, MARKERS, draw, titled
from reporting.trial import PLACE, TRIES, Trial, best_of
from reporting.trial_answer import named_place, over

CAPTIONS = {
    "trial-images": "Gain over the student alone by number of training images",
    "trial-width": "Gain over the student alone by width of the student",
    "trial-tries": "Expected test accuracy of the best of n tries",
}
WORDS = {"alone": "student alone", "smooth": "label smoothing", "kd": "distillation"}
WORDS |= {
    "kd-shuffled": "distillation, another image's answers",
    "kd-random": "distillation, untrained teacher",
    "kd-self": "distillation, the student itself as teacher",
    "kd-same": "distillation, teacher of the same images only",
}
LEAST_TRIES, PANELS, ACROSS = 10, 6, 3  # of trial-tries


def pictures(trial: Trial) -> dict[str, bytes]:
    """PNG bytes by name, of CAPTIONS those for which there is enough."""
    tests = trial.tests[trial.tests.against == "alone"]
    drawn = {}
    for name, along, other in (("trial-images", *PLACE), ("trial-width", *PLACE[::-1])):
        # Of all lines that could be drawn along one axis the one with the most places.
        counts = tests.groupby(other)[along].nunique()
        if len(counts) and counts.max() > 1:
            part = tests[tests[other] == counts.idxmax()]
            part = part[part.groupby("side")[along].transform("nunique") > 1]  # a point is no line
            rows = math.ceil(part.side.nunique() / 2)
            drawn[name] = draw([(trial, part)], by_images if along == "images" else by_width,
                               lambda *_, rows=rows: 3.9 + 0.25 * rows)  # fmt: skip
    if 0 < len(trial.whole) <= PANELS and trial.asked.tries >= LEAST_TRIES:
        down = math.ceil(len(trial.whole) / ACROSS)
        drawn["trial-tries"] = draw([(trial, down)], by_tries, lambda *_: 0.8 + 2.1 * down)
    return drawn


def by_images(part: Figure, trial: Trial, tests: pd.DataFrame) -> None:
    width = tests.width.iloc[0]
    who = f"student of width {width:g}" if width else f"student {trial.rows.model.iloc[0]}"
    axes = lines(part, trial, tests, "images", who)
    axes.set_xlabel("training images (logarithmic)")


def by_width(part: Figure, trial: Trial, tests: pd.DataFrame) -> None:
    axes = lines(part, trial, tests, "width", f"{tests.images.iloc[0]:,.0f} training images")
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
        gains, halves, label = 100 * line.difference, 100 * line.half, WORDS.get(side, side)
        axes.errorbar(
            at, gains, halves, capsize=3, elinewidth=1.2, mfc="white", label=label, **look
        )
        significant = line.sign != 0
        axes.plot(at[significant], gains[significant], ls="", zorder=3, **look)
    axes.set_xscale("log")
    axes.set_xticks(ticks, [f"{tick:,.0f}" for tick in ticks])
    axes.xaxis.set_minor_locator(NullLocator())
    axes.set_ylabel("gain over the student alone,\npoints of test accuracy")
    part.legend(frameon=False, ncols=2, loc="outside lower center")
    steps = trial.lengths.steps.reindex(pd.MultiIndex.from_frame(tests[PLACE])).unique()
    each = f", {steps[0]:,.0f} steps each" if len(steps) == 1 else ""
    what = f"{where}; {trial.asked.tries} tries per side{each}; bars: 95 % intervals over "
    by = "number of training images" if along == "images" else "width of the student"
    what += f"{over(tests)}; filled: significant after correction"
    titled(axes, f"When distillation helps: by {by}", textwrap.fill(what, 115))
    return axes


def by_tries(part: Figure, trial: Trial, down: int) -> None:
    """A panel a place: expected test accuracy of the best of n tries, a line a main side."""
    panels = part.subplots(down, math.ceil(len(trial.whole) / down), squeeze=False)
    for axes in panels.flat[len(trial.whole) :]:
        axes.set_visible(False)
    for axes, place in zip(panels.flat, trial.whole, strict=False):
        for colour, marker, side in zip((INK, *COLOURS[:2]), "Dos", sides.MAIN, strict=True):
            found = 100 * best_of(trial, place, side).test
            some = [found.index.get_loc(n) for n in TRIES if n in found.index]
            look = {"marker": marker, "ms": 5, "markevery": some, "mfc": "white"}
            axes.plot(found.index, found, color=colour, label=WORDS[side], **look)
        axes.set_xscale("log")
        axes.set_xticks([n for n in TRIES[:-1] if n <= len(found)])
        axes.xaxis.set_major_formatter("{x:g}")
        axes.xaxis.set_minor_locator(NullLocator())
        axes.set_title(named_place(trial, place), size=10, weight="normal")
    part.suptitle("Is it tuning? The best of n tries", size=11.5, weight="bold", x=0.01, ha="left")
    part.supylabel("expected test accuracy, %", size=10.5)
    part.supxlabel(
        "tries per side (logarithmic), the best by held-out accuracy; one seed", size=10.5
    )
    handles, labels = panels[0, 0].get_legend_handles_labels()
    part.legend(handles, labels, frameon=False, ncols=3, loc="outside upper right")
