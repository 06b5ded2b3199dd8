"""The figure of a map: points in colours and shapes, with some thumbnails beside them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patheffects import withStroke

from timmscope.drawing import (
    CONTINUOUS,
    INK,
    LABEL_PT,
    MARGIN_IN,
    MUTED,
    OTHER,
    PAPER,
    RULE,
    SERIES,
    SMALL_PT,
    TITLE_PT,
    Canvas,
    Group,
    group_by_class,
    group_by_number,
    line_height,
    number_range,
    range_texts,
    replace_missing_glyphs,
    short_names,
    text_width,
    theme,
    truncate,
)
from timmscope_representation.embedding.figure_pictures import (
    FRAME,
    PANEL_IN,
    draw_pictures,
    scale_of,
)

if TYPE_CHECKING:
    from timmscope_representation.embedding.embedding import Embedding

LEGEND_IN = 1.75
_AXIS_IN, _PLAIN_IN = 0.75, 0.1
"""Width left of the points, with and without axis labels."""
_MARKERS = {
    "disc": "o",
    "square": "s",
    "triangle": "^",
    "diamond": "D",
    "wedge": "v",
    "plus": "P",
    "pentagon": "p",
    "cross": "X",
}
_NAMED_QUERIES = 12
_FEW = 8
"""Groups of fewer points have their name above them, because it would cover them."""
_NAME_HIDES_IN = 0.2
"""A group that extends less than this above its middle would be covered by its name."""
_STEPS = 12
"""Number of positions to try for a name, half a line apart."""
_SHAPED = 5000
"""Largest number of points drawn with shapes; more are too small to show them."""


def embedding_figure(embedding: Embedding) -> Figure:
    """The points in the colours of the first colouring, with a legend; in 2-D some thumbnails."""
    pictures = embedding.shown is not None and embedding.points.shape[1] == 2
    colouring = embedding.colourings[0] if embedding.colourings else None
    values = embedding.values[0].numpy() if colouring else None
    groups = _groups(embedding, colouring, values)
    legend = LEGEND_IN if colouring or embedding.query_names else 0.0
    aside = _PLAIN_IN if embedding.explained is None or embedding.points.shape[1] == 3 else _AXIS_IN
    width = 2 * MARGIN_IN + aside + PANEL_IN + legend + (PANEL_IN + 0.3 if pictures else 0)
    room = width - 2 * MARGIN_IN
    title = truncate(embedding.title, room, TITLE_PT, lines=2, bold=True)
    note = truncate(_note(embedding), room, SMALL_PT, lines=2)
    head = MARGIN_IN + line_height(TITLE_PT, title.count("\n") + 1) + 0.15
    foot = 0.42 + line_height(SMALL_PT, note.count("\n") + 1) + MARGIN_IN
    with theme():
        page = Canvas(width, head + PANEL_IN + foot)
        page.text(title, MARGIN_IN, MARGIN_IN - 0.02, size=TITLE_PT, bold=True)
        page.text(note, MARGIN_IN, page.height - foot + 0.38, size=SMALL_PT, colour=MUTED)
        left = MARGIN_IN + aside
        if embedding.points.shape[1] == 3:
            axes = _space(page, left, head, embedding, groups, colouring, values)
        else:
            axes = page.axes(left, head, PANEL_IN, PANEL_IN)
            _plane(axes, embedding, groups, colouring, values)
        if legend:
            _legend(page, left + PANEL_IN + 0.15, head, embedding, groups, colouring, values)
        if pictures:
            beside = page.axes(left + PANEL_IN + legend + 0.3, head, PANEL_IN, PANEL_IN)
            beside.set(xlim=axes.get_xlim(), ylim=axes.get_ylim())
            _frame(beside, embedding)
            beside.set_ylabel("")
            beside.tick_params(left=False, labelleft=False)
            draw_pictures(beside, embedding, groups, colouring, values)
    return page.figure


def _groups(embedding: Embedding, colouring: dict[str, Any] | None, values: Any) -> list[Group]:
    if colouring is None:
        everything = np.arange(len(embedding))
        return [Group("images", SERIES[0], "disc", everything, False)]
    if colouring["classes"] is None:
        return group_by_number(values)
    return group_by_class(colouring["classes"], values)


def _plane(
    axes: Axes,
    embedding: Embedding,
    groups: list[Group],
    colouring: dict[str, Any] | None,
    values: Any,
) -> None:
    points = embedding.points.numpy()
    size, alpha = _look(len(points))
    everything = np.concatenate([points, embedding.query_points.numpy()])
    low, high = everything.min(0), everything.max(0)
    middle, half = (low + high) / 2, max(float((high - low).max()) / 2, 1e-12) * FRAME
    axes.set(xlim=(middle[0] - half, middle[0] + half), ylim=(middle[1] - half, middle[1] + half))
    _frame(axes, embedding)
    # Classes are interleaved, so that no class covers another because it is drawn later.
    turns = max(1, min(24, len(points) // 200))
    for turn in range(turns):
        for group in groups:
            members = group.members[turn::turns]
            axes.scatter(
                points[members, 0],
                points[members, 1],
                s=size,
                marker=_marker(group, len(points)),
                alpha=alpha,
                linewidths=0.25 if len(points) <= 2000 else 0,
                edgecolors=PAPER,
                snap=False,  # snapping to whole pixels would erase small plus signs
                **_paint(group, members, colouring, values),
            )
    halo = [withStroke(linewidth=2.2, foreground=PAPER)]
    taken: list[tuple[float, float, float, float]] = []
    for group in sorted(groups, key=lambda each: -len(each.members)):
        if group.named and len(groups) > 1:
            text = truncate(replace_missing_glyphs(group.name), 1.3, LABEL_PT)
            place = _named_at(points[group.members], 2 * half / PANEL_IN)
            _write(axes, text, place, taken, 2 * half, effects=halo, weight="bold")
    _queries(axes, embedding, halo, taken)


def _frame(axes: Axes, embedding: Embedding) -> None:
    axes.set_aspect("equal", adjustable="box")
    axes.grid(visible=False)
    for spine in axes.spines.values():
        spine.set(visible=True, color=RULE)
    if embedding.explained is None:  # coordinates have no unit, distances only an order
        axes.set_xticks([])
        axes.set_yticks([])
    axes.set_xlabel(_axis(embedding, 0))
    axes.set_ylabel(_axis(embedding, 1))


def _axis(embedding: Embedding, axis: int) -> str:
    if embedding.explained is None:
        return ""
    return f"component {axis + 1} ({embedding.explained[axis]:.1%} of the variance)"


def _space(
    page: Canvas,
    left: float,
    top: float,
    embedding: Embedding,
    groups: list[Group],
    colouring: dict[str, Any] | None,
    values: Any,
) -> Any:
    from mpl_toolkits.mplot3d.proj3d import proj_transform

    points = embedding.points.numpy()
    size, alpha = _look(len(points))
    place = (
        left / page.width,
        1 - (top + PANEL_IN) / page.height,
        PANEL_IN / page.width,
        PANEL_IN / page.height,
    )
    axes: Any = page.figure.add_axes(place, projection="3d")
    axes.view_init(elev=22, azim=-58)
    axes.set_box_aspect((1, 1, 1), zoom=1.0)
    axes.computed_zorder = False  # names are drawn above all points
    for group in groups:
        members = group.members
        axes.scatter(
            *points[members].T,
            s=size,
            marker=_marker(group, len(points)),
            alpha=alpha,
            linewidths=0,
            snap=False,
            depthshade=True,
            **_paint(group, members, colouring, values),
        )
    if len(embedding.query_names):
        axes.scatter(
            *embedding.query_points.numpy().T, s=110, marker="*", color=INK, edgecolors=PAPER,
            linewidths=0.8, depthshade=False,
        )  # fmt: skip
    # Names are placed on a plane in front of the 3-D axes, to find overlaps.
    names = page.axes(left, top, PANEL_IN, PANEL_IN)
    names.set(xlim=(0, PANEL_IN), ylim=(0, PANEL_IN), zorder=axes.get_zorder() + 1)
    names.set_axis_off()

    def projected(point: Any) -> Any:
        """Position on that plane of a point of the 3-D axes."""
        shown = axes.transData.transform(proj_transform(*point, axes.get_proj())[:2])
        return names.transData.inverted().transform(shown)

    halo = [withStroke(linewidth=2.2, foreground=PAPER)]
    taken: list[tuple[float, float, float, float]] = []
    for group in sorted(groups, key=lambda each: -len(each.members)):
        if group.named and len(groups) > 1:
            text = truncate(replace_missing_glyphs(group.name), 1.3, LABEL_PT)
            middle = projected(_middle(points[group.members]))
            _write(names, text, middle, taken, PANEL_IN, effects=halo, weight="bold")
    for name, at in zip(_query_names(embedding), embedding.query_points.tolist(), strict=False):
        x, y = projected(at)
        text = truncate(name, 1.8, SMALL_PT)
        _write(names, text, (x, y - 0.14), taken, PANEL_IN, effects=halo, weight="normal")
    for axis, name in zip((axes.xaxis, axes.yaxis, axes.zaxis), "xyz", strict=True):
        axis.set_pane_color((0.97, 0.975, 0.98, 1))
        axis.set_tick_params(labelsize=6)
        if embedding.explained is None:
            axis.set_ticklabels([])
        else:
            at = "xyz".index(name)
            axis.set_label_text(f"component {at + 1} ({embedding.explained[at]:.1%})")
    return axes


def _paint(group: Group, members: Any, colouring: dict[str, Any] | None, values: Any) -> Any:
    """Keyword arguments of `scatter` for the colours of a group's points."""
    if colouring is not None and colouring["classes"] is None and group.colour != OTHER:
        scale = scale_of(values)
        inside = values[members].clip(scale.vmin, scale.vmax)  # matplotlib leaves out infinity
        return {"c": inside, "cmap": CONTINUOUS, "norm": scale}
    return {"color": group.colour}


def _marker(group: Group, count: int) -> str:
    """Marker of the group; a disc if there are too many points for shapes."""
    return _MARKERS[group.shape] if count <= _SHAPED else "o"


def _look(count: int) -> tuple[float, float]:
    """Area of a marker in square points, and its opacity; both fall with the number of points."""
    return float(np.clip(9000 / max(count, 1), 1.6, 34)), float(np.clip(45 / count**0.5, 0.3, 0.9))


def _middle(points: Any) -> Any:
    """The point nearest to the median, so that a name is placed among the points it names."""
    median = np.median(points, axis=0)
    return points[np.square(points - median).sum(1).argmin()]


def _named_at(points: Any, inch: float) -> tuple[float, float]:
    """Position of the name of some points `(n, 2)`: on their middle, or above if it covered them.

    Args:
        points: the points of a group.
        inch: length of an inch in the coordinates of the map.
    """
    x, y = _middle(points).tolist()
    top = float(np.quantile(points[:, 1], 0.95))
    if len(points) < _FEW or top - y < _NAME_HIDES_IN * inch:
        y = (y if len(points) < _FEW else top) + 0.14 * inch
    return x, y


def _queries(axes: Axes, embedding: Embedding, halo: Any, taken: list[Any]) -> None:
    if not embedding.query_names:
        return
    points = embedding.query_points.numpy()
    axes.scatter(
        points[:, 0], points[:, 1], s=150, marker="*", color=INK, edgecolors=PAPER, linewidths=0.9,
        zorder=6,
    )  # fmt: skip
    span = float(np.ptp(axes.get_xlim()))
    for name, (x, y) in zip(_query_names(embedding), points.tolist(), strict=False):
        text = truncate(name, 1.8, SMALL_PT)
        lift = span / PANEL_IN * 0.14
        _write(axes, text, (x, y - lift), taken, span, effects=halo, weight="normal")


def _write(
    axes: Axes,
    text: str,
    place: Sequence[float],
    taken: list[tuple[float, float, float, float]],
    span: float,
    *,
    effects: Any,
    weight: str,
) -> None:
    """Write at a position, or a little above or below to avoid other text, or not at all."""
    inch = span / PANEL_IN
    wide, high = text_width(text, LABEL_PT, bold=True) * inch / 2, 0.16 * inch / 2
    (left, right), (bottom, top) = axes.get_xlim(), axes.get_ylim()
    x = min(max(float(place[0]), left + wide), right - wide)
    for step in range(_STEPS):
        y = float(place[1]) + (1 if step % 2 else -1) * ((step + 1) // 2) * high
        y = min(max(y, bottom + high), top - high)
        box = (x - wide, x + wide, y - high, y + high)
        if not any(_overlap(box, other) for other in taken):
            break
    else:
        return  # farther away it would seem to name other points; the legend lists it
    taken.append(box)
    axes.text(
        x, y, text, ha="center", va="center", fontsize=LABEL_PT if weight == "bold" else SMALL_PT,
        weight=weight, color=INK, path_effects=effects, parse_math=False, zorder=8,
    )  # fmt: skip


def _overlap(a: Sequence[float], b: Sequence[float]) -> bool:
    return a[0] < b[1] and b[0] < a[1] and a[2] < b[3] and b[2] < a[3]


def _legend(
    page: Canvas,
    left: float,
    top: float,
    embedding: Embedding,
    groups: list[Group],
    colouring: dict[str, Any] | None,
    values: Any,
) -> None:
    axes = page.axes(left, top, LEGEND_IN - 0.1, PANEL_IN)
    axes.set(xlim=(0, LEGEND_IN - 0.1), ylim=(PANEL_IN, 0))
    axes.set_axis_off()
    room = LEGEND_IN - 0.1
    at = 0.1

    def entry(marker: str, colour: str, text: str, size: float) -> None:
        nonlocal at
        axes.scatter([0.09], [at + 0.07], marker=marker, s=size, color=colour, linewidths=0)
        page.text(text, left + 0.22, top + at, size=SMALL_PT)
        at += 0.07 + line_height(SMALL_PT, text.count("\n") + 1)

    if embedding.query_names:
        entry("*", INK, "query", 80)
        at += 0.1
    if colouring is None:
        return
    page.text(
        truncate(str(colouring["title"]), room, LABEL_PT, bold=True), left, top + at, bold=True
    )
    at += 0.25
    if colouring["classes"] is None:
        bar = page.axes(left + 0.02, top + at, 0.16, 2.4)
        ramp = np.linspace(1, 0, 256)[:, None]
        bar.imshow(ramp, aspect="auto", cmap=colormaps[CONTINUOUS], extent=(0, 1, 0, 1))
        bar.set(xticks=[], yticks=[])
        bar.grid(visible=False)
        for share, text in zip((0.0, 0.5, 1.0), range_texts(*number_range(values)), strict=True):
            page.text(text, left + 0.26, top + at + (1 - share) * 2.4 - 0.07, size=SMALL_PT)
        at += 2.4 + 0.2
        groups = [group for group in groups if group.colour == OTHER]
    for group in groups:
        count = f"{len(group.members):,}"
        name = truncate(
            group.name, room - 0.32 - text_width(f"  {count}", SMALL_PT), SMALL_PT, lines=3
        )
        entry(_marker(group, len(embedding)), group.colour, f"{name}  {count}", 30)


def _note(embedding: Embedding) -> str:
    parts = [embedding.note]
    if (
        embedding.shown is not None
        and len(embedding.shown) < len(embedding)
        and embedding.points.shape[1] == 2
    ):
        parts.append(f"{len(embedding.shown)} of {len(embedding):,} images shown as thumbnails")
    named = len(embedding.query_names)
    if named > _NAMED_QUERIES:
        parts.append(f"the first {_NAMED_QUERIES} of {named} queries named")
    if embedding.explained is None:
        parts.append("near points are similar; distances between groups mean little")
    return "; ".join(parts)


def _query_names(embedding: Embedding) -> list[str]:
    """The names of the first queries, for captions."""
    short = short_names(embedding.query_names[:_NAMED_QUERIES])
    return [replace_missing_glyphs(name) for name in short]
