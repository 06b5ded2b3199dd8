"""Reads the radii at which accuracy is judged: `1/255,2/255`, for each norm in its own units."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence

from timmscope.number_list import number
from timmscope.techniques.balls import NORM_NAMES, RADII, Norm
from timmscope_registry import ParameterError

Radius = float | str
Radii = Radius | Sequence[Radius] | Mapping[str, Sequence[Radius]]
LINF = (1 / 255, 2 / 255, 4 / 255, 8 / 255)
"""Radii for L∞ if none are given; those of other norms are these shares of the usual radius."""
_SHARES = (1 / 8, 1 / 4, 1 / 2, 1.0)


def radii_by_norm(
    given: Radii | None, norms: Iterable[Norm], shape: tuple[int, int, int]
) -> dict[Norm, list[float]]:
    """Return the radii of each norm, in rising order.

    Args:
        given: numbers or texts such as `1/255` or `1/255,2/255`, for the norm of all attacks; or
            by norm, as a mapping or in texts such as `l2=0.5,1`.
        norms: the norms of the attacks.
        shape: channels, height and width of an image.

    Raises:
        ParameterError: a radius is no positive number, or larger than any change of an image, as
            are numbers of grey levels; or the attacks keep several norms, and the radii are of
            none of them.
    """
    wanted = list(dict.fromkeys(norms))
    found: dict[str, list[float]] = {}
    for norm, radius in _listed(given):
        found.setdefault(norm, []).append(radius)
    if "" in found:
        if len(wanted) > 1:
            every = " and ".join(f"{norm}=…" for norm in wanted)
            raise ParameterError(
                f"the attacks keep {' and '.join(NORM_NAMES[norm] for norm in wanted)}, whose "
                f"radii have different units: give radii for each, as in {every}",
                parameter="epsilons",
            )
        found.setdefault(wanted[0], []).extend(found.pop(""))
    for norm in found:
        if norm not in NORM_NAMES:
            raise ParameterError(
                f"{norm!r} is no norm: expected one of {', '.join(NORM_NAMES)}",
                parameter="epsilons",
            )
        if norm not in wanted:
            raise ParameterError(
                f"there are radii for {norm}, but the attacks keep {', '.join(wanted)}",
                parameter="epsilons",
            )
        for radius in found[norm]:
            _require_useful(norm, radius, shape)
    return {norm: sorted(set(found.get(norm) or usual_radii(norm, shape))) for norm in wanted}


def usual_radii(norm: Norm, shape: tuple[int, int, int]) -> list[float]:
    """Return the radii that are judged if none are given."""
    if norm == "linf":
        return list(LINF)
    usual = RADII[norm] * math.sqrt(shape[1] * shape[2]) / 224
    if norm == "l0":
        return sorted({max(1.0, float(int(usual * share))) for share in _SHARES})
    return [usual * share for share in _SHARES]


def largest_radius(norm: str, shape: tuple[int, int, int]) -> float:
    """Return the norm of the largest change that an image can have."""
    values = math.prod(shape)
    return {"linf": 1.0, "l2": math.sqrt(values), "l1": float(values)}.get(
        norm, float(shape[1] * shape[2])
    )


def radius_text(radius: float, norm: str) -> str:
    """Return a radius in words: `4/255`, `0.3`, `12 px`."""
    levels = radius * 255
    if norm == "l0":
        return f"{radius:.0f} px"
    if norm != "linf" or (levels > 1 and abs(levels - round(levels)) > 1e-6):
        return f"{radius:.3g}"
    return f"{levels:.3g}/255"


def _number(text: Radius) -> float:
    """Return the number of a text such as `0.03` or `8/255`.

    Raises:
        ParameterError: it is none.
    """
    try:
        return number(text) if isinstance(text, str) else float(text)
    except (ValueError, TypeError):
        raise ParameterError(
            f"{text!r} is no radius: expected a number, as in 0.03 or 8/255", parameter="epsilons"
        ) from None


def _listed(given: Radii | None) -> Iterable[tuple[str, float]]:
    """Yield norm and radius of all radii; the norm is empty if it is not said."""
    if given is None:
        return
    if isinstance(given, Mapping):
        for norm, radii in given.items():
            each = [radii] if isinstance(radii, str | float | int) else radii
            yield from ((str(norm), radius) for text in each for _, radius in _listed(text))
        return
    if not isinstance(given, str):
        for text in given if isinstance(given, Iterable) else [given]:
            yield from _listed(text) if isinstance(text, str) else [("", _number(text))]
        return
    norm, equals, rest = given.partition("=")
    parts = (rest if equals else given).split(",")
    yield from ((norm.strip() if equals else "", _number(part)) for part in parts if part.strip())


def _require_useful(norm: str, radius: float, shape: tuple[int, int, int]) -> None:
    if not (math.isfinite(radius) and radius > 0):
        raise ParameterError(
            f"the radius {radius:g} is not above 0: give a positive number", parameter="epsilons"
        )
    most = largest_radius(norm, shape)
    if radius < most:
        return
    if norm == "linf":
        raise ParameterError(
            f"the radius {radius:g} is no size in [0, 1], the range of pixel values: for "
            f"{radius:g} of 255 grey levels write {radius:g}/255",
            parameter="epsilons",
        )
    raise ParameterError(
        f"the radius {radius:g} is more than any {NORM_NAMES[norm]} change of these images "
        f"({most:.4g}), whose pixel values are in [0, 1]"
        + ("" if norm == "l0" else f": for grey levels of 255 write {radius:g}/255"),
        parameter="epsilons",
    )
