"""Notes at values of a parameter are curves, which `save` draws."""

import pytest

from timmscope import technique
from timmscope.results.note_curves import note_curves, note_curves_figure
from timmscope.testing import tiny_images, tiny_model

NOTES = {
    "score at λ 10": [1.0, 2.0],
    "score at λ 2.5": [3.0, None],
    "linf at λ 10": [0.1, 0.2],
    "linf at λ 2.5": [0.3, 0.4],
    "steps": [4, 5],
    "gap at σ 1": [0.5, 0.6],
}


def test_points_of_a_parameter_become_curves():
    assert note_curves(NOTES) == {
        "λ": {
            "score": {10.0: [1.0, 2.0], 2.5: [3.0, None]},
            "linf": {10.0: [0.1, 0.2], 2.5: [0.3, 0.4]},
        }
    }


def test_two_quantities_are_drawn_against_each_other():
    figure = note_curves_figure(NOTES, "attack")
    (axes,) = figure.axes
    assert (axes.get_xlabel(), axes.get_ylabel()) == ("score", "linf")
    x, y = axes.lines[0].get_data()
    assert x.tolist() == [3.0, 1.0]  # in the order of λ
    assert y.tolist() == [0.3, 0.1]
    alone = note_curves_figure({"gap at σ 1": [0.5], "gap at σ 3": [0.2]}, "x")
    assert alone.axes[0].get_xlabel() == "σ"
    assert alone.axes[0].lines[0].get_xdata().tolist() == [1.0, 3.0]
    assert note_curves_figure({"steps": [1, 2]}, "x") is None


def test_the_pareto_curve_of_an_attack_is_saved_and_not_in_captions(tmp_path):
    attack = technique("targeted-linf-objective")(penalties=(10.0, 1.0), steps=2)
    model = tiny_model("cnn")
    made = attack(model, tiny_images(2))
    assert (made.save(tmp_path / "out") / "curves.png").stat().st_size > 5000
    assert "λ" not in made.note_text(0)
    curve = note_curves(made.notes)["λ"]
    assert set(curve) == {"linf", "score"}
    assert curve["linf"][1.0][0] >= curve["linf"][10.0][0] - 1e-6


@pytest.mark.parametrize("name", ["score at", "at λ 3", "score at λ x", "looks at me"])
def test_other_names_are_no_points(name):
    assert note_curves({name: [1.0], f"{name} ": [2.0]}) == {}
