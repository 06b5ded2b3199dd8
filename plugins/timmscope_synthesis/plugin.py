"""Lists the synthesis techniques without importing torch."""

from collections.abc import Iterator

from timmscope_registry import TechniqueSpec, hookimpl


@hookimpl
def timmscope_techniques() -> Iterator[TechniqueSpec]:
    """Yield the synthesis techniques."""
    yield TechniqueSpec(
        name="activation-maximization",
        family="synthesis",
        summary="An image optimised from noise to maximise the objective.",
        impl="timmscope_synthesis.activation_maximization:ActivationMaximization",
        paper="Olah, Mordvintsev & Schubert, Distill 2017, doi:10.23915/distill.00007",
    )
    yield TechniqueSpec(
        name="class-visualization",
        family="synthesis",
        summary="A class from noise, with decay, blur or clipping instead of random views.",
        impl="timmscope_synthesis.class_visualization:ClassVisualization",
        paper="Simonyan, Vedaldi & Zisserman, ICLR workshop 2014, arXiv:1312.6034; "
        "Yosinski, Clune, Nguyen, Fuchs & Lipson, ICML workshop 2015, arXiv:1506.06579",
    )
    yield TechniqueSpec(
        name="decoder-training",
        family="synthesis",
        base="training",
        summary="A decoder from codes to images like yours: autoencoder, VAE or GAN.",
        impl="timmscope_synthesis.decoder_training:DecoderTraining",
        paper="Dosovitskiy & Brox, NeurIPS 2016, arXiv:1602.02644; Kingma & Welling, ICLR 2014, "
        "arXiv:1312.6114; Goodfellow et al., NeurIPS 2014, arXiv:1406.2661",
    )
    yield TechniqueSpec(
        name="data-free-distillation",
        family="synthesis",
        base="training",
        summary="A student that learns a teacher's answers from synthesised images alone.",
        impl="timmscope_synthesis.data_free_distillation:DataFreeDistillation",
        paper="Yin et al., CVPR 2020, arXiv:1912.08795; "
        "Hinton, Vinyals & Dean, NeurIPS workshop 2014, arXiv:1503.02531",
    )
    yield TechniqueSpec(
        name="deep-dream",
        family="synthesis",
        summary="What a layer sees in an image, enhanced from coarse to fine.",
        impl="timmscope_synthesis.deep_dream:DeepDream",
        paper="Mordvintsev, Olah & Tyka, Google Research Blog 2015",
    )
    yield TechniqueSpec(
        name="deep-inversion",
        family="synthesis",
        summary="Images of classes that have the statistics of a model's training images.",
        impl="timmscope_synthesis.deep_inversion:DeepInversion",
        paper="Yin, Molchanov, Alvarez, Li, Mallya, Hoiem, Jha & Kautz, CVPR 2020, "
        "arXiv:1912.08795",
    )
    yield TechniqueSpec(
        name="feature-inversion",
        family="synthesis",
        summary="The image that a layer's activation describes, found by gradient descent.",
        impl="timmscope_synthesis.feature_inversion:FeatureInversion",
        paper="Mahendran & Vedaldi, CVPR 2015, arXiv:1412.0035; "
        "Mahendran & Vedaldi, IJCV 2016, arXiv:1512.02017",
    )
    yield TechniqueSpec(
        name="generative-prior",
        family="synthesis",
        summary="An image from a trained decoder, whose code maximises the objective.",
        impl="timmscope_synthesis.generative_prior:GenerativePrior",
        paper="Nguyen, Dosovitskiy, Yosinski, Brox & Clune, NeurIPS 2016, arXiv:1605.09304",
    )
    yield TechniqueSpec(
        name="maco",
        family="synthesis",
        summary="Phases that maximise the objective, with the spectrum of photographs.",
        impl="timmscope_synthesis.maco:Maco",
        paper="Fel, Boissin, Boutin, Picard, Novello, Colin, Linsley, Rousseau, Cadène, "
        "Goetschalckx, Gardes & Serre, NeurIPS 2023, arXiv:2306.06805",
    )
    yield TechniqueSpec(
        name="feature-accentuation",
        family="synthesis",
        summary="A photograph in which the objective is stronger.",
        impl="timmscope_synthesis.feature_accentuation:FeatureAccentuation",
        paper="Hamblin, Fel, Saha, Konkle & Alvarez, 2024, arXiv:2402.10039",
    )
    yield TechniqueSpec(
        name="multifaceted",
        family="synthesis",
        summary="The different kinds of images that excite a unit, an image each.",
        impl="timmscope_synthesis.multifaceted:Multifaceted",
        paper="Nguyen, Yosinski & Clune, ICML workshop 2016, arXiv:1602.03616",
    )
