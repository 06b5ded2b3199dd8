"""Opens what the parameters of a technique name, once for each call.

A call opens everything before it works, so that a wrong name is an error at once, and the record of
the call has id and digest of each. Further models are under the guarantees of the main model: each
chunk leaves them as they were, changed weights are an error, and their passes are counted. At the
end of the call, what was opened must still be what it was.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from contextvars import ContextVar
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import torch
from torch import Tensor, nn

from timmscope.images import open_images
from timmscope.images.digests import image_sha256
from timmscope.models import HookedModel, load_model
from timmscope.models.trained import CARD
from timmscope.parameters import Digests, NamedValue, named_values, technique_error
from timmscope.parameters.names import DIGITS, identity, live_id, split_digest
from timmscope.results.result import Result
from timmscope.safe_files import why
from timmscope.store import Store
from timmscope.store.manifest import NAME as MANIFEST
from timmscope.store.manifest import Manifest
from timmscope.techniques.session import check_seed
from timmscope.techniques.trained_weights import TrainedWeights
from timmscope_registry import (
    ImageError,
    ModelError,
    ParameterError,
    StoreMismatch,
    TimmscopeError,
    UnsupportedModel,
)
from timmscope_registry.hooks import OwnGenerators

if TYPE_CHECKING:
    from timmscope.techniques.base import Technique

ResultT = TypeVar("ResultT", bound=Result)
_ERRORS = {
    "model": ModelError,
    "weights": ModelError,
    "store": StoreMismatch,
    "image": ImageError,
    "image set": ImageError,
}


@dataclass(frozen=True)
class Opened:
    """Something that a call has opened.

    Attributes:
        value: a model, `ImageSource` or tensor, picture, store, or `TrainedWeights`.
        id: its id in records.
        sha256: its digest; None for a prediction function.
        digest_now: computes the digest again.
        model: the model, also of weights; None for all else.
    """

    value: Any
    id: str
    sha256: str | None
    digest_now: Callable[[], str | None] = field(repr=False)
    model: HookedModel | None = None


class Openings:
    """A running call, with what the parameters of its techniques name.

    Args:
        techniques: the techniques that run in it.
        main: the model that the caller gave; None without one.

    Attributes:
        passes: numbers of images that passed forwards and backwards through each further model, by
            technique and by the parameter that names the model.
    """

    def __init__(self, techniques: Sequence[Technique], main: HookedModel | None) -> None:
        self.techniques = techniques
        self.passes: list[dict[str, list[int]]] = [{} for _ in techniques]
        self._main = main
        self._named = [list(named_values(each)) for each in techniques]
        self._opened: dict[tuple[str, object], Opened] = {}
        self._own: set[tuple[str, object]] = set()  # the others are of a call around this one

    def open_all(self) -> None:
        """Open everything that is not open yet.

        Raises:
            ParameterError: something is not there or is of another kind.
            TimmscopeError: something is not what the text of a record names.
        """
        for technique, named in zip(self.techniques, self._named, strict=True):
            for each in named:
                if each.meant.kind != "technique":
                    self._open(technique, each)

    def find(self, kind: str, value: object) -> Opened | None:
        """Return what a value of a parameter names, opened; None if no technique has the value."""
        for technique, named in zip(self.techniques, self._named, strict=True):
            for each in named:
                if each.meant.kind == kind and identity(each.value) == identity(value):
                    return self._open(technique, each)
        return None

    def further_models(self, technique: Technique) -> dict[str, HookedModel]:
        """Return the open models that a technique names besides the main one, by parameter."""
        found: dict[str, HookedModel] = {}
        for each in self._named[self._place(technique)]:
            opened = self._opened.get((each.meant.kind, identity(each.value)))
            if opened is not None and opened.model is not None and opened.model is not self._main:
                known = {id(model) for model in found.values()}
                if id(opened.model) not in known:
                    found[each.parameter] = opened.model
        return found

    def record(self, technique: Technique) -> dict[str, dict[str, Any]]:
        """Return kind, id and SHA-256 of what a technique's parameters name, by parameter."""
        record: dict[str, dict[str, Any]] = {}
        for each in self._named[self._place(technique)]:
            if each.meant.kind == "technique":
                record[each.parameter] = {"kind": "technique", "id": each.value.technique_id()}
                continue
            opened = self._opened[each.meant.kind, identity(each.value)]
            record[each.parameter] = {
                "kind": each.meant.kind,
                "id": opened.id,
                "sha256": opened.sha256,
            }
            if isinstance(opened.value, TrainedWeights):
                record[each.parameter]["technique"] = opened.value.card.technique
        return record

    def add_passes(self, technique: Technique, passes: dict[str, list[int]]) -> None:
        """Add numbers of images that passed forwards and backwards, by parameter."""
        known = self.passes[self._place(technique)]
        for parameter, counts in passes.items():
            total = known.setdefault(parameter, [0, 0])
            total[0] += counts[0]
            total[1] += counts[1]

    @property
    def digests(self) -> Digests:
        """The first digits of the digest of everything that is open."""
        return {
            key: opened.sha256[:DIGITS]
            for key, opened in self._opened.items()
            if opened.sha256 is not None
        }

    def reported(self, result: ResultT, technique: Technique | None = None) -> ResultT:
        """Return a result of the call with the passes of further models.

        Args:
            result: the result.
            technique: the technique that made it, if several run in the call.
        """
        place = 0 if technique is None else self._place(technique)
        passes = {
            parameter: {"forwards": forwards, "backwards": backwards}
            for parameter, (forwards, backwards) in self.passes[place].items()
        }
        return replace(result, further_passes=passes) if passes else result

    def require_unchanged(self) -> None:
        """Check that everything that this call has opened is still what it was then.

        Raises:
            TimmscopeError: something has changed.
        """
        for technique, named in zip(self.techniques, self._named, strict=True):
            for each in named:
                key = each.meant.kind, identity(each.value)
                if key not in self._own:
                    continue
                opened = self._opened[key]
                try:
                    now = opened.digest_now()
                except TimmscopeError as error:
                    raise _ERRORS[each.meant.kind](
                        f"{each.parameter} of {technique.title()}, {opened.id}, changed while the "
                        f"call ran ({error}): run it again"
                    ) from error
                if now != opened.sha256:
                    raise _ERRORS[each.meant.kind](
                        f"{each.parameter} of {technique.title()}, {opened.id}, changed while the "
                        f"call ran: its digest was {_short(opened.sha256)}, now it is "
                        f"{_short(now)}: run it again"
                    )

    def _place(self, technique: Technique) -> int:
        return next(n for n, each in enumerate(self.techniques) if each is technique)

    def _open(self, technique: Technique, named: NamedValue) -> Opened:
        where = f"parameter {named.parameter!r} of {technique.title()}"
        key = named.meant.kind, identity(named.value)
        if key not in self._opened:
            around = (call for call in reversed(_calls.get()) if call._main is self._main)
            shared = (call._opened[key] for call in around if key in call._opened)
            opened = next(shared, None)  # as in an evaluation, which calls techniques
            if opened is None:
                opened = self._open_new(where, named)
                self._own.add(key)
            self._opened[key] = opened
        opened = self._opened[key]
        kind = named.meant.base
        trained = isinstance(opened.value, TrainedWeights) and kind is not None
        if trained and not isinstance(opened.value.technique, kind):
            raise ParameterError(
                f"{where}: {opened.id} was trained by {opened.value.card.technique}, expected "
                f"{kind.technique_id()}",
                parameter=named.parameter,
            )
        return opened

    def _open_new(self, where: str, named: NamedValue) -> Opened:
        kind, value = named.meant.kind, named.value
        name, digest = split_digest(value) if isinstance(value, str) else ("", "")
        if name.startswith(("module:", "memory:")):
            raise ParameterError(
                f"{where} is {name!r}, an object that was in memory: give the object itself",
                parameter=named.parameter,
            )
        try:
            with torch.inference_mode(False):  # a gradient passes through its tensors
                opened = _OPENERS[kind](self._main, name or value, named)
        except (TimmscopeError, OSError, ValueError) as error:
            reason = str(error) if isinstance(error, TimmscopeError) else why(error)
            raise ParameterError(
                f"{where}: {reason}{_other_kind(kind, name)}", parameter=named.parameter
            ) from error
        if digest and (opened.sha256 or "")[:DIGITS] != digest:
            raise _ERRORS[kind](
                f"{where} is {name}, whose digest is {_short(opened.sha256)}, expected {digest}: "
                "it has changed since, or is another one"
            )
        return opened


def _is_random(model: HookedModel) -> bool:
    """Whether a further model draws random numbers; one that takes no images is not asked."""
    try:
        return model.hooks.is_random
    except UnsupportedModel:
        return False


def _short(digest: str | None) -> str:
    return "none" if digest is None else digest[:DIGITS]


def _other_kind(kind: str, name: str) -> str:
    """Say what lies where a text points, if it is of another kind."""
    path = Path(name)
    try:
        if name and (path / MANIFEST).is_file() and kind != "store":
            return f"; {name} is a store"
        if name and (path / CARD).is_file() and kind != "weights":
            return f"; {name} is a trained network, as a model file:{name}"
    except OSError:  # too long for a path
        pass
    return ""


def _open_model(main: HookedModel | None, value: Any, named: NamedValue) -> Opened:
    model = value
    if isinstance(value, str):
        model = load_model(value, device=None if main is None else main.device)
    elif not isinstance(value, HookedModel):
        model = HookedModel(value)
    return _of_model(model, main, model, model.id)


def _of_model(model: HookedModel, main: HookedModel | None, value: Any, id: str) -> Opened:
    if main is not None and model.device != main.device:
        raise ModelError(f"{model.id} is on {model.device}, {main.id} on {main.device}: move one")
    vars(model).pop("weights_sha256", None)  # it may have changed since it was computed
    sha256 = model.weights_sha256
    snapshot = None if model.is_function else model.hooks.snapshot()

    def digest_now() -> str | None:
        if snapshot is not None and (snapshot.written() or not model.hooks.has_parts()):
            vars(model).pop("weights_sha256", None)
        return model.weights_sha256

    return Opened(value, id, sha256, digest_now, model)


def _open_weights(main: HookedModel | None, value: Any, named: NamedValue) -> Opened:
    if isinstance(value, nn.Module):  # it need not take images, so what is said of them is not used
        network = HookedModel(value, mean=(0.0,), std=(1.0,), input_size=(1, 1, 1))
        return _of_model(network, main, network, network.id)
    if isinstance(value, TrainedWeights):
        weights = value
    else:
        weights = TrainedWeights.load(value, named.meant.base, base=main)
        if main is not None:
            weights.model.to(main.device)
    opened = _of_model(weights.model, main, weights, weights.folder)
    digest = weights.card.weights_sha256  # of the file, which is that of the network in memory

    def digest_now() -> str | None:
        now = opened.digest_now()
        return digest if now == opened.sha256 else now

    return replace(opened, sha256=digest, digest_now=digest_now)


def _open_images(main: HookedModel | None, value: Any, named: NamedValue) -> Opened:
    if isinstance(value, Tensor):
        return Opened(value, live_id(value), image_sha256(value), lambda: image_sha256(value))
    source = open_images(value)
    location = source.location
    if not len(source):
        raise ImageError(f"{value} holds no image")

    def fingerprint_now() -> str:
        return (open_images(location) if location else source).fingerprint()

    return Opened(source, location or live_id(source), source.fingerprint(), fingerprint_now)


def _open_image(main: HookedModel | None, value: Any, named: NamedValue) -> Opened:
    name = value if isinstance(value, str) else live_id(value)
    return Opened(value, name, image_sha256(value), lambda: image_sha256(value))


def _open_store(main: HookedModel | None, value: Any, named: NamedValue) -> Opened:
    store = value if isinstance(value, Store) else Store.open(value)

    def digest_now() -> str:
        return Manifest.read(store.path).digest()

    return Opened(store, str(store.path), store.manifest.digest(), digest_now)


_OPENERS: dict[str, Callable[[HookedModel | None, Any, NamedValue], Opened]] = {
    "model": _open_model,
    "weights": _open_weights,
    "image set": _open_images,
    "image": _open_image,
    "store": _open_store,
}

_calls: ContextVar[tuple[Openings, ...]] = ContextVar("timmscope_calls", default=())


@contextmanager
def opening(
    techniques: Sequence[Technique],
    main: HookedModel | None,
    seed: int,
    *,
    when_needed: bool = False,
) -> Iterator[Openings]:
    """Open what the parameters of techniques name, for the call inside the context.

    Args:
        techniques: the techniques of the call.
        main: the model that the caller gave; None without one.
        seed: seed of the call, for further models that are random themselves.
        when_needed: open each only when the technique asks for it.

    Raises:
        ParameterError: something is not there or is of another kind.
        TimmscopeError: something is not what a record names, or changed while the call ran.
    """
    call = Openings(techniques, main)
    if not when_needed:
        call.open_all()
    models = [model for each in techniques for model in call.further_models(each).values()]
    random = [model for model in models if _is_random(model)]
    if random:
        check_seed(seed)
    token = _calls.set((*_calls.get(), call))
    try:
        with OwnGenerators(seed) if random else nullcontext():
            yield call
        call.require_unchanged()
    finally:
        _calls.reset(token)


def openings_of(technique: Technique) -> Openings | None:
    """Return the innermost call that runs a technique; None if none does."""
    calls = reversed(_calls.get())
    return next((c for c in calls if any(each is technique for each in c.techniques)), None)


def find_opened(technique: Technique, kind: str, value: object) -> Opened:
    """Return what a value of a parameter names.

    Raises:
        TechniqueError: no call runs, or no parameter of its techniques has the value.
    """
    for call in reversed(_calls.get()):
        opened = call.find(kind, value)
        if opened is not None:
            return opened
    asked = value if isinstance(value, str) else live_id(value)
    if not _calls.get():
        did = f"was asked to open the {kind} {asked} outside a call"
        raise technique_error(technique, did, advice="call the technique, not its method")
    raise technique_error(
        technique,
        f"opens the {kind} {asked}, which none of its parameters names",
        expected="the value of a parameter, as in self.open_model(self.surrogate)",
    )


def main_model() -> HookedModel | None:
    """Return the main model of the running call."""
    calls = _calls.get()
    return calls[-1]._main if calls else None
