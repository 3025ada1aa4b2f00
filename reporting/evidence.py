"""The report's own tables: choice on validation, controls, T² factor, cells, what was learned."""

import numpy as np
import pandas as pd

from reporting.groups import (
    METRICS,
    NO_TEMPERATURE,
    Cell,
    Grid,
    Group,
    by_seed,
    cells_of,
    compare,
    complete,
    rows_of,
    short_ids,
    values_by_cell,
)
from reporting.tables import (
    NONE,
    cell_name,
    fixed,
    interval,
    markdown,
    mean_std,
    p_value,
    percent,
    pivot,
    points,
    several,
)

# ---------------------------------------------------------------- chosen on validation


def validation_part(group: Group) -> str:
    """Epoch, alpha and T chosen on validation, and the one test accuracy that follows."""
    if not group.settings["val_size"] or not group.grids:
        return ""
    column = METRICS[group.metric][1]
    lines = []
    for grid in group.grids:
        if grid.picked is None:
            continue
        cell = grid.cells.loc[grid.picked]
        lines.append(
            [grid.student, grid.variant, cell_name(grid.picked), percent(cell.val),
             mean_std(cell["mean"], cell["std"]), interval(cell["mean"], cell.half), cell.run_ids]
        )  # fmt: skip
    if not lines:
        return f"The rows have no `{column}`, so nothing could be chosen on validation."
    epoch = {
        "last": "the last epoch, which needs no choice",
        "val": "each run's epoch of best validation accuracy",
        "best": "the best epoch **on the test set**, which flatters the figure",
    }[group.metric]
    text = (
        f"α and T are those of the highest mean `{column}` over seeds, and the epoch is {epoch}. "
        "Only then is the test accuracy of that one cell read."
    )
    header = ["student", "method", "chosen cell", "validation", "**test**", "95 % interval"]
    return text + "\n\n" + markdown([*header, "run ids"], lines, left=3)


# ---------------------------------------------------------------- the explanation


def scaled_twin(group: Group, grid: Grid) -> Grid | None:
    """The same grid with the soft loss multiplied by T²."""
    key = (grid.student, grid.method, grid.teacher, True)
    found = [g for g in group.grids if (g.student, g.method, g.teacher, g.scale_t2) == key]
    return found[0] if found else None


def against_control(group: Group, grid: Grid) -> pd.DataFrame:
    """The grid's cells minus the control of the same alpha, paired by seed."""
    controls = group.controls[grid.student]
    base = {alpha: by_seed(part) for alpha, part in controls.groupby("alpha")}
    rows = grid.rows[grid.rows.alpha.isin(base)]
    return compare(rows, lambda cell: base[cell[0]])


def against_plain(grid: Grid, scaled: Grid) -> pd.DataFrame:
    """The scaled grid's cells minus the plain one's, paired by seed; only cells of both."""
    base = values_by_cell(grid.rows)
    rows = scaled.rows[[cell in base for cell in cells_of(scaled.rows)]]
    return compare(rows, lambda cell: base[cell])


def write_difference(cell: pd.Series) -> str:
    """`+0.30 ± 0.20 †`: ± is half the interval."""
    spread = "" if np.isnan(cell.difference_half) else " ± " + percent(cell.difference_half)
    return points(cell.difference) + spread + (" †" if cell.above else " ‡" if cell.below else "")


def explanation_part(group: Group) -> str:
    """Controls and T² factor beside every student's plain grid; several teachers make several."""
    blocks = []
    for student in group.students():
        grids = [grid for grid in group.grids if grid.student == student and grid.is_plain]
        for grid in grids or [None]:
            parts = control_blocks(group, student, grid)
            parts += scaled_blocks(group, grid) if grid else []
            if parts:
                which = f": {grid.variant}" if len(grids) > 1 else ""
                blocks += [f"**Student {student}{which}**", *parts]
    return "\n\n".join(blocks)


MARKS = (
    "± is half the 95 % interval (none: a single pair, or no spread); †: above, ‡: below zero, "
    "Holm over {over}."
)


def control_blocks(group: Group, student: str, grid: Grid | None) -> list[str]:
    """What a smaller weight of the hard loss does alone, and what the teacher adds to it."""
    controls = group.controls[student]
    if not len(controls):
        return []
    alone = by_seed(group.alone[student])
    table = compare(controls, lambda _: alone)
    over = against_control(group, grid) if grid else pd.DataFrame()
    means = complete(grid.cells)["mean"] if grid else pd.Series(dtype=float)
    lines = []
    for (alpha, _), control in table.iterrows():
        row = [f"{alpha:g}", mean_std(control["mean"], control["std"]), write_difference(control)]
        mine = means[[cell[0] == alpha for cell in means.index]]
        if len(mine):
            best = mine.idxmax()
            row += [cell_name(best), write_difference(grid.cells.loc[best])]
            row += [write_difference(over.loc[best]) if best in over.index else NONE]
        else:
            row += [NONE] * 3
        lines.append([*row, control.run_ids])
    header = ["α", "control", "control − alone", "best kd cell", "kd − alone", "kd − control"]
    blocks = [
        "The control has no teacher at all, only the hard loss × (1 − α) (rows with `method` none "
        "and α > 0): what a smaller learning rate alone does. kd − control is what the teacher "
        "adds to that, α by α; each α's kd cell is the best by mean. "
        + MARKS.format(over="all α for the control, over the whole grid for kd"),
        markdown([*header, "control's run ids"], lines),
    ]
    if len(over):
        text = "kd − control, every cell. " + MARKS.format(over="these cells")
        blocks += [text, pivot(over, write_difference)]
    return blocks


def scaled_blocks(group: Group, grid: Grid) -> list[str]:
    """The T² grid beside the plain one."""
    scaled = scaled_twin(group, grid)
    if scaled is None:
        return []
    difference = against_plain(grid, scaled)
    if not len(difference):
        return ["The grid with the soft loss × T² has no cell in common with the plain one."]
    beside = difference.join(grid.cells[["mean"]].rename(columns={"mean": "plain"}))
    return [
        "Without the factor T², the soft loss's gradient shrinks as 1/T². Plain → with the soft "
        "loss × T² (difference, paired by seed). " + MARKS.format(over="these cells"),
        pivot(
            beside,
            lambda cell: (
                f"{percent(cell.plain)} → {percent(cell['mean'])} ({write_difference(cell)})"
            ),
        ),
    ]


def gain(mean: float, half: float) -> str:
    """`+0.30 [+0.10, +0.50]`."""
    return points(mean) + ("" if np.isnan(half) else f" {interval(mean, half, points)}")


# ---------------------------------------------------------------- cell by cell


def cells_part(group: Group) -> str:
    """Every cell: its interval, its differences to the student alone and to the best, its rows."""
    blocks = [
        "p is after Holm's correction: beside the difference to the student alone over all cells, "
        "beside the difference to the best cell over all pairs of cells."
    ]
    header = ["α", "T", "n", "mean", "std", "95 % interval", "− alone", "pairs", "p", "− best", "p"]
    for grid in group.grids:
        lines = [cell_line(grid, where, cell) for where, cell in grid.cells.iterrows()]
        table = markdown([*header, "run ids"], lines, left=0)
        blocks += [f"**Student {grid.student}: {grid.variant}**", table]
    return "\n\n".join(blocks) if group.grids else ""


def cell_line(grid: Grid, where: Cell, cell: pd.Series) -> list[str]:
    alpha, t = where
    row = [f"{alpha:g}", temperature(t), str(cell.n), percent(cell["mean"]), percent(cell["std"])]
    row += [interval(cell["mean"], cell.half), gain(cell.difference, cell.difference_half)]
    row += [str(cell.pairs), p_value(cell.p_holm)]
    if where in grid.against_best.index:
        other = grid.against_best.loc[where]
        row += [gain(other.difference, other.difference_half), p_value(other.p_holm)]
    else:
        row += [NONE, NONE]
    return [*row, cell.run_ids]


def temperature(value: float) -> str:
    return NONE if value == NO_TEMPERATURE else f"{value:g}"


# ---------------------------------------------------------------- what was learned


LEARNED = (
    "How much a network is like its teacher, and how well it knows when it is right; last epoch, "
    "test set, mean ± std over seeds. Columns: `agreement` (how often its first choice is the "
    "teacher's, in %), `teacher_kl` (mean KL(teacher || student) in nats), `ece` (expected "
    "calibration error over 15 bins, in %; 0 is best). Of each grid, the cell that stands for it."
)


def learned_part(group: Group) -> str:
    """Agreement with the teacher and calibration: who stands for what, then every cell."""
    lines = [
        learned_line("teacher", student, "", rows)
        for student, rows in group.teachers.groupby("student")
    ]
    pivots = []
    for student in group.students():
        lines.append(learned_line("alone", student, "", group.alone[student]))
        for alpha, part in group.controls[student].groupby("alpha"):
            lines.append(learned_line("control", student, f"α {alpha:g}", part))
        for grid in (grid for grid in group.grids if grid.student == student and grid.choice):
            rows = rows_of(grid.rows, grid.choice)
            lines.append(learned_line(grid.variant, student, cell_name(grid.choice), rows))
            pivots += learned_pivot(grid)
    lines = [line for line in lines if line[3:6] != [NONE] * 3]
    if not lines:
        return ""
    header = ["method", "model", "cell", "agreement", "KL", "ECE", "run ids"]
    return "\n\n".join([LEARNED, markdown(header, lines, left=3), *pivots])


def learned_line(method: str, student: str, cell: str, rows: pd.DataFrame) -> list[str]:
    figures = [several(rows.agreement), several(rows.teacher_kl, 3, 1), several(rows.ece)]
    return [method, student, cell, *figures, short_ids(rows)]


def learned_pivot(grid: Grid) -> list[str]:
    """Means of the three columns for every cell of a grid that is more than a few."""
    if len(grid.cells) < 4:
        return []
    columns = ["agreement", "teacher_kl", "ece"]
    means = grid.rows.groupby(["alpha", "temperature"])[columns].mean()
    if means.isna().all(axis=None):
        return []
    name = f"Student {grid.student}, {grid.variant}"
    return [
        f"{name}, every cell: agreement, % / KL, nats / ECE, %",
        pivot(
            means,
            lambda cell: (
                f"{percent(cell.agreement)} / {fixed(cell.teacher_kl, 3)} / {percent(cell.ece)}"
            ),
        ),
    ]
