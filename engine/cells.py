"""What is trained: a cell (student, method, alpha, temperature, seed), under settings.

A cell is an independent unit of work. Its run id names it together with every setting that
differs from the reference protocol, so that two runs share an id only if they are the same run.
"""

import re
import zlib
from collections.abc import Iterable
from dataclasses import Field, asdict, dataclass, field, fields
from typing import Any

from engine.recipes import RECIPES, settings_of
from images.sources import AUGMENTS, SOURCES
from losses import is_taught, parts
from models import default_width, file_name
from utils import UserError
from values import BELOW_ONE, COUNT, COUNT_OR_NONE, NOT_NEGATIVE, PIXELS, POSITIVE


def setting(
    default: Any, short: str | None, help: str, group: str = "optimisation", only: tuple = (),
    before: str = "", **how: Any
) -> Any:  # fmt: skip
    """A field that is a setting, declared only here.

    `short`: its prefix in a run id, where it is not the default; None: another setting implies it.
    `help`, `group` and `how` make its flag, as argparse's add_argument takes them. `only`: the
    setting, and its value, without which this one has no effect. `before`: for a cell's own, the
    setting that follows it in run ids.
    """
    how |= {"default": default, "help": help}
    known = {"short": short, "group": group, "only": only, "before": before, "flag": how}
    return field(default=default, metadata=known)


def flag(name: str) -> str:
    """A setting's flag: `--t-max` of t_max."""
    return f"--{name.replace('_', '-')}"


def spaced(values: Iterable) -> str:
    """A list as a setting's text and the CSV have it: `150 180 210`."""
    return " ".join(map(str, values))


@dataclass(frozen=True)
class Settings:
    """What all cells of a command share. The defaults are the reference protocol.

    The order is that of run ids and of the CSV's last columns: a new one goes to the end.
    """

    dataset: str = setting("cifar10", "", "what to train on", "data", choices=sorted(SOURCES))
    train_size: int = setting(0, "n", "train on a class-balanced subset of N images; 0: on all",
        "data", type=COUNT_OR_NONE, metavar="N")  # fmt: skip
    val_size: int = setting(0, "val", "hold N class-balanced training images out, and measure on "
        "them", "data", type=COUNT_OR_NONE, metavar="N")  # fmt: skip
    epochs: int = setting(100, "e", "passes over the training set", type=COUNT)
    batch_size: int = setting(128, "b", "images a step", type=COUNT)
    last_batch: str = setting("keep", "last", "an epoch's last batch, if smaller: a step as long "
        "as any, no step, or one weighted by its size",
        choices=["keep", "drop", "weigh"])  # fmt: skip
    t_max: int = setting(200, "tmax", "epochs until the cosine reaches 0; the reference stops "
        "half-way", only=("schedule", "cosine"), type=COUNT)  # fmt: skip
    momentum: float = setting(0.0, "m", "SGD momentum", only=("optimizer", "sgd"), type=BELOW_ONE)
    clip: float = setting(0.0, "clip", "clip the gradient's norm (over all weights); 0: off",
        type=NOT_NEGATIVE, metavar="NORM")  # fmt: skip
    normalization: str = setting("reference", "norm", "the reference's constants, or the training "
        "set's own", "data", choices=["reference", "data"])  # fmt: skip
    # Like the device it is how a run is computed, not what: in no run id and no protocol.
    amp: bool = False  # bfloat16 autocast, in the networks that declare AUTOCAST
    schedule: str = setting("cosine", None, "how the learning rate decays: as half a cosine of "
        "--t-max epochs, or at --milestones", choices=["cosine", "step"])  # fmt: skip
    milestones: str = setting("none", "step", "after how many epochs --schedule step multiplies "
        "the learning rate by --gamma", only=("schedule", "step"),
        nargs="+", metavar="EPOCH")  # fmt: skip
    gamma: float = setting(0.1, "gamma", "what a milestone multiplies the learning rate by",
        only=("schedule", "step"), type=POSITIVE)  # fmt: skip
    warmup: int = setting(0, "warm", "epochs of linear warm-up: epoch i of them, from 1, has "
        "i / (N + 1) of the schedule's learning rate",
        type=COUNT_OR_NONE, metavar="N")  # fmt: skip
    nesterov: bool = setting(False, "nesterov", "Nesterov's form of --momentum",
        only=("optimizer", "sgd"), action="store_true")  # fmt: skip
    optimizer: str = setting("sgd", "", "adamw has torch's betas, and wants an --lr like 0.001",
        choices=["sgd", "adamw"])  # fmt: skip
    image_size: int = setting(32, "px", "pixels a side; images of another size are resized", "data",
        type=PIXELS, metavar="N")  # fmt: skip
    augment: str = setting("crop-flip", "aug", "training images padded by an eighth and cropped, "
        "and flipped half the time; only flipped; or as they are", "data",
        choices=AUGMENTS)  # fmt: skip
    recipe: str = setting("reference", "", "a protocol: settings, and methods' weights, where no "
        "flag says otherwise. crd is RepDistiller's for CIFAR-100, its milestones scaled to "
        "--epochs", choices=sorted(RECIPES))  # fmt: skip
    draw: int = setting(0, "draw", "which class-balanced subset of --train-size images: another "
        "N, other images", "data", type=COUNT_OR_NONE, metavar="N")  # fmt: skip

    def __post_init__(self) -> None:
        """Raises UserError for settings that contradict each other."""
        for each in fields(self):
            name, value = each.metadata.get("only") or (each.name, getattr(self, each.name))
            if getattr(self, each.name) != each.default and getattr(self, name) != value:
                raise UserError(f"{flag(each.name)} has no effect without {flag(name)} {value}")
        if self.draw and not self.train_size:
            raise UserError("--draw has no effect without --train-size: it draws so many images")
        if self.nesterov and not self.momentum:
            raise UserError("--nesterov has no effect without --momentum")
        epochs = sorted({int(e) for e in re.findall(r"\b[1-9][0-9]{0,8}\b", self.milestones)})
        if self.schedule == "step" and (not epochs or self.milestones != spaced(epochs)):
            raise UserError("--schedule step needs --milestones that grow, as 150 180 210")


@dataclass(frozen=True)
class Cell:
    """One network to train. `teacher_seed` is None where there is no teacher.

    lr and weight decay are a cell's own, so that a baseline can be tuned as much as a method.
    """

    model: str
    width: int
    seed: int
    method: str = "none"
    alpha: float = 0.0  # weight of the soft loss; the hard loss has 1 - alpha, or hard_weight
    temperature: float | None = None
    beta: float | None = None  # weight of the method's term, where it has one
    scale_t2: bool = False
    lr: float = setting(
        0.1, "lr", "learning rate of the first epoch", before="t_max", type=POSITIVE
    )
    weight_decay: float = setting(
        0.0, "wd", "weight decay; decoupled with adamw", before="clip", type=NOT_NEGATIVE
    )
    teacher_seed: int | None = None
    teaches: bool = False  # a teacher, whose run id has only data set, model and seed
    student_layers: str = ""  # names of modules whose outputs are stages; blank: those found
    teacher_layers: str = ""
    weights: str = ""  # a teacher's: 12 hex digits of the SHA-256 of its --weights file
    auto_beta: bool = False  # beta is what the first batch says (engine/balance.py)
    soft_warmup: int = 0  # epoch i of so many, from 1, has i / N of the soft loss's weight
    hard_weight: float | None = None
    teacher_model: str = ""  # the teacher's network; blank: a ResNet-18, of any width
    # A control's: `shuffled`, the teacher's answers to another image of the class, is done by the
    # engine; any other word says which teacher it is (sides.CONTROLS).
    answers: str = ""

    @property
    def learns_from_logits(self) -> bool:
        """Whether its method compares logits with the teacher's."""
        return any(part.family == "response" for part in parts(self.method))

    @property
    def hard(self) -> float:
        """The weight of the hard loss."""
        return 1 - self.alpha if self.hard_weight is None else self.hard_weight

    @property
    def taught(self) -> bool:
        """Whether a teacher has a part in its training."""
        return is_taught(self.method)


def declared() -> dict[str, Field]:
    """Every setting, a cell's own among them, in the order of run ids."""
    found = [each for each in fields(Settings) if each.metadata]
    for own in (each for each in fields(Cell) if each.metadata):
        names = [each.name for each in found]
        found.insert(names.index(own.metadata["before"]), own)
    return {each.name: each for each in found}


SETTINGS = declared()
OPTIMISER = tuple(f.name for f in fields(Cell) if f.metadata)  # a cell's own
REFERENCE = {"amp": Settings.amp} | {name: f.default for name, f in SETTINGS.items()}
DATA_SETTINGS = ("dataset", "train_size", "val_size", "image_size", "draw")


def defaults(recipe: str, model: str, epochs: int | None = None) -> dict:
    """Every setting as a recipe has it for a network, in a run of so many epochs."""
    return REFERENCE | settings_of(recipe, model, epochs) | {"recipe": recipe}


def changed(values: dict, names: Iterable[str], model: str = "") -> str:
    """`-e5-tmax5` and the like: the settings among `names` whose value is not the recipe's.

    A recipe other than the reference's protocol is named, as `-crd`.
    """
    usual = defaults(values["recipe"], model, values["epochs"])
    usual["recipe"] = REFERENCE["recipe"]
    shorts = {name: SETTINGS[name].metadata["short"] for name in names}
    return "".join(
        f"-{short}{text(values[name])}"
        for name, short in shorts.items()
        if short is not None and values[name] != usual[name]
    )


def every_setting(cell: Cell, settings: Settings) -> dict:
    """A run's settings, its cell's own among them."""
    return asdict(settings) | {name: getattr(cell, name) for name in OPTIMISER}


def data_suffix(settings: Settings) -> str:
    """The settings in a teacher's run id: its data."""
    return changed(asdict(settings), DATA_SETTINGS)


def text(value: float | str) -> str:
    """5.0 as 5, 2.5 as 2.5, 150 180 as 150.180; different values stay different; True is ""."""
    if isinstance(value, str):
        return value.replace(" ", ".")
    return "" if value is True else repr(value + 0).removesuffix(".0")


def run_id(cell: Cell, settings: Settings) -> str:
    """`cnn-kd-a0.5-T10-s0`, then every setting that differs from the recipe; unique."""
    parts = [file_name(cell.model)]
    if cell.width != default_width(cell.model):
        parts[0] += f"w{cell.width}"
    if cell.teaches:
        parts.append("teacher")
    elif cell.method != "none" or cell.alpha != 0:
        parts += [cell.method, f"a{text(cell.alpha)}"]
    if cell.temperature is not None:
        parts.append(f"T{text(cell.temperature)}")
    if cell.beta is not None:
        parts.append(f"b{text(cell.beta)}")
    if cell.auto_beta:
        parts.append("bauto")
    if cell.scale_t2:
        parts.append("t2")
    if cell.hard_weight is not None:
        parts.append(f"h{text(cell.hard_weight)}")
    if cell.soft_warmup:
        parts.append(f"sw{cell.soft_warmup}")
    if cell.answers:
        parts.append(cell.answers)
    parts.append(f"s{cell.seed}")
    if cell.teacher_seed is not None and cell.teacher_seed != 0:
        parts.append(f"ts{cell.teacher_seed}")
    if cell.teacher_model:
        parts.append(f"t_{file_name(cell.teacher_model)}")
    parts += [
        f"{short}_{in_short(layers)}"
        for short, layers in (("sl", cell.student_layers), ("tl", cell.teacher_layers))
        if layers
    ]
    return "-".join(parts) + ending(cell, settings)


def ending(cell: Cell, settings: Settings) -> str:
    """A run id's settings: a teacher's are its data's alone."""
    if cell.teaches:
        return data_suffix(settings)
    return changed(every_setting(cell, settings), SETTINGS, cell.model)


def in_short(layers: str) -> str:
    """Layers as part of a run id: layer1+layer2, or a checksum where that is long."""
    named = file_name("+".join(layers.split()))
    return named if len(named) <= 40 else f"{zlib.crc32(layers.encode()):08x}"


def label(cell: Cell) -> str:
    """The cell in words, for progress lines."""
    parts = [
        cell.model
        if cell.width == default_width(cell.model)
        else f"{cell.model} of width {cell.width}"
    ]
    if cell.teaches:
        parts[0] += " teacher"
    elif cell.method == "none":
        parts[0] += f", hard loss x {cell.hard:g}" if cell.alpha else " alone"
    else:
        temperature = f" T {cell.temperature:g}" if cell.temperature is not None else ""
        control = f", {cell.answers} answers," if cell.answers else ""
        parts[0] += f" {cell.method}{control} alpha {cell.alpha:g}{temperature}"
    for name in OPTIMISER:
        if (value := getattr(cell, name)) != REFERENCE[name]:
            parts.append(f"{name.replace('_', ' ')} {value:g}")
    return ", ".join([*parts, f"seed {cell.seed}"])
