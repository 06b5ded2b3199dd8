"""LayerCAM: class activation maps with a weight for each cell."""

from __future__ import annotations

from torch import Tensor

from timmscope import CamTechnique


class LayerCAM(CamTechnique):
    """LayerCAM weighs each cell of a layer by its own positive gradient.

    `ReLU(Σ_k ReLU(g_kij) · A_kij)` with the activation A of the layer and `g = ∂S/∂A`. It keeps
    detail, so it also suits early layers, whose grids are fine.

    Paper:
        Jiang, Zhang, Hou, Cheng & Wei, "LayerCAM: Exploring Hierarchical Class Activation Maps for
        Localization", IEEE TIP 2021, doi:10.1109/TIP.2021.3089943.

    Inherited parameters:
        layer: layer to weigh; by default the last one whose grid the objective still depends on.
        relu: set negative values to 0, so that only evidence for the objective is shown.

    Raises:
        ImageError: the images do not have the model's channels, or are not in [0, 1].
        ObjectiveError: the objective does not fit the model.
        LayerNotFound: there is no such layer.
        ParameterError: `batch_size` is less than 1.
        TechniqueError: the layer has no grid, the objective does not depend on its grid, or the map
            is zero everywhere, the same in all cells or not finite.
    """

    def weigh(self, cells: Tensor, slopes: Tensor) -> Tensor:
        """`Σ_k ReLU(g_k) · A_k`."""
        return (slopes.clamp(min=0) * cells).sum(1)
