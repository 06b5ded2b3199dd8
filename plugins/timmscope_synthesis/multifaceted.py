"""Multifaceted visualisation: the different kinds of things that excite a unit, an image each."""

from __future__ import annotations

from typing import Annotated, Any

import numpy as np
import numpy.typing as npt
import torch
from pydantic import Field
from torch import Tensor

from timmscope import (
    Climb,
    FourierParameterisation,
    HookedModel,
    LayerName,
    Objective,
    ParameterError,
    RandomViews,
    Store,
    StoreName,
    StorePictures,
    SynthesisOutcome,
    SynthesisTechnique,
    image_generators,
    loop_model,
    per_image,
    strongest,
)
from timmscope_synthesis.balance import Balanced, cosine_to
from timmscope_synthesis.facets import Facets, find_facets

NotNegative = Annotated[float, Field(ge=0, allow_inf_nan=False)]


class Multifaceted(SynthesisTechnique):
    """Multifaceted visualisation shows the kinds of things that excite a unit, an image of each.

    The images of a store that excite the objective most are put into groups by their rows at a
    layer (principal components, then k-means). For each group, the mean of the images nearest to
    its centre is where the ascent starts, under random views as in `activation-maximization`, and
    the activation at the layer is drawn towards the group: `S(x) + λ cos(a(x) − m, c − m)` with the
    group's centre c and the mean m of all groups. λ is `facet_weight` times the ratio of the two
    terms' gradients (L1) after the first step. One image per target and facet, largest group first.

    The paper puts t-SNE before k-means, starts from the mean images as well, and has total
    variation and phases of shrinking crops instead of random views and the term of the group.

    Paper:
        Nguyen, Yosinski & Clune, "Multifaceted Feature Visualization: Uncovering the Different
        Types of Features Learned by Each Neuron in Deep Neural Networks", ICML workshop 2016,
        arXiv:1602.03616; the term of a group: Goh et al., "Multimodal Neurons in Artificial Neural
        Networks", Distill 2021, doi:10.23915/distill.00030.

    Inherited parameters:
        judge: model that took no part, whose rank and probability of the class are noted.

    Raises:
        ObjectiveError: the objective does not fit the model, or the store cannot rank images by it.
        LayerNotFound: the store has no such layer.
        ParameterError: a parameter is out of range, or the store has too few images.
        StoreMismatch: the store was mined with another model.
        TechniqueError: the gradient is zero or not finite.
    """

    store: StoreName
    """Store with the images, mined with the model."""
    facets: Annotated[int, Field(ge=1, le=64)] = 4
    """Number of groups."""
    top: Annotated[int, Field(ge=1)] = 200
    """Number of images that are put into groups, the strongest of the store."""
    layer: LayerName | None = None
    """Layer of the store whose rows are grouped; by default its last one before the logits."""
    components: Annotated[int, Field(ge=1)] = 50
    """Number of principal components of the rows."""
    nearest: Annotated[int, Field(ge=1)] = 15
    """Number of images whose mean a facet starts from."""
    facet_weight: NotNegative = 0.5
    """How strongly an image is drawn to its group, relative to the objective."""
    steps: Annotated[int, Field(ge=1)] = 128
    """Number of gradient steps."""
    learning_rate: Annotated[float, Field(gt=0, allow_inf_nan=False)] = 0.0125
    """Step size of Adam on the Fourier coefficients."""
    decay_power: NotNegative = 1.5
    """Exponent of the Fourier scaling's fall with frequency; larger is smoother."""
    robust: bool = True
    """Show the model a random view of the image at each step."""
    frames: Annotated[int, Field(ge=0, le=64)] = 0
    """Number of intermediate images to keep for an animation, at equal distances."""

    def synthesize(
        self, model: HookedModel, objective: Objective, init: Tensor | None
    ) -> SynthesisOutcome:
        """Find the facets of each target in the store, and climb from each.

        Raises:
            ParameterError: there is an initial image, or the store has too few images.
            StoreMismatch: the store was mined with another model.
            TechniqueError: the gradient of an image is zero.
        """
        if init is not None:
            raise ParameterError(
                "the facets start from images of the store: leave init unset", parameter="init"
            )
        store = self.open_store(self.store)
        layer = self._layer(store)
        targets, objective, _ = per_image(objective, None, self.facets)
        found: dict[int, Facets] = {}
        for target in dict.fromkeys(targets.tolist()):
            first = target * self.facets
            found[target] = self._facets(store, layer, model, objective.rows(first, first + 1))
        size = (model.input_size[1], model.input_size[2])
        space = FourierParameterisation(
            size, decorrelate=True, decay_power=self.decay_power, channels=model.input_size[0]
        )
        copy = loop_model(model, (*objective.points, layer), self.steps)
        made = []
        for row, own in enumerate(image_generators(len(targets))):
            facets, number = found[int(targets[row])], row % self.facets
            goal = objective.rows(row, row + 1)
            direction = torch.from_numpy(facets.directions[number]).float()
            term = cosine_to(copy, layer, direction, torch.from_numpy(facets.middle).float())
            start = facets.starts[number][None].to(model.device)
            drawn = Balanced(copy, goal, layer, term, self.facet_weight)
            climb = Climb(
                space=space,
                steps=self.steps,
                optimiser=lambda variable: torch.optim.Adam([variable], lr=self.learning_rate),
                views=RandomViews(jitter_px=24, scale=0.3) if self.robust else None,
                together=drawn if self.facet_weight else None,
                points=(layer,) if self.facet_weight else (),
                after_step=drawn.after_step(space) if self.facet_weight else None,
                frames=self.frames,
            )
            variable = space.variable(start)
            made.append(climb.run(self, copy, goal, variable, [own], first=row, count=len(targets)))
        sizes = [found[int(target)].sizes[row % self.facets] for row, target in enumerate(targets)]
        self.note("images_of_facet", sizes)
        outcome = SynthesisOutcome.joined(made, targets)
        facet = torch.arange(self.facets).repeat(len(found))
        return SynthesisOutcome(**{**vars(outcome), "facets": facet})

    def _layer(self, store: Store) -> str:
        """The layer whose rows are grouped."""
        names = [name for name in store.layers if name != "logits"] or list(store.layers)
        name: str = store.layer(self.layer or names[-1]).name
        return name

    def _facets(self, store: Store, layer: str, model: HookedModel, objective: Objective) -> Facets:
        """Group the strongest images of a target."""
        hits = strongest(store, objective, self.top, model=model)
        ids: npt.NDArray[np.int64] = hits.ids[0]
        if len(ids) < 2 * self.facets:
            raise ParameterError(
                f"{self.store} has {len(ids)} images with a score, too few for {self.facets} "
                "facets: give fewer facets, or a store of more images",
                parameter="facets",
            )
        rows: Any = store.layer(layer).pooled[ids]
        pictures = StorePictures(store)
        return find_facets(
            np.asarray(rows, np.float64),
            lambda places: _mean_image(pictures, ids[places]),
            self.facets,
            self.components,
            self.nearest,
        )


def _mean_image(pictures: StorePictures, ids: npt.NDArray[np.int64]) -> Tensor:
    """Mean of preprocessed images of a store, `(C, H, W)`."""
    total, count = None, 0
    for found, images in pictures.batches(np.sort(ids)):
        total = images.sum(0) if total is None else total + images.sum(0)
        count += len(found)
    if total is None or not count:
        raise ParameterError(
            "the images of the store cannot be read: the facets start from their means; put them "
            "back where they were when the store was mined",
            parameter="store",
        )
    return total / count
