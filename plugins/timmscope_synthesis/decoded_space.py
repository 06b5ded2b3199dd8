"""The space of a decoder's codes, in which `generative-prior` climbs."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from timmscope import HookedModel, ParameterError, Parameterisation

_TOLERANCE = 1e-3


class DecoderParameterisation(Parameterisation):
    """The variable is a code; the image is what a decoder makes of it, at the model's input size.

    Args:
        decoder: the decoder; `decoder.hooks` runs it.
        model: the model, whose channels and input size the images get.
        code_length: number of units of a code; None to ask the decoder.

    Attributes:
        bounds: lowest and highest value of each unit, `(n,)` each; None if the decoder does not
            know them.

    Raises:
        ParameterError: the decoder's code has another length, its images have other channels or
            are not in [0, 1], or it draws random numbers.
    """

    def __init__(self, decoder: HookedModel, model: HookedModel, code_length: int | None) -> None:
        super().__init__(model.input_size[1:], decorrelate=False, channels=model.input_size[0])
        self._decoder = decoder
        self._shape = _code_shape(decoder.module, decoder.id, code_length)
        self._require_images(model)
        known = getattr(decoder.module, "code_bounds", None)
        self.bounds: tuple[Tensor, Tensor] | None = known() if callable(known) else None

    def shape(self) -> tuple[int, ...]:
        """`(n,)`, or `(n, 1, 1)` if the decoder begins with a transposed convolution."""
        return self._shape

    def start(self, generators: Sequence[torch.Generator], like: Tensor) -> Tensor:
        """Codes from N(0, 1), one per generator."""
        rows = [torch.randn(self._shape, generator=own) for own in generators]
        return torch.stack(rows).to(like)

    def image(self, variable: Tensor) -> Tensor:
        """Images `(B, C, H, W)` in [0, 1] of codes, at the model's input size."""
        decoded = self._decoder.hooks(variable.to(self._decoder.dtype)).to(variable)
        if tuple(decoded.shape[2:]) != self.size:
            decoded = functional.interpolate(
                decoded, self.size, mode="bilinear", antialias=True, align_corners=False
            )
        return decoded.clamp(0, 1)

    def latent(self, variable: Tensor) -> Tensor:
        """The image before the sigmoid."""
        return self.image(variable).logit()

    def from_latent(self, latent: Tensor) -> Tensor:
        """Refuse: the code of an image is not known.

        Raises:
            ParameterError: always.
        """
        raise ParameterError(
            "a generative prior starts from a code, not from an image: leave init unset",
            parameter="init",
        )

    def _require_images(self, model: HookedModel) -> None:
        """Decode two codes, and refuse what are no images for the model."""
        id, length = self._decoder.id, self._shape[0]
        generator = torch.Generator().manual_seed(0)
        codes = torch.randn(2, *self._shape, generator=generator).to(self._decoder.device)
        try:
            with torch.no_grad():
                decoded, again = (self._decoder.hooks(codes.to(self._decoder.dtype)) for _ in "12")
        except (RuntimeError, ValueError, TypeError, IndexError, AssertionError) as error:
            reason = (str(error).strip() or type(error).__name__).splitlines()[0]
            raise _refusal(f"{id} does not decode codes of {length} units ({reason})") from error
        channels = model.input_size[0]
        if not isinstance(decoded, Tensor) or decoded.ndim != 4 or len(decoded) != 2:
            found = (
                f"a tensor {tuple(decoded.shape)}"
                if isinstance(decoded, Tensor)
                else type(decoded).__name__
            )
            raise _refusal(f"{id} makes {found} of two codes, expected images (2, C, H, W)")
        if decoded.shape[1] != channels:
            raise _refusal(
                f"{id} makes images of {decoded.shape[1]} channels, and {model.id} takes {channels}"
            )
        low, high = float(decoded.min()), float(decoded.max())
        if not (low >= -_TOLERANCE and high <= 1 + _TOLERANCE):
            raise _refusal(
                f"{id} makes images from {low:.3g} to {high:.3g}, expected [0, 1]: wrap it in a "
                "module that scales them"
            )
        if not torch.equal(decoded, again):
            raise _refusal(f"{id} makes two images of one code, because it draws random numbers")


def _refusal(what: str) -> ParameterError:
    return ParameterError(what, parameter="decoder")


def _code_shape(module: nn.Module, id: str, asked: int | None) -> tuple[int, ...]:
    """Return the shape of a code: as asked, as the decoder says, or as its first layer has it."""
    layers = (part for part in module.modules() if isinstance(part, nn.Linear | nn.ConvTranspose2d))
    first = next(layers, None)
    places = (1, 1) if isinstance(first, nn.ConvTranspose2d) else ()
    known = getattr(module, "code_length", None)
    if not isinstance(known, int) and first is not None:
        known = first.in_features if isinstance(first, nn.Linear) else first.in_channels
    if known is None and asked is None:
        raise ParameterError(
            f"{id} does not say how long its codes are: give code_length", parameter="code_length"
        )
    if None not in (known, asked) and known != asked:
        raise ParameterError(
            f"code_length is {asked}, and the codes of {id} have {known} units: leave it unset",
            parameter="code_length",
        )
    length = asked if known is None else known
    assert length is not None, "one of them is there"
    return (length, *places)
