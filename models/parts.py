"""What several families share: a convolution with batch norm, first weights, the logits."""

import torch
from torch import Tensor, nn

from .precision import at_least_float32


def convolution(
    channels_in: int,
    channels: int,
    size: int,
    stride: int = 1,
    groups: int = 1,
    bias: bool = False,
    relu: bool = True,
) -> nn.Sequential:
    """A convolution that keeps height and width (over the stride), batch norm and a ReLU."""
    layers = [
        nn.Conv2d(channels_in, channels, size, stride, size // 2, groups=groups, bias=bias),
        nn.BatchNorm2d(channels),
    ]
    return nn.Sequential(*layers, *[nn.ReLU(inplace=True)] * relu)


def he_normal(model: nn.Module) -> None:
    """Initialise every convolution, from torch's global generator; biases become 0.

    He et al., ICCV 2015, equation 14, of the outputs, as the networks of Tian et al. 2020 are.
    """
    for part in model.modules():
        if isinstance(part, nn.Conv2d):
            nn.init.kaiming_normal_(part.weight, mode="fan_out", nonlinearity="relu")
            if part.bias is not None:
                nn.init.zeros_(part.bias)


def pooled_logits(maps: Tensor, head: nn.Linear) -> Tensor:
    """Maps [B, C, H, W] to logits [B, K]: the mean over height and width, then the linear layer.

    In float32 even under autocast: rounded to bfloat16, some logits would be tied or in another
    order, and a student learns from them.
    """
    with torch.autocast(maps.device.type, enabled=False):
        return head(at_least_float32(maps).mean((2, 3)))
