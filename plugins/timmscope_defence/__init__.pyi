# Every public name, once: `__init__.py` imports each of them when it is first used.
from .adversarial_training import AdversarialTraining as AdversarialTraining
from .randomized_smoothing import RandomizedSmoothing as RandomizedSmoothing
