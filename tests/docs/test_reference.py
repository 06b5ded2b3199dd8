"""The reference has everything, and hand-written pages say what is so."""

from __future__ import annotations

import importlib
import importlib.util
import json
import re
from pathlib import Path
from types import ModuleType

import h5py
import pytest
from tests.docs.pages import ROOT, blocks, commands, name, pages

import timmscope
import timmscope.testing
import timmscope_registry
import timmscope_registry.hooks
from timmscope import HookedModel, Store, load_model, mine
from timmscope.cli.main import COMMANDS
from timmscope_registry import get_registry

WITHOUT_PAPER = {"activation-maps", "near-duplicates"}
"""Techniques that show or measure what needs no method."""


@pytest.fixture(scope="module")
def generator() -> ModuleType:
    spec = importlib.util.spec_from_file_location("_generate", ROOT / "docs/_generate.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def reference(generator: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("reference")
    assert generator.generate(folder) == []
    return folder


def test_every_technique_has_a_page_with_all_parameters_explained(reference: Path) -> None:
    listed = (reference / "techniques.md").read_text()
    own = [e for e in get_registry().techniques() if e.plugin.distribution == "timmscope"]
    assert len(own) >= 8
    for entry in own:
        page = (reference / f"techniques/{entry.spec.name}.md").read_text()
        assert f"({entry.spec.name}.md)" in listed.replace("techniques/", "")
        assert ("\n- Paper: " in page) is (entry.spec.name not in WITHOUT_PAPER)
        assert "\n## Errors\n\n- `" in page
        assert f"(../../../images/techniques/{entry.spec.name}.webp)" in page, "make gallery"
        for field, info in timmscope.technique(entry.id).model_fields.items():
            rows = [line for line in page.splitlines() if line.startswith(f"| `{field}` |")]
            assert len(rows) == 1, (entry.id, field)
            assert info.description, f"{entry.id} does not explain its parameter {field}"
            assert " ".join(info.description.split()).replace("|", "\\|") in rows[0]


def test_every_hook_has_its_text_and_its_example(reference: Path, generator: ModuleType) -> None:
    text = (reference / "plugin-hooks.md").read_text()
    names = generator.hook_names()
    assert len(names) == 5
    for hook in names:
        section = text.partition(f"## {hook}\n")[2].partition("\n## ")[0]
        assert f"def {hook}()" in section
        assert "Called without arguments when" in section
        assert "Error" in section, "what errors do"
        assert "@hookimpl" in section


def test_every_command_is_described(reference: Path) -> None:
    text = (reference / "cli.md").read_text()
    for command, _, summary in COMMANDS:
        section = text.partition(f"## timmscope {command}\n")[2].partition("\n## ")[0]
        assert summary in section
        assert "--debug" not in section, "flags of all commands are told once"
    assert len(re.findall(r"^#+ timmscope \w+ \w+", text, re.MULTILINE)) >= 6, "index …, plugins …"
    assert re.findall(r"^\* `[^`]+`(?!: \w|\]).*$", text, re.MULTILINE) == [], "without help"


def test_a_public_name_without_a_docstring_is_told(generator: ModuleType) -> None:
    module = ModuleType("timmscope_none")
    exec("def bare(): ...\nclass Bare:\n    def method(self): ...\nMANY = (1, 2)\n", vars(module))
    module.__all__ = ["bare", "Bare", "MANY"]  # type: ignore[attr-defined]
    told = [name for each in module.__all__ for name in generator.undocumented(module, each)]
    expected = ["bare", "Bare", "Bare.method", "MANY"]
    assert told == [f"timmscope_none.{name}" for name in expected]


@pytest.mark.parametrize(
    ("module", "page"),
    [
        (timmscope, "api-timmscope.md"),
        (timmscope.testing, "api-testing.md"),
        (timmscope_registry, "api-registry.md"),
        (timmscope_registry.hooks, "api-hooks.md"),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_every_public_name_is_described(reference: Path, module: ModuleType, page: str) -> None:
    text = (reference / page).read_text()
    for public in module.__all__:
        full = re.escape(f"{module.__name__}.{public}")
        assert re.search(rf":: {full}$", text, re.MULTILINE) or f"`{public}`" in text, public


def test_every_error_is_described_and_drawn(reference: Path) -> None:
    text = (reference / "errors.md").read_text()
    for public in timmscope.__all__:
        value = getattr(timmscope, public)
        if isinstance(value, type) and issubclass(value, timmscope.TimmscopeError):
            assert f"autoexception:: timmscope.{public}\n" in text
            assert re.search(rf"(── |^){public}\b", text, re.MULTILINE)


def test_every_built_in_source_collector_and_backend_is_listed(reference: Path) -> None:
    text = (reference / "sources.md").read_text()
    for entry in get_registry().entries():
        if entry.plugin.id == "timmscope:core":
            assert f"| `{entry.spec.name}` | {entry.spec.summary} |" in text


def test_make_targets_that_pages_name_exist() -> None:
    makefile = (ROOT / "Makefile").read_text()
    targets = set(re.findall(r"^([a-z]+):", makefile, re.MULTILINE))
    shown = {word for _, words in commands("make") for word in words if "=" not in word}
    assert {"demo", "test"} <= shown
    assert shown <= targets


def test_relative_links_of_the_front_pages_lead_somewhere() -> None:
    for page in (ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "CHANGELOG.md"):
        for target in re.findall(r"\]\((?!https?:)([^)#]+)\)", page.read_text()):
            assert (ROOT / target).exists(), f"{name(page)} links to {target}"


def test_pages_with_code_say_its_language() -> None:
    for page in pages():
        fences = re.findall(r"^```(.*)$", page.read_text(), re.MULTILINE)
        assert "" not in fences[::2], name(page)
        assert set(fences[1::2]) <= {""}, name(page)


def test_decisions_are_numbered_without_gaps() -> None:
    records = sorted(path.name for path in (ROOT / "docs/decisions").glob("0*.md"))
    assert [int(record[:4]) for record in records] == list(range(1, len(records) + 1))


# The store's format


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    import skimage

    model: HookedModel = load_model("random:resnet18?seed=0&img_size=64")
    folder = Path(skimage.__file__).parent / "data"
    photographs = [folder / name for name in ("chelsea.png", "coffee.png", "rocket.jpg")]
    out = tmp_path_factory.mktemp("format") / "small.scope"
    return mine(model, photographs, out, layers=["layer4"], maps=["layer4"], top_k=2, workers=0)


def test_the_page_on_the_format_names_every_dataset_of_a_shard(store: Store) -> None:
    page = (ROOT / "docs/reference/store-format.md").read_text()
    section = page.partition("## shards/")[2].partition("\n## ")[0]
    told = set(re.findall(r"`(/(?:images|layers)/\w+(?:/\w+)?)`", section))
    with h5py.File(store.path / "shards/00000.h5") as file:
        found: dict[str, h5py.Dataset] = {}
        file.visititems(
            lambda key, item: (
                found.update({f"/{key}": item}) if isinstance(item, h5py.Dataset) else None
            )
        )
        assert {key.replace("layer4", "LAYER") for key in found} == told
        for key, dataset in found.items():
            assert dataset.chunks is None, key
            assert set(dataset.attrs) == {"sums"}, key
            kind = re.search(rf"`{key.replace('layer4', 'LAYER')}`[^|]*\| ([^|]*)\|", section)
            assert kind is not None
            if dataset.dtype.kind in "iuf":
                assert dataset.dtype.name in kind[1], key


def test_the_page_on_the_format_names_every_key_of_the_manifest(store: Store) -> None:
    page = (ROOT / "docs/reference/store-format.md").read_text()
    section = page.partition("## manifest.json")[2].partition("\n## ")[0]
    rows = [line.split("|")[1] for line in section.splitlines() if line.startswith("| `")]
    told = {key for row in rows for key in re.findall(r"`(\w+)`", row)}
    manifest = json.loads((store.path / "manifest.json").read_text())
    assert set(manifest) == told
    assert f"Schema {manifest['schema']}." in page
    for key in (*manifest["layers"][0], *manifest["collectors"][0], *manifest["model"]):
        assert f"`{key}`" in section, key
    for key in next(iter(manifest["shards"].values())):
        assert f"`{key}`" in section, key


def test_the_page_on_the_format_names_what_collectors_keep(store: Store) -> None:
    page = (ROOT / "docs/reference/store-format.md").read_text()
    section = page.partition("## reduced/")[2].partition("\n## ")[0]
    for collector in ("top-k", "statistics"):
        assert f"`{collector}`" in section
    state = store.collector("layer4", "top-k").state()
    assert set(re.findall(r"^\|[^|]*\| `(\w+)` \|", section, re.MULTILINE)) == set(state)
    assert (store.path / "reduced/merged.h5").is_file()
    assert (store.path / "reduced/00000.h5").is_file()


def test_python_blocks_that_are_not_run_say_why() -> None:
    for page in pages():
        for block in blocks(page, "python"):
            assert not block.skipped or "not run:" in page.read_text()
