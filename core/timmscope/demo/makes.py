"""The report's sections that run a technique: explanations, synthesis, attack, style."""

from __future__ import annotations

import json
import shlex
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from timmscope.demo import choose
from timmscope.demo.inline import curve_svg, data_uri, gradient, legend
from timmscope.demo.kept import configured, digest, kept
from timmscope.demo.tour import FEATURES, MODEL, Tour
from timmscope.demo.view import (
    Attacked,
    Card,
    ColourBar,
    Curve,
    Explained,
    Picture,
    Section,
    Stylised,
    Synthesised,
)
from timmscope.drawing import HeatScale, colourise, overlay
from timmscope.drawing.style import number
from timmscope.techniques import (
    Adversarial,
    AttackTechnique,
    Attribution,
    AttributionTechnique,
    StyleTechnique,
    SynthesisTechnique,
)
from timmscope.techniques.attack_figure import magnified

STYLE = "flower"
"""Of the demo's photographs, the one whose style is taken."""
CONTENT = "china"
STYLE_STEPS = 100
SYNTHESIS_STEPS = 128
EPSILON, ATTACK_STEPS = 0.008, 20


def explanations(tour: Tour) -> Section:
    """Saliency and Grad-CAM of the first two images."""
    files = [tour.file(guess.image_id) for guess in tour.pair]
    results = [_attribution(tour, name, files) for name in ("saliency", "grad-cam")]
    explained = []
    for row, guess in enumerate(tour.pair):
        label = results[0].labels[row]
        original = tour.picture(guess.image_id, detail=f"why “{label}”?")
        explained.append(Explained(original, [_maps(result, row) for result in results]))
    first = tour.quoted(files[0])
    return Section(
        id="explanations",
        title="Where the answer comes from",
        lead=(
            "Two explanations of the most probable class. Saliency is how strongly each pixel "
            "would change the class's score; Grad-CAM is where the last feature map speaks for the "
            "class. Bright is much; the overlay shows where that is in the image."
        ),
        python=f'technique("grad-cam")()(model, {first}, "top")',
        cli=f"timmscope run grad-cam {MODEL} {tour.typed(files[0])} --target top",
        note=(
            "Colours end at the value that 99.5 % of the map stay below. Saliency is fine but "
            "noisy; Grad-CAM is smooth, because the last feature map has 7×7 cells."
        ),
        explained=explained,
    )


def _attribution(tour: Tour, name: str, files: list[Path]) -> Attribution:
    explain: AttributionTechnique = configured(name)
    return kept(
        tour.out / "results" / name,
        explain,
        _call(tour, files, objective="top"),
        lambda: explain(tour.model, files, "top"),
    )


def _maps(result: Attribution, row: int) -> tuple[Picture, ColourBar, Picture]:
    name = result.provenance.technique.rpartition(":")[2]
    scale = HeatScale.of(result.maps[row])
    name = {"saliency": "Saliency", "grad-cam": "Grad-CAM"}.get(name, name)
    shown = Picture(data_uri(colourise(result.maps[row], scale)), name, title=f"{name} map")
    over = data_uri(overlay(result.images[row], result.maps[row]))
    bar = ColourBar(gradient(scale), number(scale.low), number(scale.high))
    return shown, bar, Picture(over, f"{name} over the image", title=f"{name} over the image")


def synthesis(tour: Tour) -> Section:
    """Images made for the classes of the first two images."""
    made = [_synthesised(tour, guess) for guess in tour.pair]
    target = f"class:{tour.class_text(tour.pair[0].top[0][0])}"
    return Section(
        id="synthesis",
        title="What the model dreams of",
        lead=(
            "Images that were optimised from noise until the model could not be surer of a class, "
            "beside the photograph of the data set that the class's score is highest for. See "
            "which parts come again and again: that is what the model means by the word."
        ),
        python=(
            f'technique("activation-maximization")(steps={SYNTHESIS_STEPS})'
            f"(model, {json.dumps(target)})"
        ),
        cli=(
            f"timmscope run activation-maximization {MODEL} --target {shlex.quote(target)} "
            f"--steps {SYNTHESIS_STEPS}"
        ),
        synthesised=made,
    )


def _synthesised(tour: Tour, guess: choose.Guess) -> Synthesised:
    label = guess.top[0][0]
    dream: SynthesisTechnique = configured("activation-maximization", steps=SYNTHESIS_STEPS)
    result = kept(
        tour.out / "results" / f"activation-maximization-{label}",
        dream,
        _call(tour, [], objective=f"class:{label}"),
        lambda: dream(tour.model, label),
    )
    with torch.no_grad():
        share = float(tour.model(result.images).softmax(1)[0, label])
    score, nearest = choose.best_logit(tour.store, label)
    name = tour.model.class_name(label)
    reached = number(float(result.final_scores[0]))
    return Synthesised(
        made=Picture(
            data_uri(result.images[0]),
            f"“{name}”, from noise",
            f"logit {reached}, probability {share:.1%}",
            f"image made for {name}",
        ),
        real=tour.picture(nearest, f"“{name}”, the best photograph", f"logit {number(score)}"),
        curve=Curve(
            curve_svg(
                {"": result.scores[:, 0]},
                value="logit",
                reference=("best photograph", score),
            )
        ),
    )


def attack(tour: Tour) -> Section:
    """PGD on the first two images: each is to become the class of the other."""
    files = [tour.file(guess.image_id) for guess in tour.pair]
    labels = [guess.top[0][0] for guess in tour.pair]
    # Without a second class the attack is content with any other answer.
    targets = labels[::-1] if len(set(labels)) == len(files) == 2 else None
    push: AttackTechnique = configured("pgd", epsilon=EPSILON, steps=ATTACK_STEPS)
    result = kept(
        tour.out / "results" / "pgd",
        push,
        _call(tour, files, targets=str(targets)),
        lambda: push(tour.model, files, targets=targets),
    )
    first = tour.quoted(files[0])
    wanted = None if targets is None else tour.class_text(targets[0])
    aim = "each image is to be taken for the other" if targets else "the answer is to be wrong"
    settings = f"(epsilon={EPSILON}, steps={ATTACK_STEPS})"
    return Section(
        id="attack",
        title="How little it takes to fool it",
        lead=(
            f"No value of a pixel may change by more than {EPSILON * 255:.0f} of 255 levels, and "
            f"{aim}. The change in the middle is magnified, because nobody would see it "
            "otherwise: before and after look the same to us, and not at all to the model."
        ),
        python=f'technique("pgd"){settings}(model, {first}'
        + (f", targets={json.dumps(wanted)})" if wanted else ")"),
        cli=f"timmscope run pgd {MODEL} {tour.typed(files[0])} "
        + (f"--target {shlex.quote(wanted)} " if wanted else "")
        + f"--epsilon {EPSILON} --steps {ATTACK_STEPS}",
        attacked=[_attacked(tour, result, row) for row in range(len(files))],
    )


def _attacked(tour: Tour, result: Adversarial, row: int) -> Attacked:
    change, factor = magnified(result.images[row] - result.originals[row])
    if bool(result.success_8bit[row]):
        verdict = "fooled, also as an 8-bit file"
    elif bool(result.success[row]):
        verdict = "fooled, but no longer as an 8-bit file"
    else:
        verdict = "not fooled"
    with torch.no_grad():
        both = torch.stack([result.originals[row], result.images[row]])
        shares = tour.model(both).softmax(1).cpu()

    def card(image: Tensor, share: Tensor, caption: str) -> Card:
        top = share.topk(min(3, len(share)))
        found = zip(top.indices.tolist(), top.values.tolist(), strict=True)
        return Card(Picture(data_uri(image), caption), tour.bars([*found]))

    size = f"largest change {float(result.linf[row]) * 255:.1f}/255"
    return Attacked(
        before=card(result.originals[row], shares[0], "original"),
        change=Picture(data_uri(change, lossless=True), f"change ×{factor:.0f}", size),
        after=card(result.images[row], shares[1], "attacked"),
        verdict=verdict,
    )


def style(tour: Tour) -> Section:
    """One image in the manner of another."""
    content, manner = _content_and_style(tour)
    section = Section(
        id="style",
        title="Content here, style from there",
        lead=(
            "An image whose deep activations match one photograph and whose statistics of shallow "
            "activations match another: the things of the first in the colours and textures of "
            "the second."
        ),
        python="",
    )
    if manner is None:
        return replace(section, note="This needs at least two images that can be read.")
    files = [tour.file(content), tour.file(manner)]
    paint: StyleTechnique = configured("neural-style", steps=STYLE_STEPS)
    result = kept(
        tour.out / "results" / "neural-style",
        paint,
        _call(tour, files),
        lambda: paint(tour.model, files[0], files[1]),
    )
    # The page shows what was weighed against each other, not each layer's part.
    course = result.loss_curves()
    weighed: tuple[str, ...] = ("total", "style", "content")
    curves = {name: course[name] for name in weighed if name in course}
    shown = Stylised(
        pictures=[
            tour.picture(content, detail="content"),
            tour.picture(manner, detail="style"),
            Picture(
                data_uri(result.images[0]),
                f"{tour.name(content)} × {tour.name(manner)}",
                f"after {result.losses.shape[1] - 1} steps",
            ),
        ],
        curve=Curve(curve_svg(curves, value="loss", log=True), legend(curves)),
    )
    names = [tour.quoted(path) for path in files]
    return replace(
        section,
        python=f'technique("neural-style")(steps={STYLE_STEPS})(model, {names[0]}, {names[1]})',
        cli=(
            f"timmscope run neural-style {MODEL} {tour.typed(files[0])} "
            f"--style {tour.typed(files[1])} --steps {STYLE_STEPS}"
        ),
        stylised=[shown],
    )


def _content_and_style(tour: Tour) -> tuple[int, int | None]:
    """Ids of the content and style images; by rule, for the user's own images."""
    named = {tour.name(int(i)): int(i) for i in np.flatnonzero(tour.candidates)}
    if not tour.own and CONTENT in named and STYLE in named:
        return named[CONTENT], named[STYLE]
    content = tour.examples[0].image_id
    if int(tour.candidates.sum()) < 2:
        return content, None
    return content, choose.least_similar(tour.store, FEATURES, content, tour.candidates)


def _call(tour: Tour, files: list[Path], **facts: str) -> dict[str, object]:
    return {
        "weights": tour.model.weights_sha256,
        "images": [digest(path) for path in files],
        **facts,
    }
