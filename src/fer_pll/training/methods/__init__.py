"""Methods of learning from candidate sets: pairs of a loss and a revision rule, chosen by the name of the loss.

To add one, write a file with a subclass of `Method` and name it here. Your own method need not be in the package: put
it into `METHODS`, or pass it to `FerPllTrainer(method=...)`.
"""

from ...labels.revision import REVISION_RULES
from .ada_cm import AdaCM
from .annotator_confusion import AnnotatorConfusion
from .base import Batch, Method, MethodOptions
from .baselines import CrossEntropy, SoftVotes
from .cc import CC
from .crosel import CroSel
from .crowd_layer import CrowdLayer
from .crpll import CRPLL
from .dacl import DACL
from .dda import DDA
from .dmue import DMUE
from .eac import EAC
from .ldl import NeighborLDL
from .lw import LW, LWC
from .mcr import MCR
from .papi import PaPi
from .pico import PiCO
from .pll import PLL
from .proden import PRODEN
from .rc import RC
from .rul import RUL
from .scn import SCN
from .solar import SoLar

METHODS: dict[str, type[Method]] = {
    method.name: method
    for method in (
        *(CrossEntropy, SoftVotes),
        *(PLL, CC, RC, PRODEN, LW, LWC, PiCO, CRPLL, SoLar, PaPi, CroSel),  # of candidate sets
        *(SCN, RUL, DMUE, EAC, DACL, DDA, NeighborLDL, MCR, AdaCM),  # of one label for each row
        *(CrowdLayer, AnnotatorConfusion),  # of annotators' answers
    )
}
"""The methods by the name of their loss."""


def revision_names() -> list[str]:
    """Every rule that some method can be combined with."""
    own = [method.revision.name for method in METHODS.values() if not isinstance(method.revision, str)]
    return list(dict.fromkeys([*REVISION_RULES, *own]))


__all__ = ["METHODS", "Batch", "Method", "MethodOptions", "revision_names"]
