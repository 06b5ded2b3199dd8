"""What this package offers, listed without importing torch."""

from collections.abc import Iterator

from timmscope_registry import TechniqueSpec, hookimpl


@hookimpl
def timmscope_techniques() -> Iterator[TechniqueSpec]:
    """Yield the attribution techniques."""
    yield TechniqueSpec(
        name="saliency",
        family="attribution",
        summary="Magnitude of the objective's gradient at every pixel.",
        impl="timmscope_attribution.saliency:Saliency",
        paper="Simonyan, Vedaldi & Zisserman, ICLR workshop 2014, arXiv:1312.6034",
    )
    yield TechniqueSpec(
        name="grad-cam",
        family="attribution",
        summary="Channels of a layer weighted by their mean gradient.",
        impl="timmscope_attribution.grad_cam:GradCAM",
        paper="Selvaraju et al., ICCV 2017, arXiv:1610.02391",
    )
    yield TechniqueSpec(
        name="score-cam",
        family="attribution",
        summary="Channels of a layer weighted by the score of the image behind them.",
        impl="timmscope_attribution.score_cam:ScoreCAM",
        paper="Wang et al., CVPR workshops 2020, arXiv:1910.01279",
    )
    yield TechniqueSpec(
        name="ablation-cam",
        family="attribution",
        summary="Channels of a layer weighted by what the score loses without them.",
        impl="timmscope_attribution.ablation_cam:AblationCAM",
        paper="Desai & Ramaswamy, WACV 2020",
    )
    yield TechniqueSpec(
        name="occlusion",
        family="attribution",
        summary="What the score loses when a sliding patch is covered.",
        impl="timmscope_attribution.occlusion:Occlusion",
        paper="Zeiler & Fergus, ECCV 2014, arXiv:1311.2901",
    )
    yield TechniqueSpec(
        name="rise",
        family="attribution",
        summary="Mean of random masks, weighted by the score of what they leave visible.",
        impl="timmscope_attribution.rise:RISE",
        paper="Petsiuk, Das & Saenko, BMVC 2018, arXiv:1806.07421",
    )
    yield TechniqueSpec(
        name="attention-rollout",
        family="attribution",
        summary="Attention of all blocks of a vision transformer, multiplied.",
        impl="timmscope_attribution.attention_rollout:AttentionRollout",
        paper="Abnar & Zuidema, ACL 2020, arXiv:2005.00928",
    )
    yield TechniqueSpec(
        name="attention-map",
        family="attribution",
        summary="What one block of a vision transformer attends to.",
        impl="timmscope_attribution.attention_map:AttentionMap",
        paper="Vaswani et al., NeurIPS 2017, arXiv:1706.03762",
    )
    yield TechniqueSpec(
        name="grabcut",
        family="attribution",
        summary="The object's mask, cut out along what a saliency map points at.",
        impl="timmscope_attribution.grabcut:GrabCut",
        paper="Simonyan, Vedaldi & Zisserman, ICLR workshop 2014, arXiv:1312.6034, section 3.2",
        needs=("opencv-python-headless>=4.10",),
    )
