"""Results of the demo's techniques, kept so that the next run need not make them again."""

from __future__ import annotations

import hashlib
import inspect
import json
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar, cast

from timmscope.results import Result, load_result
from timmscope.results.result import environment_versions
from timmscope.techniques import Technique
from timmscope.techniques.lookup import technique
from timmscope_registry import TimmscopeError

R = TypeVar("R", bound=Result)
KEY = "key.json"


def configured(name: str, **parameters: object) -> Any:
    """A technique by name with parameters; the caller says of which family."""
    kind: type[Any] = technique(name)
    return kind(**parameters)


def kept(folder: Path, used: Technique, call: Mapping[str, object], make: Callable[[], R]) -> R:
    """The result in a folder if it was made from the same, else a new one, saved there.

    Args:
        folder: where it is saved.
        used: the technique; its parameters and its package's code are part of what decides.
        call: whatever else decides: weights, images, objective.
        make: makes it.
    """
    key = {
        "technique": used.technique_id(),
        "parameters": used.model_dump(mode="json"),
        "code": _code(used),
        "versions": environment_versions(),
        "call": dict(call),
    }
    text = json.dumps(key, indent=2, sort_keys=True, default=str)
    record = folder / KEY
    if record.is_file() and record.read_text(encoding="utf-8") == text:
        try:
            return cast(R, load_result(folder))
        except TimmscopeError:
            pass  # damaged: make it again
    if folder.exists():
        shutil.rmtree(folder)
    result = make()
    result.save(folder)
    record.write_text(text, encoding="utf-8")  # last: without it the folder does not count
    return result


def digest(path: Path) -> str:
    """SHA-256 of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _code(used: Technique) -> str:
    """Digest of the modules beside the technique's, so that changed code makes changed results."""
    package = Path(inspect.getfile(type(used))).parent
    total = hashlib.sha256()
    for path in sorted(package.glob("*.py")):
        total.update(path.name.encode() + path.read_bytes())
    return total.hexdigest()
