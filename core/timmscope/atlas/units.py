"""Makes the units of an atlas one by one, so that a stopped one goes on.

The pictures of a unit are written first, then a line of the journal, and both are on the disk
before the next unit. Each unit is a call of the technique of its own, so its image depends on the
seed and on nothing else.
"""

from __future__ import annotations

import hashlib
import io
import math
import warnings
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from timmscope.drawing import png_bytes
from timmscope.durable import make_folder
from timmscope.number_list import is_whole
from timmscope.objectives import channel
from timmscope.progress import remark, task
from timmscope.results import Provenance, load_result
from timmscope.results.result import RECORD
from timmscope.results.saving import remove_unfinished
from timmscope.store.files import TEMPORARY, memory_as_store_error, write_bytes
from timmscope.store.lock import StoreLock
from timmscope.store.records import RECORDS, Journal, Record
from timmscope.techniques import SynthesisTechnique
from timmscope.techniques.lookup import settings_text
from timmscope.techniques.warn_once import each_warning_once
from timmscope_registry import StoreError, TechniqueError, TimmscopeError

from .files import NAME, UNITS, image_name, inside, page_name, patches_name
from .records import atlas_of, has_pictures, known_units
from .result import Atlas
from .top_patches import TopPatches

if TYPE_CHECKING:
    from timmscope.models import HookedModel
    from timmscope.store import Store, StoreLayer

_WHAT = "an atlas"
_NAMED = 5


@dataclass(frozen=True)
class Job:
    """An atlas before it is made: its layer, model, technique, patches, and what decides it."""

    layer: StoreLayer
    model: HookedModel
    technique: SynthesisTechnique
    patches: TopPatches
    folder: Path
    k: int
    seed: int
    per_page: int
    facts: Provenance
    settings: dict[str, Any]

    def atlas(self, known: dict[int, Record], plan: list[int]) -> Atlas:
        """Return the atlas of a plan, by the records of units that are made."""
        return atlas_of(
            self.folder,
            known,
            plan,
            provenance=self.facts,
            store=self.settings["store"],
            layer=self.layer.name,
            technique=settings_text(self.technique),
            k=self.k,
            per_page=self.per_page,
        )


def make_units(job: Job, wanted: Sequence[int]) -> Atlas:
    """Make the units that are missing, and draw the sheets."""
    folder = job.folder
    try:
        make_folder(folder)
        make_folder(inside(folder, UNITS))
    except OSError as error:
        raise StoreError(
            f"{folder}: cannot create this folder ({error.strerror}); choose another"
        ) from error
    for name in (RECORDS, f"{NAME}.json", RECORD):
        inside(folder, name)
    with StoreLock(folder, NAME), memory_as_store_error(folder):
        journal = Journal(folder, job.settings, NAME, _WHAT, before=[UNITS])
        known = known_units(folder, journal)
        plan = sorted({*wanted, *known})
        missing = [
            unit for unit in plan if unit not in known or not has_pictures(folder, known[unit])
        ]
        if not missing and (finished := _finished(job, plan)) is not None:
            return finished
        job.patches.rank(missing)
        _complete(job, journal, known, plan, missing)
        atlas = job.atlas(known, plan)
        _remove_unfinished(folder)
        atlas.save(folder)
        _remove_pages_after(folder, atlas.pages)
    if atlas.lost:
        _warn_of_lost(job.layer.store, atlas.lost)
    return atlas


def _finished(job: Job, plan: list[int]) -> Atlas | None:
    """Return the atlas that is saved, if it is of the same units and sheets."""
    with suppress(TimmscopeError):
        saved = load_result(job.folder, Atlas)
        sheets = (job.folder / page_name(number) for number in range(saved.pages))
        same = saved.units.tolist() == plan and saved.per_page == job.per_page
        if same and all(sheet.is_file() for sheet in sheets):
            return saved
    return None


def _complete(
    job: Job, journal: Journal, known: dict[int, Record], plan: list[int], missing: list[int]
) -> None:
    """Make the missing units, and each sheet as soon as all of its units are there."""
    own_warnings = each_warning_once()
    places, left = {unit: place for place, unit in enumerate(plan)}, {*missing}
    with task(f"atlas of {job.layer.name}", total=len(plan)) as advance:
        advance(len(plan) - len(missing))
        for unit in missing:
            with own_warnings():
                record = _unit(job, unit)
            if record != known.get(unit):
                journal.add(record)
            known[unit] = record
            left.remove(unit)
            page = places[unit] // job.per_page
            on_page = plan[page * job.per_page : (page + 1) * job.per_page]
            if left and left.isdisjoint(on_page):  # at the end, all are saved
                _write_page(job, job.atlas(known, plan), page)
            if refused := sum(each["refused"] is not None for each in known.values()):
                remark(f"{refused} without an image")
            advance(1)


def _unit(job: Job, unit: int) -> Record:
    """Make the pictures of a unit, and return its record."""
    files: dict[str, bytes] = {}
    record: Record = {"unit": unit, "scores": [], "best_steps": [], "refused": None}
    try:
        result = job.technique(job.model, channel(job.layer.name, unit), seed=job.seed)
    except TechniqueError as error:
        record["refused"] = " ".join(str(error).split())
    else:
        files = {image_name(unit, n): png_bytes(image) for n, image in enumerate(result.images)}
        record["scores"] = [_finite(score) for score in result.final_scores.tolist()]
        record["best_steps"] = result.best_step.tolist()
    record["images_sha256"] = [hashlib.sha256(data).hexdigest() for data in files.values()]
    facts, patches = job.patches.of_unit(unit)
    record["patches_sha256"] = None
    if patches is not None:
        files[patches_name(unit)] = patches
        record["patches_sha256"] = hashlib.sha256(patches).hexdigest()
    for name, data in files.items():
        write_bytes(inside(job.folder, name), data)
    return record | facts


def _write_page(job: Job, atlas: Atlas, number: int) -> None:
    """Write a sheet while the atlas is made; `save` writes all of them again, together."""
    buffer = io.BytesIO()
    atlas.page(number).savefig(buffer, format="png", dpi=150)
    write_bytes(job.folder / page_name(number), buffer.getvalue())


def _finite(score: float) -> float | None:
    return score if math.isfinite(score) else None


def _remove_unfinished(folder: Path) -> None:
    """Remove what a killed process has left of its files."""
    remove_unfinished(folder)
    for file in (*folder.glob(f"*{TEMPORARY}"), *(folder / UNITS).glob(f"*{TEMPORARY}")):
        file.unlink(missing_ok=True)


def _remove_pages_after(folder: Path, pages: int) -> None:
    """Remove the sheets of an atlas that had fewer units on each."""
    for file in folder.glob("page-*.png"):
        number = file.stem.removeprefix("page-")
        if is_whole(number) and int(number) >= pages:
            file.unlink(missing_ok=True)


def _warn_of_lost(store: Store, lost: list[int]) -> None:
    names = [store.images.paths[image] for image in lost[:_NAMED]]
    more = f" and {len(lost) - _NAMED} more" if len(lost) > _NAMED else ""
    warnings.warn(
        f"{len(lost)} images of {store.path.name} can no longer be read, and their patches are "
        f"grey: {', '.join(names)}{more}",
        stacklevel=4,
    )
