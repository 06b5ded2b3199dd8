"""Broken plugins fail the check of the promise that they break; correct plugins pass."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from timmscope.testing import checks, conformance
from timmscope.testing.conformance import Case, NotApplicable
from timmscope.testing.process_settings import restored_settings
from timmscope_registry import (
    ParameterError,
    PluginError,
    Registry,
    get_registry,
    set_registry,
)

BROKEN = Path(__file__).with_name("broken.py")


@pytest.fixture(scope="module")
def registry() -> Iterator[Registry]:
    before, own = get_registry(), Registry()
    set_registry(own)
    own.load_file(BROKEN)
    yield own
    set_registry(before)


def failing(entry, folder: Path, only: str | None = None) -> dict[str, str]:
    """Return the checks that a contribution fails, with their messages."""
    found = {}
    for check in checks(entry.kind, getattr(entry.spec, "base", "")):
        if only in (None, check.name):
            place = folder / check.name
            place.mkdir(parents=True)
            try:
                check.body(Case(entry, {}, None, place))
            except NotApplicable:
                pass
            except Exception as error:
                found[check.name] = f"{type(error).__name__}: {error}"
    return found


@pytest.mark.parametrize("name", ["good", "good-count"])
def test_a_correct_plugin_passes(registry, tmp_path, name):
    kind = registry.technique if name == "good" else registry.collector
    assert failing(kind(name), tmp_path) == {}


@pytest.mark.parametrize(
    ("name", "check", "words"),
    [
        ("leaves-a-hook", "model-is-untouched", "hook"),
        ("switches-to-eval", "model-is-untouched", "train mode"),
        ("leaves-a-hook-when-broken", "model-is-untouched-after-an-error", "hook"),
        ("swallows-errors", "model-is-untouched-after-an-error", "was swallowed"),
        ("draws-from-torch", "independent-of-global-seeds", "torch random state"),
        ("draws-from-python", "independent-of-global-seeds", "Python random state"),
        ("seeds-num-py", "independent-of-global-seeds", "NumPy random state"),
        ("draws-from-the-global-generator", "same-seed-same-result", "maps"),
        ("depends-on-its-batch", "independent-of-the-batch-split", "maps"),
        ("undocumented", "is-documented", "no docstring"),
        ("undocumented", "parameters-are-documented", "factor"),
        ("has-a-flag-of-the-command", "has-a-command", "--seed"),
        ("swallows-ctrl-c", "progress-is-reported-and-work-can-be-stopped", "swallowed"),
        ("reports-a-wrong-total", "progress-is-reported-and-work-can-be-stopped", "3 of 10"),
        ("returns-nan", "runs-at-all", "NaN"),
        ("refuses-in-many-lines", "runs-on-cnn", "several lines"),
        ("fails-out-of-bounds", "runs-on-token", "list index"),
        ("unfreezes-the-model", "works-on-a-frozen-model", "requires_grad"),
        ("converts-the-model", "works-in-bfloat16", "dtype"),
        ("replaces-a-forward", "model-is-untouched", "the model's forward"),
        ("leaves-a-hook-on-a-parameter", "model-is-untouched", "conv1.weight"),
        ("changes-the-default-device", "process-settings-are-untouched", "torch's default device"),
        ("knows-one-norm", "stays-inside-the-radius", "expected at most epsilon"),
        ("knows-only-targets", "takes-every-goal", "AttributeError"),
        ("leaves-a-hook-elsewhere", "further-models-are-untouched", "of helper"),
        ("opens-when-made", "names-are-opened-by-a-call-only", "nothing-is-here"),
        ("changes-the-folder-when-broken", "process-settings-are-untouched", "working directory"),
    ],
)
def test_a_broken_technique_fails_the_check_of_its_promise(registry, tmp_path, name, check, words):
    found = failing(registry.technique(name), tmp_path, check)
    assert words in found[check]


@pytest.mark.parametrize(
    ("change", "name"),
    [
        (lambda: torch.set_default_dtype(torch.float64), "torch's default dtype"),
        (lambda: torch.set_default_device("meta"), "torch's default device"),
        (lambda: torch.set_num_threads(3), "torch's number of threads"),
        (lambda: torch.use_deterministic_algorithms(True), "torch's determinism"),
        (lambda: torch.autograd.set_detect_anomaly(True), "torch's anomaly detection"),
        (lambda: setattr(sys, "stdout", sys.stderr), "sys.stdout"),
        (lambda: setattr(sys, "stderr", sys.stdout), "sys.stderr"),
        (lambda: os.chdir(Path.cwd().parent), "the working directory"),
    ],
)
def test_settings_of_the_process_are_named_and_restored(change, name):
    with restored_settings() as outer:
        with restored_settings() as changed:
            change()
        assert changed == [name]
    assert outer == []


@pytest.mark.parametrize(
    ("name", "check"),
    [
        ("forgets-when-merged", "merge-is-associative-and-commutative"),
        ("forgets-when-merged", "empty-is-neutral"),
        ("counts-batches", "batches-do-not-matter"),
        ("writes-into-rows", "rows-are-only-read"),
        ("loses-its-state", "state-can-be-loaded"),
        ("saves-half-of-its-state", "state-can-be-loaded"),
    ],
)
def test_a_broken_collector_fails_the_check_of_its_promise(registry, tmp_path, name, check):
    assert check in failing(registry.collector(name), tmp_path, check)


def test_a_model_source_with_random_weights_fails(registry, tmp_path):
    (source,) = (e for e in registry.model_sources() if e.spec.name == "another-each-time")
    found = failing(source, tmp_path)
    assert found.keys() == {"its-example-works"}
    assert "other weights" in found["its-example-works"]


def test_expected_failures_must_fail(registry):
    test = conformance("good", expected_failures={"has-a-command": "not yet"})
    (mark,) = test.pytestmark
    marks = {case.id: case.marks for case in mark.args[1]}
    (expected,) = marks["has-a-command"]
    assert expected.name == "xfail"
    assert expected.kwargs == {"reason": "not yet", "strict": True}
    assert not marks["is-documented"]
    with pytest.raises(ParameterError, match=r"no check 'has-command' .* 'has-a-command'"):
        conformance("good", expected_failures={"has-command": "not yet"})


def test_checks_can_be_marked(registry):
    test = conformance(
        "good",
        expected_failures={"has-a-command": "not yet"},
        marks={"has-a-command": pytest.mark.slow, "runs-at-all": pytest.mark.slow},
    )
    (mark,) = test.pytestmark
    names = {case.id: [each.name for each in case.marks] for case in mark.args[1]}
    assert names["has-a-command"] == ["xfail", "slow"]
    assert names["runs-at-all"] == ["slow"]
    assert names["is-documented"] == []
    with pytest.raises(ParameterError, match=r"no check 'run-at-all' .* 'runs-at-all'"):
        conformance("good", marks={"run-at-all": pytest.mark.slow})


def test_an_unknown_name_is_refused(registry):
    with pytest.raises(PluginError, match="no contribution is called 'qqq'; is its package"):
        conformance("qqq")
    with pytest.raises(PluginError, match="no collector is called 'good'"):
        conformance("good", kind="collector")
