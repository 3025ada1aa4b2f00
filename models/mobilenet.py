"""MobileNetV2 (Sandler et al., CVPR 2018) in the CIFAR form of Tian et al. 2020: width 0.5, T = 6.

Differences from the paper: the second stage keeps the size, so 32 pixels become 2 and not 1; the
first block has an expansion layer, too, of factor 1; ReLU instead of ReLU6; channels are not
rounded to a multiple of 8 (half of 24 is 12); no dropout.
"""

from collections.abc import Callable

from torch import Tensor, nn

from .parts import convolution, he_normal, pooled_logits


class InvertedResidual(nn.Module):
    """1x1 to `expansion` times the channels, 3x3 on each alone, 1x1 back and linear (figure 4d)."""

    def __init__(self, channels_in: int, channels: int, stride: int, expansion: int):
        super().__init__()
        inner = expansion * channels_in
        self.expand = convolution(channels_in, inner, 1)
        self.depthwise = convolution(inner, inner, 3, stride, groups=inner)
        self.project = convolution(inner, channels, 1, relu=False)
        self.residual = stride == 1 and channels_in == channels

    def forward(self, x: Tensor) -> Tensor:
        out = self.project(self.depthwise(self.expand(x)))
        return x + out if self.residual else out


class MobileNetV2(nn.Module):
    """Seven stages of inverted residuals; only the last convolution, of 1280, is not halved."""

    # Expansion, channels, blocks, stride of the first one (table 2).
    STAGES = [(1, 16, 1, 1), (6, 24, 2, 1), (6, 32, 3, 2), (6, 64, 4, 2)]
    STAGES += [(6, 96, 3, 1), (6, 160, 3, 2), (6, 320, 1, 1)]

    def __init__(self, classes: int):
        super().__init__()
        before = 32 // 2
        self.stem = convolution(3, before, 3, stride=2)
        self.stages = nn.Sequential()
        for expansion, channels, blocks, stride in self.STAGES:
            channels //= 2
            first = InvertedResidual(before, channels, stride, expansion)
            rest = [InvertedResidual(channels, channels, 1, expansion) for _ in range(blocks - 1)]
            self.stages.append(nn.Sequential(first, *rest))
            before = channels
        self.last = convolution(before, 1280, 1)
        self.head = nn.Linear(1280, classes)
        he_normal(self)
        nn.init.normal_(self.head.weight, std=0.01)

    def forward(self, x: Tensor) -> Tensor:
        """Images [B, 3, H, W] to logits [B, classes]."""
        x = self.stages(self.stem(x))  # [B, 16, H/2, W/2] to [B, 160, H/16, W/16]
        return pooled_logits(self.last(x), self.head)


NETWORKS: dict[str, Callable[[int], nn.Module]] = {"mobilenetv2": MobileNetV2}
