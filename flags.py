"""The flags of the training scripts. A setting's is made of its definition in engine/cells.py."""

import argparse
from itertools import product
from pathlib import Path
from typing import NoReturn

from engine.cells import OPTIMISER, SETTINGS, defaults, flag
from engine.recipes import RECIPES
from engine.weights import NESTED
from losses import METHODS, is_method
from models import ELSEWHERE, MODELS, NETWORKS, default_width, imported, named
from models.foreign import is_library
from utils import ROOT, UserError
from values import (
    COUNT,
    COUNT_OR_NONE,
    NOT_NEGATIVE,
    POSITIVE,
    SHARE,
    SPREAD,
    THREADS,
    WIDTH,
    filled,
    folder,
)

OWN = {"type": imported, "metavar": "FILE.py:Net", "help": "the network of the checkpoint, where "
       "it is your own: no checkpoint has a file imported"}  # fmt: skip
NAMES = f"{', '.join([*sorted(MODELS), *NETWORKS])}, {ELSEWHERE}"


class Parser(argparse.ArgumentParser):
    """argparse, but a mistake is one line and not a page of usage."""

    def error(self, message: str) -> NoReturn:
        raise UserError(f"{message} (see {self.prog} --help)")


class Help(argparse.ArgumentDefaultsHelpFormatter):
    """Names a flag's default, but not that of one which is unset: its own words say that."""

    def _get_help_string(self, action: argparse.Action) -> str:
        unset = action.default is None or action.default == []
        return action.help if unset else super()._get_help_string(action)


def parser(description: str, sweeps: bool = True) -> Parser:
    """A parser with the flags that all three training scripts share.

    With `sweeps`, a cell's own settings take several values.
    """
    p = Parser(description=description, formatter_class=Help, allow_abbrev=False)
    groups = {name: p.add_argument_group(name).add_argument for name in ("data", "optimisation")}
    for name, setting in SETTINGS.items():
        own = {}
        if sweeps and name in OPTIMISER:
            own = {"nargs": "+", "default": [setting.default]}
        elif name == "epochs" and not sweeps:
            own = {"type": COUNT_OR_NONE, "help": "passes over the training set; 0: measure "
                   "--weights as they are"}  # fmt: skip
        how = setting.metadata["flag"] | own
        recipes = [f"; {r}: {one.settings[name]}" for r, one in RECIPES.items()
                   if name in one.settings]  # fmt: skip
        how["help"] += "".join(recipes)
        groups[setting.metadata["group"]](flag(name), **how)
    groups["data"]("--data-dir", type=folder, default=ROOT / "data",
        help="where the data set is or goes")  # fmt: skip
    add = groups["optimisation"]
    add("--amp", action=argparse.BooleanOptionalAction, default=None,
        help="bfloat16 autocast in ResNet-18 (default: auto, where it is faster)")  # fmt: skip
    add("--seed", type=COUNT_OR_NONE, nargs="+", default=[0],
        help="initial weights, order and augmentation; several: one after another")  # fmt: skip
    add = p.add_argument_group("where and how").add_argument
    add("--device", default="auto",
        help="cpu, cuda, mps, xpu, or auto: a CUDA GPU where there is one")  # fmt: skip
    add("--threads", type=THREADS, default=0, help="CPU threads; 0: torch's own choice")
    add("--out-dir", type=folder, default=ROOT, help="where results/, runs/ and checkpoints/ go")
    add("--eval-every", type=COUNT, default=1, metavar="N",
        help="measure after every N epochs and the last; the best is then of those")  # fmt: skip
    add("--overwrite", action="store_true", help="train again what is already in the CSV")
    add("--keep", choices=["last", "best"], default="last",
        help="best: also the weights of the best epoch, by the held-out images or else by the test "
        "set, as checkpoints/<run_id>.best.pt")  # fmt: skip
    add("--save-seconds", type=POSITIVE, default=60.0,
        help="how often the state of an unfinished run is saved")  # fmt: skip
    return p


def parse(p: Parser, argv: list[str] | None) -> argparse.Namespace:
    """The flags, those not given by hand as the recipe has them."""
    args = p.parse_args(argv)
    for _ in range(2):  # milestones follow from the epochs, which the recipe may have set
        model = args.student if "student" in args else args.model
        usual = defaults(args.recipe, model, args.epochs)
        for name, setting in SETTINGS.items():  # a cosine by hand has no milestones
            other, value = setting.metadata["only"] or (name, None)
            if value and getattr(args, other) != value:
                usual[name] = setting.default
        lists = {n: [usual[n]] for n in OPTIMISER if isinstance(getattr(args, n), list)}
        p.set_defaults(**usual | lists | {"amp": None})
        args = p.parse_args(argv)
    return args


def add_weights(p: Parser) -> None:
    """A teacher's weights, from elsewhere."""
    add = p.add_argument_group("weights from elsewhere").add_argument
    add("--weights", type=Path, metavar="FILE",
        help="train from these, or with --epochs 0 take them as they are: a state_dict, or one "
        f"under {', '.join(NESTED)}; of the data's classes, in their order")  # fmt: skip
    for what, kind in (("mean", SHARE), ("std", SPREAD)):
        add(f"--{what}", type=kind, nargs=3, metavar=("R", "G", "B"),
            help=f"the {what} of its images, of pixels from 0 to 1; unset: as with a checkpoint of "
            "this project, else as --normalization")  # fmt: skip


def add_model(p: Parser, default: str, sweeps: bool = True) -> None:
    """The flags of train_teacher.py and train_student.py, here also as distill.py names them."""
    add = p.add_argument_group("network").add_argument
    add("--model", *["--student"] * sweeps, type=named, default=default, metavar="NETWORK",
        help=f"which network: {NAMES}")  # fmt: skip
    add("--width", *["--student-width"] * sweeps, type=WIDTH, nargs="+" if sweeps else None,
        help="channels of its first stage; unset: the network's own")  # fmt: skip


def widths_of(model: str, given: list[int] | None) -> list[int]:
    """The given widths, or the network's default. Raises UserError if it has no width."""
    if given and model not in MODELS:
        raise UserError(f"{model} has no width to choose, as {' and '.join(MODELS)} have")
    return given or [default_width(model)]


def sweep(args: argparse.Namespace, model: str, widths: list[int] | None) -> list[dict]:
    """Seed by seed every combination of a student's own settings, as keywords of Cell."""
    widths = widths_of(model, widths)
    names = ("model", "seed", "width", "lr", "weight_decay")
    every = product([model], args.seed, widths, args.lr, args.weight_decay)
    return [dict(zip(names, values, strict=True)) for values in dict.fromkeys(every)]


def add_teacher(p: Parser) -> None:
    """Which teacher."""
    add = p.add_argument_group("teacher").add_argument
    add("--teacher", type=teacher, metavar="CHECKPOINT",
        help="a file, or a network's name: the one that train_teacher.py left of it for this data "
        "set and out-dir; unset: the only one it left")  # fmt: skip
    add("--teacher-seed", type=COUNT_OR_NONE, metavar="SEED",
        help="which of several seeds' teachers; unset: 0, or that of --teacher")  # fmt: skip
    add("--teacher-model", **OWN)
    add("--other-classes", action="store_true",
        help="accept a teacher whose classes have other names or another order")  # fmt: skip


def add_distillation(p: Parser) -> None:
    """The flags of distill.py: student, method and its grid."""
    add = p.add_argument_group("student").add_argument
    add("--student", type=named, default="cnn", metavar="NETWORK",
        help=f"which network learns: {NAMES}")  # fmt: skip
    add("--student-width", type=WIDTH, nargs="+",
        help="channels of its first stage; unset: its own")  # fmt: skip
    add("--alone", action="store_true",
        help="also train the student alone, without a teacher")  # fmt: skip
    add("--control", action="store_true",
        help="also train, without a teacher, with the hard loss x (1 - alpha)")  # fmt: skip
    usual = RECIPES[SETTINGS["recipe"].default].weights[""]
    add = p.add_argument_group("distillation (several values: every combination)").add_argument
    add("--method", type=method, nargs="+", default=["kd"], metavar="METHOD", help=method_help())
    add("--alpha", type=SHARE, nargs="+",
        help="weight of the soft loss; the hard loss has 1 - alpha; unset: the recipe's, "
        f"{usual['alpha']} of the reference")  # fmt: skip
    add("--temperature", type=POSITIVE, nargs="+",
        help="of student and teacher, in the methods that have one; unset: the recipe's, "
        f"{usual['temperature']:g} of the reference")  # fmt: skip
    add("--hard-weight", type=NOT_NEGATIVE, metavar="W",
        help="weight of the hard loss instead of 1 - alpha; unset: the recipe's")  # fmt: skip
    add("--beta", type=weight, nargs="+",
        help="the method's own weight, multiplied with alpha (of kd+sp, sp's); unset: its "
        "paper's; auto: at which its gradient is as long as the hard loss's on the first "
        "batch")  # fmt: skip
    add("--soft-warmup", type=COUNT_OR_NONE, metavar="N",
        help="epochs over which the soft loss comes in: epoch i of them, from 1, has i / N of its "
        "weight (dkd's and reviewkd's authors: 20); unset: the recipe's")  # fmt: skip
    add("--teacher-cache", type=filled, default="auto", metavar="auto|off|DIR",
        help="where the teacher's logits are cached for later commands: beside its checkpoint, if "
        "they cannot grow beyond 20 GB; nowhere; or in DIR")  # fmt: skip
    add("--scale-t2", action=argparse.BooleanOptionalAction,
        help="multiply the soft loss of kd by T squared; unset: as the recipe")  # fmt: skip
    for whose in ("student", "teacher"):
        add(f"--{whose}-layers", nargs="+", default=[], metavar="LAYER",
            help=f"the {whose}'s stages, from shallow to deep, for feature and relation methods: "
            "names of modules; unset: the last output of each height and width")  # fmt: skip


def weight(raw: str) -> float | str:
    """An argparse type: a number of at least 0, or auto."""
    return raw if raw == "auto" else NOT_NEGATIVE(raw)


def teacher(raw: str) -> Path | str:
    """An argparse type: a checkpoint, or the name of one of our networks or of a library's."""
    known = raw in (*MODELS, *NETWORKS) or is_library(raw)
    return raw if known and not Path(raw).exists() else Path(raw)


def method(raw: str) -> str:
    """An argparse type: a method, or two as kd+sp, and weights of its own, as sp:30,300."""
    name, _ = weighted(raw)
    if not is_method(name):
        raise argparse.ArgumentTypeError(
            f"{name[:40]!r} is none of none, {', '.join(METHODS)}, nor a response method and one "
            "on layers, as kd+sp"
        )
    return raw


def weighted(method: str) -> tuple[str, list[float | str]]:
    """sp:30,300 as the method's name and its weights."""
    name, _, betas = method.partition(":")
    return name, [weight(beta) for beta in betas.split(",") if beta]


def method_help() -> str:
    """One clause a method: name, paper, default of --beta."""
    clauses = [
        f"{name}: {method.paper}" + (f", beta {method.beta:g}" if method.beta is not None else "")
        for name, method in METHODS.items()
    ]
    both = "kd+sp and the like: a response method beside one on layers; sp:30,300 has these --beta"
    first = "none: no teacher, hard loss x (1 - alpha)"
    return "; ".join([first, *clauses, both]).replace("%", "%%")
