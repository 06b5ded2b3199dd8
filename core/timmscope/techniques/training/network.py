"""The network in training, behind the normalisation, counting the images that pass through it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from timmscope.models import Preprocessing
from timmscope_registry.hooks.parts import parts_of


class PixelNetwork(nn.Module):
    """A network that takes images in [0, 1].

    Args:
        module: the network.
        preprocessing: its normalisation; None if it takes images in [0, 1] itself.

    Attributes:
        forwards: images that have passed so far.
        backwards: images whose outputs a gradient has reached.
    """

    def __init__(self, module: nn.Module, preprocessing: Preprocessing | None) -> None:
        super().__init__()
        self.module = module
        self.preprocessing = preprocessing
        self.forwards = self.backwards = 0

    def forward(self, images: Tensor) -> Any:
        """Return what the network returns for images `(B, C, H, W)` in [0, 1]."""
        first = next(self.module.parameters(), images)
        inputs = images.to(first.dtype)
        if self.preprocessing is not None:
            inputs = self.preprocessing.normalise(inputs)
        outputs = self.module(inputs)
        self.forwards += len(images)
        graph = next((part for part in parts_of(outputs).values() if part.requires_grad), None)
        if graph is not None:
            count = len(images)

            def reached(_: Tensor) -> None:
                self.backwards += count

            graph.register_hook(reached)
        return outputs


@contextmanager
def evaluating(network: nn.Module) -> Iterator[None]:
    """Put a network into eval mode inside the context, as while its own training attacks it."""
    was = network.training
    network.eval()
    try:
        yield
    finally:
        network.train(was)


def random_state(device: torch.device) -> bytes:
    """Return the state of the process's own random generators, to see whether it changes."""
    state = torch.get_rng_state().numpy().tobytes()
    if device.type == "cuda":
        state += torch.cuda.get_rng_state(device).numpy().tobytes()
    return state
