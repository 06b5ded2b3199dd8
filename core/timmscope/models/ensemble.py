"""`Ensemble` is a network whose logits are the mean of its members' logits."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from timmscope.draws import ensemble_member
from timmscope.models.defence import Defence, around_networks, defended_images
from timmscope.models.preprocessing import Preprocessing


class Member(NamedTuple):
    """A network with what happens to images before it."""

    network: nn.Module
    preprocessing: Preprocessing
    defences: tuple[Defence, ...]


class Ensemble(nn.Module):
    """Averages the logits of its members; takes images in [0, 1], not normalised.

    Member 0 is the submodule `0`, so its layer `blocks.4` is the layer `0.blocks.4` here. A member
    with another input size gets the images scaled to it.

    Args:
        members: the members, which have the same number of classes.
        num_classes: this number.
    """

    def __init__(self, members: Sequence[Member], num_classes: int) -> None:
        super().__init__()
        self.num_classes = num_classes
        self._before = [(each.preprocessing, each.defences) for each in members]
        for number, each in enumerate(members):
            self.add_module(str(number), each.network)

    @property
    def defences(self) -> tuple[Defence, ...]:
        """The defences of all members."""
        return tuple(defence for _, defences in self._before for defence in defences)

    def get_extra_state(self) -> str:
        """Return what decides the logits besides the weights, so that it counts in their digest."""
        return "; ".join(
            " + ".join([str(preprocessing.to_dict()), *(each.text() for each in defences)])
            for preprocessing, defences in self._before
        )

    def forward(self, images: Tensor) -> Tensor:
        """Compute the mean logits `(B, K)` of images `(B, C, H, W)` in [0, 1]."""
        size = self._before[0][0].input_size[1:]
        logits = []
        for number, (preprocessing, defences) in enumerate(self._before):
            seen = images
            own = preprocessing.input_size[1:]
            if own != size:
                sides = zip(images.shape[2:], own, size, strict=True)
                scaled = [round(side * new / old) for side, new, old in sides]
                seen = functional.interpolate(images, scaled, mode="bilinear", antialias=True)
            with ensemble_member(number):
                seen = defended_images(defences, seen)
            with around_networks(defences):
                logits.append(self.get_submodule(str(number))(preprocessing.normalise(seen)))
        return torch.stack(logits).mean(0)
