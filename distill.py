"""Distil a teacher into students: every combination of the values given, trained together.

python distill.py --alpha 0.5 --temperature 10
python distill.py --alpha 0.1 0.25 0.5 0.75 0.9 --temperature 1 5 10 --seed 0 1 2
torchrun --nproc-per-node 2 distill.py --alpha 0.1 0.5 0.9 --temperature 1 5 10 --threads 1
"""

import argparse
import sys
from itertools import product
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))  # python -P leaves it out

import flags
from engine.cells import Cell
from engine.grid import run_command, teacher_fields
from engine.recipes import beta_of, weights_of
from losses import ON_STAGES, is_taught, parts
from utils import UserError, note, run_script


def cells_of(args: argparse.Namespace) -> list[Cell]:
    """The grid as cells: seed by seed, what is the student's own, method by method, alpha and T.

    Raises UserError.
    """
    given = map(flags.weighted, args.method)
    chosen = [(name, how_trained(name, betas, args)) for name, betas in given]
    cells, teacher = [], {}
    if any(is_taught(name) for name, _ in chosen):
        teacher = teacher_fields(args)
    for own in flags.sweep(args, args.student, args.student_width):
        cells += [Cell(**own)] * args.alone
        for name, how in chosen:
            # Nothing is left of the hard loss at alpha 1, all of it with a weight of its own.
            if args.control and how["hard_weight"] == [None]:
                cells += [Cell(alpha=a, **own) for a in how["alpha"] if a < 1]
            every = [dict(zip(how, values, strict=True)) for values in product(*how.values())]
            theirs = own | (teacher if is_taught(name) else {})
            cells += [Cell(method=name, **weighed(each), **theirs) for each in every]
    return list(dict.fromkeys(cells))


def how_trained(name: str, betas: list, args: argparse.Namespace) -> dict[str, list]:
    """The values that a method's cells have, by field of Cell: the flags', else the recipe's.

    Raises UserError where a flag has no effect on the method.
    """
    methods = parts(name)  # none: the control without a teacher
    if args.scale_t2 and name.split("+")[0] != "kd":
        raise UserError("--scale-t2 belongs to --method kd: leave one of them out")
    if (betas or args.beta) and (not methods or methods[-1].beta is None):
        raise UserError(f"--method {name} has no weight of its own: leave --beta out")
    if args.soft_warmup and not methods:
        raise UserError("--soft-warmup has no effect without a --method")
    layers = {
        whose: " ".join(getattr(args, whose)) for whose in ("student_layers", "teacher_layers")
    }
    if any(layers.values()) and not any(m.family in ON_STAGES for m in methods):
        raise UserError(f"--method {name} compares no layers: leave --student-layers and "
                        "--teacher-layers out")  # fmt: skip
    usual = weights_of(args.recipe, name, args.epochs)
    sweeps = any(m.temperature for m in methods)
    found = {
        "alpha": args.alpha or [usual["alpha"]],
        "temperature": (args.temperature or [usual["temperature"]]) if sweeps else [None],
        "beta": betas or args.beta or [beta_of(args.recipe, name)],
    }
    for what, off in (("hard_weight", None), ("scale_t2", False), ("soft_warmup", 0)):
        given = getattr(args, what)
        found[what] = [usual.get(what, off) if given is None else given]
    return found | {whose: [names] for whose, names in layers.items()}


def without_effect(cells: list[Cell], args: argparse.Namespace) -> list[str]:
    """What was asked for and does nothing, in words."""
    lines = []
    if args.temperature and not any(cell.temperature for cell in cells):
        lines.append("--temperature has no effect: no --method here has one")
    if args.control and not any(cell.method == "none" and cell.alpha for cell in cells):
        lines.append("--control adds nothing: the labels' loss keeps all of its weight, or none")
    if args.soft_warmup and args.soft_warmup > args.epochs:
        lines.append(f"--soft-warmup {args.soft_warmup} is longer than the {args.epochs} epochs")
    return lines


def weighed(own: dict) -> dict:
    """A cell's fields, where beta may be auto."""
    return own | {"beta": None, "auto_beta": True} if own["beta"] == "auto" else own


def main(argv: list[str] | None = None) -> None:
    parser = flags.parser(__doc__.splitlines()[0])
    flags.add_distillation(parser)
    flags.add_teacher(parser)
    args = flags.parse(parser, argv)
    cells = cells_of(args)
    for line in without_effect(cells, args):
        note(line)
    run_command(cells, args)


if __name__ == "__main__":
    run_script(main)
