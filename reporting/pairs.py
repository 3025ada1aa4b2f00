"""The table that distillation papers print: methods down, pairs of teacher and student across.

It is about the last epoch's test accuracy, whatever the report shows elsewhere. A line is a method
in one setting, a column a pair in one learning rate.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
import pandas as pd

from engine.cells import defaults
from engine.recipes import beta_of, weights_of
from losses import METHODS, parts
from reporting import stats
from reporting.compare import KD, Results
from reporting.rows import ALONE, CONTROL, METRICS, NO_TEMPERATURE, PROTOCOL, T2
from reporting.tables import (
    MARKS,
    NONE,
    fixed,
    points,
    several,
    show_lines,
    title,
    with_interval,
)
from utils import ROOT, UserError, brief

ACCURACY = METRICS["last"][0]
COLUMN, LINE = ["network", "student", "lr"], ["method", "setting"]
FIRST = ("none", "")  # the line of the student alone
MARK = {ALONE: MARKS, KD: {1: " ↑", -1: " ↓", 0: ""}}
PUBLISHED = ROOT / "results" / "published.csv"
THEIRS = {"dataset": "cifar100", "train_size": 50000, "epochs": 240}  # with the crd recipe
# Where term, weight and compared layers are those of the published table, by method: the beginnings
# of both networks' names. All other figures are marked (docs/protocol.md).
ALIKE = dict.fromkeys(("none", KD, "rkd", "pkt", "crd"), ("",))
ALIKE |= {"sp": ("resnet", "vgg"), "nst": ("resnet",), "vid": ("resnet",)}
ALIKE |= {"dkd": ("resnet32x4", "resnet8x4")}
UNLIKE = " ≠"


@dataclass(frozen=True)
class Pairs:
    """A table's runs and comparisons.

    `rows` are runs with COLUMN and LINE; those without a teacher are there once for each of their
    student's columns. `tests`, a row a comparison: COLUMN, LINE, `over` (the student alone or kd)
    and what stats.contrasts gives, with `p_holm`, `sign` and `visible` as in compare.Results.
    """

    members: list[Results]  # protocols that differ in nothing but lr
    rows: pd.DataFrame
    tests: pd.DataFrame


def tables(found: list[Results]) -> list[Pairs]:
    """A CSV's tables. Protocols that differ only in lr, as a recipe's networks may, share one."""
    groups: dict[tuple, list[Results]] = {}
    for results in found:
        shared = {**results.protocol.settings, "lr": None, "images": None}
        groups.setdefault(tuple(map(str, shared.values())), []).append(results)
    found = [(group, runs(group)) for group in groups.values()]
    return [Pairs(group, rows, comparisons(rows)) for group, rows in found if is_wanted(rows)]


def members(found: list[Pairs]) -> list[Results]:
    """The results that have a place in one of the tables."""
    return [results for table in found for results in table.members]


def is_wanted(rows: pd.DataFrame) -> bool:
    """Whether runs have a table: of recipe crd all that have a teacher.

    Else two pairs with two methods each, or a pair with three whose student is not the reference's.
    """
    taught = rows[rows.role == "distill"]
    many = taught.groupby(["network", "student", "model"]).method.nunique()
    three = many[many.index.get_level_values("model") != "cnn"] >= 3
    return (taught.recipe == "crd").any() or (many >= 2).sum() >= 2 or three.any()


def runs(group: list[Results]) -> pd.DataFrame:
    """Pairs.rows: every run with a last epoch but the controls', which no paper's table has."""
    rows = pd.concat([results.protocol.rows for results in group], ignore_index=True)
    rows = rows[rows[ACCURACY].notna() & (rows.kind != CONTROL)]
    rows = rows.assign(setting=[setting(row) for row in rows.itertuples()])
    # A teacher's run id is <network>-teacher-s<seed>...
    network = rows.teacher.astype(str).str.split("-teacher-").str[0].replace("", NONE)
    taught = rows.role == "distill"
    with_teacher, shared = rows[taught].assign(network=network[taught]), rows[~taught]
    columns = with_teacher[COLUMN].drop_duplicates()
    rows = pd.concat([shared.merge(columns, on=COLUMN[1:]), with_teacher], ignore_index=True)
    # Several teachers of one network taught a line's seed: each makes a line of its own.
    twice = rows.groupby([*COLUMN, *LINE, "seed"]).by.transform("nunique") > 1
    torn = twice.groupby([rows[name] for name in (*COLUMN, *LINE)]).transform("any")
    rows["setting"] += (", teacher " + rows.by).where(torn & (rows.role == "distill"), "")
    return rows


def setting(row) -> str:
    """`α 0.9, T 4, × T²`; empty for the student alone."""
    if row.kind == ALONE:
        return ""
    text = f"α {row.alpha:g}" + (f", hard × {row.hard_weight:g}" if row.hard_weight >= 0 else "")
    if row.temperature != NO_TEMPERATURE:
        text += f", T {row.temperature:g}"
    return text + T2.replace(" ×", ", ×") * row.scale_t2 + row.own


def place(method: str, setting: str) -> tuple:
    """Where a line stands: the student alone, kd, the others as in METHODS, then two at once."""
    order = {"none": -1} | {name: i for i, name in enumerate(METHODS)}
    parts = method.split("+")
    return len(parts), tuple(order.get(part, len(order)) for part in parts), method, setting


def comparisons(rows: pd.DataFrame) -> pd.DataFrame:
    """Pairs.tests: every line against the student alone and against every line of kd.

    Noise is that of all networks of a column; Holm's correction is over the whole table.
    """
    parts = []
    for column, part in rows.groupby(COLUMN):
        values = part.pivot(index="seed", columns=LINE, values=ACCURACY)
        values.columns = values.columns.to_flat_index()
        kinds = part.drop_duplicates(LINE).set_index(LINE)
        # As in compare: cells of one alpha move together along T.
        without = kinds.kind.str.removesuffix(T2)
        alike = list(zip(without[values.columns], kinds.alpha[values.columns], strict=True))
        lines = [line for line in values if line != FIRST]
        kds = [line for line in lines if line[0] == KD]
        pairs = [(line, FIRST) for line in lines if FIRST in values]
        pairs += [(line, kd) for line in lines if line not in kds for kd in kds]
        table = stats.contrasts(values, pairs, alike)
        table[LINE] = pd.DataFrame([line for line, _ in pairs], columns=LINE)
        table["over"] = [ALONE if other == FIRST else KD for _, other in pairs]
        parts.append(table.assign(**dict(zip(COLUMN, column, strict=True))))
    tests = pd.concat(parts, ignore_index=True)
    tests["p_holm"], tests["visible"] = stats.holm(tests.p), stats.visible(tests)
    tests["sign"] = stats.signs(tests)
    return tests


# ---------------------------------------------------------------- as text


def heading(pairs: Pairs) -> str:
    """The settings that a table's runs share; where there are several lr, its columns have them."""
    settings, rates = pairs.members[0].protocol.settings, sorted(pairs.rows.lr.unique())
    several_rates = {"lr": " or ".join(f"{rate:g}" for rate in rates)} if len(rates) > 1 else {}
    return title(settings | several_rates)


def usual_seeds(pairs: Pairs) -> int:
    """How many seeds most figures are over."""
    return int(pairs.rows.groupby([*COLUMN, *LINE]).size().mode().max())


def lines(pairs: Pairs, figure: Callable[[pd.DataFrame, pd.DataFrame], str]) -> list[dict]:
    """Every line for tables.show_lines, with figure(its rows, its tests) under each column."""
    keys = [*COLUMN, *LINE]
    cells, tests = (dict(list(frame.groupby(keys))) for frame in (pairs.rows, pairs.tests))
    found = []
    for line in sorted({key[-2:] for key in cells}, key=lambda line: place(*line)):
        text = dict(zip(LINE, ("student alone", "") if line == FIRST else line, strict=True))
        for column, name in names(pairs).items():
            own = (*column, *line)
            there = own in cells
            text[name] = figure(cells[own], tests.get(own, pairs.tests[:0])) if there else NONE
        found.append(text)
    return found


def names(pairs: Pairs) -> dict[tuple, str]:
    """The columns in order: `resnet56 → resnet20`, with the lr where there are several."""
    columns = pairs.rows[COLUMN].drop_duplicates().sort_values(COLUMN).itertuples(index=False)
    rate = ", lr {2:g}" if pairs.rows.lr.nunique() > 1 else ""
    return {tuple(column): ("{0} → {1}" + rate).format(*column) for column in columns}


def teachers(pairs: Pairs) -> dict[tuple, pd.Series]:
    """The accuracies of each column's teachers: as their students' rows have it, or their own."""
    known = pd.concat([results.protocol.teachers for results in pairs.members])
    known = known.drop_duplicates("run_id").set_index("run_id")[ACCURACY]
    taught = pairs.rows[pairs.rows.role == "distill"].drop_duplicates([*COLUMN, "by"])
    grade = taught.teacher_acc.fillna(taught.teacher.map(known))
    return dict(list(grade.groupby([taught[name] for name in COLUMN])))


def accuracies(pairs: Pairs) -> str:
    """Mean ± std in %, the teachers first. A line is above kd if it is above every line of kd."""
    usual = usual_seeds(pairs)

    def figure(runs: pd.DataFrame, tests: pd.DataFrame) -> str:
        text = several(runs[ACCURACY]) + ("" if len(runs) == usual else f" (n {len(runs)})")
        for over, marks in MARK.items():
            signs = tests.sign[tests.over == over].unique()
            text += marks[signs[0]] if len(signs) == 1 else ""
        return text

    grades = {name: several(teachers(pairs)[column]) for column, name in names(pairs).items()}
    return show_lines([{"method": "teacher", "setting": "", **grades}, *lines(pairs, figure)])


def several_kd(pairs: Pairs) -> bool:
    """Whether a column has several lines of kd."""
    kd = pairs.rows[pairs.rows.method == KD]
    return bool((kd.groupby(COLUMN).setting.nunique() > 1).any())


def minus(pairs: Pairs, over: str) -> str:
    """Every line minus the student alone or kd, in points, with 95 % intervals.

    Without those that have several lines of kd to be compared with.
    """
    usual = usual_seeds(pairs)

    def figure(runs: pd.DataFrame, tests: pd.DataFrame) -> str:
        tests = tests[tests.over == over]
        if len(tests) != 1:
            return NONE
        test = tests.iloc[0]
        fewer = f" (n {test.n})" if test.n < usual else ""
        return with_interval(test.difference, test.half) + fewer + MARK[over][test.sign]

    return show_lines([line for line in lines(pairs, figure) if has_figures(line)])


def has_figures(line: dict) -> bool:
    return any(value != NONE for name, value in line.items() if name not in LINE)


def beside_published(pairs: Pairs) -> str:
    """Published accuracies of the same pair and method, in % and ours minus them in points.

    Of cells with the recipe's weights alone. Empty where these runs have not the recipe, the images
    and the length that those have.
    """
    settings = pairs.members[0].protocol.settings
    usual = defaults("crd", "", THEIRS["epochs"]) | THEIRS
    rates = [defaults("crd", model, THEIRS["epochs"])["lr"] for model in pairs.rows.model]
    alike = np.array([is_recipes(row) for row in pairs.rows.itertuples()], bool)
    rows = pairs.rows[(pairs.rows.lr == rates) & alike]
    taught = (rows.role == "distill").groupby([rows[name] for name in COLUMN]).transform("any")
    pairs = replace(pairs, rows=rows[taught.astype(bool)])
    if pairs.rows.empty or any(settings[n] != usual[n] for n in PROTOCOL if n != "lr"):
        return ""
    found = []
    for epoch, part in read_published().groupby("epoch", sort=False):
        theirs = part.set_index(["teacher", "student", "method"]).accuracy

        def figure(runs: pd.DataFrame, tests: pd.DataFrame, theirs: pd.Series = theirs) -> str:
            *nets, method = key = (*runs[COLUMN[:2]].iloc[0], runs.method.iloc[0])
            text = beside(runs[ACCURACY].mean(), theirs.get(key))
            return text + UNLIKE * (text != NONE and not is_alike(nets, method))

        grades = {
            name: beside(teachers(pairs)[column].mean(), theirs.get((*column[:2], "teacher")))
            for column, name in names(pairs).items()
        }
        every = [{"method": "teacher", "setting": "", **grades}, *lines(pairs, figure)]
        found += [line | {"epoch": epoch} for line in every if has_figures(line)]
    return show_lines(found)


def is_alike(networks: list[str], method: str) -> bool:
    """Whether a published figure is of the same loss, weight and layers as the cell here."""
    return all(network.startswith(ALIKE.get(method, ())) for network in networks)


def is_recipes(row: NamedTuple) -> bool:
    """Whether a student has nothing else than the recipe says of its method."""
    usual, beta = weights_of("crd", row.method, THEIRS["epochs"]), beta_of("crd", row.method)
    hard = usual.get("hard_weight")
    return not parts(row.method) or (
        row.alpha == usual["alpha"]
        and row.temperature in (NO_TEMPERATURE, usual.get("temperature"))
        and row.scale_t2 == usual.get("scale_t2", False)
        and row.soft_warmup == usual.get("soft_warmup", 0)
        and (np.isnan(row.hard_weight) if hard is None else row.hard_weight == hard)
        and (np.isnan(row.beta) if beta is None else row.beta == beta)
        and not (row.auto_beta or row.answers or row.student_layers or row.teacher_layers)
    )


def beside(ours: float, theirs: float | None) -> str:
    """`70.66 (+0.12)`: theirs, in %, and ours, a fraction of 1, minus it."""
    return NONE if theirs is None else f"{fixed(theirs)} ({points(ours - theirs / 100)})"


def read_published() -> pd.DataFrame:
    """results/published.csv: accuracies in %. Raises UserError."""
    try:
        return pd.read_csv(PUBLISHED).astype({"accuracy": float})
    except (OSError, ValueError, KeyError) as error:
        raise UserError(
            f"cannot read {PUBLISHED} ({brief(error)}): restore it from the repository"
        ) from None


def sources() -> str:
    """`last: RepDistiller README; best: ...`: where each epoch's figures are from."""
    each = read_published().groupby("epoch", sort=False).source.unique()
    return "; ".join(f"{epoch}: {', '.join(found)}" for epoch, found in each.items())
