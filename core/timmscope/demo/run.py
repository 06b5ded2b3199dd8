"""The demo: real weights, real photographs, every family once, as a report that explains itself."""

from __future__ import annotations

import os
import platform
import shutil
from datetime import datetime
from pathlib import Path

import torch

from timmscope.demo import looks, makes
from timmscope.demo.cost import Clock
from timmscope.demo.dataset import require_extras, write_data_set
from timmscope.demo.page import write_page
from timmscope.demo.tour import FEATURES, LAYERS, MODEL, Tour
from timmscope.demo.view import Page
from timmscope.images import FolderSource
from timmscope.index import VectorIndex
from timmscope.mining import mine
from timmscope.models import HookedModel, load_model
from timmscope.results.result import environment_versions
from timmscope.store import Store
from timmscope_registry import StoreCorrupted, StoreMismatch, TimmscopeError

SECTIONS = (
    ("predictions", looks.predictions),
    ("top patches", looks.units),
    ("nearest neighbours", looks.neighbours),
    ("map", looks.whole_map),
    ("saliency, Grad-CAM", makes.explanations),
    ("class visualisation", makes.synthesis),
    ("attack", makes.attack),
    ("style transfer", makes.style),
)


def run_demo(out: str | Path, images: str | Path | None = None) -> Path:
    """Mine images, run a technique of every family, and write ``OUT/report.html``.

    ``OUT/demo.scope`` is the store and ``OUT/results`` holds what the techniques returned; a second
    run takes both up again, as far as model, images and settings are the same.

    Args:
        out: folder to write to.
        images: a folder of images; by default about 300 made of the photographs that come with
            scikit-image and scikit-learn, written to ``OUT/images``.

    Returns:
        the path of the report.

    Raises:
        ModelError: the extra packages are not installed.
        ImageError: the folder holds no image that can be read.
        TimmscopeError: something cannot be written.
    """
    require_extras(photographs=images is None)
    out = Path(out)
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise TimmscopeError(f"cannot write to {out}: {error}") from error
    clock = Clock()
    with clock.step("model"):
        model = load_model(MODEL)
    with clock.step("images"):
        folder = Path(images) if images is not None else write_data_set(out / "images")
        source = FolderSource(folder)
    with clock.step("mining"):
        store = _store(model, source, out / "demo.scope")
    with clock.step("index"):
        VectorIndex.of(store.layer(FEATURES), keep=True)
    tour = Tour(
        model=model, store=store, source=source, folder=folder, out=out, own=images is not None
    )
    sections = []
    for title, make in SECTIONS:
        with clock.step(title):
            sections.append(make(tour))
    return write_page(
        Page(
            subtitle=(
                "A microscope for vision models. This report looks at one model through a data "
                "set: what it answers, what its units look for, why it decides, what it dreams "
                "of, and how it breaks."
            ),
            facts=_facts(tour),
            setup=_setup(tour),
            mined=_mined(tour),
            sections=sections,
            steps=clock.steps,
            total=clock.total(),
            unreadable=[(name, reason) for _, name, reason in store.images.unreadable()],
            made=_made(),
        ),
        out / "report.html",
    )


def _store(model: HookedModel, source: FolderSource, folder: Path) -> Store:
    """The store of these images; one of other images or settings makes room, it is the demo's."""
    try:
        store = mine(model, source, folder, layers=LAYERS)
        store.layer(FEATURES).statistics()
        return store
    except (StoreMismatch, StoreCorrupted):
        shutil.rmtree(folder)
        return mine(model, source, folder, layers=LAYERS)


def _facts(tour: Tour) -> list[tuple[str, str]]:
    parameters = sum(parameter.numel() for parameter in tour.model.module.parameters())
    height, width = tour.model.input_size[1:]
    units = sum(record.channels for record in tour.store.layers.values())
    lost = len(tour.store.images.unreadable())
    images = f"{len(tour.store) - lost}" + (f", {lost} unreadable" if lost else "")
    return [
        ("model", tour.model.id),
        ("parameters", f"{parameters / 1e6:.1f} million"),
        ("input", f"{height}×{width} px"),
        ("classes", f"{tour.model.num_classes}"),
        ("images", images),
        ("units recorded", f"{units:,}".replace(",", " ")),
    ]


def _setup(tour: Tour) -> str:
    return (
        "from timmscope import Store, load_model, technique\n\n"
        f'model = load_model("{MODEL}")\n'
        f"store = Store.open({tour.quoted(tour.store.path)})"
    )


def _mined(tour: Tour) -> str:
    layers = " ".join(f"--layer {name}" for name in LAYERS)
    return (
        f"timmscope mine {MODEL} {tour.typed(tour.folder)} "
        f"--output {tour.typed(tour.store.path)} {layers}"
    )


def _made() -> str:
    versions = ", ".join(f"{name} {number}" for name, number in environment_versions().items())
    when = datetime.now().astimezone().strftime("%Y-%m-%d %H:%M")
    cores = os.cpu_count() or 1
    machine = f"{cores} processor{'s' if cores > 1 else ''}, {torch.get_num_threads()} threads"
    return f"{when} · {versions} · Python {platform.python_version()} · {machine}"
