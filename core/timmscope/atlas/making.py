"""`make_atlas` checks what is asked of an atlas, and opens what it needs."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from timmscope.parameters import from_text
from timmscope.store import Store
from timmscope.store.model import store_model
from timmscope.store.records import RECORDS, read_settings
from timmscope.techniques import SynthesisTechnique
from timmscope.techniques.opening import opening
from timmscope.techniques.unit_numbers import chosen_units
from timmscope_registry import ParameterError

from .files import NAME, atlas_folder, fingerprint, inside, require_same_store
from .result import Atlas
from .top_patches import TopPatches
from .units import Job, make_units

if TYPE_CHECKING:
    import torch

    from timmscope.images import Images
    from timmscope.models import HookedModel
    from timmscope.receptive_fields import FieldKind

MOST_PATCHES = 100
PER_PAGE = 15


def make_atlas(
    store: Store | str | os.PathLike[str],
    layer: str,
    *,
    units: int | str | Sequence[int] | None = None,
    technique: str | SynthesisTechnique = "activation-maximization",
    k: int = 9,
    field: FieldKind = "spatial",
    images: Images | None = None,
    model: HookedModel | None = None,
    out: str | os.PathLike[str] | None = None,
    per_page: int = PER_PAGE,
    seed: int = 0,
    device: str | torch.device | None = None,
) -> Atlas:
    """Synthesise an image for every unit of a layer, and put it beside the unit's top patches.

    If it is killed, the same call goes on with the units that are missing, and ends with the same
    files. A later call for further units adds them.

    Args:
        store: a store, or its folder.
        layer: layer of the store.
        units: its units, as in `17`, `"0,5,7-12"` or `[0, 5]`; by default all.
        technique: a synthesis, or its text, as in `"activation-maximization steps=64"`. It is
            called with `LAYER[unit]` once for each unit.
        k: number of patches per unit, at most 100; 0 for none.
        field: receptive field that is cut out: `exact`, `spatial` or `effective`, as in
            `receptive_field`.
        images: where the store's images are now, if they have moved. If they are gone, a warning
            says so, and the atlas has no patches.
        model: the model that the store was mined with; by default it is loaded by the store's id.
        out: folder of the atlas; by default `STORE.atlas/LAYER`, beside the store.
        per_page: units per sheet.
        seed: seed of the technique, the same for each unit.
        device: where to run a model that is loaded here.

    Raises:
        LayerNotFound: the store has no such layer.
        ParameterError: a unit does not exist, the technique is no synthesis, or a number is out of
            range.
        StoreMismatch: the folder holds an atlas with other settings or of another store, or the
            model is not that of the store.
        StoreError: the store is not finished, its model cannot be loaded, or the folder cannot be
            written.
        StoreCorrupted: the folder holds damaged records, or links that lead out of it.
        ImageError: the images are not at `images`.
        ObjectiveError: the technique does not take a unit as its objective.
    """
    for name, value, least, most in (
        ("k", k, 0, MOST_PATCHES),
        ("per_page", per_page, 1, 10_000),
    ):
        if not isinstance(value, int) or not least <= value <= most:
            raise ParameterError(
                f"{name} is {value!r}: expected an int from {least} to {most}", parameter=name
            )
    opened = store if isinstance(store, Store) else Store.open(store)
    found = opened.layer(layer)
    wanted = _units(units, layer, found.channels)
    chosen = _synthesis(technique)
    opened.files.require_all()
    folder = Path(out) if out is not None else atlas_folder(opened, layer)
    _require_same_store(folder, opened)
    network = store_model(opened, model, device=device)
    with opening([chosen], network, seed):  # once, not for each unit
        patches = TopPatches(found, lambda: network, k, field, images)
        call = {"store": str(opened.path), "layer": layer, "k": k, "field": field}
        facts = chosen._provenance(opened.manifest.model, seed, **call)
        settings = {
            "store": fingerprint(opened),
            "layer": layer,
            "model": facts.model,
            "weights_sha256": facts.weights_sha256,
            "technique": facts.technique,
            "parameters": facts.parameters,
            "patches": {"k": k, "field": field} if patches.shown else None,
            "seed": seed,
        }
        shown = k if patches.shown else 0
        job = Job(found, network, chosen, patches, folder, shown, seed, per_page, facts, settings)
        return make_units(job, wanted)


def _units(given: int | str | Sequence[int] | None, layer: str, count: int) -> list[int]:
    """Return the numbers of the wanted units.

    Raises:
        ParameterError: it is no list of units, or the layer lacks one.
    """
    listed = isinstance(given, Sequence) and not isinstance(given, str)
    try:
        return chosen_units(tuple(given) if listed else given, layer, count)  # type: ignore[arg-type]
    except (TypeError, ValueError) as error:
        raise ParameterError(f"units: {error}", parameter="units") from error


def _synthesis(given: str | SynthesisTechnique) -> SynthesisTechnique:
    if isinstance(given, str):
        return from_text(
            given,
            SynthesisTechnique,  # type: ignore[type-abstract]
            purpose="only syntheses make images of a unit",
            parameter="technique",
        )
    if not isinstance(given, SynthesisTechnique):
        raise ParameterError(
            f"technique is {given!r}: expected a synthesis, as activation-maximization",
            parameter="technique",
        )
    return given


def _require_same_store(folder: Path, store: Store) -> None:
    """Refuse to go on with the atlas of another store; all other settings are compared later."""
    if (folder / f"{NAME}.json").exists() and (folder / RECORDS).exists():
        inside(folder, f"{NAME}.json")
        known = read_settings(folder, NAME).get("store")
        require_same_store(folder, known if isinstance(known, dict) else {}, store)
