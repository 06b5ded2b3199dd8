"""`HookedModel` is a vision model that takes images in [0, 1] and has named layers and hooks.

Techniques use a model only through this class. It takes RGB images in [0, 1] and normalises them in
its forward. During every call the module is in eval mode and its parameters are frozen; afterwards
it is as the caller left it.
"""

from __future__ import annotations

import contextlib
import copy
import hashlib
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from timmscope.models.classes import ClassNames, timm_classes
from timmscope.models.defence import Defence, around_networks, as_defences, defended_images
from timmscope.models.ensemble import Ensemble
from timmscope.models.pass_counter import PassCounter, counted, counting
from timmscope.models.prediction_function import Arrays, Outputs, PredictionFunction
from timmscope.models.preprocessing import Preprocessing
from timmscope.models.views import at_size, hooks_at, sharing
from timmscope.models.weights_digest import activations_digest, add_weight
from timmscope.models.weights_size import require_image_memory
from timmscope_registry import ImageError, ModelError, ObjectiveError, UnsupportedModel
from timmscope_registry.hooks import BackwardRule, Cut, LayerCatalogue, ModelHooks, Recording
from timmscope_registry.hooks.eval_mode import is_optimised
from timmscope_registry.hooks.layers import LOGITS
from timmscope_registry.hooks.parts import parts_of
from timmscope_registry.out_of_memory import is_out_of_memory

if TYPE_CHECKING:
    from timmscope.objectives import Objective


_FORWARD_ERRORS = (
    RuntimeError,
    ValueError,
    AssertionError,
    IndexError,
    TypeError,
    AttributeError,
)


class HookedModel:
    """A timm model (or any image classifier or encoder) with preprocessing and hook points.

    Args:
        module: the network. timm models have a configuration; for others give `mean`, `std` and
            `input_size`. Of what `torch.compile` returns, the module that was compiled is taken.
        mean: mean per channel, pixel units [0, 1].
        std: standard deviation per channel, pixel units [0, 1].
        input_size: channels, and height and width in pixels; by default those with which a timm
            module was made.
        interpolation: resize filter of `preprocess`.
        crop_pct: share of the resized image that the centre crop keeps.
        class_names: names of the outputs; by default those in timm's configuration, or ImageNet's
            if the number of classes is one of its variants'.
        id: id by which the model can be loaded again, `scheme:name`.

    Raises:
        ModelError: the module has no configuration, and the arguments do not give one; an argument
            has a wrong form; or there are more or fewer class names than classes.
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
        while is_optimised(module):
            module = module.get_submodule("_orig_mod")
        self.module = module
        self.id = self._undefended_id = id or f"module:{type(module).__name__}"
        """Id by which `load_model` loads the model, with its defences: `scheme:name + defence`."""
        self.preprocessing = Preprocessing.of(
            module,
            mean=mean,
            std=std,
            input_size=input_size,
            interpolation=interpolation,
            crop_pct=crop_pct,
        )
        self._given_classes = ClassNames(class_names) if class_names is not None else None
        self._timm_classes: tuple[int, ClassNames | None] | None = None
        self.defences: tuple[Defence, ...] = ()
        """Changes of the images before the normalisation, in the order in which they act."""
        self.views: dict[tuple[int, int], HookedModel] = {}
        """The model for images of other sizes; see `for_images`."""
        require_image_memory(self.input_size, self.id)
        self._owner = object()  # shared with copies for speed, whose passes count as this model's
        example = torch.full((2, *self.input_size), 0.5)
        self.hooks = ModelHooks(module, self.preprocessing.normalise(example))
        if self._given_classes is not None and _declared_classes(module) is not None:
            self.classes  # noqa: B018  (raises if their number is wrong)

    @classmethod
    def of_function(
        cls,
        function: Callable[[Any], Any],
        *,
        outputs: Outputs,
        input_size: Sequence[int],
        id: str,
        num_classes: int | None = None,
        class_names: Sequence[str] | None = None,
        arrays: Arrays = "torch",
        interpolation: str | None = None,
        crop_pct: float | None = None,
    ) -> HookedModel:
        """Make a model of a function from images to predictions, such as a service.

        Techniques that only run a model forward work on it: occlusion, RISE, black-box attacks,
        randomised smoothing, and the evaluation of their results. It has no gradients, and its
        only layer is its output, `logits`: the logarithms of what a function of probabilities
        returns; a label is a probability of 1. It has no digest either: its id alone says in
        results which function it was, so give another version another id.

        The function gets at most 64 images per call. It is called once more, with two grey images,
        when its output is first described. It must not depend on other images of the batch.

        Args:
            function: takes images `(B, C, H, W)`, float32 pixels in [0, 1], on the CPU. Techniques
                that add noise, such as randomised smoothing, also give it values outside [0, 1].
            outputs: what it returns, as a tensor, an array or a list: `logits` or `probabilities`
                `(B, K)`, or `labels` `(B,)`, class indices.
            input_size: channels, and height and width in pixels, of preprocessed pictures.
            id: name of the function, `scheme:name`.
            num_classes: number of classes K; by default that of `class_names`.
            class_names: names of the classes, in the order of the outputs.
            arrays: whether the function takes `torch` tensors or `numpy` arrays.
            interpolation: resize filter of `preprocess`.
            crop_pct: share of the resized image that the centre crop keeps.

        Raises:
            ModelError: an argument has a wrong form, or the number of classes is not given. A call
                of the model also raises it if the function returns other shapes, values that are
                not finite, probabilities whose sum is not 1, or labels that are no class.
        """
        if num_classes is None and class_names is None:
            raise ModelError(f"give num_classes or class_names of the prediction function {id}")
        network = PredictionFunction(
            function,
            outputs=outputs,
            num_classes=len(class_names or ()) if num_classes is None else num_classes,
            arrays=arrays,
            id=id,
        )
        size = tuple(input_size)
        channels = size[0] if size and isinstance(size[0], int) else 1
        return cls(
            network,
            mean=(0.0,) * channels,
            std=(1.0,) * channels,
            input_size=size,
            interpolation=interpolation,
            crop_pct=crop_pct,
            class_names=class_names,
            id=id,
        )

    def __repr__(self) -> str:
        size = "×".join(str(value) for value in self.input_size)
        return f"HookedModel({self.id!r}, input {size}, {self.num_classes} classes)"

    # Properties of the model

    @property
    def input_size(self) -> tuple[int, int, int]:
        """Channels, height and width in pixels."""
        return self.preprocessing.input_size

    @property
    def mean(self) -> tuple[float, ...]:
        """Mean per channel that the model subtracts, pixel units."""
        return self.preprocessing.mean

    @property
    def std(self) -> tuple[float, ...]:
        """Standard deviation per channel by which the model divides, pixel units."""
        return self.preprocessing.std

    @property
    def num_classes(self) -> int:
        """Number of logits that the module has now; 0 for a model without a classifier."""
        declared = _declared_classes(self.module)
        if declared is not None:
            return declared
        output = self.layers.get(LOGITS)
        return 0 if output is None else output.channels

    @property
    def classes(self) -> ClassNames | None:
        """Names of the classes; None if they are unknown.

        Raises:
            ModelError: `class_names` has more or fewer names than the module has classes.
        """
        count, given = self.num_classes, self._given_classes
        if given is not None:
            if len(given) != count and (count or _declared_classes(self.module) is not None):
                raise ModelError(
                    f"{len(given)} class names for {self.id}, which has {count} classes: give one "
                    "name per class, in the order of the outputs"
                )
            return given
        if self._timm_classes is None or self._timm_classes[0] != count:
            self._timm_classes = count, timm_classes(self.module)
        return self._timm_classes[1]

    @property
    def is_function(self) -> bool:
        """Whether the model is a prediction function, made by `of_function`."""
        return isinstance(self.module, PredictionFunction)

    @property
    def device(self) -> torch.device:
        """Device of the parameters."""
        return self._first_parameter.device

    @property
    def dtype(self) -> torch.dtype:
        """Dtype of the parameters; the model casts images to it."""
        return self._first_parameter.dtype

    @property
    def _first_parameter(self) -> Tensor:
        return next(self.module.parameters(), torch.zeros(()))

    @property
    def weights_sha256(self) -> str | None:
        """SHA-256 of the names, dtypes, shapes and bytes of all parameters and buffers.

        It is computed once, and again after parts of the module were replaced. It is None for a
        prediction function, whose inside is unknown.

        Raises:
            UnsupportedModel: a weight has no bytes, as on the meta device.
        """
        if self.is_function:
            return None
        self._follow_parts()
        kept: dict[str, str] = vars(self)
        if "weights_sha256" not in kept:
            kept["weights_sha256"] = self._digest()
        return kept["weights_sha256"]

    @property
    def activations_sha256(self) -> str | None:
        """SHA-256 of the weights and the defences; that of the weights without defences."""
        weights = self.weights_sha256
        texts = [defence.text() for defence in self.defences]
        return None if weights is None else activations_digest(weights, texts)

    def _follow_parts(self) -> None:
        if not self.hooks.has_parts():
            vars(self).pop("weights_sha256", None)

    def _digest(self) -> str:
        digest = hashlib.sha256()
        for name, value in self.module.state_dict().items():
            try:
                add_weight(digest, name, value)
            except (RuntimeError, TypeError, AttributeError) as error:
                if is_out_of_memory(error):
                    raise
                raise UnsupportedModel(
                    f"the weight {name} of {self.id}, a {type(value).__name__}, cannot be read: "
                    f"{str(error).partition(chr(10))[0]}"
                ) from error
        return digest.hexdigest()

    def class_name(self, index: int) -> str:
        """Short name of a class; `class 3` if the model has no class names."""
        names = self.classes
        return f"class {index}" if names is None or index >= len(names) else names.short(index)

    def fused(self) -> HookedModel:
        """Make a faster copy with the same results except for rounding, for many images.

        Batch norms are folded into the convolutions before them, and on a CPU the convolutions'
        weights are reordered once instead of at every call. Making the copy of a ResNet-50 takes a
        second, and the weights of its convolutions are then in memory three times. A convolution
        with a folded batch norm is no layer of the copy. Do not change weights after the copy is
        made.

        A layer differs by about 1e-5 of its largest value, as much as the model itself differs from
        its values in float64.

        Returns:
            The copy; the model itself if a copy gains nothing, or if the model is not in float32,
            has foreign hooks, or would be changed by folding.
        """
        from timmscope.models.folding import fused

        return fused(self)

    def trainable_copy(self) -> nn.Module:
        """Copy the module for a training: weights of its own, all of which require a gradient.

        The copy takes images that are normalised as this model normalises them.

        Raises:
            UnsupportedModel: the module cannot be copied, or has weights of whole numbers.
        """
        try:
            return copy.deepcopy(self.module).train().requires_grad_(True)
        except (RuntimeError, TypeError, NotImplementedError, AttributeError) as error:
            reason = str(error).partition("\n")[0]
            raise UnsupportedModel(
                f"{self.id} cannot be copied for a training: {reason}"
            ) from error

    def to(self, device: str | torch.device) -> HookedModel:
        """Move the module to a device, in place; returns self."""
        self.module.to(device)
        return self

    def for_images(self, images: Tensor) -> HookedModel:
        """Return the model with layers as they are for images of this size.

        The grids of tokens in `layers` are those of images of `input_size`. For images of another
        size, this is a view of the model with that `input_size`; weights, hooks and open contexts
        are shared. It is the model itself if no layer has tokens on a grid.

        Args:
            images: `(B, C, H, W)`.

        Raises:
            UnsupportedModel: the model does not take images of this size.
        """
        size = (int(images.shape[2]), int(images.shape[3]))
        if size == self.input_size[1:]:
            return self
        if not any(layer.layout == "tokens" and layer.grid for layer in self.layers.values()):
            return self
        return at_size(self, size)

    def defended(self, defences: Iterable[Defence | str] | Defence | str) -> HookedModel:
        """Return the model behind other defences; it shares the module and its hooks.

        Defences change the images before the normalisation, in the given order. They take the place
        of those that the model has: `model.defended([])` has none, and
        `model.defended([*model.defences, "jpeg"])` has one more.

        Args:
            defences: objects, as in `JPEG(quality=50)`, or texts, as in `"jpeg quality=50"`.

        Raises:
            PluginError: there is no technique of a name, or its class does not follow its base.
            ParameterError: one is no defence, or has wrong parameters.
            TechniqueError: JSON cannot hold a defence's parameters.
        """
        chosen = as_defences(defences)
        id = " + ".join([self._undefended_id, *(defence.text() for defence in chosen)])
        return sharing(self, defences=chosen, id=id)

    @property
    def has_random_defence(self) -> bool:
        """Whether one of its defences is random, or for an ensemble one of a member's."""
        inner = self.module.defences if isinstance(self.module, Ensemble) else ()
        return any(defence.random for defence in (*self.defences, *inner))

    # Images

    def preprocess(self, image: Image.Image) -> Tensor:
        """Resize and crop a picture as timm does; float32 in [0, 1], `(C, H, W)`."""
        return self.preprocessing(image)

    def images(self, source: Any) -> Tensor:
        """Prepare images for the model: `(B, C, H, W)` in [0, 1], on the model's device.

        Args:
            source: a path, a PIL picture, a `(H, W, 3)` array (uint8, uint16 or float in [0, 1]) or
                a tensor `(C, H, W)` in [0, 1], or a list of these; or a tensor `(B, C, H, W)` in
                [0, 1]. Tensors are neither resized nor cropped.

        Raises:
            ImageError: a file cannot be read, values are not in [0, 1], or sizes differ.
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
            return self.preprocess(item)
        raise ImageError(
            f"cannot make an image of {type(item).__name__}: pass a path, PIL picture, "
            "array (H, W, 3) or tensor (C, H, W)"
        )

    def check_images(self, images: Tensor) -> Tensor:
        """Check images `(B, C, H, W)` and move them to the model's device.

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
        low, high = (float(value) for value in torch.aminmax(images.detach()))  # NaN if any is NaN
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
        """Compute logits `(B, num_classes)` of images `(B, C, H, W)` in [0, 1]; differentiable.

        If an open `record(..., until_last=True)` stops the forward early, or has all it needs of a
        module that does not return logits, the result has shape `(B, 0)`.

        Raises:
            UnsupportedModel: the module does not return logits `(B, K)`, or does not take images of
                this size.
        """
        self._follow_parts()
        images = images.to(self.device)
        if self.defences:
            images = defended_images(self.defences, images)
        inputs = self.preprocessing.normalise(images.to(self.dtype))
        try:
            with around_networks(self.defences):
                outputs: object = counted(self.hooks, inputs, self._owner, self.id)
        except _FORWARD_ERRORS as error:
            if "alloca" not in str(error):  # memory that cannot be allocated
                self._check_runs((int(inputs.shape[2]), int(inputs.shape[3])))
            raise
        if not isinstance(outputs, Tensor) or outputs.ndim != 2:
            raise self._no_logits(outputs)
        return outputs

    def _check_runs(self, size: tuple[int, int]) -> None:
        """Raise `UnsupportedModel` if the module alone cannot run on images of that size."""
        if size == self.input_size[1:]:
            self.layers  # noqa: B018
        else:
            hooks_at(self, size)

    def _no_logits(self, outputs: object) -> UnsupportedModel:
        if isinstance(outputs, Tensor):
            returned = f"a tensor of shape {tuple(outputs.shape)}"
            how = f"{LOGITS}[3], the mean over places, or class:3@y,x"
            if outputs.ndim != 4:
                how = f"{LOGITS}[3]"
        else:
            parts = parts_of(outputs)
            shapes = [f"{place} {tuple(part.shape)}" for place, part in parts.items()][:6]
            returned = f"a {type(outputs).__name__}" + (f" of {', '.join(shapes)}" if parts else "")
            how = f"out{next(iter(parts), '[0]')}[3]"
        return UnsupportedModel(
            f"{self.id} returns {returned}; expected logits (B, K): explain a unit of its output, "
            f"as in {how}, or wrap the module in one that returns only the logits"
        )

    @contextlib.contextmanager
    def count_passes(self, batch: int) -> Iterator[PassCounter]:
        """Count the forwards and backwards of each image while the context is open.

        Each forward of the module counts once, also if another wrapper or the technique starts it.
        The passes of other models are counted apart, by their ids.

        Args:
            batch: number of images.
        """
        counter = PassCounter(batch, self._owner)
        with (
            counting(counter),
            self.hooks.count_forwards(lambda x: counter.watch(x, self._owner, self.id)),
        ):
            yield counter

    def as_module(self) -> nn.Module:
        """Wrap the model as an `nn.Module` over images in [0, 1], for libraries that need one."""
        return _PixelModule(self)

    # Hooks

    @property
    def layers(self) -> LayerCatalogue:
        """Layers in execution order, by name; prints as a table."""
        self._follow_parts()
        return self.hooks.layers

    def record(
        self, *points: str, gradients: bool = False, until_last: bool = True
    ) -> AbstractContextManager[Recording]:
        """Record activations (and gradients) of hook points; see `ModelHooks.record`."""
        return self.hooks.record(*points, gradients=gradients, until_last=until_last)

    def edit(self, edits: Mapping[str, Callable[[Tensor], Tensor]]) -> AbstractContextManager[None]:
        """Replace activations during a forward; see `ModelHooks.edit`."""
        return self.hooks.edit(edits)

    def watch(
        self, functions: Mapping[str, Callable[[Tensor], None]], *, until_last: bool = True
    ) -> AbstractContextManager[None]:
        """Call functions with activations during a forward; see `ModelHooks.watch`."""
        return self.hooks.watch(functions, until_last=until_last)

    def cut(self, point: str) -> AbstractContextManager[Cut]:
        """Start the autograd graph at a hook point; see `ModelHooks.cut`."""
        return self.hooks.cut(point)

    def backward_rule(self, rule: BackwardRule) -> AbstractContextManager[None]:
        """Change how gradients pass through activations; see `ModelHooks.backward_rule`."""
        return self.hooks.backward_rule(rule)

    def plain_attention(self) -> AbstractContextManager[tuple[str, ...]]:
        """Turn fused attention off; see `ModelHooks.plain_attention`."""
        return self.hooks.plain_attention()

    # Objectives

    def score(self, images: Tensor, objective: Objective | str) -> Tensor:
        """Compute an objective for each image, `(B,)` float32; differentiable in the images.

        Raises:
            ObjectiveError: the objective does not fit the model.
            LayerNotFound: the model has no layer that the objective names.
        """
        from timmscope.objectives import as_objective

        bound = as_objective(objective).bind(self.for_images(images), images)
        with self.record(*bound.points) as recording:
            self(images)
        return bound(recording)

    def gradient(self, images: Tensor, objective: Objective | str) -> tuple[Tensor, Tensor]:
        """Compute the score `(B,)` and its gradient with respect to the images `(B, C, H, W)`.

        Works under `no_grad` and `inference_mode` and on frozen models, and changes no `.grad`.

        Raises:
            ObjectiveError: as for `score`, or the objective does not depend on the images.
            UnsupportedModel: the gradient would pass through a quantised module, or the module
                checkpoints its forward in a way of its own.
        """
        with torch.inference_mode(False), torch.enable_grad():
            leaf = images.detach().clone().requires_grad_()
            score = self.score(leaf, objective)
            if not score.requires_grad:
                raise _no_graph("the images")
            (gradient,) = self._gradients(score, [leaf])
            if gradient is None:
                raise _no_graph("the images")
        return score.detach(), gradient

    def layer_gradient(
        self, images: Tensor, objective: Objective | str, layer: str
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Compute the score `(B,)`, a layer's activation and the score's gradient there.

        The graph starts at the layer, so the cost is one forward and a backward through the rest of
        the model. Both tensors have the layer's own layout; `model.layers[layer].spatial` converts
        them to (B, C, h, w).

        Raises:
            ObjectiveError: as for `score`, or the objective does not depend on the layer.
            LayerNotFound: the model has no such layer.
        """
        score, gradients = self.layer_gradients(images, objective, (layer,))
        if layer not in gradients:
            raise _no_graph(f"layer {layer!r}")
        return score, *gradients[layer]

    def layer_gradients(
        self, images: Tensor, objective: Objective | str, layers: Sequence[str]
    ) -> tuple[Tensor, dict[str, tuple[Tensor, Tensor]]]:
        """Compute the score `(B,)`, and by layer its activation and the score's gradient there.

        One forward and one backward serve all layers; the graph starts at the first of them. Layers
        on which the objective does not depend are left out.

        Raises:
            ObjectiveError: as for `score`.
            LayerNotFound: the model has no such layer.
        """
        from timmscope.objectives import as_objective

        bound = as_objective(objective).bind(self.for_images(images), images)
        names = list(dict.fromkeys(layers))
        if len(names) > 1:
            names.sort(key=lambda name: self.layers[name].order)
        # Later layers may be in branches that do not depend on the first layer.
        roots = dict.fromkeys(names[1:], _with_graph)
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
            gradients: Sequence[Tensor | None] = [None] * len(names)
            if score.requires_grad:
                gradients = self._gradients(score, values)
        return score.detach(), {
            name: (value.detach(), gradient)
            for name, value, gradient in zip(names, values, gradients, strict=True)
            if gradient is not None
        }

    def _gradients(self, score: Tensor, values: Sequence[Tensor]) -> Sequence[Tensor | None]:
        """The gradient of the sum of a score at each value; None where it does not depend on it."""
        from torch.utils.checkpoint import CheckpointError

        try:
            return torch.autograd.grad(score.sum(), values, allow_unused=True)
        except CheckpointError as error:
            raise UnsupportedModel(
                f"{self.id} calls torch.utils.checkpoint itself, and runs differently in the "
                "backward pass; turn gradient checkpointing off, or call "
                "eval() and requires_grad_(False) on the module"
            ) from error


def _declared_classes(module: nn.Module) -> int | None:
    declared = getattr(module, "num_classes", None)
    return declared if isinstance(declared, int) else None


def _with_graph(value: Tensor) -> Tensor:
    """The value itself if it is in the graph, else a leaf that requires grad."""
    return value if value.requires_grad else value.detach().requires_grad_()


def _no_graph(place: str) -> ObjectiveError:
    return ObjectiveError(
        f"the objective does not depend on {place}: choose an earlier layer or a later objective"
    )


class _PixelModule(nn.Module):
    def __init__(self, model: HookedModel) -> None:
        super().__init__()
        self.network = model.module
        self._model = model
        self.training = False  # not eval(), so that the caller's module keeps its mode

    def forward(self, images: Tensor) -> Tensor:
        return self._model(images)
