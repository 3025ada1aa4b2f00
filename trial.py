"""The fair trial: every way to train a student is tuned alike, then measured with fresh seeds.

    python trial.py --stage search --student resnet8 --train-size 1000 --teacher T.pt --out-dir out
    python trial.py --report --out-dir out

trial.sh runs all stages at all places: length (how many steps are enough), search and widen (what
each side tries), final (the best again, with more seeds), fresh (the winners, with seeds that chose
nothing) and images (which test images those are right on). A stage reads the rows of those before
from results.csv. What is tried and how it is chosen is in sides.py, why in docs/trial.md.
"""

import argparse
import sys
from dataclasses import replace
from pathlib import Path

import pandas as pd

sys.path.insert(0, str(Path(__file__).parent))  # python -P leaves it out

import flags
import sides
from engine.cells import OPTIMISER, Cell, Settings, flag, run_id
from engine.grid import find_teacher, run_command, settings_of, teacher_seed
from engine.rows import csv_path, read_rows
from engine.trainee import first_weights
from images.sources import SOURCES
from models import build
from models.registry import NAMED
from reporting.rows import PROTOCOL, clean
from utils import (
    Diverged,
    UserError,
    is_lead,
    load_checkpoint,
    note,
    run_script,
    save_checkpoint,
    say,
    write_atomic,
)

STAGES = ("length", "search", "widen", "final", "fresh", "images")
STEPS, LEAST_EPOCHS, DOUBLINGS = 2000, 20, 2
VAL_SIZE = 5000  # images held out at most, where the trial says how many
# Set by the trial, so that their flags are refused.
OWN = ("epochs", "t_max", "schedule", "optimizer", "eval_every", "last_batch", "clip", "momentum")
OWN += (*OPTIMISER, "seed", "recipe")


def main(argv: list[str] | None = None) -> None:
    args = parse(argv)
    if args.sizes:
        say(" ".join(map(str, allowed_sizes(args))))
        return
    if args.report:
        write_report(args)
        return
    args.last_batch, args.clip, args.momentum = "weigh", sides.CLIP, sides.MOMENTUM
    args.teacher_cache = "auto"
    if args.plan:
        import trial_cost  # a stage needs none of it

        rows_there(args)  # raises before anything is trained
        say(trial_cost.plan(args))
        return
    args.images = args.train_size or left_over(args)
    if args.draw and (not args.train_size or args.images == left_over(args)):
        note(f"all {args.images} images are the same in every draw: they have one")
        return
    every = here = rows_here(args)
    known = set() if args.overwrite else sides.diverged(args.out_dir)
    args.eval_every = args.epochs = args.t_max = length_here(args, here, known)
    longest = here.epochs[(here.side == "alone") & (here.seed >= sides.FIRST_FRESH)].max()
    if longest > args.epochs:
        raise UserError(
            f"{csv_path(args.out_dir)} has a trial of {longest:.0f} epochs here, and its page has "
            f"the longest: this one has {args.epochs}: choose another --out-dir"
        )
    here = here[here.epochs == args.epochs]
    asked = sides.asked_for(here, args.tries)
    if args.stage == "images":
        import trial_images  # the other stages need none of it

        trial_images.evaluate(fresh_here(args, asked), every, args)
        return
    meet_control(args, asked)
    settings = settings_of(args)
    cells = [cell for cell in cells_of(args, asked) if run_id(cell, settings) not in known]
    check_names(cells, here[here.draw == args.draw], settings)
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


# ---------------------------------------------------------------- how many images and epochs


def allowed_sizes(args: argparse.Namespace) -> tuple[int, int]:
    """What the data allow: images to hold out (a quarter, VAL_SIZE at most), and the rest, or 0.

    Held-out images are as many of each class. 0 is all the rest, where its classes are not.
    """
    arrays, classes = SOURCES[args.dataset](args.data_dir, args.image_size)
    counts = pd.Series(arrays["train"][1]).value_counts()
    held = max(min(counts.min() // 4, VAL_SIZE // len(classes)), 1) * len(classes)
    return held, 0 if counts.nunique() > 1 else int(counts.sum()) - held


def left_over(args: argparse.Namespace) -> int:
    """How many images --train-size 0 means: all beside those held out."""
    arrays, _ = SOURCES[args.dataset](args.data_dir, args.image_size)
    return len(arrays["train"][1]) - args.val_size


def epochs_of(images: int, steps: int = STEPS, batch_size: int = Settings.batch_size) -> int:
    """Epochs of a run on so many images: `steps` steps, rounded up, and LEAST_EPOCHS at least."""
    an_epoch = -(-images // batch_size)
    return max(-(-steps // an_epoch), LEAST_EPOCHS)


def probes(args: argparse.Namespace) -> list[Cell]:
    """The runs of the student alone that tell whether a length is enough."""
    return cells_for(args, "alone", sides.probes(), sides.FINAL_SEEDS)


def length_here(args: argparse.Namespace, here: pd.DataFrame, known: set[str]) -> int:
    """Epochs of this stage: in stage length those to be tried next, else what was found enough.

    `known` are run ids of runs that diverged. Raises UserError where it has not been found.
    """
    first = epochs_of(args.images, args.steps, args.batch_size)
    lengths = [first * 2**k for k in range(args.doublings + 1)]
    if not args.doublings:
        return first
    alone = here[(here.side == "alone") & here.epochs.isin(lengths)]
    for epochs in lengths:
        args.epochs = args.t_max = epochs  # for the run ids
        settings = replace(settings_of(args), draw=0)  # found once for all draws
        lacking = {run_id(cell, settings) for cell in probes(args)} - set(here.run_id) - known
        if lacking and args.stage == "length":
            return epochs
        if lacking:
            raise UserError("how many steps are enough is not known here: run --stage length first")
        found, moved = sides.length(alone[alone.epochs <= epochs])
        if moved < sides.ENOUGH:
            return found
    return lengths[-1]


# ---------------------------------------------------------------- cells


def cells_for(args: argparse.Namespace, side: str, configs: list, seeds: tuple | range) -> list:
    """A side's cells at this place."""
    return sides.cells(side, configs, seeds, args.student, args.width, teacher_seed(args))


def cells_of(args: argparse.Namespace, here: pd.DataFrame) -> list[Cell]:
    """The cells of a stage at a place, all sides together; `here` are its rows of this length.

    Raises UserError where the previous stage is not done.
    """
    if args.stage == "length":
        return probes(args)
    cells, count = [], sides.keep(args.tries)
    for side in dict.fromkeys(args.sides):
        mine, seeds = here[here.side == side], sides.SEARCH_SEEDS
        needed = {"widen": (*sides.MAIN, side), "search": ("alone",) * (side == "kd-same")}
        for one in needed.get(args.stage, ()):
            if not (here.side == one).any():
                raise UserError(f"nothing is known of {one} here: run --stage search first")
        if args.stage == "search":
            configs = sides.searched(side, args.tries)
        elif args.stage == "widen":
            configs = sides.searched(side, args.tries, here)
        elif args.stage == "final":
            seeds = sides.FINAL_SEEDS
            configs = [sides.config(mine, n) for n in sides.finalists(mine, count)]
        else:
            seeds, best = sides.fresh_seeds(args.images, args.fresh), sides.winner(mine, count)
            configs = [] if best is None else [sides.config(mine, best)]
        if not configs:
            before = STAGES[STAGES.index(args.stage) - 1]
            raise UserError(f"side {side} has no runs to choose from: run --stage {before} first")
        cells += cells_for(args, side, configs, seeds)
    return cells


def check_names(cells: list[Cell], here: pd.DataFrame, settings: Settings) -> None:
    """Raise UserError where a cell has a row under another run id: no side can have both."""
    there: dict[tuple, set[str]] = {}
    for row in here.itertuples():
        key = row.method, row.answers, row.seed, sides.config_of(row)
        there.setdefault(key, set()).add(row.run_id)
    for cell in cells:
        config = sides.Config(*(getattr(cell, name) for name in sides.Config._fields))
        names = there.get((cell.method, cell.answers, cell.seed, config), set())
        if other := names - {run_id(cell, settings)}:
            raise UserError(
                f"results.csv has {min(other)}, the same run by another teacher or --train-size: "
                "go on with that, or choose another --out-dir"
            )


def fresh_here(args: argparse.Namespace, here: pd.DataFrame) -> pd.DataFrame:
    """The rows of this draw's fresh runs of the sides' winners, of this place's and length's."""
    mine = here.seed.isin(sides.fresh_seeds(args.images, args.fresh)) & (here.draw == args.draw)
    best = {s: sides.winner(here[here.side == s], sides.keep(args.tries)) for s in args.sides}
    return here[mine & (here.side.map(best) == here.config)]


def rows_here(args: argparse.Namespace) -> pd.DataFrame:
    """The sides' rows at this place, of any length and draw."""
    rows = rows_there(args)
    return rows[(rows.width == args.width) & (rows.train_size == args.images)]


def rows_there(args: argparse.Namespace) -> pd.DataFrame:
    """The sides' rows in --out-dir. Raises UserError where they are of another trial."""
    rows = sides.with_sides(clean(read_rows(csv_path(args.out_dir))))
    same = {name: getattr(args, name) for name in PROTOCOL if name not in sides.OF_PLACE}
    for name, value in {"model": args.student, **same}.items():
        if other := [one for one in rows[name].unique() if one != value]:
            raise UserError(
                f"{csv_path(args.out_dir)} has a trial with {name} {other[0]}, and this one has "
                f"{value}: give each an --out-dir of its own"
            )
    return rows


def meet_control(args: argparse.Namespace, here: pd.DataFrame) -> None:
    """Name the teacher of a control that has one of its own. Raises UserError where it lacks."""
    if args.sides == ["kd-random"]:
        args.teacher = untrained(args)
    elif args.sides == ["kd-self"]:
        alone = here[here.side == "alone"]
        best = sides.winner(alone, sides.keep(args.tries))
        if best is None:
            raise UserError("kd-self learns from the best student alone: run its final first")
        seed = sides.FINAL_SEEDS[-1]
        [one] = cells_for(args, "alone", [sides.config(alone, best)], [seed])
        args.teacher = args.out_dir / "checkpoints" / f"{run_id(one, settings_of(args))}.pt"
        if not args.teacher.exists():
            raise UserError(
                f"kd-self learns from the best student alone, and {args.teacher} is gone: copy it "
                "back, or train the finalists again (--stage final --sides alone --overwrite)"
            )
        args.teacher_model = NAMED.get(args.student)


def untrained(args: argparse.Namespace) -> Path:
    """A checkpoint of the teacher's network with first weights, made where there is none yet."""
    if not args.teacher:
        raise UserError("kd-random learns from the teacher's network untrained: name its --teacher")
    own = args.teacher_model
    stored = load_checkpoint(find_teacher(args, settings_of(args), needed=True))
    name = f"{stored['run_id']}-untrained"
    path = args.out_dir / "checkpoints" / f"{name}.pt"
    if not path.exists():
        size = [stored[n] for n in ("model", "width", "classes", "image_size")]
        with first_weights(sides.FIRST_FRESH - 1, "an untrained teacher"):
            model = own.build(stored["classes"]) if own else build(*size)
        kept = {n: v for n, v in stored.items() if n not in ("sha", "progress", "regressor")}
        save_checkpoint(path, kept | {"run_id": name, "state": model.state_dict()})
    return path


# ---------------------------------------------------------------- report


def write_report(args: argparse.Namespace) -> None:
    """Write results/TRIAL.md and its pictures, and print its answer.

    Raises UserError where there is no run of a trial, or runs of several.
    """
    import trial_images  # a stage needs none of these
    from reporting import report, trial, trial_answer, trial_page, trial_pictures

    path = csv_path(args.out_dir)
    asked = trial.Asked(args.tries, args.fresh, args.draws)
    rows = clean(read_rows(path))
    right = trial_images.everywhere(args.out_dir, rows)
    found = trial.read(rows, asked, sides.diverged(args.out_dir), right)
    page = path.with_name("TRIAL.md")
    if not found.whole and page.exists() and trial_answer.NOTHING not in page.read_text("utf-8"):
        raise UserError(
            f"no place is finished with --tries {args.tries} and these fresh seeds and draws, and "
            f"{page} has some: name the --tries, --fresh and --draws of its stages, or move it away"
        )
    drawn = trial_pictures.pictures(found)
    for name, png in drawn.items():
        write_atomic(path.parent / f"{name}.png", png)
    values = trial_page.page(found) | {"pictures": list(drawn), "captions": trial_pictures.CAPTIONS}
    write_atomic(page, report.render("TRIAL.md", values).encode())
    say(report.render("trial_answer", values))
    say(f"all figures: {page}" + "".join(f", {name}.png" for name in drawn))


def parse(argv: list[str] | None) -> argparse.Namespace:
    p = flags.parser(__doc__.splitlines()[0])
    flags.add_teacher(p)
    group = p.add_argument_group("trial")
    what = group.add_mutually_exclusive_group(required=True)
    what.add_argument("--stage", choices=STAGES, help="what to train")
    what.add_argument("--report", action="store_true", help="write results/TRIAL.md")
    what.add_argument("--plan", nargs="+", type=place, metavar="IMAGES:WIDTH",
        help="say what a trial at these places costs here; 0 images: all not held out")  # fmt: skip
    what.add_argument("--sizes", action="store_true",
        help="print how many images would be held out, and trained on")  # fmt: skip
    add = group.add_argument
    add("--ranks", type=flags.COUNT, default=1, help="processes that --plan reckons with")
    add("--sides", nargs="+", choices=sides.SIDES, default=list(sides.MAIN), metavar="SIDE",
        help=f"which of {', '.join(sides.SIDES)}")  # fmt: skip
    add("--student", type=flags.named, default="cnn", metavar="NETWORK",
        help=f"which network learns: {flags.NAMES}")  # fmt: skip
    add("--width", type=flags.WIDTH, help="channels of its first stage; unset: its own")
    add("--steps", type=flags.COUNT, default=STEPS,
        help=f"length of a run, in steps; {LEAST_EPOCHS} epochs at least")  # fmt: skip
    add("--doublings", type=flags.COUNT_OR_NONE, default=DOUBLINGS, metavar="N",
        help="how often that may be doubled until it is enough; 0: it stays")  # fmt: skip
    add("--tries", type=flags.COUNT, default=sides.TRIES, metavar="N",
        help="configurations that a side tries")  # fmt: skip
    add("--fresh", type=flags.WIDTH, metavar="N",
        help=f"fresh seeds: how many measure the winners (default: {sides.FRESH}, "
        f"with more than {sides.MANY:,} images {sides.FEWER_FRESH})")  # fmt: skip
    add("--draws", type=flags.COUNT, metavar="N",
        help="draws of the training images on which the winners are measured (default: 1; of a "
        "report, as many as a place has)")  # fmt: skip
    p.set_defaults(train_size=5000, val_size=VAL_SIZE)
    for action in p._actions:
        if action.dest in (*OWN, "milestones", "gamma"):  # refused
            action.help = argparse.SUPPRESS
    args = p.parse_args(argv)
    for name in OWN:
        if getattr(args, name) != p.get_default(name):
            raise UserError(f"{flag(name)} is set by the trial: leave it out")
    check(args)
    for _, width in args.plan or []:  # before anything is trained
        flags.widths_of(args.student, width and [width])
    [args.width] = flags.widths_of(args.student, args.width and [args.width])
    return args


def place(raw: str) -> tuple[int, int | None]:
    """An argparse type: `1000:16`, or `1000:` for the network's own width."""
    images, _, width = raw.partition(":")
    return flags.COUNT_OR_NONE(images), flags.WIDTH(width) if width else None


def check(args: argparse.Namespace) -> None:
    """Raise UserError for what does not go together."""
    if args.fresh == 1:
        raise UserError("--fresh 1 gives no interval: two fresh seeds at least")
    if args.tries < 2 * sides.PROBES:
        raise UserError(f"--tries {args.tries} is no search: {2 * sides.PROBES} at least")
    if not args.val_size:
        raise UserError("a trial needs --val-size: held-out images, on which everything is chosen")
    if args.draw and args.stage not in ("fresh", "images"):
        raise UserError("--draw: everything is chosen on the first draw, leave it out")
    if "kd-same" in args.sides and args.teacher and args.stage:
        raise UserError("kd-same finds its teacher, one of the student's own images, in --out-dir: "
                        "leave --teacher out")  # fmt: skip
    alone = set(args.sides) & set(sides.OWN_TEACHER)
    if alone and len(args.sides) > 1 and args.stage:
        raise UserError(f"{alone.pop()} has a teacher of its own: name no other of --sides")
    if alone and args.draw:
        raise UserError(f"{alone.pop()} has a teacher of the first draw: leave --draw out")


if __name__ == "__main__":
    run_script(main)
