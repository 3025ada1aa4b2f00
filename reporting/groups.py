"""From the rows of results.csv to what the report speaks of: groups, grids and their cells.

A group holds the rows of one protocol and is never mixed with another. In it, a grid is one
student taught by one method, over alpha x temperature; all cells of a grid are compared with the
student alone, seed by seed.
"""

import itertools
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

import numpy as np
import pandas as pd

from engine.cells import DATA_SETTINGS, Settings
from models import MODELS
from reporting import stats
from utils import UserError

PROTOCOL = (
    *("dataset", "train_size", "val_size", "epochs", "batch_size", "lr", "t_max"),
    *("momentum", "weight_decay", "normalization"),
)
TEXT = ("run_id", "role", "model", "teacher", "method", "dataset", "normalization", "device")
NUMBERS = (
    *("alpha", "temperature", "beta", "seed", "width", "teacher_seed", "params", "seconds"),
    *("test_acc", "test_loss", "best_test_acc", "best_epoch", "train_acc"),
    *("val_acc", "best_val_acc", "best_val_epoch", "agreement", "teacher_kl", "ece"),
    *(name for name in PROTOCOL if name not in TEXT),
)
CIFAR10_TRAIN = 50000  # images; what the protocol's train_size 0, "all", is in a row

# What a figure is: the CSV's column it is read from, and the validation column that may choose.
METRICS = {
    "last": ("test_acc", "val_acc"),
    "best": ("best_test_acc", "best_val_acc"),
    "val": ("val_epoch_test_acc", "best_val_acc"),  # test accuracy at validation's best epoch
}
NO_TEMPERATURE = 0.0  # stands for a blank, so that a cell is found by (alpha, temperature)
Cell = tuple[float, float]  # (alpha, temperature)


@dataclass
class Grid:
    """One student, one method. `cells` has one row a cell, made by `compare`."""

    student: str
    variant: str  # the method with what else tells it from its siblings, in words
    method: str
    scale_t2: bool
    teacher: str  # run id, only where the same cells were taught by several; otherwise ""
    rows: pd.DataFrame
    cells: pd.DataFrame
    best: Cell | None = None  # by mean test accuracy: chosen on the test set
    picked: Cell | None = None  # by mean validation accuracy; None without validation
    against_best: pd.DataFrame = field(default_factory=pd.DataFrame)  # others minus it, by `rank`

    @property
    def choice(self) -> Cell | None:
        """The cell that stands for the grid: validation's, or else the best by mean."""
        return self.picked or self.best

    @property
    def is_plain(self) -> bool:
        """Whether it is kd without the T² factor, the reference's loss."""
        return self.method == "kd" and not self.scale_t2

    def values(self, cell: Cell) -> pd.Series:
        """Accuracy by seed of one cell."""
        return by_seed(rows_of(self.rows, cell))


@dataclass
class Group:
    """The rows of one protocol."""

    settings: dict
    metric: str
    rows: pd.DataFrame  # all students, alone or taught, with `value` = the metric's figure
    teachers: pd.DataFrame
    alone: dict[str, pd.DataFrame]  # student -> its rows without a teacher and with alpha 0
    controls: dict[str, pd.DataFrame]  # student -> no teacher, hard loss x (1 - alpha)
    grids: list[Grid]
    dropped: list[str]  # sentences on rows that were left out

    @property
    def annealed(self) -> bool:
        return self.settings["t_max"] == self.settings["epochs"]

    @property
    def is_reference(self) -> bool:
        return is_reference(self.settings)

    def students(self) -> list[str]:
        """Every student of the group, those with the most rows first."""
        return list(self.rows.student.value_counts(sort=False).sort_values(kind="stable").index)[
            ::-1
        ]


def is_reference(settings: dict) -> bool:
    """Whether these are the reference protocol's settings (cells.Settings)."""
    protocol = {name: getattr(Settings(), name) for name in PROTOCOL}
    protocol["train_size"] = CIFAR10_TRAIN
    return all(settings[name] == value for name, value in protocol.items())


# ---------------------------------------------------------------- cleaning


def clean(rows: pd.DataFrame) -> pd.DataFrame:
    """The CSV's rows with known types and the columns `student`, `variant`, `val_epoch_test_acc`.

    Raises UserError for a row that no run could have left.
    """
    rows = rows.copy()
    for name in NUMBERS:
        try:
            rows[name] = pd.to_numeric(rows[name]).astype(float)
        except (ValueError, TypeError):
            raise UserError(
                f"results.csv has something that is no number under {name}: mend that row"
            ) from None
    rows[list(NUMBERS)] = rows[list(NUMBERS)].replace([np.inf, -np.inf], np.nan)
    for name in TEXT:
        rows[name] = rows[name].astype(object).where(rows[name].notna(), "").astype(str)
    rows["method"] = rows.method.replace("", "none")
    rows["scale_t2"] = rows.scale_t2.astype(str).str.lower().isin(["true", "1", "1.0"])
    check(rows)
    rows["seed"] = rows.seed.astype(int)
    rows["alpha"] = rows.alpha.fillna(0.0)
    rows["temperature"] = rows.temperature.fillna(NO_TEMPERATURE)
    rows["val_size"] = rows.val_size.fillna(0)
    rows["student"] = [student_name(*pair) for pair in zip(rows.model, rows.width, strict=True)]
    rows["val_epoch_test_acc"] = [
        accuracy_at(curve(text, run_id), epoch)
        for text, run_id, epoch in zip(
            rows.test_curve, rows.run_id, rows.best_val_epoch, strict=True
        )
    ]
    return rows


def check(rows: pd.DataFrame) -> None:
    """Raise UserError for a row that no run could have left."""
    blank = rows[rows.seed.isna() | (rows.seed % 1 != 0) | (rows.model == "")]
    if len(blank):
        raise UserError(
            f"results.csv: {blank.run_id.iloc[0]} has no whole seed or no model: mend that row"
        )
    accuracies = rows[["test_acc", "best_test_acc", "val_acc", "best_val_acc"]]
    outside = rows[((accuracies < 0) | (accuracies > 1)).any(axis=1)]
    if len(outside):
        raise UserError(
            f"results.csv: {outside.run_id.iloc[0]} has an accuracy outside 0..1 (they are "
            "fractions): mend that row"
        )


def curve(text: object, run_id: str) -> np.ndarray:
    """test_curve as numbers, one an epoch; empty where it is blank. Raises UserError."""
    if not isinstance(text, str | float) or text != text:  # NaN
        return np.empty(0)
    try:
        return np.array([float(word) for word in str(text).split()])
    except ValueError:
        raise UserError(
            f"results.csv: the test_curve of {run_id} is not numbers with spaces between: "
            "mend that row"
        ) from None


def accuracy_at(values: np.ndarray, epoch: float) -> float:
    """The accuracy of a 1-based epoch, or NaN where there is none."""
    return values[int(epoch) - 1] if 1 <= epoch <= len(values) else np.nan


def student_name(model: str, width: float) -> str:
    """`cnn`, or `cnn (width 8)` where that is not the model's own."""
    default = MODELS[model].DEFAULT_WIDTH if model in MODELS else width
    return model if np.isnan(width) or width == default else f"{model} (width {width:g})"


# ---------------------------------------------------------------- grouping


def split(rows: pd.DataFrame, asked: str | None = None) -> tuple[list[Group], pd.DataFrame]:
    """All groups, fully annealed ones first, and the teachers that belong to none of them.

    `asked` is a key of METRICS; None takes each group's own: the last epoch where the schedule
    is annealed, else the epoch that validation chose, else the best epoch.
    """
    rows = clean(rows)
    teachers = rows[rows.role == "teacher"]
    found = [
        make_group(dict(zip(PROTOCOL, key, strict=True)), part, teachers, asked)
        for key, part in rows[rows.role != "teacher"].groupby(list(PROTOCOL), dropna=False)
    ]
    found.sort(key=lambda group: not group.annealed)
    used = {run_id for group in found for run_id in group.teachers.run_id}
    return found, teachers[~teachers.run_id.isin(used)]


def make_group(
    settings: dict, rows: pd.DataFrame, teachers: pd.DataFrame, asked: str | None
) -> Group:
    """One protocol's rows, sorted and compared."""
    metric = asked or own_metric(settings, rows)
    figure, validation = METRICS[metric]
    same = (teachers[list(PROTOCOL)] == pd.Series(settings)).all(axis=1)
    rows = rows.assign(value=rows[figure], val=rows[validation])
    twins = teachers[same].assign(value=teachers[same][figure], val=teachers[same][validation])
    rows, dropped = without_doubles(rows)

    untaught = rows.method == "none"
    alone, controls = {}, {}
    for student in rows.student.unique():
        mine = rows[untaught & (rows.student == student)]
        # A teacher trained with these very settings is that model alone, too.
        twin = twins[(twins.student == student) & ~twins.seed.isin(mine[mine.alpha == 0].seed)]
        alone[student] = (
            pd.concat([mine[mine.alpha == 0], twin]) if len(twin) else mine[mine.alpha == 0]
        )
        controls[student] = mine[mine.alpha > 0]
    grids = [
        make_grid(part, by_seed(alone[part.student.iloc[0]]))
        for _, part in rows[~untaught].groupby(["student", "variant"])
    ]
    grids.sort(key=lambda grid: (-len(grid.cells), grid.student, grid.method != "kd"))
    grids.sort(key=lambda grid: grid.student != (grids[0].student if grids else ""))
    return Group(
        settings, metric, rows, its_teachers(settings, rows, teachers), alone, controls, grids,
        dropped,
    )  # fmt: skip


def own_metric(settings: dict, rows: pd.DataFrame) -> str:
    """What a group's figures are where nobody asked for others."""
    if settings["t_max"] == settings["epochs"]:
        return "last"
    return "val" if rows.val_epoch_test_acc.notna().any() else "best"


def without_doubles(rows: pd.DataFrame) -> tuple[pd.DataFrame, list[str]]:
    """Rows with `variant`, one for each (student, variant, alpha, T, seed), and what went.

    Where several teachers taught the same cell and seed, each teacher makes its own variant.
    """
    cell = ["student", "variant", "alpha", "temperature", "seed"]
    rows = rows.assign(
        variant=rows.method
        + np.where(rows.scale_t2, " × T²", "")
        + [f", β {beta:g}" if beta == beta else "" for beta in rows.beta],
        by_teacher="",
    )
    rows = rows.sort_values([*cell, "run_id"], kind="stable").reset_index(drop=True)
    several = rows.groupby(cell).teacher.transform("nunique") > 1
    # With and without T² are torn together, so that each grid still finds its twin.
    kind = rows.student + "/" + rows.method + "/" + rows.beta.astype(str)
    torn = kind.isin(kind[several]) & (rows.method != "none")
    rows["by_teacher"] = rows.teacher.where(torn, "")
    rows["variant"] += ("; teacher " + rows.teacher).where(torn, "")
    double = rows.duplicated(cell)
    first = rows.groupby(cell).run_id.transform("first")
    dropped = [
        f"`{run_id}` is the same cell and seed as `{other}` and was left out."
        for run_id, other in zip(rows.run_id[double], first[double], strict=True)
    ]
    return rows[~double], dropped


def its_teachers(settings: dict, rows: pd.DataFrame, teachers: pd.DataFrame) -> pd.DataFrame:
    """The teachers that a group's rows name; where they name none, those of the same data."""
    named = teachers[teachers.run_id.isin(rows.teacher)]
    data = list(DATA_SETTINGS)
    same = (teachers[data] == pd.Series({name: settings[name] for name in data})).all(axis=1)
    return named if len(named) else teachers[same]


# ---------------------------------------------------------------- comparing


def make_grid(rows: pd.DataFrame, alone: pd.Series) -> Grid:
    """A grid with its best cell and what cannot be told from it; `alone` is accuracy by seed."""
    row = rows.iloc[0]
    grid = Grid(
        *(row.student, row.variant, row.method, bool(row.scale_t2), row.by_teacher),
        rows=rows,
        cells=compare(rows, lambda _: alone),
    )
    eligible = complete(grid.cells)
    if len(eligible):
        grid.best = eligible["mean"].idxmax()
        grid.against_best = rank(grid)
    if eligible.val.notna().any():
        grid.picked = eligible.val.idxmax()
    return grid


def usual_seeds(cells: pd.DataFrame) -> int:
    """The number of seeds that most cells have, at least 1; of two equally frequent the larger.

    A cell with fewer lost some to divergence and is no winner; one with more, as while a further
    seed is under way, does not shut out the others.
    """
    return max(1, int(cells.n.mode().max()))


def complete(cells: pd.DataFrame) -> pd.DataFrame:
    """The cells that may win: those of at least `usual_seeds`."""
    return cells[cells.n >= usual_seeds(cells)]


def rank(grid: Grid) -> pd.DataFrame:
    """The other cells minus the best one.

    The best was picked by the very figures it is compared by. Holm's correction is therefore over
    all pairs of cells, among which these are, whichever cell comes out best.
    """
    values = values_by_cell(grid.rows)
    others = grid.rows[[cell != grid.best for cell in cells_of(grid.rows)]]
    table = compare(others, lambda _: values[grid.best])
    pairs = list(itertools.combinations(values, 2))
    p = stats.holm([pair(values[one], values[other]).p for one, other in pairs])
    found = dict(zip(map(frozenset, pairs), p, strict=True))
    return mark(table.assign(p_holm=[found[frozenset((cell, grid.best))] for cell in table.index]))


def pair(first: pd.Series, second: pd.Series) -> stats.Difference:
    """first - second, two accuracies by seed, on the seeds that both have."""
    common = first.index.intersection(second.index)
    return stats.paired(first[common], second[common])


COMPARED = (
    *("n", "mean", "std", "half", "val", "pairs", "difference", "difference_half", "p", "p_holm"),
    *("above", "below", "run_ids"),
)


def compare(rows: pd.DataFrame, base: Callable[[Cell], pd.Series]) -> pd.DataFrame:
    """One row a cell (alpha, temperature): its estimate and its paired difference to `base`.

    `base` gives the accuracies by seed that a cell is compared with. `n, mean, std, half` are
    stats.estimate's and `pairs, difference, difference_half, p` stats.paired's, fractions of 1;
    `p_holm` is corrected over all cells here; `above` and `below`: significantly so, after it.
    """
    found = {}
    for cell, part in by_cell(rows):
        values = by_seed(part)
        validation = part.val[part.val.notna()]
        found[cell] = (
            *stats.estimate(values), validation.mean() if len(validation) else np.nan,
            *pair(values, base(cell)), np.nan, False, False, short_ids(part),
        )  # fmt: skip
    index = pd.MultiIndex.from_tuples(found, names=["alpha", "temperature"]) if found else None
    table = pd.DataFrame(found.values(), index=index, columns=COMPARED)
    return mark(table.assign(p_holm=stats.holm(table.p))) if len(table) else table


def mark(table: pd.DataFrame) -> pd.DataFrame:
    """With `above` and `below`: significantly so, by `p_holm`."""
    significant = table.p_holm <= stats.LEVEL
    return table.assign(
        above=significant & (table.difference > 0), below=significant & (table.difference < 0)
    )


def by_seed(rows: pd.DataFrame) -> pd.Series:
    """Accuracy by seed, runs without one left out."""
    return pd.Series(rows.value.to_numpy(), index=rows.seed).dropna().sort_index()


def by_cell(rows: pd.DataFrame) -> Iterable[tuple[Cell, pd.DataFrame]]:
    """Each cell with its rows, by alpha and then by temperature."""
    return rows.groupby(["alpha", "temperature"])


def values_by_cell(rows: pd.DataFrame) -> dict[Cell, pd.Series]:
    """Accuracy by seed of each cell."""
    return {cell: by_seed(part) for cell, part in by_cell(rows)}


def cells_of(rows: pd.DataFrame) -> list[Cell]:
    """The (alpha, temperature) of each row."""
    return list(zip(rows.alpha, rows.temperature, strict=True))


def rows_of(rows: pd.DataFrame, cell: Cell) -> pd.DataFrame:
    """The rows of one cell."""
    return rows[(rows.alpha == cell[0]) & (rows.temperature == cell[1])]


def short_ids(rows: pd.DataFrame) -> str:
    """The run ids of one cell: `cnn-kd-a0.5-T10-s{0,1,2}`, or one after the other."""
    stems = {
        f"-{run_id}-".replace(f"-s{seed}-", "-s*-", 1).strip("-")
        for run_id, seed in zip(rows.run_id, rows.seed, strict=True)
    }
    seeds = ",".join(map(str, sorted(rows.seed)))
    if len(rows) > 1 and len(stems) == 1 and "-s*" in (stem := stems.pop()):
        return f"`{stem.replace('-s*', f'-s{{{seeds}}}')}`"
    return ", ".join(f"`{run_id}`" for run_id in rows.run_id)
