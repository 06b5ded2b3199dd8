"""Discovery with real distributions: working plugins are listed, broken ones affect no other."""

import importlib.metadata
import json
import re
import subprocess
import sys
import warnings
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest

import timmscope
from timmscope.cli.main import main
from timmscope.results.result import environment_versions
from timmscope_registry import (
    API_VERSION,
    PluginError,
    Problem,
    Registry,
    TechniqueSpec,
    get_registry,
    set_registry,
)

Make = Callable[..., str]

GOOD = """
    from timmscope_registry import TechniqueSpec, hookimpl

    class Impl:
        pass

    @hookimpl
    def timmscope_techniques():
        yield TechniqueSpec(
            name="ripple", family="attribution", summary="Ripples.", impl="MODULE:Impl"
        )
"""
# What the modules declare when they are called directly, without a registry.
FIRST_PARTY = {
    spec.name
    for family in ("attack", "attribution", "defence", "representation", "style", "synthesis")
    for spec in import_module(f"timmscope_{family}.plugin").timmscope_techniques()
}


def names(registry: Registry) -> set[str]:
    return {entry.spec.name for entry in registry.techniques()}


def only(registry: Registry) -> Problem:
    problems = registry.problems()
    assert len(problems) == 1, problems
    return problems[0]


def status(registry: Registry, plugin: str) -> str:
    return {info.id: info.status for info in registry.plugins()}[plugin]


def test_first_party_plugins_use_the_same_entry_points() -> None:
    registry = Registry()
    assert {e.spec.name for e in registry.techniques() if e.plugin.distribution == "timmscope"} == (
        FIRST_PARTY
    )
    assert [e.spec.scheme for e in registry.model_sources()] == [
        "timm",
        "file",
        "pip",
        "random",
        "ensemble",
    ]
    assert {e.spec.name for e in registry.collectors()} == {
        "pooled",
        "extrema",
        "top-k",
        "statistics",
        "maps",
    }
    assert registry.problems() == []


def test_a_third_party_technique_is_found_by_short_name_and_by_full_id(distribution: Make) -> None:
    module = distribution("Ripple_Pack", GOOD, version="2.3")
    registry = Registry()
    entry = registry.technique("ripple")
    assert entry is registry.technique("ripple-pack:ripple")
    assert (entry.id, entry.kind) == ("ripple-pack:ripple", "technique")
    assert (entry.plugin.version, entry.plugin.status) == ("2.3", "ok")
    assert entry.plugin.load_seconds > 0
    assert entry.load() is sys.modules[module].Impl


@pytest.mark.parametrize(
    ("source", "stage", "words"),
    [
        ("1 / 0", "import", "ZeroDivisionError: division by zero"),
        ("import there_is_no_such_module", "import", "there_is_no_such_module"),
        ("def f(:", "import", "SyntaxError"),
        ("import sys; sys.exit(3)", "import", "sys.exit(3)"),
        ("raise GeneratorExit", "import", "GeneratorExit"),
        ("x = 1", "hooks", "implements no hook"),
    ],
)
def test_a_plugin_that_fails_at_import_affects_no_other(
    distribution: Make, source: str, stage: str, words: str
) -> None:
    distribution("broken", source)
    distribution("fine", GOOD)
    registry = Registry()
    assert names(registry) == FIRST_PARTY | {"ripple"}
    problem = only(registry)
    assert (problem.plugin, problem.stage) == ("broken:main", stage)
    assert words in problem.message
    assert problem.hint
    assert status(registry, "broken:main") == "failed"


def test_the_traceback_shows_only_the_plugins_own_frames(distribution: Make) -> None:
    module = distribution("broken", "def f():\n    1 / 0\nf()")
    trace = only(Registry()).traceback
    assert f"{module}.py" in trace
    assert "ZeroDivisionError" in trace
    assert "importlib" not in trace
    assert "discovery.py" not in trace


def test_specs_yielded_before_an_exception_are_kept(distribution: Make) -> None:
    distribution("half", GOOD + "        raise RuntimeError('no more')\n")
    registry = Registry()
    assert "ripple" in names(registry)
    problem = only(registry)
    assert (problem.stage, status(registry, "half:main")) == ("call", "ok")
    assert problem.message == "timmscope_techniques failed: RuntimeError: no more"


@pytest.mark.parametrize("call", ["sys.exit()", "exit()", "raise SystemExit('bye')"])
def test_a_hook_that_calls_exit_does_not_end_the_program(distribution: Make, call: str) -> None:
    distribution(
        "quitter",
        f"""
        import sys
        from timmscope_registry import hookimpl
        @hookimpl
        def timmscope_collectors():
            {call}
        """,
    )
    registry = Registry()
    assert names(registry) == FIRST_PARTY
    assert "sys.exit" in only(registry).message


def test_ctrl_c_during_an_import_is_raised_and_names_the_plugin(distribution: Make) -> None:
    distribution("hanging", "raise KeyboardInterrupt")
    with pytest.raises(KeyboardInterrupt) as caught:
        Registry().plugins()
    assert caught.value.__notes__ == ["while loading the plugin hanging:main 1.0"]


def test_plugins_can_be_listed_again_after_ctrl_c(
    distribution: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    distribution("aaa", GOOD)
    hang = "import os\nif 'HANGING' in os.environ: raise KeyboardInterrupt\n"
    distribution("hanging", hang + GOOD.replace("\n    ", "\n"))
    registry = Registry()
    monkeypatch.setenv("HANGING", "yes")
    with pytest.raises(KeyboardInterrupt):
        registry.plugins()
    monkeypatch.delenv("HANGING")
    assert {plugin.status for plugin in registry.plugins()} == {"ok"}


def test_a_plugin_that_lists_others_while_it_is_loaded_sees_those_before_it(
    distribution: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    listing = """
    from timmscope_registry import TechniqueSpec, get_registry, hookimpl
    @hookimpl
    def timmscope_techniques():
        known = {entry.id for entry in get_registry().techniques()}
        summary = ", ".join(sorted(id for id in known if not id.startswith("timmscope:")))
        yield TechniqueSpec(name="NAME", family="attack", summary=summary, impl="MODULE:X")
    """
    for name in ("aaa", "bbb"):
        distribution(name, listing.replace("NAME", name))
    registry = Registry()
    monkeypatch.setattr("timmscope_registry.registry._current", registry)
    assert registry.technique("aaa").spec.summary == ""
    assert registry.technique("bbb").spec.summary == "aaa:aaa"
    assert registry.problems() == []


def test_a_plugin_that_is_slow_to_import_is_reported_with_its_time_and_works(
    distribution: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("timmscope_registry.loading.SLOW_S", 0.2)
    distribution("slow", "import time; time.sleep(0.21)" + GOOD.replace("\n    ", "\n"))
    registry = Registry()
    (problem,) = [problem for problem in registry.problems() if problem.plugin == "slow:main"]
    assert problem.stage == "cost"
    match = re.fullmatch(r"listing it takes (\d+) ms, on every command", problem.message)
    assert match is not None
    assert int(match[1]) >= 210
    assert "TIMMSCOPE_BLOCK=slow" in problem.hint
    assert status(registry, "slow:main") == "ok"


def test_a_misspelt_hook_is_reported_with_the_right_name(distribution: Make) -> None:
    distribution("typo", GOOD.replace("timmscope_techniques", "timmscope_technique"))
    problem = only(Registry())
    assert problem.stage == "hooks"
    assert problem.message == (
        "there is no hook timmscope_technique; did you mean 'timmscope_techniques'?"
    )


def test_a_hook_without_its_marker_is_reported(distribution: Make) -> None:
    distribution("bare", GOOD.replace("@hookimpl\n", "\n"))
    problem = only(Registry())
    assert "timmscope_techniques is not marked with @hookimpl" in problem.message


def test_a_hook_with_an_unknown_argument_is_reported(distribution: Make) -> None:
    distribution("greedy", GOOD.replace("timmscope_techniques()", "timmscope_techniques(model)"))
    problem = only(Registry())
    assert problem.stage == "hooks"
    assert "model" in problem.message


@pytest.mark.parametrize(
    ("body", "words"),
    [
        ("yield 'grad-cam'", "yielded a str; expected a TechniqueSpec"),
        ("return None", "returned nothing; expected an iterable of TechniqueSpec"),
        ("return 'abc'", "returned a str; expected an iterable of TechniqueSpec"),
        (
            "return [CollectorSpec(name='a', summary='', impl='a:b')]",
            "yielded a CollectorSpec; expected a TechniqueSpec",
        ),
        (
            "yield TechniqueSpec(name='a', family='poetry', summary='', impl='a:b')",
            "the family 'poetry' is not one of",
        ),
        (
            "yield TechniqueSpec(name='a', family='style', base='store', summary='', impl='a:b')",
            "base is 'store', expected style or training for the family style",
        ),
        (
            "yield TechniqueSpec(name='a', family='style', base=7, summary='', impl='a:b')",
            "base is 7, expected text",
        ),
        (
            "yield TechniqueSpec(name='A b', family='style', summary='', impl='a:b')",
            "the name 'A b' is not lower-case words joined by hyphens",
        ),
        (
            "yield TechniqueSpec(name='a', family='style', summary='', impl='a.b')",
            "impl is 'a.b', expected 'module:Attribute'",
        ),
        (
            "yield TechniqueSpec(name=None, family='style', summary='', impl='a:b')",
            "name is None, expected text",
        ),
        (
            "yield TechniqueSpec(name='a', family='style', summary='', impl='a:b', needs='x')",
            "needs is 'x', expected a tuple of text",
        ),
        (
            "yield TechniqueSpec(name='a', family='style', summary='', impl='a:b', gpu=True)",
            "unexpected keyword argument 'gpu'",
        ),
    ],
)
def test_items_of_a_wrong_type_or_value_are_reported(
    distribution: Make, body: str, words: str
) -> None:
    distribution(
        "wrong",
        f"""
        from timmscope_registry import CollectorSpec, TechniqueSpec, hookimpl
        @hookimpl
        def timmscope_techniques():
            {body}
        """,
    )
    registry = Registry()
    assert names(registry) == FIRST_PARTY
    assert words in only(registry).message


@pytest.mark.parametrize("api", [(API_VERSION[0], API_VERSION[1] + 1), (2, 0), (0, 9)])
def test_a_spec_of_another_api_version_is_refused(distribution: Make, api: tuple[int, int]) -> None:
    distribution("future", GOOD.replace('summary="Ripples.",', f'summary="Ripples.", api={api},'))
    registry = Registry()
    assert names(registry) == FIRST_PARTY
    problem = only(registry)
    assert problem.stage == "version"
    assert f"plugin API {api[0]}.{api[1]}" in problem.message
    assert ("timmscope" if api > API_VERSION else "future") in problem.hint.split()


def test_a_plugin_for_a_later_major_version_is_not_imported(distribution: Make) -> None:
    module = distribution("later", "1 / 0", group="timmscope.v2")
    registry = Registry()
    assert status(registry, "later:main") == "unsupported"
    assert "written for plugin API 2" in only(registry).message
    assert "--upgrade timmscope" in only(registry).hint
    assert module not in sys.modules


def test_a_plugin_for_two_major_versions_is_no_problem(distribution: Make) -> None:
    distribution(
        "both", GOOD, points="[timmscope.v1]\nmain = MODULE\n[timmscope.v2]\nmain = nowhere\n"
    )
    registry = Registry()
    assert "ripple" in names(registry)
    assert registry.problems() == []


def test_a_misspelt_group_is_reported(distribution: Make) -> None:
    distribution("groupless", GOOD, group="timmscope.plugins")
    assert "'timmscope.plugins' is unknown, expected 'timmscope.v1'" in only(Registry()).message


def test_unreadable_metadata_affects_no_other_plugin(distribution: Make) -> None:
    distribution("garbled", GOOD, points="[timmscope.v1]\nthis is not an entry point\n")
    distribution("fine", GOOD)
    registry = Registry()
    assert "ripple" in names(registry)
    assert any("garbled" in problem.plugin for problem in registry.problems())


def test_a_short_name_that_two_plugins_offer_needs_the_full_id(distribution: Make) -> None:
    distribution("one", GOOD)
    distribution("two", GOOD, version="2.1")
    registry = Registry()
    with pytest.raises(PluginError, match="use one:ripple or two:ripple"):
        registry.technique("ripple")
    assert registry.technique("two:ripple").plugin.distribution == "two"
    problem = only(registry)
    assert problem.stage == "name"
    assert problem.message == "the technique name 'ripple' is offered by one 1.0 and two 2.1"
    assert problem.hint == "use a full name: one:ripple or two:ripple"


def test_a_third_party_cannot_silently_replace_a_first_party_technique(distribution: Make) -> None:
    distribution("copycat", GOOD.replace('"ripple"', '"grad-cam"'))
    registry = Registry()
    with pytest.raises(PluginError, match="timmscope:grad-cam or copycat:grad-cam"):
        registry.technique("grad-cam")
    assert registry.technique("timmscope:grad-cam").plugin.distribution == "timmscope"


def test_of_two_contributions_with_one_full_id_the_first_is_kept(distribution: Make) -> None:
    again = """
    class again:
        timmscope_techniques = staticmethod(timmscope_techniques)
"""
    distribution("twice", GOOD + again, points="[timmscope.v1]\na = MODULE\nb = MODULE:again\n")
    registry = Registry()
    assert [e.id for e in registry.techniques()].count("twice:ripple") == 1
    assert "twice:ripple is already offered by twice:a" in only(registry).message


@pytest.mark.parametrize("word", ["noisy", "noisy:main", " noisy , other"])
@pytest.mark.parametrize("by", ["environment", "argument"])
def test_a_blocked_plugin_is_never_imported(
    distribution: Make, monkeypatch: pytest.MonkeyPatch, word: str, by: str
) -> None:
    module = distribution("noisy", "1 / 0")
    distribution("other", GOOD)
    if by == "environment":
        monkeypatch.setenv("TIMMSCOPE_BLOCK", word)
        registry = Registry()
    else:
        registry = Registry(block=word.split(","))
    assert status(registry, "noisy:main") == "blocked"
    assert module not in sys.modules
    assert registry.problems() == []


def test_blocking_a_plugin_that_does_not_exist_is_reported() -> None:
    problem = only(Registry(block=["timmscop"]))
    assert problem.stage == "block"
    assert "did you mean 'timmscope'" in problem.message


def test_a_plugin_whose_listing_imports_a_heavy_library_is_reported(distribution: Make) -> None:
    distribution("heavy", "import h5py\n" + "".join(GOOD.replace("\n    ", "\n")))
    code = (
        "import json; from timmscope_registry import get_registry as g\n"
        "print(json.dumps([p.message for p in g().problems()]))"
    )
    path = ":".join(p for p in sys.path if p)
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={"PYTHONPATH": path, "PATH": "", "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=True,
    )
    (message,) = [each for each in json.loads(done.stdout) if "takes" not in each]  # a busy machine
    assert message.startswith("listing it imports h5py")


def test_output_of_a_plugin_does_not_reach_stdout(
    distribution: Make, capfd: pytest.CaptureFixture[str]
) -> None:
    distribution("chatty", "print('hello')" + GOOD.replace("\n    ", "\n"))
    Registry().plugins()
    captured = capfd.readouterr()
    assert captured.out == ""
    assert "hello" in captured.err


def test_a_plugin_that_closes_stdout_or_sets_filters_changes_nothing_for_others(
    distribution: Make, capsys: pytest.CaptureFixture[str]
) -> None:
    damage = "import sys, warnings\nsys.stdout.close()\nwarnings.filterwarnings('error')\n"
    distribution("rude", damage + GOOD.replace("\n    ", "\n"))
    before = list(warnings.filters)
    assert Registry().problems() == []
    assert warnings.filters == before
    print("out")
    print("err", file=sys.stderr)
    assert tuple(capsys.readouterr()) == ("out\n", "err\n")


WARNING = "import warnings\nwarnings.warn('old', UserWarning, stacklevel=1)\n"


def test_a_warning_at_import_names_the_plugin_once(distribution: Make) -> None:
    later = distribution("later", WARNING + "class Impl: pass", points="[console_scripts]\n")
    spec = GOOD.replace("\n    ", "\n").replace("MODULE:Impl", f"{later}:Impl")
    distribution("warns", WARNING + spec, version="3.1")
    registry = Registry()
    with pytest.warns(UserWarning, match="old") as caught:
        assert registry.problems() == []
    assert [str(warning.message) for warning in caught] == ["warns:main 3.1: old"]
    with pytest.warns(UserWarning, match="old") as caught:
        registry.technique("ripple").load()
    assert [str(each.message) for each in caught] == ["technique 'ripple' of warns:main 3.1: old"]
    assert Path(caught[0].filename).stem == later


@pytest.mark.parametrize(("action", "problems"), [("error", ["UserWarning: old"]), ("ignore", [])])
def test_warning_filters_apply_to_a_plugins_warnings(
    distribution: Make, action: Any, problems: list[str], recwarn: pytest.WarningsRecorder
) -> None:
    distribution("warns", WARNING + GOOD.replace("\n    ", "\n"))
    warnings.simplefilter(action)
    assert [problem.message for problem in Registry().problems()] == problems
    assert not recwarn.list


def test_an_implementation_that_cannot_be_imported_is_one_clear_error(distribution: Make) -> None:
    distribution("lazy", GOOD.replace("MODULE:Impl", "MODULE:Imple"))
    entry = Registry().technique("ripple")
    with pytest.raises(PluginError, match=r"'ripple' of lazy:main .*did you mean 'Impl'\?"):
        entry.load()


def test_a_missing_requirement_is_named_before_the_import(distribution: Make) -> None:
    distribution(
        "needy", GOOD.replace('summary="Ripples.",', 'summary="", needs=("no-such-thing>=2",),')
    )
    with pytest.raises(PluginError, match=r'pip install "no-such-thing>=2"'):
        Registry().technique("ripple").load()


@pytest.mark.parametrize(
    ("typed", "words"),
    [
        ("grad-kam", "did you mean 'grad-cam', "),
        ("GradCAM", "did you mean 'grad-cam', "),
        ("timmscop:pgd", "did you mean 'timmscope:pgd', "),
        ("zzz", "choose one of ablation-cam, activation-m"),
    ],
)
def test_the_error_for_an_unknown_name_suggests_the_nearest(typed: str, words: str) -> None:
    with pytest.raises(PluginError) as caught:
        Registry().technique(typed)
    assert words in str(caught.value)


def test_the_error_for_an_unknown_name_mentions_plugins_that_did_not_load(
    distribution: Make,
) -> None:
    distribution("broken", "1 / 0")
    with pytest.raises(PluginError, match="broken:main did not load, see `timmscope doctor`"):
        Registry().technique("ripple")


def test_the_current_registry_can_be_replaced() -> None:
    replacement = Registry(block=["timmscope"])
    set_registry(replacement)
    try:
        assert get_registry() is replacement
        assert replacement.entries() == []
    finally:
        set_registry(None)
    assert get_registry().technique("pgd").spec == TechniqueSpec(
        name="pgd",
        family="attack",
        summary=get_registry().technique("pgd").spec.summary,
        impl="timmscope_attack.pgd:PGD",
        paper=get_registry().technique("pgd").spec.paper,
    )


class TestSingleFile:
    def write(self, folder: Path, text: str = GOOD) -> Path:
        file = folder / "my plugin.py"
        text = "\n".join(line.removeprefix("    ") for line in text.splitlines())
        file.write_text(text.replace('"MODULE:Impl"', 'f"{__name__}:Impl"'))
        return file

    def test_its_implementation_resolves_by_its_own_name(self, tmp_path: Path) -> None:
        registry = Registry()
        info = registry.load_file(self.write(tmp_path))
        entry = registry.technique("my plugin.py:ripple")
        assert entry is registry.technique("ripple")
        assert entry.plugin == info
        impl = entry.load()
        assert impl.__name__ == "Impl"
        assert sys.modules[impl.__module__].__file__ == str(tmp_path / "my plugin.py")

    def test_files_of_the_same_name_become_different_modules(self, tmp_path: Path) -> None:
        registry = Registry()
        for folder in ("a", "b"):
            (tmp_path / folder).mkdir()
            text = GOOD.replace('"ripple"', f'"ripple-{folder}"')
            registry.load_file(self.write(tmp_path / folder, text))
        first, second = registry.technique("ripple-a").load(), registry.technique("ripple-b").load()
        assert first.__module__ != second.__module__

    def test_loading_it_again_replaces_it(self, tmp_path: Path) -> None:
        registry = Registry()
        registry.load_file(self.write(tmp_path))
        registry.load_file(self.write(tmp_path, GOOD.replace('"ripple"', '"wavelet"')))
        assert names(registry) == FIRST_PARTY | {"wavelet"}
        assert registry.problems() == []

    def test_a_broken_file_is_an_error_and_a_problem(self, tmp_path: Path) -> None:
        registry = Registry()
        with pytest.raises(PluginError, match="cannot be used: ZeroDivisionError"):
            registry.load_file(self.write(tmp_path, "1 / 0"))
        assert "1 / 0" in only(registry).traceback
        assert names(registry) == FIRST_PARTY

    def test_a_missing_file_is_an_error(self, tmp_path: Path) -> None:
        with pytest.raises(PluginError, match="does not exist"):
            Registry().load_file(tmp_path / "none.py")


class TestNames:
    def test_a_distribution_called_timmscope_hides_none_of_ours(self, distribution: Make) -> None:
        distribution("timmscope", "raise SystemExit", version="99.0")
        distribution("Timmscope", "", points="[timmscope.v1]\ncore = timmscope.builtin\n")
        registry = Registry()
        ours = {
            plugin.name: plugin.version
            for plugin in registry.plugins()
            if plugin.distribution == "timmscope"
        }
        assert set(ours) >= {"core", "attribution", "representation"}
        assert set(ours.values()) == {timmscope.__version__}
        assert registry.technique("grad-cam").id == "timmscope:grad-cam"
        assert registry.model_source("random").id == "timmscope:random"
        (problem,) = (
            each for each in registry.problems() if each.plugin.startswith("foreign:timmscope-99")
        )
        assert "calls itself timmscope, but offers timmscope_" in problem.message

    def test_a_distribution_called_timmscope_does_not_give_our_version(
        self, distribution: Make, capsys: pytest.CaptureFixture[str]
    ) -> None:
        distribution("timmscope", "", version="99.0")
        assert importlib.metadata.version("timmscope") == "99.0"
        ours = timmscope.__version__
        assert main(["--version"]) == 0
        assert capsys.readouterr().out == f"timmscope {ours}\n"
        main(["doctor", "--json"])
        assert json.loads(capsys.readouterr().out)["versions"]["timmscope"] == ours
        assert environment_versions()["timmscope"] == ours

    def test_control_characters_in_names_are_escaped(self, distribution: Make) -> None:
        distribution("foo\x1b[31m", GOOD, entry="ma\x1b[2Jin", version="1\x9b0m")
        plugin = next(p for p in Registry().plugins() if p.distribution.startswith("foo"))
        assert plugin.id == r"foo\x1b[31m:ma\x1b[2Jin"
        assert plugin.version == r"1\x9b0m"
