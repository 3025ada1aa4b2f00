"""In which precision and memory format a network is computed."""

import torch
from torch import Tensor, nn


def autocast(model: nn.Module, device: torch.device, amp: bool) -> torch.autocast:
    """bfloat16 where --amp is on and the network declares AUTOCAST = True."""
    enabled = amp and getattr(model, "AUTOCAST", False)
    return torch.autocast(device.type, torch.bfloat16, enabled=enabled)


def on_device(model: nn.Module, device: torch.device) -> nn.Module:
    """The model there, in channels_last, which is faster, but for a user's own network."""
    last = getattr(model, "CHANNELS_LAST", True)
    return model.to(device, memory_format=torch.channels_last if last else torch.contiguous_format)


def at_least_float32(x: Tensor) -> Tensor:
    """bfloat16 to float32; float32 and float64 as they are."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


def widest(device: torch.device) -> torch.dtype:
    """float64 for sums and metrics, but for a device that has none (Apple's)."""
    return torch.float32 if device.type == "mps" else torch.float64


def parameter_count(model: nn.Module) -> int:
    """Number of trainable scalars."""
    return sum(p.numel() for p in model.parameters() if p.requires_grad)
