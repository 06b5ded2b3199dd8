"""The class docstring of a technique names its formula, paper, inherited parameters and errors."""

from __future__ import annotations

import inspect
import re

import pytest

from timmscope import Technique, technique
from timmscope.cli.text import sections
from timmscope.errors import __all__ as ERRORS
from timmscope.techniques.lookup import BASES
from timmscope_registry import Entry, TechniqueSpec, get_registry

ENTRIES = [e for e in get_registry().techniques() if e.plugin.distribution == "timmscope"]
FORMULA = re.compile(r"`[^`\n]*[=·∇∂ΣΠ−√→≤≥⊙ᵀ][^`\n]*`")


def raised(text: str | None) -> set[str]:
    """Names in the section `Raises:` of a docstring."""
    found = sections(inspect.cleandoc(text or "")).get("Raises", "")
    return set(re.findall(r"^(\w+):", found, re.MULTILINE))


def inherited(kind: type[Technique]) -> set[str]:
    """Fields that the class does not declare itself."""
    return set(kind.model_fields) - set(inspect.get_annotations(kind))


@pytest.mark.parametrize("entry", ENTRIES, ids=lambda entry: entry.spec.name)
class TestDocstring:
    def test_it_begins_with_one_line_and_then_a_formula(self, entry: Entry[TechniqueSpec]) -> None:
        text = inspect.cleandoc(technique(entry.id).__doc__ or "")
        first, blank, *_ = text.splitlines()
        assert first.endswith(".")
        assert blank == ""
        assert FORMULA.search(sections(text)[""]), "no formula"

    def test_it_names_the_papers_of_the_listing(self, entry: Entry[TechniqueSpec]) -> None:
        found = sections(inspect.cleandoc(technique(entry.id).__doc__ or ""))
        assert bool(entry.spec.paper) is ("Paper" in found)
        papers = [" ".join(each.split()) for each in found.get("Paper", "").split("\n- ")]
        for listed in filter(None, entry.spec.paper.split("; ")):
            surname = re.split(r"[ ,]", listed)[-1 if listed[0].islower() else 0]
            facts = re.findall(r"\b(?:19|20)\d\d\b|arXiv:\S+\d|doi:\S+\w", listed)
            assert any(all(fact in each for fact in [surname, *facts]) for each in papers), listed
        for each in filter(None, papers):
            assert re.search(r', "[^"]+"', each), f"no title: {each}"
            assert re.search(r"\b(19|20)\d\d\b", each), f"no year: {each}"

    def test_it_explains_every_inherited_parameter(self, entry: Entry[TechniqueSpec]) -> None:
        kind = technique(entry.id)
        found = sections(inspect.cleandoc(kind.__doc__ or ""))
        listed = re.findall(r"^(\w+): \w", found.get("Inherited parameters", ""), re.MULTILINE)
        assert set(listed) == inherited(kind)
        assert len(set(listed)) == len(listed)

    def test_it_names_every_error_that_exists_and_may_be_raised(
        self, entry: Entry[TechniqueSpec]
    ) -> None:
        kind = technique(entry.id)
        found = raised(kind.__doc__)
        assert found
        assert found <= set(ERRORS)
        for method in BASES[entry.spec.base].__abstractmethods__:
            assert raised(getattr(kind, method).__doc__) <= found
        assert raised(kind.__call__.__doc__) <= found
