"""ShuffleNetV2 (Ma et al., ECCV 2018), size 1, in the CIFAR form of Tian et al. 2020.

Difference from the paper: the stem is a 1x1 convolution of stride 1 without a max-pool, so 32
pixels become 4 and not 1.
"""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from .parts import convolution, pooled_logits


class Unit(nn.Module):
    """One half of the channels as it is, the other through three convolutions (figure 3c)."""

    def __init__(self, channels: int):
        super().__init__()
        half = channels // 2
        self.branch = branch(half, half, stride=1)

    def forward(self, x: Tensor) -> Tensor:
        kept, changed = x.chunk(2, dim=1)
        return shuffle(kept, self.branch(changed))


class DownUnit(nn.Module):
    """All channels through either branch, each with a stride of 2 (figure 3d)."""

    def __init__(self, channels_in: int, channels: int):
        super().__init__()
        half = channels // 2
        self.short = nn.Sequential(
            convolution(channels_in, channels_in, 3, 2, groups=channels_in, relu=False),
            convolution(channels_in, half, 1),
        )
        self.branch = branch(channels_in, half, stride=2)

    def forward(self, x: Tensor) -> Tensor:
        return shuffle(self.short(x), self.branch(x))


def branch(channels_in: int, channels: int, stride: int) -> nn.Sequential:
    """1x1, 3x3 on each channel alone, 1x1."""
    return nn.Sequential(
        convolution(channels_in, channels, 1),
        convolution(channels, channels, 3, stride, groups=channels, relu=False),
        convolution(channels, channels, 1),
    )


def shuffle(one: Tensor, other: Tensor) -> Tensor:
    """Two times [B, C, H, W] to [B, 2C, H, W], the channels of either in turn."""
    return torch.stack((one, other), dim=2).flatten(1, 2)


class ShuffleNetV2(nn.Module):
    """Three stages, of 4, 8 and 4 units (table 5)."""

    def __init__(self, classes: int):
        super().__init__()
        self.stem = convolution(3, 24, 1)
        self.stage1 = nn.Sequential(DownUnit(24, 116), *[Unit(116) for _ in range(3)])
        self.stage2 = nn.Sequential(DownUnit(116, 232), *[Unit(232) for _ in range(7)])
        self.stage3 = nn.Sequential(DownUnit(232, 464), *[Unit(464) for _ in range(3)])
        self.last = convolution(464, 1024, 1)
        self.head = nn.Linear(1024, classes)

    def forward(self, x: Tensor) -> Tensor:
        """Images [B, 3, H, W] to logits [B, classes]."""
        x = self.stage1(self.stem(x))  # [B, 116, H/2, W/2]
        x = self.stage2(x)  # [B, 232, H/4, W/4]
        x = self.stage3(x)  # [B, 464, H/8, W/8]
        return pooled_logits(self.last(x), self.head)


NETWORKS: dict[str, Callable[[int], nn.Module]] = {"shufflenetv2": ShuffleNetV2}
