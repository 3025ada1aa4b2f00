"""The fair trial: every way to train a student is tuned alike, then measured with fresh seeds.

    python trial.py --stage search --train-size 1000 --width 16 --teacher T.pt --out-dir trial
    python trial.py --stage final ...     # the best of each side again, with more seeds
    python trial.py --stage fresh ...     # the winner of each side, with seeds that chose nothing
    python trial.py --report --out-dir trial

A stage reads the rows of the one before from results.csv; trial.sh runs all of them at all places.
What is tried and how it is chosen is in sides.py, why in docs/trial.md.
"""

import argparse
import sys
from pathlib import Path

import pandas as pd

sys.path.insert(0, str(Path(__file__).parent))  # python -P leaves it out

import flags
import sides
from engine.cells import OPTIMISER, Cell, Settings, flag, run_id
from engine.grid import run_command, settings_of, teacher_seed
from engine.rows import csv_path, read_rows
from reporting.rows import PROTOCOL, clean
from utils import Diverged, UserError, is_lead, note, run_script, say, write_atomic

STAGES = ("search", "final", "fresh")
STEPS, LEAST_EPOCHS = 2000, 20
# Set by the trial, so that their flags are refused.
OWN = ("epochs", "t_max", "schedule", "optimizer", "eval_every", "last_batch", "clip")
OWN += (*OPTIMISER, "seed")


def main(argv: list[str] | None = None) -> None:
    args = parse(argv)
    if args.report:
        write_report(args.out_dir, args.fresh)
        return
    args.epochs = args.t_max = args.eval_every = epochs_of(
        args.train_size, args.steps, args.batch_size
    )
    args.last_batch, args.clip, args.teacher_cache = "weigh", sides.CLIP, "auto"
    settings = settings_of(args)
    known = set() if args.overwrite else sides.diverged(args.out_dir)
    cells = [cell for cell in cells_of(args) if run_id(cell, settings) not in known]
    try:
        run_command(cells, args)
    except Diverged:
        # Expected: the search goes beyond the largest useful learning rate. All others have their
        # rows by now, so a run without one has diverged.
        there = set(read_rows(csv_path(args.out_dir)).run_id)
        lost = {run_id(cell, settings) for cell in cells} - there
        note(f"{len(lost)} of {len(cells)} runs diverged and left no row")
        if is_lead():
            sides.note_diverged(args.out_dir, lost)


def epochs_of(images: int, steps: int = STEPS, batch_size: int = Settings.batch_size) -> int:
    """Epochs of a run on so many images: `steps` steps, rounded up, and LEAST_EPOCHS at least."""
    an_epoch = -(-images // batch_size)
    return max(-(-steps // an_epoch), LEAST_EPOCHS)


def cells_of(args: argparse.Namespace) -> list[Cell]:
    """The cells of a stage at a place, all sides together.

    Raises UserError where the previous stage is not done, or the teacher is not the side's.
    """
    mine = rows_here(args) if args.stage != "search" else None
    seed, fresh = teacher_seed(args), sides.fresh_seeds(args.train_size, args.fresh)
    cells = []
    for side in dict.fromkeys(args.sides):
        if (side == sides.KD_SAME) != (seed == sides.SAME_TEACHER):
            raise UserError(
                f"side {side} with a teacher of seed {seed}: seed {sides.SAME_TEACHER} is "
                f"{sides.KD_SAME}'s, any other the other sides'"
            )
        if args.stage == "search":
            numbers, seeds = range(sides.BUDGET), sides.SEARCH_SEEDS
        elif args.stage == "final":
            numbers, seeds = sides.finalists(mine[mine.side == side]), sides.FINAL_SEEDS
        else:
            best = sides.winner(mine[mine.side == side])
            numbers, seeds = [] if best is None else [best], fresh
        if not numbers:
            before = STAGES[STAGES.index(args.stage) - 1]
            raise UserError(f"side {side} has no runs to choose from: run --stage {before} first")
        configs = [sides.SIDES[side][number] for number in numbers]
        cells += sides.cells(side, configs, seeds, args.width, seed)
    return cells


def rows_here(args: argparse.Namespace) -> pd.DataFrame:
    """The sides' rows at this place, with these settings."""
    rows = sides.with_sides(clean(read_rows(csv_path(args.out_dir))))
    here = rows.width == args.width
    for name in PROTOCOL:
        if name not in OPTIMISER:
            here &= rows[name] == getattr(args, name)
    return rows[here]


def write_report(out_dir: Path, fresh: int | None) -> None:
    """Write results/TRIAL.md and its pictures; `fresh` as in reporting.trial.read.

    Raises UserError where there is no run of a trial, or runs of several.
    """
    from reporting import report, trial, trial_page, trial_pictures  # a stage needs none of them

    path = csv_path(out_dir)
    found = trial.read(clean(read_rows(path)), fresh, sides.diverged(out_dir))
    drawn = trial_pictures.pictures(found)
    for name, png in drawn.items():
        write_atomic(path.parent / f"{name}.png", png)
    text = report.render("TRIAL.md", trial_page.page(found) | {"pictures": list(drawn)})
    write_atomic(path.parent / "TRIAL.md", text.encode())
    say(text)
    say(f"written: {', '.join(['TRIAL.md', *(f'{name}.png' for name in drawn)])}")


def parse(argv: list[str] | None) -> argparse.Namespace:
    p = flags.parser(__doc__.splitlines()[0])
    flags.add_teacher(p)
    group = p.add_argument_group("trial")
    what = group.add_mutually_exclusive_group(required=True)
    what.add_argument("--stage", choices=STAGES, help="what to train")
    what.add_argument("--report", action="store_true", help="write results/TRIAL.md")
    add = group.add_argument
    add("--sides", nargs="+", choices=sides.SIDES, default=list(sides.MAIN), metavar="SIDE",
        help=f"which of {', '.join(sides.SIDES)}")  # fmt: skip
    add("--width", type=flags.WIDTH, default=16, help="channels of the student's first stage")
    add("--steps", type=flags.COUNT, default=STEPS,
        help=f"length of a run, in steps; {LEAST_EPOCHS} epochs at least")  # fmt: skip
    add("--fresh", type=flags.WIDTH, metavar="N",
        help=f"fresh seeds: how many measure the winners (default: {sides.FRESH}, "
        f"with more than {sides.MANY:,} images {sides.FEWER_FRESH})")  # fmt: skip
    p.set_defaults(train_size=5000, val_size=5000)
    for action in p._actions:
        if action.dest in (*OWN, "milestones", "gamma"):  # refused
            action.help = argparse.SUPPRESS
    args = p.parse_args(argv)
    for name in OWN:
        if getattr(args, name) != p.get_default(name):
            raise UserError(f"{flag(name)} is set by the trial: leave it out")
    if args.fresh == 1:
        raise UserError("--fresh 1 gives no interval: two fresh seeds at least")
    if not args.train_size or not args.val_size:
        raise UserError("a trial needs --train-size and --val-size: how many images of each")
    return args


if __name__ == "__main__":
    run_script(main)
