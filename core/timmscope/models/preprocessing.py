"""`Preprocessing` resizes and crops pictures for a model, and normalises images inside it.

The resize and crop are timm's own evaluation transform without its normalisation, so that an image
is RGB in [0, 1] everywhere in timmscope. The normalisation is part of the model's forward.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import Any

import torch
from PIL import Image
from torch import Tensor, nn

from timmscope_registry import ModelError

Transform = Callable[[Image.Image], Tensor]


@dataclass(frozen=True)
class Preprocessing:
    """Resize, crop and normalisation of one model, as in timm's data configuration.

    Attributes:
        input_size: channels, and height and width in pixels.
        mean: mean per channel, pixel units [0, 1].
        std: standard deviation per channel, pixel units [0, 1].
        interpolation: name of the resize filter.
        crop_pct: share of the resized image that the centre crop keeps.
        crop_mode: `center`, `squash` or `border`, as in timm.

    Raises:
        ModelError: mean or std do not have one value per channel, or a std is not positive.
    """

    input_size: tuple[int, int, int]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    interpolation: str = "bicubic"
    crop_pct: float = 0.875
    crop_mode: str = "center"

    def __post_init__(self) -> None:
        channels = self.input_size[0]
        if len(self.mean) != channels or len(self.std) != channels:
            raise ModelError(
                f"mean and std have {len(self.mean)} and {len(self.std)} values, "
                f"the model takes {channels} channels: give one of each per channel"
            )
        if min(self.std) <= 0:
            raise ModelError(f"std is {self.std}: every value must be above 0")

    @classmethod
    def of(cls, module: nn.Module, **overrides: Any) -> Preprocessing:
        """Read the configuration of a timm model and replace some fields.

        Raises:
            ModelError: the module is not timm's, and `overrides` lack mean, std or input size.
        """
        from timm.data import resolve_model_data_config

        overrides = {key: value for key, value in overrides.items() if value is not None}
        if getattr(module, "pretrained_cfg", None) is None:
            missing = {"mean", "std", "input_size"} - overrides.keys()
            if missing:
                raise ModelError(
                    f"{type(module).__name__} has no timm configuration: "
                    f"pass {', '.join(sorted(missing))} to HookedModel"
                )
            return cls(**overrides)
        config = {**resolve_model_data_config(module), **overrides}
        channels = config["input_size"][0]
        return cls(
            input_size=tuple(config["input_size"]),
            mean=_per_channel(config["mean"], channels),
            std=_per_channel(config["std"], channels),
            interpolation=str(config["interpolation"]),
            crop_pct=float(config["crop_pct"]),
            crop_mode=str(config["crop_mode"]),
        )

    @classmethod
    def restored(cls, saved: Mapping[str, Any]) -> Preprocessing:
        """Rebuild from the values of `to_dict`."""
        values: dict[str, Any] = {
            key: tuple(value) if isinstance(value, list) else value for key, value in saved.items()
        }
        return cls(**values)

    @cached_property
    def _transform(self) -> Transform:
        from timm.data import create_transform

        # A cached property is stored in __dict__, which a frozen dataclass allows.
        transform: Transform = create_transform(
            input_size=self.input_size,
            is_training=False,
            mean=self.mean,
            std=self.std,
            interpolation=self.interpolation,
            crop_pct=self.crop_pct,
            crop_mode=self.crop_mode,
            normalize=False,
        )
        return transform

    def __call__(self, image: Image.Image) -> Tensor:
        """Resize and crop a picture to `input_size`; float32 in [0, 1], `(C, H, W)`.

        Raises:
            ModelError: the model takes other than 1 or 3 channels.
        """
        self.require_pictures()
        wanted = "L" if self.input_size[0] == 1 else "RGB"
        if image.mode != wanted:
            image = image.convert(wanted)
        return self._transform(image).float().div_(255)

    def require_pictures(self) -> None:
        """Check that the model can take pictures.

        Raises:
            ModelError: the model takes other than 1 or 3 channels.
        """
        if self.input_size[0] not in (1, 3):
            raise ModelError(
                f"the model takes {self.input_size[0]} channels, and pictures have 1 or 3: give it "
                "tensors (B, C, H, W) in [0, 1] instead"
            )

    def normalise(self, images: Tensor) -> Tensor:
        """`(images − mean) / std` per channel, `(B, C, H, W)`; differentiable."""
        shape = (1, -1, 1, 1)
        mean = torch.tensor(self.mean, dtype=images.dtype, device=images.device).view(shape)
        std = torch.tensor(self.std, dtype=images.dtype, device=images.device).view(shape)
        return (images - mean).div_(std)  # in place: one tensor less per forward

    def to_dict(self) -> dict[str, Any]:
        """Return the fields as plain values for manifests and result files."""
        return {key: list(v) if isinstance(v, tuple) else v for key, v in asdict(self).items()}


def _per_channel(values: Sequence[float], channels: int) -> tuple[float, ...]:
    """Use the RGB statistics, or for other numbers of channels their mean, as timm's weights do."""
    if len(values) == channels:
        return tuple(float(value) for value in values)
    return (sum(values) / len(values),) * channels
