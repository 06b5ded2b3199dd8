"""Words what a plugin did wrong: who it was, what it did, what was expected, what to do.

As in ``technique 'ripple' of timmscope-foo:main 1.2 returned a str; expected a tensor (2, h, w);
tell its authors``. The registry, techniques, sources, collectors and index backends all use it.
"""

from __future__ import annotations

import re
import traceback
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

from timmscope_registry.plugin_record import PluginInfo, PluginRecord

if TYPE_CHECKING:
    from timmscope_registry.registry import Entry

CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\ud800-\udfff]")
"""Characters that steer a terminal or that it cannot show; file names may contain them."""

Offender: TypeAlias = "Entry[Any] | PluginInfo | PluginRecord | str"
"""A contribution, a plugin, or the name of what no plugin of others offers."""


def described(who: Offender) -> str:
    """Name a contribution, as in ``technique 'ripple' of timmscope-foo:main 1.2``, or a plugin."""
    if isinstance(who, str):
        return who
    if isinstance(who, PluginInfo | PluginRecord):
        return f"{who.id} {who.version}".rstrip()
    return f"{who.kind} {who.spec.name!r} of {described(who.plugin)}"


def fault(who: Offender, did: str, *, expected: str = "", advice: str | None = None) -> str:
    """The line about a fault: ``WHO DID; expected EXPECTED; ADVICE``.

    Args:
        who: the contribution, the plugin or a name.
        did: a verb and what came, as in ``"returned a str"`` or ``"has no method update"``.
        expected: what should have come.
        advice: what to do; by default to tell the plugin's authors, or to fix its file.
    """
    advice = _remedy(who) if advice is None else advice
    wanted = f"expected {expected}" if expected else ""
    return "; ".join(filter(None, [f"{described(who)} {did}", wanted, advice]))


def _remedy(who: Offender) -> str:
    if isinstance(who, str):
        return ""
    plugin = who if isinstance(who, PluginInfo | PluginRecord) else who.plugin
    return "tell its authors" if plugin.group else f"fix {Path(plugin.value).name}"


def visible(text: str) -> str:
    """Return the text with control characters escaped as in Python, such as ``\\n``."""
    return CONTROL.sub(lambda found: repr(found[0])[1:-1], text)


def brief(value: object) -> str:
    """What came, in two words: ``"nothing"``, ``"a str"``, ``"an array of type float64"``."""
    name = type(value).__name__
    if name == "ndarray":
        return f"an array of type {value.dtype}"  # type: ignore[attr-defined]
    return "nothing" if value is None else with_article(name)


def with_article(name: str) -> str:
    """``"a str"``, ``"an int"``."""
    return f"{'an' if name[:1].lower() in 'aeio' else 'a'} {name}"


def one_line(error: BaseException) -> str:
    """Return the error's type and message without line breaks."""
    if isinstance(error, SystemExit):
        return f"it calls sys.exit({error.code!r})"
    try:
        text = " ".join(str(error).split())
    except Exception:  # the plugin's own exception class may have a broken __str__
        text = ""
    return f"{type(error).__name__}: {text}" if text else type(error).__name__


def upgrade_hint(plugin: PluginRecord, newer: bool) -> str:
    """Say which package to upgrade: timmscope if the plugin is newer, else the plugin."""
    package = "timmscope" if newer else plugin.distribution
    return f"upgrade it: python -m pip install --upgrade {package}"


def authors_hint(plugin: PluginRecord) -> str:
    """Say who should fix the plugin, and how to hide it until then."""
    if not plugin.group:
        return f"fix {plugin.value}"
    return (
        f"tell the authors of {plugin.distribution} {plugin.version}, "
        f"or hide it: TIMMSCOPE_BLOCK={plugin.distribution}"
    )


def plugin_traceback(error: BaseException) -> str:
    """Format the traceback without the frames of the registry, importlib and pluggy."""
    report = traceback.TracebackException.from_exception(error)
    frames = [
        frame
        for frame in report.stack
        if Path(frame.filename).parent != Path(__file__).parent
        and not frame.filename.startswith("<frozen importlib")
        and "importlib" not in Path(frame.filename).parts
        and "pluggy" not in Path(frame.filename).parts
    ]
    report.stack = traceback.StackSummary.from_list(frames)
    return "".join(report.format())
