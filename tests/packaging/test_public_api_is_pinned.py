"""A public name or signature does not change by accident."""

from __future__ import annotations

import difflib

from tests.packaging.public_api import FILE, listing


def test_public_names_and_signatures_are_those_that_were_agreed() -> None:
    agreed, now = FILE.read_text(encoding="utf-8"), listing()
    changed = "\n".join(difflib.unified_diff(agreed.splitlines(), now.splitlines(), n=0))
    assert not changed, (
        f"{changed}\nif that is meant: python -m tests.packaging.public_api, and a line in the "
        "changelog"
    )
