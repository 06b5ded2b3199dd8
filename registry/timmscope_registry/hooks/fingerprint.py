"""A fingerprint of a model and of global state, so that tests see what a technique changed."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn


@dataclass(frozen=True)
class Fingerprint:
    """State of a module, the random generators and autograd; compare two with ``==``.

    Attributes:
        facts: each recorded fact by its name.
    """

    facts: Mapping[str, str]

    def difference(self, other: Fingerprint) -> list[str]:
        """List the facts that differ, as lines ``name: here -> in other``."""
        names = dict.fromkeys([*self.facts, *other.facts])
        return [
            f"{name}: {self.facts.get(name, 'absent')} -> {other.facts.get(name, 'absent')}"
            for name in names
            if self.facts.get(name) != other.facts.get(name)
        ]


def fingerprint(module: nn.Module) -> Fingerprint:
    """Take the fingerprint of a module and of global state.

    It covers, for each submodule: identity, hooks of every kind, train or eval mode, `fused_attn`
    and methods overridden on the instance; for each parameter and buffer: identity,
    `requires_grad`, tensor hooks, and the bytes of the value and of `.grad`; and globally: the
    random states of torch (all devices), NumPy and Python, grad mode, inference mode, the default
    dtype and the determinism flags.
    """
    facts: dict[str, str] = {}
    for path, part in module.named_modules(remove_duplicate=False):
        facts.update({f"{path or 'model'}: {key}": v for key, v in _module_facts(part).items()})
    tensors: list[tuple[str, Tensor]] = [*module.named_parameters(), *module.named_buffers()]
    for name, tensor in tensors:
        facts[f"{name}: value"] = f"{tensor.dtype} {tuple(tensor.shape)} {_digest(tensor)}"
        facts[f"{name}: identity"] = str(id(tensor))
        facts[f"{name}: requires_grad"] = str(tensor.requires_grad)
        facts[f"{name}: grad"] = "None" if tensor.grad is None else _digest(tensor.grad)
        facts[f"{name}: tensor hooks"] = str(list(tensor._backward_hooks or ()))
    facts.update(_global_facts())
    return Fingerprint(facts)


def _module_facts(part: nn.Module) -> dict[str, str]:
    facts = {"identity": f"{type(part).__name__} {id(part)}", "training": str(part.training)}
    for name, value in vars(part).items():
        if "hook" in name and isinstance(value, dict):
            facts[name.strip("_")] = str([(key, id(hook)) for key, hook in value.items()])
        elif name == "fused_attn":
            facts[name] = str(value)
        elif callable(value) and not isinstance(value, type) and hasattr(type(part), name):
            facts[f"own {name}"] = str(id(value))
    return facts


def _global_facts() -> dict[str, str]:
    facts = {
        "torch random state": _digest(torch.get_rng_state()),
        "NumPy random state": _hash(repr(np.random.get_state()).encode()),  # noqa: NPY002
        "Python random state": _hash(repr(random.getstate()).encode()),
        "grad mode": str(torch.is_grad_enabled()),
        "inference mode": str(torch.is_inference_mode_enabled()),
        "default dtype": str(torch.get_default_dtype()),
        "deterministic algorithms": str(torch.are_deterministic_algorithms_enabled()),
        "cudnn": f"{torch.backends.cudnn.benchmark} {torch.backends.cudnn.deterministic}",
    }
    if torch.cuda.is_initialized():
        for device, state in enumerate(torch.cuda.get_rng_state_all()):
            facts[f"cuda:{device} random state"] = _digest(state)
    return facts


def _digest(tensor: Tensor) -> str:
    data = tensor.detach().cpu().contiguous()
    return _hash(data.reshape(-1).view(torch.uint8).numpy().data)


def _hash(data: bytes | memoryview) -> str:
    return hashlib.blake2b(data, digest_size=12).hexdigest()
