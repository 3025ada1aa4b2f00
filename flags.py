"""Every flag of the training scripts, each defined once, and the checks on its value."""

import argparse
from collections.abc import Callable
from itertools import product
from pathlib import Path
from typing import NoReturn

from engine.cells import Cell, Settings
from images.sources import AUGMENTS, SOURCES
from losses import METHODS
from models import MODELS
from utils import LARGEST, ROOT, UserError

DEFAULTS = Settings()


class Parser(argparse.ArgumentParser):
    """argparse, but a mistake is one line and not a page of usage."""

    def error(self, message: str) -> NoReturn:
        raise UserError(f"{message} (see {self.prog} --help)")


def number(kind: type, test: Callable[[float], bool], what: str) -> Callable[[str], float]:
    """An argparse type: `kind`, as large as tensors hold, passing `test`; `what` is wanted."""

    def parse(raw: str) -> float:
        try:
            value = kind(raw)
            fine = abs(value) <= (LARGEST if kind is int else 3e38) and test(value)
        except (ValueError, OverflowError):
            fine = False
        if not fine:
            raise argparse.ArgumentTypeError(f"{raw[:40]!r} is not {what}, or too large")
        return value

    return parse


COUNT = number(int, lambda v: v >= 1, "a whole number of at least 1")
COUNT_OR_NONE = number(int, lambda v: v >= 0, "a whole number of at least 0")
WIDTH = number(int, lambda v: 1 <= v <= 4096, "a whole number from 1 to 4096")
PIXELS = number(int, lambda v: 8 <= v <= 4096, "a whole number from 8 to 4096")
THREADS = number(int, lambda v: 0 <= v <= 4096, "a whole number from 0 to 4096")
POSITIVE = number(float, lambda v: v > 0, "a number above 0")
NOT_NEGATIVE = number(float, lambda v: v >= 0, "a number of at least 0")
SHARE = number(float, lambda v: 0 <= v <= 1, "a number from 0 to 1")
BELOW_ONE = number(float, lambda v: 0 <= v < 1, "a number from 0 to below 1")


def filled(raw: str) -> str:
    """An argparse type: a text that a variable without a value does not leave."""
    if not raw:
        raise argparse.ArgumentTypeError("it is empty")
    return raw


def parser(description: str, sweeps: bool = True) -> Parser:
    """A parser with the flags that all three training scripts share.

    With `sweeps`, a cell's own settings take several values.
    """
    p = Parser(
        description=description,
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
        allow_abbrev=False,
    )
    add = p.add_argument_group("data").add_argument
    add("--dataset", choices=sorted(SOURCES), default=DEFAULTS.dataset, help="what to train on")
    add("--data-dir", type=Path, default=ROOT / "data", help="where the data set is or goes")
    add("--train-size", type=COUNT_OR_NONE, default=DEFAULTS.train_size, metavar="N",
        help="train on a class-balanced subset of N images; 0: on all")  # fmt: skip
    add("--val-size", type=COUNT_OR_NONE, default=DEFAULTS.val_size, metavar="N",
        help="hold N class-balanced training images out, and measure on them")  # fmt: skip
    add("--normalization", choices=["reference", "data"], default=DEFAULTS.normalization,
        help="the reference's constants, or the training set's own")  # fmt: skip
    add("--image-size", type=PIXELS, default=DEFAULTS.image_size, metavar="N",
        help="pixels a side; images of another size are resized")  # fmt: skip
    add("--augment", choices=AUGMENTS, default=DEFAULTS.augment,
        help="training images padded by an eighth and cropped, and flipped half the time; only "
        "flipped; or as they are")  # fmt: skip
    add = p.add_argument_group("optimisation").add_argument
    add("--epochs", type=COUNT, default=DEFAULTS.epochs, help="passes over the training set")
    add("--batch-size", type=COUNT, default=DEFAULTS.batch_size, help="images a step")
    add("--last-batch", choices=["keep", "drop", "weigh"], default=DEFAULTS.last_batch,
        help="an epoch's last batch, if smaller: a step as long as any, no step, or one as long "
        "as its share")  # fmt: skip
    own = {"nargs": "+" if sweeps else None}
    add("--lr", type=POSITIVE, default=as_given(Cell.lr, sweeps), **own,
        help="learning rate of the first epoch")  # fmt: skip
    add("--weight-decay", type=NOT_NEGATIVE, default=as_given(Cell.weight_decay, sweeps), **own,
        help="SGD weight decay")  # fmt: skip
    add("--t-max", type=COUNT, default=DEFAULTS.t_max,
        help="epochs until the cosine reaches 0; the reference stops half-way")  # fmt: skip
    add("--momentum", type=BELOW_ONE, default=DEFAULTS.momentum, help="SGD momentum")
    add("--clip", type=NOT_NEGATIVE, default=DEFAULTS.clip, metavar="NORM",
        help="shorten a step's gradient to this norm where it is longer; 0: never")  # fmt: skip
    add("--amp", action=argparse.BooleanOptionalAction, default=None,
        help="bfloat16 autocast in the ResNet; unset: where it is faster")  # fmt: skip
    add("--seed", type=COUNT_OR_NONE, nargs="+", default=[0],
        help="initial weights, order and augmentation; several: one after another")  # fmt: skip
    add = p.add_argument_group("where and how").add_argument
    add("--device", default="auto", help="cpu, cuda, or auto: a GPU where there is one")
    add("--threads", type=THREADS, default=0, help="CPU threads; 0: torch's own choice")
    add("--out-dir", type=Path, default=ROOT, help="where results/, runs/ and checkpoints/ go")
    add("--eval-every", type=COUNT, default=1, metavar="N",
        help="measure after every N epochs and the last; the best is then of those")  # fmt: skip
    add("--overwrite", action="store_true", help="train again what is in the CSV already")
    add("--keep", choices=["last", "best"], default="last",
        help="best: also the weights of the best epoch, by the held-out images or else by the test "
        "set, as checkpoints/<run_id>.best.pt")  # fmt: skip
    add("--save-seconds", type=POSITIVE, default=60.0,
        help="how often the state of an unfinished run is saved")  # fmt: skip
    return p


def as_given(value: float, sweeps: bool) -> list[float] | float:
    """A default as the command line would give it."""
    return [value] if sweeps else value


def add_model(p: Parser, default: str, sweeps: bool = True) -> None:
    """The flags of train_teacher.py and train_student.py, here also as distill.py names them."""
    add = p.add_argument_group("network").add_argument
    add("--model", *["--student"] * sweeps, choices=sorted(MODELS), default=default,
        help="which network")  # fmt: skip
    add("--width", *["--student-width"] * sweeps, type=WIDTH, nargs="+" if sweeps else None,
        help="channels of its first stage; unset: the network's own")  # fmt: skip


def sweep(args: argparse.Namespace, model: str, widths: list[int] | None) -> list[dict]:
    """Seed by seed every combination of a student's own settings, as keywords of Cell."""
    widths = widths or [MODELS[model].DEFAULT_WIDTH]
    names = ("model", "seed", "width", "lr", "weight_decay")
    every = product([model], args.seed, widths, args.lr, args.weight_decay)
    return [dict(zip(names, values, strict=True)) for values in dict.fromkeys(every)]


def add_teacher(p: Parser) -> None:
    """Which teacher."""
    add = p.add_argument_group("teacher").add_argument
    add("--teacher", type=Path, metavar="CHECKPOINT",
        help="unset: the one train_teacher.py left for this data set and out-dir")  # fmt: skip
    add("--teacher-seed", type=COUNT_OR_NONE, metavar="SEED",
        help="which of several seeds' teachers; unset: 0, or that of --teacher")  # fmt: skip
    add("--other-classes", action="store_true",
        help="a teacher whose classes have other names or another order is meant")  # fmt: skip


def add_distillation(p: Parser) -> None:
    """The flags of distill.py: student, method and its grid."""
    add = p.add_argument_group("student").add_argument
    add("--student", choices=sorted(MODELS), default="cnn", help="which network learns")
    add("--student-width", type=WIDTH, nargs="+",
        help="channels of its first stage; unset: its own")  # fmt: skip
    add("--alone", action="store_true",
        help="also the student alone, without a teacher, in the same pass")  # fmt: skip
    add("--control", action="store_true",
        help="also, for each alpha, the hard loss x (1 - alpha) without a teacher, in the same "
        "pass")  # fmt: skip
    add = p.add_argument_group("distillation (several values: every combination)").add_argument
    add("--method", choices=["none", *METHODS], default="kd", help=method_help())
    add("--alpha", type=SHARE, nargs="+", default=[0.5],
        help="weight of the soft loss; the hard loss has 1 - alpha")  # fmt: skip
    add("--temperature", type=POSITIVE, nargs="+", default=[10.0],
        help="softens both sides, in the methods that have one")  # fmt: skip
    add("--beta", type=NOT_NEGATIVE, nargs="+",
        help="the method's own weight, multiplied with alpha; unset: its paper's")  # fmt: skip
    add("--teacher-cache", type=filled, default="auto", metavar="auto|off|DIR",
        help="where the teacher's answers are kept for later commands: beside its checkpoint, if "
        "they cannot grow beyond 20 GB; nowhere; or in DIR")  # fmt: skip
    add("--scale-t2", action="store_true", help="multiply the soft loss of kd by T squared")


def method_help() -> str:
    """One clause a method: name, paper, default of --beta."""
    clauses = [
        f"{name}: {method.paper}" + (f", beta {method.beta:g}" if method.beta is not None else "")
        for name, method in METHODS.items()
    ]
    return "; ".join(["none: no teacher, hard loss x (1 - alpha)", *clauses]).replace("%", "%%")
