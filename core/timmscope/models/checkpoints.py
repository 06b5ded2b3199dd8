"""Reads weights from files and loads them into a module, after checking that they fit it.

Files are safetensors or checkpoints of plain tensors. Pickled checkpoints are read only with
`weights_only=True`, so that they cannot run code. Training frameworks wrap the weights in a
dictionary and put prefixes before the names; both are recognised.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from timmscope_registry import ModelError
from timmscope_registry.out_of_memory import is_out_of_memory

State = Mapping[str, Tensor]

WRAPPERS = (
    "state_dict_ema",
    "model_ema",
    "ema_state_dict",
    "state_dict",
    "model_state_dict",
    "model_state",
    "model",
    "network",
    "net",
    "weights",
)
"""Keys under which training scripts, timm and Lightning keep the weights, best first."""


def read_checkpoint(path: Path) -> dict[str, Tensor]:
    """Read tensors by name from safetensors or a checkpoint, without wrappers.

    Raises:
        ModelError: the file cannot be read, or holds no named tensors.
    """
    try:
        if path.suffix == ".safetensors":
            from safetensors.torch import load_file as load_safetensors

            return load_safetensors(path)
        state: Any = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        if is_out_of_memory(error):
            raise ModelError(
                f"{path}: there is not enough memory to read the weights; free some, then try again"
            ) from error
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise ModelError(
            f"{path} cannot be read as weights: {reason}; expected safetensors or a checkpoint of "
            "plain tensors (pickled objects are never loaded)"
        ) from error
    while isinstance(state, dict):
        inner = next((state[key] for key in WRAPPERS if isinstance(state.get(key), dict)), None)
        if inner is None:
            break
        state = inner
    tensors = _tensors(state)
    if not tensors:
        raise ModelError(f"{path} holds {_contents(state)}; expected named tensors")
    return tensors


def _tensors(state: object) -> dict[str, Tensor]:
    if not isinstance(state, dict):
        return {}
    return {str(key): value for key, value in state.items() if isinstance(value, Tensor)}


def _contents(state: object) -> str:
    if not isinstance(state, dict) or not state:
        return type(state).__name__
    return f"a dictionary of {', '.join(sorted(map(repr, state))[:6])} without tensors"


def load_weights(module: nn.Module, state: State, what: str, *, prefix: str | None = None) -> None:
    """Load tensors by name into a module.

    Args:
        module: the module.
        state: the tensors.
        what: file and architecture, for errors.
        prefix: load only the tensors whose name begins with it, and remove it; by default it is the
            prefix under which all weights of the module are found.

    Raises:
        ModelError: the tensors do not fit, several prefixes do, or values are unusable.
    """
    needed = [name for name in module.state_dict() if not _is_counter(name)]
    if prefix is None:
        prefix = _prefix(needed, state, what)
    chosen = {
        name.removeprefix(prefix): value for name, value in state.items() if name.startswith(prefix)
    }
    if not chosen:
        first = next(iter(state))
        raise ModelError(f"no weight begins with {prefix!r}, {what}; the first is {first}")
    _check_fit(module, needed, chosen, what, prefix)
    _check_values(module, chosen, what)
    module.load_state_dict(chosen, strict=False)


def load_in_order(module: nn.Module, state: State, what: str) -> None:
    """Load tensors by position, for the same network saved under other names.

    Raises:
        ModelError: their number or shapes do not fit, or values are unusable.
    """
    tensors = [value for name, value in state.items() if not _is_counter(name)]
    names = [name for name in module.state_dict() if not _is_counter(name)]
    if len(tensors) != len(names):
        raise ModelError(f"weights do not fit, {what}: {len(tensors)} tensors for {len(names)}")
    load_weights(module, dict(zip(names, tensors, strict=True)), what, prefix="")


def _is_counter(name: str) -> bool:
    return name.endswith("num_batches_tracked")


def _prefix(needed: list[str], state: State, what: str) -> str:
    """The prefix before the module's names in a checkpoint; the empty one if none fits better.

    Raises:
        ModelError: all weights are there under several prefixes.
    """
    last = max(needed, key=len, default="")
    counts = {
        prefix: sum(prefix + name in state for name in needed)
        for prefix in dict.fromkeys(_prefixes(needed, state, last))
    }
    if not counts or counts.get("") == len(needed):
        return ""
    full = [prefix for prefix, count in counts.items() if count == len(needed)]
    if len(full) > 1:
        raise ModelError(
            f"{what} has the weights of several networks, under {' and '.join(map(repr, full))}: "
            f"add &prefix={full[0]}"
        )
    best = max(counts, key=lambda prefix: counts[prefix])
    return best if 2 * counts[best] > len(needed) else ""


def _prefixes(needed: list[str], state: State, last: str) -> list[str]:
    ends = {name for name in (last, *needed[:3], *needed[-3:]) if name}
    return [
        name.removesuffix(end)
        for name in state
        for end in ends
        if name == end or name.endswith(f".{end}")
    ]


def _check_fit(module: nn.Module, needed: list[str], state: State, what: str, prefix: str) -> None:
    own = module.state_dict()
    missing = [name for name in needed if name not in state]
    extra = [name for name in state if name not in own]
    shapes = [name for name in needed if name in state and state[name].shape != own[name].shape]
    if not (missing or extra or shapes):
        return
    first = shapes[0] if shapes else ""
    facts = [
        f"{len(missing)} missing (first {missing[0]})" if missing else "",
        f"{len(extra)} unknown (first {extra[0]})" if extra else "",
        f"{len(shapes)} of another shape ({first} is {tuple(state[first].shape)}, expected "
        f"{tuple(own[first].shape)})"
        if shapes
        else "",
        f"names after the prefix {prefix!r}" if prefix else "",
    ]
    hints = _hints(module, own, state, missing, shapes)
    raise ModelError(
        f"weights do not fit, {what}: {', '.join(fact for fact in facts if fact)}"
        + (f"; add {' and '.join(hints)}" if hints else "")
    )


def _hints(
    module: nn.Module, own: State, state: State, missing: list[str], shapes: list[str]
) -> list[str]:
    """Arguments of `timm.create_model` with which the weights would fit better."""
    config: Mapping[str, Any] = getattr(module, "pretrained_cfg", None) or {}
    hints = {}
    for name in shapes:
        mine, theirs = own[name].shape, state[name].shape
        if name.startswith(_parts(config.get("first_conv"))) and len(mine) == len(theirs) == 4:
            hints["in_chans"] = f"&in_chans={theirs[1]}"
        elif name.startswith(_parts(config.get("classifier"))) and len(theirs) > 0:
            hints["num_classes"] = f"&num_classes={theirs[0]}"
    if any(name.startswith(_parts(config.get("classifier"))) for name in missing):
        hints["num_classes"] = "&num_classes=0, as the file has no classifier"
    return list(hints.values())


def _parts(names: object) -> tuple[str, ...]:
    listed = names if isinstance(names, list | tuple) else [names]
    return tuple(f"{name}." for name in listed if isinstance(name, str) and name)


def _check_values(module: nn.Module, state: State, what: str) -> None:
    """Refuse tensors that copying would change or that no model can run with."""
    own = module.state_dict()
    parameters = {name for name, _ in module.named_parameters()}
    for name, value in state.items():
        if name not in own:
            continue
        kind = _strange(value, own[name])
        if kind:
            raise ModelError(
                f"{name} is {kind} in {what}: expected a dense tensor of {own[name].dtype}"
            )
        if value.is_floating_point():
            finite = torch.isfinite(value) if name in parameters else ~torch.isnan(value)
            bad = int((~finite).sum())
            if bad:
                raise ModelError(
                    f"{bad} of {value.numel()} values of {name} are NaN or infinite in {what}: the "
                    "training that wrote them diverged, or the file is damaged; use an earlier "
                    "checkpoint"
                )


def _strange(value: Tensor, own: Tensor) -> str:
    if value.is_meta or value.is_nested:
        return "a tensor without values" if value.is_meta else "a nested tensor"
    if value.is_quantized:
        return f"quantised ({value.dtype})"
    if value.layout is not torch.strided:
        return f"sparse ({value.layout})"
    if value.dtype != own.dtype and value.is_floating_point() != own.is_floating_point():
        return f"of {value.dtype}"
    return ""
