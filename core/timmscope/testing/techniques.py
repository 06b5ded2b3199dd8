"""Checks of techniques: parameters, all layouts, state of model and process, results, progress."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, get_args

import torch

from timmscope.parameters import meanings
from timmscope.results import Result, load_result
from timmscope.results.result import Provenance
from timmscope.techniques import Technique
from timmscope.techniques.bounded import BoundedTechnique
from timmscope.techniques.lookup import technique
from timmscope.techniques.restore_state import StateWarning
from timmscope.testing.conformance import Case, NotApplicable, check
from timmscope.testing.models import tiny_images, tiny_model
from timmscope.testing.process_settings import global_seeds
from timmscope.testing.subjects import Subject, differing_arrays, recorded_progress
from timmscope_registry import TimmscopeError
from timmscope_registry.hooks import fingerprint

SEED = 3
"""Seed of the first run, and of those that are compared with it."""
SPLIT = 1e-4
"""Largest difference between two splits of a batch, relative to the largest value."""


@check("technique")
def parameters_are_documented(case: Case) -> None:
    """Every field has a docstring, which is the help of its flag."""
    for name, info in technique(case.entry.id).model_fields.items():
        assert info.description, f"the field {name} has no docstring below it"


@check("technique")
def parameters_survive_json(case: Case) -> None:
    """A technique can be recreated from its JSON, has a JSON schema, and is frozen."""
    kind = technique(case.entry.id)
    made = kind(**case.parameters)
    assert kind.model_validate_json(made.model_dump_json()) == made
    assert kind.model_json_schema()["type"] == "object"
    assert kind.model_config.get("frozen"), "its model_config is not frozen"
    wrong = {"no_such_parameter_exists": 1}
    with contextlib.suppress(TimmscopeError):
        kind(**wrong)
        raise AssertionError("it accepts an unknown parameter")


@check("technique")
def has_a_command(case: Case) -> None:
    """`timmscope run` can make flags of its fields."""
    from timmscope.cli.technique_command import command

    command(technique(case.entry.id), case.entry.spec.name)


@check("technique")
def runs_at_all(case: Case) -> None:
    """With the given parameters, it runs on at least one of the tiny models."""
    _first_run(case)


@check("technique")
def runs_with_its_defaults(case: Case) -> None:
    """With its defaults it runs on a tiny model, or raises a `TimmscopeError`."""
    _runs_or_refuses(Subject.of(case, defaults=True))


def _runs_or_refuses(subject: Subject) -> None:
    known = _first.get(subject.technique)
    if known is not None and subject.model.id == f"tiny:{known.layout}":
        return  # it ran already
    try:
        subject.run()
    except TimmscopeError as refusal:
        _assert_one_line(refusal)


def _runs_on(layout: str) -> Callable[[Case], None]:
    def body(case: Case) -> None:
        _runs_or_refuses(Subject.of(case, layout))

    body.__name__ = f"runs_on_{layout}"
    body.__doc__ = f"It runs on a {layout} model, or raises a `TimmscopeError`."
    return body


for _layout in ("cnn", "nhwc", "token", "hybrid"):
    check("technique")(_runs_on(_layout))


@check("technique")
def model_is_untouched(case: Case) -> None:
    """Weights, modes, hooks, gradients and random states are unchanged, in train mode too."""
    subject = _accepted_subject(case)
    subject.model.module.train()
    for weight in subject.model.module.parameters():
        weight.grad = torch.ones_like(weight)
    before = fingerprint(subject.model.module)
    with _no_state_warning():
        subject.run()
    changed = fingerprint(subject.model.module).difference(before)
    assert not changed, f"the model has changed: {'; '.join(changed)}"


@check("technique")
def model_is_untouched_after_an_error(case: Case) -> None:
    """The model is unchanged after an error in its forward pass, and the error is raised."""
    subject = _accepted_subject(case)
    count = subject.passes()
    for armed in {1, (count + 1) // 2, count}:
        before = fingerprint(subject.model.module)
        subject.tripwire.passed, subject.tripwire.armed = 0, armed
        try:
            with _no_state_warning():
                subject.run()
        except (RuntimeError, TimmscopeError) as error:
            assert "tripwire" in str(error), f"another error was raised: {error}"
        else:
            raise AssertionError(f"an error at forward pass {armed} of {count} was swallowed")
        finally:
            subject.tripwire.armed = 0
        changed = fingerprint(subject.model.module).difference(before)
        assert not changed, f"after an error the model has changed: {'; '.join(changed)}"


@check("technique")
def process_settings_are_untouched(case: Case) -> None:
    """Default dtype, device, threads, streams and folder are unchanged, also after an error."""
    subject = _accepted_subject(case)
    before = subject.tripwire.passed
    subject.run()
    count = subject.tripwire.passed - before
    _assert_no_setting_changed(subject)
    if count:
        subject.tripwire.passed, subject.tripwire.armed = 0, (count + 1) // 2
        with contextlib.suppress(RuntimeError, TimmscopeError):
            subject.run()
        _assert_no_setting_changed(subject)


@check("technique")
def same_seed_same_result(case: Case) -> None:
    """Runs with one seed give the same bits, on one model and on two of the same weights."""
    first, subject = _first_run(case), _accepted_subject(case)
    for _ in range(2):
        differ = differing_arrays(first.result, subject.run(seed=SEED))
        assert not differ, f"{', '.join(differ)} differ between two runs with one seed"


@check("technique")
def independent_of_global_seeds(case: Case) -> None:
    """It draws from its own generators: other global seeds change nothing, and are not changed."""
    first, subject = _first_run(case), _accepted_subject(case)
    with global_seeds(20_011):  # the first run had others
        before = fingerprint(subject.model.module)
        result = subject.run(seed=SEED)
        changed = before.difference(fingerprint(subject.model.module))
    drawn = [line for line in changed if "random state" in line]
    assert not drawn, f"it drew from generators of the whole process: {'; '.join(drawn)}"
    differ = differing_arrays(first.result, result)
    assert not differ, f"{', '.join(differ)} differ under two global seeds"


@check("technique")
def independent_of_the_batch_split(case: Case) -> None:
    """Images one by one give the same result as in one batch."""
    subject = _accepted_subject(case)
    if not subject.is_split:
        raise NotApplicable(f"the base {subject.technique.base} does not split batches")
    together, alone = _first_run(case).result, subject.run(seed=SEED, batch_size=1)
    differ = differing_arrays(together, alone, tolerance=SPLIT)
    assert not differ, f"{', '.join(differ)} depend on how the batch is split"


@check("technique")
def works_on_a_frozen_model(case: Case) -> None:
    """A model whose parameters require no gradient gives the same result."""
    first, subject = _first_run(case), _accepted_subject(case)
    subject.model.module.requires_grad_(False)
    with _model_unchanged(subject):
        differ = differing_arrays(first.result, subject.run(seed=SEED))
    assert not differ, f"{', '.join(differ)} differ on a frozen model"


@check("technique")
def works_without_autograd(case: Case) -> None:
    """Calls under `no_grad` and `inference_mode` give the same result."""
    first, subject = _first_run(case), _accepted_subject(case)
    for where in (torch.no_grad, torch.inference_mode):
        with where(), _model_unchanged(subject):
            differ = differing_arrays(first.result, subject.run(seed=SEED))
        assert not differ, f"{', '.join(differ)} differ under {where.__name__}"


@check("technique")
def works_in_bfloat16(case: Case) -> None:
    """A model in bfloat16 gives finite values, or a `TimmscopeError`."""
    subject = _accepted_subject(case)
    if subject.technique.base in ("store", "stores"):
        raise NotApplicable("a store has its own precision")
    subject.model.module.bfloat16()
    with _model_unchanged(subject):
        try:
            subject.run()
        except TimmscopeError as refusal:
            _assert_one_line(refusal)


@check("technique")
def result_survives_saving(case: Case) -> None:
    """A result is saved with a picture, and loads with the same arrays and provenance."""
    result = _accepted_subject(case).run()
    folder = result.save(case.folder / "result")
    assert (folder / "figure.png").stat().st_size > 0
    again = load_result(folder)
    assert type(again) is type(result)
    assert not differing_arrays(result, again)
    assert again.provenance == result.provenance
    assert isinstance(result.summary(), list)


@check("technique")
def result_is_reproducible_from_its_json(case: Case) -> None:
    """Technique, parameters, seed and call from `result.json` give the same arrays."""
    result = _first_run(case).result
    kept = Provenance(**json.loads(json.dumps(dataclasses.asdict(result.provenance))))
    assert kept.technique == case.entry.id, f"the result names the technique {kept.technique}"
    again = _accepted_subject(case)
    again.technique = technique(kept.technique)(**kept.parameters)
    differ = differing_arrays(result, again.run(seed=kept.seed, **kept.call))
    assert not differ, f"{', '.join(differ)} differ when the result is reproduced"


@check("technique")
def progress_is_reported_and_work_can_be_stopped(case: Case) -> None:
    """Reported steps add up to the total; Ctrl-C stops a run and leaves the model unchanged."""
    subject = _accepted_subject(case)
    with recorded_progress() as recorder:
        subject.run()
    if not any(done for _, _, done in recorder.tasks):
        raise NotApplicable("it reports no progress")
    for description, total, done in recorder.tasks:
        assert total in (None, done), f"{description!r} reported {done} of {total} steps"
    before = fingerprint(subject.model.module)
    try:
        with recorded_progress(stop=1):
            subject.run()
    except KeyboardInterrupt:
        pass
    else:
        raise AssertionError("Ctrl-C was swallowed")
    assert not fingerprint(subject.model.module).difference(before)


@check("technique")
def stays_inside_the_radius(case: Case) -> None:
    """An attack takes any norm that it declares and any radius, and stays within it."""
    subject = _accepted_subject(case)
    used = subject.technique
    if not isinstance(used, BoundedTechnique):
        raise NotApplicable(f"the base {used.base} has no radius")
    kind, given = type(used), dict(used)
    norms = get_args(kind.model_fields["norm"].annotation)
    for norm in norms:
        radius = {"linf": 0.01, "l2": 0.2, "l1": 2.0, "l0": 20.0}[norm]
        subject.technique = kind(**given | {"norm": norm, "epsilon": radius})
        result: Any = subject.run()  # a change outside is an error
        assert result.norm == norm, f"the result has the norm {result.norm}, not {norm}"


@check("technique")
def takes_every_goal(case: Case) -> None:
    """An attack raises an objective to a value, or refuses it in one line."""
    subject = _accepted_subject(case)
    if not isinstance(subject.technique, BoundedTechnique):
        raise NotApplicable(f"the base {subject.technique.base} has no goal")
    used: Any = subject.technique
    images = subject.images if used.base == "attack" else tiny_images(12)
    layer = next(name for name, layer in subject.model.layers.items() if layer.channels > 1)
    for goal in ({"objective": f"-{layer}[1]", "value": 1e6}, {"objective": 3, "value": -1e6}):
        try:
            result = used(subject.model, images, **goal)
        except TimmscopeError as refusal:
            _assert_one_line(refusal)
            continue
        done = result.success if used.base == "attack" else result.fooled
        assert not done.any(), "it claims a value that no image reaches, or that all had before"


@check("technique")
def names_are_opened_by_a_call_only(case: Case) -> None:
    """A name of something that is not there is an error of the call, not of the parameter."""
    used = technique(case.entry.id)(**case.parameters)
    named = [name for name, of in meanings(type(used)).items() if of.kind != "technique"]
    if not named:
        raise NotApplicable("its parameters name nothing that is opened")
    for name in named:
        missing = str(case.folder / "nothing-is-here")
        value = (missing,) if isinstance(getattr(used, name), tuple) else missing
        subject = _accepted_subject(case)
        subject.technique = type(used)(**dict(used) | {name: value})
        try:
            subject.run()
        except TimmscopeError as refusal:
            _assert_one_line(refusal)
            assert name in str(refusal), f"the error does not name {name}: {refusal}"
        else:
            raise AssertionError(f"it runs although {name} names nothing")


@check("technique")
def further_models_are_untouched(case: Case) -> None:
    """A model that a parameter names is recorded, and unchanged after a call and an error."""
    subject = _accepted_subject(case)
    used = subject.technique
    named = [name for name, of in meanings(type(used)).items() if of.kind == "model"]
    if not named:
        raise NotApplicable("its parameters name no model")
    for name in named:
        other = tiny_model(subject.model.id.removeprefix("tiny:"))
        other.module.train()
        value = (other,) if isinstance(getattr(used, name), tuple) else other
        subject.technique = type(used)(**dict(used) | {name: value})
        before = fingerprint(other.module)
        with _no_state_warning():
            result, again = subject.run(), subject.run()
        differ = differing_arrays(result, again)
        assert not differ, f"{', '.join(differ)} differ in a second run"
        record = next(r for n, r in result.provenance.named.items() if n.partition("[")[0] == name)
        assert record["sha256"] == other.weights_sha256, f"{name} has another digest in the record"
        wire: Any = other.module.get_submodule("tripwire")
        count = wire.passed
        wire.passed, wire.armed = 0, max(1, count // 4)
        if count:
            try:
                with _no_state_warning():
                    subject.run()
            except (RuntimeError, TimmscopeError) as error:
                assert "tripwire" in str(error), f"another error was raised: {error}"
            else:
                raise AssertionError(f"an error in a forward of {name} was swallowed")
        changed = fingerprint(other.module).difference(before)
        assert not changed, f"{name} has changed: {'; '.join(changed)}"


@check("technique")
def a_stopped_training_resumes(case: Case) -> None:
    """A training that is stopped and resumed ends with the bytes of one that is not."""
    subject, call = _training(case)
    whole, stopped = subject.new_folder(), subject.new_folder()
    call(output=whole)
    with contextlib.suppress(KeyboardInterrupt), recorded_progress(stop=3):
        call(output=stopped, checkpoint_every=1)
    call(output=stopped, checkpoint_every=1)
    for name in ("weights.safetensors", "card.json"):
        assert (whole / name).read_bytes() == (stopped / name).read_bytes(), f"{name} differs"


@check("technique")
def a_card_makes_the_network_again(case: Case) -> None:
    """The card's technique and parameters make a network into which the weights load."""
    subject, call = _training(case)
    result = call(output=subject.new_folder())
    loaded = result.model(subject.model)
    assert result.card["weights_sha256"] == _sha256(Path(result.folder) / "weights.safetensors")
    assert loaded.weights_sha256 == result.model(subject.model).weights_sha256
    assert loaded.weights_sha256 != subject.model.weights_sha256, "no weight was trained"


def _training(case: Case) -> tuple[Subject, Callable[..., Any]]:
    """Return a training with its model, and its call without the folder.

    Raises:
        NotApplicable: the technique is no training.
    """
    base = technique(case.entry.id).base
    if base != "training":
        raise NotApplicable(f"the base {base} trains nothing")
    subject = _accepted_subject(case)
    used: Any = subject.technique
    return subject, partial(used, subject.model, subject.labelled, seed=3)


def _sha256(file: Path) -> str:
    return hashlib.sha256(file.read_bytes()).hexdigest()


@dataclass(frozen=True)
class _FirstRun:
    """The first run of a technique on the first tiny model that it accepts, a new one.

    Checks compare further runs with its result, so that a technique need not run twice for each.
    """

    layout: str
    result: Result


_first: dict[Technique, _FirstRun] = {}
"""The first run of the technique that was checked last."""


def _first_run(case: Case) -> _FirstRun:
    used = technique(case.entry.id)(**case.parameters)
    if used not in _first:
        found = _found_first_run(case)
        _first.clear()
        _first[used] = found
    return _first[used]


def _found_first_run(case: Case) -> _FirstRun:
    refusals = []
    for layout in ("cnn", "token", "hybrid", "nhwc"):
        subject = Subject.of(case, layout)
        subject.folder = case.folder / f"tried-{layout}"
        try:
            result = subject.run(seed=SEED)
        except TimmscopeError as refusal:
            refusals.append(f"{layout}: {refusal}")
        else:
            return _FirstRun(layout, result)
    raise AssertionError("it refuses every tiny model: " + "; ".join(refusals))


def _accepted_subject(case: Case) -> Subject:
    """Return the technique with a new tiny model of the first kind that it accepts."""
    return Subject.of(case, _first_run(case).layout)


@contextlib.contextmanager
def _model_unchanged(subject: Subject) -> Iterator[None]:
    """Fail if the block changes the model."""
    before = fingerprint(subject.model.module)
    with _no_state_warning():
        yield
    changed = fingerprint(subject.model.module).difference(before)
    assert not changed, f"the model has changed: {'; '.join(changed)}"


@contextlib.contextmanager
def _no_state_warning() -> Iterator[None]:
    """Fail if the family's base warns that it had to restore something."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            yield
        finally:
            left = [each for each in caught if issubclass(each.category, StateWarning)]
            assert not left, str(left[0].message)


def _assert_no_setting_changed(subject: Subject) -> None:
    changed = ", ".join(subject.changed_settings)
    assert not changed, f"it changed {changed}, which the whole process shares"


def _assert_one_line(refusal: TimmscopeError) -> None:
    text = str(refusal)
    assert text, f"a {type(refusal).__name__} without a message"
    assert "\n" not in text, f"the message has several lines: {text!r}"
