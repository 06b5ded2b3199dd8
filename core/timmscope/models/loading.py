"""`load_model` loads a model by an id such as `timm:resnet50`; plugins add further schemes.

An id may end with defences, as in `pip:efficientnet-lite0 + timmscope:jpeg quality=75`.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from timmscope_registry import ModelError, get_registry, nearest
from timmscope_registry.contributions import by_scheme, instantiate

if TYPE_CHECKING:
    import torch

    from timmscope.models.defence import Defence
    from timmscope.models.hooked_model import HookedModel

_WORD = r"""(?:[\w@%+=:,./\[\]-]|'[^']*'|"[^"]*")+"""
_DEFENCE = rf" \+ (?P<text>[A-Za-z0-9][\w.:+-]*(?: +\w[\w-]*={_WORD}| +'\w[\w-]*=[^']*')*)"
_DEFENCES = re.compile(rf"(?:{_DEFENCE.replace('?P<text>', '?:')})+ *$")


def load_model(
    spec: str,
    *,
    device: str | torch.device | None = None,
    defences: Iterable[Defence | str] | Defence | str = (),
) -> HookedModel:
    """Load a model by its id.

    Args:
        spec: `scheme:rest`, for example `timm:resnet50.a1_in1k`, `pip:efficientnet-lite0`,
            `file:weights.safetensors?arch=resnet18` or `random:vit_tiny_patch16_224?seed=0`.
            Without a scheme, `timm:` is assumed. Of the arguments after `?`, `class_names` (a text
            file), `mean`, `std`, `input_size`, `crop_pct` and `interpolation` are those of
            `HookedModel`; the built-in schemes pass all others to `timm.create_model`. Defences
            may follow, each after a plus between spaces.
        device: the device; by default the CPU.
        defences: changes of the images before the model, in the order in which they act, after
            those of `spec`: texts such as `jpeg quality=75`, or objects.

    Raises:
        ModelError: there is no such scheme or model, or its weights cannot be read.
        UnsupportedModel: timmscope does not support the architecture.
        PluginError: several plugins offer the scheme, or the source does not return a model; there
            is no defence of a name, or it does not follow its base.
        ParameterError: a defence is another kind of technique, or has wrong parameters.
    """
    from timmscope.models.defence import Defence, as_defences

    name, texts = split_defences(spec)
    more = [defences] if isinstance(defences, str | Defence) else list(defences)
    chosen = as_defences([*texts, *more])  # before the weights, which take longer
    model = _load(name)
    if chosen:
        model = model.defended([*model.defences, *chosen])
    return model.to(device) if device is not None else model


def split_defences(spec: str) -> tuple[str, list[str]]:
    """Split an id into that of the model and the texts of its defences."""
    found = _DEFENCES.search(spec)
    if found is None:
        return spec, []
    texts = [each["text"] for each in re.finditer(_DEFENCE, found[0])]
    return spec[: found.start()], texts


def load_ensemble(rest: str) -> HookedModel:
    """Load `ensemble:A|B|C`, the mean of the logits of several models.

    A member that has defences is in parentheses: `ensemble:(A + jpeg quality=50)|(A + jpeg)`. A
    model that occurs several times is loaded once.

    Raises:
        ModelError: there are fewer than two members, a member cannot be loaded, or their classes
            or channels differ.
    """
    from timmscope.models.ensemble_model import ensemble

    names = _members(rest)
    if len(names) < 2 or not all(names):
        raise ModelError(
            f"'ensemble:{rest}' has {sum(map(bool, names))} members: expected at least two, "
            "as in ensemble:A|B or ensemble:(A + jpeg)|B"
        )
    loaded: dict[str, HookedModel] = {}
    members = []
    for spec in names:
        name, texts = split_defences(spec)
        if name not in loaded:
            loaded[name] = load_model(name)
        members.append(loaded[name].defended([*loaded[name].defences, *texts]))
    return ensemble(members)


def member_text(id: str) -> str:
    """Return a model's id as it stands in the id of an ensemble."""
    return f"({id})" if "|" in id or split_defences(id)[1] else id


def _members(text: str) -> Sequence[str]:
    """Split at each `|` that is not in parentheses, and take those around a member away."""
    parts, depth = [""], 0
    for letter in text:
        depth += (letter == "(") - (letter == ")")
        if letter == "|" and depth <= 0:
            parts.append("")
        else:
            parts[-1] += letter
    stripped = (part.strip() for part in parts)
    return [each[1:-1] if each[:1] == "(" and each[-1:] == ")" else each for each in stripped]


def _load(spec: str) -> HookedModel:
    """Load a model by its id without defences."""
    from timmscope.models.hooked_model import HookedModel

    text = spec if ":" in spec else f"timm:{spec}"
    entries = get_registry().model_sources()
    match = by_scheme(entries, text)
    if match is None:
        scheme, _, rest = text.partition(":")
        sources = {entry.spec.scheme for entry in entries}
        close = nearest(scheme, sources)
        hint = f"; did you mean {close[0]}:{rest}?" if close else ""
        if scheme in ("hf-hub", "local-dir"):
            hint = f"; did you mean timm:{text}?"
        raise ModelError(
            f"no model source is called {scheme!r} in {spec!r}; known: {', '.join(sorted(sources))}"
            + hint
        )
    if not match[1]:
        raise ModelError(f"{spec!r} names no model: expected {text}NAME")
    return instantiate(*match, HookedModel)
