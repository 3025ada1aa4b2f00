"""bfloat16: where a network runs in it, and where it ends."""

import torch
from torch import Tensor, nn


def autocast(model: nn.Module, device: torch.device, amp: bool) -> torch.autocast:
    """bfloat16 where --amp is on and the network is large enough to gain by it."""
    return torch.autocast(device.type, torch.bfloat16, enabled=amp and model.AUTOCAST)


def at_least_float32(x: Tensor) -> Tensor:
    """float32 for what a network in bfloat16 has left; float32 and float64 as they are."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


def widest(device: torch.device) -> torch.dtype:
    """float64 for sums and measures, but for a device that has none (Apple's)."""
    return torch.float32 if device.type == "mps" else torch.float64
