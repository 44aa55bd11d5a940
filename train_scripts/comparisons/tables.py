"""The paper's tables and figures, and comparisons beyond it. A new one is an entry in `TABLES`."""

from dataclasses import dataclass, field, replace

from .figures import Figure, confusion_matrices, galleries, over_epochs, over_rows
from .report import COLUMNS, COVERAGE, Column
from .runs import Row, Run


@dataclass(frozen=True)
class Table:
    """A comparison of runs.

    title: heading of the table.
    rows: rows whose runs train on all votes.
    votes: default numbers of drawn votes to make the table with; None stands for all votes.
    columns: for each title, a function that takes the value out of a result.
    figure: function that draws the figures of the table.
    """

    title: str
    rows: tuple[Row, ...]
    votes: tuple[int | None, ...] = (None,)
    columns: dict[str, Column] = field(default_factory=lambda: COLUMNS)
    figure: Figure | None = None

    def with_votes(self, votes: int | None) -> list[Row]:
        """The rows, with runs that train on this number of drawn votes."""
        return [replace(row, run=replace(row.run, votes=votes)) for row in self.rows]


def options(**settings: object) -> tuple[tuple[str, str], ...]:
    """Options of fer-pll finetune, as `Run.overrides`."""
    return tuple((key, str(value)) for key, value in settings.items())


BASELINE = Run(None, "cross-entropy")
CROSS_ENTROPY = Run("hog", "cross-entropy")
SOFT_VOTES = Run("hog", "soft-votes")
PLL = Run("hog", "pll")
DECODER = Run("hog", "decoder")
DECODER_UNIFORM = Run("hog", "decoder-uniform")
DECODER_REVISION = Run("hog", "decoder-revision")
OURS = Run("hog", "full")
OURS_UNTRAINED = Run(None, "full")
SOFT = Run("hog", "full", options(revision="soft"))
SOFT_MOMENTUM = Run("hog", "full", options(revision="soft", revision_momentum=0.9))
BELIEVED_LABEL = Run("hog", "decoder-uniform", options(confidence_init="column"), first_round=CROSS_ENTROPY)
BELIEVED_SHARES = replace(BELIEVED_LABEL, first_round=DECODER_UNIFORM, belief="shares")
RESNET18 = Run(None, "pll", backbone="resnet18")
RAF = "{} (RAF-DB)".format
RIVALS = (  # the title of a row, its settings, and the accuracy of the paper's Table 4, which is of a ResNet-18
    ("SoLar", "solar", ""),
    ("PaPi", "papi", ""),
    ("CroSel", "crosel", ""),
    ("SCN", "scn", "88.01"),
    ("RUL", "rul", ""),
    ("DMUE", "dmue", "88.64"),
    ("EAC", "eac", "89.64"),
    ("DACL", "dacl", "88.39"),
    ("DDA", "dda", ""),
    ("label distributions over neighbors", "ldl", ""),
    ("consistency after MCR", "mcr", ""),
    ("Ada-CM, all faces labeled", "ada-cm", ""),
    ("crowd layer", "crowd-layer", ""),
    ("annotators' confusion", "annotator-confusion", ""),
)
FLIPPED = {"confidence_init": "uniform"}  # where labels are flipped, there are no votes to begin with


def flipped_rows(share: float) -> tuple[Row, ...]:
    """Rows of the robustness table: methods whose papers have one, and what they are compared with."""
    runs = {"softmax": CROSS_ENTROPY} | {
        title: Run("hog", settings) for title, settings, _ in RIVALS if settings in ("scn", "rul", "dmue", "eac")
    }
    runs |= {"ours": OURS, "ours, soft revision with momentum": SOFT_MOMENTUM}
    runs = {title: replace(run, overrides=(*run.overrides, *options(**FLIPPED))) for title, run in runs.items()}
    runs["ours, second round: what the true label is, by out-of-fold predictions"] = BELIEVED_LABEL
    return tuple(Row(f"{share:.0%} flipped, {title}", replace(run, flipped=share)) for title, run in runs.items())


TABLES: dict[str, Table] = {
    "table4": Table(
        "Table 4: baseline, partial label learning, rivals, ours",
        (
            Row("ViT, softmax, random weights (the baseline)", BASELINE, "88.18"),
            Row("ViT, softmax, pre-trained", CROSS_ENTROPY),
            Row("ViT, soft votes, pre-trained", SOFT_VOTES),
            Row("RC, ResNet-18", Run(None, "rc", backbone="resnet18"), "88.53"),
            Row("LW, ResNet-18", Run(None, "lw", backbone="resnet18"), "88.10"),
            Row("PiCO, ResNet-18", Run(None, "pico", backbone="resnet18"), "87.93"),
            Row("CRPLL, ResNet-18", Run(None, "crpll", backbone="resnet18"), "88.01"),
            *(
                Row(f"ViT, {title}, pre-trained", Run("hog", settings), f"{published} (ResNet-18)" * bool(published))
                for title, settings, published in RIVALS
            ),
            Row("ours, random weights", OURS_UNTRAINED, "89.76"),
            Row("ours, pre-trained", OURS, "91.11"),
            Row("ours, pre-trained, soft revision with momentum", SOFT_MOMENTUM),
        ),
        votes=(None, 2),
    ),
    "robustness": Table(
        "Robustness: a part of the training labels made wrong, as in the papers of SCN, RUL and EAC",
        (*flipped_rows(0.1), *flipped_rows(0.2), *flipped_rows(0.3)),
    ),
    "table5": Table(
        "Table 5: softmax and PLL, two backbones",
        (
            Row("ResNet-18, softmax", Run(None, "cross-entropy", backbone="resnet18"), "87.37"),
            Row("ResNet-18, PLL", RESNET18, "88.40"),
            Row("ViT, HOG pre-training, softmax", CROSS_ENTROPY, "87.92"),
            Row("ViT, HOG pre-training, PLL", PLL, "90.24"),
        ),
    ),
    "table6": Table(
        "Table 6: pre-trainings, with PLL",
        (
            Row("none", Run(None, "pll")),
            Row("ResNet-18, none", RESNET18, "88.40"),
            Row("MoCo", Run("moco", "pll"), "88.14"),
            Row("SimMIM", Run("simmim", "pll"), "89.78"),
            Row("MAE", Run("mae", "pll"), "89.70"),
            Row("MaskFeat (mask tokens)", Run("maskfeat", "pll")),
            Row("HOG, visible patches (ours)", PLL, "90.24"),
        ),
    ),
    "table7": Table(
        "Table 7: query decoder, uniformity, revision",
        (
            Row("softmax on the majority", CROSS_ENTROPY),
            Row("soft votes", SOFT_VOTES),
            Row("PLL", PLL, RAF(90.35)),
            Row("PLL, decoder", DECODER, RAF(91.29)),
            Row("PLL, decoder, uniformity", DECODER_UNIFORM, RAF(91.64)),
            Row("PLL, decoder, revision", DECODER_REVISION, RAF(91.89)),
            Row("PLL, decoder, uniformity, revision", OURS, RAF(92.05)),
        ),
        votes=(None, 2),
    ),
    "table8": Table(
        "Table 8: temperature of the uniformity loss, our form and Eq. 3 as printed",
        (
            *(
                Row(f"{tau}", Run("hog", "full", options(uniform_temperature=tau)), published)
                for tau, published in ((0.001, "91.41"), (0.005, "90.67"), (0.01, "90.18"), (0.1, ""))
            ),
            *(
                Row(f"{tau}, as printed", Run("hog", "full", options(uniform_temperature=tau, uniform_literal="true")))
                for tau in (0.001, 0.005, 0.01, 0.1)
            ),
        ),
    ),
    "section4.5": Table(
        "Section 4.5: labels in a candidate set",
        tuple(
            Row(f"{size}", Run("hog", "full", options(max_candidates=size)), published)
            for size, published in ((1, ""), (2, RAF(92.05)), (3, RAF(91.94)), (4, RAF(90.01)))
        ),
        columns=COLUMNS | COVERAGE,
        figure=over_rows("labels in a candidate set"),
    ),
    "figure4": Table(
        "Figure 4: accuracy over the epochs",
        (
            Row("random weights, softmax", BASELINE),
            Row("HOG pre-training, softmax", CROSS_ENTROPY),
            Row("HOG pre-training, PLL (ours)", OURS),
        ),
        figure=over_epochs("eval_accuracy"),
    ),
    "figure5": Table(
        "Figure 5: rows whose largest confidence is right",
        (Row("random weights, PLL (ours)", OURS_UNTRAINED), Row("HOG pre-training, PLL (ours)", OURS)),
        votes=(2,),
        figure=over_epochs("label_recovery"),
    ),
    "figure6": Table(
        "Figure 6: threshold of the revision",
        tuple(
            Row(f"{threshold}", Run("hog", "full", options(revision_threshold=threshold)))
            for threshold in (0.05, 0.1, 0.2, 0.3, 0.4)
        ),
        figure=over_rows("threshold of the margin (Eq. 5)"),
    ),
    "rules": Table(
        "Rules of the revision, beyond the paper",
        (
            Row("none", DECODER_UNIFORM),
            Row("paper (Eq. 4 and 5)", OURS),
            Row("normalized", Run("hog", "full", options(revision="margin_softmax", revision_threshold=0.5))),
            Row("soft", SOFT),
            Row("soft, momentum .9", SOFT_MOMENTUM),
            Row("none, second round: what the true label is, by votes and out-of-fold predictions", BELIEVED_LABEL),
            Row("none, second round: what shares many votes would have, by the same", BELIEVED_SHARES),
        ),
        votes=(None, 2),
    ),
    "backbones": Table(
        "Label queries on other backbones, beyond the paper",
        (
            Row("small residual network, softmax", Run(None, "cross-entropy", backbone="small-resnet")),
            Row("small residual network, PLL", Run(None, "pll", backbone="small-resnet")),
            Row("small residual network, ours", Run(None, "full", backbone="small-resnet")),
            Row("ResNet-18, softmax", Run(None, "cross-entropy", backbone="resnet18"), "87.37"),
            Row("ResNet-18, PLL", RESNET18, "88.40"),
            Row("ResNet-18, ours", Run(None, "full", backbone="resnet18-queries")),
            Row("ConvNeXt, softmax", Run(None, "cross-entropy", backbone="convnext")),
            Row("ConvNeXt, PLL", Run(None, "pll", backbone="convnext")),
            Row("ConvNeXt, ours", Run(None, "full", backbone="convnext-queries")),
            Row("ViT with a convolutional stem, ours", Run(None, "full", backbone="tiny-conv-stem")),
            Row("ViT with a convolutional stem, HOG, ours", Run("hog", "full", backbone="tiny-conv-stem")),
        ),
    ),
    "distillation": Table(
        "A small model and a ResNet-18 as its teacher, beyond the paper",
        (
            Row("ResNet-18, PLL (the teacher)", RESNET18),
            Row("ours, pre-trained, alone", OURS),
            Row("ours, pre-trained, with the teacher", replace(OURS, teacher=RESNET18)),
        ),
    ),
    "figure7": Table(
        "Figures 1 and 7 to 9: what training made of its annotators", (Row("ours", OURS),), figure=galleries
    ),
    "figure10": Table(
        "Figures 10 and 11: confusion matrices with and without uniformity",
        (Row("without uniformity", DECODER_REVISION), Row("with uniformity", OURS)),
        figure=confusion_matrices,
    ),
}
