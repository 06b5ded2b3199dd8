"""Weights of fine-tuned models load as people keep them, or one line says what does not fit."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import timm
import torch
from PIL import Image
from torch import nn

from timmscope import HookedModel, ModelError, ObjectiveError, TimmscopeError, load_model
from timmscope.models import weights_size

ARCH = "resnet10t"
QUERY = f"arch={ARCH}&num_classes=3&img_size=32"


def tuned(**arguments: object) -> nn.Module:
    torch.manual_seed(4)
    return timm.create_model(ARCH, num_classes=3, **arguments).eval()


def saved(path: Path, state: object) -> str:
    torch.save(state, path)
    return f"file:{path}?{QUERY}"


def prefixed(module: nn.Module, prefix: str) -> dict[str, torch.Tensor]:
    return {prefix + name: value for name, value in module.state_dict().items()}


@pytest.mark.parametrize(
    "wrap",
    [
        lambda net: {"state_dict": prefixed(net, "model."), "epoch": 3, "loops": {}},
        lambda net: {
            "state_dict": prefixed(net, "net.") | {"loss.weight": torch.ones(3)},
            "pytorch-lightning_version": "2.4.0",
        },
        lambda net: prefixed(net, "_orig_mod."),
        lambda net: prefixed(net, "module._orig_mod."),
        lambda net: {"model_state_dict": net.state_dict(), "optimizer_state_dict": {"state": {}}},
        lambda net: {"model": {"state_dict": prefixed(net, "module.")}},
        lambda net: {"state_dict_ema": net.state_dict(), "state_dict": {"x": torch.ones(1)}},
    ],
    ids=["lightning", "with a loss", "compiled", "both", "model_state_dict", "nested", "ema"],
)
def test_checkpoints_of_training_frameworks_load(tmp_path, wrap):
    net = tuned()
    image = torch.rand(1, 3, 32, 32)
    model = load_model(saved(tmp_path / "w.pth", wrap(net)))
    with torch.no_grad():
        assert torch.equal(model.module(image), net(image))


def test_several_networks_in_one_checkpoint_need_a_prefix(tmp_path):
    student, teacher = tuned(), tuned()
    teacher.fc.bias.data.fill_(2.0)
    state = prefixed(student, "student.") | prefixed(teacher, "teacher.")
    spec = saved(tmp_path / "w.pth", state)
    with pytest.raises(ModelError, match=r"'student\.' and 'teacher\.': add &prefix=student\."):
        load_model(spec)
    assert load_model(f"{spec}&prefix=teacher.").module.fc.bias.tolist() == [2, 2, 2]
    with pytest.raises(ModelError, match=r"no weight begins with 'ema\.'"):
        load_model(f"{spec}&prefix=ema.")


@pytest.mark.parametrize(
    ("made", "message"),
    [
        ({"in_chans": 1}, r"conv1.0.weight is .*; add &in_chans=1$"),
        (
            {"num_classes": 7},
            r"fc.weight is \(7, 512\), expected \(3, 512\)\); add &num_classes=7$",
        ),
        ({"num_classes": 0}, r"2 missing \(first fc.weight\); add &num_classes=0"),
    ],
)
def test_the_error_for_weights_that_do_not_fit_names_the_argument(tmp_path, made, message):
    torch.save(
        timm.create_model(ARCH, **{"num_classes": 3} | made).state_dict(), tmp_path / "w.pth"
    )
    with pytest.raises(ModelError, match=message):
        load_model(f"file:{tmp_path / 'w.pth'}?{QUERY}")


def test_the_error_names_the_prefix_that_was_seen(tmp_path):
    state = prefixed(tuned(), "backbone.")
    del state["backbone.fc.weight"]
    with pytest.raises(ModelError, match=r"1 missing .*names after the prefix 'backbone\.'"):
        load_model(saved(tmp_path / "w.pth", state))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda w: w.mul_(torch.nan), "1536 of 1536 values of fc.weight are NaN or infinite"),
        (lambda w: w.to(torch.complex64), r"fc.weight is of torch.complex64 in .*expected a dense"),
        (lambda w: w.to(torch.int8), r"fc.weight is of torch.int8"),
        (lambda w: w.to_sparse(), r"fc.weight is sparse \(torch.sparse_coo\)"),
        (lambda w: w.to("meta"), "fc.weight is a tensor without values"),
        (
            lambda w: torch.quantize_per_tensor(w, 0.1, 0, torch.qint8),
            r"fc.weight is quantised \(torch.qint8\)",
        ),
    ],
    ids=["nan", "complex", "int8", "sparse", "meta", "quantised"],
)
@pytest.mark.filterwarnings("ignore")
def test_weights_that_copying_would_change_are_refused(tmp_path, change, message):
    state = tuned().state_dict()
    state["fc.weight"] = change(state["fc.weight"].clone())
    with pytest.raises(ModelError, match=message):
        load_model(saved(tmp_path / "w.pth", state))


def test_half_precision_weights_load_as_their_own_values(tmp_path):
    net = tuned()
    model = load_model(saved(tmp_path / "w.pth", net.half().state_dict()))
    assert torch.equal(model.module.fc.weight, net.fc.weight.float())


def test_a_file_without_tensors_is_refused_with_what_it_holds(tmp_path):
    with pytest.raises(ModelError, match=r"holds a dictionary of 'epoch', 'lr' without tensors"):
        load_model(saved(tmp_path / "w.pth", {"epoch": 3, "lr": 0.1}))


def test_a_file_takes_its_preprocessing_and_class_names_from_the_id(tmp_path):
    names = tmp_path / "names.txt"
    names.write_text("Apple - scab\nrust, brown rust\nhealthy\n", encoding="utf-8")
    spec = saved(tmp_path / "w.pth", tuned().state_dict())
    model = load_model(
        f"{spec}&class_names={names}&mean=0.1,0.2,0.3&std=0.5,0.5,0.25&crop_pct=1"
        "&interpolation=bilinear&input_size=3,40,48"
    )
    assert model.classes.find("brown rust") == 1
    assert (model.mean, model.std) == ((0.1, 0.2, 0.3), (0.5, 0.5, 0.25))
    assert model.input_size == (3, 40, 48)
    image = Image.effect_noise((100, 90), 80).convert("RGB")
    data = timm.data.create_transform(
        (3, 40, 48),
        interpolation="bilinear",
        crop_pct=1.0,
        mean=(0.1, 0.2, 0.3),
        std=(0.5, 0.5, 0.25),
    )
    with torch.no_grad():
        expected = model.module(data(image)[None])
    assert torch.allclose(model(model.images(image)), expected, atol=1e-5)


def run(spec: str) -> None:
    model = load_model(spec)
    model(torch.rand(1, *model.input_size))


@pytest.mark.parametrize(
    ("query", "message"),
    [
        ("mean=.5", r"mean is 0.5: expected one number per channel, as in 0.5,0.5,0.5 \(in 'rand"),
        ("mean=0.5,0.5", "mean and std have 2 and 3 values, the model takes 3 channels"),
        ("std=1,0,1", "every value must be above 0"),
        ("std=1,a,1", "std is '1,a,1': expected one number above 0 per channel"),
        ("input_size=32", "input_size is 32: expected channels, height and width, as in 3,224,224"),
        ("crop_pct=x", "crop_pct is 'x': expected a number above 0"),
        ("interpolation=cubic", "interpolation is 'cubic': expected one of bicubic, bilinear"),
        ("class_names=/nowhere", "class names cannot be read from /nowhere"),
        ("class_names={folder}/two.txt", "2 class names for .*, which has 3 classes"),
        ("class_names={folder}/gap.txt", r"line 2 of .*gap\.txt is empty"),
        ("img_size=[]", r"img_size is \[\] for .*expected pixels, as in 224"),
        ("img_size=0", "img_size is 0"),
        ("in_chans=-1", "in_chans is -1 in .*: expected a whole number from 1"),
        ("num_classes=[1]", r"num_classes is \[1\]"),
        ("seed=123456789012345678901234567890", r"expected a whole number from 0 to 2\^63 - 1"),
        ("seed=true", "seed is True"),
        ("pretrained=true", "pretrained cannot be given"),
        ("checkpoint_path=/etc/passwd", "checkpoint_path cannot be given"),
        ("drop_rate=x", "could not convert string to float"),
        ("layers=[]", "could not make|cannot run on an input"),
        ("device=meta", "on the meta device|META device"),
        ("pretrained_cfg=3", "could not make 'resnet10t'"),
    ],
)
def test_an_odd_query_is_refused_in_one_line(tmp_path, query, message):
    (tmp_path / "two.txt").write_text("a\nb\n")
    (tmp_path / "gap.txt").write_text("a\n\nb\n")
    size = "" if "size" in query else "&img_size=32"
    classes = "" if "num_classes" in query else "&num_classes=3"
    spec = f"random:{ARCH}?{query.format(folder=tmp_path)}{size}{classes}"
    with pytest.raises(TimmscopeError, match=message) as caught:
        run(spec)
    assert "\n" not in str(caught.value)


VIT = "vit_tiny_patch16_224"


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        (f"random:{VIT}?depth=1000000000", "depth is 1000000000 in .*: expected numbers of at mos"),
        (f"timm:{VIT}?depth=1000000000", "expected numbers of at most 1,000,000, in digits"),
        (f"random:{VIT}?depth=10**9", r"could not make .*; given as text: depth='10\*\*9'"),
        (f"random:{VIT}?depth=900", "with depth=900 has more than 1,000 tensors of weights: give"),
        (f"random:{ARCH}?layers=[10000000,1,1,1]", r"layers is \[10000000, 1, 1, 1\] in"),
        (f"random:{ARCH}?layers=[90000,1,1,1]", "has more than 1,000 tensors of weights"),
        (f"random:{VIT}?embed_dim=600000", r"more than 4.0 GiB of weights, half of the free memor"),
        (f"random:{VIT}?mlp_ratio=1e5", "with mlp_ratio=100000.0 has more than 4.0 GiB"),
        (f"random:{VIT}?mlp_ratio=1e400", "mlp_ratio is inf"),
        (f"random:{VIT}?img_size=60000", "with img_size=60000 has more than 4.0 GiB"),
        (f"random:{VIT}?img_size=1000000000", "img_size is 1000000000"),
        (f"random:{ARCH}?img_size=60000", r"inputs of 3×60000×60000 needs at least 1005.8 GiB of "),
        (f"random:{ARCH}?input_size=3,20000,20000", "needs at least 111.8 GiB .*give a smaller im"),
        ("random:resnet18?in_chans=1000000", "with in_chans=1000000 has more than 4.0 GiB"),
        (f"random:{ARCH}?num_classes=1000000000000", "expected a whole number from 0 to 1000000"),
        (f"random:{ARCH}?num_classes=10**12", r"num_classes is '10\*\*12'"),
        ("pip:efficientnet-lite0?num_classes=1000000", "with num_classes=1000000 has more than"),
    ],
)
def test_numbers_that_no_memory_holds_are_refused_before_it_is_used(monkeypatch, spec, message):
    monkeypatch.setattr(weights_size, "free_memory", lambda: 8 << 30)
    monkeypatch.setattr(weights_size, "_MOST_TENSORS", 1000)
    with pytest.raises(ModelError, match=message) as caught:
        load_model(spec)
    assert "\n" not in str(caught.value)


def test_large_numbers_that_fit_change_no_weights_and_usual_ones_cost_nothing(monkeypatch):
    spec = f"random:{VIT}?seed=5&depth=1&embed_dim=192&img_size=32&num_classes=3"
    torch.manual_seed(1)
    expected = torch.rand(3)
    torch.manual_seed(1)
    checked = load_model(spec).weights_sha256  # made twice, because 192 is larger than usual
    assert torch.equal(torch.rand(3), expected)

    def refuse(*given):
        raise AssertionError("it was made twice")

    monkeypatch.setattr(weights_size, "_WithoutValues", refuse)
    load_model(f"random:{ARCH}?seed=9000000&img_size=32&num_classes=1000&in_chans=4")
    monkeypatch.setattr(weights_size, "_USUAL_NUMBER", 192)
    assert load_model(spec).weights_sha256 == checked


def test_a_folder_in_timms_format_loads_with_its_class_names(tmp_path):
    net = tuned()
    torch.save(net.state_dict(), tmp_path / "pytorch_model.bin")
    config = {
        "architecture": ARCH,
        "num_classes": 3,
        "label_names": ["n1", "n2", "n3"],
        "label_descriptions": {"n1": "scab", "n2": "rust, brown rust", "n3": "healthy"},
        "pretrained_cfg": {"input_size": [3, 32, 32], "mean": [0.1] * 3, "std": [0.2] * 3},
    }
    (tmp_path / "config.json").write_text(json.dumps(config))
    model = load_model(f"timm:local-dir:{tmp_path}")
    image = torch.rand(1, 3, 32, 32)
    with torch.no_grad():
        assert torch.allclose(model(image), net((image - 0.1) / 0.2), atol=1e-5)
    assert model.classes.find("brown rust") == model.classes.find("n2") == 1
    with pytest.raises(ModelError, match="timm could not load 'local-dir:/nowhere'"):
        load_model("timm:local-dir:/nowhere")
    with pytest.raises(ModelError, match=r"did you mean timm:local-dir:/nowhere\?"):
        load_model("local-dir:/nowhere")


def test_class_names_follow_the_number_of_classes():
    net = tuned()
    settings = {"mean": (0.5,) * 3, "std": (0.5,) * 3, "input_size": (3, 32, 32)}
    with pytest.raises(ModelError, match=r"2 class names for .*, which has 3 classes: give one"):
        HookedModel(net, class_names=["a", "b"], **settings)
    with pytest.raises(ModelError, match=r"1 class names for .*, which has 0 classes"):
        HookedModel(timm.create_model(ARCH, num_classes=0), class_names=["a"], **settings)
    model = HookedModel(net, class_names=["a", "b", "c"], **settings)
    net.reset_classifier(2)
    with pytest.raises(ModelError, match=r"3 class names for .*, which has 2 classes"):
        model.score(torch.rand(1, 3, 32, 32), "class:a")
    nameless = HookedModel(timm.create_model(ARCH, num_classes=0), **settings)
    with pytest.raises(ObjectiveError, match="has no classes: choose a unit instead"):
        nameless.score(torch.rand(1, 3, 32, 32), "class:a")
