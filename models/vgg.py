"""VGG with batch norm (Simonyan & Zisserman, ICLR 2015), in the CIFAR form of Tian et al. 2020.

One linear layer after a global mean replaces the paper's three, so images of any size fit. There
are three max-pools and not five: 32 pixels become 4, and 64 become 8 (where Tian et al. pool once
more).
"""

from collections.abc import Callable
from functools import partial

from torch import Tensor, nn

from .parts import convolution, he_normal, pooled_logits


class VGG(nn.Module):
    """Five stages of `depth` convolutions each, of 64 to 512 channels."""

    def __init__(self, depth: int, classes: int):
        super().__init__()
        self.stage1 = stage(depth, 3, 64)
        self.stage2 = nn.Sequential(nn.MaxPool2d(2), stage(depth, 64, 128))
        self.stage3 = nn.Sequential(nn.MaxPool2d(2), stage(depth, 128, 256))
        self.stage4 = nn.Sequential(nn.MaxPool2d(2), stage(depth, 256, 512))
        self.stage5 = stage(depth, 512, 512)
        self.head = nn.Linear(512, classes)
        he_normal(self)
        nn.init.normal_(self.head.weight, std=0.01)

    def forward(self, x: Tensor) -> Tensor:
        """Images [B, 3, H, W] to logits [B, classes]."""
        x = self.stage1(x)  # [B, 64, H, W]
        x = self.stage2(x)  # [B, 128, H/2, W/2]
        x = self.stage3(x)  # [B, 256, H/4, W/4]
        x = self.stage4(x)  # [B, 512, H/8, W/8]
        return pooled_logits(self.stage5(x), self.head)


def stage(depth: int, channels_in: int, channels: int) -> nn.Sequential:
    """3x3 convolutions at one size; each has a bias, though batch norm makes it superfluous."""
    before = [channels_in, *[channels] * (depth - 1)]
    return nn.Sequential(*[convolution(c, channels, 3, bias=True) for c in before])


# The names count the paper's three linear layers: 5 + 3, and 10 + 3 (its column B).
NETWORKS: dict[str, Callable[[int], nn.Module]] = {
    "vgg8": partial(VGG, 1),
    "vgg13": partial(VGG, 2),
}
