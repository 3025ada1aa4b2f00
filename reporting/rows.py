"""From the rows of results.csv to protocols: cleaned, never mixed, one row for each cell and seed.

A student's `variant` is "alone" (no teacher), "control" (no teacher, hard loss x (1 - alpha)), or
the method with all that distinguishes it but alpha and T ("kd", "kd × T²", "sp, β 300"). A cell is
(student, variant, alpha, temperature); a grid is all cells of one variant with a teacher.
"""

import re
from dataclasses import dataclass

import numpy as np
import pandas as pd

from engine.cells import DATA_SETTINGS, REFERENCE, SETTINGS
from engine.recipes import RECIPES, weights_of
from models import MODELS
from utils import UserError

PROTOCOL = tuple(SETTINGS)
IMAGES = ["data", "test_data"]  # checksums of what was trained on and what was measured on
TEXT = ("run_id", "role", "model", "teacher", "method", "device")
TEXT += ("student_layers", "teacher_layers", "weights", "answers")
TEXT += tuple(name for name in PROTOCOL if isinstance(REFERENCE[name], str))
NUMBERS = (
    *("alpha", "temperature", "beta", "seed", "width", "teacher_seed", "params", "seconds"),
    *("test_acc", "test_loss", "best_test_acc", "best_epoch", "train_acc"),
    *("val_acc", "best_val_acc", "best_val_epoch", "agreement", "teacher_kl", "ece"),
    *("teacher_acc", "soft_warmup", "hard_weight", *IMAGES),
    *(name for name in PROTOCOL if name not in TEXT),
)
CIFAR10_TRAIN = 50000  # images; the protocol's train_size 0, "all", as rows have it

# Metric: the CSV's column with the accuracy, and the validation column that may choose by.
METRICS = {
    "last": ("test_acc", "val_acc"),
    "best": ("best_test_acc", "best_val_acc"),
    "val": ("val_epoch_test_acc", "best_val_acc"),  # test accuracy at validation's best epoch
}
ALONE, CONTROL, T2 = "alone", "control", " × T²"
FLAGS = ("scale_t2", "auto_beta")
YES, NO = ("true", "1", "1.0"), ("false", "0", "0.0", "")
NO_TEMPERATURE = 0.0  # stands for a blank, so that a cell is found by (alpha, temperature)
CELL = ["student", "variant", "alpha", "temperature"]


@dataclass(frozen=True)
class Protocol:
    """The runs that share every setting. `rows` also has CELL, `kind`, `value` and `val`."""

    settings: dict
    metric: str
    rows: pd.DataFrame  # one a cell and seed; `value` is the metric's accuracy or NaN
    teachers: pd.DataFrame
    left_out: list[tuple[str, str]]  # (run id, why)

    @property
    def annealed(self) -> bool:
        return is_annealed(self.settings)


def is_annealed(settings: dict) -> bool:
    """Whether the learning rate has decayed: T_max is epochs, or a milestone was passed."""
    if settings["schedule"] == "step":
        return int(settings["milestones"].split()[0]) < settings["epochs"]
    return settings["t_max"] == settings["epochs"]


def applies(name: str, settings: dict) -> bool:
    """Whether a setting is worth showing.

    Not T_max of a step schedule, nor a flag that is off, the reference as a recipe, or draw 0.
    """
    other, value = SETTINGS[name].metadata["only"] or (name, settings[name])
    quiet = REFERENCE[name] is False or name in ("recipe", "draw")
    return settings[other] == value and not (quiet and settings[name] == REFERENCE[name])


def is_reference(settings: dict) -> bool:
    """Whether these are the reference protocol's settings (cells.REFERENCE)."""
    protocol = REFERENCE | {"train_size": CIFAR10_TRAIN}
    return all(settings[name] == protocol[name] for name in PROTOCOL)


def clean(rows: pd.DataFrame) -> pd.DataFrame:
    """The CSV's rows with known types, and `student`, `curve`, `val_epoch_test_acc` besides.

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
    for name in (*TEXT, *FLAGS):
        rows[name] = rows[name].astype(object).where(rows[name].notna(), "").astype(str)
    rows["method"] = rows.method.replace("", "none")
    for name in FLAGS:
        words = rows[name].str.strip().str.lower()
        if not (known := words.isin([*YES, *NO])).all():
            raise UserError(
                f"results.csv has {words[~known].iloc[0]} under {name}, which is True or False: "
                "mend that row"
            )
        rows[name] = words.isin(YES)
    check(rows)
    rows["seed"] = rows.seed.astype(int)
    # Blank in rows of an older version: then that of other rows with the same training images.
    measured = rows.groupby("data", dropna=False).test_data
    known = measured.transform("first").where(measured.transform("nunique") == 1)
    rows["test_data"] = rows.test_data.fillna(known)
    rows.loc[rows.method == "none", ["temperature", "beta"]] = np.nan  # have no meaning there
    blanks = dict.fromkeys(("alpha", "val_size", "draw", "soft_warmup"), 0.0)
    rows = rows.fillna(blanks | {"temperature": NO_TEMPERATURE})
    rows["student"] = [student_name(*pair) for pair in zip(rows.model, rows.width, strict=True)]
    rows["curve"] = [curve(row.test_curve, row.run_id) for row in rows.itertuples()]
    # The best of ten measured epochs is lower than that of a hundred (--eval-every).
    rows["epochs measured"] = [np.isfinite(c).sum() if len(c) else np.nan for c in rows.curve]
    epochs = zip(rows.curve, rows.best_val_epoch, strict=True)
    rows["val_epoch_test_acc"] = [c[int(e) - 1] if 1 <= e <= len(c) else np.nan for c, e in epochs]
    return rows


def check(rows: pd.DataFrame) -> None:
    """Raise UserError for a row that no run could have left."""
    no_epochs = ~rows.milestones.str.fullmatch(r"[1-9]\d*( [1-9]\d*)*")
    accuracies = rows[["test_acc", "best_test_acc", "val_acc", "best_val_acc"]]
    for wrong, what in (
        (rows.seed.isna() | (rows.seed % 1 != 0) | (rows.model == ""), "no whole seed or no model"),
        (
            (rows.epochs % 1 != 0) | (rows.epochs < (rows.role != "teacher")),
            "no whole number of epochs",
        ),
        ((rows.schedule == "step") & no_epochs, "a step schedule and no milestones"),
        ((rows.seconds < 0) | (rows.seconds > 1e10), "seconds that no run took"),
        (((accuracies < 0) | (accuracies > 1)).any(axis=1), "an accuracy that is no fraction of 1"),
    ):
        if wrong.any():
            raise UserError(f"results.csv: {rows.run_id[wrong].iloc[0]} has {what}: mend that row")


def curve(text: object, run_id: str) -> np.ndarray:
    """test_curve as numbers, one an epoch; empty where it is blank. Raises UserError."""
    try:
        return np.array([] if pd.isna(text) else str(text).split(), dtype=float)
    except ValueError:
        raise UserError(
            f"results.csv: the test_curve of {run_id} is not numbers with spaces between: "
            "mend that row"
        ) from None


def student_name(model: str, width: float) -> str:
    """`cnn`, or `cnn (width 8)` where that is not the model's own."""
    default = MODELS[model].DEFAULT_WIDTH if model in MODELS else width
    return model if np.isnan(width) or width == default else f"{model} (width {width:g})"


def split(rows: pd.DataFrame, asked: str | None = None) -> tuple[list[Protocol], pd.DataFrame]:
    """All protocols, the main one first, and the teachers that belong to none of them.

    The main one has students with a teacher and is fully annealed, if there is one.
    `asked` is a key of METRICS; None takes each protocol's own: the last epoch where the schedule
    is annealed, else the epoch that validation chose, else the best epoch.
    """
    rows, key_names = clean(rows), [*PROTOCOL, *IMAGES]
    teachers = rows[rows.role == "teacher"]
    found = [
        protocol(dict(zip(key_names, key, strict=True)), part, teachers, asked)
        for key, part in rows[rows.role != "teacher"].groupby(key_names, dropna=False)
    ]
    tell_apart(found)
    found.sort(key=lambda p: ((p.rows.method == "none").all(), not p.annealed, -len(p.rows)))
    used = {run_id for each in found for run_id in each.teachers.run_id}
    return found, teachers[~teachers.run_id.isin(used)]


def tell_apart(found: list[Protocol]) -> None:
    """Add the images' checksums to the settings of protocols that differ in nothing else."""
    keys = [tuple(each.settings[name] for name in PROTOCOL) for each in found]
    for each, key in zip(found, keys, strict=True):
        if keys.count(key) > 1:
            each.settings["images"] = " and ".join(f"{each.settings[name]:.0f}" for name in IMAGES)


def protocol(
    settings: dict, rows: pd.DataFrame, teachers: pd.DataFrame, asked: str | None
) -> Protocol:
    """The rows of one protocol, each run once."""
    same = (teachers[list(settings)].fillna(0) == pd.Series(settings).fillna(0)).all(axis=1)
    # A teacher trained with the same settings, from no other weights, is also that model alone,
    # unless a run of it exists.
    twins = teachers[same & teachers.student.isin(rows.student) & (teachers.weights == "")]
    runs = with_variants(pd.concat([rows, twins]))
    own = "val" if rows.val_epoch_test_acc.notna().any() else "best"
    metric = asked or ("last" if is_annealed(settings) else own)
    runs = runs.assign(value=runs[METRICS[metric][0]], val=runs[METRICS[metric][1]])

    cell = [*CELL, "seed"]
    first = runs.groupby(cell).run_id.transform("first")
    double = runs.duplicated(cell)
    left_out = [
        (row.run_id, f"same cell and seed as `{first[row.Index]}`")
        for row in runs[double & (runs.role != "teacher")].itertuples()
    ]
    kept = runs[~double]
    left_out += [(run_id, "no accuracy") for run_id in kept.run_id[kept.value.isna()]]
    return Protocol(settings, metric, kept, its_teachers(settings, rows, teachers), left_out)


def with_variants(rows: pd.DataFrame) -> pd.DataFrame:
    """Sorted rows with `kind` (the variant without beta and teacher), `own` and `variant`.

    `own` is what the variant says of beta, warm-up and layers. The weight of the hard loss, where
    it is not 1 - alpha, is in the variant where it is not the recipe's or a student's method has
    several.

    Where several teachers taught the same cell and seed, each makes a variant of its own, both with
    and without T², so that these can still be compared. `by` is the teacher: one for each seed is
    a single variant, which the report notes.
    """
    taught = rows.method != "none"
    kind = (rows.method + np.where(rows.scale_t2, T2, "")).where(taught, ALONE)
    kind = kind.where(taught | (rows.alpha == 0), CONTROL)
    # One that the first batch says is another number for each seed.
    rows = rows.assign(beta=rows.beta.where(~rows.auto_beta))
    own = pd.Series([f", β {b:g}" if b == b else "" for b in rows.beta], rows.index)
    own += np.where(rows.auto_beta, ", β auto", "")
    own += [f", warm-up {epochs:g}" if epochs else "" for epochs in rows.soft_warmup]
    own += (", answers " + rows.answers).where(rows.answers != "", "")
    for who in ("student", "teacher"):
        layers = rows[f"{who}_layers"]
        own += (f", {who} " + layers).where(layers != "", "")
    hard = rows.hard_weight.groupby([rows.student, rows.method]).transform("nunique", dropna=False)
    each = zip(rows.recipe, rows.method, rows.epochs.astype(int), strict=True)
    usual = [weights_of(*key).get("hard_weight") if key[0] in RECIPES else None for key in each]
    told = rows.hard_weight.where((hard > 1) | (rows.hard_weight != pd.Series(usual, rows.index)))
    told = [f", hard × {w:g}" if w == w else "" for w in told]
    rows = rows.assign(kind=kind, own=own, variant=kind + told + own, last=rows.role == "teacher")
    rows = rows.sort_values([*CELL, "seed", "last", "run_id"], kind="stable", ignore_index=True)
    rows["by"] = teacher_names(rows)
    several = rows.groupby([*CELL, "seed"]).by.transform("nunique") > 1
    taught = rows.method != "none"
    siblings = rows.student + "/" + rows.method + "/" + rows.beta.astype(str)
    torn = taught & siblings.isin(siblings[several & taught])
    rows["variant"] += ("; teacher " + rows.by).where(torn, "")
    return rows


def teacher_names(rows: pd.DataFrame) -> pd.Series:
    """Each row's teacher: its run id, and its checkpoint's SHA where several have that run id."""
    shas = rows.groupby("teacher").teacher_sha
    known = rows.teacher_sha.astype(object)
    for other in (shas.transform("first"), ""):  # pandas 2 warns of fillna here
        known = known.where(known.notna(), other)
    return rows.teacher.where(shas.transform("nunique") < 2, rows.teacher + " (" + known + ")")


def its_teachers(settings: dict, rows: pd.DataFrame, teachers: pd.DataFrame) -> pd.DataFrame:
    """The teachers that a protocol's rows name; where there is none, those of the same data."""
    data = pd.Series({name: settings[name] for name in DATA_SETTINGS})
    if (rows.teacher[rows.method != "none"] != "").any():
        return teachers[teachers.run_id.isin(rows.teacher)]
    return teachers[(teachers[list(data.index)] == data).all(axis=1)]


def curves(rows: pd.DataFrame) -> pd.DataFrame:
    """Test accuracy by epoch (from 1), a column a seed; without epochs that one did not test."""
    table = pd.DataFrame({row.seed: pd.Series(row.curve) for row in rows.itertuples()})
    table.index += 1
    return table.dropna(axis=1, how="all").dropna()


def short_ids(rows: pd.DataFrame) -> str:
    """The run ids of one cell: `cnn-kd-a0.5-T10-s{0,1,2}`, or one after the other."""
    pairs = zip(rows.run_id, rows.seed, strict=True)
    stems = {re.sub(rf"-s{seed}(?=-|$)", "-s*", run_id, count=1) for run_id, seed in pairs}
    if len(rows) > 1 and len(stems) == 1 and "-s*" in (stem := stems.pop()):
        seeds = "-s{" + ",".join(map(str, sorted(rows.seed))) + "}"
        return f"`{stem.replace('-s*', seeds)}`"
    return ", ".join(f"`{run_id}`" for run_id in rows.run_id)
