"""Lists the attack techniques without importing torch."""

from collections.abc import Iterator

from timmscope_registry import TechniqueSpec, hookimpl


@hookimpl
def timmscope_techniques() -> Iterator[TechniqueSpec]:
    """Yield the attack techniques."""
    yield TechniqueSpec(
        name="fgsm",
        family="attack",
        summary="One step along the sign of the loss's gradient.",
        impl="timmscope_attack.fgsm:FGSM",
        paper="Goodfellow, Shlens & Szegedy, ICLR 2015, arXiv:1412.6572",
    )
    yield TechniqueSpec(
        name="pgd",
        family="attack",
        summary="Many small steps, each projected back into the ball around the image.",
        impl="timmscope_attack.pgd:PGD",
        paper="Madry et al., ICLR 2018, arXiv:1706.06083",
    )
    yield TechniqueSpec(
        name="universal-perturbation",
        family="attack",
        base="universal-attack",
        summary="One small change that fools a model on most images.",
        impl="timmscope_attack.universal:UniversalAdversarialPerturbation",
        paper="Moosavi-Dezfooli et al., CVPR 2017, arXiv:1610.08401; "
        "Shafahi et al., AAAI 2020, arXiv:1811.11304",
    )
