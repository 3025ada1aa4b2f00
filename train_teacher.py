"""Train a teacher: ResNet-18 on CIFAR-10 by default. Its checkpoint is what distill.py learns from.

python train_teacher.py
python train_teacher.py --width 32 --seed 0 1 2
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))  # python -P leaves it out

import flags
from engine.cells import Cell
from engine.grid import run_command
from models import MODELS
from utils import run_script


def main(argv: list[str] | None = None) -> None:
    parser = flags.parser(__doc__.splitlines()[0], sweeps=False)
    flags.add_model(parser, default="resnet18", sweeps=False)
    args = parser.parse_args(argv)
    width = args.width or MODELS[args.model].DEFAULT_WIDTH
    own = {"lr": args.lr, "weight_decay": args.weight_decay, "teaches": True}
    run_command([Cell(args.model, width, seed, **own) for seed in dict.fromkeys(args.seed)], args)


if __name__ == "__main__":
    run_script(main)
