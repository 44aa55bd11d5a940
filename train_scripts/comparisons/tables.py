"""The paper's tables and figures as rows, a training each. A new table is an entry in `TABLES`."""

from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True)
class Run:
    """One training.

    pretraining: objective of the pre-training, None for random weights.
    settings: file in experiments/, without its ending.
    overrides: settings of fer-pll finetune beside those.
    resnet: a ResNet-18 with random weights in the place of the ViT.
    votes: train on as many drawn votes of each row, None for all.
    """

    pretraining: str | None
    settings: str
    overrides: tuple[tuple[str, str], ...] = ()
    resnet: bool = False
    votes: int | None = None

    @property
    def name(self) -> str:
        parts = ["resnet18" if self.resnet else self.pretraining or "scratch", self.settings.replace("/", "-")]
        parts += [f"{key}={value}" for key, value in self.overrides]
        return "_".join([*parts, f"{self.votes}votes"] if self.votes else parts)


@dataclass(frozen=True)
class Row:
    """Of a table: its title, its run, and what the paper reports (accuracy on FER+ or, where said, elsewhere)."""

    title: str
    run: Run
    published: str = ""


def _plain(*rows: tuple) -> Callable[[int | None], list[Row]]:
    """Rows given as (title, pre-training, settings, published, further fields of Run)."""

    def make(votes: int | None) -> list[Row]:
        return [
            Row(title, Run(pretraining, settings, votes=votes, **dict(*more)), published)
            for title, pretraining, settings, published, *more in rows
        ]

    return make


RESNET = {"resnet": True}
ALL = "table7/all"
RAF = "{} (RAF-DB)".format


def _with(**settings: object) -> dict:
    return {"overrides": tuple((key, str(value)) for key, value in settings.items())}


SOFT_MOMENTUM = _with(revision="soft", revision_momentum=0.9)

# Title and the numbers of votes that a table has by default (None: all), then its rows.
TABLES: dict[str, tuple[str, tuple[int | None, ...], Callable[[int | None], list[Row]]]] = {
    "table4": (
        "Table 4: baseline, partial label learning, ours",
        (None, 2),
        _plain(
            ("ViT, softmax, random weights (the baseline)", None, "table5/softmax", "88.18"),
            ("ViT, softmax, pre-trained", "hog", "table5/softmax", ""),
            ("ViT, soft votes, pre-trained", "hog", "table4/soft-votes", ""),
            ("RC, ResNet-18", None, "table4/rc", "88.53", RESNET),
            ("LW, ResNet-18", None, "table4/lw", "88.10", RESNET),
            ("PiCO, ResNet-18", None, "table4/pico", "87.93", RESNET),
            ("CRPLL, ResNet-18", None, "table4/crpll", "88.01", RESNET),
            ("ours, random weights", None, ALL, "89.76"),
            ("ours, pre-trained", "hog", ALL, "91.11"),
            ("ours, pre-trained, soft revision with momentum", "hog", ALL, "", SOFT_MOMENTUM),
        ),
    ),
    "table5": (
        "Table 5: softmax and PLL, two backbones",
        (None,),
        _plain(
            ("ResNet-18, softmax", None, "table5/softmax", "87.37", RESNET),
            ("ResNet-18, PLL", None, "table5/pll", "88.40", RESNET),
            ("ViT, HOG pre-training, softmax", "hog", "table5/softmax", "87.92"),
            ("ViT, HOG pre-training, PLL", "hog", "table5/pll", "90.24"),
        ),
    ),
    "table6": (
        "Table 6: pre-trainings, with PLL",
        (None,),
        _plain(
            ("none", None, "table5/pll", ""),
            ("ResNet-18, none", None, "table5/pll", "88.40", RESNET),
            ("MoCo", "moco", "table5/pll", "88.14"),
            ("SimMIM", "simmim", "table5/pll", "89.78"),
            ("MAE", "mae", "table5/pll", "89.70"),
            ("MaskFeat (mask tokens)", "maskfeat", "table5/pll", ""),
            ("HOG, visible patches (ours)", "hog", "table5/pll", "90.24"),
        ),
    ),
    "table7": (
        "Table 7: query decoder, uniformity, revision",
        (None, 2),
        _plain(
            ("softmax on the majority", "hog", "table5/softmax", ""),
            ("soft votes", "hog", "table4/soft-votes", ""),
            ("PLL", "hog", "table5/pll", RAF(90.35)),
            ("PLL, decoder", "hog", "table7/decoder", RAF(91.29)),
            ("PLL, decoder, uniformity", "hog", "table7/decoder-uniform", RAF(91.64)),
            ("PLL, decoder, revision", "hog", "table7/decoder-revision", RAF(91.89)),
            ("PLL, decoder, uniformity, revision", "hog", ALL, RAF(92.05)),
        ),
    ),
    "table8": (
        "Table 8: temperature of the uniformity loss, our form and Eq. 3 as printed",
        (None,),
        _plain(
            *((f"{tau}", "hog", ALL, published, _with(uniform_temperature=tau))
              for tau, published in ((0.001, "91.41"), (0.005, "90.67"), (0.01, "90.18"), (0.1, ""))),
            *((f"{tau}, as printed", "hog", ALL, "", _with(uniform_temperature=tau, uniform_literal="true"))
              for tau in (0.001, 0.005, 0.01, 0.1)),
        ),
    ),
    "section4.5": (
        "Section 4.5: labels in a candidate set",
        (None,),
        _plain(
            *((f"{size}", "hog", ALL, published, _with(max_candidates=size))
              for size, published in ((1, ""), (2, RAF(92.05)), (3, RAF(91.94)), (4, RAF(90.01))))
        ),
    ),
    "figure4": (
        "Figure 4: accuracy over the epochs",
        (None,),
        _plain(
            ("random weights, softmax", None, "table5/softmax", ""),
            ("HOG pre-training, softmax", "hog", "table5/softmax", ""),
            ("HOG pre-training, PLL (ours)", "hog", ALL, ""),
        ),
    ),
    "figure5": (
        "Figure 5: rows whose largest confidence is right",
        (2,),
        _plain(("random weights, PLL (ours)", None, ALL, ""), ("HOG pre-training, PLL (ours)", "hog", ALL, "")),
    ),
    "figure6": (
        "Figure 6: threshold of the revision",
        (None,),
        _plain(
            *((f"{threshold}", "hog", ALL, "", _with(revision_threshold=threshold))
              for threshold in (0.05, 0.1, 0.2, 0.3, 0.4))
        ),
    ),
    "rules": (
        "Rules of the revision, beyond the paper",
        (None, 2),
        _plain(
            ("none", "hog", "table7/decoder-uniform", ""),
            ("paper (Eq. 4 and 5)", "hog", ALL, ""),
            ("normalized", "hog", ALL, "", _with(revision="normalized", revision_threshold=0.5)),
            ("soft", "hog", ALL, "", _with(revision="soft")),
            ("soft, momentum .9", "hog", ALL, "", SOFT_MOMENTUM),
        ),
    ),
    "figure7": (
        "Figures 1 and 7 to 9: what training made of its annotators",
        (None,),
        _plain(("ours", "hog", ALL, "")),
    ),
    "figure10": (
        "Figures 10 and 11: confusion matrices with and without uniformity",
        (None,),
        _plain(("without uniformity", "hog", "table7/decoder-revision", ""), ("with uniformity", "hog", ALL, "")),
    ),
}  # fmt: skip
