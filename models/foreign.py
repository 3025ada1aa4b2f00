"""Networks from elsewhere: torchvision's, timm's, and those of a user's own file.

A file or package is imported only where the command line names it, never for a checkpoint.
"""

import difflib
import importlib
import importlib.util
import inspect
import os
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from importlib.machinery import PathFinder
from pathlib import Path
from types import ModuleType
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from utils import UserError, brief, checksum

LIBRARIES = ("torchvision", "timm")


def is_library(name: str) -> bool:
    """Whether it is torchvision:NAME or timm:NAME."""
    return name.partition(":")[0] in LIBRARIES


class Imported(NamedTuple):
    """A network of a user's own, and its source."""

    name: str  # net.py:Net, without the folder: its name in rows and checkpoints
    call: Callable
    code: str  # CRC-32 of the file that was named, as 8 hex digits

    def build(self, classes: int) -> nn.Module:
        """The network with `classes` logits. Raises UserError where its own code fails."""
        with guarded(self.name):
            model = with_classes(self.call, classes)
        if not isinstance(model, nn.Module):
            kind = type(model).__name__
            raise UserError(f"{self.name} returns a {kind}, and a torch.nn.Module is wanted")
        if channels_first in model._forward_pre_hooks.values():
            raise UserError(f"{self.name} returns the same module again, and every run trains one")
        # Their first values would come with a batch.
        if any(map(is_lazy, (*model.parameters(), *model.buffers()))):
            raise UserError(f"{self.name} has lazy layers: name the sizes of their inputs")
        with guarded(self.name):  # a scripted module refuses
            if model.train() is not model:
                raise UserError(f"{self.name} has a method train that does not return self")
            # Its `x.view(len(x), -1)` needs the channels first in memory.
            model.CHANNELS_LAST = False
            model.register_forward_pre_hook(channels_first)
        return model


CLASSES = ("num_classes", "classes", "n_classes", "nclasses", "num_class", "num_labels")


def with_classes(call: Callable, classes: int) -> nn.Module:
    """Call it with the number of classes: under a name of CLASSES, else as the first argument.

    Raises UserError where that has a default: it may be a depth, or whether to load weights.
    """
    try:
        parameters = inspect.signature(call).parameters
    except ValueError:  # written in C
        parameters = {}
    for name in CLASSES:
        if name in parameters:
            return call(**{name: classes})
    first = next(iter(parameters.values()), None)
    if first is not None and (first.kind is first.VAR_KEYWORD or first.default is not first.empty):
        if any(one.kind is one.VAR_KEYWORD for one in parameters.values()):
            return call(num_classes=classes)
        raise UserError(
            f"which argument of {getattr(call, '__name__', 'it')} is the number of classes? Its "
            f"first, {first.name}, has a default, and none is called num_classes"
        )
    return call(classes)


def channels_first(module: nn.Module, given: tuple) -> tuple:
    return tuple(x.contiguous() if isinstance(x, Tensor) else x for x in given)


def imported(text: str) -> Imported:
    """An argparse type: `path/to/file.py:Net` or `package.module:Net`. Raises UserError."""
    where, _, attribute = text.rpartition(":")
    if not where or not attribute:
        raise UserError(f"{text!r} is no path/to/file.py:Net and no package.module:Net")
    with guarded(where):
        module = of_file(Path(where).expanduser()) if where.endswith(".py") else of_package(where)
    call = getattr(module, attribute, None)
    if call is None:
        own = [name for name in vars(module) if not name.startswith("_")]
        raise UserError(f"{where} has no {attribute}{close_to(attribute, own)}")
    if isinstance(call, nn.Module):
        raise UserError(f"{text} is a network already: name its class, or a function that makes it")
    if not callable(call):
        raise UserError(f"{text} is a {type(call).__name__}, and cannot be called for a network")
    source = Path(module.__file__)
    short = source.name if where.endswith(".py") else where
    return Imported(f"{short}:{attribute}", call, f"{checksum([source]):08x}")


def of_file(path: Path) -> ModuleType:
    """Import a file, which may import what lies beside it."""
    if not path.is_file():
        raise UserError(f"there is no file {path}")
    folder = path.resolve().parent
    if look_also(folder):
        check_beside(folder)
    spec = importlib.util.spec_from_file_location(f"network of {path.resolve()}", path)
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # where dataclasses look their module up
    spec.loader.exec_module(module)
    return module


def of_package(name: str) -> ModuleType:
    """Import a module from the working directory or the installed packages."""
    look_also(Path.cwd())
    module = importlib.import_module(name)
    if not module.__file__:
        raise UserError(f"{name} is a folder without an __init__.py: name the file in it")
    return module


def look_also(folder: Path) -> bool:
    """Have Python find modules in a folder, behind all that it finds already; whether it is new."""
    new = str(folder) not in map(os.path.abspath, sys.path)
    sys.path += [str(folder)] * new
    return new


def check_beside(folder: Path) -> None:
    """Raise UserError where Python would take another network's module for one of this folder."""
    for name, module in list(sys.modules.items()):
        file = getattr(module, "__file__", None)
        taken = file and "." not in name and OTHERS.intersection(Path(file).parents[:2])
        if taken and PathFinder.find_spec(name, [str(folder)]):
            raise UserError(f"{file} is imported, so {name} of {folder} cannot be: rename one")
    OTHERS.add(folder)


OTHERS: set[Path] = set()  # folders of networks that were imported


# ---------------------------------------------------------------- libraries


def of_library(name: str) -> Callable[[int], nn.Module]:
    """`torchvision:NAME` or `timm:NAME` as a function of the number of classes.

    Only names in their lists, since timm would download others. Raises UserError.
    """
    library, _, own = name.partition(":")
    if library == "torchvision":
        from torchvision import models  # noqa: PLC0415

        known = models.list_models(module=models)  # those that classify images
        create = lambda classes: models.get_model(own, weights=None, num_classes=classes)  # noqa: E731
    else:
        try:
            import timm  # noqa: PLC0415
        except ImportError as error:
            raise UserError(f"{name} needs timm ({brief(error)}): pip install timm") from None
        known = timm.list_models()
        create = lambda classes: timm.create_model(own, num_classes=classes)  # noqa: E731
    if own not in known:
        raise UserError(f"{library} has no network {own!r}{close_to(own, known)}")
    return create


# ---------------------------------------------------------------- errors


@contextmanager
def guarded(name: str) -> Iterator[None]:
    """Turn whatever a network's own code raises inside into a UserError that names it."""
    try:
        yield
    except UserError:
        raise
    except (Exception, SystemExit) as error:
        raise UserError(f"{name} raised {type(error).__name__}: {brief(error)}") from None


def check_logits(model: nn.Module, x: Tensor, classes: int, name: str) -> None:
    """Raise UserError unless images x [B, 3, H, W] come out as finite logits [B, classes]."""
    with guarded(name):
        logits = model(x)
    if not isinstance(logits, Tensor):
        kind = type(logits).__name__
        raise UserError(f"{name} returns a {kind}, and logits [B, {classes}] are wanted")
    if logits.shape != (len(x), classes):
        raise UserError(
            f"{name} returns {list(logits.shape)} for {len(x)} images, and there are {classes} "
            "classes: logits [B, classes] are wanted"
        )
    if not logits.is_floating_point() or not torch.isfinite(logits).all():
        raise UserError(f"{name} has logits that are not finite before it has learned anything")
    if (logits >= 0).all() and torch.allclose(logits.sum(1), torch.ones_like(logits[:, 0])):
        raise UserError(f"{name} returns probabilities, and logits are wanted: drop its softmax")
    if model.training and not logits.requires_grad:
        raise UserError(f"{name} has logits that no gradient comes back from")


def close_to(name: str, known: Iterable[str]) -> str:
    """The known names that may have been meant, as the end of a sentence."""
    found = difflib.get_close_matches(name, known, 4, 0.5)
    meant = f"did you mean {' or '.join(found)}?" if found else f"there are {shortened(known)}"
    return f" ({meant})"


def shortened(names: Iterable[str]) -> str:
    """The first six and the last six of some names."""
    names = list(names)
    if len(names) > 12:
        names = [*names[:6], "...", *names[-6:]]
    return ", ".join(names) or "none"
