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
from engine.grid import run_command, teacher_seed
from losses import ON_STAGES, is_taught, parts
from utils import UserError, run_script


def cells_of(args: argparse.Namespace) -> list[Cell]:
    """The grid as cells: seed by seed, then what is the student's own, alpha and temperature.

    Raises UserError.
    """
    methods = parts(args.method)  # none: the control without a teacher
    temperatures = args.temperature if any(m.temperature for m in methods) else [None]
    if args.scale_t2 and args.method.split("+")[0] != "kd":
        raise UserError("--scale-t2 belongs to --method kd: leave one of them out")
    if args.beta and (not methods or methods[-1].beta is None):
        raise UserError(f"--method {args.method} has no weight of its own: leave --beta out")
    if args.soft_warmup and not methods:
        raise UserError("--soft-warmup has no effect without a --method")
    layers = {name: " ".join(getattr(args, name)) for name in ("student_layers", "teacher_layers")}
    if any(layers.values()) and not any(m.family in ON_STAGES for m in methods):
        raise UserError(f"--method {args.method} compares no layers: leave --student-layers and "
                        "--teacher-layers out")  # fmt: skip
    betas = args.beta or [methods[-1].beta if methods else None]
    common = {
        "method": args.method,
        "scale_t2": args.scale_t2,
        "soft_warmup": args.soft_warmup,
        **layers,
        "teacher_seed": teacher_seed(args) if is_taught(args.method) else None,
    }
    cells = []
    for own in flags.sweep(args, args.student, args.student_width):
        cells += [Cell(**own)] * args.alone
        if args.control:  # at alpha 1 nothing is left of the hard loss
            cells += [Cell(alpha=a, **own) for a in args.alpha if a < 1]
        grid = product(args.alpha, temperatures, betas)
        for alpha, temperature, beta in grid:
            weight = {"auto_beta": True} if beta == "auto" else {"beta": beta}
            cells.append(Cell(alpha=alpha, temperature=temperature, **weight, **own, **common))
    return list(dict.fromkeys(cells))


def main(argv: list[str] | None = None) -> None:
    parser = flags.parser(__doc__.splitlines()[0])
    flags.add_distillation(parser)
    flags.add_teacher(parser)
    args = parser.parse_args(argv)
    run_command(cells_of(args), args)


if __name__ == "__main__":
    run_script(main)
