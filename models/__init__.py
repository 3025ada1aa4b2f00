"""The networks by name. Models know nothing of training: images in, logits out."""

from torch import nn

from .cnn import CNN
from .precision import at_least_float32, autocast, widest
from .resnet import ResNet18

__all__ = ["CNN", "MODELS", "ResNet18", "at_least_float32", "autocast", "build", "parameter_count"]
__all__ += ["widest"]

MODELS: dict[str, type[nn.Module]] = {"resnet18": ResNet18, "cnn": CNN}


def build(name: str, width: int, classes: int, image_size: int = 32) -> nn.Module:
    """The network `name` with `width` channels in its first stage and `classes` logits.

    The CNN's head depends on `image_size`, in pixels a side. Weights are drawn from torch's global
    generator, so seed that first.
    """
    size = {"image_size": image_size} if name == "cnn" else {}
    return MODELS[name](width, classes, **size)


def parameter_count(model: nn.Module) -> int:
    """Number of trainable scalars."""
    return sum(p.numel() for p in model.parameters() if p.requires_grad)
