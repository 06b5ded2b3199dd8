"""Checks of techniques: parameters, every kind of model, the model's state, results, progress."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import warnings
from collections.abc import Callable, Iterator

import torch

from timmscope.results import load_result
from timmscope.results.result import Provenance
from timmscope.techniques import Technique
from timmscope.techniques.lookup import technique
from timmscope.techniques.restore_state import StateWarning
from timmscope.testing.conformance import Case, NotApplicable, check
from timmscope.testing.subjects import Subject, same, watched
from timmscope_registry import TimmscopeError
from timmscope_registry.hooks import fingerprint

SPLIT = 1e-4
"""Largest difference of two ways of splitting a batch, as a share of the largest value."""


@check("technique")
def parameters_are_documented(case: Case) -> None:
    """Every field has a docstring: it is the help of its flag."""
    for name, info in technique(case.entry.id).model_fields.items():
        assert info.description, f"the field {name} has no docstring below it"


@check("technique")
def parameters_survive_json(case: Case) -> None:
    """A technique is made again from its own JSON, has a JSON schema, and cannot be changed."""
    kind = technique(case.entry.id)
    made = kind(**case.parameters)
    assert kind.model_validate_json(made.model_dump_json()) == made
    assert kind.model_json_schema()["type"] == "object"
    assert kind.model_config.get("frozen"), "its model_config is not frozen"
    wrong = {"no_such_parameter_exists": 1}
    with contextlib.suppress(TimmscopeError):
        kind(**wrong)
        raise AssertionError("it takes parameters that it does not have")


@check("technique")
def has_a_command(case: Case) -> None:
    """`timmscope run` can make flags of its fields."""
    from timmscope.cli.technique_command import command

    command(technique(case.entry.id), case.entry.spec.name)


def _runs_on(layout: str) -> Callable[[Case], None]:
    def body(case: Case) -> None:
        subject = Subject.of(case, layout, defaults=True)
        try:
            subject.run()
        except TimmscopeError as refusal:
            _is_one_line(refusal)

    body.__name__ = f"runs_on_{layout}"
    body.__doc__ = f"Untouched, it runs on a {layout} model or refuses with a typed error."
    return body


for _layout in ("cnn", "nhwc", "token", "hybrid"):
    check("technique")(_runs_on(_layout))


@check("technique")
def runs_at_all(case: Case) -> None:
    """It runs on one of the tiny models at least, with the parameters given."""
    _working(case).run()


@check("technique")
def model_is_untouched(case: Case) -> None:
    """Weights, modes, hooks, gradients and random states are as before, in train mode too."""
    subject = _working(case)
    subject.model.module.train()
    for weight in subject.model.module.parameters():
        weight.grad = torch.ones_like(weight)
    before = fingerprint(subject.model.module)
    with _nothing_left():
        subject.run()
    changed = fingerprint(subject.model.module).difference(before)
    assert not changed, f"the model has changed: {'; '.join(changed)}"


@check("technique")
def model_is_untouched_after_a_fault(case: Case) -> None:
    """The same when the model breaks in the middle of the work, and the error comes through."""
    subject = _working(case)
    count = subject.passes()
    for armed in {1, (count + 1) // 2, count}:
        before = fingerprint(subject.model.module)
        subject.tripwire.passed, subject.tripwire.armed = 0, armed
        try:
            with _nothing_left():
                subject.run()
        except (RuntimeError, TimmscopeError) as error:
            assert "tripwire" in str(error), f"the error is another one: {error}"
        else:
            raise AssertionError(f"the model broke at pass {armed} of {count}, and nothing said so")
        finally:
            subject.tripwire.armed = 0
        changed = fingerprint(subject.model.module).difference(before)
        assert not changed, f"after a fault the model has changed: {'; '.join(changed)}"


@check("technique")
def process_settings_are_untouched(case: Case) -> None:
    """Default dtype and device, threads, standard streams and folder stay, after a fault too."""
    subject = _working(case)
    before = subject.tripwire.passed
    subject.run()
    count = subject.tripwire.passed - before
    _no_setting_changed(subject)
    if count:
        subject.tripwire.passed, subject.tripwire.armed = 0, (count + 1) // 2
        with contextlib.suppress(RuntimeError, TimmscopeError):
            subject.run()
        _no_setting_changed(subject)


@check("technique")
def same_seed_same_result(case: Case) -> None:
    """Two runs give the same bits, whatever the global random states are."""
    subject = _working(case)
    one = subject.run(seed=3)
    torch.manual_seed(99)
    torch.rand(7)
    differ = same(one, subject.run(seed=3))
    assert not differ, f"{', '.join(differ)} differ between two runs with one seed"


@check("technique")
def independent_of_the_batch_split(case: Case) -> None:
    """Images one by one give what they give together."""
    subject = _working(case)
    if not subject.is_split:
        raise NotApplicable(f"{subject.technique.family} does not split batches")
    together, alone = subject.run(batch_size=3), subject.run(batch_size=1)
    differ = same(together, alone, tolerance=SPLIT)
    assert not differ, f"{', '.join(differ)} depend on how the batch is split"


@check("technique")
def works_on_a_frozen_model(case: Case) -> None:
    """Parameters that require no gradient change nothing."""
    subject = _working(case)
    expected = subject.run()
    subject.model.module.requires_grad_(False)
    with _left_as_it_was(subject):
        differ = same(expected, subject.run())
    assert not differ, f"{', '.join(differ)} differ on a frozen model"


@check("technique")
def works_without_autograd(case: Case) -> None:
    """Callers under `no_grad` and `inference_mode` get the same."""
    subject = _working(case)
    expected = subject.run()
    for where in (torch.no_grad, torch.inference_mode):
        with where(), _left_as_it_was(subject):
            differ = same(expected, subject.run())
        assert not differ, f"{', '.join(differ)} differ under {where.__name__}"


@check("technique")
def works_in_bfloat16(case: Case) -> None:
    """A model in bfloat16 gives finite values, or a typed error."""
    subject = _working(case)
    if subject.technique.family == "representation":
        raise NotApplicable("stores are mined with a precision of their own")
    subject.model.module.bfloat16()
    with _left_as_it_was(subject):
        try:
            subject.run()
        except TimmscopeError as refusal:
            _is_one_line(refusal)


@check("technique")
def result_survives_saving(case: Case) -> None:
    """A saved result has a picture, and comes back with the same arrays and facts."""
    result = _working(case).run()
    folder = result.save(case.folder / "result")
    assert (folder / "figure.png").stat().st_size > 0
    again = load_result(folder)
    assert type(again) is type(result)
    assert not same(result, again)
    assert again.provenance == result.provenance
    assert isinstance(result.summary(), list)


@check("technique")
def result_is_made_again_from_its_json(case: Case) -> None:
    """What `result.json` says of technique, parameters, seed and call gives the same arrays."""
    subject = _working(case)
    result = subject.run(seed=5)
    kept = Provenance(**json.loads(json.dumps(dataclasses.asdict(result.provenance))))
    assert kept.technique == case.entry.id, f"the result says that {kept.technique} made it"
    again = Subject(technique(kept.technique)(**kept.parameters), subject.model, case.folder)
    if "store" in vars(subject):
        again.store = subject.store
    differ = same(result, again.run(seed=kept.seed, **kept.call))
    assert not differ, f"{', '.join(differ)} differ when the result is made again"


@check("technique")
def progress_is_told_and_work_can_be_stopped(case: Case) -> None:
    """Work that is reported ends where it said; Ctrl-C gets through and leaves no trace."""
    subject = _working(case)
    with watched() as watcher:
        subject.run()
    if not any(done for _, _, done in watcher.tasks):
        raise NotApplicable("it reports no progress")
    for description, total, done in watcher.tasks:
        assert total in (None, done), f"{description!r} told {done} of {total} steps"
    before = fingerprint(subject.model.module)
    try:
        with watched(stop=True):
            subject.run()
    except KeyboardInterrupt:
        pass
    else:
        raise AssertionError("Ctrl-C was swallowed")
    assert not fingerprint(subject.model.module).difference(before)


_accepted: dict[Technique, str] = {}
"""The first tiny model that a technique does not refuse."""


def _working(case: Case) -> Subject:
    """The technique on the first tiny model that it does not refuse; this one it has not seen."""
    used = technique(case.entry.id)(**case.parameters)
    if used not in _accepted:
        _accepted[used] = _first_accepted(case)
    return Subject.of(case, _accepted[used])


def _first_accepted(case: Case) -> str:
    refusals = []
    for layout in ("cnn", "token", "hybrid", "nhwc"):
        subject = Subject.of(case, layout)
        subject.folder = case.folder / f"tried-{layout}"
        try:
            subject.run()
        except TimmscopeError as refusal:
            refusals.append(f"{layout}: {refusal}")
        else:
            return layout
    raise AssertionError("it refuses every tiny model: " + "; ".join(refusals))


@contextlib.contextmanager
def _left_as_it_was(subject: Subject) -> Iterator[None]:
    """Fail where the model or its surroundings have changed."""
    before = fingerprint(subject.model.module)
    with _nothing_left():
        yield
    changed = fingerprint(subject.model.module).difference(before)
    assert not changed, f"the model has changed: {'; '.join(changed)}"


@contextlib.contextmanager
def _nothing_left() -> Iterator[None]:
    """Fail where the family's base had to undo something."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            yield
        finally:
            left = [each for each in caught if issubclass(each.category, StateWarning)]
            assert not left, str(left[0].message)


def _no_setting_changed(subject: Subject) -> None:
    changed = ", ".join(subject.changed_settings)
    assert not changed, f"it changed {changed}, which the whole process shares"


def _is_one_line(refusal: TimmscopeError) -> None:
    text = str(refusal)
    assert text, f"a {type(refusal).__name__} without words"
    assert "\n" not in text, f"the refusal has several lines: {text!r}"
