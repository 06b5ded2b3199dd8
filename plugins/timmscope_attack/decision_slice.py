"""Decision slice: the classes on a plane through an image, along an attack and at random."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from pydantic import Field, field_validator
from torch import Tensor
from torch.nn import functional

from timmscope import (
    AttackTechnique,
    Ball,
    Goal,
    HookedModel,
    ModelName,
    ModelTechnique,
    ObjectiveError,
    ParameterError,
    Result,
    TechniqueName,
    image_generators,
    image_rows,
    images_per_forward,
    images_per_pass,
)
from timmscope_attack.relative_size import relative_sides

if TYPE_CHECKING:
    from matplotlib.figure import Figure

MOST_POINTS = 1001


@dataclass(frozen=True, kw_only=True)
class DecisionPlanes(Result):
    """Classes and margins of M models on a plane through each of B images.

    The point in row i and column j of a plane is `x + places[j] · u + places[i] · v`.

    Attributes:
        images: `(B, C, H, W)` in [0, 1], the image x at the centre of each plane.
        adversarial: `(B, C, H, W)` in [0, 1], the changed image, at the point `(sizes, 0)`.
        random: `(B, C, H, W)`, the random direction v; norm 1, orthogonal to the other direction u.
        norm: norm in which directions have the length 1: `linf`, `l2` or `l1`.
        sizes: `(B,)` float64, size of the adversarial change in that norm, pixel units [0, 1].
        places: `(B, R)` float64, coordinates along both directions, from -extent · size upwards.
        labels: `(B,)` predictions of the first model on the images.
        classes: `(B, M, R, R)` int64 predicted classes.
        margins: `(B, M, R, R)` float32, the label's logit minus the largest other one: positive
            where the model predicts the label.
        models: ids of the models.
        class_names: for each model, the names of the classes in `classes`, by their indices.
    """

    images: Tensor
    adversarial: Tensor
    random: Tensor
    norm: str
    sizes: Tensor
    places: Tensor
    labels: Tensor
    classes: Tensor
    margins: Tensor
    models: list[str]
    class_names: list[dict[str, str]]

    def name(self, model: int, index: int) -> str:
        """Return the name of a class of one of the models."""
        return self.class_names[model].get(str(index), f"class {index}")

    def boundary(self) -> Tensor:
        """Return how far from the image the label ends along the two axes, `(B, M, 2)` float64.

        The first is along the adversarial change, the second is the nearer one of both signs of the
        random direction. It is the first zero of the margin between points of the grid, which is
        taken as straight between two of them; 0 where the image itself is not predicted as the
        label, infinite where the plane ends before the label does.
        """
        middle = self.places.shape[1] // 2
        across = self.margins[:, :, middle, :].double()  # (B, M, R)
        upwards = self.margins[:, :, :, middle].double()
        ahead = self.places[:, None, middle:]
        along = _first_zero(across[..., middle:], ahead)
        sides = [upwards[..., middle:], upwards[..., : middle + 1].flip(-1)]
        nearer = torch.minimum(*(_first_zero(side, ahead) for side in sides))
        return torch.stack([along, nearer], -1)

    def figure(self) -> Figure:
        """Draw one row per image: the image, the changed one, and the plane of each model."""
        from timmscope_attack.decision_slice_figure import decision_slice_figure

        return decision_slice_figure(self)

    def summary(self) -> list[dict[str, Any]]:
        """Return one row per image and model: classes, distances to the boundary, and shares."""
        middle, boundary = self.places.shape[1] // 2, self.boundary()
        rows = []
        for image in range(len(self.images)):
            label = int(self.labels[image])
            for place, model in enumerate(self.models):
                found = self.classes[image, place]
                rows.append(
                    {
                        "image": image,
                        "model": model,
                        "label": self.name(0, label),
                        "predicted": self.name(place, int(found[middle, middle])),
                        f"change_{self.norm}": float(self.sizes[image]),
                        "boundary_adversarial": float(boundary[image, place, 0]),
                        "boundary_random": float(boundary[image, place, 1]),
                        "share_of_label": float((found == label).double().mean()),
                        "classes": len(found.unique()),
                    }
                )
        return self.with_notes(rows)


def _first_zero(margins: Tensor, places: Tensor) -> Tensor:
    """Return where margins `(B, M, n)` on a half-line first fall to 0, `(B, M)`."""
    outside = margins <= 0
    last = outside.float().argmax(-1, keepdim=True)  # the first point outside, 0 if there is none
    before = (last - 1).clamp(min=0)
    places = places.expand_as(margins)
    (low, high), (start, end) = (
        [values.gather(-1, at) for at in (before, last)] for values in (margins, places)
    )
    share = torch.where(last > 0, low / (low - high), torch.zeros_like(low))
    found = (start + share * (end - start))[..., 0]
    return torch.where(outside.any(-1), found, torch.full_like(found, math.inf))


class DecisionSlice(ModelTechnique):
    """A decision slice shows which class a model predicts on a plane through an image.

    The plane is `x + a · u + b · v`: u is the change that an attack makes, v a random direction
    that is orthogonal to it, and both have the norm 1 in the norm of the attack (in L2 for one that
    counts pixels). The random direction has the signs ±1 in L∞, and is uniform on the sphere in L2
    and L1. Shown are the class at each point and the margin of the label, which is the model's
    prediction on x. Along v, models keep their prediction for much larger changes than along u.

    With `other`, a second model is shown on the same plane, such as one that was trained against
    attacks; images are scaled to its input size. Points are not clipped to [0, 1], because a plane
    would then have folds. Cost: the passes of the attack, and `resolution²` forward passes per
    image and model.

    Paper:
        - Fawzi, Moosavi-Dezfooli & Frossard, "Robustness of classifiers: from adversarial to random
          noise", NeurIPS 2016, arXiv:1608.08967.
        - Liu, Chen, Liu & Song, "Delving into Transferable Adversarial Examples and Black-box
          Attacks", ICLR 2017, arXiv:1611.02770.

    Raises:
        ImageError: the images do not have the model's channels, or are not in [0, 1].
        ObjectiveError: a model has no classes, or the second model has others.
        ParameterError: there are no images, a parameter is out of range, the attack changes nothing
            in an image, or the second model takes another number of channels.
        UnsupportedModel: the attack follows gradients, and the model has none.
    """

    attack: TechniqueName[AttackTechnique] = "ddn"
    """Attack that gives the first direction; one of least norm ends at the boundary."""
    other: ModelName | None = None
    """Second model to show on the same plane."""
    resolution: int = Field(default=41, ge=3, le=MOST_POINTS)
    """Number of points along each side of the plane; odd, so that the image is one of them."""
    extent: float = Field(default=2.0, gt=0, allow_inf_nan=False)
    """How far the plane reaches from the image, as a multiple of the adversarial change."""
    batch_size: int | None = Field(default=None, ge=1)
    """Images per pass; by default as many as fit the memory budget."""

    @field_validator("resolution")
    @classmethod
    def _has_a_centre(cls, value: int) -> int:
        if value % 2 == 0:
            raise ValueError(f"{value} points have none in the middle: take an odd number")
        return value

    def analyse(self, model: HookedModel, images: Any) -> DecisionPlanes:
        """Attack each image, and run the models on its plane.

        Raises:
            ObjectiveError: the model has no classes, or the second model has others.
            ParameterError: there are no images, the attack changes nothing in one of them, or the
                second model takes another number of channels.
        """
        if images is None:
            raise ParameterError(f"{self.title()} needs images", parameter="images")
        if model.num_classes < 2:
            raise ObjectiveError(
                f"{model.id} has {'one class' if model.num_classes else 'no classes'}, so there is "
                "no boundary between classes: take a classifier"
            )
        batch = model.images(images).detach()
        shown = [model] if self.other is None else [model, self.open_model(self.other)]
        sides = [
            relative_sides(batch.shape[1:], model, each, what="second model", parameter="other")
            for each in shown
        ]
        labels = self._predictions(model, batch)
        changed = self._attacked(model, batch, labels)
        norm = self.open_technique(self.attack).norm
        ball = Ball(norm="l2" if norm == "l0" else norm, epsilon=1.0)
        sizes = ball.size(changed - batch).to(batch.device)
        along = (changed - batch) / sizes.to(batch).view(-1, 1, 1, 1)
        random = _orthogonal(ball.noise(batch, image_generators(len(batch))), along, ball)
        reach = torch.linspace(-self.extent, self.extent, self.resolution, dtype=torch.float64)
        places = sizes[:, None] * reach.to(batch.device)
        classes, margins = [], []
        for row in self.track(range(len(batch)), total=len(batch)):
            goal = Goal(labels=labels[row : row + 1], classes=model.num_classes)
            plane = _Plane(batch[row], along[row], random[row], places[row], row)
            found = [
                self._values(each, plane, side, goal)
                for each, side in zip(shown, sides, strict=True)
            ]
            classes.append(torch.stack([of_points for of_points, _ in found]))
            margins.append(torch.stack([of_points for _, of_points in found]))
        whole = torch.stack(classes).cpu()
        return DecisionPlanes(
            provenance=self.provenance(model, labels=labels.tolist()),
            images=batch.float().cpu(),
            adversarial=changed.float().cpu(),
            random=random.float().cpu(),
            norm=ball.norm,
            sizes=sizes.cpu(),
            places=places.cpu(),
            labels=labels.cpu(),
            classes=whole,
            margins=torch.stack(margins).cpu(),
            models=[each.id for each in shown],
            class_names=[
                {str(index): each.class_name(index) for index in _met(whole[:, place], labels)}
                for place, each in enumerate(shown)
            ],
        )

    def _predictions(self, model: HookedModel, batch: Tensor) -> Tensor:
        """Return the predicted classes `(B,)`."""
        step = self.batch_size or images_per_forward(model, batch)
        found = []
        for start in range(0, len(batch), step):
            part = batch[start : start + step]
            with torch.no_grad(), image_rows(range(start, start + len(part))):
                found.append(model(part).argmax(1))
        return torch.cat(found)

    def _attacked(self, model: HookedModel, batch: Tensor, labels: Tensor) -> Tensor:
        """Return the changed images.

        Raises:
            ParameterError: the attack changes nothing in an image.
        """
        attack = self.open_technique(self.attack)
        step = self.batch_size or images_per_pass(model, batch)
        found = []
        for rows in torch.arange(len(batch), device=batch.device).split(step):
            goal = Goal(labels=labels[rows], classes=model.num_classes)
            with self.part(rows):
                found.append(attack.perturb(model, batch[rows], goal).detach())
        changed = torch.cat(found)
        same = (changed == batch).flatten(1).all(1).nonzero().flatten().tolist()
        if same:
            raise ParameterError(
                f"{attack.title()} changes nothing in image {same[0]}, so there is no direction to "
                "show: give it more steps or a larger epsilon, or take attack='pgd'",
                parameter="attack",
            )
        return changed

    def _values(
        self, model: HookedModel, plane: _Plane, sides: list[int] | None, goal: Goal
    ) -> tuple[Tensor, Tensor]:
        """Return the classes and the margins of the label at the points of a plane, `(R, R)`."""
        step = self.batch_size or images_per_forward(model, plane.image[None])
        count = len(plane.places) ** 2
        classes, margins = [], []
        for start in range(0, count, step):
            points = plane.points(range(start, min(start + step, count)))
            if sides is not None:
                points = functional.interpolate(points, sides, mode="bilinear", antialias=True)
            own = goal.rows(torch.zeros(len(points), dtype=torch.long, device=points.device))
            with torch.no_grad(), image_rows([plane.row]):
                outputs = own.outputs(model, points).float()
            classes.append(outputs.argmax(1))
            margins.append(-own.margin(outputs))
        shape = (len(plane.places), len(plane.places))
        return torch.cat(classes).view(shape), torch.cat(margins).view(shape)


@dataclass(frozen=True)
class _Plane:
    """The plane of one image: `image + places[j] · along + places[i] · across`."""

    image: Tensor
    along: Tensor
    across: Tensor
    places: Tensor
    row: int

    def points(self, numbers: range) -> Tensor:
        """Return the points with these numbers, row by row, `(n, C, H, W)`."""
        which = torch.tensor(numbers, device=self.places.device)
        places = self.places.to(self.image)
        up, right = (
            places[at].view(-1, 1, 1, 1) for at in (which // len(places), which % len(places))
        )
        return self.image + right * self.along + up * self.across


def _orthogonal(drawn: Tensor, along: Tensor, ball: Ball) -> Tensor:
    """Return drawn directions without their parts along the others, at norm 1."""
    ours, theirs = drawn.double().flatten(1), along.double().flatten(1)
    share = (ours * theirs).sum(1, keepdim=True) / (theirs**2).sum(1, keepdim=True)
    left = (ours - share * theirs).view_as(drawn)
    return (left / ball.size(left).to(left).clamp(min=1e-30).view(-1, 1, 1, 1)).to(along)


def _met(classes: Tensor, labels: Tensor) -> list[int]:
    """Return the classes that planes or labels have, ascending."""
    found: list[int] = torch.cat([classes.flatten(), labels.cpu()]).unique().tolist()
    return found
