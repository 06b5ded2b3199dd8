"""One line about what a plugin did wrong: who, what, what was expected, what to do."""

import numpy as np
import pytest

from timmscope_registry import Entry, PluginInfo, TechniqueSpec
from timmscope_registry.plugin_faults import brief, fault

FOO = PluginInfo(
    id="foo:main",
    name="main",
    distribution="foo",
    version="1.2",
    value="foo.plugin",
    group="timmscope.v1",
    status="ok",
)
FILE = PluginInfo(
    id="my.py", name="", distribution="my.py", version="", value="a/my.py", group="", status="ok"
)
SPEC = TechniqueSpec(name="ripple", family="attack", summary=".", impl="foo:Ripple")


@pytest.mark.parametrize(
    ("who", "line"),
    [
        (
            Entry(id="foo:ripple", spec=SPEC, plugin=FOO),
            "technique 'ripple' of foo:main 1.2 returned a str; expected a dict; tell its authors",
        ),
        (
            Entry(id="my.py:ripple", spec=SPEC, plugin=FILE),
            "technique 'ripple' of my.py returned a str; expected a dict; fix my.py",
        ),
        (FOO, "foo:main 1.2 returned a str; expected a dict; tell its authors"),
        ("technique Ripple", "technique Ripple returned a str; expected a dict"),
    ],
)
def test_a_fault_names_who_what_and_a_remedy(who, line):
    assert fault(who, "returned a str", expected="a dict") == line


def test_a_remedy_may_be_given_or_left_out():
    assert fault(FOO, "failed", advice="start again") == "foo:main 1.2 failed; start again"
    assert fault(FOO, "failed", advice="") == "foo:main 1.2 failed"


def test_what_came_is_said_in_two_words():
    came = [None, "x", 3, np.zeros(2, np.int8), object]
    assert [brief(each) for each in came] == [
        "nothing",
        "a str",
        "an int",
        "an array of type int8",
        "a type",
    ]
