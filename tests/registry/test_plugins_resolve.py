"""Suggestions for misspelt names, and import strings."""

import collections

import pytest

from timmscope_registry import did_you_mean, import_string, nearest


@pytest.mark.parametrize(
    ("typed", "expected"),
    [
        ("Grad_CAM", "grad-cam"),
        ("gradcam", "grad-cam"),
        ("salency", "saliency"),
        ("cat", "tabby cat"),
        ("TIGER CAT", "tiger cat"),
    ],
)
def test_the_nearest_name_comes_first(typed: str, expected: str) -> None:
    candidates = ["saliency", "grad-cam", "tabby cat", "tiger cat", "grand piano"]
    assert nearest(typed, candidates)[0] == expected


def test_names_that_resemble_nothing_get_no_suggestion() -> None:
    assert nearest("xyzzy", ["saliency", "grad-cam"]) == []
    assert nearest("", ["saliency"]) == []
    assert did_you_mean("xyzzy", ["saliency"]) == ""


def test_the_suggestion_reads_well_for_one_two_and_three_names() -> None:
    assert did_you_mean("abcd", ["abce"]) == "did you mean 'abce'?"
    assert did_you_mean("abcd", ["abce", "abcf"]) == "did you mean 'abce' or 'abcf'?"
    three = did_you_mean("abcd", ["abce", "abcf", "abcg"])
    assert three == "did you mean 'abce', 'abcf' or 'abcg'?"


def test_import_strings_resolve_nested_attributes() -> None:
    assert import_string("collections:OrderedDict.fromkeys") == collections.OrderedDict.fromkeys


@pytest.mark.parametrize(
    ("path", "error", "words"),
    [
        ("collections", ValueError, "not of the form"),
        ("collections:OrderedDct", AttributeError, "did you mean 'OrderedDict'"),
        ("no_such_module_at_all:x", ImportError, "no_such_module_at_all"),
    ],
)
def test_bad_import_strings_say_what_is_wrong(
    path: str, error: type[Exception], words: str
) -> None:
    with pytest.raises(error, match=words):
        import_string(path)
