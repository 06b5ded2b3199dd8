"""Checks that a store's indexes are undamaged and match its rows, and builds damaged ones again."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import unquote

from timmscope.index.files import IndexRecord, salvaged_record
from timmscope.index.vector_index import VectorIndex
from timmscope.progress import track
from timmscope_registry import TimmscopeError

if TYPE_CHECKING:
    from timmscope.store import Store


@dataclass(frozen=True)
class IndexDamage:
    """An index that cannot be used.

    Attributes:
        file: the index file, relative to the store.
        reason: what is wrong with it.
        record: the index record; None if that is lost too.
    """

    file: str
    reason: str
    record: IndexRecord | None


def index_files(store: Path) -> list[Path]:
    """Return the index files of a store, including missing ones that have a record."""
    folder = store / "index"
    names = {path.name.removesuffix(".faiss") for path in folder.glob("*.faiss")}
    names |= {path.name.removesuffix(".json") for path in folder.glob("*.json")}
    return [folder / f"{name}.faiss" for name in sorted(names)]


def examine_indexes(store: Store) -> list[IndexDamage]:
    """Compare every index with its digest, open it, and compare its shards with the store's.

    An index that lacks rows which the store has gained is not damaged: loading it warns, and
    `add_missing` adds them.
    """
    damage = []
    for path in track(index_files(store.path), "verifying indexes"):
        try:
            with warnings.catch_warnings():
                warnings.filterwarnings("ignore", message=".* rows of .* that its index lacks")
                index = VectorIndex.load(store, _layer_of(path), verify=True)
            del index
        except TimmscopeError as error:
            reason = str(error).removeprefix(f"the index {path} ").replace(f"{path.parent}/", "")
            name = path.relative_to(store.path).as_posix()
            damage.append(IndexDamage(name, reason, salvaged_record(path)))
    return damage


def rebuild_index(store: Store, damage: IndexDamage) -> bool:
    """Build a damaged index again with the settings of its record.

    Returns:
        Whether that was possible; if not, a warning says why.
    """
    path = store.path / damage.file
    if damage.record is None:
        why = "its record and thus its settings are lost"
    elif damage.record.removed:
        why = f"{damage.record.removed} rows were removed from it, and their ids are lost"
    else:
        try:
            layer = store.layer(_layer_of(path))
            VectorIndex.build(layer, **damage.record.settings).save(path)
        except TimmscopeError as error:
            why = str(error)
        else:
            return True
    warnings.warn(
        f"{damage.file} cannot be built again ({why}): build it with timmscope index build",
        stacklevel=2,
    )
    return False


def _layer_of(path: Path) -> str:
    """Return the name of the layer whose index a file holds."""
    return unquote(path.name.removesuffix(".faiss"))
