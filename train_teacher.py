"""Train a teacher: ResNet-18 on CIFAR-10 by default. Its checkpoint is what distill.py learns from.

python train_teacher.py
python train_teacher.py --width 32 --seed 0 1 2
python train_teacher.py --model torchvision:resnet50 --weights r50.pt --epochs 0    # one of yours
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))  # python -P leaves it out

import flags
from engine.cells import Cell
from engine.grid import run_command
from engine.weights import moments_text, read_weights
from images.sources import reference_moments
from utils import UserError, run_script


def main(argv: list[str] | None = None) -> None:
    parser = flags.parser(__doc__.splitlines()[0], sweeps=False)
    flags.add_model(parser, default="resnet18", sweeps=False)
    flags.add_weights(parser)
    args = flags.parse(parser, argv)
    [width] = flags.widths_of(args.model, args.width and [args.width])
    own = {"lr": args.lr, "weight_decay": args.weight_decay, "teaches": True}
    by_default = args.normalization == parser.get_default("normalization")
    moments = None
    if args.weights:
        own["weights"], args.weights = read_weights(args.weights)
        moments = args.weights.moments  # known of a checkpoint of this project
    elif not args.epochs:
        raise UserError("--epochs 0 takes weights as they are: name them with --weights")
    if args.mean or args.std:
        if not by_default:
            raise UserError("--normalization has no effect beside --mean and --std: leave it out")
        args.normalization = moments_text(args.mean, args.std)
    elif moments and by_default and moments != reference_moments(args.dataset):
        args.normalization = moments_text(*moments)
    run_command([Cell(args.model, width, seed, **own) for seed in dict.fromkeys(args.seed)], args)


if __name__ == "__main__":
    run_script(main)
