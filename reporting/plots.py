"""The pictures as PNG bytes: heatmap, curves by epoch, accuracy against T.

Nothing is told by colour alone: numbers stand in the heatmap, lines differ in marker and dash.
Drawn with the Agg canvas and without metadata, so that the same rows give the same bytes.
"""

import io
import textwrap
from collections.abc import Callable

import matplotlib
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import CenteredNorm, Normalize
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.ticker import MaxNLocator

from reporting import stats
from reporting.groups import NO_TEMPERATURE, Grid, Group, by_seed, curve, rows_of
from reporting.tables import cell_name, percent, plural, seed_range, title

WIDTH = 8.0  # inches; at 160 dots an inch sharp where a README shows it 800 px wide
DPI = 160
FEW = 4  # cells; a smaller grid is no picture
COLOURS = ["#000000", "#E69F00", "#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9"]
MARKERS = ["o", "s", "^", "D", "v", "P", "X"]
DASHES = ["-", "--", "-.", ":", (0, (5, 1, 1, 1, 1, 1)), (0, (7, 2)), (0, (1, 1))]
STYLE = {"font.size": 9.5, "axes.titlesize": 10, "axes.titlelocation": "left"}


def pictures(found: list[Group]) -> dict[str, bytes]:
    """PNG bytes by name; a picture with nothing to show is left out.

    One panel for each protocol and student, of the grids without and with the T² factor.
    """
    grids = [(group, grid) for group in found for grid in group.grids if grid.best is not None]
    large = [pair for pair in grids if len(pair[1].cells) >= FEW] or grids[:1]
    plain = [pair for pair in large if pair[1].is_plain] or large[:1]
    drawn = {
        "heatmap": draw(
            [pair for pair in large if pair[1].method == "kd"] or plain, heatmap, heatmap_height
        ),
        "curves": draw([pair for pair in plain if mean_curves(*pair)], curves, lambda grid: 4.6),
        "lines": draw([pair for pair in plain if has_temperatures(pair[1])], lines, lambda _: 3.9),
    }
    return {name: png for name, png in drawn.items() if png}


def draw(
    pairs: list[tuple[Group, Grid]],
    panel: Callable[..., None],
    height: Callable[[Grid], float],
) -> bytes:
    """All panels below each other; empty where there is none."""
    if not pairs:
        return b""
    with matplotlib.rc_context(STYLE):
        heights = [height(grid) for _, grid in pairs]
        figure = Figure(figsize=(WIDTH, sum(heights)), dpi=DPI, layout="constrained")
        FigureCanvasAgg(figure)
        parts = figure.subfigures(len(pairs), 1, height_ratios=heights, squeeze=False)[:, 0]
        for part, (group, grid) in zip(parts, pairs, strict=True):
            panel(part, group, grid)
        file = io.BytesIO()
        figure.savefig(file, format="png", metadata={"Software": None})
    return file.getvalue()


def heading(group: Group, grid: Grid) -> str:
    figure = {"last": "last epoch", "best": "best epoch", "val": "epoch chosen on validation"}
    what = f"student {grid.student}, {grid.variant}, test accuracy in %, {figure[group.metric]}"
    return f"{what}\n{protocol(group)}"


def protocol(group: Group) -> str:
    """The settings' title in lines that fit; its end is what tells two panels apart."""
    text = title(group.settings).replace(", ", "\0").replace(" ", "\xa0").replace("\0", ", ")
    return textwrap.fill(text, 95).replace("\xa0", " ")  # broken after a comma


def alone_estimate(group: Group, grid: Grid) -> stats.Estimate:
    """The student alone on the grid's seeds; others would paint over paired differences."""
    alone = by_seed(group.alone[grid.student])
    return stats.estimate(alone[alone.index.isin(grid.rows.seed)])


# ---------------------------------------------------------------- heatmap


def heatmap_height(grid: Grid) -> float:
    return 1.35 + 0.52 * len(set(grid.cells.index.get_level_values("alpha")))


def heatmap(part: Figure, group: Group, grid: Grid) -> None:
    """α down, T across; mean, half-width under it; colours centred on the student alone."""
    cells = grid.cells
    alphas = sorted(set(cells.index.get_level_values("alpha")))
    temperatures = sorted(set(cells.index.get_level_values("temperature")))
    mean = cells["mean"].unstack().reindex(index=alphas, columns=temperatures).to_numpy()
    alone = alone_estimate(group, grid)
    shade = shades(grid, alone).unstack().reindex(index=alphas, columns=temperatures).to_numpy()
    if alone.n:
        reach = max(scale(group, grid, alone), 1e-4)
        norm, colours = CenteredNorm(alone.mean, reach), matplotlib.colormaps["PuOr"]
        below = f"orange: below the student alone ({percent(alone.mean)} %), purple: above"
        below += " (by seeds in common)" * (cells.n.nunique() > 1)
    else:
        norm, colours = Normalize(np.nanmin(mean), np.nanmax(mean)), matplotlib.colormaps["cividis"]
        below = "no student alone to centre on"
    axes = part.subplots()
    image = axes.imshow(shade, cmap=colours, norm=norm, aspect="auto")
    for (row, alpha), (column, t) in (
        (r, c) for r in enumerate(alphas) for c in enumerate(temperatures)
    ):
        if (alpha, t) not in cells.index or np.isnan(mean[row, column]):
            axes.text(column, row, "—", ha="center", va="center")
            continue
        cell = cells.loc[(alpha, t)]
        dark = luminance(colours(norm(shade[row, column]))) < 0.18  # white has more contrast
        ink = "white" if dark else "black"
        best = (alpha, t) == grid.best
        half = "" if np.isnan(cell.half) else f"±{100 * cell.half:.2f}"
        mark = "†" if cell.above else ""
        weight = "bold" if best else "normal"
        shift = 0.13 if half else 0
        axes.text(column, row - shift, percent(cell["mean"]) + mark, ha="center", va="center",
                  color=ink, weight=weight)  # fmt: skip
        axes.text(column, row + 0.25, half, ha="center", va="center", color=ink, size=8)
        if best:
            axes.add_patch(
                Rectangle((column - 0.47, row - 0.46), 0.94, 0.92, fill=False, ec="black", lw=2.2)
            )
    axes.set_xticks(range(len(temperatures)), [label(t) for t in temperatures])
    axes.set_yticks(range(len(alphas)), [f"{alpha:g}" for alpha in alphas])
    axes.set(xlabel="temperature T", ylabel="α")
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
    axes.set_title(heading(group, grid))
    bar = part.colorbar(image, ax=axes, fraction=0.04, pad=0.015)
    bar.ax.yaxis.set_major_formatter(lambda value, _: f"{100 * value:.1f}")
    bar.outline.set_visible(False)
    if alone.n:
        bar.ax.axhline(alone.mean, color="black", lw=1.5)
    notes = [below, "frame: best mean"]
    if cells.n.max() > 1:
        notes.insert(0, f"mean over {seed_range(cells)}, ± half the 95 % interval")
    else:
        notes.insert(0, "one seed, so no interval")
    if cells.above.any():
        notes.append("†: above the student alone (Holm)")
    part.supxlabel("; ".join(notes[:2]) + "\n" + "; ".join(notes[2:]), size=8)


def shades(grid: Grid, alone: stats.Estimate) -> pd.Series:
    """What a cell's colour stands for: the student alone plus the paired difference.

    With the same seeds everywhere that is the mean; a cell that lacks some is not painted by the
    seeds it lacks. Without a pair it is the mean.
    """
    return (alone.mean + grid.cells.difference).fillna(grid.cells["mean"])


def scale(group: Group, drawn: Grid, alone: stats.Estimate) -> float:
    """The largest distance from the student alone in its grids of a method: they share colours."""
    kind = (drawn.student, drawn.method)
    grids = [grid for grid in group.grids if (grid.student, grid.method) == kind]
    return float((pd.concat([shades(g, alone) for g in grids]) - alone.mean).abs().max())


def label(t: float) -> str:
    return "none" if t == NO_TEMPERATURE else f"{t:g}"


def luminance(colour: tuple[float, ...]) -> float:
    """Relative luminance of an sRGB colour, roughly."""
    red, green, blue = (channel**2.2 for channel in colour[:3])
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue


# ---------------------------------------------------------------- curves


def curves_of(rows: pd.DataFrame) -> pd.DataFrame:
    """Test accuracy by epoch (1-based index), one column a seed; runs without a curve left out."""
    found = {
        seed: curve(text, run_id)
        for seed, text, run_id in zip(rows.seed, rows.test_curve, rows.run_id, strict=True)
    }
    found = {seed: pd.Series(values) for seed, values in found.items() if len(values)}
    table = pd.DataFrame(found)
    table.index = table.index + 1
    return table


def mean_curves(group: Group, grid: Grid) -> dict[str, pd.DataFrame]:
    """Curves of the student alone and of the grid's cell; empty if the cell has none."""
    chosen = curves_of(rows_of(grid.rows, grid.choice))
    if chosen.empty:
        return {}
    alone = curves_of(group.alone[grid.student])
    common = alone.columns.intersection(chosen.columns)
    alone = alone[common] if len(common) else alone  # other seeds would belie the difference
    both = {"student alone": alone} if len(alone) else {}
    return {**both, f"{grid.variant}, {cell_name(grid.choice)}": chosen}


def curves(part: Figure, group: Group, grid: Grid) -> None:
    """Accuracy by epoch above, the paired difference of the two by epoch below."""
    found = mean_curves(group, grid)
    both = len(found) == 2
    axes = part.subplots(
        1 + both, 1, sharex=True, height_ratios=[2.2, 1][: 1 + both], squeeze=False
    )[:, 0]
    low, high = visible_range(list(found.values()))
    teacher = curves_of(group.teachers[group.teachers.run_id.isin(grid.rows.teacher)])
    note = None
    if len(teacher) and len(teacher) == group.settings["epochs"]:
        top = teacher.mean(axis=1).max()
        if top < high + (high - low):
            found["teacher"] = teacher
            low, high = min(low, top - 0.03 * (high - low)), max(high, top)
        else:
            note = f"teacher: up to {percent(top)} %, above this picture"
    for name, table in found.items():
        index = {"student alone": 0, "teacher": 2}.get(name, 1)
        count = table.shape[1]
        name += f" ({plural(count, 'seed')})"
        line(axes[0], index, table.index, table.mean(axis=1), name)
        if count > 1:
            band(axes[0], index, table.index, table.min(axis=1), table.max(axis=1))
    axes[0].set_ylim(100 * low, 100 * (high + 0.06 * (high - low)))
    axes[0].set(ylabel="test accuracy, %")
    axes[0].set_title(f"student {grid.student}: test accuracy by epoch\n{protocol(group)}")
    axes[0].legend(loc="lower right", frameon=False, title=note)
    if both:
        alone, chosen, *_ = found.values()
        difference_axis(axes[1], (chosen - alone).dropna(axis=1, how="all").dropna())
    axes[-1].set(xlabel="epoch")
    axes[-1].xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    for axis in axes:
        tidy(axis)


def visible_range(tables: list[pd.DataFrame]) -> tuple[float, float]:
    """Lowest and highest accuracy, without the first tenth of the epochs: they flatten the rest."""
    late = [table.iloc[len(table) // 10 :] for table in tables]
    low, high = min(t.min(axis=None) for t in late), max(t.max(axis=None) for t in late)
    return low - 0.03 * (high - low) - 1e-4, high + 1e-4


def difference_axis(axis: Axes, differences: pd.DataFrame) -> None:
    """The mean difference by epoch, with its interval where there are several seeds."""
    if not differences.size:
        axis.text(0.5, 0.5, "no seed in common", transform=axis.transAxes, ha="center")
        return
    mean, half = differences.mean(axis=1), stats.half_width(differences.to_numpy(), axis=1)
    axis.axhline(0, color=COLOURS[0], lw=1.2)
    line(axis, 1, differences.index, mean, None)
    if differences.shape[1] > 1:
        band(axis, 1, differences.index, mean - half, mean + half)
    late = differences.index > len(differences) // 10
    spread = np.nan_to_num(half[late])
    low = min(0, (mean[late] - spread).min())
    high = max(0, (mean[late] + spread).max())
    margin = 0.1 * (high - low) + 1e-4
    axis.set_ylim(100 * (low - margin), 100 * (high + margin))
    axis.set(ylabel="difference,\npoints")


# ---------------------------------------------------------------- lines


def has_temperatures(grid: Grid) -> bool:
    return len(set(grid.cells.index.get_level_values("temperature"))) > 1


def lines(part: Figure, group: Group, grid: Grid) -> None:
    """Accuracy against T, one line for each α, the student alone as a band."""
    axes = part.subplots()
    temperatures = sorted(set(grid.cells.index.get_level_values("temperature")))
    places = {t: place for place, t in enumerate(temperatures)}
    alone = alone_estimate(group, grid)
    if alone.n:
        axes.axhline(100 * alone.mean, color="0.35", lw=1.2, ls=(0, (2, 2)), label="alone")
        if alone.n > 1:
            low, high = 100 * (alone.mean - alone.half), 100 * (alone.mean + alone.half)
            axes.axhspan(low, high, color="0.5", alpha=0.25, lw=0)
    for index, (alpha, cells) in enumerate(grid.cells.groupby("alpha")):
        # Lines stand a little beside each other, so that their bars do not hide one another.
        count = len(set(grid.cells.index.get_level_values("alpha")))
        shift = min(0.1, 0.5 / count) * (index - (count - 1) / 2)
        where = np.array([places[t] for _, t in cells.index]) + shift
        style, again = index % len(COLOURS), index // len(COLOURS)
        axes.errorbar(
            *(where, 100 * cells["mean"], 100 * cells.half.fillna(0)), label=f"α {alpha:g}",
            color=COLOURS[style], marker=MARKERS[style], ls=DASHES[(style + again) % len(DASHES)],
            lw=1.6, ms=5.5, elinewidth=1, capsize=2,
        )  # fmt: skip
    axes.set_xticks(range(len(temperatures)), [label(t) for t in temperatures])
    axes.set(xlabel="temperature T (evenly spaced)", ylabel="test accuracy, %")
    axes.set_title(heading(group, grid))
    axes.legend(loc="center left", bbox_to_anchor=(1, 0.5), frameon=False, handlelength=3.5)
    tidy(axes)
    bars = "bars and grey band" if alone.n > 1 else "bars"
    text = f"{bars}: 95 % intervals of the mean over seeds"
    part.supxlabel(text if grid.cells.n.max() > 1 else "one seed, so no interval", size=8)


# ---------------------------------------------------------------- shared


def line(axis: Axes, index: int, x: pd.Index, y: pd.Series, name: str | None) -> None:
    """A line that differs from its neighbours in colour, dash and marker; y is a fraction."""
    first = min(index * max(1, len(x) // 24), len(x) - 1)  # beside its neighbours' markers
    axis.plot(
        x, 100 * y, color=COLOURS[index], ls=DASHES[index], marker=MARKERS[index], label=name,
        lw=1.6, ms=5, markevery=(first, max(1, len(x) // 12)),
    )  # fmt: skip


def band(axis: Axes, index: int, x: pd.Index, low: pd.Series, high: pd.Series) -> None:
    axis.fill_between(x, 100 * low, 100 * high, color=COLOURS[index], alpha=0.22, lw=0)


def tidy(axis: Axes) -> None:
    axis.spines[["top", "right"]].set_visible(False)
    axis.grid(axis="y", color="0.9", lw=0.8)
    axis.set_axisbelow(True)
