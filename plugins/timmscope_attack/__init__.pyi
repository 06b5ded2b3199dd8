# Every public name, once: `__init__.py` imports each of them when it is first used.
from .fgsm import FGSM as FGSM
from .pgd import PGD as PGD
from .universal import UniversalAdversarialPerturbation as UniversalAdversarialPerturbation
