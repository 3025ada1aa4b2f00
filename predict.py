"""Name the class of images: a line `path<TAB>class<TAB>probability` for each.

    python predict.py --checkpoint checkpoints/RUN.pt image.png another.jpg

An image of another size than the network's is resized to it, whatever its shape. One that cannot be
read has a line on stderr, and the exit status is then 1.
"""

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))  # python -P leaves it out

import numpy as np
import torch
from PIL import Image
from torch import Tensor

import flags
from engine.portable import open_checkpoint
from images.folder import FORMATS, rgb
from utils import brief, note, run_script, say


def main(argv: list[str] | None = None) -> None:
    args = parse(argv)
    network, classes, size = open_checkpoint(args.checkpoint, args.model)
    unread = 0
    for path in args.images:
        try:
            pixels = read(path, size)
        except Exception as error:  # Pillow's decoders raise whatever they like
            note(f"cannot read the image {path} ({brief(error)})")
            unread += 1
            continue
        probability, label = network(pixels)[0].softmax(0).max(0)
        say(f"{path}\t{classes[label]}\t{probability:.4f}")
    if unread:
        raise SystemExit(1)


def read(path: Path, size: int) -> Tensor:
    """An image as training on a folder sees it: uint8 [1, 3, size, size]. Raises as Pillow does."""
    Image.init()
    with Image.open(path, formats=[name for name in FORMATS if name in Image.OPEN]) as image:
        pixels = np.array(rgb(image).resize((size, size)))
    return torch.from_numpy(pixels).permute(2, 0, 1)[None]


def parse(argv: list[str] | None) -> argparse.Namespace:
    parser = flags.Parser(description=__doc__.splitlines()[0], allow_abbrev=False)
    parser.add_argument("--checkpoint", type=Path, required=True, help="the network")
    parser.add_argument("--model", **flags.OWN)
    parser.add_argument("images", type=Path, nargs="+", metavar="image", help="files Pillow reads")
    return parser.parse_args(argv)


if __name__ == "__main__":
    run_script(main)
