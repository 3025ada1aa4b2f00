"""Train a student alone, without a teacher: the baseline of distillation.

    python train_student.py --seed 0 1 2 3 4
    python train_student.py --lr 0.01 0.03 0.1 0.3 --seed 0 1 2

Where the out-dir has a teacher of this data set, its agreement with the student is measured at the
end; it is not used in training.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))  # python -P leaves it out

import flags
from engine.cells import Cell
from engine.grid import run_command
from utils import run_script


def main(argv: list[str] | None = None) -> None:
    parser = flags.parser(__doc__.splitlines()[0])
    flags.add_model(parser, default="cnn")
    flags.add_teacher(parser)
    args = flags.parse(parser, argv)
    run_command([Cell(**own) for own in flags.sweep(args, args.model, args.width)], args)


if __name__ == "__main__":
    run_script(main)
