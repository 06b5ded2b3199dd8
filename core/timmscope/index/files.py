"""Reads and writes the files of an index: the engine's index file, and a JSON record beside it.

An engine may have further files, see `own_files`. All change together or not at all: the new record
is first written under another name, then the index is replaced, then the record. A reader that
finds the old record beside the new index uses the pending one. A truncated or altered file is
detected by its size or SHA-256, and a record by its own digest.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from glob import escape
from pathlib import Path
from typing import Annotated, Any, BinaryIO
from urllib.parse import quote

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError

import timmscope.checked_json as checked_json
from timmscope.durable import make_folder, sync
from timmscope.index import own_files
from timmscope.index.metrics import Metric
from timmscope.index.own_files import ALWAYS_HASHED_BYTES, OwnFile, Suffix, digest_of
from timmscope.safe_files import UnsafeFile, open_regular, read_regular, require_regular
from timmscope.store.files import machine_error
from timmscope.store.manifest import MOST_SHARDS, Count, Digest, Size
from timmscope_registry import PluginError, TimmscopeError, VectorIndexError, get_registry
from timmscope_registry.plugin_faults import fault

try:
    import fcntl
except ImportError:  # Windows has no flock, so two writers do not exclude each other there
    fcntl = None  # type: ignore[assignment]

SCHEMA = 2
_MOST_BYTES = 1 << 27
"""Size of a record that is read; one with the most shards has three quarters of it."""


class UnreadableIndex(VectorIndexError):
    """An index that this installation cannot read, but that is not damaged, so it is kept."""


class _Asked(BaseModel):
    """The settings of the build, as `IndexRecord.settings` returns them."""

    model_config = ConfigDict(extra="forbid", allow_inf_nan=False)

    backend: str = "auto"
    recall: float = Field(0.95, gt=0, le=1)
    memory: int | None = None
    seed: int = 0


class _Recall(BaseModel):
    """The recall that was measured, see `building.tune`."""

    model_config = ConfigDict(allow_inf_nan=False)

    k: Count
    queries: Count
    wanted: float
    reached: float


class _Facts(BaseModel):
    """The facts that the core reads; all others are an engine's own."""

    asked: _Asked
    recall: _Recall | None = None
    tombstones: Count = 0
    parameters: dict[str, Any] | None = None


def _with_known_facts(facts: dict[str, Any]) -> dict[str, Any]:
    """Check the types of the facts that the core reads."""
    if facts:
        _Facts.model_validate(facts, strict=True)
    return facts


class IndexRecord(BaseModel):
    """What an index was made from and how; the contents of the JSON file.

    Attributes:
        schema_version: version of this record.
        layer: the layer whose pooled rows it holds, or the name of an array.
        metric: the kind of score that `search` returns.
        backend: registered id of the engine, as in ``timmscope:flat``.
        dim: width of a row.
        count: number of rows.
        removed: number of rows that were removed.
        failed: number of ids without a row, because the image could not be read.
        non_finite: number of ids that were left out because their row holds NaN or infinity.
        model: id of the model that computed the rows.
        weights_sha256: SHA-256 of that model's weights.
        defences: texts of that model's defences.
        precision: precision in which that model ran.
        shards: SHA-256 of every shard of the store that was read, by number.
        facts: facts of the engine, settings, and versions.
        size: bytes of the index file.
        sha256: SHA-256 of the index file.
        files: further files of the engine, by the suffix of their names.
    """

    model_config = ConfigDict(
        frozen=True, extra="forbid", allow_inf_nan=False, protected_namespaces=()
    )

    schema_version: int = SCHEMA
    layer: str
    metric: Metric
    backend: str
    dim: Size
    count: Count
    removed: Count = 0
    failed: Count = 0
    non_finite: Count = 0
    model: str | None = None
    weights_sha256: Digest | None = None
    defences: tuple[str, ...] = ()
    precision: str = "float32"
    shards: dict[Count, Digest] = Field({}, max_length=MOST_SHARDS)
    facts: Annotated[dict[str, Any], AfterValidator(_with_known_facts)] = {}
    size: Count = 0
    sha256: Digest | None = None
    files: dict[Suffix, OwnFile] = Field({}, max_length=own_files.MOST_FILES)

    @property
    def settings(self) -> dict[str, Any]:
        """Keyword arguments of `VectorIndex.build` that the index was made with."""
        return {"metric": self.metric, **self.facts.get("asked", {})}


def index_path(store: Path, layer: str) -> Path:
    """Return the path of a layer's index in a store."""
    return store / "index" / f"{quote(layer, safe='#')}.faiss"


def record_path(path: Path) -> Path:
    """Return the path of the record of an index file."""
    return path.with_name(path.name.removesuffix(".faiss") + ".json")


def write_index(path: Path, record: IndexRecord, write: Callable[[Path], None]) -> IndexRecord:
    """Replace an index and its record; a crash at any moment leaves the old or the new pair.

    Args:
        path: the index file.
        record: the record without sizes and digests, which are filled in.
        write: function that writes the index to a path, and further files beside it.

    Raises:
        VectorIndexError: the files cannot be written.
        PluginError: the engine wrote nothing, or a further file that it cannot have.
    """
    pending = _pending_record(path)
    try:
        make_folder(path.parent)
        with (
            _exclusive(path),
            _temporary(path) as draft,
            _temporary(record_path(path)) as draft_record,
        ):
            _finish_pending(path)
            write(draft)
            if not draft.is_file():
                engine = get_registry().index_backend(record.backend)
                raise PluginError(
                    fault(engine, "wrote nothing", expected="a file at the path given to save")
                )
            size, digest = digest_of(draft)
            files = own_files.written_with(draft, record.backend)
            update = {"size": size, "sha256": digest, "files": files}
            record = record.model_copy(update=update)
            sync(draft)
            _write(draft_record, record)
            with locked(path, writing=True), locked(draft, writing=True):
                own_files.lay_ready(draft, path, files)
                draft_record.replace(pending)
                sync(path.parent)
                draft.replace(path)
                sync(path.parent)
                _install(path, record)
    except (OSError, RuntimeError) as error:
        raise VectorIndexError(
            f"the index {path} cannot be written: {first_line(error)}"
        ) from error
    return record


def write_record(path: Path, record: IndexRecord) -> bool:
    """Replace the record of an index whose file does not change.

    Returns:
        Whether the record was written; False if the index file is missing or another one now.

    Raises:
        VectorIndexError: the record cannot be written.
    """
    try:
        with _exclusive(path), _temporary(record_path(path)) as draft:
            try:
                old = read_record(path, verify=False)
            except VectorIndexError:
                return False
            if old.sha256 != record.sha256:
                return False
            _write(draft, record)
            with locked(path, writing=True):
                draft.replace(record_path(path))
                sync(path.parent)
    except OSError as error:
        raise VectorIndexError(
            f"{record_path(path)} cannot be written: {first_line(error)}"
        ) from error
    return True


def _write(path: Path, record: IndexRecord) -> None:
    path.write_bytes(checked_json.dump(record.model_dump(mode="json"), indent=2))
    sync(path)


def read_record(path: Path, *, verify: bool | None = None) -> IndexRecord:
    """Read the record of an index file, and compare the file with it.

    Args:
        path: the index file.
        verify: compare the SHA-256 too, which reads the whole file; otherwise only its size. By
            default the SHA-256 is compared for files up to 64 MiB, which takes at most 0.1 s.

    Raises:
        VectorIndexError: one of the two is missing, altered, truncated or from another release.
        StoreError: one of them cannot be read now.
    """
    pending = _pending_record(path)
    try:
        size, digest = require_regular(path).st_size, ""
        hashed = size <= ALWAYS_HASHED_BYTES if verify is None else verify
        if hashed := hashed or pending.exists():  # which of two records is that of the file
            size, digest = digest_of(path)
    except (FileNotFoundError, NotADirectoryError) as error:
        raise VectorIndexError(
            f"there is no index {path}: build one with `timmscope index build`"
        ) from error
    except (OSError, UnsafeFile) as error:
        raise _unreadable(path, error) from error
    candidates = [each for each in (record_path(path), pending) if each.exists()]
    found = [(each, _parse(each)) for each in candidates]
    if not found:
        raise VectorIndexError(
            f"{record_path(path)} is missing, so {path} cannot be trusted: build the index again"
        )
    for candidate, record in found:
        if record.size == size and (not hashed or record.sha256 == digest):
            try:
                if candidate == pending:
                    own_files.put_in_place(path, record.files)
                own_files.check(path, record.files, verify=verify)
            except (OSError, UnsafeFile) as error:
                raise _unreadable(path, error) from error
            return record
    expected = found[0][1]
    if size != expected.size:
        what = f"has {size} bytes, {expected.size} were written"
    else:
        what = "was altered: its SHA-256 differs from the recorded one"
    raise VectorIndexError(f"the index {path} {what}: build it again")


def _unreadable(path: Path, error: Exception) -> TimmscopeError:
    """Return the error of an index that cannot be read: of the machine, or of the index."""
    return machine_error(error, path) or VectorIndexError(
        f"the index {path} cannot be read ({first_line(error)}): build it again"
    )


def salvaged_record(path: Path) -> IndexRecord | None:
    """Return the record of an index file that may be damaged or missing; None without a record."""
    for candidate in (record_path(path), _pending_record(path)):
        with suppress(VectorIndexError):
            return _parse(candidate)
    return None


def _parse(path: Path) -> IndexRecord:
    try:
        data = read_regular(path, _MOST_BYTES)
        values = json.loads(data)
        version = values.get("schema_version")
        if isinstance(version, int) and version > SCHEMA:
            raise UnreadableIndex(
                f"{path} was made by a newer timmscope (schema {version}, this release reads "
                f"{SCHEMA}): upgrade timmscope or build the index again"
            )
        return IndexRecord.model_validate(checked_json.load(data))
    except (
        OSError, ValueError, AttributeError, RecursionError, MemoryError
    ) as error:  # fmt: skip
        if (failure := machine_error(error, path)) is not None:
            raise failure from error
        what = error.errors()[0]["msg"] if isinstance(error, ValidationError) else first_line(error)
        raise VectorIndexError(
            f"{path} is not a record of an index ({what}): build the index again"
        ) from error


def _finish_pending(path: Path) -> None:
    """Install the record that a crash has left pending, if it belongs to the index file."""
    pending = _pending_record(path)
    with suppress(VectorIndexError):  # a damaged one is replaced
        if pending.is_file() and path.is_file():
            record = _parse(pending)
            if record.sha256 == digest_of(path)[1]:
                _install(path, record)
    own_files.remove_ready(path)


def _install(path: Path, record: IndexRecord) -> None:
    """Put the record and the engine's other files in place after the index file was replaced."""
    old = salvaged_record(path)
    own_files.put_in_place(path, record.files)
    own_files.remove(path, (old.files if old else {}).keys() - record.files.keys())
    _pending_record(path).replace(record_path(path))
    sync(path.parent)


def _pending_record(path: Path) -> Path:
    return record_path(path).with_suffix(".json.next")


@contextmanager
def locked(path: Path, *, writing: bool = False) -> Iterator[None]:
    """Lock an index, so that no process replaces it or its record while another reads them."""
    while True:
        file = _open_or_none(path)
        if file is None:  # there is no index to lock
            yield
            return
        with file:
            _lock(file.fileno(), writing=writing)
            if _is_same_file(path, file.fileno()):  # it was not replaced in the meantime
                yield
                return


def _open_or_none(path: Path) -> BinaryIO | None:
    try:
        return open_regular(path)
    except (OSError, UnsafeFile):
        return None


def _is_same_file(path: Path, descriptor: int) -> bool:
    try:
        return os.path.samestat(os.fstat(descriptor), path.stat())
    except OSError:
        return False


def _lock(descriptor: int, *, writing: bool) -> None:
    """Wait for a lock that ends when the file is closed; some network file systems have none."""
    if fcntl is not None:
        with suppress(OSError):
            fcntl.flock(descriptor, fcntl.LOCK_EX if writing else fcntl.LOCK_SH)


@contextmanager
def _exclusive(path: Path) -> Iterator[None]:
    """Exclude other writers to the folder, and delete drafts of this index from killed writers."""
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        _lock(folder, writing=True)
        for name in (path.name, record_path(path).name):
            for draft in path.parent.glob(f".{escape(name)}.*.tmp*"):
                own_files.discard(draft)
        yield
    finally:
        os.close(folder)


@contextmanager
def _temporary(path: Path) -> Iterator[Path]:
    draft = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        yield draft
    finally:
        for file in (draft, *own_files.beside(draft)):
            own_files.discard(file)


def first_line(error: Exception) -> str:
    """Return the first line of an error's message, or the name of its class."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]
