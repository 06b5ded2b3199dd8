"""Lists the defence techniques without importing torch."""

from collections.abc import Iterator

from timmscope_registry import TechniqueSpec, hookimpl


@hookimpl
def timmscope_techniques() -> Iterator[TechniqueSpec]:
    """Yield the defence techniques."""
    yield TechniqueSpec(
        name="adversarial-training",
        family="defence",
        base="training",
        summary="Training on attacked images: PGD, TRADES or fast, beside standard training.",
        impl="timmscope_defence.adversarial_training:AdversarialTraining",
        paper="Madry et al., ICLR 2018, arXiv:1706.06083; Zhang et al., ICML 2019, "
        "arXiv:1901.08573; Wong, Rice & Kolter, ICLR 2020, arXiv:2001.03994",
    )
    yield TechniqueSpec(
        name="bit-depth",
        family="defence",
        summary="Fewer grey levels, so that smaller changes disappear.",
        impl="timmscope_defence.bit_depth:BitDepth",
        paper="Xu, Evans & Qi, NDSS 2018, arXiv:1704.01155",
    )
    yield TechniqueSpec(
        name="distillation-training",
        family="defence",
        base="training",
        summary="Defensive distillation, which hides the gradient and falls to attacks on logits.",
        impl="timmscope_defence.distillation_training:DistillationTraining",
        paper="Papernot, McDaniel, Wu, Jha & Swami, S&P 2016, arXiv:1511.04508; Carlini & Wagner, "
        "S&P 2017, arXiv:1608.04644",
    )
    yield TechniqueSpec(
        name="gaussian-filter",
        family="defence",
        summary="A Gaussian blur, which removes changes of high frequency.",
        impl="timmscope_defence.gaussian_filter:GaussianFilter",
        paper="Xu, Evans & Qi, NDSS 2018, arXiv:1704.01155",
    )
    yield TechniqueSpec(
        name="ibp-training",
        family="defence",
        base="training",
        summary="Training on interval bounds, so that predictions can be proved.",
        impl="timmscope_defence.ibp_training:IBPTraining",
        paper="Gowal et al., 2018, arXiv:1810.12715; Müller, Eckert, Fischer & Vechev, ICLR 2023, "
        "arXiv:2210.04871",
    )
    yield TechniqueSpec(
        name="interval-bounds",
        family="defence",
        base="certification",
        summary="Proof by interval bounds that no small change anywhere changes a prediction.",
        impl="timmscope_defence.interval_bounds:IntervalBounds",
        paper="Gowal et al., 2018, arXiv:1810.12715; Zhang, Weng, Chen, Hsieh & Daniel, NeurIPS "
        "2018, arXiv:1811.00866; Zhang et al., ICLR 2020, arXiv:1906.06316",
    )
    yield TechniqueSpec(
        name="jpeg",
        family="defence",
        summary="JPEG compression, which removes small changes of high frequency.",
        impl="timmscope_defence.jpeg:JPEG",
        paper="Guo, Rana, Cissé & van der Maaten, ICLR 2018, arXiv:1711.00117",
    )
    yield TechniqueSpec(
        name="lipschitz-bound",
        family="defence",
        base="certification",
        summary="Proof by a Lipschitz constant of the network, beside the estimate CLEVER.",
        impl="timmscope_defence.lipschitz_bound:LipschitzBound",
        paper="Tsuzuku, Sato & Sugiyama, NeurIPS 2018, arXiv:1802.04034; Weng et al., ICLR 2018, "
        "arXiv:1801.10578",
    )
    yield TechniqueSpec(
        name="lipschitz-training",
        family="defence",
        base="training",
        summary="Training of layers that stretch no change, so that a margin is a certificate.",
        impl="timmscope_defence.lipschitz_training:LipschitzTraining",
        paper="Tsuzuku, Sato & Sugiyama, NeurIPS 2018, arXiv:1802.04034; Miyato, Kataoka, Koyama & "
        "Yoshida, ICLR 2018, arXiv:1802.05957",
    )
    yield TechniqueSpec(
        name="median-filter",
        family="defence",
        summary="The median of a square around each pixel.",
        impl="timmscope_defence.median_filter:MedianFilter",
        paper="Xu, Evans & Qi, NDSS 2018, arXiv:1704.01155",
    )
    yield TechniqueSpec(
        name="noise-training",
        family="defence",
        base="training",
        summary="Training with Gaussian noise, so that randomised smoothing certifies more.",
        impl="timmscope_defence.noise_training:NoiseTraining",
        paper="Lécuyer et al., S&P 2019, arXiv:1802.03471; Cohen, Rosenfeld & Kolter, ICML 2019, "
        "arXiv:1902.02918",
    )
    yield TechniqueSpec(
        name="randomized-resize",
        family="defence",
        summary="A random size and a random place, with black around.",
        impl="timmscope_defence.randomized_resize:RandomizedResize",
        paper="Xie, Wang, Zhang, Ren & Yuille, ICLR 2018, arXiv:1711.01991",
    )
    yield TechniqueSpec(
        name="randomized-smoothing",
        family="defence",
        base="certification",
        summary="Certified radius of the class found most often under Gaussian noise.",
        impl="timmscope_defence.randomized_smoothing:RandomizedSmoothing",
        paper="Cohen, Rosenfeld & Kolter, ICML 2019, arXiv:1902.02918",
    )
    yield TechniqueSpec(
        name="smooth-activations",
        family="defence",
        summary="Softplus in place of ReLU, so that a gradient passes everywhere.",
        impl="timmscope_defence.smooth_activations:SmoothActivations",
        paper="Dombrowski et al., NeurIPS 2019, arXiv:1906.07983; Xie, Tan, Gong, Yuille & Le, "
        "2020, arXiv:2006.14536",
    )
    yield TechniqueSpec(
        name="total-variation",
        family="defence",
        summary="Denoising by total variation, which keeps only strong edges.",
        impl="timmscope_defence.total_variation:TotalVariation",
        paper="Guo, Rana, Cissé & van der Maaten, ICLR 2018, arXiv:1711.00117; Beck & Teboulle, "
        "IEEE Transactions on Image Processing 2009, doi:10.1109/TIP.2009.2028250",
    )
