"""Wide residual networks (Zagoruyko & Komodakis, BMVC 2016): wrn-depth-width, no dropout."""

from collections.abc import Callable
from functools import partial

from torch import Tensor, nn

from .parts import he_normal, pooled_logits
from .resnet import Projection


class WideResNet(nn.Module):
    """A stem of 16 channels and three stages of n blocks: 6n + 4 convolutions.

    The stages have 16, 32 and 64 channels times `width`.
    """

    def __init__(self, depth: int, width: int, classes: int):
        super().__init__()
        blocks = (depth - 4) // 6
        self.stem = nn.Conv2d(3, 16, 3, padding=1, bias=False)
        self.stage1 = stage(blocks, 16, 16 * width, stride=1)
        self.stage2 = stage(blocks, 16 * width, 32 * width, stride=2)
        self.stage3 = stage(blocks, 32 * width, 64 * width, stride=2)
        self.last = activation(64 * width)
        self.head = nn.Linear(64 * width, classes)
        he_normal(self)

    def forward(self, x: Tensor) -> Tensor:
        """Images [B, 3, H, W] to logits [B, classes]."""
        x = self.stage1(self.stem(x))  # [B, 16 width, H, W]
        x = self.stage2(x)  # [B, 32 width, H/2, W/2]
        x = self.stage3(x)  # [B, 64 width, H/4, W/4]
        return pooled_logits(self.last(x), self.head)


class PreactivationBlock(nn.Module):
    """Twice batch norm, ReLU and a 3x3 convolution, and a shortcut (their figure 1, basic-wide).

    Where the channels change, the shortcut is a 1x1 convolution of the first activation.
    """

    def __init__(self, channels_in: int, channels: int, stride: int):
        super().__init__()
        self.activation1 = activation(channels_in)
        self.conv1 = nn.Conv2d(channels_in, channels, 3, stride, padding=1, bias=False)
        self.activation2 = activation(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        changes = channels_in != channels
        self.shortcut = Projection(channels_in, channels, stride) if changes else None

    def forward(self, x: Tensor) -> Tensor:
        active = self.activation1(x)
        out = self.conv2(self.activation2(self.conv1(active)))
        return out + (self.shortcut(active) if self.shortcut else x)


def activation(channels: int) -> nn.Sequential:
    """Batch norm and ReLU."""
    return nn.Sequential(nn.BatchNorm2d(channels), nn.ReLU(inplace=True))


def stage(blocks: int, channels_in: int, channels: int, stride: int) -> nn.Sequential:
    """Blocks at one size; the first has the stride."""
    rest = [PreactivationBlock(channels, channels, 1) for _ in range(blocks - 1)]
    return nn.Sequential(PreactivationBlock(channels_in, channels, stride), *rest)


NETWORKS: dict[str, Callable[[int], nn.Module]] = {
    f"wrn-{depth}-{width}": partial(WideResNet, depth, width)
    for depth in (16, 40)
    for width in (1, 2)
}
