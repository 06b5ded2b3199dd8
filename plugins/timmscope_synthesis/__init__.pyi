# Every public name, once: `__init__.py` imports each of them when it is first used.
from .activation_maximization import ActivationMaximization as ActivationMaximization
from .class_visualization import ClassVisualization as ClassVisualization
from .data_free_distillation import DataFreeDistillation as DataFreeDistillation
from .decoder_training import DecoderTraining as DecoderTraining
from .deep_dream import DeepDream as DeepDream
from .deep_inversion import DeepInversion as DeepInversion
from .feature_accentuation import FeatureAccentuation as FeatureAccentuation
from .feature_inversion import FeatureInversion as FeatureInversion
from .generative_prior import GenerativePrior as GenerativePrior
from .maco import Maco as Maco
from .multifaceted import Multifaceted as Multifaceted
