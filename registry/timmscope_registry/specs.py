"""Specs are small records of what a plugin contributes, so that listing imports no implementation.

A spec names its implementation by an import string (``"package.module:Attribute"``), which is
resolved at first use. Listing a hundred techniques therefore imports none of them, and not torch.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, fields
from typing import Literal, get_args

API_VERSION: tuple[int, int] = (1, 1)
"""Version (major, minor) of the plugin contract. A minor version adds optional fields and hooks."""

GROUP = f"timmscope.v{API_VERSION[0]}"
"""Entry-point group of plugins; its name holds the major version, readable without an import."""

Family = Literal["attribution", "synthesis", "attack", "defence", "style", "representation"]
"""A family of techniques: what they are for."""

FAMILIES: tuple[Family, ...] = get_args(Family)
"""All families, in the order in which lists show them."""

BASES: dict[str, tuple[Family, ...]] = {
    "attribution": ("attribution",),
    "synthesis": ("synthesis",),
    "attack": ("attack",),
    "universal-attack": ("attack",),
    "defence": ("defence",),
    "certification": ("defence",),
    "style": ("style",),
    "store": ("representation",),
    "stores": ("representation",),
    "model": ("representation",),
    "training": FAMILIES,
}
"""Base classes of techniques, and the families that they serve; the first of a family is its
default. A base decides the inputs and the result."""

_NAME = re.compile(r"[a-z0-9]+([.+-][a-z0-9]+)*\+*")
_IMPL = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*:[A-Za-z_]\w*(\.[A-Za-z_]\w*)*")


@dataclass(frozen=True, kw_only=True)
class TechniqueSpec:
    """A technique of one family; its implementation is a subclass of one of the family's bases.

    Attributes:
        name: what users type, in lower case with hyphens (``"grad-cam"``).
        family: one of `FAMILIES`.
        summary: one line for lists.
        impl: import string of the class.
        paper: the source, as authors, venue and year, or as a URL.
        needs: requirements beyond timmscope's own (``"scikit-learn>=1.5"``), checked at first use.
        base: one of `BASES`, which says what the technique takes; by default the family's first.
        api: version of the plugin contract that the spec was written for.
    """

    name: str
    family: Family
    summary: str
    impl: str
    paper: str = ""
    needs: tuple[str, ...] = ()
    base: str = ""
    api: tuple[int, int] = API_VERSION

    def __post_init__(self) -> None:
        if self.base == "":
            first = next((base for base, families in BASES.items() if self.family in families), "")
            object.__setattr__(self, "base", first)


@dataclass(frozen=True, kw_only=True)
class CollectorSpec:
    """A collector of a data-set pass; its implementation is a subclass of `Collector`.

    Attributes:
        name: what users type, in lower case with hyphens (``"top-k"``).
        summary: one line for lists.
        impl: import string of the class.
        api: version of the plugin contract that the spec was written for.
    """

    name: str
    summary: str
    impl: str
    api: tuple[int, int] = API_VERSION


@dataclass(frozen=True, kw_only=True)
class ModelSourceSpec:
    """A scheme of `load_model`; its implementation is a callable ``(rest) -> HookedModel``.

    Attributes:
        scheme: the text before the colon (``"timm"`` in ``"timm:resnet50"``).
        summary: one line for lists.
        impl: import string of the callable, which gets the text after the colon.
        example: a full model id that works.
        api: version of the plugin contract that the spec was written for.
    """

    scheme: str
    summary: str
    impl: str
    example: str = ""
    api: tuple[int, int] = API_VERSION

    @property
    def name(self) -> str:
        """The scheme, under the name that all specs share."""
        return self.scheme


@dataclass(frozen=True, kw_only=True)
class ImageSourceSpec:
    """A kind of image collection; its implementation is a callable ``(location) -> ImageSource``.

    Attributes:
        scheme: the text before the colon (``"webdataset"`` in ``"webdataset:train.tar"``).
        summary: one line for lists.
        impl: import string of the callable, which gets the location.
        suffixes: file suffixes that select this source without a scheme (``(".tar",)``).
        example: a full location that works.
        api: version of the plugin contract that the spec was written for.
    """

    scheme: str
    summary: str
    impl: str
    suffixes: tuple[str, ...] = ()
    example: str = ""
    api: tuple[int, int] = API_VERSION

    @property
    def name(self) -> str:
        """The scheme, under the name that all specs share."""
        return self.scheme


@dataclass(frozen=True, kw_only=True)
class IndexBackendSpec:
    """A nearest-neighbour engine; its implementation is a class like `timmscope.Backend`.

    Attributes:
        name: what users type, in lower case with hyphens (``"flat"``).
        summary: one line for lists.
        impl: import string of the class.
        api: version of the plugin contract that the spec was written for.
    """

    name: str
    summary: str
    impl: str
    api: tuple[int, int] = API_VERSION


Spec = TechniqueSpec | CollectorSpec | ModelSourceSpec | ImageSourceSpec | IndexBackendSpec


def faults(spec: Spec) -> list[str]:
    """Return one clause for each thing wrong with a spec; empty for a valid spec."""
    found = [
        f"{field.name} is {value!r}, expected text"
        for field in fields(spec)
        if str(field.type) == "str" and not isinstance(value := getattr(spec, field.name), str)
    ]
    if found:
        return found
    if not _NAME.fullmatch(spec.name):
        found.append(f"the name {spec.name!r} is not lower-case words joined by hyphens")
    if not _IMPL.fullmatch(spec.impl):
        found.append(f"impl is {spec.impl!r}, expected 'module:Attribute'")
    if isinstance(spec, TechniqueSpec) and spec.family not in FAMILIES:
        found.append(f"the family {spec.family!r} is not one of {', '.join(FAMILIES)}")
    elif isinstance(spec, TechniqueSpec) and spec.family not in BASES.get(spec.base, ()):
        known = " or ".join(base for base, families in BASES.items() if spec.family in families)
        found.append(f"base is {spec.base!r}, expected {known} for the family {spec.family}")
    for name in ("needs", "suffixes"):
        value = getattr(spec, name, ())
        if not (isinstance(value, tuple) and all(isinstance(item, str) for item in value)):
            found.append(f"{name} is {value!r}, expected a tuple of text")
    api: object = spec.api
    if not (
        isinstance(api, tuple) and len(api) == 2 and all(isinstance(part, int) for part in api)
    ):
        found.append(f"api is {api!r}, expected (major, minor)")
    return found


def api_text(api: tuple[int, int]) -> str:
    """Format a version: ``(1, 0)`` gives ``"1.0"``."""
    return ".".join(str(part) for part in api)
