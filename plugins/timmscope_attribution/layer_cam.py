"""LayerCAM: every cell has weights of its own."""

from __future__ import annotations

from torch import Tensor

from timmscope import CamTechnique


class LayerCAM(CamTechnique):
    """LayerCAM (Jiang et al., IEEE TIP 2021): each cell weighted by its own positive gradient.

    `ReLU(Σ_k ReLU(g_kij) · A_kij)`. It keeps detail, so it also suits early layers, whose grids
    are fine.
    """

    def weigh(self, cells: Tensor, slopes: Tensor) -> Tensor:
        """`Σ_k ReLU(g_k) · A_k`."""
        return (slopes.clamp(min=0) * cells).sum(1)
