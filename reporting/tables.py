"""Results as text: one frame with a row a cell, and the Markdown tables that select from it."""

from collections.abc import Callable
from datetime import timedelta

import numpy as np
import pandas as pd

from engine.cells import REFERENCE
from reporting import stats
from reporting.compare import KD, METHODS, Results
from reporting.rows import (
    ALONE,
    CELL,
    CONTROL,
    NO_TEMPERATURE,
    PROTOCOL,
    Protocol,
    applies,
    is_reference,
    short_ids,
)

ROUNDING = 0.002  # by which one teacher's accuracy may differ from processor to processor
NONE = "—"  # a cell that is missing, or a figure that cannot be given
MARKS = {1: " †", -1: " ‡", 0: ""}  # above, below, neither, after Holm's correction
LEFT = ("student", "method", "cell", "role", "model", "run ids", "column", "students", "teachers")
LEFT += ("setting", "epoch")
STEP = ("schedule", "milestones", "gamma")
SAME = ("amp", "device", "machine", "torch", "commit", "data", "test_data", "teacher")
SAME += ("teacher_sha", "epochs measured")
LOGGED = ("amp", "device", "machine", "threads", "ranks", "torch", "python", "numpy")
LOGGED += ("data", "test_data", "weights")


def fixed(value: float, digits: int = 2, sign: str = "") -> str:
    """Rounded to so many digits; — for NaN.

    Rounded to nine digits first: a mean like 61.245 must not depend on its last bit, which differs
    between versions of NumPy.
    """
    value = float(value)  # NumPy's floats round by another rule
    if np.isnan(value):
        return NONE
    return f"{round(round(value, 9), digits) + 0.0:{sign}.{digits}f}".replace("-", "−")


def percent(value: float) -> str:
    """0.6128 as 61.28."""
    return fixed(100 * value)


def points(value: float) -> str:
    """0.0045 as +0.45: a difference in percentage points."""
    return fixed(100 * value, sign="+")


def spread(cell: pd.Series) -> str:
    """`61.28 ± 0.21`, and the mean alone where there is no standard deviation."""
    return percent(cell["mean"]) + (f" ± {percent(cell['std'])}" if cell["std"] >= 0 else "")


def several(values: pd.Series) -> str:
    """Mean ± standard deviation of a column over seeds."""
    return spread(values.agg(["mean", "std"]))


def over_seeds(values: list[float] | pd.Series, words: Callable[[float], str] = points) -> str:
    """The mean with Student's interval over seeds; the mean alone for a single seed."""
    values = pd.Series(values, dtype=float).dropna()
    return with_interval(values.mean(), stats.quantile(len(values) - 1) * values.sem(), words)


def gain(test: pd.Series) -> str:
    """`+0.30 [+0.10, +0.50] †`: with interval and mark, and n where it has fewer than its cell."""
    fewer = f" (n {test.n})" if 0 < test.n < test.seeds else ""
    return with_interval(test.difference, test.half) + MARKS[test.sign] + fewer


def with_interval(value: float, half: float, words: Callable[[float], str] = points) -> str:
    """`+0.30 [+0.10, +0.50]`, the value alone where there is no interval."""
    interval = "" if np.isnan(half) else f" [{words(value - half)}, {words(value + half)}]"
    return words(value) + interval


def span(values: pd.Series, words: Callable[[float], str] = "{:g}".format) -> str:
    """`5 to 10`, the smallest and the largest; `10` where they read alike."""
    low, high = words(values.min()), words(values.max())
    return low if low == high else f"{low} to {high}"


def temperature(t: float) -> str:
    return NONE if t == NO_TEMPERATURE else f"{t:g}"


def plural(count: int, noun: str) -> str:
    return f"{count:,} {noun}{'' if count == 1 else 's'}"


def duration(seconds: pd.Series) -> str:
    """Its sum as `1:55:41`."""
    return str(timedelta(seconds=round(seconds.sum())))


def distinct(values: pd.Series) -> list[str]:
    """Every value of a column once, as text, numbers without their `.0`."""
    known = values[values.astype(object) != ""].dropna()
    return sorted({f"{v:.15g}" if isinstance(v, float) else str(v) for v in known})


def mixed(rows: pd.DataFrame) -> str:
    """What runs should have in common and do not: it may cause a difference between cells."""
    names = [f"`{name}`" for name in SAME if len(distinct(rows[name])) > 1]
    return f" The runs differ in {', '.join(names)}." if names else ""


def title(settings: dict) -> str:
    """The data, the length, and every setting that is not the reference protocol's."""
    parts = [str(settings["dataset"]), f"{settings['train_size']:,.0f} training images"]
    if settings["val_size"]:
        parts.append(f"{settings['val_size']:,.0f} for validation")
    parts += [plural(int(settings["epochs"]), "epoch"), schedule(settings)]
    told = ("dataset", "train_size", "val_size", "epochs", "t_max", *STEP)
    for name in PROTOCOL:
        value = settings[name]
        if name not in told and value != REFERENCE[name]:
            words = value if isinstance(value, str) else f"{value:g}"
            parts.append(name if REFERENCE[name] is False else f"{name} {words}")
    if "images" in settings:
        parts.append(f"images {settings['images']}")
    return ", ".join(parts) + (" (the reference's protocol)" if is_reference(settings) else "")


def schedule(settings: dict) -> str:
    """`T_max 200`, or `lr × 0.1 after epoch 150 180 210`."""
    if settings["schedule"] == "step":
        return f"lr × {settings['gamma']:g} after epoch {settings['milestones']}"
    return f"T_max {settings['t_max']:g}"


def sheet(results: Results) -> pd.DataFrame:
    """Every cell as text, by CELL: a column a figure.

    For each `against` the columns ("−", against), its gain, ("points", against) and ("p", against).
    """
    cells, text = results.cells, results.cells.index.to_frame()
    text = text.rename(columns={"variant": "method", "alpha": "α", "temperature": "T"})
    text["α"] = text["α"].map("{:g}".format)
    text["T"] = text["T"].map(temperature)
    text["cell"] = "α " + text["α"] + (", T " + text["T"]).where(text["T"] != NONE, "")
    text["n"], text["run ids"] = cells.n.astype(str), cells.run_ids
    text["accuracy"], text["validation"] = cells.apply(spread, axis=1), cells.val.map(percent)
    text["agreement"], text["ECE"] = cells.agreement.map(percent), cells.ece.map(percent)
    text["KL"] = [fixed(kl, 3) for kl in cells.teacher_kl]
    text["teacher_sha"] = cells.teacher_sha.replace("", NONE)
    for against, tests in results.tests.groupby("against"):
        tests = tests.set_index(CELL).join(cells.n.rename("seeds"))
        text["−", against] = tests.apply(gain, axis=1)
        text["points", against] = tests.difference.map(points) + tests.sign.map(MARKS)
        text["p", against] = tests.p_holm.map(lambda p: "< 0.001" if p < 0.001 else fixed(p, 3))
    most = cells.n.groupby(CELL[:2]).transform("max")
    marked = text.accuracy.where(~cells.best, "**" + text.accuracy + "**")
    marked += (" (n " + text.n + ")").where((cells.n > 0) & (cells.n < most), "")
    over = results.tests[results.tests.against == ALONE].set_index(CELL).sign
    marked += over.reindex(cells.index, fill_value=0).map(MARKS)
    text["marked"] = marked.where(~cells.picked, marked + " (chosen)")
    return text.fillna(NONE)


def look(text: pd.DataFrame, cell: tuple | None, column: str | tuple[str, str]) -> str:
    """One figure of a sheet; — if there is no such cell or column."""
    return text.at[cell, column] if cell in text.index and column in text else NONE


def count(tests: pd.DataFrame, sign: int) -> str:
    """How many comparisons have this sign after correction; — where none has a p."""
    return str((tests.sign == sign).sum()) if tests.p.notna().any() else NONE


def show(frame: pd.DataFrame, *columns: str | tuple[str, str]) -> str:
    """Its columns as a Markdown table; empty for no row.

    Columns with nothing but — are left out, except the first.
    """
    shown = [name for name in columns if name in frame and (frame[name] != NONE).any()]
    if columns and columns[0] in frame and columns[0] not in shown:
        shown.insert(0, columns[0])
    header = [name if isinstance(name, str) else heading(*name) for name in shown]
    rule = [":---" if name in LEFT else "---:" for name in shown]
    lines = [header, rule, *frame[shown].to_numpy().tolist()] if len(frame) else []
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def heading(what: str, against: str) -> str:
    """`− alone`, or `p`."""
    return f"− {ALONE if against == METHODS else against}" if what == "−" else what


def show_lines(lines: list[dict[str, str]]) -> str:
    """`show` of lines that name their own columns, — where one lacks another's; empty for none."""
    frame = pd.DataFrame(lines).fillna(NONE)
    return show(frame, *frame)


def pivot(text: pd.Series, last: pd.Series | None = None) -> str:
    """T down, α across, of text by CELL; `last` is by CELL, too, and a line of its own."""
    table = text.droplevel(CELL[:2]).rename(None).unstack("alpha").fillna(NONE)
    corner = "T \\ α"
    table.insert(0, corner, table.index.map(temperature))
    if last is not None and len(last):
        line = last.droplevel([*CELL[:2], "temperature"]).reindex(table.columns[1:]).fillna(NONE)
        table.loc[CONTROL] = [CONTROL, *line]
    table.columns = [corner, *(f"{alpha:g}" for alpha in table.columns[1:])]
    return show(table, *table.columns)


def who(teachers: pd.DataFrame, students: pd.DataFrame | None = None) -> str:
    """Teachers and students alone: last and best epoch, mean ± std over seeds.

    Where images were held out, also the epoch that they chose, and what choosing on the test set
    adds to it.
    """
    both = {"teacher": teachers}
    if students is not None:
        both["student alone"] = students[students.variant == ALONE]
    lines = []
    for role, rows in both.items():
        for (model, *_), part in rows.groupby(["student", *PROTOCOL], dropna=False):
            first = part.iloc[0]
            flattered = (part.best_test_acc - part.val_epoch_test_acc).dropna()
            lines.append({
                "role": role, "model": model, "runs": str(len(part)),
                "parameters": fixed(first.params, 0, ","),
                "epochs, T_max": f"{first.epochs:g}, {schedule(first)}".replace("T_max ", ""),
                "last epoch": several(part.test_acc), "best epoch": several(part.best_test_acc),
                "validation's epoch": several(part.val_epoch_test_acc),
                "best − validation's": over_seeds(flattered) if len(flattered) else NONE,
                "ECE": several(part.ece), "run ids": short_ids(part),
            })  # fmt: skip
    return show_lines(lines)


def taught_by(protocol: Protocol) -> str:
    """The teachers with their accuracy: the CSV's own, and those that are not in it (--teacher)."""
    taught, known = protocol.rows[protocol.rows.role == "distill"], protocol.teachers
    # One that was measured on other test images counts as one from elsewhere, and so does one that
    # has another accuracy than the students' rows say: a checkpoint of the same name.
    on_these = protocol.settings["test_data"]
    known = known[~(known.test_data.notna() & (known.test_data != on_these))]
    measured = taught.teacher.map(known.drop_duplicates("run_id").set_index("run_id").test_acc)
    other = (taught.teacher_acc - measured).abs() > ROUNDING
    theirs = other.groupby(taught.teacher).all()  # all its students had another checkpoint
    parts = [
        f"{model}, {several(rows.test_acc)} in its last epoch"
        for model, rows in known[~known.run_id.isin(theirs.index[theirs])].groupby("student")
    ]
    remeasured = set(protocol.teachers.run_id) - set(known.run_id)
    away = taught[~taught.teacher.isin(known.run_id) | other]
    shas = away.teacher_sha.astype(object).fillna(NONE)  # without any they are read as numbers
    for (name, sha), rows in away.groupby(["teacher", shas]):
        where = "" if name in remeasured else " from elsewhere"
        grade = "" if rows.teacher_acc.isna().all() else f", {several(rows.teacher_acc[:1])} here"
        parts.append(f"{name}{where} (checkpoint {sha}){grade}")
    return "; ".join(parts) or NONE


def several_teachers(protocol: Protocol) -> str:
    """The teachers of cells whose seeds had different ones; empty where there is no such cell."""
    taught = protocol.rows[protocol.rows.role == "distill"]
    teachers = taught.groupby(CELL).by.unique()
    return ", ".join(sorted({name for names in teachers if len(names) > 1 for name in names}))


def made_with(results: Results) -> str:
    """The settings and what the runs were made on: students' and teachers' values."""
    parts = {"students": results.protocol.rows, "teachers": results.protocol.teachers}
    each = [row for part in parts.values() for row in part.to_dict("records")]
    settings = [name for name in PROTOCOL if any(applies(name, row) for row in each)]
    lines = [
        {"column": f"`{name}`"}
        | {who: ", ".join(distinct(part[name])) or NONE for who, part in parts.items()}
        for name in (*settings, *LOGGED, "commit", "teacher", "teacher_sha")
    ]
    lines = [line for line in lines if {line["students"], line["teachers"]} != {NONE}]
    return show(pd.DataFrame(lines), "column", "students", "teachers")


BLANK = -1.0  # a blank alpha or T of the reference, since NaN != NaN
KEY = ["role", "model", "alpha", "temperature"]
AGAINST = ["role", "model", "α", "T", "this project", "reference", "difference"]


def beside_reference(results: Results, reference: pd.DataFrame) -> pd.DataFrame:
    """The reference's rows that have ours, with `mean`, `std` (ours) and `difference`.

    Both are best epochs. Students: only plain kd, with any teacher. Teachers: only of the
    reference's own width and protocol.
    """
    teachers = results.protocol.teachers
    alike = [is_reference(row) for row in teachers.to_dict("records")]
    teachers = teachers[np.array(alike, dtype=bool) & (teachers.student == teachers.model)]
    rows = results.protocol.rows
    taught = rows[plain_kd(rows)]
    alone = rows[(rows.kind == ALONE) & (rows.role == "student")]
    ours = pd.concat([teachers, alone, taught])
    ours = ours[(ours.student == ours.model) & ours.best_test_acc.notna()]
    ours.loc[ours.role != "distill", KEY[2:]] = BLANK
    found = ours.groupby(KEY).best_test_acc.agg(["mean", "std"])
    table = reference.join(found, on=KEY, how="inner")
    return table.assign(difference=table["mean"] - table.test_acc)


def plain_kd(rows: pd.DataFrame) -> pd.Series:
    """Which are the reference's kd: no warm-up, no other answers, the labels x (1 - alpha)."""
    return (rows.kind == KD) & (rows.own == "") & rows.hard_weight.isna()


def reference_grid(cells: pd.DataFrame) -> pd.Series:
    """Differences of beside_reference's rows of one grid as text, by CELL."""
    index = pd.MultiIndex.from_frame(cells[KEY].set_axis(CELL, axis=1))
    return pd.Series(cells.difference.map(points).to_numpy(), index)


def reference_table(table: pd.DataFrame) -> str:
    """beside_reference as Markdown, a row a line; empty for none."""
    text = table[KEY].map(lambda v: v if isinstance(v, str) else NONE if v == BLANK else f"{v:g}")
    text["this project"] = table.apply(spread, axis=1)
    text["reference"] = table.test_acc.map(percent)
    text["difference"] = table.difference.map(points)
    return show(text.rename(columns={"alpha": "α", "temperature": "T"}), *AGAINST)
