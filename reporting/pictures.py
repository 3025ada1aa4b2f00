"""The pictures as PNG bytes: the gains as a heatmap, and accuracy by epoch.

Nothing is shown by colour alone. Drawn with the Agg canvas and without metadata, so that the same
rows give the same bytes.
"""

import io
import os
import re
import textwrap
from collections.abc import Callable

os.environ["MPLBACKEND"] = "agg"  # the only one used; one that is set may not be installed

import matplotlib
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.ticker import MaxNLocator

from reporting.compare import Grid, Results, of
from reporting.rows import ALONE, CELL, CONTROL, NO_TEMPERATURE, T2, curves
from reporting.tables import points, spread, temperature, title

WIDTH, DPI = 8.0, 160  # inches, dots an inch: 1280 wide, shown 800 px wide in a README
FEW = 4  # cells; smaller grids are not drawn
STYLE = dict(
    [("font.size", 10.5), ("axes.titlesize", 11.5), ("axes.titleweight", "bold")]
    + [("axes.titlelocation", "left"), ("axes.spines.top", False), ("axes.spines.right", False)]
    + [("axes.edgecolor", "0.4"), ("axes.grid", True), ("axes.grid.axis", "y")]
    + [("grid.color", "0.9"), ("axes.axisbelow", True), ("lines.linewidth", 1.9)]
)
INK, MUTED = "#222222", "#585858"
# Okabe and Ito's palette for the colour-blind; the student alone is INK everywhere.
COLOURS = ["#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#7A5195"]
MARKERS, DASHES = "os^DvPX", ["-", "-", (0, (4, 1.5))]
# Orange below, blue above, pale enough at both ends for dark figures.
DIVERGING = LinearSegmentedColormap.from_list("gain", ["#EBA06C", "#FFFFFF", "#7DB9E0"])
Panel = tuple[Results, Grid]
PANELS = 24


def pictures(found: list[Results]) -> dict[str, bytes]:
    """PNG bytes by name; a picture with nothing to show is left out.

    One panel for each protocol and student: all kd grids as heatmaps, those without T² otherwise.
    The first PANELS of them: a fair trial's CSV has hundreds of protocols, of one cell each.
    """
    grids = [(r, grid) for r in found for grid in r.grids if gains(r, grid).notna().any()]
    grids = grids[:PANELS]
    large = [pair for pair in grids if len(gains(*pair)) >= FEW] or grids[:1]
    kd = [pair for pair in large if pair[1][1].startswith("kd")] or large[:1]
    plain = [pair for pair in kd if T2 not in pair[1][1]] or kd
    maps = [pair for pair in kd if len(gains(*pair)) > 1]  # the tables say one cell's gain
    drawn = {
        "heatmap": draw(maps, heatmap, lambda *pair: 1.5 + 0.42 * gains(*pair).index.levshape[0]),
        "curves": draw([pair for pair in plain if curves_of(*pair)], by_epoch, lambda *_: 4.8),
    }
    return {name: png for name, png in drawn.items() if png}


def draw(pairs: list[Panel], panel: Callable[..., None], height: Callable[..., float]) -> bytes:
    """All panels below each other; empty where there is none."""
    if not pairs:
        return b""
    with matplotlib.rc_context(STYLE):
        heights = [height(*pair) for pair in pairs]
        figure = Figure(figsize=(WIDTH, sum(heights)), dpi=DPI, layout="constrained")
        FigureCanvasAgg(figure)
        parts = figure.subfigures(len(pairs), 1, height_ratios=heights, squeeze=False)[:, 0]
        for part, pair in zip(parts, pairs, strict=True):
            panel(part, *pair)
        file = io.BytesIO()
        figure.savefig(file, format="png", metadata={"Software": None})
    return file.getvalue()


def gains(results: Results, grid: Grid) -> pd.Series:
    """Differences to the student alone in points, by (alpha, temperature)."""
    found = 100 * results.against(grid, ALONE).difference.astype(float)
    return found.set_axis(found.index.remove_unused_levels())


def reach(results: Results, grid: Grid) -> float:
    """The largest gain that a scale shows, in points, whatever a few very bad cells are.

    It includes three medians and every gain above 0, in all grids of the student and method.
    """
    tests, method = results.tests, re.match(r"[\w+]+", grid[1])[0]
    alike = (tests.student == grid[0]) & (tests.variant.str.extract(r"([\w+]+)")[0] == method)
    known = 100 * tests.difference[alike & (tests.against == ALONE)].astype(float).dropna()
    return max(min(known.abs().max(), max(3 * known.abs().median(), known.max())), 0.01)


def head(part: Figure, axes: Axes, text: str, results: Results, grid: Grid) -> None:
    """A plain title, what exactly is drawn in grey, the protocol below."""
    alone = of(results.cells, (grid[0], ALONE)).iloc[0]
    half = 100 * results.against(grid, ALONE).half.median()
    what = f"{grid[0]}, {grid[1]}; student alone {spread(alone)} % (n {alone.n})"
    what += f"; 95 % interval of a gain: typically ± {half:.2f}" if half == half else ""
    titled(axes, text, what)
    part.supxlabel(textwrap.fill(title(results.protocol.settings), 100), size=8.5, color=MUTED)


def titled(axes: Axes, text: str, what: str) -> None:
    """A title and below it, in grey, what exactly is drawn, in one or more lines."""
    axes.set_title(text + "\n" * (1 + what.count("\n")), linespacing=1.4)
    axes.text(0, 1.02, what, transform=axes.transAxes, size=9, color=MUTED, va="bottom")


def heatmap(part: Figure, results: Results, grid: Grid) -> None:
    """α down, T across; the gain in points; what is significant is framed and bold."""
    sign = results.against(grid, ALONE).sign.unstack()
    table, far = gains(results, grid).unstack(), reach(results, grid)
    axes = part.subplots()
    axes.grid(False)
    image = axes.imshow(table, cmap=DIVERGING, vmin=-far, vmax=far, aspect="auto")
    for (row, column), gain in np.ndenumerate(table):
        significant = abs(sign.iat[row, column]) == 1  # not for NaN, a missing cell
        look = {"color": INK, "weight": "bold"} if significant else {"color": MUTED}
        axes.text(column, row, points(gain / 100), ha="center", va="center", size=11, **look)
        if significant:
            corner = (column - 0.46, row - 0.44)
            axes.add_patch(Rectangle(corner, 0.92, 0.88, fill=False, ec=INK, lw=1.6))
    axes.set_xticks(range(len(table.columns)), table.columns.map(temperature))
    axes.set_yticks(range(len(table.index)), [f"{alpha:g}" for alpha in table.index])
    axes.set(xlabel="temperature T", ylabel="α")
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
    beyond = "min" if table.min(axis=None) < -far else "neither"
    bar = part.colorbar(image, ax=axes, fraction=0.04, pad=0.015, extend=beyond)
    bar.outline.set_visible(False)
    text = "What distillation adds to the student alone: test accuracy, points"
    head(part, axes, text, results, grid)


def curves_of(results: Results, grid: Grid) -> dict[str, pd.DataFrame]:
    """Curves on seeds in common: student alone, the grid's cell, the control of its α if any.

    Empty if one of the first two is not there.
    """
    student, variant, alpha, t = cell = results.where(grid, "choice") or (*grid, 0.0, 0.0)
    wanted = {
        "student alone": (student, ALONE, 0.0, NO_TEMPERATURE),
        f"{variant}, α {alpha:g}" + (f", T {t:g}" if t != NO_TEMPERATURE else ""): cell,
        f"control, α {alpha:g}": (student, CONTROL, alpha, NO_TEMPERATURE),
    }
    rows = results.protocol.rows.set_index(CELL)
    tables = [curves(rows[rows.index.isin([cell])]) for cell in wanted.values()]
    found = dict(zip(wanted, tables if len(tables[2]) else tables[:2], strict=False))
    common = sorted(set.intersection(*(set(table) for table in found.values())))
    return {name: table[common] for name, table in found.items()} if common else {}


def by_epoch(part: Figure, results: Results, grid: Grid) -> None:
    """Accuracy by epoch above, the paired difference to the student alone below."""
    found = {name: 100 * table for name, table in curves_of(results, grid).items()}
    alone = found["student alone"]
    late = alone.index[len(alone) // 10 :]  # the first tenth would flatten the rest
    upper, lower = part.subplots(2, 1, sharex=True, height_ratios=[1.8, 1])
    lower.axhline(0, color=INK)
    seen = {upper: [], lower: [0.0]}
    for index, (name, table) in enumerate(found.items()):
        look = {"color": [INK, *COLOURS][index], "ls": DASHES[index]}
        mark = {"marker": MARKERS[index], "ms": 5.5, "markevery": max(1, len(alone) // 10)}
        upper.plot(table.index, table.mean(axis=1), label=name, **look, **mark)
        seen[upper] += list(table.mean(axis=1).reindex(late))
        if index:
            over = (table - alone).dropna(how="all")
            lower.plot(over.index, over, lw=0.8, alpha=0.45, **look)
            lower.plot(over.index, over.mean(axis=1), **look, **mark)
            seen[lower] += list(np.ravel(over.reindex(late)))
    for axes, values in seen.items():
        low, high = np.nanmin(values), np.nanmax(values)
        air = 0.06 * (high - low) + 0.02
        axes.set_ylim(low - air, high + air)
    upper.set(ylabel="test accuracy, %")
    lower.set(ylabel="difference,\npoints", xlabel="epoch")
    lower.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    upper.legend(loc="lower right", frameon=False)
    head(part, upper, f"Accuracy by epoch{verdict(results, grid)}", results, grid)


def verdict(results: Results, grid: Grid) -> str:
    """Whether the cell that is drawn differs from its control, or else from the student alone."""
    for against, name in ((CONTROL, "its control"), (ALONE, "the student alone")):
        tests = results.against(grid, against)
        cell = results.where(grid, "choice")
        if cell and cell[2:] in tests.index and (test := tests.loc[cell[2:]]).half == test.half:
            size = f"{points(test.difference)} ± {100 * test.half:.2f}"
            return f": {'a' if test.sign else 'no'} difference to {name} shows ({size})"
    return ""
