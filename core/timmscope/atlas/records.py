"""Reads the records of the units of an atlas: one line of the journal for each."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from timmscope.results import Provenance
from timmscope.store.records import RECORDS, Journal, Record
from timmscope_registry import StoreCorrupted

from .files import holds, image_name, patches_name
from .result import Atlas

_NOTHING: Record = {
    "scores": [], "best_steps": [], "refused": None, "image_ids": [], "values": [],
    "positions": [], "boxes": [], "names": [], "field": "", "lost": [],
}  # fmt: skip


def known_units(folder: Path, journal: Journal) -> dict[int, Record]:
    """Return the records of the units that are made; a later one of a unit replaces the earlier."""
    with records_of_others(folder):
        return {int(record["unit"]): record for record in journal}


def has_pictures(folder: Path, record: Record) -> bool:
    """Return whether the pictures of a unit are still there, as they were written."""
    with records_of_others(folder):
        return all(holds(folder, name, digest) for name, digest in digests_of(record).items())


def digests_of(record: Record) -> dict[str, str]:
    """Return the digest of each picture of a unit, by its name."""
    unit = int(record["unit"])
    found = {image_name(unit, n): each for n, each in enumerate(record["images_sha256"])}
    if record["patches_sha256"] is not None:
        found[patches_name(unit)] = record["patches_sha256"]
    return found


def atlas_of(
    folder: Path,
    known: dict[int, Record],
    plan: list[int],
    *,
    provenance: Provenance,
    store: dict[str, str],
    layer: str,
    technique: str,
    k: int,
    per_page: int,
) -> Atlas:
    """Return the atlas of all units of a plan, of which some may still be missing.

    Args:
        folder: folder of the atlas.
        known: records of the units that are made.
        plan: the units, ascending.
        provenance: provenance of the atlas.
        store: fingerprint of the store.
        layer: name of the layer.
        technique: the technique, as a text.
        k: number of patches per unit.
        per_page: units per sheet.

    Raises:
        StoreCorrupted: a record is of something else.
    """
    with records_of_others(folder):
        records = [known.get(unit, _NOTHING) for unit in plan]
        made = [known[unit] for unit in plan if unit in known]
        images = max((len(record["scores"]) for record in made), default=0)

        def padded(key: str, length: int, fill: Any) -> torch.Tensor:
            rows = [[fill if each is None else each for each in record[key]] for record in records]
            return torch.tensor([row + [fill] * (length - len(row)) for row in rows])

        nan, count = float("nan"), len(plan)
        return Atlas(
            provenance=provenance,
            store=store,
            layer=layer,
            technique=technique,
            units=torch.tensor(plan),
            scores=padded("scores", images, nan).float().reshape(count, images),
            best_steps=padded("best_steps", images, -1).long().reshape(count, images),
            refused={
                str(record["unit"]): str(record["refused"])
                for record in made
                if record["refused"] is not None
            },
            image_ids=padded("image_ids", k, -1).long().reshape(count, k),
            values=padded("values", k, nan).float().reshape(count, k),
            positions=padded("positions", k, [-1] * 2).long().reshape(count, k, 2),
            boxes=padded("boxes", k, [-1] * 4).long().reshape(count, k, 4),
            names=[list(map(str, record["names"])) for record in records],
            fields=[str(record["field"]) for record in records],
            lost=sorted({int(each) for record in made for each in record["lost"]}),
            digests={n: digest for each in made for n, digest in digests_of(each).items()},
            per_page=per_page,
        ).placed_in(folder)


@contextmanager
def records_of_others(folder: Path) -> Iterator[None]:
    """Report records that are none of an atlas, although their digests are right.

    Raises:
        StoreCorrupted: what reads them has met another form.
    """
    try:
        yield
    except (LookupError, TypeError, ValueError, AttributeError) as error:
        raise StoreCorrupted(
            f"{folder / RECORDS} holds something else than units of an atlas "
            f"({type(error).__name__}: {error}): delete it, and every unit is made again"
        ) from error
