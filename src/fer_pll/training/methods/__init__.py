"""Methods of learning from candidate sets: pairs of a loss and a revision rule, chosen by the name of the loss.

Adding one takes a file with a subclass of `Method`, and its name here.
"""

from .base import Batch, Method
from .crpll import CRPLL
from .pico import PiCO
from .plain import CC, LW, LWC, PLL, PRODEN, Softmax, SoftVotes
from .rc import RC

METHODS: dict[str, type[Method]] = {
    "softmax": Softmax,
    "soft_votes": SoftVotes,
    "pll": PLL,
    "cc": CC,
    "rc": RC,
    "proden": PRODEN,
    "lw": LW,
    "lwc": LWC,
    "pico": PiCO,
    "crpll": CRPLL,
}

__all__ = ["METHODS", "Batch", "Method"]
