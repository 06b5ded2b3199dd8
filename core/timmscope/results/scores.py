"""`Scores` is the result of a technique that computes one number per image."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from timmscope.results.csv_text import csv_text
from timmscope.results.result import Result
from timmscope.short_names import short_names

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class Scores(Result):
    """A score per image; the figure shows the images with the highest scores.

    Attributes:
        ids: `(n,)` ids of the images.
        scores: `(n,)` float64.
        names: names of the images.
        labels: labels of the images, None for images without one.
        top: number of images in the figure.
        pictures_of: `(top, 3, t, t)` in [0, 1], highest score first; None shows no pictures.
        title: title of the figure.
        score_name: name of the score.
        note: small text below the figure.
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
        """Return the indices of all images, highest score first, ties by id."""
        order: list[int] = self.scores.argsort(descending=True, stable=True).tolist()
        return order

    def figure(self) -> Figure:
        """Draw the distribution of all scores and the images with the highest ones."""
        from timmscope.drawing.style import format_number

        from .scores_figure import scores_figure

        best = self.ranking()[: self.top]
        titles = []
        short = short_names([self.names[index] for index in best], self.names)
        for rank, (index, name) in enumerate(zip(best, short, strict=True), 1):
            score = format_number(float(self.scores[index]))
            label = self.labels[index]
            titles.append(f"{rank}. {name}\n" + (f"{score}  {label}" if label else score))
        return scores_figure(
            self.scores.numpy(),
            self.scores[best].tolist(),
            titles,
            self.pictures_of,
            score_name=self.score_name,
            title=self.title,
            note=self.note,
        )

    def summary(self) -> list[dict[str, Any]]:
        """Return one row per image in the figure, with notes."""
        return self.with_notes(self._rows(self.top))

    def documents(self) -> dict[str, str]:
        """Return `scores.csv` with all images, highest score first."""
        return {"scores.csv": csv_text(self._rows(len(self.ids)))}

    def _rows(self, count: int) -> list[dict[str, Any]]:
        ids, scores = self.ids.tolist(), self.scores.tolist()
        return [
            {
                "rank": rank,
                "id": ids[index],
                "name": self.names[index],
                "label": self.labels[index],
                "score": scores[index],
            }
            for rank, index in enumerate(self.ranking()[:count], 1)
        ]
