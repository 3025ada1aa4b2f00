"""Turn results/results.csv into the tables, the pictures and the report.

    python summarize.py                   # prints results/table.md and writes it
    python summarize.py --metric last     # the last epoch's accuracy instead

Writes, below --out-dir: results/table.md, results/REPORT.md and the pictures that belong to it,
results/heatmap.png and curves.png; the pictures go to TensorBoard's IMAGES tab, too.
"""

import argparse
import sys
from pathlib import Path

import pandas as pd

sys.path.insert(0, str(Path(__file__).parent))  # python -P leaves it out

import flags
import utils
from engine import board
from engine.rows import csv_path, read_rows
from reporting import pairs, pictures, report
from reporting.compare import Results, compare
from reporting.rows import split
from values import folder


def main(argv: list[str] | None = None) -> None:
    args = parse(argv)
    path = csv_path(args.out_dir)
    rows = read_rows(path)
    if rows.empty:
        raise utils.UserError(
            f"no finished run in {path}: run `sh exp.sh` (or train_student.py, or distill.py) first"
        )
    if path.with_name("TRIAL.md").exists():
        utils.note(
            "these are a trial's runs, and each learning rate is a protocol here (minutes): what "
            f"compares them is `python trial.py --report --out-dir {args.out_dir}`, with the "
            "--tries and --fresh that they had"
        )
    reference = report.read_reference(utils.ROOT / "results" / "reference.csv")
    # The report takes each schedule's own metric, so that it is a function of the CSV alone.
    found, teachers = compared(rows)
    shown = compared(rows, args.metric)[0] if args.metric else found
    # A table of methods by pairs is its own picture.
    paired = pairs.members(pairs.tables(found))
    drawn = pictures.pictures([results for results in found if results not in paired])
    text = report.write("REPORT.md", found, teachers, reference, drawn)
    table = report.write("table.md", shown, teachers, reference)

    here = path.parent
    for name, png in drawn.items():
        utils.write_atomic(here / f"{name}.png", png)
    utils.write_atomic(here / "table.md", table.encode())
    utils.write_atomic(here / "REPORT.md", text.encode())
    if drawn:
        board.log_images(args.out_dir, drawn)
    utils.say(table)
    utils.say(f"written: {', '.join(['table.md', 'REPORT.md', *(f'{n}.png' for n in drawn)])}")
    more = [f"; {what}: {command}" for what, command in board.commands(args.out_dir).items()]
    utils.say(f"open {here / 'REPORT.md'}{''.join(more)}")


def compared(rows: pd.DataFrame, metric: str | None = None) -> tuple[list[Results], pd.DataFrame]:
    """Every protocol's results, the main one first, and the teachers that belong to none."""
    protocols, teachers = split(rows, metric)
    return [compare(protocol) for protocol in protocols], teachers


def parse(argv: list[str] | None) -> argparse.Namespace:
    parser = flags.Parser(description=__doc__.splitlines()[0], allow_abbrev=False)
    add = parser.add_argument
    add("--out-dir", type=folder, default=utils.ROOT, help="where results/ is (default: the "
        "repository)")  # fmt: skip
    add("--metric", choices=["best", "last"], help="what table.md shows: accuracy of the best or "
        "of the last epoch (default: the last where T_max = epochs or a milestone was passed; else "
        "the epoch chosen on validation; else the best)")  # fmt: skip
    return parser.parse_args(argv)


if __name__ == "__main__":
    utils.run_script(main)
