"""Images as one uint8 tensor on the device, and the views of an epoch: the augmentation.

A view is (dy, dx, flip): a 32x32 crop at one of 9 x 9 offsets of the image padded by 4 zeros,
flipped or not; 162 an image. Which view of which image comes when is a pure function of (seed,
epoch), so every cell of a seed, on any rank, sees the same ones, and the teacher can be asked ahead
of time.
"""

import functools
from dataclasses import dataclass

import torch
from torch import Tensor

from utils import stream

SIZE = 32  # pixels a side
PAD = 4  # zeros added on each side before the crop
OFFSETS = 2 * PAD + 1  # places of the crop along an axis
VIEWS = 2 * OFFSETS**2  # of an image, flipped or not: 162


@dataclass
class Split:
    """Images and labels of one split, on the device."""

    padded: Tensor  # uint8 [N, 40, 40, 3]
    labels: Tensor  # int64 [N]

    def __len__(self) -> int:
        return len(self.labels)


@dataclass
class Views:
    """An epoch in its order, or a stretch of it: which image, at which offset, flipped or not."""

    index: Tensor  # int64 [n], image
    dy: Tensor  # int64 [n], 0..8
    dx: Tensor  # int64 [n], 0..8
    flip: Tensor  # bool [n]

    def __len__(self) -> int:
        return len(self.index)

    def __getitem__(self, part: slice | Tensor) -> "Views":
        return Views(self.index[part], self.dy[part], self.dx[part], self.flip[part])

    def numbers(self, images: int) -> Tensor:
        """Which of the VIEWS x images there are: int64 [n], all images' first view first."""
        view = (self.dy * OFFSETS + self.dx) * 2 + self.flip
        return view * images + self.index

    @classmethod
    def numbered(cls, numbers: Tensor, images: int) -> "Views":
        """The views that have these numbers."""
        view, index = numbers // images, numbers % images
        return cls(index, view // 2 // OFFSETS, view // 2 % OFFSETS, view % 2 == 1)


def epoch_views(seed: int, epoch: int, count: int, device: torch.device) -> Views:
    """Order and augmentation of one epoch over `count` images: a pure function of its arguments."""
    order = stream(seed, epoch, "order").permutation(count)
    offsets = stream(seed, epoch, "crop").integers(0, OFFSETS, (2, count))
    flip = stream(seed, epoch, "flip").random(count) < 0.5
    tensors = (torch.from_numpy(a).to(device) for a in (order, offsets[0], offsets[1], flip))
    return Views(*tensors)


def gather(split: Split, views: Views) -> Tensor:
    """The pixels of some views: uint8 [n, 3, 32, 32], channels last in memory."""
    n, side = len(views), SIZE + 2 * PAD
    # Every run of 32 pixels in memory as a row of 96 bytes (rows overlap): a crop is then 32 rows,
    # and one index_select copies them whole. Indexing pixel by pixel takes ten times as long.
    pixels = split.padded.shape[0] * side * side
    runs = split.padded.as_strided((pixels - SIZE + 1, 3 * SIZE), (3, 1))
    first = (views.index * side + views.dy) * side + views.dx  # [n], the crop's top left pixel
    down = torch.arange(0, SIZE * side, side, device=first.device)
    crop = runs.index_select(0, (first[:, None] + down).view(-1)).view(n, SIZE, SIZE, 3)
    crop = torch.where(views.flip[:, None, None, None], crop.flip(2), crop)
    return crop.permute(0, 3, 1, 2)


def plain(split: Split, part: slice) -> Tensor:
    """Pixels as they are, no augmentation: uint8 [n, 3, 32, 32], channels last in memory."""
    return split.padded[part, PAD : PAD + SIZE, PAD : PAD + SIZE].permute(0, 3, 1, 2)


def normalise(pixels: Tensor, mean: tuple[float, ...], std: tuple[float, ...]) -> Tensor:
    """uint8 [n, 3, 32, 32] to float32: x / 255, minus mean, over std, as torchvision does it."""
    n = len(pixels)
    # As rows of 32 pixels: subtracting 96 numbers at a time is five times faster than 3 at a time.
    rows = pixels.permute(0, 2, 3, 1).reshape(n * SIZE, 3 * SIZE).float()
    row_mean, row_std = per_row(mean, pixels.device), per_row(std, pixels.device)
    return rows.div_(255).sub_(row_mean).div_(row_std).view(n, SIZE, SIZE, 3).permute(0, 3, 1, 2)


@functools.lru_cache
def per_row(values: tuple[float, ...], device: torch.device) -> Tensor:
    """A value per channel as one per byte of a row of 32 pixels, [96]."""
    return torch.tensor(values, device=device).repeat(SIZE)
