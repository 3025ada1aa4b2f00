"""The networks by name. Models know nothing of training: images in, logits out."""

import torch
from torch import nn

from .cnn import CNN
from .resnet import ResNet18

MODELS: dict[str, type[nn.Module]] = {"resnet18": ResNet18, "cnn": CNN}


def build(name: str, width: int, classes: int) -> nn.Module:
    """The network `name` with `width` channels in its first stage and `classes` logits.

    Weights are drawn from torch's global generator, so seed that first.
    """
    return MODELS[name](width, classes)


def parameter_count(model: nn.Module) -> int:
    """Number of trainable scalars."""
    return sum(p.numel() for p in model.parameters() if p.requires_grad)


def autocast(model: nn.Module, device: torch.device, amp: bool) -> torch.autocast:
    """bfloat16 where --amp is on and the network is large enough to gain by it."""
    return torch.autocast(device.type, torch.bfloat16, enabled=amp and model.AUTOCAST)
