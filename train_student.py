"""Train a student alone, without a teacher: the line that distillation has to beat.

    python train_student.py --seed 0 1 2 3 4

Where a teacher of this data set is in the out-dir already, its agreement with the student is
measured at the end; it has no part in the training.
"""

import flags
from engine.cells import Cell
from engine.grid import run_command
from models import MODELS
from utils import run_script


def main(argv: list[str] | None = None) -> None:
    parser = flags.parser(__doc__.splitlines()[0])
    flags.add_model(parser, default="cnn")
    flags.add_teacher(parser)
    args = parser.parse_args(argv)
    width = args.width or MODELS[args.model].DEFAULT_WIDTH
    run_command([Cell(args.model, width, seed) for seed in dict.fromkeys(args.seed)], args)


if __name__ == "__main__":
    run_script(main)
