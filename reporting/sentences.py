"""What the figures say in plain sentences, and what they cannot say."""

from collections.abc import Iterable

import numpy as np
import pandas as pd

from reporting import stats
from reporting.evidence import against_control, against_plain, gain, scaled_twin
from reporting.groups import (
    METRICS,
    NO_TEMPERATURE,
    Cell,
    Grid,
    Group,
    by_cell,
    by_seed,
    usual_seeds,
)
from reporting.tables import cell_name, eligible, interval, p_value, percent, plural, points, quoted

PERCENT = f"{100 * stats.LEVEL:g} %"


def bullets(lines: Iterable[str]) -> str:
    return "\n".join(f"- {line}" for line in lines)


def cell_list(cells: Iterable[Cell]) -> str:
    """`α 0.5 with T 5, 10; α 0.9 with T 5`, alpha by alpha."""
    by_alpha: dict[float, list[str]] = {}
    for alpha, temperature in sorted(cells):
        by_alpha.setdefault(alpha, []).append(f"{temperature:g}")
    blank = f"{NO_TEMPERATURE:g}"
    return "; ".join(
        f"α {alpha:g}" + ("" if found == [blank] else f" with T {', '.join(found)}")
        for alpha, found in by_alpha.items()
    )


# ---------------------------------------------------------------- what is known


def sentences(group: Group) -> str:
    """For every grid: how many cells beat the student alone, the best, and what equals it."""
    blocks = []
    for grid in group.grids:
        lines = [*beaten(grid), *best_cell(group, grid), *explained(group, grid)]
        if lines:
            blocks += [f"**Student {grid.student}, {grid.variant}**", bullets(lines)]
    return "\n\n".join(blocks)


def beaten(grid: Grid) -> list[str]:
    """How many cells beat the student alone after correction."""
    cells = grid.cells
    if not cells.n.any():
        return []
    if not cells.pairs.any():
        return ["There is no student alone of these seeds, so no cell can be said to beat it."]
    tested = int(cells.p.notna().sum())
    if not tested:
        higher = int((cells.difference > 0).sum())
        text = (
            f"{higher} of the {plural(len(cells), 'cell')} came out higher than the student alone"
        )
        why = {
            cells.pairs.max() > 1: "The differences have no spread, so they could not be tested",
            cells.pairs.max() == 1 < cells.n.max(): "Only one seed of the student alone is among "
            "the cells' seeds, so the differences have no interval",
            cells.n.max() == 1: "With one seed no interval can be given, and none is",
        }[True]
        return [f"{text}. {why}: this may be chance."]
    above, below = int(cells.above.sum()), int(cells.below.sum())
    text = (
        f"{above} of the {with_tested(cells)} beat the student alone after Holm's correction "
        f"({PERCENT})"
    )
    return [text + (f"; {below} fall below it." if below else ".")]


def with_tested(cells: pd.DataFrame) -> str:
    """`45 cells`, and how many of them have a p-value; a single pair, or equal ones, have none."""
    tested = int(cells.p.notna().sum())
    rest = f" ({tested} of them could be tested)" if tested < len(cells) else ""
    return plural(len(cells), "cell") + rest


def best_cell(group: Group, grid: Grid) -> list[str]:
    """The best by mean, every cell that cannot be told from it, and validation's choice."""
    if grid.best is None:
        return []
    cell, others = grid.cells.loc[grid.best], grid.against_best
    figure = f"{percent(cell['mean'])} %"
    if not np.isnan(cell.half):
        figure += f" {interval(cell['mean'], cell.half)}"
    over = ""
    if cell.pairs:
        over = f", {gain(cell.difference, cell.difference_half)} points over the student alone"
        over += "" if np.isnan(cell.p_holm) else f" (p {p_value(cell.p_holm)} after Holm)"
    if not len(others):
        return [f"Its only cell, {cell_name(grid.best)}, has {figure}{over}."]
    among = eligible(grid.cells)
    among = f" among the {among}" if among else ""
    lines = [
        f"The best by mean{among} is {cell_name(grid.best)} with {figure}{over}. It was chosen on "
        "the test set among the cells, so its own figure and difference are flattered."
    ]
    if others.p.notna().any():
        lines.append(told_apart(others))
    elif grid.cells.n.max() == 1:
        lines.append("With one seed no cell can be told from the best, or from any other.")
    if grid.picked is not None:
        cell = grid.cells.loc[grid.picked]
        spread = "" if np.isnan(cell.half) else f" {interval(cell['mean'], cell.half)}"
        over = "" if not cell.pairs else (
            f", {gain(cell.difference, cell.difference_half)} points over the student alone"
        )  # fmt: skip
        lines.append(
            f"Validation (`{METRICS[group.metric][1]}`) chose {cell_name(grid.picked)}: test "
            f"accuracy {percent(cell['mean'])} %{spread}{over}; "
            + (
                "its epoch was still chosen on the test set."
                if group.metric == "best"
                else "the test set chose nothing here."
            )
        )
    return lines


def told_apart(others: pd.DataFrame) -> str:
    """Which cells the best can be told from, which were not tested; `others` from groups.rank."""
    tested = others[others.p.notna()]
    same = tested.index[~tested.below & ~tested.above]
    told = f"difference paired by seed, two-sided t-test, Holm over all pairs of cells, {PERCENT}"
    count = plural(len(tested), "other cell")
    above = tested.index[tested.above]
    if not len(same) and not len(above):
        text = f"The best is above the {count} tested ({told})."
    else:
        text = (
            f"{len(same)} of the {count} tested cannot be told from the best ({told}): "
            f"{cell_list(same) or 'none'}."
        )
    if len(above):
        text += f" Above it, on the seeds in common: {cell_list(above)}."
    untested = others.index[others.p.isna()]
    return text + (f" Not tested: {cell_list(untested)}." if len(untested) else "")


def explained(group: Group, grid: Grid) -> list[str]:
    """Which part of the gain the control and the T² factor explain."""
    lines = []
    over = against_control(group, grid)
    if grid.choice:
        lines += decomposed(group, grid)
    if over.p.notna().any() if len(over) else False:
        lines.append(
            f"{int(over.above.sum())} of the {with_tested(over)} beat the control of their α after "
            f"Holm's correction, {int(over.below.sum())} fall below it."
        )
    scaled = scaled_twin(group, grid) if grid.is_plain else None
    if scaled is not None:
        difference = against_plain(grid, scaled)
        if len(difference) and difference.p.notna().any():
            lines.append(
                "The soft loss × T² against the same cell without it, after Holm's correction: "
                f"{int(difference.above.sum())} of the {with_tested(difference)} above, "
                f"{int(difference.below.sum())} below."
            )
    return lines


def decomposed(group: Group, grid: Grid) -> list[str]:
    """The gain of the grid's cell as control minus alone, plus cell minus control."""
    alpha = grid.choice[0]
    controls = group.controls[grid.student]
    trio = pd.DataFrame(
        {
            "cell": grid.values(grid.choice),
            "control": by_seed(controls[controls.alpha == alpha]),
            "alone": by_seed(group.alone[grid.student]),
        }
    ).dropna()  # one set of seeds for all three, so that the parts add up to the whole
    if not len(trio):
        return []
    smaller = stats.paired(trio.control, trio.alone)
    teacher = stats.paired(trio.cell, trio.control)
    return [
        f"Of the {points((trio.cell - trio.alone).mean())} points of {cell_name(grid.choice)} over "
        f"the student alone ({plural(len(trio), 'seed')}), the control (no teacher, hard loss × "
        f"{1 - alpha:g}) has {gain(smaller.mean, smaller.half)}; the teacher adds "
        f"{gain(teacher.mean, teacher.half)} to the control."
    ]


# ---------------------------------------------------------------- what is not known


def gaps(group: Group) -> str:
    """Everything that this CSV leaves open for this protocol."""
    lines = [
        *choice_gaps(group),
        *(line for grid in group.grids for line in grid_gaps(group, grid)),
        *teacher_gaps(group),
        *column_gaps(group),
        *group.dropped,
    ]
    return bullets(lines)


def choice_gaps(group: Group) -> list[str]:
    """What the schedule and the missing validation split leave open."""
    lines = []
    if not group.annealed and group.metric != "val":
        lines.append(
            "The schedule is not annealed (T_max is not the number of epochs): these figures are "
            "for comparison; conclusions are to be drawn from a group with T_max = epochs."
        )
    if not group.grids:
        lines.append("No distilled student: nothing can be said of distillation.")
    elif not group.settings["val_size"] and sum(len(grid.cells) for grid in group.grids) > 1:
        lines.append(
            "No validation split (`val_size` 0): every best cell was chosen on the test set, and "
            "what it would have on fresh images is not known."
        )
    return lines


def grid_gaps(group: Group, grid: Grid) -> list[str]:
    """Missing comparisons, seeds and cells of one grid."""
    name, cells, lines = f"Student {grid.student}, {grid.variant}", grid.cells, []
    if not len(group.alone[grid.student]):
        lines.append(
            f"{name}: no row of the student alone (role student, α 0), so no difference to it and "
            "no centre for the heatmap."
        )
    else:
        if len(without := cells.index[(cells.pairs == 0) & (cells.n > 0)]):
            lines.append(
                f"{name}: no difference for {cell_list(without)}: the student alone has none of "
                "their seeds."
            )
        if len(part := cells.index[(cells.pairs > 0) & (cells.pairs < cells.n)]):
            lines.append(
                f"{name}: the student alone lacks seeds of {cell_list(part)}; their differences "
                "are over the seeds in common (`pairs` cell by cell)."
            )
    if cells.n.max() == 1:
        lines.append(f"{name}: a single seed, so no standard deviation, interval or test.")
    elif len(fewer := cells.index[cells.n < cells.n.max()]):
        counts = "; ".join(f"{cell_name(cell)} has {int(cells.loc[cell].n)}" for cell in fewer)
        lines.append(
            f"{name}: fewer than {int(cells.n.max())} seeds: {counts}. Differences are over the "
            f"seeds in common, and a cell of fewer than {usual_seeds(cells)} is never taken for "
            "the best."
        )
    theirs = by_seed(group.alone[grid.student]).index
    if len(extra := theirs.difference(grid.rows.seed[grid.rows.value.notna()])):
        lines.append(
            f"{name}: no cell has seed {', '.join(map(str, extra))}, which the student alone has: "
            "not run, or diverged."
        )
    equal = cells.index[(cells.pairs > 1) & cells.p.isna()]
    if len(equal):
        lines.append(
            f"{name}: all differences of {cell_list(equal)} are equal, so the t-test is undefined."
        )
    alphas, temperatures = (sorted(set(level)) for level in zip(*cells.index, strict=True))
    missing = [(a, t) for a in alphas for t in temperatures if (a, t) not in cells.index]
    if missing:
        lines.append(f"{name}: no row for {cell_list(missing)}.")
    lines += ablation_gaps(group, grid, name)
    return lines


def ablation_gaps(group: Group, grid: Grid, name: str) -> list[str]:
    """Controls, and for plain kd the T² cells, that would say what the gain is made of."""
    lines = []
    known = {0.0, *group.controls[grid.student].alpha}  # at α 0 it is the student alone
    alphas = sorted({alpha for alpha, _ in grid.cells.index if alpha not in known})
    if alphas:
        # exp.sh --ablation trains the cnn's controls only.
        hint = " (`sh exp.sh --ablation`)" if grid.student == "cnn" else ""
        lines.append(
            f"{name}: no control (no teacher, hard loss × (1 − α)) for α "
            f"{', '.join(f'{alpha:g}' for alpha in alphas)}, so what a smaller learning rate alone "
            f"does there is not known{hint}."
        )
    if not grid.is_plain:
        return lines
    scaled = scaled_twin(group, grid)
    if scaled is None:
        lines.append(f"{name}: no rows with `scale_t2` True, so the T² factor is not measured.")
    elif missing := [
        # At T = 1 the factor is 1, so nothing is missing there.
        cell
        for cell in grid.cells.index
        if cell not in scaled.cells.index and cell[1] != 1
    ]:
        lines.append(f"{name}: no row with `scale_t2` True for {cell_list(missing)}.")
    return lines


def teacher_gaps(group: Group) -> list[str]:
    """What one teacher, or one that is not in the CSV, leaves open."""
    taught = group.rows[group.rows.method != "none"]
    lines = []
    if not len(taught):
        return lines
    names = sorted(set(taught.teacher) - {""})
    if len(names) == 1:
        lines.append(
            f"One teacher (`{names[0]}`) taught every student: how much the figures depend on the "
            "teacher's own seed is in no interval here."
        )
    lines += [
        f"Student {grid.student}, {grid.variant}: not all cells were taught by the same teachers "
        "(column `teacher`), so a difference between two of them may be their teachers'."
        for grid in group.grids
        if len({frozenset(part.teacher) for _, part in by_cell(grid.rows)}) > 1
    ]
    lines += mixed_teachers(group)
    lines += [
        f"The teacher `{name}` has no row in the CSV, so its accuracy is not known."
        for name in names
        if name not in set(group.teachers.run_id)
    ]
    for name, part in taught.groupby("teacher"):
        if part.teacher_sha.nunique() > 1:
            lines.append(
                f"The checkpoint of the teacher `{name}` was not the same for all rows "
                "(`teacher_sha`): their differences are not of the method alone."
            )
    return lines


def mixed_teachers(group: Group) -> list[str]:
    """Where two grids, or a grid and the student alone, were measured with different teachers."""
    lines = []
    for student in group.students():
        grids = [grid for grid in group.grids if grid.student == student]
        sets = {grid.variant: frozenset(grid.rows.teacher) for grid in grids}
        if len(set(sets.values())) > 1:
            lines.append(
                f"Student {student}: its grids had different teachers ("
                + "; ".join(f"{variant}: {quoted(names)}" for variant, names in sets.items())
                + "), so a difference between them may be their teachers'."
            )
        taught = frozenset().union(*sets.values())
        untaught = pd.concat([group.alone[student], group.controls[student]])
        untaught = untaught[untaught.agreement.notna()]
        theirs = frozenset(untaught.teacher)
        shas = {sha for grid in grids for sha in grid.rows.teacher_sha}
        start = (
            f"Student {student}: agreement and KL of the student alone and the control are with "
        )
        if theirs and sets and theirs != taught:
            lines.append(f"{start}{quoted(theirs)}, those of the taught with {quoted(taught)}.")
        elif sets and not shas.issuperset(untaught.teacher_sha.dropna()):
            lines.append(f"{start}another checkpoint than the one that taught (`teacher_sha`).")
    return lines


def column_gaps(group: Group) -> list[str]:
    """Runs without the figure, and columns that are blank."""
    lines = []
    lost = group.rows[group.rows.value.isna()]
    if len(lost):
        ids = ", ".join(f"`{run_id}`" for run_id in lost.run_id)
        lines.append(f"No accuracy, and so in no figure: {ids}.")
    taught = group.rows[group.rows.method != "none"]
    blank = [name for name in ("agreement", "teacher_kl", "ece") if taught[name].isna().all()]
    if len(taught) and blank:
        lines.append(f"The columns {', '.join(f'`{name}`' for name in blank)} are blank.")
    if len(group.rows) and group.rows.test_curve.isna().all():
        lines.append("`test_curve` is blank, so there is no curve by epoch.")
    for name in ("amp", "device", "machine", "torch", "commit"):
        values = group.rows[name].replace("", np.nan).dropna().astype(str)
        if values.nunique() > 1:
            lines.append(
                f"The runs differ in `{name}` ({values.nunique()} values, see the table of the "
                "protocol): a difference between them may have crept into the cells'."
            )
    return lines
