"""A fixture that installs real distributions on `sys.path` for one test."""

import itertools
import sys
import textwrap
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

_numbers = itertools.count()

MakeDistribution = Callable[..., str]


@pytest.fixture
def distribution(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[MakeDistribution]:
    """Return a function that installs a distribution with one module and its entry points.

    It returns the module's name. In the source, `MODULE` stands for that name.
    """
    before = set(sys.modules)

    def make(
        name: str,
        source: str,
        *,
        version: str = "1.0",
        group: str = "timmscope.v1",
        entry: str = "main",
        points: str | None = None,
    ) -> str:
        root = tmp_path / f"site{next(_numbers)}"
        module = f"{name.replace('-', '_')}_{next(_numbers)}"
        info = root / f"{name.replace('-', '_')}-{version}.dist-info"
        info.mkdir(parents=True)
        (root / f"{module}.py").write_text(textwrap.dedent(source).replace("MODULE", module))
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
        points = points or f"[{group}]\n{entry} = MODULE\n"
        (info / "entry_points.txt").write_text(points.replace("MODULE", module))
        monkeypatch.syspath_prepend(str(root))
        return module

    yield make
    for module in set(sys.modules) - before:
        if Path(getattr(sys.modules[module], "__file__", None) or "").is_relative_to(tmp_path):
            del sys.modules[module]
