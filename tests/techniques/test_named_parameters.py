"""Parameters that name models, images, stores, weights and techniques, opened once for a call."""

from __future__ import annotations

import hashlib
import inspect
import json
import shutil
from contextlib import contextmanager
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn import functional

import timmscope.techniques.opening as opening_module
from timmscope import (
    AttackTechnique,
    AttributionTechnique,
    CertificationOutcome,
    CertificationTechnique,
    DefenceTechnique,
    Goal,
    HookedModel,
    ImageError,
    ImageName,
    ImageSetName,
    ModelError,
    ModelName,
    ModelTechnique,
    NetworkName,
    Norm,
    ObjectiveError,
    ParameterError,
    Store,
    StoreMismatch,
    StoreName,
    StoresTechnique,
    StoreTechnique,
    StyleOutcome,
    StyleTechnique,
    SynthesisOutcome,
    SynthesisTechnique,
    Table,
    TechniqueError,
    TechniqueName,
    TrainedWeights,
    TrainingTechnique,
    UniversalAttack,
    WeightsName,
    evaluate,
    load_model,
    load_result,
    mine,
    open_images,
)
from timmscope.cli.technique_command import command
from timmscope.parameters import from_text
from timmscope.progress import reporting
from timmscope.techniques import judging
from timmscope.techniques.restore_state import StateWarning
from timmscope.testing import tiny_images, tiny_model
from timmscope_attack.fgsm import FGSM
from timmscope_attack.pgd import PGD
from timmscope_registry.hooks import ModelHooks, OwnGenerators, fingerprint

OTHER = "random:test_resnet?seed=1&img_size=32&num_classes=10"


class Linear(nn.Module):
    """`logits = W · pixels` of one pixel."""

    num_classes = 2

    def __init__(self, rows: list[list[float]]) -> None:
        super().__init__()
        self.flatten = nn.Flatten()
        self.fc = nn.Linear(3, 2, bias=False)
        with torch.no_grad():
            self.fc.weight.copy_(torch.tensor(rows))

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.flatten(x))


def linear(rows: list[list[float]]) -> HookedModel:
    return HookedModel(Linear(rows), mean=(0, 0, 0), std=(1, 1, 1), input_size=(3, 1, 1))


class Transfer(AttackTechnique):
    """One step along the gradient of a surrogate."""

    norm: Norm = "linf"
    """Norm."""
    surrogate: ModelName
    """Model whose gradient is followed."""
    does: str = "nothing"
    """What else it does to the surrogate."""

    def perturb(self, model: HookedModel, images: Tensor, goal: Goal) -> Tensor:
        other = self.open_model(self.surrogate)
        assert other is self.open_model(self.surrogate)
        gradient = goal.gradient(other, images)[1]
        if self.does == "hook":
            other.module.register_forward_pre_hook(lambda *_: None)
        if self.does in ("train", "raise"):
            other.module.train()
        if self.does == "raise":
            raise RuntimeError("in the middle")
        if self.does == "write":
            next(other.module.parameters()).data.add_(1)
        ball = self.ball(images)
        return ball.step(images, images, gradient, ball.epsilon)


IMAGES = torch.tensor([[0.5, 0.4, 0.5], [0.5, 0.45, 0.5]]).view(2, 3, 1, 1)


def test_an_attack_follows_the_surrogate_and_is_judged_on_the_main_model():
    main = linear([[1, 0, 0], [0, 1, 0]])  # class 0 while red exceeds green
    surrogate = linear([[3, 0, -1], [0, 2, 1]])
    result = Transfer(surrogate=surrogate, epsilon=0.04)(main, IMAGES)
    # The loss of class 0 rises along W1 - W0 of the surrogate: (-3, 2, 2).
    expected = IMAGES + 0.04 * torch.tensor([-1.0, 1.0, 1.0]).view(1, 3, 1, 1)
    assert torch.allclose(result.images, expected)
    # Red falls to 0.46; green rises to 0.44 and to 0.49: only the second is broken.
    assert result.success.tolist() == [False, True]
    assert result.forwards.tolist() == [0, 0]
    assert result.other_models == ["surrogate"]
    assert result.other_forwards.tolist() == result.other_backwards.tolist() == [[1], [1]]
    assert result.further_passes == {"surrogate": {"forwards": 2, "backwards": 2}}
    assert result.summary()[0]["forwards of surrogate"] == 1


def test_the_result_has_id_and_digest_of_what_was_named(tmp_path):
    name = OTHER
    result = Transfer(surrogate=name)(tiny_model(), tiny_images(1))
    digest = load_model(name).weights_sha256
    assert digest is not None
    expected = {"surrogate": {"kind": "model", "id": name, "sha256": digest}}
    assert result.provenance.named == expected
    assert result.provenance.parameters["surrogate"] == f"{name}#{digest[:16]}"
    again = load_result(result.save(tmp_path / "result"))
    assert again.provenance == result.provenance
    assert again.further_passes == result.further_passes
    line = f"surrogate: model {name}, SHA-256 {digest[:16]}…, 1 forwards, 1 backwards"
    assert again.named_lines() == [line]
    assert digest[:16] in again._repr_html_()


def test_a_plain_module_and_a_model_are_taken_as_they_are():
    surrogate = linear([[3, 0, -1], [0, 2, 1]])
    first = Transfer(surrogate=surrogate)(linear([[1, 0, 0], [0, 1, 0]]), IMAGES)
    assert first.provenance.named["surrogate"]["id"] == "module:Linear"
    with pytest.raises(ParameterError, match=r"'surrogate' of Transfer: .*mean"):
        Transfer(surrogate=surrogate.module)(tiny_model(), tiny_images(1))
    with pytest.raises(ParameterError, match=r"'module:Linear', an object that was in memory"):
        Transfer(**first.provenance.parameters)(tiny_model(), tiny_images(1))


def test_a_surrogate_of_other_classes_is_refused():
    module = nn.Sequential(nn.AvgPool2d(32), nn.Flatten(), nn.Linear(3, 2))
    main = HookedModel(module, mean=(0, 0, 0), std=(1, 1, 1), input_size=(3, 32, 32))
    words = "tiny:cnn has 10 classes, and the goal is a class of 2"
    with pytest.raises(ObjectiveError, match=words):
        Transfer(surrogate=tiny_model())(main, tiny_images(1))


def test_equal_names_make_equal_techniques_and_a_live_object_equals_itself_only():
    one, other = linear([[1, 0, 0]] * 2), linear([[1, 0, 0]] * 2)
    assert Transfer(surrogate="a") == Transfer(surrogate="a") != Transfer(surrogate="b")
    assert Transfer(surrogate=one) == Transfer(surrogate=one) != Transfer(surrogate=other)
    assert len({Transfer(surrogate=one), Transfer(surrogate=one), Transfer(surrogate=other)}) == 2


@pytest.mark.parametrize("batch_size", [1, 2, 5])
def test_a_model_is_opened_once_per_call_however_the_batch_is_split(monkeypatch, batch_size):
    loaded: list[str] = []
    load = opening_module.load_model

    def load_model(name: str, **more: Any) -> HookedModel:
        loaded.append(name)
        return load(name, **more)

    monkeypatch.setattr(opening_module, "load_model", load_model)
    attack = Transfer(surrogate=OTHER)
    result = attack(tiny_model(), tiny_images(5), batch_size=batch_size)
    assert len(loaded) == 1
    assert result.further_passes == {"surrogate": {"forwards": 5, "backwards": 5}}
    attack(tiny_model(), tiny_images(1))
    assert len(loaded) == 2


def test_a_model_is_opened_for_gradients_inside_inference_mode():
    attack, model, images = Transfer(surrogate=OTHER, epsilon=0.1), tiny_model(), tiny_images(2)
    expected = attack(model, images)
    with torch.inference_mode():
        assert torch.equal(attack(model, images).images, expected.images)


# Guarantees


@pytest.mark.parametrize("does", ["hook", "train"])
def test_what_is_left_on_a_further_model_is_undone_and_reported(does):
    surrogate = tiny_model("token")
    before = fingerprint(surrogate.module)
    with pytest.warns(StateWarning, match=r"Transfer.*surrogate"):
        Transfer(surrogate=surrogate, does=does)(tiny_model(), tiny_images(2), batch_size=1)
    assert not fingerprint(surrogate.module).difference(before)


def test_a_further_model_is_as_it_was_after_an_error():
    surrogate = tiny_model("token")
    surrogate.module.train()
    surrogate.module.get_submodule("tripwire").eval()
    before = fingerprint(surrogate.module)
    with pytest.warns(StateWarning), pytest.raises(RuntimeError, match="in the middle"):
        Transfer(surrogate=surrogate, does="raise")(tiny_model(), tiny_images(1))
    assert not fingerprint(surrogate.module).difference(before)


def test_a_written_weight_of_a_further_model_is_an_error():
    with pytest.raises(TechniqueError, match="wrote into weights of surrogate, as "):
        Transfer(surrogate=tiny_model("token"), does="write")(tiny_model(), tiny_images(1))


@contextmanager
def between_chunks(change: Any) -> Any:
    """Call a function after each step of a progress bar, as another thread might."""

    class Reporter:
        @contextmanager
        def open(self, description: str, total: int | None) -> Any:
            yield lambda steps: change()

    with reporting(Reporter()):
        yield


def test_a_further_model_whose_weights_change_during_the_call_is_an_error():
    surrogate = tiny_model("token")
    weight = next(surrogate.module.parameters())

    def change() -> None:
        weight.data.add_(0.5)

    attack = Transfer(surrogate=surrogate)
    words = "surrogate of Transfer, tiny:token, changed while the call ran"
    with between_chunks(change), pytest.raises(ModelError, match=words):
        attack(tiny_model(), tiny_images(2), batch_size=1)
    change()
    result = attack(tiny_model(), tiny_images(2))  # the next call records what it is now
    fresh = HookedModel(surrogate.module, mean=(0,) * 3, std=(1,) * 3, input_size=(3, 32, 32))
    assert result.provenance.named["surrogate"]["sha256"] == fresh.weights_sha256


def test_a_further_model_whose_weights_changed_since_the_record_is_refused(tmp_path):
    file = tmp_path / "net.safetensors"
    save_file(
        load_model("random:test_resnet?seed=3&img_size=32&num_classes=10").module.state_dict(), file
    )
    attack = Transfer(
        surrogate=f"file:{file}?arch=test_resnet&img_size=32&num_classes=10", epsilon=0.1
    )
    first = attack(tiny_model(), tiny_images(1))
    recorded = Transfer(**json.loads(json.dumps(first.provenance.parameters)))
    again = recorded(tiny_model(), tiny_images(1))
    assert torch.equal(again.images, first.images)
    assert again.provenance == first.provenance
    save_file(
        load_model("random:test_resnet?seed=4&img_size=32&num_classes=10").module.state_dict(), file
    )
    digest = first.provenance.named["surrogate"]["sha256"][:16]
    with pytest.raises(ModelError, match=f"expected {digest}: it has changed since"):
        recorded(tiny_model(), tiny_images(1))
    later = attack(tiny_model(), tiny_images(1)).provenance.named["surrogate"]["sha256"]
    assert not later.startswith(digest)


def test_parameters_of_a_record_open_nothing_until_the_call(tmp_path, monkeypatch):
    result = Transfer(surrogate=OTHER)(tiny_model(), tiny_images(1))
    folder = result.save(tmp_path / "result")

    def opened(*_: Any, **__: Any) -> None:
        raise AssertionError("something was opened")

    for name in ("load_model", "open_images", "image_sha256"):
        monkeypatch.setattr(opening_module, name, opened)
    loaded = load_result(folder)
    made = Transfer(**loaded.provenance.parameters)
    assert made == Transfer.model_validate_json(made.model_dump_json())
    assert f"surrogate={OTHER}#" in made.text()
    Everything(picture="/dev/zero", pictures="/", store="/etc", model="file:/etc/passwd")
    with pytest.raises(AssertionError, match="something was opened"):
        made(tiny_model(), tiny_images(1))


def test_a_method_outside_a_call_and_a_name_of_no_parameter_open_nothing():
    attack = Transfer(surrogate="random:test_resnet")
    with pytest.raises(TechniqueError, match="outside a call"):
        attack.open_model(attack.surrogate)

    class Wrong(Transfer):
        def perturb(self, model: HookedModel, images: Tensor, goal: Goal) -> Tensor:
            self.open_model("random:test_resnet?seed=9")
            return images

    with pytest.raises(TechniqueError, match="none of its parameters names"):
        Wrong(surrogate=tiny_model())(tiny_model(), tiny_images(1))


# Other kinds


class Everything(AttributionTechnique):
    """Opens one thing of each kind and shows what it found."""

    model: ModelName | None = None
    """A model."""
    more: tuple[ModelName, ...] = ()
    """Models."""
    pictures: ImageSetName | None = None
    """Images."""
    labels: bool = False
    """Whether these need labels."""
    picture: ImageName | None = None
    """An image."""
    store: StoreName | None = None
    """A store."""
    attack: TechniqueName[AttackTechnique] | None = None
    """An attack."""

    def attribute(self, model: Any, images: Any, objective: Any) -> Tensor:
        if self.pictures is not None:
            found = self.open_images(self.pictures, labels=self.labels)
            self.note("pictures", len(found))
            self.note("mean", float(found.load(0).image.mean()))
        if self.picture is not None:
            self.note("picture", list(self.open_image(self.picture).shape)[-1])
        if self.store is not None:
            self.note("images", len(self.open_store(self.store).images))
        for number, each in enumerate(self.more):
            self.note(f"classes {number}", self.open_model(each)(images).shape[1])
        return images.sum(1) + torch.arange(32.0)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Four pictures of 32×32 px, of two labels."""
    for number in range(4):
        file = tmp_path / "pictures" / f"label{number % 2}" / f"{number}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.full((32, 32, 3), 51 * (number + 1), np.uint8)).save(file)
    return tmp_path / "pictures"


@pytest.fixture
def store(folder: Path) -> Store:
    return mine(tiny_model(), folder, folder.parent / "tiny.scope", layers=["act2"], workers=0)


def test_images_an_image_and_a_store_are_opened_and_recorded(folder, store):
    picture = folder / "label0" / "0.png"
    used = Everything(pictures=folder, picture=picture, store=store.path)
    result = used(tiny_model(), tiny_images(2), 0)
    assert result.notes["pictures"] == 4
    assert result.notes["mean"] == pytest.approx(0.2)  # 51 / 255
    assert result.notes["picture"] == 32
    assert result.notes["images"] == 4
    named = result.provenance.named
    assert named["picture"]["sha256"] == hashlib.sha256(picture.read_bytes()).hexdigest()
    assert named["pictures"]["sha256"] == open_images(folder).fingerprint()
    assert named["store"]["sha256"] == store.manifest.digest()
    live = Everything(pictures=open_images(folder), picture=torch.rand(3, 32, 32), store=store)(
        tiny_model(), tiny_images(2), 0
    )
    assert live.provenance.named["pictures"] == named["pictures"]
    assert live.provenance.named["store"] == named["store"]
    assert live.notes["images"] == 4


def test_images_that_change_during_the_call_are_an_error(folder, store):
    def change() -> None:
        Image.new("RGB", (32, 32)).save(folder / "label0" / "0.png")

    words = r"pictures of Everything, .*changed while the call ran"
    with between_chunks(change), pytest.raises(ImageError, match=words):
        Everything(pictures=folder)(tiny_model(), tiny_images(1), 0)


def test_a_store_that_changes_during_the_call_is_an_error(store):
    def change() -> None:
        store.manifest.model_copy(update={"batch_size": 99}).write(store.path)

    words = r"store of Everything, .*changed while the call ran"
    with between_chunks(change), pytest.raises(StoreMismatch, match=words):
        Everything(store=store)(tiny_model(), tiny_images(1), 0)


def test_several_models_of_one_parameter_are_counted_apart():
    models = (
        tiny_model("token"),
        tiny_model("nhwc"),
        OTHER,
    )
    result = Everything(more=models)(tiny_model(), tiny_images(3), 0, batch_size=2)
    assert list(result.provenance.named) == ["more[0]", "more[1]", "more[2]"]
    assert result.further_passes == {
        f"more[{number}]": {"forwards": 3, "backwards": 0} for number in range(3)
    }
    assert result.notes["classes 2"] == 10


@pytest.mark.parametrize(
    ("named", "words"),
    [
        ({"model": "nothing-of-this-name"}, "'model' of Everything: timm .* has no model"),
        ({"model": "{store}"}, "'model' of Everything: .*tiny.scope is a store"),
        ({"store": "{folder}"}, "'store' of Everything: .*"),
        ({"store": "/no/such/store"}, "'store' of Everything: .*"),
        ({"pictures": "/no/such/folder"}, "'pictures' of Everything: .*no such file"),
        ({"picture": "{folder}"}, "'picture' of Everything: "),
        ({"pictures": "{flat}", "labels": True}, "1 of 1 images of .* have no label"),
        ({"attack": "jpeg"}, "'attack' of Everything is 'jpeg': jpeg is of the family defence"),
        ({"attack": "universal-perturbation"}, "expected an attack technique"),
        ({"attack": "pgdd"}, "'attack' of Everything is 'pgdd': .*pgd"),
        ({"attack": "pgd steps=0"}, "'attack' .*'steps' of pgd is '0'"),
        ({"attack": "pgd"}, None),
        ({"model": ""}, "'model' of Everything is '': expected a model"),
        ({"model": 3}, "'model' of Everything is 3: expected a model, as in .* or a Module"),
        ({"picture": nn.Linear(2, 2)}, "'picture' of Everything is Linear"),
        ({"store": nn.Sequential(nn.ReLU())}, "is a Sequential: expected the folder of a store"),
    ],
)
def test_a_wrong_name_is_one_line(named, words, folder, store):
    (flat := folder.parent / "flat").mkdir()
    Image.new("RGB", (8, 8)).save(flat / "0.png")
    places = {"folder": str(folder), "store": str(store.path), "flat": str(flat)}
    given = {
        name: value.format(**places) if isinstance(value, str) else value
        for name, value in named.items()
    }
    if words is None:
        Everything(**given)(tiny_model(), tiny_images(1), 0)
        return
    with pytest.raises(ParameterError, match=words) as caught:
        Everything(**given)(tiny_model(), tiny_images(1), 0)
    assert "\n" not in str(caught.value)
    assert caught.value.exit_status == 2


def test_a_form_and_the_flags_know_the_kind_of_each_parameter():
    shown = Everything.model_json_schema()["properties"]
    kinds = {name: (of.get("anyOf") or [of.get("items") or of])[0] for name, of in shown.items()}
    assert {name: kind["kind"] for name, kind in kinds.items() if "kind" in kind} == {
        "model": "model", "more": "model", "pictures": "image set", "picture": "image",
        "store": "store", "attack": "technique",
    }  # fmt: skip
    assert kinds["attack"]["base"] == "attack"

    flags = inspect.signature(command(FirstThat, "first-that")).parameters
    assert get_args(flags["attacks"].annotation)[0].__args__[0].__name__ == "technique"
    flag = inspect.signature(command(Transfer, "transfer")).parameters["surrogate"]
    assert get_args(flag.annotation)[0].__name__ == "model"
    assert flag.default is flag.empty


def test_a_technique_that_names_no_base_or_a_defence_that_opens_is_refused():
    with pytest.raises(TypeError, match=r"TechniqueName\[AttackTechnique\]"):

        class Bare(AttributionTechnique):
            inner: TechniqueName  # type: ignore[type-arg]

            def attribute(self, model: Any, images: Any, objective: Any) -> Tensor:
                return images.sum(1)

    with pytest.raises(TypeError, match="names a model, which only a call opens"):

        class Cleaner(DefenceTechnique):
            cleaner: ModelName

            def transform(self, images: Tensor, generators: Any) -> Tensor:
                return images


# Every base reports the passes of a further model


def _helped(self: Any, images: Tensor) -> Tensor:
    with torch.no_grad():
        return self.open_model(self.helper)(images)


class Attribute(AttributionTechnique):
    helper: ModelName

    def attribute(self, model: Any, images: Any, objective: Any) -> Tensor:
        _helped(self, images)
        return images.sum(1)


class Synthesize(SynthesisTechnique):
    helper: ModelName

    def synthesize(self, model: Any, objective: Any, init: Any) -> SynthesisOutcome:
        _helped(self, tiny_images(1))
        score = torch.zeros(2, 1)
        return SynthesisOutcome(images=tiny_images(1), scores=score, best_step=torch.tensor([0]))


class Fit(UniversalAttack):
    norm: Norm = "linf"
    helper: ModelName

    def fit(self, model: Any, batches: Any, goal: Any) -> Tensor:
        _helped(self, tiny_images(1))
        return torch.zeros(batches.shape)


class Transform(DefenceTechnique):
    inner: TechniqueName[AttackTechnique] = "fgsm"

    def transform(self, images: Tensor, generators: Any) -> Tensor:
        assert isinstance(self.open_technique(self.inner), FGSM)
        return images


class Certify(CertificationTechnique):
    norm = "l2"
    helper: ModelName

    def certify(self, model: Any, images: Tensor, labels: Tensor) -> CertificationOutcome:
        predictions = _helped(self, images).argmax(1)
        return CertificationOutcome(predictions=predictions, radius=torch.ones(len(images)))


class Stylize(StyleTechnique):
    takes = frozenset({"content"})
    helper: ModelName

    def stylize(self, model: Any, content: Any, styles: Any, weights: Any) -> StyleOutcome:
        _helped(self, content)
        return StyleOutcome(images=content)


class OfModel(ModelTechnique):
    helper: ModelName

    def analyse(self, model: HookedModel, images: Any) -> Table:
        _helped(self, model.images(images))
        return Table(provenance=self.provenance(model), rows=[{"one": 1}])


class OfStore(StoreTechnique):
    helper: ModelName

    def analyse(self, source: Any, images: Any) -> Table:
        _helped(self, tiny_images(1))
        return Table(provenance=self.provenance(source), rows=[{"one": 1}])


class OfStores(StoresTechnique):
    helper: ModelName

    def analyse(self, sources: Any) -> Table:
        _helped(self, tiny_images(1))
        return Table(provenance=self.provenance(), rows=[{"one": 1}])


CALLS = [
    (Attribute, lambda used, images, _: used(tiny_model(), images, 0)),
    (Synthesize, lambda used, images, _: used(tiny_model(), 0)),
    (Transfer, lambda used, images, _: used(tiny_model(), images)),
    (Fit, lambda used, images, _: used(tiny_model(), tiny_images(4), held_out=0.5)),
    (Certify, lambda used, images, _: used(tiny_model(), images)),
    (Stylize, lambda used, images, _: used(content=images)),
    (OfModel, lambda used, images, _: used(tiny_model(), images)),
    (OfStore, lambda used, images, store: used(store)),
    (OfStores, lambda used, images, store: used([store])),
]


@pytest.mark.parametrize(("kind", "call"), CALLS, ids=[kind.__name__ for kind, _ in CALLS])
def test_every_base_records_a_further_model_and_reports_its_passes(kind, call, store):
    helper = tiny_model("token")
    name = "surrogate" if kind is Transfer else "helper"
    result = call(kind(**{name: helper}), tiny_images(1), store)
    assert result.provenance.named[name]["sha256"] == helper.weights_sha256
    assert result.provenance.parameters[name] == f"tiny:token#{helper.weights_sha256[:16]}"
    assert result.further_passes[name]["forwards"] == 1


# Techniques in techniques


class FirstThat(AttackTechnique):
    """Tries attacks in turn, each on the images that are not broken yet."""

    norm: Norm = "linf"
    attacks: tuple[TechniqueName[AttackTechnique], ...] = ("fgsm", "pgd steps=3 restarts=2")

    def perturb(self, model: HookedModel, images: Tensor, goal: Goal) -> Tensor:
        changed, rows = images.clone(), torch.arange(len(images))
        for name in self.attacks:
            own = goal.rows(rows)
            with self.part(rows):
                tried = self.open_technique(name).perturb(model, images[rows], own)
            with torch.no_grad(), self.only(rows):
                broken = own.reached(own.outputs(model, tried))
            changed[rows] = tried
            rows = rows[~broken]
            if not len(rows):
                break
        return changed


def test_inner_attacks_count_passes_and_draw_numbers_for_the_right_images():
    model, images = tiny_model(), tiny_images(6)
    attacks = ("fgsm epsilon=0.03", "pgd epsilon=0.03 steps=3 restarts=2")
    used = FirstThat(epsilon=0.03, attacks=attacks)
    whole = used(model, images, seed=4)
    fgsm = FGSM(epsilon=0.03)(model, images, seed=4)
    pgd = PGD(epsilon=0.03, steps=3, restarts=2)(model, images, seed=4)
    left = ~fgsm.success
    assert 0 < left.sum() < 6, "the case needs images of both kinds"
    assert torch.equal(whole.images[~left], fgsm.images[~left])
    assert torch.allclose(whole.images[left], pgd.images[left], atol=1e-6)
    expected = fgsm.forwards + 1 + torch.where(left, pgd.forwards + 1, 0)
    assert whole.forwards.tolist() == expected.tolist()
    assert whole.backwards.tolist() == (fgsm.backwards + left * pgd.backwards).tolist()
    for batch_size in (1, 4):
        split = used(model, images, seed=4, batch_size=batch_size)
        assert torch.allclose(split.images, whole.images, atol=1e-6)
        assert split.forwards.tolist() == whole.forwards.tolist()
    inner = whole.provenance.parameters["attacks"]
    assert from_text(inner[1], AttackTechnique, purpose="", parameter="") == used.attacks[1]
    assert whole.provenance.named["attacks[0]"] == {"kind": "technique", "id": "timmscope:fgsm"}


class Nested(AttackTechnique):
    norm: Norm = "linf"
    attack: TechniqueName[AttackTechnique]

    def perturb(self, model: HookedModel, images: Tensor, goal: Goal) -> Tensor:
        return self.open_technique(self.attack).perturb(model, images, goal)


def test_what_an_inner_technique_names_is_opened_and_recorded_by_the_outer_call():
    surrogate = tiny_model("token")
    inner = Transfer(surrogate=surrogate, epsilon=0.1)
    outer = Nested(attack=inner, epsilon=0.1)(tiny_model(), tiny_images(2))
    assert torch.equal(outer.images, inner(tiny_model(), tiny_images(2)).images)
    assert outer.other_models == ["attack.surrogate"]
    assert outer.provenance.named["attack.surrogate"]["sha256"] == surrogate.weights_sha256
    assert (
        f"surrogate=tiny:token#{surrogate.weights_sha256[:16]}"
        in (outer.provenance.parameters["attack"])
    )
    with pytest.raises(TechniqueError, match=r"wrote into weights of attack\.surrogate"):
        Nested(attack=Transfer(surrogate=surrogate, does="write"))(tiny_model(), tiny_images(1))


class Robust(TrainingTechnique):
    """Cross-entropy on attacked images, by an attack that the user names."""

    batch_size: int = 4
    attack: TechniqueName[AttackTechnique] = "pgd steps=2 epsilon=0.1"
    teacher: ModelName | None = None

    def build(self, model: HookedModel) -> nn.Module:
        return model.trainable_copy()

    def loss(self, network: Any, batch: Any, progress: Any) -> dict[str, Tensor]:
        model, goal = self.model_of(network, batch), Goal(labels=batch.labels)
        attacked = self.open_technique(self.attack).perturb(model, batch.images, goal)
        assert network.training == (progress.step < progress.steps)
        total = functional.cross_entropy(network(attacked), batch.labels)
        if self.teacher is not None:
            with torch.no_grad():
                wanted = self.open_model(self.teacher)(batch.images).softmax(1)
            total = total + functional.cross_entropy(network(batch.images), wanted)
        STARTS.append((attacked.detach() - batch.images).mul(1000).round())
        return {"total": total}


STARTS: list[Tensor] = []


def student() -> HookedModel:
    with OwnGenerators(0):
        module = nn.Sequential(
            nn.Conv2d(3, 4, 3, 2), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(36, 2)
        )
    return HookedModel(module, mean=(0.5,) * 3, std=(0.25,) * 3, input_size=(3, 8, 8), crop_pct=1.0)


@pytest.fixture
def labelled(tmp_path: Path) -> Path:
    generator = np.random.default_rng(0)
    pixels = generator.integers(60, 190, (10, 8, 8, 3), np.uint8)
    np.savez(tmp_path / "labelled.npz", images=pixels, labels=np.arange(10) % 2)
    return tmp_path / "labelled.npz"


def test_an_inner_attack_of_a_training_does_not_hash_snapshot_or_judge(
    labelled, tmp_path, monkeypatch
):
    counts = dict.fromkeys(("digest", "snapshot", "judge"), 0)

    def counted(name: str, function: Any) -> Any:
        def run(*args: Any, **more: Any) -> Any:
            counts[name] += 1
            return function(*args, **more)

        return run

    monkeypatch.setattr(HookedModel, "_digest", counted("digest", HookedModel._digest))
    monkeypatch.setattr(ModelHooks, "snapshot", counted("snapshot", ModelHooks.snapshot))
    monkeypatch.setattr(judging, "judge", counted("judge", judging.judge))
    seen, teacher = [], student()
    for epochs in (1, 4):
        counts.update(dict.fromkeys(counts, 0))
        used = Robust(epochs=epochs, teacher=teacher)
        result = used(student(), labelled, output=tmp_path / f"run{epochs}")
        seen.append(dict(counts))
    assert seen[0] == seen[1]
    assert seen[1]["judge"] == 0
    # 2 steps per epoch, a trial step and one batch of 2 held-out images.
    assert result.further_passes["teacher"]["forwards"] == (4 * 2 + 1) * 4 + 2
    card = json.loads((tmp_path / "run4" / "card.json").read_text())
    assert card["named"]["teacher"]["sha256"] == teacher.weights_sha256
    assert card["parameters"]["teacher"].endswith(f"#{teacher.weights_sha256[:16]}")


def test_an_inner_attack_of_a_training_draws_anew_at_each_step_and_repeats(labelled, tmp_path):
    STARTS.clear()
    used = Robust(epochs=2, learning_rate=1e-9, attack="pgd steps=1 step_size=1e-9 epsilon=0.1")
    first = used(student(), labelled, output=tmp_path / "one")
    one = [start.clone() for start in STARTS]
    STARTS.clear()
    second = used(student(), labelled, output=tmp_path / "two")
    assert all(map(torch.equal, one, STARTS))
    assert float(one[0].abs().max()) > 90  # near the border of the ball
    assert len({start.numpy().tobytes() for start in one[1:5]}) == 4
    assert first.card["weights_sha256"] == second.card["weights_sha256"]
    assert "named" in json.loads((tmp_path / "one" / "card.json").read_text())


def test_an_evaluation_opens_a_model_once_and_records_it(monkeypatch):
    loaded: list[str] = []
    load = opening_module.load_model

    def load_model(name: str, **more: Any) -> HookedModel:
        loaded.append(name)
        return load(name, **more)

    monkeypatch.setattr(opening_module, "load_model", load_model)
    name = OTHER
    techniques = {"helped": Attribute(helper=name), "other": Everything(more=(name,))}
    result = evaluate(tiny_model(), tiny_images(3), techniques, metrics=["insertion"])
    assert loaded == [name]
    digest = load(name).weights_sha256
    assert result.provenance.named["helped.helper"]["sha256"] == digest
    assert result.provenance.named["other.more[0]"]["sha256"] == digest
    recorded = result.provenance.parameters["techniques"]["helped"]["parameters"]
    assert recorded["helper"] == f"{name}#{digest[:16]}"


def test_a_run_over_an_image_set_opens_a_model_once_and_draws_as_one_call(
    folder, tmp_path, monkeypatch
):
    loaded: list[str] = []
    load = opening_module.load_model

    def load_model(name: str, **more: Any) -> HookedModel:
        loaded.append(name)
        return load(name, **more)

    monkeypatch.setattr(opening_module, "load_model", load_model)
    attack, model = Transfer(surrogate=OTHER, epsilon=0.05), tiny_model()
    files = [folder / name for name in open_images(folder).paths]
    run = attack.over(model, folder, tmp_path / "run", batch_size=1, workers=0)
    assert loaded == [OTHER]
    whole = attack(model, files)
    assert np.allclose(np.load(tmp_path / "run" / "images.npy"), whole.images, atol=1e-6)
    assert run.provenance.named == whole.provenance.named
    assert run.provenance.parameters == whole.provenance.parameters
    inner = FirstThat(epsilon=0.05, attacks=("pgd epsilon=0.05 steps=1",))
    inner.over(model, folder, tmp_path / "inner", batch_size=1, workers=0, seed=3)
    expected = inner(model, files, seed=3).images
    assert np.allclose(np.load(tmp_path / "inner" / "images.npy"), expected, atol=1e-6)


# Weights


class Other(TrainingTechnique):
    def build(self, model: HookedModel) -> nn.Module:
        return model.trainable_copy()

    def loss(self, network: Any, batch: Any, progress: Any) -> dict[str, Tensor]:
        return {"total": functional.cross_entropy(network(batch.images), batch.labels)}


class Distance(AttackTechnique):
    norm: Norm = "linf"
    weights: WeightsName[Other]

    def perturb(self, model: HookedModel, images: Tensor, goal: Goal) -> Tensor:
        trained = self.open_weights(self.weights)
        assert trained.technique.epochs == 1
        ball = self.ball(images)
        gradient = goal.gradient(trained.model, images)[1]
        return ball.step(images, images, gradient, ball.epsilon)


def test_weights_are_those_of_a_card_of_the_kind_that_is_asked_for(labelled, tmp_path):
    model = student()
    Other(epochs=1, batch_size=4)(model, labelled, output=tmp_path / "other")
    Robust(epochs=1)(model, labelled, output=tmp_path / "robust")
    images = torch.rand(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    result = Distance(weights=tmp_path / "other")(model, images)
    card = json.loads((tmp_path / "other" / "card.json").read_text())
    assert result.provenance.named["weights"] == {
        "kind": "weights",
        "id": str(tmp_path / "other"),
        "sha256": card["weights_sha256"],
        "technique": "Other",
    }
    assert result.other_models == ["weights"]
    live = TrainedWeights.load(tmp_path / "other", Other, base=model)
    assert torch.equal(Distance(weights=live)(model, images).images, result.images)
    with pytest.raises(ParameterError, match=r"'weights' of Distance: .*Robust"):
        Distance(weights=tmp_path / "robust")(model, images)
    other = TrainedWeights.load(tmp_path / "robust", Robust, base=model)
    with pytest.raises(ParameterError, match=r"was trained by Robust, expected Other"):
        Distance(weights=other)(model, images)
    with pytest.raises(ParameterError, match=r"'weights' of Distance: .*has no card"):
        Distance(weights=tmp_path)(model, images)
    with pytest.raises(ParameterError, match="is a trained network, as a model file:"):
        Transfer(surrogate=str(tmp_path / "other"))(model, images)
    damaged = shutil.copytree(tmp_path / "other", tmp_path / "damaged")
    (damaged / "weights.safetensors").write_bytes(b"other")
    with pytest.raises(ParameterError, match=r"'weights' of Distance: .*digest"):
        Distance(weights=damaged)(model, images)


class Shifted(AttackTechnique):
    """Asks a network that takes codes, not images."""

    norm: Norm = "linf"
    network: NetworkName[Other]

    def perturb(self, model: HookedModel, images: Tensor, goal: Goal) -> Tensor:
        network = self.open_network(self.network)
        shift = network.hooks(images.flatten(1)[:, :4]).mean(1)
        ball = self.ball(images)
        return images + ball.epsilon * shift.sign()[:, None, None, None]


def test_a_network_is_a_module_that_need_not_take_images_or_what_a_training_left(
    labelled, tmp_path
):
    model, images = student(), torch.full((2, 3, 8, 8), 0.5)
    network = nn.Sequential(nn.BatchNorm1d(4), nn.Linear(4, 2)).train()
    before = {name: value.clone() for name, value in network.state_dict().items()}
    attack = Shifted(network=network, epsilon=0.1)
    result = attack(model, images)
    assert float((result.images - images).abs().max()) == pytest.approx(0.1)
    assert result.further_passes["network"] == {"forwards": 2, "backwards": 0}
    record = result.provenance.named["network"]
    assert (record["kind"], record["id"]) == ("weights", "module:Sequential")
    digest = HookedModel(network, mean=(0,), std=(1,), input_size=(1, 1, 1)).weights_sha256
    assert record["sha256"] == digest
    assert network.training
    assert all(
        part.training and weight.requires_grad for part in network for weight in part.parameters()
    )
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())
    Other(epochs=1, batch_size=4)(model, labelled, output=tmp_path / "other")
    with pytest.raises(RuntimeError, match=r"shape|input"):  # this one takes images
        Shifted(network=tmp_path / "other", epsilon=0.1)(model, images)
    with pytest.raises(ParameterError, match=r"'network' of Shifted: .*has no card"):
        Shifted(network=tmp_path, epsilon=0.1)(model, images)
    with pytest.raises(ParameterError, match="or in Python a TrainedWeights or a Module"):
        Shifted(network=3, epsilon=0.1)


def test_a_card_of_a_stranger_opens_nothing(labelled, tmp_path, monkeypatch):
    teacher = "random:test_resnet?seed=1&img_size=32&num_classes=2"
    Robust(epochs=1, teacher=teacher)(student(), labelled, output=tmp_path / "run")
    assert TrainedWeights.load(tmp_path / "run", Robust, base=student()).card.named
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "another user"))
    monkeypatch.delenv("TIMMSCOPE_TRUST")
    with pytest.raises(ModelError, match=r"its card opens the model random:test_resnet\?seed=1"):
        TrainedWeights.load(tmp_path / "run", Robust, base=student())
