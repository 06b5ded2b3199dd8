"""Checks of every kind of contribution: it is listed without heavy imports and documented."""

from __future__ import annotations

import importlib.util
import inspect
import subprocess
import sys
from functools import cache

from timmscope.testing.conformance import Case, NotApplicable, check

KINDS = ("technique", "collector", "model source", "image source", "index backend")


@check(*KINDS)
def entry_module_imports_no_torch(case: Case) -> None:
    """Listing the plugin imports neither torch nor NumPy, so that it is fast."""
    if not case.entry.plugin.group:
        raise NotApplicable("a single file contains the implementation too")
    heavy = _imported_by(case.entry.plugin.value.partition(":")[0])
    assert not heavy, (
        f"{case.entry.plugin.value} imports {', '.join(heavy)}: keep implementations in "
        "separate modules, named by import strings"
    )


@check(*KINDS)
def is_documented(case: Case) -> None:
    """The summary is one sentence, and the implementation has a docstring."""
    summary = case.entry.spec.summary
    assert summary.strip(), f"{case.entry.id} has no summary"
    assert "\n" not in summary, f"the summary of {case.entry.id} has several lines"
    found = case.entry.load()
    own = found.__dict__.get("__doc__") if inspect.isclass(found) else found.__doc__
    assert own, f"{case.entry.spec.impl} has no docstring"


@cache
def _imported_by(module: str) -> list[str]:
    """Return the heavy packages that a module imports, found in a new process."""
    assert importlib.util.find_spec(module) is not None
    code = (
        f"import {module}, sys; print(*[n for n in ('torch', 'numpy', 'timm') if n in sys.modules])"
    )
    run = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=120
    )
    return run.stdout.split()
