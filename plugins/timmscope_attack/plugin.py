"""Lists the attack techniques, and the picture of decisions, without importing torch."""

from collections.abc import Iterator

from timmscope_registry import TechniqueSpec, hookimpl


@hookimpl
def timmscope_techniques() -> Iterator[TechniqueSpec]:
    """Yield the techniques."""
    yield TechniqueSpec(
        name="adversarial-patch",
        family="attack",
        base="universal-attack",
        summary="A printed shape that decides what a model sees, wherever it is.",
        impl="timmscope_attack.adversarial_patch:AdversarialPatch",
        paper="Brown et al., NIPS Workshop 2017, arXiv:1712.09665; "
        "Athalye et al., ICML 2018, arXiv:1707.07397; "
        "Sharif et al., CCS 2016, doi:10.1145/2976749.2978392; "
        "Eykholt et al., CVPR 2018, arXiv:1707.08945",
    )
    yield TechniqueSpec(
        name="apgd",
        family="attack",
        summary="PGD with momentum that sets its step size itself; also with target classes.",
        impl="timmscope_attack.apgd:APGD",
        paper="Croce & Hein, ICML 2020, arXiv:2003.01690; "
        "Croce & Hein, ICML 2021, arXiv:2103.01208",
    )
    yield TechniqueSpec(
        name="autoattack",
        family="attack",
        summary="Four attacks without settings, each on what is not broken yet.",
        impl="timmscope_attack.autoattack:AutoAttack",
        paper="Croce & Hein, ICML 2020, arXiv:2003.01690; "
        "Croce & Hein, ICML 2021, arXiv:2103.01208",
    )
    yield TechniqueSpec(
        name="carlini-wagner",
        family="attack",
        summary="The smallest change by descent, with a search for its weight.",
        impl="timmscope_attack.carlini_wagner:CarliniWagner",
        paper="Carlini & Wagner, IEEE Symposium on Security and Privacy 2017, arXiv:1608.04644",
    )
    yield TechniqueSpec(
        name="ddn",
        family="attack",
        summary="A small L2 change, on a sphere that shrinks while the model is fooled.",
        impl="timmscope_attack.ddn:DDN",
        paper="Rony et al., CVPR 2019, arXiv:1811.09600",
    )
    yield TechniqueSpec(
        name="decision-slice",
        family="representation",
        base="model",
        summary="Classes and margins on the plane of an attack and a random direction.",
        impl="timmscope_attack.decision_slice:DecisionSlice",
        paper="Fawzi, Moosavi-Dezfooli & Frossard, NeurIPS 2016, arXiv:1608.08967; "
        "Liu, Chen, Liu & Song, ICLR 2017, arXiv:1611.02770",
    )
    yield TechniqueSpec(
        name="deepfool",
        family="attack",
        summary="Steps to the nearest boundary of the linearised model.",
        impl="timmscope_attack.deepfool:DeepFool",
        paper="Moosavi-Dezfooli, Fawzi & Frossard, CVPR 2016, arXiv:1511.04599",
    )
    yield TechniqueSpec(
        name="fab",
        family="attack",
        summary="The smallest change, by projections onto linearised decision boundaries.",
        impl="timmscope_attack.fab:FAB",
        paper="Croce & Hein, ICML 2020, arXiv:1907.02044",
    )
    yield TechniqueSpec(
        name="eot-pgd",
        family="attack",
        summary="Steps averaged over random views, so that an image fools from every side.",
        impl="timmscope_attack.eot_pgd:EOTPGD",
        paper="Athalye et al., ICML 2018, arXiv:1707.07397; "
        "Kurakin, Goodfellow & Bengio, ICLR Workshop 2017, arXiv:1607.02533",
    )
    yield TechniqueSpec(
        name="fgsm",
        family="attack",
        summary="One step along the sign of the loss's gradient.",
        impl="timmscope_attack.fgsm:FGSM",
        paper="Goodfellow, Shlens & Szegedy, ICLR 2015, arXiv:1412.6572",
    )
    yield TechniqueSpec(
        name="fmn",
        family="attack",
        summary="A small change in L∞, L2, L1 or L0, in a ball that follows the boundary.",
        impl="timmscope_attack.fmn:FMN",
        paper="Pintor, Roli, Brendel & Biggio, NeurIPS 2021, arXiv:2102.12827",
    )
    yield TechniqueSpec(
        name="hopskipjump",
        family="attack",
        summary="Walks along the boundary to the nearest image of another class, by labels alone.",
        impl="timmscope_attack.hop_skip_jump:HopSkipJump",
        paper="Chen, Jordan & Wainwright, S&P 2020, arXiv:1904.02144",
    )
    yield TechniqueSpec(
        name="mi-fgsm",
        family="attack",
        summary="Steps with momentum, whose images also fool models that were not attacked.",
        impl="timmscope_attack.mi_fgsm:MIFGSM",
        paper="Dong et al., CVPR 2018, arXiv:1710.06081; Xie et al., CVPR 2019, arXiv:1803.06978; "
        "Dong et al., CVPR 2019, arXiv:1904.02884; Lin et al., ICLR 2020, arXiv:1908.06281; "
        "Wang & He, CVPR 2021, arXiv:2103.15571",
    )
    yield TechniqueSpec(
        name="pgd",
        family="attack",
        summary="Many small steps, each projected back into the ball around the image.",
        impl="timmscope_attack.pgd:PGD",
        paper="Madry et al., ICLR 2018, arXiv:1706.06083",
    )
    yield TechniqueSpec(
        name="sigma-zero",
        family="attack",
        summary="Few changed pixels, by the gradient of a smooth count of them.",
        impl="timmscope_attack.sigma_zero:SigmaZero",
        paper="Cinà et al., ICLR 2025, arXiv:2402.01879",
    )
    yield TechniqueSpec(
        name="square",
        family="attack",
        summary="Random squares of change, kept where they help; needs no gradient.",
        impl="timmscope_attack.square:Square",
        paper="Andriushchenko et al., ECCV 2020, arXiv:1912.00049; "
        "Croce & Hein, ICML 2021, arXiv:2103.01208",
    )
    yield TechniqueSpec(
        name="targeted-linf-objective",
        family="attack",
        summary="A class's score against the largest change: a Pareto curve.",
        impl="timmscope_attack.targeted_linf:TargetedLinfObjective",
        paper="Szegedy et al., ICLR 2014, arXiv:1312.6199; Parikh & Boyd, Foundations and Trends "
        "in Optimization 2014, doi:10.1561/2400000003",
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
