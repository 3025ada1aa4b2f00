"""Learning rate by epoch, torch's optimiser of a cell, and the same step for a stack of cells."""

import math
from collections.abc import Iterable

import torch
from torch import Tensor, nn

from engine.cells import Cell, Settings

BETAS, EPS = (0.9, 0.999), 1e-8  # torch's, of AdamW


def learning_rate(lr: float, epoch: int, settings: Settings) -> float:
    """The learning rate of an epoch, from 0: the schedule's, times the warm-up's part.

    "cosine": CosineAnnealingLR's closed form, to 0 in epoch t_max (Loshchilov & Hutter, ICLR 2017,
    eq. 5, without restarts). "step": MultiStepLR, times gamma from each of the milestones on.
    Warm-up: LinearLR from 1 / (warmup + 1), so epoch e < warmup has (e + 1) / (warmup + 1) of the
    schedule's rate (by epoch; Goyal et al. 2017, section 2.2, have it by step).
    """
    if settings.schedule == "step":
        lr *= settings.gamma ** sum(epoch >= int(m) for m in settings.milestones.split())
    else:
        lr = lr * (1 + math.cos(math.pi * epoch / settings.t_max)) / 2
    return lr * min(1, (epoch + 1) / (settings.warmup + 1))


def optimiser(
    parameters: Iterable[nn.Parameter], lr: float | Tensor, cell: Cell, settings: Settings
) -> torch.optim.Optimizer:
    """torch's optimiser of one cell; where lr is a tensor, as on a GPU, one to be captured."""
    decay, fused = cell.weight_decay, isinstance(lr, Tensor)
    if settings.optimizer == "adamw":
        how = {"weight_decay": decay, "fused": fused, "capturable": fused}
        return torch.optim.AdamW(parameters, lr, BETAS, EPS, **how)
    how = {"weight_decay": decay, "nesterov": settings.nesterov, "fused": fused}
    return torch.optim.SGD(parameters, lr, settings.momentum, **how)


def kept(settings: Settings) -> list[str]:
    """The names in torch of the optimiser's state of a parameter."""
    if settings.optimizer == "adamw":
        return ["step", "exp_avg", "exp_avg_sq"]
    return ["momentum_buffer"] if settings.momentum else []


def step_stack(
    stack: Tensor,
    gradient: Tensor,
    state: dict[str, Tensor],
    lr: Tensor,
    decay: Tensor | None,
    settings: Settings,
) -> None:
    """One step of a parameter of all cells, [C, ...], in place, as torch's optimiser takes it.

    lr and weight decay, [C], are each cell's own. `state` has what `kept` names: "step" [C], the
    others like the stack, all of them zero before the first step.
    """
    if settings.optimizer == "adamw":  # Loshchilov & Hutter, ICLR 2019, algorithm 2
        if decay is not None:
            stack.mul_(by_cell(1 - lr * decay, stack))
        step = state["step"].add_(1).to(stack.dtype)
        mean = state["exp_avg"].lerp_(gradient, 1 - BETAS[0])
        square = state["exp_avg_sq"].lerp_(gradient * gradient, 1 - BETAS[1])
        root = (square / by_cell(1 - BETAS[1] ** step, stack)).sqrt()
        stack.sub_(by_cell(lr / (1 - BETAS[0] ** step), stack) * mean / (root + EPS))
        return
    if decay is not None:
        gradient = gradient + by_cell(decay, stack) * stack
    if settings.momentum:
        velocity = state["momentum_buffer"].mul_(settings.momentum).add_(gradient)
        gradient = gradient + settings.momentum * velocity if settings.nesterov else velocity
    stack.sub_(by_cell(lr, stack) * gradient)


def by_cell(column: Tensor, stack: Tensor) -> Tensor:
    """A value a cell, [C], to be multiplied with a stack [C, ...]."""
    return column.view(-1, *[1] * (stack.ndim - 1))
