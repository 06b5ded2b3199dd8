"""Imports run one way inside the core, and reading a store needs no torch."""

from __future__ import annotations

import ast
import subprocess
import sys
import textwrap
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
CORE = ROOT / "core" / "timmscope"
LAZY = {CORE / "__init__.py"}


def imports(file: Path) -> Iterator[tuple[str, int]]:
    """Every module that a file imports: in functions and for types only as well."""
    package = [*file.relative_to(ROOT / "core").parts[:-1]]
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from ((alias.name, node.lineno) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            module = ".".join([*base, *filter(None, [node.module])])
            yield module, node.lineno
            yield from ((f"{module}.{alias.name}", node.lineno) for alias in node.names)


def test_no_module_of_the_core_imports_the_lazy_namespace() -> None:
    """It reaches every package, so an import of it would hide an arrow that goes up."""
    found = [
        f"{file.relative_to(ROOT)}:{line}"
        for file in sorted(CORE.rglob("*.py"))
        if file not in LAZY
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8")))
        for line, names in [(getattr(node, "lineno", 0), node)]
        if (isinstance(node, ast.ImportFrom) and not node.level and node.module == "timmscope")
        or (isinstance(names, ast.Import) and any(a.name == "timmscope" for a in names.names))
    ]
    assert not found


def test_packages_of_the_core_import_only_packages_below_them() -> None:
    """What the linter holds, counted again with imports that it may be told to leave out."""
    contracts = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"]
    layers = next(c["layers"] for c in contracts["contracts"] if c.get("exhaustive"))
    rank = {name.strip(): -place for place, line in enumerate(layers) for name in line.split("|")}
    packages = {path.stem for path in CORE.iterdir() if path.suffix == ".py" or path.is_dir()}
    assert packages - {"__init__", "__pycache__", "py"} == {*rank} | ({"py"} & packages)
    up = []
    for file in sorted(CORE.rglob("*.py")):
        here = file.relative_to(CORE).parts[0].removesuffix(".py")
        for module, line in imports(file):
            parts = module.split(".")
            if parts[0] == "timmscope" and len(parts) > 1 and parts[1] in rank and here in rank:
                there = parts[1]
                if there != here and rank[there] >= rank[here]:
                    up.append(f"{file.relative_to(ROOT)}:{line}: {here} imports {there}")
    assert not up


@pytest.mark.parametrize("name", ["timmscope.store", "timmscope.units", "timmscope.results"])
def test_importing_what_reads_a_store_imports_no_torch(name: str) -> None:
    code = f"import sys, {name}; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_reading_a_store_its_statistics_top_lists_and_units_imports_no_torch(
    tmp_path: Path,
) -> None:
    make = """
        import sys
        import numpy as np
        from PIL import Image
        from timmscope import load_model, mine
        folder = sys.argv[1]
        for number in range(12):
            pixels = np.random.default_rng(number).integers(0, 256, (32, 32, 3), np.uint8)
            Image.fromarray(pixels).save(f"{folder}/{number}.png")
        model = load_model("random:resnet18?seed=0&img_size=32")
        mine(model, folder, f"{folder}/a.scope", layers=["layer1"], workers=0)
    """
    read = """
        import sys
        from timmscope import Store, judge_units
        store = Store.open(f"{sys.argv[1]}/a.scope")
        layer = store.layer("layer1")
        assert len(layer.pooled[:3]) == 3
        assert layer.statistics().mean.shape == (64,)
        assert len(layer.top(3, k=5)) == len(layer.top(3, k=5, where="id < 9")) == 5
        report = judge_units(layer)
        assert report.images == 12
        assert len(report.documents()["units.csv"].splitlines()) == 1 + 64
        assert store.images.where("width == 32").sum() == 12
        assert "torch" not in sys.modules, "torch was imported"
    """
    for code in (make, read):
        subprocess.run([sys.executable, "-c", textwrap.dedent(code), str(tmp_path)], check=True)
