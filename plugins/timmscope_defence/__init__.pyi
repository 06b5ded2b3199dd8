# Every public name, once: `__init__.py` imports each of them when it is first used.
from .adversarial_training import AdversarialTraining as AdversarialTraining
from .bit_depth import BitDepth as BitDepth
from .distillation_training import DistillationTraining as DistillationTraining
from .gaussian_filter import GaussianFilter as GaussianFilter
from .ibp_training import IBPTraining as IBPTraining
from .interval_bounds import IntervalBounds as IntervalBounds
from .jpeg import JPEG as JPEG
from .lipschitz_bound import LipschitzBound as LipschitzBound
from .lipschitz_training import LipschitzTraining as LipschitzTraining
from .median_filter import MedianFilter as MedianFilter
from .noise_training import NoiseTraining as NoiseTraining
from .randomized_resize import RandomizedResize as RandomizedResize
from .randomized_smoothing import RandomizedSmoothing as RandomizedSmoothing
from .smooth_activations import SmoothActivations as SmoothActivations
from .total_variation import TotalVariation as TotalVariation
