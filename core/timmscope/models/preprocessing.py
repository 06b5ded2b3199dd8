"""`Preprocessing` resizes and crops pictures for a model, and normalises images inside it.

The resize and crop are timm's own evaluation transform without its normalisation, so that an image
is RGB in [0, 1] everywhere in timmscope. The normalisation is part of the model's forward.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import torch
from PIL import Image
from torch import Tensor, nn

from timmscope_registry import ModelError

if TYPE_CHECKING:
    from timmscope.images import ImageSource

Transform = Callable[[Image.Image], Tensor]
_SUPPORT = 3
"""Pixels to each side that Pillow's widest filter (Lanczos) reads."""
THIN = 16
"""Pictures whose sides have a ratio above this are cropped while they are scaled."""


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
        ModelError: a value has another form or range, or mean or std do not have one value per
            channel.
    """

    input_size: tuple[int, int, int]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    interpolation: str = "bicubic"
    crop_pct: float = 0.875
    crop_mode: str = "center"

    def __post_init__(self) -> None:
        _check_form(self)
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

        overrides = {key: _plain(value) for key, value in overrides.items() if value is not None}
        if getattr(module, "pretrained_cfg", None) is None:
            missing = {"mean", "std", "input_size"} - overrides.keys()
            if missing:
                raise ModelError(
                    f"{type(module).__name__} has no timm configuration: "
                    f"pass {', '.join(sorted(missing))} to HookedModel"
                )
            return cls(**overrides)
        config = resolve_model_data_config(module)
        values = {
            "input_size": module_input_size(module),
            **{key: config[key] for key in ("interpolation", "crop_pct", "crop_mode")},
            **overrides,
        }
        _check_form(values)
        for key in {"mean", "std"} - overrides.keys():
            values[key] = _per_channel(config[key], values["input_size"][0])
        return cls(**values)

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

        The picture may be of any Pillow mode, and turned by EXIF: `timmscope.images` makes it
        upright RGB first.

        Raises:
            ImageError: the picture cannot be decoded, or its pixels are not finite.
            ModelError: the model takes other than 1 or 3 channels.
        """
        from timmscope.images import to_rgb

        self.require_pictures()
        image = to_rgb(image)
        if self.input_size[0] == 1:
            image = image.convert("L")
        return self._transform(self._fitted(image)).float().div_(255)

    def load(self, source: ImageSource, index: int) -> tuple[Tensor, tuple[int, int]]:
        """Return an image of a source as the model gets it, with its original width and height.

        Args:
            source: the source.
            index: id of the image.

        Raises:
            ImageError: the image cannot be read.
            ModelError: the model takes other than 1 or 3 channels, and the source holds pictures.
        """
        pixels = source.pixels(index)
        if pixels is not None and pixels.shape == self.input_size:
            return torch.from_numpy(pixels), (pixels.shape[2], pixels.shape[1])
        image: object = source.load(index)
        if not isinstance(image, Image.Image):
            named, kind = type(source).__name__, type(image).__name__
            raise TypeError(f"{named}.load returned {kind}, expected a PIL image")
        return self(image), image.size

    def _fitted(self, image: Image.Image) -> Image.Image:
        """Return an image that timm's transform can scale; only a very thin one changes.

        timm scales the short side of an image to the size wanted and then crops the centre. Of an
        image of 1 x 8000 pixels that makes 256 x 2 million, most of which the crop discards. Here
        such an image is scaled to those numbers, but only near its centre, and timm's transform
        finds the short side right already. In the mode `border` the long side is scaled to the size
        wanted, and the short one, which would get no pixel, gets one.
        """
        size = image.size
        if max(size) <= THIN * min(size) or self.crop_mode == "squash":
            return image
        height, width = (math.floor(side / self.crop_pct) for side in self.input_size[1:])
        ratios = (size[0] / width, size[1] / height)
        if self.crop_mode == "border":
            scaled = [round(side / max(ratios)) for side in size]
            if min(scaled) >= 1:
                return image
            return image.resize((max(1, scaled[0]), max(1, scaled[1])), self._filter)
        axis = int(size[1] > size[0])  # of the long side
        scaled = [round(side / min(ratios)) for side in size]
        if width == height:  # timm takes torchvision's `Resize` then, which rounds down
            scaled[axis] = int(width * max(size) / min(size))
        kept = [width, height][axis]
        kept += (scaled[axis] - kept) % 4  # half of what goes is even, so that .5 rounds as before
        ratio = size[axis] / scaled[axis]  # pixels of the image per pixel of the result
        begin = (scaled[axis] - kept) // 2 * ratio
        end, margin = begin + kept * ratio, _SUPPORT * max(ratio, 1) + 1
        scaled[axis] = kept
        box = [0, 0, *size]
        box[axis] = first = max(0, math.floor(begin - margin))
        box[axis + 2] = min(size[axis], math.ceil(end + margin))
        near = image.crop((box[0], box[1], box[2], box[3]))
        span = [(0.0, float(near.width)), (0.0, float(near.height))]
        span[axis] = (begin - first, min(end - first, float(near.size[axis])))
        (left, right), (top, bottom) = span  # columns first, as Pillow scales the whole image
        near = near.resize((scaled[0], near.height), self._filter, (left, 0, right, near.height))
        return near.resize((scaled[0], scaled[1]), self._filter, (0, top, scaled[0], bottom))

    @property
    def _filter(self) -> Image.Resampling:
        from timm.data.transforms import str_to_pil_interp

        named: Image.Resampling = str_to_pil_interp(self.interpolation)
        return named

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


def _plain(value: Any) -> Any:
    """A sequence or array as a tuple of plain numbers; anything else as it is."""
    if isinstance(value, str | bytes):
        return value
    try:
        values = tuple(value)
    except TypeError:
        return value
    return tuple(item.item() if hasattr(item, "item") else item for item in values)


def _check_form(given: Preprocessing | Mapping[str, Any]) -> None:
    """Refuse values of a wrong type or range.

    Raises:
        ModelError: the first that is wrong.
    """
    values = given if isinstance(given, Mapping) else vars(given)
    for key, expected, is_right in _FORMS:
        if key in values and not is_right(values[key]):
            raise ModelError(f"{key} is {values[key]!r}: expected {expected}")


def _is_number(value: object) -> bool:
    plain = isinstance(value, int | float) and not isinstance(value, bool)
    return plain and math.isfinite(value)  # type: ignore[arg-type]


def _are_numbers(value: object) -> bool:
    return isinstance(value, tuple) and bool(value) and all(map(_is_number, value))


def _is_size(value: object) -> bool:
    return (
        isinstance(value, tuple)
        and len(value) == 3
        and all(isinstance(item, int) and 1 <= item <= MOST_PX for item in value)
    )


MOST_PX = 65_536
"""Largest side of an image in pixels, and largest number of channels."""

_FILTERS = ("bicubic", "bilinear", "nearest", "lanczos", "hamming", "box")
_FORMS: tuple[tuple[str, str, Callable[[Any], bool]], ...] = (
    ("input_size", "channels, height and width, as in 3,224,224", _is_size),
    ("mean", "one number per channel, as in 0.5,0.5,0.5", _are_numbers),
    ("std", "one number above 0 per channel, as in 0.5,0.5,0.5", _are_numbers),
    ("interpolation", f"one of {', '.join(_FILTERS)}", _FILTERS.__contains__),
    ("crop_pct", "a number above 0, as in 0.875", lambda value: _is_number(value) and value > 0),
    ("crop_mode", "center, squash or border", ("center", "squash", "border").__contains__),
)


def module_input_size(module: nn.Module) -> tuple[int, int, int]:
    """Channels, height and width that a timm module takes.

    timm's configuration describes the pretrained weights, and the module may have been made with
    other `in_chans` and `img_size`. The first convolution and the patch embedding know them.
    """
    from timm.data import resolve_model_data_config

    channels, height, width = resolve_model_data_config(module)["input_size"]
    config: Mapping[str, Any] = getattr(module, "pretrained_cfg", {})
    names = config.get("first_conv")
    name = names[0] if isinstance(names, list | tuple) and names else names
    first = dict(module.named_modules()).get(name) if isinstance(name, str) and name else None
    if isinstance(first, nn.Conv2d):
        channels = first.in_channels
        for part in module.modules():
            if type(part).__name__ == "SpaceToDepth":  # TResNet's first convolution comes after it
                channels //= int(getattr(part, "bs", 4)) ** 2
    embed = getattr(module, "patch_embed", None)
    made = getattr(embed, "img_size", None)
    if config.get("fixed_input_size") and isinstance(made, tuple) and len(made) == 2:
        height, width = (int(side) for side in made)
    return int(channels), height, width


def _per_channel(values: Sequence[float], channels: int) -> tuple[float, ...]:
    """Use the RGB statistics, or for other numbers of channels their mean, as timm's weights do."""
    if len(values) == channels:
        return tuple(float(value) for value in values)
    return (sum(values) / len(values),) * channels
