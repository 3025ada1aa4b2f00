"""The tables in Markdown: teacher and student, the alpha x T pivots, the reference beside them."""

from collections.abc import Callable, Iterable

import numpy as np
import pandas as pd

from engine.cells import Settings
from reporting import stats
from reporting.groups import (
    CIFAR10_TRAIN,
    METRICS,
    NO_TEMPERATURE,
    PROTOCOL,
    Cell,
    Grid,
    Group,
    complete,
    is_reference,
    short_ids,
    usual_seeds,
)

NONE = "—"  # a cell that is missing, or a figure that cannot be given


# ---------------------------------------------------------------- numbers as text


def fixed(value: float, digits: int, sign: str = "") -> str:
    """With so many digits after the point; — for NaN.

    Rounded to nine digits first: a mean on the edge, as 61.245, must not go by its last bit, which
    is not the same with every version of NumPy.
    """
    value = float(value)  # NumPy's own numbers are rounded by another rule
    return NONE if np.isnan(value) else f"{round(round(value, 9), digits) + 0.0:{sign}.{digits}f}"


def percent(value: float) -> str:
    """0.6128 as 61.28."""
    return fixed(100 * value, 2)


def points(value: float) -> str:
    """0.0045 as +0.45: a difference in percentage points."""
    return fixed(100 * value, 2, "+")


def mean_std(mean: float, std: float) -> str:
    """`61.28 ± 0.21`, and the mean alone where there is no standard deviation."""
    return percent(mean) if np.isnan(std) else f"{percent(mean)} ± {percent(std)}"


def interval(mean: float, half: float, write: Callable[[float], str] = percent) -> str:
    """`[61.02, 61.54]`, or — where no interval can be given."""
    return NONE if np.isnan(half) else f"[{write(mean - half)}, {write(mean + half)}]"


def p_value(p: float) -> str:
    return "< 0.001" if p < 0.001 else fixed(p, 3)


def several(values: Iterable[float], digits: int = 2, scale: float = 100) -> str:
    """Mean ± standard deviation of a column over seeds."""
    result = stats.estimate(list(values))
    spread = f" ± {fixed(scale * result.std, digits)}" if result.n > 1 else ""
    return fixed(scale * result.mean, digits) + spread


def cell_name(cell: Cell) -> str:
    """`α 0.5, T 10`, and without T where the method has none."""
    alpha, temperature = cell
    return f"α {alpha:g}" + (f", T {temperature:g}" if temperature != NO_TEMPERATURE else "")


def plural(count: int, noun: str) -> str:
    """`1 cell`, `2 cells`."""
    return f"{count} {noun}{'' if count == 1 else 's'}"


def quoted(teachers: Iterable[str]) -> str:
    """Run ids of teachers as code; a row may name none."""
    return ", ".join(f"`{name}`" if name else "an unnamed teacher" for name in sorted(teachers))


def markdown(header: list[str], lines: Iterable[Iterable[str]], left: int = 1) -> str:
    """A Markdown table; the first `left` columns are left-aligned, the others right-aligned."""
    rule = [":---" if i < left else "---:" for i in range(len(header))]
    return "\n".join("| " + " | ".join(line) + " |" for line in [header, rule, *lines])


# ---------------------------------------------------------------- what a group is


def title(settings: dict) -> str:
    """The data, the length, and whatever else is not the reference protocol's."""
    size, validation = settings["train_size"], settings["val_size"]
    parts = [str(settings["dataset"]), f"{size:,.0f} training images"]
    parts += [plural(int(settings["epochs"]), "epoch"), f"T_max {settings['t_max']:g}"]
    if validation:
        parts.insert(2, f"{validation:,.0f} for validation")
    for name in ("batch_size", "lr", "momentum", "weight_decay", "normalization"):
        value = settings[name]
        if value != getattr(Settings(), name):
            parts.append(f"{name} {value}" if isinstance(value, str) else f"{name} {value:g}")
    return ", ".join(parts) + (" (the reference's protocol)" if is_reference(settings) else "")


METRIC_TEXT = {
    "last": "Figures: test accuracy in % of the **last epoch** (column `test_acc`).",
    "best": "Figures: test accuracy in % of the **best epoch** (column `best_test_acc`): each "
    "run's epoch was **chosen on the test set**, which flatters every figure here.",
    "val": "Figures: test accuracy in % at the epoch of each run's **best validation accuracy** "
    "(column `test_curve` at epoch `best_val_epoch`): the test set chose no epoch.",
}


def describe(group: Group) -> str:
    """The schedule, and what the figures are."""
    if group.annealed:
        text = "The schedule is fully annealed (T_max = epochs), so the last epoch needs no choice."
    elif group.settings["t_max"] > group.settings["epochs"]:
        text = (
            "The schedule stops before the learning rate is annealed (T_max is more than the "
            "epochs), so accuracy still swings from epoch to epoch at the end."
        )
    else:
        text = (
            "The learning rate reaches 0 after T_max epochs and rises again after that (T_max is "
            "less than the epochs), so the last epoch is not the end of an annealing."
        )
    return f"{text} {METRIC_TEXT[group.metric]}"


# ---------------------------------------------------------------- teacher and student


WHO = [
    *("role", "model", "runs", "parameters", "epochs, T_max", "last epoch", "best epoch"),
    "run ids",
]


def who_table(group: Group) -> str:
    """Teachers and students alone: last and best epoch, mean ± std over seeds."""
    lines = teacher_lines(group.teachers)
    for student in group.students():
        rows = group.alone[student]
        if len(rows):
            lines.append(who_line("student alone", rows))
    return markdown(WHO, lines, left=2) if lines else ""


def teacher_lines(teachers: pd.DataFrame) -> list[list[str]]:
    """One line for each model and protocol of teachers."""
    groups = teachers.groupby(["student", *PROTOCOL], dropna=False, sort=True)
    return [who_line("teacher", part) for _, part in groups]


def who_line(role: str, rows: pd.DataFrame) -> list[str]:
    first = rows.iloc[0]
    params = NONE if np.isnan(first.params) else f"{first.params:,.0f}"
    schedule = f"{first.epochs:g}, {first.t_max:g}"
    figures = [several(rows.test_acc), several(rows.best_test_acc)]
    return [role, first.student, str(len(rows)), params, schedule, *figures, short_ids(rows)]


# ---------------------------------------------------------------- pivots


def pivot(cells: pd.DataFrame, write: Callable[[pd.Series], str]) -> str:
    """T down, α across; `write` turns one row of `cells` into text; what is missing shows as —."""
    alphas = sorted(set(cells.index.get_level_values("alpha")))
    temperatures = sorted(set(cells.index.get_level_values("temperature")))
    known = {cell: write(cells.loc[cell]) for cell in cells.index}
    lines = [
        [NONE if t == NO_TEMPERATURE else f"{t:g}", *(known.get((a, t), NONE) for a in alphas)]
        for t in temperatures
    ]
    return markdown(["T \\ α", *(f"{alpha:g}" for alpha in alphas)], lines)


def accuracy_pivot(grid: Grid) -> str:
    """Mean ± std; best of each column bold, the best overall marked, † above the student alone."""
    cells = grid.cells
    means = complete(cells)["mean"].round(12)
    column_best = means.groupby("alpha").transform("max")
    bold = means.index[means == column_best]
    seeds = cells.n.max()

    def write(cell: pd.Series) -> str:
        if not cell.n:
            return NONE
        text = mean_std(cell["mean"], cell["std"]) + (f" (n {cell.n})" if cell.n < seeds else "")
        text = f"**{text}**" if cell.name in bold else text
        best = " (best)" if cell.name == grid.best else ""
        return text + best + (" †" if cell.above else "")

    return pivot(cells, write)


def seed_range(cells: pd.DataFrame) -> str:
    """`2 seeds`, or `1 to 2 seeds` where cells differ; a cell without any is not counted."""
    low, high = int(cells.n[cells.n > 0].min()), int(cells.n.max())
    return plural(high, "seed") if low == high else f"{low} to {high} seeds"


def eligible(cells: pd.DataFrame) -> str:
    """`cells of at least 2 seeds`, which the best was chosen among; empty where that is all."""
    if len(complete(cells)) == len(cells):
        return ""
    return f"cells of at least {plural(usual_seeds(cells), 'seed')}"


def legend(grid: Grid, group: Group) -> str:
    """What the marks in a pivot mean, with how it was tested; nothing that is not there."""
    seeds = int(grid.cells.n.max())
    among = eligible(grid.cells)
    among = f"; only {among}" if among else ""
    text = f"Bold: best mean of its column; (best): of all{among}. " if len(grid.cells) > 1 else ""
    if seeds > 1:
        text += f"Mean ± standard deviation over {seed_range(grid.cells)}. "
    tested = int(grid.cells.p.notna().sum())
    if tested:
        text += (
            "†: above the student alone (difference paired by seed, two-sided t-test, Holm over "
            f"{plural(tested, 'cell')}, 5 %). "
        )
    elif seeds == 1:
        text += "One seed: no interval and no test can be given. "
    first = grid.rows.iloc[0]
    rows = f"`role` distill, `model` {first.model}, `method` {grid.method}"
    rows += "" if np.isnan(first.width) else f", `width` {first.width:g}"
    rows += f", `scale_t2` {grid.scale_t2}" if grid.method == "kd" else ""
    rows += "" if np.isnan(first.beta) else f", `beta` {first.beta:g}"
    rows += f", `teacher` {grid.teacher}" if grid.teacher else ""
    return f"{text}Rows: {rows}; column `{METRICS[group.metric][0]}`.".replace(
        "`val_epoch_test_acc`", "`test_curve` at `best_val_epoch`"
    )


# ---------------------------------------------------------------- beside the reference


def reference_part(group: Group, reference: pd.DataFrame) -> str:
    """This project's best epochs beside the reference's, cell by cell, or why not."""
    if not group.is_reference:
        settings, protocol = group.settings, Settings()
        if settings["dataset"] != protocol.dataset:
            return (
                f"The reference table is of `{protocol.dataset}` and these rows are of "
                f"`{settings['dataset']}`: nothing is put beside it."
            )
        short = settings["epochs"] < protocol.epochs or settings["train_size"] < CIFAR10_TRAIN
        return (
            f"This is another{', shorter' if short else ''} protocol than the reference's: its "
            "accuracies are not comparable with the reference table and are not put beside it."
        )
    if not len(reference):
        return "No `results/reference.csv`: nothing can be put beside the reference."
    ours = our_best(group)
    keys = [(row.role, row.model, row.alpha, row.temperature) for row in reference.itertuples()]
    reference = reference[[key in ours for key in keys]]
    if not len(reference):
        return "No row of this group stands in the reference table." + others_students(group)
    mine = [ours[key] for key in keys if key in ours]
    reference = reference.assign(ours=[m.mean for m in mine], std=[m.std for m in mine])
    reference["difference"] = reference.ours - reference.test_acc
    text = [
        "Both sides are best epochs, chosen on the test set (column `best_test_acc`); the "
        "reference has one seed. Difference: this project minus the reference, in points."
        + others_students(group)
    ]
    grid = reference[(reference.role == "distill") & (reference.model == "cnn")]
    rest = reference.drop(grid.index)
    if len(rest):
        text.append(
            markdown(
                ["role", "model", "α", "T", "this project", "reference", "difference"],
                [
                    [
                        row.role,
                        row.model,
                        blank(row.alpha),
                        blank(row.temperature),
                        mean_std(row.ours, row.std),
                        percent(row.test_acc),
                        points(row.difference),
                    ]
                    for row in rest.itertuples()
                ],
                left=2,
            )  # fmt: skip
        )
    if len(grid):
        table = grid.set_index(["alpha", "temperature"]).sort_index()
        text.append("Student cnn: this project − reference = difference.")
        text.append(
            pivot(
                table,
                lambda row: (
                    f"{percent(row.ours)} − {percent(row.test_acc)} = {points(row.difference)}"
                ),
            )
        )
        size = table.difference.abs()
        text.append(
            f"Over these {len(table)} cells the difference is {points(table.difference.mean())} "
            f"points in the mean, {percent(size.mean())} in mean size and {percent(size.max())} "
            f"at most ({cell_name(size.idxmax())})."
        )
    return "\n\n".join(text)


def our_best(group: Group) -> dict[tuple, stats.Estimate]:
    """best_test_acc over seeds by (role, model, alpha, T), as the reference names its cells."""
    teachers = reference_teachers(group)
    plain = [g.rows[g.rows.teacher.isin(teachers.run_id)] for g in group.grids if g.is_plain]
    own = [rows[rows.role == "student"] for rows in group.alone.values()]
    found: dict[tuple, list[float]] = {}
    for rows in [*plain, teachers, *own]:
        for row in rows[rows.student == rows.model].itertuples():  # the models' own widths
            cell = (row.alpha, row.temperature) if row.role == "distill" else (BLANK, BLANK)
            if not np.isnan(row.best_test_acc):
                found.setdefault((row.role, row.model, *cell), []).append(row.best_test_acc)
    return {key: stats.estimate(values) for key, values in found.items()}


def reference_teachers(group: Group) -> pd.DataFrame:
    """The teachers trained as the reference's was: its protocol, its width."""
    teachers = group.teachers[group.teachers.student == group.teachers.model]
    its = [is_reference(row) for row in teachers.to_dict("records")]
    return teachers[np.array(its, dtype=bool)]  # a list, if empty, would pick no column


def others_students(group: Group) -> str:
    """Whose students are not put beside the reference, if any are left out."""
    known = set(reference_teachers(group).run_id)
    others = {name for grid in group.grids if grid.is_plain for name in grid.rows.teacher} - known
    if not others:
        return ""
    return (
        f" Left out are the students of {quoted(others)}: not known to be a teacher of the "
        "reference's width and protocol."
    )


BLANK = -1.0  # stands for a blank alpha or T in the reference, since NaN equals nothing


def blank(value: float) -> str:
    return "" if value == BLANK else f"{value:g}"
