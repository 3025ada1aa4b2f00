"""The networks by name: images [B, 3, H, W] to logits [B, classes]."""

import re
from collections.abc import Callable

from torch import nn

from utils import UserError

from . import mobilenet, resnet_cifar, shufflenet, vgg, wide_resnet
from .cnn import CNN
from .foreign import Imported, close_to, guarded, imported, is_library, of_library
from .resnet import ResNet18

MODELS: dict[str, type[nn.Module]] = {"resnet18": ResNet18, "cnn": CNN}  # those with a width
# Those without: from the number of classes.
NETWORKS: dict[str, Callable[[int], nn.Module]] = {
    **resnet_cifar.NETWORKS,
    **wide_resnet.NETWORKS,
    **vgg.NETWORKS,
    **mobilenet.NETWORKS,
    **shufflenet.NETWORKS,
}

ELSEWHERE = "torchvision:NAME, timm:NAME, path/to/file.py:Net or package.module:Net"
NAMED: dict[str, Imported] = {}  # a user's own, which the command line named


def named(text: str) -> str:
    """An argparse type: the name in cells, rows and checkpoints of the network `text`.

    Imports it where it is a file or package. Raises UserError where there is no such network.
    """
    if text in MODELS or text in NETWORKS:
        return text
    if is_library(text):
        of_library(text)
        return text
    if ":" not in text:
        known = [*sorted(MODELS), *NETWORKS]
        raise UserError(
            f"no network {text!r} here{close_to(text, known)}; it may also be {ELSEWHERE}"
        )
    found = imported(text)
    NAMED[found.name] = found
    return found.name


def build(name: str, width: int, classes: int, image_size: int = 32) -> nn.Module:
    """The network `name` with `classes` logits; `width` channels in its first stage, if it has one.

    Weights are drawn from torch's global generator, so seed that first. Files are imported only
    where the command line named them. Raises UserError where there is no such network, or its own
    code fails.
    """
    if name in MODELS:  # the CNN's head sees every pixel
        size = {"image_size": image_size} if name == "cnn" else {}
        return MODELS[name](width, classes, **size)
    if name in NAMED:
        return NAMED[name].build(classes)
    if name not in NETWORKS and not is_library(name):
        raise UserError(f"no network {name!r} here: there are {', '.join([*MODELS, *NETWORKS])}")
    with guarded(name):
        return (NETWORKS.get(name) or of_library(name))(classes)


def is_own(name: str) -> bool:
    """Whether it is a user's own: net.py:Net or package.module:Net."""
    return ":" in name and not is_library(name)


def code_of(name: str) -> str:
    """The checksum of the file that a user's own network is in, blank for every other."""
    return NAMED[name].code if name in NAMED else ""


def default_width(name: str) -> int:
    """Channels of the first stage by default; 0 for a network without a width."""
    return MODELS[name].DEFAULT_WIDTH if name in MODELS else 0


def file_name(name: str) -> str:
    """The name as part of a run id: torchvision-resnet18, net-Net."""
    named = re.sub(r"\.py:|[^\w.+-]", "-", name, flags=re.ASCII).lstrip(".")
    return re.sub("-teacher$", "-teacher_", named)  # net.py:teacher; without it, run ids say that
