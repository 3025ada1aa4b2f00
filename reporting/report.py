"""The two texts, from the Jinja templates beside this file: table.md and REPORT.md."""

import re
from pathlib import Path

import jinja2
import pandas as pd

from reporting import compare, pairs, replication, rows, stats, tables
from reporting.compare import Results
from utils import UserError, brief

TEMPLATES = jinja2.Environment(
    loader=jinja2.FileSystemLoader(Path(__file__).with_name("templates")),
    trim_blocks=True,
    lstrip_blocks=True,
    undefined=jinja2.StrictUndefined,
    keep_trailing_newline=True,
)
SHOWN = {
    compare: "KD METHODS of stand_ins",
    pairs: "accuracies beside_published heading minus several_kd sources usual_seeds",
    replication: "replication sentences",
    rows: "is_reference",
    stats: "LEVEL PRIOR",
    tables: "NONE beside_reference count distinct duration fixed look made_with mixed percent "
    "pivot plural points reference_grid reference_table several_teachers show taught_by title who",
}
for module, names in SHOWN.items():
    TEMPLATES.globals.update({name: getattr(module, name) for name in names.split()})


def read_reference(path: Path) -> pd.DataFrame:
    """The reference table, blanks as tables.BLANK; empty if there is no file. Raises UserError."""
    columns = [*tables.KEY, "test_acc"]
    if not path.exists():
        return pd.DataFrame(columns=columns)
    try:
        reference = pd.read_csv(path)[columns]
        reference[columns[2:]] = reference[columns[2:]].astype(float).fillna(tables.BLANK)
    except (OSError, ValueError, KeyError) as error:
        raise UserError(
            f"cannot read {path} ({brief(error)}): restore it from the repository"
        ) from None
    return reference


def write(
    name: str, found: list[Results], others: pd.DataFrame, reference: pd.DataFrame, pictures=()
) -> str:
    """The text of `name`, table.md or REPORT.md.

    `found` are the protocols of rows.split, compared, the main one first; `others` the teachers
    of none; `pictures` the pictures' names.
    """
    values = {"others": others, "reference": reference, "pictures": pictures}
    values["found"] = [(results, tables.sheet(results)) for results in found]
    values["pairs"] = pairs.tables(found)
    values["paired"] = pairs.members(values["pairs"])
    return render(name, values)


def render(name: str, values: dict) -> str:
    """A template's text without surplus blank lines."""
    text = TEMPLATES.get_template(f"{name}.j2").render(values)
    return re.sub(r"\n{3,}", "\n\n", text).strip() + "\n"
