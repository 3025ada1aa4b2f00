"""ResNet-18 in its CIFAR form (He et al., CVPR 2016; 3x3 stride-1 stem and no max-pool)."""

import torch.nn.functional as F
from torch import Tensor, nn

from .parts import convolution, pooled_logits


class Projection(nn.Conv2d):
    """The shortcut's 1x1 convolution with a stride.

    With few channels it subsamples before it convolves: oneDNN's strided kernel for channels_last
    can write out of bounds where the channels do not fill a block (uxlfoundation/oneDNN, issue
    6035). With torch 2.14.1 and AVX2 (blocks of 8 channels) that was a crash, a hang or wrong
    gradients; with AVX512 (blocks of 16) nothing was seen.
    """

    ENOUGH_CHANNELS = 16

    def __init__(self, channels_in: int, channels: int, stride: int):
        super().__init__(channels_in, channels, 1, stride, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        if self.in_channels >= self.ENOUGH_CHANNELS:
            return super().forward(x)
        rows, columns = self.stride
        return F.conv2d(x[:, :, ::rows, ::columns], self.weight)


class BasicBlock(nn.Module):
    """Two 3x3 convolutions and a shortcut (He et al. 2016, figure 2)."""

    def __init__(self, channels_in: int, channels: int, stride: int):
        super().__init__()
        self.conv1 = nn.Conv2d(channels_in, channels, 3, stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels)
        self.shortcut = nn.Sequential()
        if stride != 1 or channels_in != channels:
            self.shortcut = nn.Sequential(
                Projection(channels_in, channels, stride), nn.BatchNorm2d(channels)
            )

    def forward(self, x: Tensor) -> Tensor:
        out = F.relu(self.bn1(self.conv1(x)), inplace=True)
        out = self.bn2(self.conv2(out))
        return F.relu(out + self.shortcut(x), inplace=True)


class ResNet18(nn.Module):
    """Four stages of two basic blocks; 11,173,962 parameters at width 64 and ten classes."""

    DEFAULT_WIDTH = 64
    AUTOCAST = True  # large enough that bfloat16 pays, where the hardware has it

    def __init__(self, width: int = DEFAULT_WIDTH, classes: int = 10):
        super().__init__()
        self.stem = convolution(3, width, 3)
        self.stage1 = self._stage(width, width, stride=1)
        self.stage2 = self._stage(width, 2 * width, stride=2)
        self.stage3 = self._stage(2 * width, 4 * width, stride=2)
        self.stage4 = self._stage(4 * width, 8 * width, stride=2)
        self.head = nn.Linear(8 * width, classes)

    @staticmethod
    def _stage(channels_in: int, channels: int, stride: int) -> nn.Sequential:
        return nn.Sequential(
            BasicBlock(channels_in, channels, stride), BasicBlock(channels, channels, 1)
        )

    def forward(self, x: Tensor) -> Tensor:
        """Images [B, 3, 32, 32] to logits [B, classes]."""
        x = self.stage2(self.stage1(self.stem(x)))  # [B, 2w, 16, 16]
        x = self.stage4(self.stage3(x))  # [B, 8w, 4, 4]
        return pooled_logits(x, self.head)
