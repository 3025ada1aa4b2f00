"""A network's stages, found with forward hooks: the network itself only maps images to logits.

stages = find(model, x)
with stages.watch() as seen:
    logits = model(x)  # or functional_call(model, weights, (x,)), under vmap too
seen["stage1"]  # [B, C, H, W]; seen["pooled"] is [B, D]
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from utils import UserError

from .foreign import guarded, shortened

Size = tuple[int, int]


@dataclass
class Stages:
    """The modules of `model` whose outputs are stages."""

    model: nn.Module
    places: dict[str, tuple[str, Size | None]]  # stage -> module, and at which size of its outputs
    head: str | None  # the linear layer whose input is `pooled`

    @contextmanager
    def watch(self) -> Iterator[dict[str, Tensor]]:
        """Yields a dict that calls of the model inside fill; of several calls the last counts.

        Stages [B, C, H, W] from shallow to deep (or as they were named), then `pooled` [B, D].
        Raises UserError at its end where a layer was not called.
        """
        names = [*self.places, *["pooled"] * (self.head is not None)]
        seen: dict[str, Tensor] = dict.fromkeys(names)  # in this order, not that of the calls

        def keep(stage: str, size: Size | None):
            def hook(module: nn.Module, given: tuple, out: object) -> None:
                if size is None:  # as it left the layer: an activation in place may follow
                    seen[stage] = out.clone()
                elif is_map(out) and out.shape[2:] == size:
                    seen[stage] = out

            return hook

        def keep_input(module: nn.Module, given: tuple, out: object) -> None:
            if is_flat(given):
                seen["pooled"] = given[0]

        hooks = [
            self.model.get_submodule(module).register_forward_hook(keep(stage, size))
            for stage, (module, size) in self.places.items()
        ]
        if self.head is not None:
            head = self.model.get_submodule(self.head)
            hooks.append(head.register_forward_hook(keep_input))
        try:
            yield seen
        finally:
            for hook in hooks:
                hook.remove()
        for stage, value in seen.items():
            if value is None:
                layer = self.places[stage][0] if stage in self.places else self.head
                raise UserError(f"the layer {layer} was not called in a step, and is a stage")


@torch.no_grad()
def find(
    model: nn.Module, x: Tensor, layers: Sequence[str] = (), name: str = "the network"
) -> Stages:
    """The stages of a model, from one call on images x [B, 3, H, W] in eval mode.

    They are the last 4-D outputs at each height and width above 1x1, in the order of the call, or
    the outputs of the named `layers`; `pooled` is the input of the last linear layer. Outputs
    inside a block count only where none outside has that size: a bottleneck's first convolution
    still has the size of the stage before. The call changes neither the model nor torch's random
    state. Raises UserError for a layer that does not exist or has no such output; messages call
    the model `name`.
    """
    modules = dict(model.named_modules())
    del modules[""]  # whose output is the logits
    if unknown := [layer for layer in layers if layer not in modules]:
        raise UserError(f"{name} has no layer {unknown[0]!r}: it has {shortened(modules)}")
    maps: list[tuple[str, Size]] = []  # module and size of each 4-D output, in order
    called: set[str] = set()
    heads: list[str] = []
    outputs: dict[str, object] = {}  # of the named layers

    def watch(layer: str):
        def hook(module: nn.Module, given: tuple, out: object) -> None:
            if layer in layers:
                outputs[layer] = out
            called.add(layer)
            size = tuple(out.shape[2:]) if is_map(out) else (1, 1)
            if size != (1, 1) and all(map(int.__le__, size, x.shape[2:])):  # else [B, H, W, C]
                maps.append((layer, size))
            if isinstance(module, nn.Linear) and is_flat(given):
                heads.append(layer)

        return hook

    hooks = [module.register_forward_hook(watch(layer)) for layer, module in modules.items()]
    training = {module: module.training for module in model.modules()}
    try:
        with torch.random.fork_rng(devices=[x.device] if x.is_cuda else []), guarded(name):
            model.eval()(x)
    finally:
        for module, mode in training.items():
            module.training = mode
        for hook in hooks:
            hook.remove()
    for layer in layers:
        if not is_map(outputs.get(layer)):
            raise UserError(f"the layer {layer} of {name} has no output [B, C, H, W]")
    blocks = {layer for layer in called if not isinstance(modules[layer], nn.Sequential)}
    chosen = [(layer, None) for layer in layers] or outermost(maps, blocks)
    places = {f"stage{i}": place for i, place in enumerate(chosen, 1)}
    return Stages(model, places, heads[-1] if heads else None)


def outermost(maps: list[tuple[str, Size]], blocks: set[str]) -> list[tuple[str, Size]]:
    """For each size, of the outputs that are inside the fewest blocks the last; in order."""
    best: dict[Size, tuple[int, int]] = {}  # number of blocks around it, and minus its position
    for place, (layer, size) in enumerate(maps):
        depth = sum(layer.startswith(f"{block}.") for block in blocks)
        best[size] = min(best.get(size, (depth, 0)), (depth, -place))
    return [maps[place] for place in sorted(-place for _, place in best.values())]


def is_map(out: object) -> bool:
    """Whether an output is [B, C, H, W]."""
    return isinstance(out, Tensor) and out.dim() == 4


def is_flat(given: tuple) -> bool:
    """Whether a module was given [B, D]."""
    return bool(given) and isinstance(given[0], Tensor) and given[0].dim() == 2
