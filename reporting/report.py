"""The two texts: table.md, which is printed, and REPORT.md, from the rows alone."""

from collections.abc import Iterable
from pathlib import Path

import numpy as np
import pandas as pd

from reporting import evidence, methods, sentences, stats, tables
from reporting.groups import PROTOCOL, Group
from utils import UserError

INTRODUCTION = """\
# Report

Written by `python summarize.py` from `results/results.csv` alone ({rows} rows); the same CSV
gives the same bytes; only the reference's own figures are from `results/reference.csv`. Tables name
the columns they come from; the run ids of every figure's rows are under "Cell by cell" and beside
the smaller tables, where `s{{0,1}}` stands for the seeds 0 and 1. Accuracies are in %, differences
in percentage points.

- ± is the standard deviation over seeds (n − 1). Intervals in brackets are 95 % intervals of the
  mean, Student's t over seeds.
- Differences are paired: each seed against the same seed, which shares initialisation, order and
  augmentation.
- p-values are two-sided, of the paired t-test, with Holm's correction over the cells of the table
  they stand in; "above" and "below" mean p ≤ 0.05 after it. Where a cell was picked by the very
  figures it is compared by, the correction is over all comparisons the pick could have led to."""


def read_reference(path: Path) -> pd.DataFrame:
    """The reference table, blanks as tables.BLANK; empty if there is no file. Raises UserError."""
    columns = ["role", "model", "alpha", "temperature", "test_acc"]
    if not path.exists():
        return pd.DataFrame(columns=columns)
    try:
        reference = pd.read_csv(path)[columns]
        reference[columns[2:]] = reference[columns[2:]].astype(float).fillna(tables.BLANK)
    except (OSError, ValueError, KeyError) as error:
        reason = str(error).splitlines()[0]
        raise UserError(f"cannot read {path} ({reason}): restore it from the repository") from None
    return reference


def table(found: list[Group], others: pd.DataFrame, reference: pd.DataFrame) -> str:
    """table.md: teacher and student, pivots, the reference, the sentences, group by group.

    `found` and `others` are groups.split's.
    """
    blocks = []
    for group in found:
        blocks += [f"## {tables.title(group.settings)}", tables.describe(group)]
        blocks += [tables.who_table(group)]
        blocks += pivots(group)
        blocks += ["### Beside the reference", tables.reference_part(group, reference)]
        blocks += ["### In sentences", sentences.sentences(group)]
    return join([*blocks, *other_teachers(others)])


def report(
    found: list[Group], others: pd.DataFrame, reference: pd.DataFrame, pictures: Iterable[str]
) -> str:
    """REPORT.md. `found` and `others` are groups.split's; `pictures` the names without .png."""
    count = sum(len(group.rows) + len(group.dropped) for group in found)
    teachers = pd.concat([others, *(group.teachers for group in found)]).run_id.nunique()
    blocks = [INTRODUCTION.format(rows=count + teachers)]
    if len(found) > 1:
        blocks.append(
            f"The CSV holds {len(found)} protocols. They are kept apart: no table, test or "
            "sentence mixes them."
        )
    blocks += picture_blocks(pictures)
    for group in found:
        blocks += group_blocks(group, reference)
    return join([*blocks, *other_teachers(others)])


def group_blocks(group: Group, reference: pd.DataFrame) -> list[str]:
    """Everything that is said of one protocol."""
    blocks = [f"## {tables.title(group.settings)}", tables.describe(group)]
    blocks += ["### Protocol and machine", protocol_table(group)]
    blocks += ["### Teacher and student alone", tables.who_table(group)]
    blocks += pivots(group)
    blocks += ["### Beside the reference", tables.reference_part(group, reference)]
    sections = {
        "Chosen on validation": evidence.validation_part,
        "Is it the teacher? The control and the T² factor": evidence.explanation_part,
        "Methods": methods.methods_part,
        "What the students learned": evidence.learned_part,
        "In sentences": sentences.sentences,
        "What could not be measured": sentences.gaps,
        "Cell by cell": evidence.cells_part,
    }
    for heading, write in sections.items():
        if text := write(group):
            blocks += [f"### {heading}", text]
    return blocks


def pivots(group: Group) -> list[str]:
    """The alpha x T pivot of every student and method."""
    blocks = []
    for grid in group.grids:
        blocks.append(f"### Student {grid.student}: {grid.variant}")
        blocks += [tables.accuracy_pivot(grid), tables.legend(grid, group)]
    return blocks


def other_teachers(teachers: pd.DataFrame) -> list[str]:
    """Teachers that no student row goes with."""
    if not len(teachers):
        return []
    lines = tables.teacher_lines(teachers)
    text = (
        "No student in the CSV goes with these (columns `test_acc`, `best_test_acc`), so no "
        "difference could be measured."
    )
    return ["## Teachers only", tables.markdown(tables.WHO, lines, left=2), text]


def protocol_table(group: Group) -> str:
    """The settings, and what the runs were made on."""
    lines = [[f"`{name}`", plain(group.settings[name])] for name in PROTOCOL]
    rows = pd.concat([group.rows, group.teachers])
    for name in ("amp", "device", "machine", "threads", "ranks", "torch", "python", "numpy"):
        lines.append([f"`{name}`", distinct(rows[name])])
    lines.append(["`commit`", distinct(rows.commit)])
    days = rows.finished_at.dropna().astype(str).str[:10]
    if len(days):
        lines.append(["`finished_at`", " to ".join(sorted({days.min(), days.max()}))])
    for who, part in (("students", group.rows), ("teachers", group.teachers)):
        seconds = stats.finite(part.seconds)
        lines.append([f"`seconds` of training, {who}", f"{seconds.sum():,.0f} in {len(seconds)}"])
    return tables.markdown(["column", "value"], lines, left=2)


def distinct(values: pd.Series) -> str:
    """Every value of a column, as text, once."""
    return ", ".join(sorted({plain(value) for value in values.dropna()})) or tables.NONE


def plain(value: object) -> str:
    """A number without its `.0`; any other value as it is."""
    return f"{value:.15g}" if isinstance(value, float | np.floating) else str(value)


CAPTIONS = {
    "heatmap": "Mean test accuracy of each cell in %; what its colours and marks mean stands "
    "below each panel.",
    "curves": "Test accuracy by epoch of the cell that stands for its grid and, where there is "
    "one, of the student alone; a band is from the lowest to the highest seed. The lower panel is "
    "their difference, paired by seed; its band is the 95 % interval at each epoch, not corrected "
    "for the number of epochs. The first epochs may lie below the picture. Column `test_curve`.",
    "lines": "Mean test accuracy against T, one line for each α.",
}


def picture_blocks(pictures: Iterable[str]) -> list[str]:
    """The pictures with their captions."""
    names = [name for name in CAPTIONS if name in pictures]
    blocks = ["## Pictures"] if names else []
    for name in names:
        blocks += [f"![{name}]({name}.png)", CAPTIONS[name]]
    return blocks


def join(blocks: Iterable[str]) -> str:
    return "\n\n".join(block for block in blocks if block) + "\n"
