"""Each contribution keeps every promise of its kind."""

from pathlib import Path

from timmscope.testing import conformance


def _gradients(folder: Path) -> str:
    return "24"


test_attribution = conformance("centre-bias")
test_synthesis = conformance("best-of-noise")
test_attack = conformance("brightness")
test_further_model = conformance(
    "borrowed-gradient",
    parameters={"surrogate": "random:test_resnet?num_classes=10&img_size=32"},
)
test_universal_attack = conformance("tint")
test_defence = conformance("shake")
test_certification = conformance("rounding")
test_style = conformance("histogram-match")
test_representation = conformance("class-distances")
test_training = conformance("mixup", parameters={"epochs": 2, "batch_size": 8})
test_collector = conformance("first-above", parameters={"threshold": 0.5})
test_model_source = conformance("colours", kind="model source")
test_image_source = conformance("gradients", kind="image source", make=_gradients)
test_index_backend = conformance("dictionary", kind="index backend")
