"""`import timmscope` loads every public name lazily and refuses unknown names."""

import pytest

import timmscope
import timmscope_registry


@pytest.mark.parametrize("name", timmscope.__all__)
def test_every_public_name_resolves(name: str) -> None:
    assert getattr(timmscope, name) is not None


@pytest.mark.parametrize("name", timmscope_registry.__all__)
def test_every_name_of_the_registry_resolves(name: str) -> None:
    assert getattr(timmscope_registry, name) is not None


def test_an_unknown_name_raises_attribute_error() -> None:
    with pytest.raises(AttributeError, match="attribute load_modle"):
        _ = timmscope.load_modle


def test_a_technique_is_found_by_name_and_is_of_its_family() -> None:
    assert issubclass(timmscope.technique("grad-cam"), timmscope.AttributionTechnique)


def test_a_class_of_the_wrong_family_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    entry = timmscope_registry.get_registry().technique("grad-cam")
    monkeypatch.setattr(type(entry), "load", lambda self: int)
    with pytest.raises(timmscope.PluginError, match=r"expected a subclass of timmscope\.Attrib"):
        timmscope.technique("grad-cam")
