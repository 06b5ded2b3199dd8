"""Finds the index of a store, and checks that it still belongs to the store's rows."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from timmscope.index.files import IndexRecord, index_path
from timmscope_registry import VectorIndexError

if TYPE_CHECKING:
    from timmscope.store import Store


def locate(source: Store | str | Path, layer: str | None) -> tuple[Path, Store | None]:
    """Find an index file, and the store that holds it.

    Args:
        source: a store, its folder, or the path of an index file (which then has no store).
        layer: the layer; may be left out if the store has only one index.

    Raises:
        VectorIndexError: the store has no index, or several and no layer is given.
        LayerNotFound: the store has no such layer.
    """
    if isinstance(source, str | Path):
        path = Path(source)
        if path.suffix == ".faiss":
            return path, None
        from timmscope.store import Store

        source = Store.open(path)
    if layer is not None:
        return index_path(source.path, source.layer(layer).name), source
    found = sorted((source.path / "index").glob("*.faiss"))
    if not found:
        raise VectorIndexError(
            f"{source.path} has no index: build one with `timmscope index build`"
        )
    if len(found) > 1:
        names = ", ".join(item.name.removesuffix(".faiss") for item in found)
        raise VectorIndexError(f"{source.path} has {len(found)} indexes ({names}): name the layer")
    return found[0], source


def check_matches_store(path: Path, record: IndexRecord, store: Store) -> None:
    """Refuse an index whose rows are no longer those of the store.

    Raises:
        VectorIndexError: the store was mined again, or has lost shards whose rows the index holds.
    """
    manifest = store.manifest
    for what, now, then in (
        ("weights", manifest.model.weights_sha256, record.weights_sha256),
        ("defences", manifest.model.defences, record.defences),
    ):
        if now != then:
            raise VectorIndexError(
                f"the index {path} holds rows of {record.model}, but {store.path} was mined with "
                f"other {what} ({manifest.model.id}): build it again"
            )
    digests = {number: shard.rows.sha256 for number, shard in manifest.shards.items()}
    changed = [n for n, digest in record.shards.items() if digests.get(n) != digest]
    if changed or record.layer not in store.layers:
        what = (
            f"{len(changed)} of the shards (first {changed[0]})"
            if changed
            else f"layer {record.layer}"
        )
        raise VectorIndexError(
            f"the index {path} was built before {what} of {store.path} changed or was removed: "
            "build it again"
        )


def missing_rows(record: IndexRecord, store: Store) -> int:
    """Return the number of readable images in shards of the store that are not in the index."""
    return sum(
        shard.stop - shard.start - shard.unreadable
        for number, shard in store.manifest.shards.items()
        if number not in record.shards
    )
