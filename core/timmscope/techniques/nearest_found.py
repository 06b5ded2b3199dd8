"""`NearestFound` keeps the smallest change that reaches the goal, for attacks of least norm."""

from __future__ import annotations

import torch
from torch import Tensor

from timmscope.techniques.balls import Norm, change_size


class NearestFound:
    """The nearest images so far that reach the goal of an attack.

    Args:
        images: `(B, C, H, W)` in [0, 1], from which changes are measured.
        norm: norm of the changes.

    Attributes:
        images: `(B, C, H, W)`: the nearest image that reaches the goal; the original where none is
            found.
        sizes: `(B,)` float64: the norms of their changes; infinite where none is found.
    """

    def __init__(self, images: Tensor, norm: Norm) -> None:
        self.images = images.clone()
        self.sizes = torch.full((len(images),), torch.inf, dtype=torch.float64).to(images.device)
        self._originals = images
        self._norm = norm

    @property
    def found(self) -> Tensor:
        """`(B,)` whether an image that reaches the goal was offered."""
        return self.sizes.isfinite()

    def offer(self, rows: Tensor, changed: Tensor, reached: Tensor) -> Tensor:
        """Keep images that reach the goal and are nearer than those before.

        Args:
            rows: `(n,)` int64, which of the B images they are; none twice.
            changed: `(n, C, H, W)`, changed images.
            reached: `(n,)` whether each of them reaches the goal.

        Returns:
            `(n,)` which of them are kept.
        """
        sizes = change_size(changed - self._originals[rows], self._norm)
        nearer = reached & (sizes < self.sizes[rows])
        kept = rows[nearer]
        self.images[kept] = changed[nearer]
        self.sizes[kept] = sizes[nearer]
        return nearer
