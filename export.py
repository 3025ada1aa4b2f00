"""Export a trained network: one file, normalisation inside, that needs nothing from here.

    python export.py --checkpoint checkpoints/RUN.pt --format pt2 --out student.pt2
    python export.py --checkpoint checkpoints/RUN.pt --format onnx --out student.onnx \\
        --dataset cifar10 --teacher teachers/cifar10-resnet18w32.pt

Its input is float32 [batch, 3, size, size], RGB from 0 to 1, its output logits. They are compared
with the checkpoint's, on test images where --dataset names some.
"""

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))  # python -P leaves it out

import torch
from torch import Tensor

import flags
from engine.portable import FORMATS, export, largest_difference, milliseconds, open_checkpoint
from images.sources import SOURCES, load
from images.views import plain
from utils import ROOT, UserError, run_script, say, stream, write_atomic

MOST = 500  # test images compared


def main(argv: list[str] | None = None) -> None:
    args = parse(argv)
    if args.out.exists() and not args.overwrite:
        raise UserError(f"{args.out} is there already: choose another --out, or --overwrite")
    network, classes, size = open_checkpoint(args.checkpoint, args.model)
    teacher = open_checkpoint(args.teacher, args.teacher_model) if args.teacher else None
    content, program = export(network, classes, size, args.format)
    theirs = export(*teacher, args.format)[0] if teacher else b""  # before anything is written
    checked = "not checked, for onnxruntime is not installed: pip install onnxruntime"
    if program:
        pixels, what = examples(args, size)
        difference = largest_difference(program, network, pixels)
        checked = f"checked on {what}: the logits differ by at most {difference:.1e}"
    write_atomic(args.out, content)
    say(f"{args.out}: images float32 [batch, 3, {size}, {size}], RGB from 0 to 1, to {len(classes)}"
        f" logits; {checked}")  # fmt: skip
    report("this network", len(content), milliseconds(network, size))
    if teacher:
        network, _, size = teacher
        report("the teacher", len(theirs), milliseconds(network, size))


def examples(args: argparse.Namespace, size: int) -> tuple[Tensor, str]:
    """Images to compare on, uint8 [N, 3, size, size], and what they are."""
    if args.dataset:
        test = load(args.dataset, args.data_dir, torch.device("cpu"), image_size=size).test
        pixels = plain(test, slice(None, None, -(-len(test) // MOST)))  # may be sorted by class
        return pixels, f"{len(pixels)} test images of {args.dataset}"
    draw = stream(0, 0, "export").integers(0, 256, (64, 3, size, size), dtype="uint8")
    return torch.from_numpy(draw), "64 images of random pixels (--dataset: on test images)"


def report(who: str, size: int, time: float) -> None:
    """Print a network's size in bytes and time in milliseconds."""
    where = "in torch on one thread of this CPU, median"
    say(f"{who}: {size / 1e6:.2f} MB as a file, {time:.2f} ms for one image ({where})")


def parse(argv: list[str] | None) -> argparse.Namespace:
    parser = flags.Parser(description=__doc__.splitlines()[0], allow_abbrev=False)
    add = parser.add_argument
    add("--checkpoint", type=Path, required=True, help="the network, of this project")
    add("--format", choices=sorted(FORMATS), required=True,
        help="pt2: for torch.export.load; onnx: takes pip install onnx onnxscript")  # fmt: skip
    add("--out", type=Path, required=True, help="the file to write")
    add("--overwrite", action="store_true", help="write over a file that is there")
    add("--model", **flags.OWN)
    add("--teacher-model", **flags.OWN)
    add("--teacher", type=Path, help="a checkpoint whose size and time are shown beside it")
    add("--dataset", choices=sorted(SOURCES), help="whose test images to compare on")
    add("--data-dir", type=flags.folder, default=ROOT / "data", help="where they are")
    return parser.parse_args(argv)


if __name__ == "__main__":
    run_script(main)
