"""`match` has hand-computed values, gradients and texts, and refuses targets that do not fit."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image

from timmscope import (
    HookedModel,
    ObjectiveError,
    Store,
    StoreError,
    VectorIndex,
    VectorIndexError,
    load_model,
    match,
    mine,
    parse_objective,
    technique,
)
from timmscope.cli.typed_objective import typed_objective
from timmscope.testing import tiny_images, tiny_model


@pytest.fixture
def model():
    return tiny_model()


@pytest.fixture
def images():
    return tiny_images(3)


def activation(model, images, layer="act1"):
    with model.record(layer) as recording, torch.no_grad():
        model(images)
    return recording[layer].double()


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    folder = tmp_path_factory.mktemp("match")
    pixels = (tiny_images(8) * 255).round().byte().permute(0, 2, 3, 1).numpy()
    np.save(folder / "a.npy", pixels)
    settings = {"layers": ["act1", "act2"], "shard_size": 4, "workers": 0}
    return mine(tiny_model(), folder / "a.npy", folder / "s.scope", **settings)


# Values and gradients


def test_the_value_is_minus_the_relative_squared_error(model, images):
    now, target = activation(model, images[1:]), activation(model, images[:1])
    expected = -((now - target).flatten(1).norm(dim=1) ** 2) / target.norm() ** 2
    value = model.score(images[1:], match("act1", images=images[:1]))
    assert torch.allclose(value.double(), expected, rtol=1e-5)
    assert model.score(images[:1], match("act1", images=images[:1])).item() == 0


def test_the_cosine_is_that_of_the_whole_activation(model, images):
    now, target = activation(model, images[1:]).flatten(1), activation(model, images[:1]).flatten(1)
    expected = (now * target).sum(1) / now.norm(dim=1) / target.norm()
    value = model.score(images[1:], match("act1", images=images[:1], distance="cosine"))
    assert torch.allclose(value.double(), expected, rtol=1e-5)


def test_pooled_targets_and_vectors_compare_means_over_positions(model, images):
    rows = activation(model, images).mean((2, 3))
    expected = -((rows[1:] - rows[0]).norm(dim=1) ** 2) / rows[0].norm() ** 2
    for goal in (
        match("act1", images=images[0], pooled=True),
        match("act1", vector=rows[0].numpy()),
        parse_objective(f"match(act1@{rows[0].tolist()})"),
    ):
        assert torch.allclose(model.score(images[1:], goal).double(), expected, rtol=1e-5)


@pytest.mark.parametrize("distance", ["squared", "cosine"])
def test_gradients_equal_finite_differences(distance):
    model = HookedModel(
        tiny_model().module.double(), mean=(0,) * 3, std=(1,) * 3, input_size=(3, 32, 32)
    )
    target, image = tiny_images(2).double().split(1)
    goal = match("act1", images=target, distance=distance).bind(model, image)
    _, gradient = model.gradient(image, goal)
    direction = torch.randn(image.shape, generator=torch.Generator().manual_seed(3)).double()
    step = 1e-6
    ends = [model.score(image + sign * step * direction, goal) for sign in (1, -1)]
    slope = (ends[0] - ends[1]) / (2 * step)
    assert slope.item() == pytest.approx((gradient * direction).sum().item(), rel=1e-6)


def test_the_gradient_on_a_linear_model_is_known(linear_model):
    image, target = torch.rand(1, 3, 4, 4), torch.rand(1, 3, 4, 4)
    weight = linear_model.module.fc.weight.detach()
    now, wanted = linear_model(image), linear_model(target)
    expected = -2 * (now - wanted) @ weight / wanted.norm() ** 2
    _, gradient = linear_model.gradient(image, match("fc", images=target))
    assert torch.allclose(gradient.flatten(1), expected, rtol=1e-4, atol=1e-6)


def test_tokens_are_compared_on_their_grid():
    model = load_model("random:vit_tiny_patch16_224?img_size=32")
    images = torch.rand(2, 3, 32, 32)
    tokens = activation(model, images, "blocks.3")[:, 1:]  # without the class token
    expected = -((tokens[1] - tokens[0]).norm() ** 2) / tokens[0].norm() ** 2
    value = model.score(images[1:], match("blocks.3", images=images[:1]))
    assert value.item() == pytest.approx(expected.item(), rel=1e-4)


# Targets of several images, and the families


def test_each_image_may_have_its_own_target(model, images):
    goal = match("act1", images=images.flip(0)).bind(model, images)
    assert goal.num_targets == 3
    alone = [model.score(images[i : i + 1], match("act1", images=images[2 - i])) for i in range(3)]
    assert torch.allclose(model.score(images, goal), torch.cat(alone), rtol=1e-5)
    assert model.score(images[1:], goal.rows(1, 3)).tolist() == pytest.approx(
        torch.cat(alone[1:]).tolist(), rel=1e-5
    )
    twice = torch.cat([images, images])
    assert torch.allclose(model.score(twice, goal.repeated(2)), torch.cat(alone * 2), rtol=1e-5)
    with pytest.raises(ObjectiveError, match="3 targets of match at 'act1' for 2 image"):
        model.score(images[:2], goal)


def test_it_is_explained_however_the_batch_is_split(model, images):
    goal = match("act2", images=images.flip(0)[[0, 0, 1]]) + 0.5 * match("act1", images=images[:1])
    whole = technique("input-x-gradient")()(model, images, goal)
    split = technique("input-x-gradient")()(model, images, goal, batch_size=1)
    assert torch.allclose(whole.maps, split.maps, atol=1e-6)
    assert str(goal) in whole.provenance.call["objective"]
    smooth = technique("smooth-grad")(samples=2)(model, images, goal)
    assert bool(torch.isfinite(smooth.maps).all())


def test_steps_along_the_gradient_move_an_image_to_the_target(model, images):
    goal = match("act2", images=images[:1]).bind(model, images[1:])
    changed = images[1:].clone()
    before = model.score(changed, goal)
    for _ in range(20):
        _, gradient = model.gradient(changed, goal)
        changed = (changed + 0.005 * gradient.sign()).clamp(0, 1)
    assert bool((model.score(changed, goal) > 0.5 * before).all())
    assert bool(((changed - images[1:]).abs() <= 0.1 + 1e-6).all())


def test_a_bound_target_is_not_computed_again(model, images):
    goal = match("act1", images=images[:1]).bind(model, images)
    with model.count_passes(3) as counter:
        for _ in range(2):
            model.score(images, goal)
    assert counter.forwards.tolist() == [2, 2, 2]


def test_another_model_computes_its_own_target(model, images):
    other = tiny_model()
    with torch.no_grad():
        next(other.module.parameters()).mul_(2)
    goal = match("act1", images=images[:1]).bind(model, images)
    assert other.score(images[:1], goal).item() == 0


def test_the_same_weights_with_another_normalisation_are_another_model(model, images):
    other = HookedModel(model.module, mean=(0.2,) * 3, std=(0.7,) * 3, input_size=(3, 32, 32))
    goal = match("act1", images=images[:1]).bind(model, images)
    assert other.score(images[:1], goal).item() == 0


def test_the_output_of_a_prediction_function_is_matched(model, images):
    function = HookedModel.of_function(
        lambda x: model(x).detach(),
        outputs="logits",
        input_size=(3, 32, 32),
        id="test:tiny",
        num_classes=10,
    )
    for goal in (match("logits", images=images[:1]), match("logits", vector=model(images)[0])):
        value = function.score(images, goal.bind(function, images))
        assert torch.allclose(value, model.score(images, goal), atol=1e-6)


def test_it_works_where_the_caller_has_autograd_off(model, images):
    with torch.inference_mode():
        goal = match("act1", images=images[:1], distance="cosine").bind(model, images)
    _, gradient = model.gradient(images[1:2], goal)
    assert bool(gradient.abs().sum() > 0)


# Rows of stores and indexes


def test_a_row_of_a_store_or_an_index_is_a_target(store, model):
    rows = np.array(store.layer("act2").pooled[[3, 5]], np.float64)
    goal = store.layer("act2").match([3, 5])
    images = store_images(store)
    now = activation(model, images[:2], "act2").mean((2, 3)).numpy()
    expected = -((now - rows) ** 2).sum(1) / (rows**2).sum(1)
    assert model.score(images[:2], goal).tolist() == pytest.approx(expected.tolist(), rel=1e-4)
    assert model.score(images[3:4], store.layer("act2").match(3)).item() > -1e-9
    index = VectorIndex.build(store.layer("act2"), metric="l2")
    again = index.match([3, 5])
    assert model.score(images[:2], again).tolist() == pytest.approx(expected.tolist(), rel=1e-4)
    cosine = VectorIndex.build(store.layer("act2"))
    value = model.score(images[:2], cosine.match(3))
    near = cosine.search_row(3, 7)
    order = dict(zip(near.ids[0].tolist(), near.scores[0].tolist(), strict=True))
    assert value.tolist() == pytest.approx([order[0], order[1]], abs=1e-5)
    with pytest.raises(VectorIndexError, match="rows of the index of 'act2' have length 1"):
        cosine.match(3, distance="squared")
    plain = VectorIndex.from_array(rows)
    with pytest.raises(VectorIndexError, match="built from an array"):
        plain.match(0)


def store_images(store):
    source = store.source()
    return tiny_model().images([source.load(number) for number in range(len(store))])


def test_a_stored_row_accepts_only_its_model_and_layer(store, model, images):
    other = tiny_model()
    with torch.no_grad():
        next(other.module.parameters()).mul_(2)
    for goal in (
        store.layer("act1").match(3),
        VectorIndex.build(store.layer("act1"), metric="l2").match(3),
    ):
        with pytest.raises(ObjectiveError, match=r"computed by tiny:cnn, .* has other weights"):
            other.score(images, goal)
        assert model.score(images, goal).shape == (3,)
    with pytest.raises(StoreError, match="image 8 of a store of 8 images"):
        store.layer("act1").match(8)


# Text


def test_a_vector_is_written_out_and_parses_back(model, images):
    for vector in ([0.1, 0.25, 3.0], [[1.0, 2.0], [0.5, 1 / 3]]):
        for distance in ("squared", "cosine"):
            goal = 2 * match("act1", vector=vector, distance=distance)
            assert parse_objective(str(goal)) == goal
    long = match("act1", vector=np.arange(1, 5000))
    assert len(str(long)) < 60
    with pytest.raises(ObjectiveError, match="does not hold its target"):
        parse_objective(str(long)).bind(model, images)


def test_the_command_line_reads_pictures_arrays_and_rows(store, model, images, tmp_path):
    picture = tmp_path / "a cat.png"
    Image.fromarray((images[0].permute(1, 2, 0) * 255).round().byte().numpy()).save(picture)
    np.save(tmp_path / "rows.npy", activation(model, images).mean((2, 3)).numpy())
    exact = match("act1", images=model.images(picture))
    for text, made in {
        f'match(act1@"{picture}")': exact,
        f"match(act1@{picture})": exact,
        f'match(act1@"{picture}", cosine, pooled)': match(
            "act1", images=picture, distance="cosine", pooled=True
        ),
        f"match(act1@{tmp_path}/rows.npy[1])": match(
            "act1", vector=np.load(tmp_path / "rows.npy")[1]
        ),
        f"match(act1@{tmp_path}/rows.npy)": match("act1", vector=np.load(tmp_path / "rows.npy")),
        f"match(act1@{store.path}[3]|{store.path}[4]|{store.path}[3])": store.layer("act1").match(
            [3, 4, 3]
        ),
    }.items():
        read = typed_objective(text)
        assert torch.equal(model.score(images, read), model.score(images, made)), text
        bound = read.bind(model, images)
        again = typed_objective(str(bound))
        assert again == bound, text
        assert torch.equal(model.score(images, again), model.score(images, made)), text
        assert typed_objective(f"2*{text} - top").bind(model, images).rows(0, 1)


def test_a_text_opens_a_file_only_where_a_user_types_it(store, images, tmp_path):
    for name in (f"{tmp_path}/none.png", f"{tmp_path}/none.npy", f"{store.path}[3]"):
        for text in (f"match(act1@{name})", f"top - 2*match(act1@{name}, cosine)"):
            with pytest.raises(ObjectiveError, match="text opens no file in Python"):
                tiny_model().score(images, text)


def test_the_digest_in_a_result_tells_whether_the_target_is_the_same(model, images, tmp_path):
    picture = tmp_path / "a.png"
    Image.fromarray((images[0].permute(1, 2, 0) * 255).round().byte().numpy()).save(picture)
    goal = match("act1", images=picture)
    made = technique("saliency")()(model, images[1:], goal)
    text = made.provenance.call["objective"]
    assert text == str(goal) == f"match(act1@{picture}#{goal.digests[0]})"
    assert made.labels == ["match(act1@a.png)"] * 2
    again = technique("saliency")()(model, images[1:], typed_objective(text))
    assert torch.equal(again.maps, made.maps)
    Image.fromarray((images[1].permute(1, 2, 0) * 255).round().byte().numpy()).save(picture)
    with pytest.raises(ObjectiveError, match="is not the target that the objective names"):
        typed_objective(text).bind(model, images)


def test_a_layer_whose_name_holds_signs_is_found(model):
    module = torch.nn.Sequential()
    module.add_module("w@[1]", torch.nn.Conv2d(3, 2, 1))
    module.add_module("flat", torch.nn.Flatten())
    module.add_module("head", torch.nn.Linear(32, 4))
    model = HookedModel(module, input_size=(3, 4, 4), mean=(0, 0, 0), std=(1, 1, 1))
    image = torch.rand(1, 3, 4, 4)
    goal = match("w@[1]", vector=[1.0, 2.0])
    for text in (str(goal), "match(w@[1]@[1, 2])", "2*match(w@[1]@[1, 2]) - class:0"):
        assert str(parse_objective(text).bind(model, image)).count('match("w@[1]"@[1.0, 2.0])') == 1


# Refusals


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda image: match("act1"), "give either images= or vector="),
        (lambda image: match("act1", images=image, vector=[1.0]), "either images= or vector="),
        (lambda image: match("act1", images=[]), "no images"),
        (lambda image: match("act1", vector=[1.0], distance="l1"), "'squared' or 'cosine'"),
        (lambda image: match("act1", vector=[0.0, 0.0]), "is zero"),
        (lambda image: match("act1", vector=[1.0, np.nan]), "NaN or infinite"),
        (lambda image: match("act1", vector="abc"), "not an array of numbers"),
        (lambda image: match("act1", vector=np.ones((1, 1, 1, 1, 1))), r"expected \(C,\)"),
        (lambda image: match("act1", images="nowhere.png"), "cannot read the image nowhere.png"),
        (lambda image: match("act1", vector=[1.0, 2.0]), r"shape \(2,\), and the activation"),
        (lambda image: match("act1", vector=np.ones((8, 3, 3))), r"shape \(8, 3, 3\)"),
        (lambda image: match("act1", images=image[..., :16, :16]), r"has shape \(8, \d+, \d+\)"),
        (lambda image: "match(act1)", "names no target"),
        (lambda image: "match(act1@[1, 2)", "not a list of numbers"),
        (lambda image: "match(act1@#0123456789abcdef)", "does not hold its target"),
    ],
)
def test_a_target_that_does_not_fit_is_refused_in_one_line(model, images, make, message):
    with pytest.raises(ObjectiveError, match=message) as caught:
        model.score(images, make(images[:1]))
    assert "\n" not in str(caught.value)


def test_typed_targets_that_do_not_fit_are_refused_in_one_line(store, tmp_path, images):
    np.save(tmp_path / "a.npy", np.ones((2, 8)))
    np.save(tmp_path / "b.npy", np.ones((2, 9)))
    for text, message in {
        f"match(act1@{tmp_path}/none.png)": "cannot read the image",
        f"match(act1@{tmp_path}/none.npy)": "cannot read a target",
        f"match(act1@{tmp_path}/a.npy[2])": "has targets 0 to 1, there is no 2",
        f"match(act1@{tmp_path}/a.npy|x.png)": "pictures and arrays",
        f"match(act1@{tmp_path}/a.npy|{tmp_path}/b.npy)": "differ in shape",
        f"match(act1@{store.path}[3]|other.scope[3])": "name rows of one store",
        f"match(act1@{store.path}[99])": "image 99 of a store of 8 images",
    }.items():
        with pytest.raises((ObjectiveError, StoreError), match=message) as caught:
            typed_objective(text).bind(tiny_model(), images[:1])
        assert "\n" not in str(caught.value)


def test_ranking_a_store_by_a_match_says_to_search_instead(store, images):
    from timmscope import strongest

    with pytest.raises(ObjectiveError, match="rows near an image or a row, search by it"):
        strongest(Store.open(store.path), match("act1", images=images[:1]))
