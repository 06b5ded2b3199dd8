"""The report's sections that look at the data: predictions, units, neighbours, a map."""

from __future__ import annotations

from dataclasses import replace
from typing import Protocol, cast

from torch import Tensor

from timmscope.demo import choose
from timmscope.demo.inline import data_uri, png_uri
from timmscope.demo.kept import configured, digest, kept
from timmscope.demo.tour import FEATURES, LATE, MIDDLE, Tour
from timmscope.demo.view import Picture, Section, Strip
from timmscope.drawing.style import number
from timmscope.receptive_fields import Box, FieldKind, ReceptiveField, receptive_field
from timmscope.store import TopEntry
from timmscope.techniques import RepresentationTechnique

UNITS, PATCHES, NEIGHBOURS = 4, 6, 6
PERPLEXITY = 30
"""Of the map, for which t-SNE looks at three times as many neighbours of each image."""
FIELDS: dict[str, FieldKind] = {MIDDLE: "spatial", LATE: "effective"}
"""Which receptive field a patch is: 35 and 73 px of 224. The late layer's spatial one is 211."""


def predictions(tour: Tour) -> Section:
    """What the model says of several photographs."""
    paths = ", ".join(tour.quoted(tour.file(g.image_id)) for g in tour.examples[:2])
    return Section(
        id="predictions",
        title="What the model sees",
        lead=(
            "Each photograph with the five classes that the model finds most probable. The bars "
            "are probabilities; a long first bar is a confident answer, not always a right one."
        ),
        python=f"model(model.images([{paths}])).softmax(1).topk(5)",
        cards=[tour.card(guess) for guess in tour.examples],
    )


def units(tour: Tour) -> Section:
    """The patches that drive some units of a middle and a late layer highest."""
    strips: list[Strip] = []
    example = (MIDDLE, 0)
    for layer, where in ((MIDDLE, "a third of the way in"), (LATE, "two thirds of the way in")):
        found = choose.units(tour.store, layer, UNITS, PATCHES, by_photograph=not tour.own)
        field = receptive_field(tour.model, layer, FIELDS[layer])
        for place, (unit, entries) in enumerate(found):
            example = (layer, unit)
            pictures = [
                Picture(
                    data_uri(_patch(tour, field, entry)),
                    number(entry.value),
                    tour.name(entry.image_id),
                    f"patch of {tour.name(entry.image_id)}",
                )
                for entry in entries
            ]
            group = "" if place else f"{layer}, {where}"
            strips.append(Strip(f"unit {unit}", pictures, group))
    layer, unit = example
    limit = f"; at most {choose.PER_PHOTOGRAPH} patches come from one photograph"
    note = (
        "Numbers are the unit's activation at the centre of the patch. Shown are the units whose "
        "patches stand furthest above the unit's average over all images"
        f"{'' if tour.own else limit}."
    )
    return Section(
        id="units",
        title="What single units look for",
        lead=(
            "A unit is one channel of a layer. Each row shows the places in all images that drive "
            "one unit highest: see what the patches of a row have in common. Early in the network "
            "that is a spot, an edge or a texture; further in, the parts of things."
        ),
        python=f'store.layer("{layer}").top({unit}, k={PATCHES})',
        cli=f"timmscope top {tour.typed(tour.store.path)} {layer} {unit}",
        note=note if strips else "This needs images that differ: there is only one.",
        strips=strips,
    )


class Neighbours(Protocol):
    """What the report reads of the result of `nearest-neighbours`."""

    pixel_ids: Tensor
    pixel_distances: Tensor
    feature_ids: Tensor
    feature_scores: Tensor


def neighbours(tour: Tour) -> Section:
    """Nearest images of two queries, by pixels beside by features."""
    queries = [tour.file(guess.image_id) for guess in tour.pair]
    section = Section(
        id="neighbours",
        title="Why features and not pixels",
        lead=(
            "The images nearest to a query, first by comparing pixels, then by comparing what the "
            "model's last layer answers. Pixels find the same colours in the same places; "
            "features find the same thing, wherever and however large it is."
        ),
        python=(
            f'technique("nearest-neighbours")(k={NEIGHBOURS})('
            f'store, {tour.quoted(queries[0])}, layer="{FEATURES}")'
        ),
        cli=(
            f"timmscope run nearest-neighbours {tour.typed(tour.store.path, queries[0])} "
            f"--layer {FEATURES} --k {NEIGHBOURS}"
        ),
    )
    if int(tour.store.images.readable.sum()) < 2:
        return replace(section, note="This needs at least two images that can be read.")
    search: RepresentationTechnique = configured("nearest-neighbours", k=NEIGHBOURS)
    result = kept(
        tour.out / "results" / "nearest-neighbours",
        search,
        {
            "store": tour.store.manifest.images.fingerprint,
            "weights": tour.model.weights_sha256,
            "layer": FEATURES,
            "queries": [digest(path) for path in queries],
        },
        lambda: search(tour.store, queries, layer=FEATURES, model=tour.model),
    )
    note = "Under each image: Euclidean distance of pixels, cosine similarity of features."
    shares = None if tour.own else choose.same_photograph(tour.store, FEATURES, tour.model)
    if shares is not None:
        note += (
            f" Over all {len(tour.store)} images, the nearest other one is a part of the same "
            f"photograph in {shares[0]:.0%} of cases by pixels, in {shares[1]:.0%} by features."
        )
    return replace(section, strips=_found(tour, cast(Neighbours, result)), note=note)


def whole_map(tour: Tour) -> Section:
    """All images laid out by what the last layer answers, and the page to explore them on."""
    section = Section(
        id="map",
        title="What lies near what",
        lead=(
            "Every image is a point; near points are images that the model's last layer answers "
            "alike. Crops of one photograph gather without anybody having told the model so."
            if not tour.own
            else "Every image is a point; near points are images that the model's last layer "
            "answers alike."
        ),
        python=f'technique("embedding-map")(method="tsne")(store, layer="{FEATURES}")',
        cli=(
            f"timmscope run embedding-map {tour.typed(tour.store.path)} --layer {FEATURES} "
            "--method tsne"
        ),
    )
    needed = 3 * PERPLEXITY + 1
    if int(tour.store.images.readable.sum()) < needed:
        return replace(section, note=f"This needs at least {needed} images that can be read.")
    laid_out: RepresentationTechnique = configured(
        "embedding-map", method="tsne", neighbours=PERPLEXITY
    )
    folder = tour.out / "results" / "embedding-map"
    kept(
        folder,
        laid_out,
        {
            "store": tour.store.manifest.images.fingerprint,
            "weights": tour.model.weights_sha256,
            "layer": FEATURES,
        },
        lambda: laid_out(tour.store, layer=FEATURES, location=tour.folder, model=tour.model),
    )
    return replace(
        section,
        wide=Picture(png_uri(folder / "figure.png"), title="t-SNE map of all images"),
        page="results/embedding-map/map.html",
    )


def _found(tour: Tour, result: Neighbours) -> list[Strip]:
    strips = []
    for row, guess in enumerate(tour.pair):
        query = tour.picture(guess.image_id, detail="query")
        for space, ids, values in (
            ("by pixels", result.pixel_ids[row], result.pixel_distances[row]),
            ("by features", result.feature_ids[row], result.feature_scores[row]),
        ):
            near = [
                tour.picture(int(image_id), detail=number(float(value)))
                for image_id, value in zip(ids, values, strict=True)
            ]
            strips.append(Strip(space, [query, *near]))
    return strips


def _patch(tour: Tour, field: ReceptiveField, entry: TopEntry) -> Tensor:
    pixels = tour.pixels(entry.image_id)
    left, upper, right, lower = _moved_inside(field, entry.position)
    return pixels[:, upper:lower, left:right]


def _moved_inside(field: ReceptiveField, position: tuple[int, int]) -> Box:
    """The cell's field, moved where it leaves the image: all patches have one size."""
    edges = field.box(position, clip=False)
    sides = (edges[2] - edges[0], edges[3] - edges[1])
    limits = (field.image_size[1], field.image_size[0])
    starts = [
        max(0, min(limit - side, edge))
        for limit, side, edge in zip(limits, sides, edges[:2], strict=True)
    ]
    left, upper = starts
    return (left, upper, min(limits[0], left + sides[0]), min(limits[1], upper + sides[1]))
