"""Lists the attribution techniques without importing torch."""

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
        name="input-x-gradient",
        family="attribution",
        summary="Each pixel's value times the objective's gradient there.",
        impl="timmscope_attribution.input_x_gradient:InputXGradient",
        paper="Shrikumar, Greenside, Shcherbina & Kundaje, 2016, arXiv:1605.01713",
    )
    yield TechniqueSpec(
        name="smooth-grad",
        family="attribution",
        summary="Gradient averaged over noisy copies of the image.",
        impl="timmscope_attribution.smooth_grad:SmoothGrad",
        paper="Smilkov, Thorat, Kim, Viégas & Wattenberg, 2017, arXiv:1706.03825",
    )
    yield TechniqueSpec(
        name="integrated-gradients",
        family="attribution",
        summary="Gradient summed along a straight path from a baseline image.",
        impl="timmscope_attribution.integrated_gradients:IntegratedGradients",
        paper="Sundararajan, Taly & Yan, ICML 2017, arXiv:1703.01365",
    )
    yield TechniqueSpec(
        name="guided-backprop",
        family="attribution",
        summary="Gradient that passes each ReLU only where it and the unit are positive.",
        impl="timmscope_attribution.guided_backprop:GuidedBackprop",
        paper="Springenberg, Dosovitskiy, Brox & Riedmiller, ICLR workshop 2015, arXiv:1412.6806",
    )
    yield TechniqueSpec(
        name="deconvnet",
        family="attribution",
        summary="Gradient that passes each ReLU only where it is positive.",
        impl="timmscope_attribution.deconvnet:Deconvnet",
        paper="Zeiler & Fergus, ECCV 2014, arXiv:1311.2901",
    )
    yield TechniqueSpec(
        name="cam",
        family="attribution",
        summary="Feature map weighted by the weights of the linear classifier.",
        impl="timmscope_attribution.cam:CAM",
        paper="Zhou, Khosla, Lapedriza, Oliva & Torralba, CVPR 2016, arXiv:1512.04150",
    )
    yield TechniqueSpec(
        name="grad-cam",
        family="attribution",
        summary="Channels of a layer weighted by their mean gradient.",
        impl="timmscope_attribution.grad_cam:GradCAM",
        paper="Selvaraju et al., ICCV 2017, arXiv:1610.02391",
    )
    yield TechniqueSpec(
        name="grad-cam++",
        family="attribution",
        summary="Grad-CAM with weights that count several instances of a class equally.",
        impl="timmscope_attribution.grad_cam_plus_plus:GradCAMPlusPlus",
        paper="Chattopadhay, Sarkar, Howlader & Balasubramanian, WACV 2018, arXiv:1710.11063",
    )
    yield TechniqueSpec(
        name="xgrad-cam",
        family="attribution",
        summary="Channels of a layer weighted by their activation-weighted gradient.",
        impl="timmscope_attribution.xgrad_cam:XGradCAM",
        paper="Fu et al., BMVC 2020, arXiv:2008.02312",
    )
    yield TechniqueSpec(
        name="layer-cam",
        family="attribution",
        summary="Each cell of a layer weighted by its own positive gradient.",
        impl="timmscope_attribution.layer_cam:LayerCAM",
        paper="Jiang, Zhang, Hou, Cheng & Wei, IEEE TIP 2021, doi:10.1109/TIP.2021.3089943",
    )
    yield TechniqueSpec(
        name="eigen-cam",
        family="attribution",
        summary="First principal component of a layer's activation.",
        impl="timmscope_attribution.eigen_cam:EigenCAM",
        paper="Muhammad & Yeasin, IJCNN 2020, arXiv:2008.00299",
    )
    yield TechniqueSpec(
        name="guided-grad-cam",
        family="attribution",
        summary="Guided backpropagation inside the Grad-CAM map.",
        impl="timmscope_attribution.guided_grad_cam:GuidedGradCAM",
        paper="Selvaraju et al., ICCV 2017, arXiv:1610.02391",
    )
    yield TechniqueSpec(
        name="score-cam",
        family="attribution",
        summary="Channels of a layer weighted by the score of the image masked with them.",
        impl="timmscope_attribution.score_cam:ScoreCAM",
        paper="Wang et al., CVPR workshops 2020, arXiv:1910.01279",
    )
    yield TechniqueSpec(
        name="ablation-cam",
        family="attribution",
        summary="Channels of a layer weighted by the drop of the score without them.",
        impl="timmscope_attribution.ablation_cam:AblationCAM",
        paper="Desai & Ramaswamy, WACV 2020",
    )
    yield TechniqueSpec(
        name="occlusion",
        family="attribution",
        summary="Drop of the score when a sliding patch is covered.",
        impl="timmscope_attribution.occlusion:Occlusion",
        paper="Zeiler & Fergus, ECCV 2014, arXiv:1311.2901",
    )
    yield TechniqueSpec(
        name="rise",
        family="attribution",
        summary="Mean of random masks, each weighted by the score of the masked image.",
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
        summary="Patches that one block of a vision transformer attends to.",
        impl="timmscope_attribution.attention_map:AttentionMap",
        paper="Vaswani et al., NeurIPS 2017, arXiv:1706.03762",
    )
    yield TechniqueSpec(
        name="grabcut",
        family="attribution",
        summary="Mask of the object that a saliency map points at, by a graph cut.",
        impl="timmscope_attribution.grabcut:GrabCut",
        paper="Simonyan, Vedaldi & Zisserman, ICLR workshop 2014, arXiv:1312.6034, section 3.2",
        needs=("opencv-python-headless>=4.10",),
    )
