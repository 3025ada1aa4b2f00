"""The teacher, loaded from its checkpoint alone."""

import contextlib
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor, nn

from engine.cells import Settings
from engine.weights import is_sound
from images.views import Split, normalise, plain
from models import MODELS, Imported, Stages, autocast, build, find, is_own, on_device
from utils import UserError, load_checkpoint

# Views of 32 pixels a forward pass. Rounding depends on it, so it is a constant and not a flag.
CHUNK = defaultdict(lambda: 2000, cpu=64)  # by type of device


@dataclass
class Teacher:
    """A trained network in eval mode, with its checkpoint's description."""

    model: nn.Module
    run_id: str
    sha: str
    mean: tuple[float, ...]
    std: tuple[float, ...]
    amp: bool
    data: int = 0  # the fingerprint of the images it was trained on
    settings: dict = field(default_factory=dict)  # that it was trained with
    folder: Path | None = None  # where its checkpoint lies
    layers: tuple[str, ...] = ()  # modules whose outputs are its stages; none: those found
    code: str = ""  # checksum of the file that a user's own network is in
    stages: Stages | None = None  # found at the first call that needs them

    @torch.no_grad()
    def __call__(self, pixels: Tensor, stages: bool = False) -> Tensor | tuple[Tensor, dict]:
        """uint8 [n, 3, S, S] to float32 logits [n, K], normalised as the teacher was trained."""
        x = normalise(pixels, self.mean, self.std)
        with same_kernels(), autocast(self.model, x.device, self.amp):
            if not stages:
                return self.model(x).float()
            self.stages = self.stages or find(self.model, x[:2], self.layers, "the teacher")
            with self.stages.watch() as seen:
                logits = self.model(x)
        return logits.float(), {name: stage.float() for name, stage in seen.items()}


@contextlib.contextmanager
def same_kernels() -> Iterator[None]:
    """cuDNN's default, deterministic convolutions instead of benchmarked ones.

    With cudnn.benchmark two commands could differ in the last bit, and not use the same cache.
    """
    cudnn = torch.backends.cudnn
    before = cudnn.benchmark, cudnn.deterministic
    cudnn.benchmark, cudnn.deterministic = False, True
    try:
        yield
    finally:
        cudnn.benchmark, cudnn.deterministic = before


def load_teacher(
    path: Path,
    classes: list[str],
    amp: bool,
    device: torch.device,
    any_names: bool = False,
    image_size: int = Settings.image_size,
    own: Imported | None = None,
    layers: tuple[str, ...] = (),
) -> Teacher:
    """Read a teacher from its checkpoint alone; `any_names` lets its classes have other names.

    `own` is the network that --teacher-model names. Raises UserError if the file is missing,
    broken, of an unknown architecture, holds weights of another one, or has other classes or
    another image size, in pixels a side, than the data.
    """
    stored = load_checkpoint(path)
    if stored["classes"] != len(classes):
        raise UserError(
            f"{path} tells {stored['classes']} classes apart and the data have {len(classes)}: "
            "train a teacher on these data"
        )
    size = stored["image_size"]
    if size != image_size:
        raise UserError(
            f"{path} was trained on images of {size} pixels a side and these have {image_size}: "
            f"train a teacher with --image-size {image_size}, or distil with --image-size {size}"
        )
    names = stored.get("class_names", classes)
    if names != classes and not any_names:
        raise UserError(
            f"the classes of {path} are {', '.join(map(str, names))}, in this order, and those of "
            f"the data {', '.join(classes)}: it would teach the wrong ones. Train one on "
            "these data (train_teacher.py --overwrite) or, if you mean it, --other-classes"
        )
    return teacher_of(stored, path, amp, device, own, layers)


def teacher_of(
    stored: dict,
    path: Path,
    amp: bool,
    device: torch.device,
    own: Imported | None = None,
    layers: tuple[str, ...] = (),
) -> Teacher:
    """What load_checkpoint has read from `path` as a Teacher. Raises UserError as network_of."""
    return Teacher(
        model=on_device(network_of(stored, path, own), device).requires_grad_(False),
        run_id=stored["run_id"],
        sha=stored["sha"],
        mean=tuple(stored["mean"]),
        std=tuple(stored["std"]),
        amp=amp,
        data=stored["data"],
        settings=stored["settings"] if isinstance(stored.get("settings"), dict) else {},
        folder=path.parent,
        layers=layers,
        code=own.code if own else "",
    )


def network_of(stored: dict, path: Path, own: Imported | None = None) -> nn.Module:
    """The network of a checkpoint that load_checkpoint has read from `path`, in eval mode.

    A user's own network is `own`, which the command line named. Raises UserError.
    """
    name, width, classes, size = (stored[n] for n in ("model", "width", "classes", "image_size"))
    if is_own(name) and not own:
        raise UserError(
            f"{path} is of a network of somebody's own, {name[:80]!r}, and no checkpoint has a "
            "file imported: name it with --teacher-model FILE.py:Net (export, predict: --model)"
        )
    what = own.name if own else f"{name} of width {width}" if name in MODELS else name
    try:
        if name in MODELS and not own:
            with torch.device("meta"):  # a foreign checkpoint's width may not fit into memory
                build(name, width, classes, size).load_state_dict(stored["state"], assign=True)
        model = own.build(classes) if own else build(name, width, classes, size)
        made = {n: value.clone() for n, value in model.named_buffers()}
        model.load_state_dict(stored["state"])
    except UserError as error:
        raise UserError(f"{path}: {error}") from None
    except Exception:  # whatever an odd width or a key that is no text leads to
        raise UserError(
            f"{path} says it is a {name[:80]}, but its weights are of another architecture than "
            f"{what}: train it again (train_teacher.py --overwrite), or name its network"
        ) from None
    sound = all(is_sound(value, made.get(name)) for name, value in model.named_buffers())
    if not (sound and all(map(is_sound, model.parameters()))):
        raise UserError(
            f"{path} has weights that are not finite: train it again (train_teacher.py --overwrite)"
        )
    return model.eval()


def chunk_size(split: Split, at_32: int) -> int:
    """Images a forward pass: as many pixels as `at_32` images of 32 x 32, but at least 16."""
    return max(min(16, at_32), at_32 * 32**2 // split.size**2)


def plain_logits(teacher: Teacher, split: Split) -> Tensor:
    """The teacher's logits for a split without augmentation, [N, K] on the device."""
    size = chunk_size(split, CHUNK[split.labels.device.type])
    starts = range(0, len(split), size)
    return torch.cat([teacher(plain(split, slice(i, i + size))) for i in starts])
