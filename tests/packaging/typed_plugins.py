"""What a type checker sees of the plugin packages; `make types` checks this file, nothing runs it.

An export that were `Any` would fail `assert_type`, and leave a `type: ignore` unused.
"""

from typing import assert_type

import torch

from timmscope import (
    Adversarial,
    AttackTechnique,
    Attribution,
    Certificates,
    Defended,
    Goal,
    HookedModel,
    ModelName,
    NetworkName,
    Store,
    StoreName,
    Stylization,
    Synthesis,
    TechniqueName,
    WeightsName,
)
from timmscope_attack import FGSM, PGD
from timmscope_attribution import CAM, RISE, GradCAM, Occlusion
from timmscope_defence import JPEG, AdversarialTraining, RandomizedResize, RandomizedSmoothing
from timmscope_representation import Clusters, Embedding, EmbeddingMap, ImageClusters
from timmscope_style import NeuralStyle
from timmscope_synthesis import ActivationMaximization


class Named(AttackTechnique):
    surrogate: ModelName
    store: StoreName | None = None
    attack: TechniqueName[AttackTechnique] = "pgd steps=3"
    weights: WeightsName[AdversarialTraining] | None = None
    network: NetworkName[AdversarialTraining] | None = None

    def perturb(self, model: HookedModel, images: torch.Tensor, goal: Goal) -> torch.Tensor:
        assert_type(self.open_model(self.surrogate), HookedModel)
        assert_type(self.open_technique(self.attack), AttackTechnique)
        if self.store is not None:
            assert_type(self.open_store(self.store), Store)
        if self.weights is not None:
            assert_type(self.open_weights(self.weights).technique, AdversarialTraining)
        if self.network is not None:
            assert_type(self.open_network(self.network), HookedModel)
        return images


def calls(model: HookedModel, images: torch.Tensor) -> None:
    assert_type(GradCAM(layer="blocks.4"), GradCAM)
    assert_type(GradCAM(relu=False)(model, images, "class:1"), Attribution)
    assert_type(RISE(masks=10)(model, images), Attribution)
    assert_type(PGD(steps=10)(model, images), Adversarial)
    assert_type(FGSM(epsilon=0.1).epsilon, float | None)
    assert_type(RandomizedSmoothing(n=10)(model, images, "cat"), Certificates)
    assert_type(JPEG(quality=50)(model, images), Defended)
    assert_type(RandomizedResize().smallest, float)
    assert_type(ActivationMaximization(steps=8)(model, "class:1"), Synthesis)
    assert_type(NeuralStyle(steps=4)(model, images, [images]), Stylization)
    assert_type(Clusters(k=2).k, int | None)
    assert_type(CAM().relu, bool)
    assert_type(EmbeddingMap().thumbnails, bool)


def results(clusters: ImageClusters, embedding: Embedding) -> None:
    assert_type(clusters.medoids, list[list[int]])
    assert_type(embedding.points, torch.Tensor)


def mistakes() -> None:
    Occlusion(patch=3)  # type: ignore[call-arg]
