"""Is each index of a store whole, and of the store's rows? What is not is named or built again."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import unquote

from timmscope.index.files import IndexRecord, any_record
from timmscope.index.vector_index import VectorIndex
from timmscope.progress import track
from timmscope_registry import TimmscopeError

if TYPE_CHECKING:
    from timmscope.store import Store


@dataclass(frozen=True)
class IndexDamage:
    """An index that cannot be used.

    Attributes:
        file: of the index, relative to the store.
        reason: what is wrong with it.
        record: what it was built with; None where that is lost too.
    """

    file: str
    reason: str
    record: IndexRecord | None


def index_files(store: Path) -> list[Path]:
    """Index files that a store keeps, or ought to: those of which only the record is left too."""
    folder = store / "index"
    names = {path.name.removesuffix(".faiss") for path in folder.glob("*.faiss")}
    names |= {path.name.removesuffix(".json") for path in folder.glob("*.json")}
    return [folder / f"{name}.faiss" for name in sorted(names)]


def examine_indexes(store: Store) -> list[IndexDamage]:
    """Compare every index with its digest, open it, and compare the shards that it was built of.

    An index that lacks rows which the store gained is whole: loading it warns, and `add_missing`
    adds them.
    """
    damage = []
    for path in track(index_files(store.path), "verifying indexes"):
        try:
            with warnings.catch_warnings():
                warnings.filterwarnings("ignore", message=".* rows of .* that its index lacks")
                index = VectorIndex.load(store, _layer(path), verify=True)
            del index
        except TimmscopeError as error:
            reason = str(error).removeprefix(f"the index {path} ").replace(f"{path.parent}/", "")
            name = path.relative_to(store.path).as_posix()
            damage.append(IndexDamage(name, reason, any_record(path)))
    return damage


def rebuild_index(store: Store, damage: IndexDamage) -> bool:
    """Build a damaged index again with the settings of its record.

    Returns:
        Whether that was possible; if not, a warning says why.
    """
    path = store.path / damage.file
    if damage.record is None:
        why = "its record is lost, and with it the settings"
    elif damage.record.removed:
        why = f"{damage.record.removed} rows were taken out of it, and which ones is lost"
    else:
        try:
            layer = store.layer(_layer(path))
            VectorIndex.build(layer, **damage.record.settings).save(path)
        except TimmscopeError as error:
            why = str(error)
        else:
            return True
    warnings.warn(
        f"{damage.file} cannot be made again ({why}): build it with timmscope index build",
        stacklevel=2,
    )
    return False


def _layer(path: Path) -> str:
    """Name of the layer that an index file is called after."""
    return unquote(path.name.removesuffix(".faiss"))
