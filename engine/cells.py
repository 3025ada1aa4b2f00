"""What is trained: a cell (student, method, alpha, temperature, seed), under settings.

A cell is an independent unit of work. Its run id names it together with every setting that
differs from the reference protocol, so that two runs share an id only if they are the same run.
"""

from dataclasses import dataclass

from losses import METHODS
from models import MODELS


@dataclass(frozen=True)
class Settings:
    """What all cells of a command share. The defaults are the reference protocol."""

    dataset: str = "cifar10"
    train_size: int = 0  # images; 0: all there are
    val_size: int = 0  # images held out of training
    epochs: int = 100
    batch_size: int = 128
    lr: float = 0.1
    t_max: int = 200  # epochs in half a cosine; the reference stops half-way down
    momentum: float = 0.0
    weight_decay: float = 0.0
    normalization: str = "reference"
    amp: bool = False  # bfloat16 autocast in the networks that gain by it


@dataclass(frozen=True)
class Cell:
    """One network to train. `teacher_seed` is None where no teacher is asked."""

    model: str
    width: int
    seed: int
    method: str = "none"
    alpha: float = 0.0  # weight of the soft loss; the hard loss has 1 - alpha
    temperature: float | None = None
    beta: float | None = None  # the method's own weight of its term, where it has one
    scale_t2: bool = False
    teacher_seed: int | None = None
    teaches: bool = False  # a teacher: found by data set, model and seed alone

    @property
    def family(self) -> str | None:
        """What its method learns from: response, feature or relation; None without a teacher."""
        return METHODS[self.method].family if self.method != "none" else None


# How each setting reads in a run id, where it is not the protocol's. amp is not here: like the
# device it says how a run is computed, not what is.
SHORT = {
    "dataset": "",
    "train_size": "n",
    "val_size": "val",
    "epochs": "e",
    "batch_size": "b",
    "lr": "lr",
    "t_max": "tmax",
    "momentum": "m",
    "weight_decay": "wd",
    "normalization": "norm",
}
DATA_SETTINGS = ("dataset", "train_size", "val_size")


def changed_settings(settings: Settings, names: tuple[str, ...]) -> str:
    """`-e5-tmax5` and the like: the settings among `names` that are not the protocol's."""
    defaults = Settings()
    values = {name: getattr(settings, name) for name in names}
    return "".join(
        f"-{SHORT[name]}{text(value)}"
        for name, value in values.items()
        if value != getattr(defaults, name)
    )


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
    names = DATA_SETTINGS if cell.teaches else tuple(SHORT)
    return "-".join(parts) + changed_settings(settings, names)


def label(cell: Cell) -> str:
    """The cell as a person would say it, for progress lines."""
    if cell.teaches:
        return f"{cell.model} teacher, seed {cell.seed}"
    if cell.method == "none":
        scaled = f", hard loss x {1 - cell.alpha:g}" if cell.alpha else " alone"
        return f"{cell.model}{scaled}, seed {cell.seed}"
    temperature = f" T {cell.temperature:g}" if cell.temperature is not None else ""
    return f"{cell.model} {cell.method} alpha {cell.alpha:g}{temperature}, seed {cell.seed}"
