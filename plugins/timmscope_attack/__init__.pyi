# Every public name, once: `__init__.py` imports each of them when it is first used.
from .adversarial_patch import AdversarialPatch as AdversarialPatch
from .apgd import APGD as APGD
from .autoattack import AutoAttack as AutoAttack
from .carlini_wagner import CarliniWagner as CarliniWagner
from .ddn import DDN as DDN
from .deepfool import DeepFool as DeepFool
from .eot_pgd import EOTPGD as EOTPGD
from .fab import FAB as FAB
from .fgsm import FGSM as FGSM
from .fmn import FMN as FMN
from .hop_skip_jump import HopSkipJump as HopSkipJump
from .mi_fgsm import MIFGSM as MIFGSM
from .pgd import PGD as PGD
from .sigma_zero import SigmaZero as SigmaZero
from .square import Square as Square
from .targeted_linf import TargetedLinfObjective as TargetedLinfObjective
from .universal import UniversalAdversarialPerturbation as UniversalAdversarialPerturbation
