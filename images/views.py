"""Images as one uint8 tensor on the device, and the views of an epoch: the augmentation.

A view is (dy, dx, flip): a crop as large as the image, at one of the offsets that zeros on each
side allow, flipped or not. Of 32 pixels, padded by an eighth, there are 9 x 9 x 2 = 162 an image.
Which view of which image comes when is a pure function of (seed, epoch), so every cell of a seed,
on any rank, sees the same ones, and the teacher's logits can be computed in advance.
"""

import functools
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from utils import stream


@dataclass
class Split:
    """Images and labels of one split, on the device, and which views there are of them."""

    padded: Tensor  # uint8 [N, S + 2 pad, S + 2 pad, 3]
    labels: Tensor  # int64 [N]
    pad: int  # zeros on each side, so that a crop may be off by as much; 0: no crops
    flips: int  # 2: as it is and flipped; 1: as it is

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def size(self) -> int:
        """Pixels a side, S, without the padding."""
        return self.padded.shape[1] - 2 * self.pad

    @property
    def offsets(self) -> int:
        """Places of the crop along an axis."""
        return 2 * self.pad + 1

    @property
    def views(self) -> int:
        """How many there are of an image."""
        return self.offsets**2 * self.flips


@dataclass
class Views:
    """An epoch's views in order, or a slice of it: which image, at which offset, flipped or not."""

    index: Tensor  # int64 [n], image
    dy: Tensor  # int64 [n], 0..2 pad
    dx: Tensor  # int64 [n], 0..2 pad
    flip: Tensor  # bool [n]

    def __len__(self) -> int:
        return len(self.index)

    def __getitem__(self, part: slice | Tensor) -> "Views":
        return Views(self.index[part], self.dy[part], self.dx[part], self.flip[part])

    def numbers(self, split: Split) -> Tensor:
        """Their indices among all views of the split, int64 [n]: view x images + image."""
        view = (self.dy * split.offsets + self.dx) * split.flips + self.flip
        return view * len(split) + self.index

    @property
    def places(self) -> Tensor:
        """Of all of an epoch's views: where each image's one is, int64 [n]."""
        found = torch.empty_like(self.index)
        found[self.index] = torch.arange(len(self), device=self.index.device)
        return found

    @classmethod
    def numbered(cls, numbers: Tensor, split: Split) -> "Views":
        """The views of the split that have these numbers."""
        view, index = numbers // len(split), numbers % len(split)
        place, flip = view // split.flips, view % split.flips == 1
        return cls(index, place // split.offsets, place % split.offsets, flip)


def epoch_views(seed: int, epoch: int, split: Split) -> Views:
    """Order and augmentation of one epoch over a split: a pure function of its arguments."""
    count = len(split)
    order = stream(seed, epoch, "order").permutation(count)
    offsets = stream(seed, epoch, "crop").integers(0, split.offsets, (2, count))
    flip = (stream(seed, epoch, "flip").random(count) < 0.5) & (split.flips == 2)
    device = split.labels.device
    tensors = (torch.from_numpy(a).to(device) for a in (order, offsets[0], offsets[1], flip))
    return Views(*tensors)


def partners(seed: int, split: Split) -> Tensor:
    """For each image another one of its class, int64 [N]: a permutation by seed alone.

    An image that is the only one of its class is its own partner.
    """
    labels = split.labels.cpu().numpy()
    order = stream(seed, 0, "another image of the class").permutation(len(split))
    found = np.empty_like(order)
    for label in np.unique(labels):
        members = order[labels[order] == label]
        found[members] = np.roll(members, 1)
    return torch.from_numpy(found).to(split.labels.device)


def gather(split: Split, views: Views) -> Tensor:
    """The pixels of some views: uint8 [n, 3, S, S], channels last in memory."""
    n, size, side = len(views), split.size, split.padded.shape[1]
    # Every S consecutive pixels in memory are a row of 3 S bytes (rows overlap), so a crop is S
    # rows, copied by one index_select. Indexing pixel by pixel takes ten times as long.
    pixels = len(split) * side * side
    runs = split.padded.as_strided((pixels - size + 1, 3 * size), (3, 1))
    first = (views.index * side + views.dy) * side + views.dx  # [n], the crop's top left pixel
    down = torch.arange(0, size * side, side, device=first.device)
    crop = runs.index_select(0, (first[:, None] + down).view(-1)).view(n, size, size, 3)
    crop = torch.where(views.flip[:, None, None, None], crop.flip(2), crop)
    return crop.permute(0, 3, 1, 2)


def plain(split: Split, part: slice) -> Tensor:
    """Pixels as they are, no augmentation: uint8 [n, 3, S, S], channels last in memory."""
    inside = slice(split.pad, split.pad + split.size)
    return split.padded[part, inside, inside].permute(0, 3, 1, 2)


def normalise(pixels: Tensor, mean: tuple[float, ...], std: tuple[float, ...]) -> Tensor:
    """uint8 [n, 3, S, S] to float32: x / 255, minus mean, over std, as torchvision does it."""
    n, _, _, size = pixels.shape
    # By rows of S pixels: broadcasting 96 numbers is five times as fast as 3.
    rows = pixels.permute(0, 2, 3, 1).reshape(n * size, 3 * size).float()
    row_mean, row_std = (per_row(values, size, pixels.device) for values in (mean, std))
    return rows.div_(255).sub_(row_mean).div_(row_std).view(n, size, size, 3).permute(0, 3, 1, 2)


@functools.lru_cache
def per_row(values: tuple[float, ...], size: int, device: torch.device) -> Tensor:
    """A value per channel as one per byte of a row of S pixels, [3 S]."""
    return torch.tensor(values, device=device).repeat(size)
