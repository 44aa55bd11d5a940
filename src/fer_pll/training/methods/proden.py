"""PRODEN, progressive identification of true labels (Lv et al., 2020)."""

from .pll import PLL


class PRODEN(PLL):
    """Cross-entropy with the softmax over the candidates at the row's previous visit."""

    name = "proden"
    summary = "the cross-entropy with the confidences that the image's previous visit left (PRODEN, Lv et al., 2020)"
    revision = "soft"
    revisions = ("soft",)
