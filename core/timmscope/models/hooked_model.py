"""`HookedModel`: a vision model in pixel units, with named layers and hooks that let go.

All families see a model only through this class. It takes RGB images in [0, 1] and normalises
inside its forward; it is frozen and in eval mode for the duration of every call, whatever the
caller's module was, and hands back what it found.
"""

from __future__ import annotations

import contextlib
import hashlib
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from contextvars import ContextVar
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from timmscope.models.classes import ClassNames, imagenet_classes
from timmscope.models.preprocessing import Preprocessing
from timmscope_registry import ImageError, ObjectiveError, UnsupportedModel
from timmscope_registry.hooks import BackwardRule, Cut, LayerCatalogue, ModelHooks, Recording

if TYPE_CHECKING:
    from timmscope.objectives import Objective


class PassCounter:
    """Counts how often each image of a batch went forward and backward through the model.

    Attributes:
        forwards: `(B,)` int64, forward passes an image.
        backwards: `(B,)` int64, backward passes that reached an image.
    """

    def __init__(self, batch: int) -> None:
        self.forwards = torch.zeros(batch, dtype=torch.long)
        self.backwards = torch.zeros(batch, dtype=torch.long)
        self._rows: Tensor | None = None

    @contextlib.contextmanager
    def only(self, rows: Tensor) -> Iterator[None]:
        """Inside, a forward of `len(rows)` images is counted for those rows of the batch."""
        outer, self._rows = self._rows, rows.cpu()
        try:
            yield
        finally:
            self._rows = outer

    def watch(self, inputs: Tensor) -> None:
        """Count one forward of `inputs`, and each backward that reaches them."""
        rows = self._rows if self._rows is not None else torch.arange(len(self.forwards))
        if len(inputs) % max(len(rows), 1):
            return  # a forward of something else than these images, as a reference picture
        times = len(inputs) // max(len(rows), 1)
        self.forwards[rows] += times
        if inputs.requires_grad:

            def count(_: Tensor) -> None:
                self.backwards[rows] += times

            inputs.register_hook(count)


_counter: ContextVar[PassCounter | None] = ContextVar("timmscope_pass_counter", default=None)


class HookedModel:
    """A timm model (or any image classifier or encoder) with preprocessing and hook points.

    Args:
        module: the network. timm models carry their own configuration; for others give `mean`,
            `std` and `input_size`.
        mean: per channel, pixel units [0, 1].
        std: per channel, pixel units [0, 1].
        input_size: channels, height, width in pixels.
        interpolation: resize filter of `preprocess`.
        crop_pct: share of the resized image that the centre crop keeps.
        class_names: names of the outputs; by default ImageNet's where the model was made for it.
        id: how to find the model again, `scheme:name`.

    Raises:
        ModelError: the module lacks a configuration, and the arguments do not give one.
    """

    def __init__(
        self,
        module: nn.Module,
        *,
        mean: Sequence[float] | None = None,
        std: Sequence[float] | None = None,
        input_size: Sequence[int] | None = None,
        interpolation: str | None = None,
        crop_pct: float | None = None,
        class_names: Sequence[str] | None = None,
        id: str | None = None,
    ) -> None:
        self.module = module
        self.id = id or f"module:{type(module).__name__}"
        self.preprocessing = Preprocessing.of(
            module,
            mean=tuple(mean) if mean is not None else None,
            std=tuple(std) if std is not None else None,
            input_size=tuple(input_size) if input_size is not None else None,
            interpolation=interpolation,
            crop_pct=crop_pct,
        )
        self.classes: ClassNames | None = (
            ClassNames(class_names) if class_names is not None else imagenet_classes(module)
        )
        example = torch.full((2, *self.input_size), 0.5)
        self.hooks = ModelHooks(module, self.preprocessing.normalise(example))

    def __repr__(self) -> str:
        size = "×".join(str(value) for value in self.input_size)
        return f"HookedModel({self.id!r}, input {size}, {self.num_classes} classes)"

    # What the model is

    @property
    def input_size(self) -> tuple[int, int, int]:
        """Channels, height and width in pixels."""
        return self.preprocessing.input_size

    @property
    def mean(self) -> tuple[float, ...]:
        """Per-channel mean subtracted inside the model, pixel units."""
        return self.preprocessing.mean

    @property
    def std(self) -> tuple[float, ...]:
        """Per-channel divisor inside the model, pixel units."""
        return self.preprocessing.std

    @cached_property
    def num_classes(self) -> int:
        """Number of logits; 0 for a model without a classifier."""
        declared = getattr(self.module, "num_classes", None)
        if isinstance(declared, int):
            return declared
        with torch.no_grad():
            return int(self(torch.full((1, *self.input_size), 0.5)).shape[1])

    @property
    def device(self) -> torch.device:
        """Where the parameters are."""
        return self._first_parameter.device

    @property
    def dtype(self) -> torch.dtype:
        """Type of the parameters; images are cast to it inside the model."""
        return self._first_parameter.dtype

    @property
    def _first_parameter(self) -> Tensor:
        return next(self.module.parameters(), torch.zeros(()))

    @cached_property
    def weights_sha256(self) -> str:
        """SHA-256 over names, types, shapes and bytes of all parameters and buffers."""
        digest = hashlib.sha256()
        for name, value in self.module.state_dict().items():
            digest.update(f"{name} {value.dtype} {tuple(value.shape)}\n".encode())
            flat = value.detach().cpu().contiguous().reshape(-1)
            digest.update(flat.view(torch.uint8).numpy().tobytes() if flat.numel() else b"")
        return digest.hexdigest()

    def class_name(self, index: int) -> str:
        """Short name of a class, or its number where the model has no names."""
        if self.classes is not None and index < len(self.classes):
            return self.classes.short(index)
        return f"class {index}"

    def fused(self) -> HookedModel:
        """A copy for speed, where many images follow: the same answers, but for rounding, sooner.

        Batch norms are folded into the convolutions before them, and on a CPU the convolutions'
        weights are reordered once instead of at every call. A second's work for a ResNet-50, and
        its convolutions' weights are in memory three times. A convolution that took a batch norm
        in is no layer of the copy. The weights are those of now: change none afterwards.

        A layer differs by about 1e-5 of its largest value, which is as far as the model itself is
        from its values in float64.

        Returns:
            The copy; the model itself where there is nothing to gain, or where it is not in
            float32, somebody hooked it, or folding would change a layer.
        """
        from timmscope.models.folding import fused

        return fused(self)

    def to(self, device: str | torch.device) -> HookedModel:
        """Move the module to a device, in place; returns self."""
        self.module.to(device)
        return self

    # Images in

    def preprocess(self, image: Image.Image) -> Tensor:
        """A picture resized and cropped as timm would; float32 in [0, 1], `(C, H, W)`."""
        return self.preprocessing(image)

    def images(self, source: Any) -> Tensor:
        """Images ready for the model: `(B, C, H, W)` in [0, 1], on the model's device.

        Args:
            source: a path, a PIL picture, a `(H, W, 3)` array (uint8, uint16 or float in [0, 1]),
                a tensor `(C, H, W)` or `(B, C, H, W)` in [0, 1] taken as it is, or a list of these.

        Raises:
            ImageError: a file cannot be read, or values are not in [0, 1].
        """
        if isinstance(source, Tensor) and source.ndim == 4:
            return self.check_images(source)
        if isinstance(source, list | tuple):
            if not source:
                raise ImageError("no images were given: pass at least one")
            loaded = [self._image(item) for item in source]
            sizes = {tuple(image.shape) for image in loaded}
            if len(sizes) > 1:
                raise ImageError(f"images of different sizes cannot share a batch: {sorted(sizes)}")
            return self.check_images(torch.stack(loaded))
        return self.check_images(self._image(source)[None])

    def _image(self, item: Any) -> Tensor:
        if isinstance(item, Tensor):
            return item
        if isinstance(item, str | Path):
            from timmscope.images import open_image

            return self.preprocess(open_image(item))
        if isinstance(item, np.ndarray):
            from timmscope.images import array_to_rgb

            return self.preprocess(array_to_rgb(item))
        if isinstance(item, Image.Image):
            from timmscope.images import to_rgb

            return self.preprocess(to_rgb(item))
        raise ImageError(
            f"cannot make an image of {type(item).__name__}: pass a path, PIL picture, "
            "array (H, W, 3) or tensor (C, H, W)"
        )

    def check_images(self, images: Tensor) -> Tensor:
        """The same images as float on the model's device, or one clear line on what is wrong.

        Raises:
            ImageError: wrong rank, channels or type, or values outside [0, 1] or not finite.
        """
        channels = self.input_size[0]
        if images.ndim != 4 or images.shape[1] != channels:
            raise ImageError(
                f"images have shape {tuple(images.shape)}; expected (B, {channels}, H, W)"
            )
        if not len(images):
            raise ImageError("the batch is empty: pass at least one image")
        if not images.is_floating_point():
            raise ImageError(f"images are {images.dtype}; expected float in [0, 1]: divide by 255")
        low, high = (float(value) for value in torch.aminmax(images.detach()))  # NaN if one is
        if not (math.isfinite(low) and math.isfinite(high)):
            raise ImageError("images hold NaN or infinite values; expected float in [0, 1]")
        if low < -1e-6 or high > 1 + 1e-6:
            raise ImageError(
                f"images span {low:.3g} to {high:.3g}; expected [0, 1] without normalisation "
                "(the model normalises inside)"
            )
        return images.to(self.device)

    # Forward

    def __call__(self, images: Tensor) -> Tensor:
        """Logits `(B, num_classes)` of RGB images `(B, 3, H, W)` in [0, 1]; differentiable.

        Inside a `record(..., until_last=True)` that stops the forward early there are no
        logits to return: the result then has shape `(B, 0)`.

        Raises:
            UnsupportedModel: the module returns something else than one tensor.
        """
        inputs = self.preprocessing.normalise(images.to(self.device, self.dtype))
        counter = _counter.get()
        if counter is not None:
            counter.watch(inputs)
        outputs: object = self.hooks(inputs)
        if not isinstance(outputs, Tensor):
            raise UnsupportedModel(
                f"{self.id} returns {type(outputs).__name__}; expected a tensor of logits: wrap "
                "the module in one that returns those alone"
            )
        return outputs

    @contextlib.contextmanager
    def count_passes(self, batch: int) -> Iterator[PassCounter]:
        """Count forwards and backwards an image for as long as the context is open."""
        counter = PassCounter(batch)
        token = _counter.set(counter)
        try:
            yield counter
        finally:
            _counter.reset(token)

    def as_module(self) -> nn.Module:
        """The model as an `nn.Module` over [0, 1] images, for libraries that want one."""
        return _PixelModule(self)

    # Hooks

    @property
    def layers(self) -> LayerCatalogue:
        """Layers in execution order, by name; prints as a table."""
        return self.hooks.layers

    def record(
        self, *points: str, gradients: bool = False, until_last: bool = True
    ) -> AbstractContextManager[Recording]:
        """Record activations (and gradients) of hook points; see `ModelHooks.record`."""
        return self.hooks.record(*points, gradients=gradients, until_last=until_last)

    def edit(self, edits: Mapping[str, Callable[[Tensor], Tensor]]) -> AbstractContextManager[None]:
        """Replace activations in flight; see `ModelHooks.edit`."""
        return self.hooks.edit(edits)

    def watch(
        self, functions: Mapping[str, Callable[[Tensor], None]], *, until_last: bool = True
    ) -> AbstractContextManager[None]:
        """Call functions with activations in flight, keeping nothing; see `ModelHooks.watch`."""
        return self.hooks.watch(functions, until_last=until_last)

    def cut(self, point: str) -> AbstractContextManager[Cut]:
        """Start the autograd graph at a hook point; see `ModelHooks.cut`."""
        return self.hooks.cut(point)

    def backward_rule(self, rule: BackwardRule) -> AbstractContextManager[None]:
        """Change how gradients pass through activations; see `ModelHooks.backward_rule`."""
        return self.hooks.backward_rule(rule)

    def plain_attention(self) -> AbstractContextManager[tuple[str, ...]]:
        """Turn fused attention off, so that attention matrices exist; gives the modules' names."""
        return self.hooks.plain_attention()

    # Objectives

    def score(self, images: Tensor, objective: Objective | str) -> Tensor:
        """Value of an objective an image, `(B,)` float32; differentiable in the images."""
        from timmscope.objectives import as_objective

        bound = as_objective(objective).bind(self, images)
        with self.record(*bound.points) as recording:
            self(images)
        return bound(recording)

    def gradient(self, images: Tensor, objective: Objective | str) -> tuple[Tensor, Tensor]:
        """Score `(B,)` and its gradient with respect to the images `(B, C, H, W)`.

        Works under `no_grad` and `inference_mode`, on frozen models, and touches no `.grad`.
        """
        with torch.inference_mode(False), torch.enable_grad():
            leaf = images.detach().clone().requires_grad_()
            score = self.score(leaf, objective)
            if not score.requires_grad:
                raise _no_graph("the images")
            (gradient,) = torch.autograd.grad(score.sum(), leaf)
        return score.detach(), gradient

    def layer_gradient(
        self, images: Tensor, objective: Objective | str, layer: str
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Score `(B,)`, a layer's activation and the score's gradient there.

        The graph starts at the layer, so the cost is one forward and the tail's backward.
        Both tensors have the layer's own layout; `model.layers[layer].spatial` reshapes them.

        Raises:
            ObjectiveError: the objective is computed before the layer.
        """
        score, found = self.layer_gradients(images, objective, (layer,))
        if layer not in found:
            raise _no_graph(f"layer {layer!r}")
        return score, *found[layer]

    def layer_gradients(
        self, images: Tensor, objective: Objective | str, layers: Sequence[str]
    ) -> tuple[Tensor, dict[str, tuple[Tensor, Tensor]]]:
        """Score `(B,)`, and by layer its activation and the score's gradient there.

        One forward and one backward for all, whose graph starts at the first of the layers. Those
        that the objective does not depend on are missing from the answer.
        """
        from timmscope.objectives import as_objective

        bound = as_objective(objective).bind(self, images)
        names = list(dict.fromkeys(layers))
        if len(names) > 1:
            names.sort(key=lambda name: self.layers[name].order)
        # Beside the first layer's branch others may run that start at layers of their own.
        roots = dict.fromkeys(names[1:], _rooted)
        with torch.inference_mode(False), torch.enable_grad():
            inputs = images.detach().clone(memory_format=torch.channels_last)
            with (
                self.cut(names[0]),
                self.edit(roots),
                self.record(*dict.fromkeys([*names, *bound.points])) as recording,
            ):
                self(inputs)
            score = bound(recording)
            values = [recording[name] for name in names]
            slopes: Sequence[Tensor | None] = [None] * len(names)
            if score.requires_grad:
                slopes = torch.autograd.grad(score.sum(), values, allow_unused=True)
        return score.detach(), {
            name: (value.detach(), slope)
            for name, value, slope in zip(names, values, slopes, strict=True)
            if slope is not None
        }


def _rooted(value: Tensor) -> Tensor:
    return value if value.requires_grad else value.detach().requires_grad_()


def _no_graph(place: str) -> ObjectiveError:
    return ObjectiveError(
        f"the objective does not depend on {place}: choose an earlier layer, or an "
        "objective computed later"
    )


class _PixelModule(nn.Module):
    def __init__(self, model: HookedModel) -> None:
        super().__init__()
        self.network = model.module
        self._model = model
        self.training = False  # not eval(): the caller's module keeps its mode

    def forward(self, images: Tensor) -> Tensor:
        return self._model(images)
