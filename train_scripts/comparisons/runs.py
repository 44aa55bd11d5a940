"""A run, and the row of a table that shows it."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Run:
    """One run of `fer-pll finetune`.

    pretraining: objective of the pre-training, None for random weights.
    settings: file in train_scripts/settings, without its ending.
    overrides: options of `fer-pll finetune` beside those.
    backbone: name of the network, see `experiments.Scale`.
    votes: train on as many drawn votes of each row, None for all.
    """

    pretraining: str | None
    settings: str
    overrides: tuple[tuple[str, str], ...] = ()
    backbone: str = "vit"
    votes: int | None = None

    @property
    def name(self) -> str:
        parts = [] if self.backbone == "vit" else [self.backbone]
        parts += [self.pretraining or "scratch", self.settings]
        parts += [f"{key}={value}" for key, value in self.overrides]
        return "_".join([*parts, f"{self.votes}votes"] if self.votes else parts)


@dataclass(frozen=True)
class Row:
    """Of a table: its title, its run, and what the paper reports (accuracy on FER+ or, where said, elsewhere)."""

    title: str
    run: Run
    published: str = ""
