"""Runs, and the rows of the tables that show them."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Run:
    """One run of `fer-pll finetune`.

    pretraining: objective of the pre-training, None for random weights.
    settings: file in train_scripts/settings, without its ending.
    overrides: more options of `fer-pll finetune`.
    backbone: name of the network, see `experiments.Scale`.
    votes: number of drawn votes of each row to train on, None for all.
    teacher: the run, of the same seed, whose model teaches this one (`--teacher`).
    flipped: share of the labels that are made wrong, 0 .. 1; rows then have one label each and no votes.
    first_round: the run whose out-of-fold predictions, with the votes, give what this one trains on.
    belief: what that is, of `beliefs.BELIEFS`.
    """

    pretraining: str | None
    settings: str
    overrides: tuple[tuple[str, str], ...] = ()
    backbone: str = "vit"
    votes: int | None = None
    teacher: "Run | None" = None
    flipped: float = 0.0
    first_round: "Run | None" = None
    belief: str = "label"

    @property
    def name(self) -> str:
        parts = [] if self.backbone == "vit" else [self.backbone]
        parts += [self.pretraining or "scratch", self.settings]
        parts += [f"{key}={value}" for key, value in self.overrides]
        parts += [] if self.teacher is None else [f"taught-by-{self.teacher.name}"]
        parts += [] if self.first_round is None else [f"{self.belief}-after-{self.first_round.name}"]
        parts += [f"{self.votes}votes"] if self.votes else []
        return "_".join([*parts, f"{self.flipped:.0%}flipped"] if self.flipped else parts)


@dataclass(frozen=True)
class Row:
    """A row of a table: its title, its run, and the accuracy in the paper (on FER+ if it names no other data set)."""

    title: str
    run: Run
    published: str = ""
