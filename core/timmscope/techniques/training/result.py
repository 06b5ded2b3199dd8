"""The result of a training: its curves, figures on held-out images, and where the weights are."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from timmscope.models import HookedModel
from timmscope.models.trained import Builds, Card, load_trained
from timmscope.results.result import Provenance, Result

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@dataclass(frozen=True, kw_only=True)
class Training(Result):
    """A trained network, by its folder, and how its training went.

    Attributes:
        steps: `(P,)` int64, the last step of each of P windows of equal length.
        rates: `(P,)` learning rate at that step.
        losses: `(P, T)` mean of each term of the loss in the window.
        terms: names of the T terms; the first is `total`.
        previews: `(R, N, C, H, W)` in [0, 1], R rows of pictures of N held-out images; None if the
            technique makes none.
        preview_names: names of the R rows.
        held_out: mean loss and figures on held-out images.
        card: everything that `card.json` says about data, cost and environment.
        folder: where `weights.safetensors` and `card.json` are.
    """

    steps: Tensor
    rates: Tensor
    losses: Tensor
    terms: list[str]
    previews: Tensor | None
    preview_names: list[str]
    held_out: dict[str, float]
    card: dict[str, Any]
    folder: str

    @classmethod
    def of(
        cls, facts: Provenance, card: Card, folder: Path, previews: dict[str, Tensor]
    ) -> Training:
        """Return the result of a finished training.

        Args:
            facts: provenance of the call.
            card: the card that it wrote.
            folder: where it wrote it.
            previews: the technique's rows of pictures.
        """
        curve = card.curve
        terms = sorted(curve["losses"], key=lambda name: name != "total")
        return cls(
            provenance=facts,
            steps=torch.tensor(curve["steps"], dtype=torch.long),
            rates=torch.tensor(curve["rates"]),
            losses=torch.tensor([curve["losses"][name] for name in terms]).T.contiguous(),
            terms=terms,
            previews=torch.stack(list(previews.values())) if previews else None,
            preview_names=list(previews),
            held_out=card.held_out,
            card={
                name: getattr(card, name)
                for name in ("weights_sha256", "data", "cost", "environment", "stopped")
            },
            folder=str(folder),
        )

    def model(
        self, base: HookedModel | None = None, *, technique: Builds | None = None
    ) -> HookedModel:
        """Load the trained network.

        Args:
            base: the model that was trained, for one that cannot be loaded by its id.
            technique: the training technique, for one that no plugin registers.

        Raises:
            ModelError: the weights or the card have changed, or the model cannot be loaded.
        """
        return load_trained(self.folder, base, technique=technique)

    def figure(self) -> Figure:
        """Draw the curves of the loss, the learning rate and the held-out figures."""
        from timmscope.techniques.training.figure import training_figure

        return training_figure(self)

    def pictures(self) -> dict[str, Any]:
        """Return the technique's pictures of held-out images, one sheet per row."""
        from timmscope.drawing import sheet_figure

        rows = zip(self.preview_names, () if self.previews is None else self.previews, strict=True)
        return {
            f"preview-{number}": partial(sheet_figure, row, columns=len(row), title=name)
            for number, (name, row) in enumerate(rows)
        }

    def summary(self) -> list[dict[str, Any]]:
        """Return one row: steps, first and last loss, held-out figures, cost."""
        data, cost = self.card["data"], self.card["cost"]
        return [
            {
                "images": data["images"],
                "held_out_images": data["held_out_images"],
                "steps": int(self.steps[-1]),
                "first_loss": float(self.losses[0, 0]),
                "last_loss": float(self.losses[-1, 0]),
                **{f"held_out_{name}": value for name, value in self.held_out.items()},
                "times_standard": cost["times_standard"],
                **({"stopped": self.card["stopped"]} if self.card["stopped"] else {}),
            }
        ]
