"""A teacher's weights from elsewhere (--weights), and its normalisation."""

import hashlib
import io
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from engine.cells import Cell, Settings
from models import build
from models.foreign import guarded
from utils import UserError, brief, listed, note, what_is_wrong

State = dict[str, Tensor]


class Weights(NamedTuple):
    """Weights by name; of this project's checkpoints also what their images were."""

    state: State
    moments: tuple[tuple, tuple] | None = None  # mean and std
    classes: list[str] | None = None


def read_weights(path: Path) -> tuple[str, Weights]:
    """The first 12 hex digits of a file's SHA-256, and its weights.

    A state_dict, or one under one of NESTED. Raises UserError.
    """
    try:
        raw = path.read_bytes()
    except OSError as error:
        raise UserError(f"cannot read --weights {path} ({error.strerror})") from None
    try:
        content = torch.load(io.BytesIO(raw), map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises half a dozen kinds
        raise UserError(
            f"--weights {path} holds no weights alone ({brief(error)[:80]}): save a state_dict"
        ) from None
    inner = [content] + [content.get(n) for n in NESTED] if isinstance(content, dict) else []
    found = next((state for state in inner if is_state(state)), None)
    if found is None:
        raise UserError(
            f"--weights {path} has no state_dict, neither as a whole nor under {', '.join(NESTED)}"
        )
    found = {name: value for name, value in found.items() if name != AVERAGED}
    known = ()
    if what_is_wrong(content) is None:
        known = (tuple(content["mean"]), tuple(content["std"])), content.get("class_names")
    return hashlib.sha256(raw).hexdigest()[:12], Weights(found, *known)


AVERAGED = "n_averaged"  # torch's AveragedModel counts its updates beside the weights
NESTED = ("state_dict", "model_state_dict", "model", "net", "state")


def is_state(content: object) -> bool:
    """Whether it is a state_dict: tensors by name."""
    return (
        isinstance(content, dict)
        and bool(content)
        and all(isinstance(n, str) and isinstance(v, Tensor) for n, v in content.items())
    )


def fitting(given: Weights, cell: Cell, names: list[str], settings: Settings) -> State:
    """The weights, checked against the cell's network and the classes. Raises UserError.

    Where they are of other classes and are to be trained, those of the last layer are left out.
    """
    classes = len(names)
    own = build(cell.model, cell.width, classes, settings.image_size).state_dict()
    weights = without_wrapper(given.state, own)
    missing, unknown = own.keys() - weights.keys(), weights.keys() - own.keys()
    # A batch norm counts its batches since 2018; older weights lack that, and nothing reads it.
    if unknown or not all(name.endswith("num_batches_tracked") for name in missing):
        raise UserError(
            f"--weights are not of {cell.model}: they lack "
            f"{listed([n for n in own if n in missing])} and have "
            f"{listed([n for n in weights if n in unknown])} besides"
        )
    other = [name for name in weights if own[name].shape != weights[name].shape]
    if other and all(of_classes(own[n], weights[n], classes) for n in other):
        apart = f"{len(weights[other[0]])} classes apart and the data have {classes}"
        if not settings.epochs:
            raise UserError(f"--weights tell {apart}: fine-tune them (--epochs)")
        note(f"--weights tell {apart}: {listed(other)} start afresh")
        weights = {name: value for name, value in weights.items() if name not in other}
        other = []
    if other:
        theirs, ours = (list(state[other[0]].shape) for state in (weights, own))
        raise UserError(f"--weights are not of {cell.model}: {other[0]} is {theirs}, not {ours}")
    if given.classes and given.classes != names and not settings.epochs:
        raise UserError(
            f"--weights tell apart {listed(given.classes, 8)}, in this order, and the classes of "
            f"the data are {listed(names, 8)}: fine-tune them (--epochs)"
        )
    with guarded("--weights"):  # tensors may be sparse, without content, of no type for arithmetic
        sound = all(is_sound(value.float(), own[name]) for name, value in weights.items())
    if not sound:
        raise UserError("--weights has some that are not finite")
    return weights


def is_sound(value: Tensor, made: Tensor | None = None) -> bool:
    """Whether all of it is finite, or as it was made: a mask has its -inf."""
    same = made is not None and made.shape == value.shape and value == made
    return bool((torch.isfinite(value) | same).all())


def without_wrapper(weights: State, own: State) -> State:
    """Leave out what wrappers put before every name, as `module.`, `_orig_mod.` and `model.`."""
    while not own.keys() & weights.keys():
        first = {name.partition(".")[0] for name in weights}
        if len(first) > 1 or not all("." in name for name in weights):
            break
        weights = {name.partition(".")[2]: value for name, value in weights.items()}
    return weights


def of_classes(own: Tensor, other: Tensor, classes: int) -> bool:
    """Whether two shapes differ only in the first dimension, the classes."""
    both = own.dim() > 0 and other.dim() > 0
    return both and own.shape[1:] == other.shape[1:] and len(own) == classes


def moments_text(mean: list[float] | None, std: list[float] | None) -> str:
    """--mean and --std as the setting `normalization`, which images.sources reads. UserError."""
    if not mean or not std:
        raise UserError("--mean and --std go together, three numbers each")
    return "/".join(" ".join(map(repr, values)) for values in (mean, std))
