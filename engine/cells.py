"""What is trained: a cell (student, method, alpha, temperature, seed), under settings.

A cell is an independent unit of work. Its run id names it together with every setting that
differs from the reference protocol, so that two runs share an id only if they are the same run.
"""

from collections.abc import Iterable
from dataclasses import asdict, dataclass

from losses import METHODS, is_taught
from models import MODELS


@dataclass(frozen=True)
class Settings:
    """What all cells of a command share. The defaults are the reference protocol."""

    dataset: str = "cifar10"
    train_size: int = 0  # images; 0: all there are
    val_size: int = 0  # images held out of training
    epochs: int = 100
    batch_size: int = 128
    last_batch: str = "keep"  # what is left of an epoch: a step as any, dropped, or weighed
    t_max: int = 200  # epochs in half a cosine; the reference stops half-way down
    momentum: float = 0.0
    clip: float = 0.0  # longest gradient of a step, over all weights; 0: however long it is
    normalization: str = "reference"
    image_size: int = 32  # pixels a side
    augment: str = "crop-flip"
    amp: bool = False  # bfloat16 autocast in the networks that gain by it


@dataclass(frozen=True)
class Cell:
    """One network to train. `teacher_seed` is None where no teacher is asked.

    lr and weight decay are a cell's own: a baseline is to be tuned as much as a method is.
    """

    model: str
    width: int
    seed: int
    method: str = "none"
    alpha: float = 0.0  # weight of the soft loss; the hard loss has 1 - alpha
    temperature: float | None = None
    beta: float | None = None  # the method's own weight of its term, where it has one
    scale_t2: bool = False
    lr: float = 0.1  # of the first epoch
    weight_decay: float = 0.0
    teacher_seed: int | None = None
    teaches: bool = False  # a teacher: found by data set, model and seed alone

    @property
    def family(self) -> str | None:
        """What its method learns from: response, feature, relation or labels; None without one."""
        return METHODS[self.method].family if self.method != "none" else None

    @property
    def taught(self) -> bool:
        """Whether a teacher has a part in its training."""
        return is_taught(self.method)


# The reference's settings, a cell's own among them.
OPTIMISER = ("lr", "weight_decay")
REFERENCE = asdict(Settings()) | {name: getattr(Cell, name) for name in OPTIMISER}

# How each of them reads in a run id, where it is another. amp is not here: like the device it says
# how a run is computed, not what is.
SHORT = {
    "dataset": "",
    "train_size": "n",
    "val_size": "val",
    "epochs": "e",
    "batch_size": "b",
    "last_batch": "last",
    "lr": "lr",
    "t_max": "tmax",
    "momentum": "m",
    "weight_decay": "wd",
    "clip": "clip",
    "normalization": "norm",
    "image_size": "px",
    "augment": "aug",
}
DATA_SETTINGS = ("dataset", "train_size", "val_size", "image_size")


def changed(values: dict, names: Iterable[str]) -> str:
    """`-e5-tmax5` and the like: the settings among `names` whose value is not the reference's."""
    return "".join(
        f"-{SHORT[name]}{text(values[name])}" for name in names if values[name] != REFERENCE[name]
    )


def every_setting(cell: Cell, settings: Settings) -> dict:
    """A run's settings, its cell's own among them."""
    return asdict(settings) | {name: getattr(cell, name) for name in OPTIMISER}


def data_suffix(settings: Settings) -> str:
    """What a teacher's run id says of its settings: its data."""
    return changed(asdict(settings), DATA_SETTINGS)


def text(value: float | str) -> str:
    """5.0 as 5, 2.5 as 2.5, and no two different values alike."""
    return value if isinstance(value, str) else repr(value + 0).removesuffix(".0")


def run_id(cell: Cell, settings: Settings) -> str:
    """Readable and unique: `cnn-kd-a0.5-T10-s0`, then what differs from the protocol."""
    parts = [cell.model]
    if cell.width != MODELS[cell.model].DEFAULT_WIDTH:
        parts[0] += f"w{cell.width}"
    if cell.teaches:
        parts.append("teacher")
    elif cell.method != "none" or cell.alpha != 0:
        parts += [cell.method, f"a{text(cell.alpha)}"]
    if cell.temperature is not None:
        parts.append(f"T{text(cell.temperature)}")
    if cell.beta is not None:
        parts.append(f"b{text(cell.beta)}")
    if cell.scale_t2:
        parts.append("t2")
    parts.append(f"s{cell.seed}")
    if cell.teacher_seed is not None and cell.teacher_seed != 0:
        parts.append(f"ts{cell.teacher_seed}")
    if cell.teaches:
        return "-".join(parts) + data_suffix(settings)
    return "-".join(parts) + changed(every_setting(cell, settings), SHORT)


def label(cell: Cell) -> str:
    """The cell as a person would say it, for progress lines."""
    parts = [
        cell.model
        if cell.width == MODELS[cell.model].DEFAULT_WIDTH
        else f"{cell.model} of width {cell.width}"
    ]
    if cell.teaches:
        parts[0] += " teacher"
    elif cell.method == "none":
        parts[0] += f", hard loss x {1 - cell.alpha:g}" if cell.alpha else " alone"
    else:
        temperature = f" T {cell.temperature:g}" if cell.temperature is not None else ""
        parts[0] += f" {cell.method} alpha {cell.alpha:g}{temperature}"
    for name in OPTIMISER:
        if (value := getattr(cell, name)) != REFERENCE[name]:
            parts.append(f"{name.replace('_', ' ')} {value:g}")
    return ", ".join([*parts, f"seed {cell.seed}"])
