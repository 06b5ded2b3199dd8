"""`Scores` is the result of a technique whose outcome is one number per image."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import PurePath
from typing import TYPE_CHECKING, Any

from timmscope.results.csv_text import csv_text
from timmscope.results.result import Result

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class Scores(Result):
    """A score for each image; the highest are shown.

    Attributes:
        ids: `(n,)` ids of the images.
        scores: `(n,)` float64.
        names: what each image is called.
        labels: of each, None where there is none.
        top: how many are shown.
        pictures_of: `(top, 3, t, t)` in [0, 1], highest score first; or None.
        title: of the figure.
        score_name: what a score is.
        note: small print below the figure.
    """

    ids: Tensor
    scores: Tensor
    names: list[str]
    labels: list[str | None]
    top: int
    pictures_of: Tensor | None
    title: str
    score_name: str
    note: str = ""

    def ranking(self) -> list[int]:
        """Places of all images, highest score first, ties by id."""
        order: list[int] = self.scores.argsort(descending=True, stable=True).tolist()
        return order

    def figure(self) -> Figure:
        """The spread of all scores, and the images that have the highest."""
        from timmscope.drawing.style import format_number

        from .scores_figure import scores_figure

        places = self.ranking()[: self.top]
        titles = []
        for rank, at in enumerate(places, 1):
            score = format_number(float(self.scores[at]))
            name = PurePath(self.names[at]).stem or self.names[at]
            label = self.labels[at]
            titles.append(f"{rank}. {name}\n" + (f"{score}  {label}" if label else score))
        return scores_figure(
            self.scores.numpy(),
            self.scores[places].tolist(),
            titles,
            self.pictures_of,
            score_name=self.score_name,
            title=self.title,
            note=self.note,
        )

    def summary(self) -> list[dict[str, Any]]:
        """A row for each image that is shown."""
        return self._rows(self.top)

    def documents(self) -> dict[str, str]:
        """`scores.csv`: all images, highest score first."""
        return {"scores.csv": csv_text(self._rows(len(self.ids)))}

    def _rows(self, count: int) -> list[dict[str, Any]]:
        ids, scores = self.ids.tolist(), self.scores.tolist()
        return [
            {
                "rank": rank,
                "id": ids[at],
                "name": self.names[at],
                "label": self.labels[at],
                "score": scores[at],
            }
            for rank, at in enumerate(self.ranking()[:count], 1)
        ]
