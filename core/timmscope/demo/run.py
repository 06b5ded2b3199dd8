"""The demo runs every family once with real weights, on photographs, and writes a report."""

from __future__ import annotations

import os
import platform
import shutil
from contextlib import suppress
from datetime import datetime
from pathlib import Path
from typing import Any

import torch
from jinja2 import Environment, PackageLoader, StrictUndefined

from timmscope.demo import sections
from timmscope.demo.cost import Clock
from timmscope.demo.dataset import require_extras, write_data_set, write_whole
from timmscope.demo.tour import FEATURES, LAYERS, MODEL, Tour, in_python, in_shell
from timmscope.drawing.table import cell_text
from timmscope.images import FolderSource
from timmscope.index import VectorIndex
from timmscope.mining import mine
from timmscope.models import HookedModel, load_model
from timmscope.results.result import environment_versions
from timmscope.store import Store
from timmscope.store.files import disk_error
from timmscope_registry import StoreCorrupted, StoreError, StoreMismatch

SECTIONS = {
    "predictions": sections.predictions,
    "units": sections.units,
    "neighbours": sections.neighbours,
    "map": sections.whole_map,
    "explanations": sections.explanations,
    "synthesis": sections.synthesis,
    "attack": sections.attack,
    "style": sections.style,
}
_MARK = ".timmscope-demo"
"""File that marks a folder as made by a demo."""


def run_demo(out: str | Path, images: str | Path | None = None) -> Path:
    """Mine images, run a technique of every family, and write ``OUT/report.html``.

    ``OUT/demo.scope`` is the store, which a second run reuses if model, images and layers are the
    same; ``OUT/results`` holds what the techniques returned.

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
    out, clock = Path(out), Clock()
    with clock.step("model"):
        model = load_model(MODEL)
    with clock.step("images"):
        folder = Path(images) if images is not None else write_data_set(out / "images")
        source = FolderSource(folder)
    with clock.step("mining"):
        store = _store(model, source, out / "demo.scope")
    with clock.step("index"):
        VectorIndex.of(store.layer(FEATURES), keep=True)
    tour = Tour(model, store, source, out, own=images is not None)
    shown = {}
    for name, make in SECTIONS.items():
        with clock.step(name):
            shown[name] = make(tour)
    flags = [word for layer in LAYERS for word in ("--layer", layer)]
    page = render(
        facts=_facts(tour),
        own=tour.own,
        classes=len(tour.labels),
        levels=round(sections.EPSILON * 255),
        needed=3 * sections.PERPLEXITY + 1,
        shown=shown,
        steps=clock.steps,
        total=clock.total(),
        model=in_python(MODEL),
        store=in_python(store.path),
        mined=in_shell("mine", MODEL, folder, "--output", store.path, *flags),
        unreadable=store.images.unreadable(),
        made=_made(),
    )
    report = out / "report.html"
    write_whole(report, page.encode("utf-8", "backslashreplace"))
    return report


def render(**values: Any) -> str:
    """The report as HTML; every text is escaped."""
    environment = Environment(
        loader=PackageLoader("timmscope.demo", "."),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["cell"] = cell_text
    return environment.get_template("report.html.j2").render(values)


def _store(model: HookedModel, source: FolderSource, folder: Path) -> Store:
    """Return the store of these images; a store that an earlier demo made is replaced if needed.

    Raises:
        StoreError: the folder holds a store that is not a demo's.
    """
    mark = folder.parent / _MARK
    if folder.exists() and not mark.exists():
        raise StoreError(
            f"{folder} was not made by a demo, which would replace it; choose another --output"
        )
    try:
        mark.parent.mkdir(parents=True, exist_ok=True)
        mark.write_text("timmscope demo made this folder and may replace its store\n")
    except OSError as error:
        raise StoreError(
            f"{folder.parent}: cannot write here ({error.strerror}); choose another --output"
        ) from error
    with suppress(StoreMismatch, StoreCorrupted):
        store = mine(model, source, folder, layers=LAYERS)
        store.layer(FEATURES).statistics()
        if store.manifest.images.location == source.location:
            return store
    try:
        shutil.rmtree(folder)
    except OSError as error:
        raise disk_error(error, folder) from error
    return mine(model, source, folder, layers=LAYERS)


def _facts(tour: Tour) -> dict[str, str]:
    parameters = sum(parameter.numel() for parameter in tour.model.module.parameters())
    units = sum(record.channels for record in tour.store.layers.values())
    lost = int((~tour.store.images.readable).sum())
    return {
        "model": tour.model.id,
        "parameters": f"{parameters / 1e6:.1f} million",
        "input": f"{tour.model.input_size[1]}×{tour.model.input_size[2]} px",
        "classes": f"{tour.model.num_classes}",
        "images": f"{len(tour.store) - lost}" + (f", {lost} unreadable" if lost else ""),
        "units recorded": f"{units:,}".replace(",", " "),
    }


def _made() -> str:
    versions = ", ".join(f"{name} {number}" for name, number in environment_versions().items())
    when = datetime.now().astimezone().strftime("%Y-%m-%d %H:%M")
    cores = os.cpu_count() or 1
    machine = f"{cores} processor{'s' if cores > 1 else ''}, {torch.get_num_threads()} threads"
    return f"{when} · {versions} · Python {platform.python_version()} · {machine}"
