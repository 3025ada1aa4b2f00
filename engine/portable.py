"""A trained network to be used elsewhere: from its checkpoint, normalisation inside, to a file."""

import copy
import io
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn

from engine.teacher import Teacher, teacher_of
from models import Imported
from utils import UserError, brief, load_checkpoint

CHECKED = 500 * 3 * 32 * 32  # values of images that are compared at once
TIMED = 30  # forward passes of one image, after five to warm up


def open_checkpoint(path: Path, own: Imported | None = None) -> tuple[Teacher, list[str], int]:
    """The network of any checkpoint of this project on the CPU, its classes and its image size.

    `own` is a user's own network, which the command line named. Raises UserError where there is no
    checkpoint, or as load_checkpoint and network_of do.
    """
    if not path.is_file():
        raise UserError(f"no checkpoint at {path}: training leaves them in checkpoints/")
    stored = load_checkpoint(path)
    classes = stored.get("class_names") or [str(i) for i in range(stored["classes"])]
    network = teacher_of(stored, path, amp=False, device=torch.device("cpu"), own=own)
    return network, classes, stored["image_size"]


class Portable(nn.Module):
    """float32 [B, 3, S, S], RGB from 0 to 1, to logits [B, K]: a network and its normalisation."""

    def __init__(self, teacher: Teacher):
        super().__init__()
        # channels_last is this machine's choice, not the file's.
        self.model = copy.deepcopy(teacher.model).to(memory_format=torch.contiguous_format)
        self.register_buffer("mean", torch.tensor(teacher.mean).view(3, 1, 1))
        self.register_buffer("std", torch.tensor(teacher.std).view(3, 1, 1))
        self.eval().requires_grad_(False)

    def forward(self, images: Tensor) -> Tensor:
        return self.model((images - self.mean) / self.std)


Program = Callable[[Tensor], Tensor]


def to_pt2(network: Portable, example: Tensor, classes: list[str]) -> bytes:
    """A torch.export program for any number of images; classes.json is in it, too."""
    batch = {0: torch.export.Dim("batch")}
    file = io.BytesIO()
    with torch.no_grad():
        program = torch.export.export(network, (example,), dynamic_shapes=(batch,))
        torch.export.save(program, file, extra_files={"classes.json": json.dumps(classes)})
    return file.getvalue()


def from_pt2(content: bytes) -> Program:
    return torch.export.load(io.BytesIO(content)).module()


def to_onnx(network: Portable, example: Tensor, classes: list[str]) -> bytes:
    """An ONNX model, `images` to `logits`; its metadata have the classes. Raises UserError."""
    try:
        import onnx  # noqa: F401
        import onnxscript  # noqa: F401
    except ImportError:
        raise UserError(
            "--format onnx takes two more packages: pip install onnx onnxscript"
        ) from None
    with torch.no_grad():
        program = torch.onnx.export(
            network,
            (example,),
            dynamo=True,
            verbose=False,
            input_names=["images"],
            output_names=["logits"],
            dynamic_shapes=({0: torch.export.Dim("batch")},),
        )
    program.model.metadata_props["classes"] = json.dumps(classes)
    return program.model_proto.SerializeToString()


def from_onnx(content: bytes) -> Program | None:
    """The model as onnxruntime runs it; None where that is not installed."""
    try:
        from onnxruntime import InferenceSession
    except ImportError:
        return None
    session = InferenceSession(content, providers=["CPUExecutionProvider"])
    return lambda images: torch.from_numpy(session.run(None, {"images": images.numpy()})[0])


FORMATS = {"pt2": (to_pt2, from_pt2), "onnx": (to_onnx, from_onnx)}


def export(
    teacher: Teacher, classes: list[str], size: int, kind: str
) -> tuple[bytes, Program | None]:
    """A network as a file of this kind, and the program read back from it.

    The program is None where nothing installed runs it. Raises UserError for a network that
    torch.export cannot trace.
    """
    write, read = FORMATS[kind]
    example = torch.zeros(2, 3, size, size)  # of one image, torch takes the batch to be fixed
    try:
        content = write(Portable(teacher), example, classes)
    except UserError:
        raise
    except Exception as error:  # whatever a network's code does that cannot be traced
        why = brief(error)
        if "specialized" in why:
            why = "its code fixes the number of images, as x.view(len(x), -1) does: x.flatten(1)"
        raise UserError(f"torch cannot export {teacher.run_id} ({why})") from None
    return content, read(content)


def largest_difference(program: Program, teacher: Teacher, pixels: Tensor) -> float:
    """Between the logits of a program and of its checkpoint, for pixels uint8 [N, 3, S, S].

    Raises UserError where it is more than rounding.
    """
    apart, size = [], [torch.ones(())]
    for part in pixels.split(max(1, CHECKED // pixels[0].numel())):
        wanted = teacher(part)
        found = program(part.contiguous().float() / 255)
        apart.append((found - wanted).abs().max())
        size.append(wanted.abs().max())
    difference = torch.stack(apart).max().item()  # NaN where one is
    if not difference <= 1e-3 * torch.stack(size).max().item():
        raise UserError(f"the exported logits differ from the checkpoint's by {difference:g}")
    return difference


@torch.no_grad()
def milliseconds(teacher: Teacher, size: int) -> float:
    """Median milliseconds of a forward pass of one image in torch, on one CPU thread."""
    network, image, times = Portable(teacher), torch.zeros(1, 3, size, size), []
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # several wait for each other on a busy machine
    for _ in range(5 + TIMED):  # (torch.utils.benchmark would warn of a missing CUDA compiler)
        begin = time.perf_counter()
        network(image)
        times.append(time.perf_counter() - begin)
    torch.set_num_threads(threads)
    return 1000 * statistics.median(times[5:])
