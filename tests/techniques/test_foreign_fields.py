"""A field of a type that no parameter can have is one clear line."""

from __future__ import annotations

from typing import Literal

import pytest

from timmscope import AttackTechnique, AttributionTechnique, DefenceTechnique, TechniqueError


class Foreign:
    pass


def test_a_field_of_a_foreign_type_is_named() -> None:
    says = "field thing of technique Odd has the type Foreign, "
    with pytest.raises(TypeError, match=says) as caught:

        class Odd(AttributionTechnique):
            """A technique."""

            count: int = 1
            thing: Foreign | None = None

            def attribute(self, model, images, objective):  # type: ignore[no-untyped-def]
                return images.sum(1)

    assert "\n" not in str(caught.value)


def test_a_technique_with_two_bases_is_named() -> None:
    says = "Both derives from AttributionTechnique and DefenceTechnique: a technique has one base"
    with pytest.raises(TypeError, match=says):

        class Both(AttributionTechnique, DefenceTechnique):
            pass


def test_an_attack_of_a_norm_that_there_is_not_is_named() -> None:
    class Strange(AttackTechnique):
        """An attack."""

        norm: Literal["l7"] = "l7"  # type: ignore[assignment]

        def perturb(self, model, images, goal):  # type: ignore[no-untyped-def]
            return images

    with pytest.raises(TechniqueError, match="has the norm 'l7'; expected one of linf, l2"):
        Strange()
