"""Writes and reads JSON objects with a digest, so that a flipped bit or an edit is noticed.

The digest covers the values, not their layout: a file that was only formatted again is accepted.
"""

from __future__ import annotations

import hashlib
import json
from typing import Any, NoReturn

DIGEST = "digest"
"""Key of the digest in every object."""


def digest_of(values: dict[str, Any]) -> str:
    """Return the SHA-256 of an object's values as canonical JSON, in hexadecimal.

    Raises:
        ValueError: a value is NaN or infinite, or cannot be written as JSON.
    """
    text = json.dumps(values, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()


def dump(values: dict[str, Any], *, indent: int | None = None) -> bytes:
    """Return an object as JSON text with its digest as the last key, ending in a newline.

    Raises:
        ValueError: a value is NaN or infinite, or cannot be written as JSON.
    """
    text = json.dumps({**values, DIGEST: digest_of(values)}, indent=indent, allow_nan=False)
    return (text + "\n").encode()


def load(data: bytes) -> dict[str, Any]:
    """Return the object that `dump` wrote, without its digest.

    Raises:
        ValueError: the text is not a JSON object, or differs from its digest.
    """
    try:
        values = json.loads(data, parse_constant=_refuse)
        if not isinstance(values, dict):
            raise ValueError("it is not a JSON object")
        digest = values.pop(DIGEST, None)
        actual = digest_of(values)
    except RecursionError as error:
        raise ValueError("its values are nested too deeply") from error
    if digest is None:
        raise ValueError("its digest is missing")
    if digest != actual:
        raise ValueError("it differs from its digest, so it was damaged or edited")
    return values


def _refuse(name: str) -> NoReturn:
    raise ValueError(f"it holds {name}, which is no JSON")
