"""ResNets for CIFAR: resnet8 to resnet110 (He et al., CVPR 2016, section 4.2), and wider ones.

The paper's shortcuts have no weights (option A: zeros for the channels that are new). These have a
1x1 convolution with batch norm where the shape changes (option B), as the field's networks do since
Tian et al. (ICLR 2020): 2,752 weights more.
"""

from collections.abc import Callable
from functools import partial

from torch import Tensor, nn

from .parts import convolution, he_normal, pooled_logits
from .resnet import BasicBlock


class ResNet(nn.Module):
    """A stem and three stages of n basic blocks: 6n + 2 layers with weights.

    `widths` are the channels of the stem and of the stages.
    """

    def __init__(self, depth: int, widths: tuple[int, int, int, int], classes: int):
        super().__init__()
        stem, *stages = widths
        blocks = (depth - 2) // 6
        self.stem = convolution(3, stem, 3)
        self.stage1 = stage(blocks, stem, stages[0], stride=1)
        self.stage2 = stage(blocks, stages[0], stages[1], stride=2)
        self.stage3 = stage(blocks, stages[1], stages[2], stride=2)
        self.head = nn.Linear(stages[2], classes)
        he_normal(self)

    def forward(self, x: Tensor) -> Tensor:
        """Images [B, 3, H, W] to logits [B, classes]."""
        x = self.stage1(self.stem(x))  # [B, w1, H, W]
        x = self.stage2(x)  # [B, w2, H/2, W/2]
        x = self.stage3(x)  # [B, w3, H/4, W/4]
        return pooled_logits(x, self.head)


def stage(blocks: int, channels_in: int, channels: int, stride: int) -> nn.Sequential:
    """Basic blocks at one size; the first has the stride."""
    rest = [BasicBlock(channels, channels, 1) for _ in range(blocks - 1)]
    return nn.Sequential(BasicBlock(channels_in, channels, stride), *rest)


NETWORKS: dict[str, Callable[[int], nn.Module]] = {
    f"resnet{depth}": partial(ResNet, depth, (16, 16, 32, 64))
    for depth in (8, 14, 20, 32, 44, 56, 110)
}
NETWORKS |= {  # as in Tian et al. 2020; the stem is twice as wide and not four times
    f"resnet{depth}x4": partial(ResNet, depth, (32, 64, 128, 256)) for depth in (8, 32)
}
