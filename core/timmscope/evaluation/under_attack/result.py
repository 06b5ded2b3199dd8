"""`Robustness` holds what attacks leave of the accuracy of a model, defended models and others."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from timmscope.results.csv_text import csv_text
from timmscope.results.result import Result
from timmscope.techniques.over.columns import share_interval
from timmscope_registry import ParameterError, did_you_mean

if TYPE_CHECKING:
    from matplotlib.figure import Figure

WORST = "worst case"
"""Name of the line that counts an image as broken if any attack breaks it."""


@dataclass(frozen=True)
class Share:
    """A share of images, with Wilson's 95 % interval; NaN for no image."""

    hits: int
    count: int

    @property
    def value(self) -> float:
        """The share."""
        return self.hits / self.count if self.count else math.nan

    @property
    def interval(self) -> tuple[float, float]:
        """Both ends of the interval."""
        return share_interval(self.hits, self.count)


@dataclass(frozen=True, kw_only=True)
class Robustness(Result):
    """Accuracy of M models on N images, clean and under R attacks.

    Each row is an attack at one radius (or of least norm), made on a model and judged on one.

    Attributes:
        models: names of the models; the first is the one that was given.
        roles: for each of them `model`, `defended` or `other`.
        images: names of the images.
        labels: `(N,)` int64, the classes that images are judged against; -1 if unreadable.
        labels_from: where these classes come from, in words.
        right: `(M, N)` float64, 1 where a model classifies the clean image right, else 0; NaN if it
            is unreadable.
        rows: for each row `attack`, `norm`, `epsilon` (None for least norm), and the places of the
            models that it was made on and judged on, `source` and `target`.
        radius: `(R, N)` float64, how large the change is that breaks an image, in the row's norm: 0
            if the clean image is wrong, infinite if it is not broken, NaN if it was not attacked.
            The robust accuracy at a radius is the share of larger values.
        radius_8bit: `(R, N)` the same for the changed images rounded to 8 bits.
        forwards: `(R, N)` forward passes of the attacked model; NaN if it was not attacked.
        backwards: `(R, N)` backward passes.
        queries: `(R, N)` forward passes of attacks without gradients; 0 for others.
        zero_gradients: `(R, N)` gradients that were zero.
        epsilons: the radii that are judged, by norm.
        refused: what attacks refused: attack, model, number of images, reason.
        unreadable: images that could not be read: image, reason.
        checks: for each check of a model its place, `number`, `check` (what holds if it passes),
            `status` (`pass`, `fail`, `not applicable`), `evidence`, `advice` and `values`.
    """

    models: list[str]
    roles: list[str]
    images: list[str]
    labels: Tensor
    labels_from: str
    right: Tensor
    rows: list[dict[str, Any]]
    radius: Tensor
    radius_8bit: Tensor
    forwards: Tensor
    backwards: Tensor
    queries: Tensor
    zero_gradients: Tensor
    epsilons: dict[str, list[float]]
    refused: list[dict[str, Any]]
    unreadable: list[dict[str, str]]
    checks: list[dict[str, Any]]

    @property
    def norms(self) -> list[str]:
        """The norms of the attacks."""
        return list(self.epsilons)

    def clean(self, model: int | str = 0) -> Share:
        """Return the clean accuracy of a model, by place or name.

        Raises:
            ParameterError: there is no such model.
        """
        return _share(self.right[self._place(model)], 0.0)

    def accuracy(self, row: int, epsilon: float | None = None) -> Share:
        """Return the accuracy that an attack leaves.

        Args:
            row: number of the row.
            epsilon: radius in the row's norm; by default the one at which it attacked, or any for
                an attack of least norm.
        """
        own = self.rows[row]["epsilon"]
        radius = own if epsilon is None else epsilon
        return _share(self.radius[row], math.inf if radius is None else radius)

    def worst_radius(self, norm: str, model: int | str = 0) -> Tensor:
        """Return the smallest radius at which any attack breaks each image, `(N,)` float64.

        Args:
            norm: the norm of the attacks that count.
            model: place or name of the model that they are judged on.

        Raises:
            ParameterError: there is no such model or norm.
        """
        place = self._place(model)
        if norm not in self.epsilons:
            raise ParameterError(
                f"no attack keeps {norm!r}: the norms are {', '.join(self.norms)}",
                parameter="norm",
            )
        smallest = torch.where(self.right[place] > 0, torch.inf, self.right[place])
        for row, radii in zip(self.rows, self.radius, strict=True):
            if row["target"] == place and row["norm"] == norm:
                smallest = torch.where(radii.isnan(), smallest, torch.minimum(smallest, radii))
        return smallest

    def worst(self, norm: str, epsilon: float, model: int | str = 0) -> Share:
        """Return the accuracy that all attacks together leave, within a radius of a norm.

        An attack at a smaller radius counts too. This is an upper bound of the true robust
        accuracy, as attacks that were not tried may break more.

        Raises:
            ParameterError: there is no such model or norm.
        """
        return _share(self.worst_radius(norm, model), epsilon)

    def transfer(self, attack: str, epsilon: float) -> Tensor:
        """Return how often an attack on one model breaks another, `(S, S)` float64.

        Args:
            attack: name of the attack.
            epsilon: the radius at which it attacked, or for one of least norm any radius.

        Returns:
            For each of the S undefended models (a row) that was attacked, and each of them that it
            was judged on (a column), the share of broken images, of those that both classify right.

        Raises:
            ParameterError: there is no such attack at this radius.
        """
        places = [place for place, role in enumerate(self.roles) if role != "defended"]
        rates = torch.full((len(places), len(places)), torch.nan, dtype=torch.float64)
        own = {}
        chosen = [
            (row, radii)
            for row, radii in zip(self.rows, self.radius, strict=True)
            if row["attack"] == attack and row["epsilon"] in (None, epsilon)
        ]
        if not chosen:
            known = dict.fromkeys(row["attack"] for row in self.rows)
            hint = did_you_mean(attack, known) or f"the attacks are {', '.join(known)}"
            raise ParameterError(f"{attack!r} did not run at {epsilon:g}; {hint}")
        for row, radii in chosen:
            if row["source"] == row["target"]:
                own[row["source"]] = radii
        for row, radii in chosen:
            if row["source"] in places and row["target"] in places and row["source"] in own:
                both = (radii > 0) & (own[row["source"]] > 0)
                if bool(both.any()):
                    rate = (radii[both] <= epsilon).double().mean()
                    rates[places.index(row["source"]), places.index(row["target"])] = rate
        return rates

    def how(self, row: int) -> str:
        """Return how an attack reaches the model: direct, adaptive, oblivious, or from another."""
        source, target = self.rows[row]["source"], self.rows[row]["target"]
        if source == target:
            return "adaptive" if self.roles[target] == "defended" else "direct"
        if self.roles[target] == "defended" and source == 0:
            return "oblivious"
        return f"from {self.models[source]}"

    def figure(self) -> Figure:
        """Draw accuracy over the radius for each model, with the checks below."""
        from timmscope.evaluation.under_attack.figure import robustness_figure

        return robustness_figure(self)

    def summary(self) -> list[dict[str, Any]]:
        """Return one row per model, attack and radius, with 95 % intervals, and the worst cases."""
        rows: list[dict[str, Any]] = []
        for place, model in enumerate(self.models):
            rows.append(_facts(model, "none", "", "", None, self.clean(place)))
            for norm, radii in self.epsilons.items():
                for number, row in enumerate(self.rows):
                    if row["target"] == place and row["norm"] == norm:
                        rows += self._row_facts(number, radii)
                rows += [
                    _facts(model, WORST, "", norm, radius, self.worst(norm, radius, place))
                    for radius in radii
                ]
        return rows

    def _row_facts(self, number: int, radii: list[float]) -> list[dict[str, Any]]:
        row = self.rows[number]
        model, how = self.models[row["target"]], self.how(number)
        listed = radii if row["epsilon"] is None else [row["epsilon"]]
        facts = []
        for radius in listed:
            share = _share(self.radius[number], radius)
            rounded = _share(self.radius_8bit[number], radius)
            facts.append(
                _facts(model, row["attack"], how, row["norm"], radius, share)
                | {
                    "accuracy 8 bits": _finite(rounded.value),
                    "forwards": self._cost(self.forwards, number),
                    "backwards": self._cost(self.backwards, number),
                    "queries": self._cost(self.queries, number),
                    "stuck": self.stuck(number),
                }
            )
        return facts

    def stuck(self, row: int) -> int:
        """Return how many images an attack met a zero gradient on and did not break."""
        return int(((self.zero_gradients[row] > 0) & self.radius[row].isinf()).sum())

    def survival(self, row: int) -> Share:
        """Return which share of the broken images stay broken when they are rounded to 8 bits."""
        broken = (self.radius[row] > 0) & self.radius[row].isfinite()
        kept = broken & self.radius_8bit[row].isfinite()
        return Share(int(kept.sum()), int(broken.sum()))

    def _cost(self, counts: Tensor, row: int) -> float | None:
        """Mean of passes over the images that were attacked."""
        known = counts[row][(self.radius[row] > 0) & counts[row].isfinite()]
        return float(known.mean()) if len(known) else None

    def documents(self) -> dict[str, str]:
        """Return the page `report.html`, and the facts of every image as `images.csv`."""
        from timmscope.evaluation.under_attack.page import report_page

        return {"report.html": report_page(self), "images.csv": self._image_table()}

    def _image_table(self) -> str:
        from timmscope.evaluation.under_attack.radii import radius_text

        table = []
        names = [
            f"{row['attack']}, {self.how(number)}, {self.models[row['target']]}"
            + ("" if row["epsilon"] is None else f", {radius_text(row['epsilon'], row['norm'])}")
            for number, row in enumerate(self.rows)
        ]
        for number, image in enumerate(self.images):
            facts: dict[str, Any] = {"path": image, "label": int(self.labels[number])}
            for place, model in enumerate(self.models):
                right = float(self.right[place, number])
                facts[f"right, {model}"] = None if math.isnan(right) else int(right)
            for row, name in enumerate(names):
                radius = float(self.radius[row, number])
                facts[f"radius of {name}"] = None if math.isnan(radius) else radius
            table.append(facts)
        return csv_text(table)

    def _place(self, model: int | str) -> int:
        if isinstance(model, int):
            if not -len(self.models) <= model < len(self.models):
                raise ParameterError(
                    f"there is no model {model}: there are {len(self.models)}", parameter="model"
                )
            return model % len(self.models)
        if model not in self.models:
            hint = did_you_mean(model, self.models) or f"there are {', '.join(self.models)}"
            raise ParameterError(f"no model is called {model!r}: {hint}", parameter="model")
        return self.models.index(model)


def _share(radii: Tensor, radius: float) -> Share:
    """Return the share of known values above a radius; infinite ones are above any."""
    known = radii[~radii.isnan()]
    above = known.isinf() | (known > radius)
    return Share(int(above.sum()), len(known))


def _facts(
    model: str, attack: str, how: str, norm: str, radius: float | None, share: Share
) -> dict[str, Any]:
    low, high = share.interval
    return {
        "model": model,
        "attack": attack,
        "how": how,
        "norm": norm,
        "radius": radius,
        "accuracy": _finite(share.value),
        "accuracy 95%": None if math.isnan(low) else [low, high],
        "images": share.count,
        "accuracy 8 bits": None,
        "forwards": None,
        "backwards": None,
        "queries": None,
        "stuck": None,
    }


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None
