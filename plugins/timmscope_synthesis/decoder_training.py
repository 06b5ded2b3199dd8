"""Training of a decoder from codes to images, the prior of `generative-prior`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn
from torch.nn import functional

from timmscope import (
    HookedModel,
    LayerName,
    TrainingBatch,
    TrainingProgress,
    TrainingTechnique,
    noise_like,
)
from timmscope_synthesis.decoder import (
    SMALLEST_PX,
    Decoder,
    Standardise,
    adversarial_terms,
    image_encoder,
    resized,
    vector_encoder,
)

_CODE_LENGTH = 64
_GENERATED = 500
"""Images of noise among which the nearest to a held-out one is looked for."""
_TINY = 1e-12


class DecoderTraining(TrainingTechnique):
    """Decoder training makes a network from codes to images like yours: a prior for synthesis.

    With a `layer`, an image's code is the model's activation there, averaged over places; the model
    does not change. Without one, the code is learned, or is noise. Each unit of a code has mean 0
    and variance 1 over the images.

    - `autoencoder`: `min |x − G(E(x))|²`, where the encoder E is the model up to the layer, or is
      learned.
    - `vae`: a learned encoder on the image, or on the layer's activation, whose code is drawn from
      `N(μ, σ²)` and costs `KL(N(μ, σ²) ‖ N(0, 1))`. Noise then decodes to images as well.
    - `gan`: a critic learns to tell images from decoded ones, and the decoder learns to deceive
      it, by the logistic loss; with a layer beside the squared error, as in the paper below.
      Without one, the code is noise, and no image is reconstructed.

    `total = pixel + feature_weight · feature + kl_weight · KL / pixels + adversarial_weight ·
    (critic + deception)`: `pixel` is the mean squared error of a pixel, and `feature` the relative
    squared error of the model's activation at `feature_layer`.

    The folder has the decoder; `load_trained(folder, model).module` is a module from codes `(B, n)`
    to images in [0, 1], and `generative-prior` takes the folder. The card has the length of a code
    and the error on held-out images beside that of their mean image; without reconstructions, the
    distance of each to the nearest of 500 generated ones, beside that to the mean image. Its cost
    counts the decoder; a model's layer adds a forward pass per image, and the feature loss another
    one with its backward pass.

    Paper:
        - Dosovitskiy & Brox, "Generating Images with Perceptual Similarity Metrics based on Deep
          Networks", NeurIPS 2016, arXiv:1602.02644: the layout, and the sum of losses.
        - Kingma & Welling, "Auto-Encoding Variational Bayes", ICLR 2014, arXiv:1312.6114.
        - Goodfellow et al., "Generative Adversarial Networks", NeurIPS 2014, arXiv:1406.2661.

    Inherited parameters:
        epochs: how often every image is seen.
        batch_size: images per step; the last images of an epoch that fill no batch are left out.
        optimizer: adam, adamw or sgd.
        learning_rate: largest learning rate.
        momentum: momentum of sgd.
        weight_decay: weight decay; of adamw decoupled from the gradient.
        schedule: course of the learning rate after the warm-up: constant, or down to 0.
        warmup: share of the steps in which the learning rate rises.
        max_gradient_norm: longer gradients of all weights together are scaled to this length.
        held_out_share: share of the images that are held out, if no held-out images are given.

    Raises:
        ImageError: the images cannot be opened or read.
        LayerNotFound: the model has no such layer.
        ParameterError: a parameter is out of range, or does not fit another one.
        StoreError: the folder holds something else or cannot be written.
        StoreMismatch: the folder holds a training with other settings.
        StoreCorrupted: the checkpoint was damaged.
        TechniqueError: the loss is not finite.
        UnsupportedModel: the model is not in float32 or float64.
    """

    needs_labels = False
    normalised = False

    kind: Literal["autoencoder", "vae", "gan"] = "autoencoder"
    """How the decoder is trained."""
    layer: LayerName | None = None
    """Layer of the model whose activation is the code, or for a VAE is encoded; by default the code
    is learned from the image, and for a GAN it is noise."""
    code_length: int | None = Field(default=None, ge=1)
    """Units of a learned code or of noise, by default 64. That of a layer has its channels."""
    size: int | None = Field(default=None, ge=SMALLEST_PX, le=1024)
    """Side of the decoded images in pixels; by default the model's input size."""
    width: int = Field(default=32, ge=1, le=512)
    """Channels before the last convolution; layers of smaller images have up to eight times as
    many."""
    feature_weight: float = Field(default=0.0, ge=0, allow_inf_nan=False)
    """Weight of the error of the model's activation."""
    feature_layer: LayerName | None = None
    """Layer of that activation; by default `layer`."""
    kl_weight: float = Field(default=0.1, ge=0, allow_inf_nan=False)
    """Weight of the divergence in a VAE, twice the variance that a pixel is taken to have."""
    adversarial_weight: float = Field(default=0.01, gt=0, allow_inf_nan=False)
    """Weight of the critic's loss and of its deception in a GAN."""

    @model_validator(mode="after")
    def _fits(self) -> DecoderTraining:
        if self.code_length is not None and self.layer is not None and self.kind != "vae":
            raise ValueError(
                f"code_length is {self.code_length}, but the code of {self.layer!r} has as many "
                "units as the layer has channels: leave one of them unset, or take kind=vae"
            )
        if self.feature_weight and self.feature_layer is None and self.layer is None:
            raise ValueError("feature_weight needs a feature_layer, because there is no layer")
        if self.feature_weight and not self._reconstructs:
            raise ValueError("a GAN from noise has no image to compare features with: set a layer")
        return self

    @property
    def _reconstructs(self) -> bool:
        return self.kind != "gan" or self.layer is not None

    def build(self, model: HookedModel) -> nn.Module:
        """Return a decoder, with its encoder and critic where they are trained.

        Raises:
            LayerNotFound: the model has no such layer.
        """
        channels, height, width = model.input_size
        size = (channels, self.size or height, self.size or width)
        if self.feature_layer is not None:
            model.layers[self.feature_layer]
        length, standardise = self.code_length or _CODE_LENGTH, None
        encoder: nn.Module | None = None
        outputs = 2 * length if self.kind == "vae" else length
        if self.layer is not None:
            activation = model.layers[self.layer].channels
            standardise = Standardise(activation, fixed=True)
            if self.kind == "vae":
                encoder = vector_encoder(activation, self.width, outputs)
            else:
                length = activation
        elif self.kind != "gan":
            encoder = image_encoder(size, self.width, outputs)
            if self.kind == "autoencoder":
                standardise = Standardise(length, fixed=False)
        critic = image_encoder(size, self.width, 1) if self.kind == "gan" else None
        return Decoder(
            length, size, self.width, encoder=encoder, critic=critic, standardise=standardise
        )

    def loss(
        self, network: nn.Module, batch: TrainingBatch, progress: TrainingProgress
    ) -> dict[str, Tensor]:
        """Return the weighted sum of the terms, and each term as it is."""
        decoder = _decoder_in(network)
        images = resized(batch.images, decoder.image_size[1:]).to(_like(decoder))
        coded = self._coded(decoder, batch, images)
        decoded = network(coded.code)
        terms: dict[str, Tensor] = {}
        total = decoded.new_zeros(())
        if self._reconstructs:
            terms["pixel"] = functional.mse_loss(decoded, images)
            total = total + terms["pixel"]
        if self.feature_weight:
            terms["feature"] = self._feature_error(decoded, batch.images)
            total = total + self.feature_weight * terms["feature"]
        if coded.divergence is not None:
            terms["divergence"] = coded.divergence.mean()
            total = total + self.kl_weight * terms["divergence"] / images[0].numel()
        if decoder.critic is not None:
            terms |= adversarial_terms(decoder.critic, images, decoded)
            both = terms["critic"] + terms["deception"]
            total = total + self.adversarial_weight * both
        return {"total": total, **terms}

    def evaluate(self, network: nn.Module, batch: TrainingBatch) -> dict[str, Tensor]:
        """Return the error of each image, or how near the nearest of 500 generated ones is."""
        decoder = _decoder_in(network)
        images = resized(batch.images, decoder.image_size[1:])
        length = torch.full((len(images),), decoder.code_length)
        mean = images.mean(0, keepdim=True)
        if self._reconstructs:
            with torch.no_grad():
                decoded = self._decoded(network, batch)
            return {
                "squared error": (decoded - images).square().mean((1, 2, 3)),
                "squared error of the mean image": (mean - images).square().mean((1, 2, 3)),
                "code length": length,
            }
        own = torch.Generator().manual_seed(batch.seed)
        codes = torch.randn(_GENERATED, decoder.code_length, generator=own).to(_like(decoder))
        with torch.no_grad():
            made = torch.cat([network(part).to(images) for part in codes.split(len(images))])
        return {
            "distance to the nearest generated": _nearest(images, made),
            "distance to the mean image": _nearest(images, mean),
            "code length": length,
        }

    def preview(self, network: nn.Module, batch: TrainingBatch) -> dict[str, Tensor]:
        """Return the images beside what is decoded, and what noise decodes to."""
        decoder = _decoder_in(network)
        rows = {"images": resized(batch.images, decoder.image_size[1:])}
        with torch.no_grad():
            if self._reconstructs:
                rows["decoded"] = self._decoded(network, batch)
            if self.kind == "vae" or not self._reconstructs:
                rows["decoded from noise"] = network(_noise(decoder, batch)).to(batch.images)
        return rows

    def _decoded(self, network: nn.Module, batch: TrainingBatch) -> Tensor:
        decoder = _decoder_in(network)
        images = resized(batch.images, decoder.image_size[1:]).to(_like(decoder))
        decoded: Tensor = network(self._coded(decoder, batch, images, draw=False).code)
        return decoded.to(batch.images)

    def _coded(
        self, decoder: Decoder, batch: TrainingBatch, images: Tensor, *, draw: bool = True
    ) -> _Coded:
        """Return the codes of images; of a VAE drawn, or the most likely ones."""
        if not self._reconstructs:
            return _Coded(_noise(decoder, batch))
        code, standardise = images, decoder.standardise
        if self.layer is not None:
            assert standardise is not None, "made by build"
            with torch.no_grad():
                code = standardise(self._activation(batch.images, pooled=True).to(images))
        if decoder.encoder is None:
            return _Coded(code)
        code = decoder.encoder(code)
        if self.kind == "autoencoder":
            assert standardise is not None, "made by build"
            return _Coded(standardise(code))
        mean, log_variance = code.chunk(2, dim=1)
        divergence = 0.5 * (mean.square() + log_variance.exp() - 1 - log_variance).sum(1)
        if not draw:
            return _Coded(mean, divergence)
        return _Coded(mean + (log_variance / 2).exp() * _noise(decoder, batch), divergence)

    def _activation(self, images: Tensor, *, pooled: bool) -> Tensor:
        """Return the model's activation: of `layer` averaged over places, or of `feature_layer`."""
        model = self.start_model()
        name = self.layer if pooled else self.feature_layer or self.layer
        assert name is not None, "checked when the parameters were made"
        point = model.layers[name]
        with model.record(name) as recording:
            model(images)
        activation = recording[name].float()
        return point.pooled(activation) if pooled else activation

    def _feature_error(self, decoded: Tensor, images: Tensor) -> Tensor:
        with torch.no_grad():
            wanted = self._activation(images, pooled=False).flatten(1)
        seen = resized(decoded, (images.shape[2], images.shape[3]))
        found = self._activation(seen, pooled=False).flatten(1)
        errors = (found - wanted).square().sum(1) / wanted.square().sum(1).clamp(min=_TINY)
        return errors.mean().to(decoded)


@dataclass(frozen=True)
class _Coded:
    """Codes `(B, n)`, and for a VAE the divergence of each `(B,)`."""

    code: Tensor
    divergence: Tensor | None = None


def _decoder_in(network: nn.Module) -> Decoder:
    """Return the decoder, which the base wraps in training."""
    return next(part for part in network.modules() if isinstance(part, Decoder))


def _like(decoder: Decoder) -> Tensor:
    return next(decoder.parameters())


def _noise(decoder: Decoder, batch: TrainingBatch) -> Tensor:
    """Return a code of noise for each image."""
    blank = _like(decoder).new_zeros(len(batch.images), decoder.code_length)
    return noise_like(blank, "normal", batch.generators)


def _nearest(images: Tensor, others: Tensor) -> Tensor:
    """Return the L2 distance of each image to the nearest of others, `(B,)`."""
    return torch.cdist(images.flatten(1), others.flatten(1)).amin(1)
