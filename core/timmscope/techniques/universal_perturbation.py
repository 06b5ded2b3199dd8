"""`UniversalPerturbation` is the result of a universal attack: one change, and what it does."""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar, cast

from torch import Tensor

from timmscope.results.csv_text import csv_text
from timmscope.results.result import Result
from timmscope.techniques.balls import Norm, change_size
from timmscope_registry import ImageError

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_NORMAL_95 = 1.959964
_PARTS = ("fitted", "held out")


@dataclass(frozen=True, kw_only=True)
class UniversalPerturbation(Result):
    """One change of all images, and how often it fools the model.

    Values per image are in the order of the image set, those of a held-out set after those of the
    fitted one. Images that cannot be read have none.

    Attributes:
        perturbation: `(C, H, W)` in pixel units [0, 1]; images are clipped after it is added. Of a
            patch, the patch at its place in the middle, 0 elsewhere.
        norm: norm in which it is small: `linf`, `l2`, `l1` or `l0`.
        epsilon: largest norm that was allowed.
        names: `N` names of the images.
        held_out: `(N,)` whether the perturbation was not fitted on the image.
        before: `(N,)` predictions on the images; empty for a model without classes, like the
            other predictions and confidences.
        after: `(N,)` predictions with the perturbation.
        after_noise: `(N,)` predictions with random noise of the perturbation's norm, drawn for each
            image.
        confidence_before: `(N,)` softmax probability of `before`.
        confidence_after: `(N,)` softmax probability of `after`.
        already: `(N,)` whether the image reaches the goal without the perturbation.
        fooled: `(N,)` whether it reaches the goal with the perturbation, and did not before.
        fooled_8bit: `(N,)` the same after rounding to 8 bits.
        fooled_by_noise: `(N,)` the same with the noise.
        shown: `(k,)` positions of the images in the figure: the first held-out ones in the random
            order of the split.
        originals: `(k, C, H, W)` these images in [0, 1].
        changed: `(k, C, H, W)` these images with the perturbation, as they were measured.
        smaller: `(S,)` shares of its size at which the perturbation was measured too; of a patch,
            of its area.
        fooled_smaller: `(S, n)` whether each of the n held-out images reaches the goal with the
            perturbation at that size, and did not before.
        fooled_by_smaller_noise: `(S, n)` the same with noise of that size.
        class_names: name of each predicted class, by its index as text.
        target_name: name of the class to reach; empty for any other than the prediction.
        objective: short name of the objective that was to be raised; empty for an attack on the
            class.
        value: value that the objective was to reach; None without an objective.
        mask: `(1, H, W)` where a patch covers an image; None for a perturbation that is added.
        scores_before: `(N,)` the objective of the images; None without an objective.
        scores_after: `(N,)` the objective with the perturbation; None without an objective.
        unreadable: names of the images that cannot be read.
        forwards: images that went forward through the model while the perturbation was fitted.
        backwards: images that went backward.
    """

    perturbation: Tensor
    norm: str
    epsilon: float
    names: list[str]
    held_out: Tensor
    before: Tensor
    after: Tensor
    after_noise: Tensor
    confidence_before: Tensor
    confidence_after: Tensor
    already: Tensor
    fooled: Tensor
    fooled_8bit: Tensor
    fooled_by_noise: Tensor
    shown: Tensor
    originals: Tensor
    changed: Tensor
    smaller: Tensor
    fooled_smaller: Tensor
    fooled_by_smaller_noise: Tensor
    class_names: dict[str, str]
    target_name: str = ""
    objective: str = ""
    value: float | None = None
    mask: Tensor | None = None
    scores_before: Tensor | None = None
    scores_after: Tensor | None = None
    unreadable: list[str] = field(default_factory=list)
    forwards: int = 0
    backwards: int = 0

    sheet_pictures: ClassVar[str] = "perturbation"

    def apply(self, images: Tensor) -> Tensor:
        """Return images `(B, C, H, W)` with the perturbation added, clipped to [0, 1].

        A patch is pasted in the middle.

        Raises:
            ImageError: the images have another size.
        """
        if images.ndim != 4 or images.shape[1:] != self.perturbation.shape:
            raise ImageError(
                f"images have shape {tuple(images.shape)}; the perturbation is for "
                f"(B, {', '.join(map(str, self.perturbation.shape))})"
            )
        kept = images if self.mask is None else images * (1 - self.mask.to(images))
        return (kept + self.perturbation.to(images)).clamp(0, 1)

    @property
    def size(self) -> float:
        """The norm of the perturbation; of a patch, the number of pixels that it covers."""
        if self.mask is not None:
            return float(self.mask.sum())
        return float(change_size(self.perturbation[None], cast(Norm, self.norm)))

    def rate(self, *, held_out: bool = True) -> float:
        """Return the share of the images that it fools; NaN if all reach the goal without it."""
        return self._share(self.fooled, held_out)

    def noise_rate(self, *, held_out: bool = True) -> float:
        """Return the share of the images that random noise of the same norm fools."""
        return self._share(self.fooled_by_noise, held_out)

    def _share(self, values: Tensor, held_out: bool) -> float:
        return float(values[(self.held_out == held_out) & ~self.already].double().mean())

    def interval(self, *, held_out: bool = True) -> tuple[float, float]:
        """Return the 95 % confidence interval of `rate` (Wilson, 1927)."""
        count = int(((self.held_out == held_out) & ~self.already).sum())
        return wilson(self.rate(held_out=held_out), count)

    def size_table(self) -> list[dict[str, Any]]:
        """Return one row per size, the smallest first: on held-out images, its rate and noise's.

        A patch is measured at the same places at each size; it also has the share of the image that
        it covers, as `area`.
        """
        new = ~self.already[self.held_out]
        rates = [float(each[new].double().mean()) for each in self.fooled_smaller]
        noise = [float(each[new].double().mean()) for each in self.fooled_by_smaller_noise]
        shares = [*self.smaller.tolist(), 1.0]
        area = {} if self.mask is None else {"area": float(self.mask.mean())}
        return [
            {
                self.norm: share * self.size,
                **{name: share * value for name, value in area.items()},
                "fooling_rate": rate,
                "noise_rate": noisy,
            }
            for share, rate, noisy in zip(
                shares, [*rates, self.rate()], [*noise, self.noise_rate()], strict=True
            )
        ]

    def becomes(self) -> list[tuple[str, float]]:
        """Return the classes that fooled images are taken for, with their shares, most first."""
        if not len(self.after):
            return []
        found = Counter(self.after[self.fooled].tolist())
        total = sum(found.values())
        return [(self.class_name(each), count / total) for each, count in found.most_common()]

    def figure(self) -> Figure:
        """Draw the magnified perturbation, the rates, and images before and after."""
        from timmscope.techniques.universal_figure import universal_figure

        return universal_figure(self)

    def pictures(self) -> dict[str, Any]:
        """Return the magnified perturbation, and the images of the figure with it."""
        return {
            "perturbation": self.shown_perturbation()[0],
            **{f"perturbed-{row:03d}": image for row, image in enumerate(self.changed)},
        }

    def shown_perturbation(self) -> tuple[Tensor, float]:
        """Return the magnified perturbation and the factor; of a patch, the patch on grey."""
        from timmscope.techniques.change_figure import magnified

        if self.mask is None:
            return magnified(self.perturbation)
        return (self.perturbation + 0.75 * (1 - self.mask)).clamp(0, 1), 1.0

    def documents(self) -> dict[str, str]:
        """Return `images.csv`, `sizes.csv` and, for a model with classes, `classes.csv`."""
        documents = {
            "images.csv": csv_text(self._image_rows()),
            "sizes.csv": csv_text(self.size_table()),
        }
        if len(self.before):
            documents["classes.csv"] = csv_text(self.class_table())
        return documents

    def class_table(self) -> list[dict[str, Any]]:
        """Return one row per class that the model predicts without the perturbation.

        A row has the number of fitted and held-out images, how many of each it fools, how many
        held-out ones noise fools, and the class that most of the fooled images are taken for.
        """
        rows = []
        for index in sorted(set(self.before.tolist())):
            own = self.before == index
            row: dict[str, Any] = {"class": index, "name": self.class_name(index)}
            for part, held in zip(_PARTS, (False, True), strict=True):
                chosen = own & (self.held_out == held)
                row[part.replace(" ", "_")] = int(chosen.sum())
                row[f"{part.replace(' ', '_')}_fooled"] = int(self.fooled[chosen].sum())
            row["held_out_fooled_by_noise"] = int(self.fooled_by_noise[own & self.held_out].sum())
            most = Counter(self.after[own & self.fooled].tolist()).most_common(1)
            row["becomes"] = self.class_name(most[0][0]) if most else None
            row["becomes_count"] = most[0][1] if most else 0
            rows.append(row)
        return rows

    def class_name(self, index: int) -> str:
        """Return the name of a class that was predicted."""
        return self.class_names.get(str(index), f"class {index}")

    def _image_rows(self) -> list[dict[str, Any]]:
        rows = []
        for row, name in enumerate(self.names):
            facts: dict[str, Any] = {"image": name, "part": _PARTS[int(self.held_out[row])]}
            if len(self.before):
                facts["before"] = self.class_name(int(self.before[row]))
                facts["after"] = self.class_name(int(self.after[row]))
                facts["after_noise"] = self.class_name(int(self.after_noise[row]))
            if self.scores_before is not None and self.scores_after is not None:
                facts["score_before"] = float(self.scores_before[row])
                facts["score_after"] = float(self.scores_after[row])
            for column in ("already", "fooled", "fooled_8bit", "fooled_by_noise"):
                facts[column] = bool(getattr(self, column)[row])
            rows.append(facts)
        return rows

    def summary(self) -> list[dict[str, Any]]:
        """Return a row for fitted and one for held-out images: their number and rates; notes."""
        rows = []
        for part, held in zip(_PARTS, (False, True), strict=True):
            low, high = self.interval(held_out=held)
            rows.append(
                {
                    "images": part,
                    "count": int((self.held_out == held).sum()),
                    "already": int(self.already[self.held_out == held].sum()),
                    "fooling_rate": self.rate(held_out=held),
                    "low": low,
                    "high": high,
                    "fooling_rate_8bit": self._share(self.fooled_8bit, held),
                    "noise_rate": self.noise_rate(held_out=held),
                    self.norm: self.size,
                    "forwards": self.forwards,
                    "backwards": self.backwards,
                }
            )
        return self.with_notes(rows)


def wilson(share: float, count: int) -> tuple[float, float]:
    """Return the 95 % confidence interval of a share of `count` images (Wilson, 1927)."""
    if not count:
        return math.nan, math.nan
    square = _NORMAL_95**2 / count
    middle = (share + square / 2) / (1 + square)
    half = math.sqrt(share * (1 - share) * square + square**2 / 4) / (1 + square)
    return max(0.0, middle - half), min(1.0, middle + half)
