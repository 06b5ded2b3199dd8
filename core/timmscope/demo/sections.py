"""What each section of the report shows: the techniques that it runs, and on what."""

from __future__ import annotations

from typing import cast

import torch

from timmscope.demo import choose
from timmscope.demo.tour import FEATURES, LATE, MIDDLE, Exhibit, Tour, in_python
from timmscope.drawing import format_number
from timmscope.index import strongest
from timmscope.techniques import Synthesis

UNITS, PATCHES, NEIGHBOURS = 4, 6, 6
FIELDS = {MIDDLE: "spatial", LATE: "effective"}
"""Which receptive field a patch is. The late layer's spatial one is nearly the whole image."""
NO_CROPS = '"-" not in name'
"""Which of the demo's images units are shown on: six photographs say more of one than six crops."""
PERPLEXITY = 30
"""Of the map; t-SNE looks at three times as many neighbours of each image."""
SYNTHESIS_STEPS, STYLE_STEPS, ATTACK_STEPS = 128, 100, 20
EPSILON = 0.008
CONTENT, STYLE = "china", "flower"
"""Of the demo's photographs, the one that is painted and the one whose style is taken."""

_FEATURES = {"layer": FEATURES}


def predictions(tour: Tour) -> list[Exhibit]:
    """What the model says of several photographs."""
    titles, rows = [], []
    for image_id, classes, shares in tour.examples:
        name, named = tour.name(image_id), [tour.model.class_name(label) for label in classes]
        lines = [f"{share:.1%} {label}" for share, label in zip(shares, named, strict=True)]
        titles.append("\n".join([name, *lines]))
        rows.append({"image": name, "class": named[0], "probability": shares[0]})
    sheet = tour.sheet([guess.image_id for guess in tour.examples], titles, rows, columns=3)
    python = f"model(model.images({in_python(tour.pair)})).softmax(1).topk(5)"
    return [tour.exhibit(sheet, "Photographs and their classes", "predictions", python=python)]


def units(tour: Tour) -> list[Exhibit]:
    """The patches that drive some units of a middle and a late layer highest."""
    where = None if tour.own else NO_CROPS
    exhibits = []
    for layer, depth in ((MIDDLE, "a third of the way in"), (LATE, "two thirds of the way in")):
        if found := ",".join(map(str, choose.units(tour.store, layer, UNITS, PATCHES, where))):
            title = f"Units of {layer}, {depth}"
            fields = {"units": found, "k": PATCHES, "field": FIELDS[layer], "view": "none"}
            call = {"layer": layer, "where": where}
            exhibits.append(tour.show(title, "top-patches", tour.store, (), fields, call))
    return exhibits


def neighbours(tour: Tour) -> list[Exhibit]:
    """The images nearest to two queries, by pixels beside by features."""
    if tour.store.images.readable.sum() < 2:
        return []
    note = ""
    if not tour.own:
        by_pixels, by_features = choose.same_photograph(tour.store, FEATURES)
        note = (
            f"Over all {len(tour.store)} images, the nearest other one is a part of the same "
            f"photograph in {by_pixels:.0%} of cases by pixels, in {by_features:.0%} by features."
        )
    title, fields = "Nearest images by pixels and by features", {"k": NEIGHBOURS}
    return [tour.show(title, "nearest-neighbours", tour.store, tour.pair, fields, _FEATURES, note)]


def whole_map(tour: Tour) -> list[Exhibit]:
    """All images laid out by what the last layer answers, and the page to explore them on."""
    if tour.store.images.readable.sum() < 3 * PERPLEXITY + 1:
        return []
    fields = {"method": "tsne", "neighbours": PERPLEXITY}
    title = "Map of all images"
    return [tour.show(title, "embedding-map", tour.store, (), fields, _FEATURES)]


def explanations(tour: Tour) -> list[Exhibit]:
    """Saliency and Grad-CAM of two images."""
    return [
        tour.show(title, name, tour.model, tour.pair, {}, {"objective": "top"})
        for title, name in (("Saliency", "saliency"), ("Grad-CAM", "grad-cam"))
    ]


def synthesis(tour: Tour) -> list[Exhibit]:
    """Images made for the classes of two images, and the best photographs of these classes."""
    classes = [tour.class_text(label) for label in tour.labels]
    goal = {"objective": f"class:{'|'.join(classes)}"}
    fields, name = {"steps": SYNTHESIS_STEPS}, "activation-maximization"
    made = tour.show("Images made for classes", name, tour.model, (), fields, goal)
    result = cast(Synthesis, made.result)
    with torch.no_grad():
        shares = tour.model(result.images).softmax(1)
    best, titles, rows = [], [], []
    for row, label in enumerate(tour.labels):
        hits = strongest(tour.store, f"class:{classes[row]}", 1, model=tour.model)
        logit, name = float(hits.scores[0, 0]), tour.model.class_name(label)
        best.append(int(hits.ids[0, 0]))
        titles.append(f"{tour.name(best[-1])}\n“{name}”: logit {format_number(logit)}")
        rows.append(
            {
                "class": name,
                "best photograph": tour.name(best[-1]),
                "its logit": logit,
                "logit of the made image": float(result.final_scores[row]),
                "its probability": float(shares[row, label]),
            }
        )
    sheet, title = tour.sheet(best, titles, rows, columns=2), "Photographs with the highest logits"
    python = f'[strongest(store, f"class:{{name}}", 1).ids[0, 0] for name in {in_python(classes)}]'
    return [made, tour.exhibit(sheet, title, "best-photographs", python=python)]


def attack(tour: Tour) -> list[Exhibit]:
    """PGD on two images: each is to become the class of the other."""
    # Without a second class the attack is content with any other answer.
    targets = [tour.class_text(label) for label in tour.labels[::-1]]
    fields = {"epsilon": EPSILON, "steps": ATTACK_STEPS}
    call = {"targets": targets if len(targets) == 2 else None}
    return [tour.show("Before and after the attack", "pgd", tour.model, tour.pair, fields, call)]


def style(tour: Tour) -> list[Exhibit]:
    """One image in the manner of another; of the user's own, by rule."""
    if len(tour.examples) < 2:
        return []
    ids = [guess.image_id for guess in tour.examples]
    named = {tour.name(image_id): image_id for image_id in tour.candidates}
    content, manner = ids[0], choose.least_similar(tour.store, FEATURES, ids)
    if not tour.own and CONTENT in named and STYLE in named:
        content, manner = named[CONTENT], named[STYLE]
    title = f"{tour.name(content)} in the style of {tour.name(manner)}"
    files, fields = [tour.source.file(content)], {"steps": STYLE_STEPS}
    call = {"styles": tour.source.file(manner)}
    return [tour.show(title, "neural-style", tour.model, files, fields, call)]
