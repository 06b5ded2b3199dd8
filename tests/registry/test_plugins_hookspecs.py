"""The examples in the hook specs are working plugins."""

import inspect
import textwrap
from pathlib import Path

import pytest

from timmscope_registry import Registry, hookspecs
from timmscope_registry.loading import HOOKS


@pytest.mark.parametrize("hook", HOOKS)
def test_the_example_of_each_hook_is_a_working_plugin(hook: str, tmp_path: Path) -> None:
    documentation = inspect.getdoc(getattr(hookspecs, hook)) or ""
    assert "Called without arguments when" in documentation
    _, heading, example = documentation.partition("Example::\n")
    assert heading
    file = tmp_path / "example.py"
    file.write_text(textwrap.dedent(example))
    registry = Registry(block=["timmscope"])
    registry.load_file(file)
    (entry,) = registry.entries()
    assert type(entry.spec) is HOOKS[hook]
    assert callable(entry.load())
    assert registry.problems() == []


def test_every_hook_spec_is_known_to_the_loader() -> None:
    specified = {name for name in vars(hookspecs) if name.startswith("timmscope_")}
    assert specified == set(HOOKS)
