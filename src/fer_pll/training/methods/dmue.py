"""DMUE (She et al., Dive into Ambiguity: Latent Distribution Mining and Pairwise Uncertainty Estimation for Facial
Expression Recognition, 2021)."""

import math
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from ...hub.card_settings import OnCard
from ...io.ranges import check_ranges
from ...labels.confidence_table import ConfidenceTable
from ...labels.losses import cross_entropy_loss
from .base import Batch, MethodOptions
from .given_labels import GivenLabelMethod
from .network import last_linear


def ramps(time: float) -> tuple[float, float]:
    """Weights of the target's losses and of the branches': `exp(-5 (1 - t)^2)` up to t = 1, then 1; and 1 up to t = 1,
    then `exp(-(1 - 1/t)^2)`."""
    return (math.exp(-5 * (1 - time) ** 2), 1.0) if time <= 1 else (1.0, math.exp(-((1 - 1 / time) ** 2)))


def latent_distribution(logits: Tensor, labels: Tensor, temperature: float) -> Tensor:
    """What the branch that does not know a row's label sees in it, (B, K): `p_k^(1/T)`, renormalized, 0 for the label.

    Args:
        logits: (B, K), those of the row's branch.
        labels: (B,) int64.
        temperature: T; above 1 it flattens, below 1 it sharpens.
    """
    hidden = nn.functional.one_hot(labels, logits.shape[1]).bool()
    return (logits / temperature).masked_fill(hidden, float("-inf")).softmax(dim=1)


def class_similarity(features: Tensor, labels: Tensor, num_classes: int) -> Tensor:
    """Mean cosine of each row with the rows of each class in the batch, (B, K), scaled in each row to 0 .. 1.

    0 for classes that the batch does not have.
    """
    unit = nn.functional.normalize(features, dim=1)
    members = nn.functional.one_hot(labels, num_classes).to(unit.dtype)  # (B, K)
    number = members.sum(dim=0)
    mean = (unit @ unit.T) @ members / number.clamp(min=1)
    absent = number == 0
    low = mean.masked_fill(absent, float("inf")).amin(dim=1, keepdim=True)
    high = mean.masked_fill(absent, float("-inf")).amax(dim=1, keepdim=True)
    return ((mean - low) / (high - low).clamp(min=1e-6)).masked_fill(absent, 0.0)


def row_normalized_gram(features: Tensor) -> Tensor:
    """`x_i . x_j`, each row divided by its norm, (B, B)."""
    return nn.functional.normalize(features @ features.T, dim=1)


class Branches(nn.Module):
    """A branch for each class, a hidden layer and a linear one; and the network that estimates uncertainty."""

    def __init__(self, width: int, hidden: int, num_classes: int) -> None:
        super().__init__()
        self.hidden = nn.ModuleList(nn.Linear(width, hidden) for _ in range(num_classes))
        self.output = nn.ModuleList(nn.Linear(hidden, num_classes) for _ in range(num_classes))
        self.importance = nn.Sequential(nn.Linear(2 * num_classes, num_classes), nn.PReLU(), nn.Linear(num_classes, 1))

    def forward(self, features: Tensor) -> tuple[Tensor, Tensor]:
        """Hidden states (K, B, h) and logits (K, B, K) of all branches."""
        states = torch.stack([layer(features).relu() for layer in self.hidden])
        return states, torch.stack([layer(state) for layer, state in zip(self.output, states, strict=True)])


class DMUE(GivenLabelMethod):
    """Branches that do not know a row's label say what else is in its face.

        branches: mean over k of CE over the classes but k, of the rows that are not of class k
        q_i = the sharpened distribution of branch y_i, which was never trained on rows of class y_i; 0 for y_i
        soft_i = mean_k (p_ik [k != y_i] - q_ik)^2
        target_i = -log softmax(alpha_i z_i)_{y_i},  alpha_i = sigmoid(f(similarities of x_i, one-hot y_i))
        similarity = mean over k of the squared differences between the row-normalized Gram matrices of branch k's
                     hidden states and of x, on the rows that are not of class k
        loss_i = up * (target_i + omega * soft_i + gamma * similarity) + down * branches_i

    x is what enters the model's classifier (the mean over label queries), p = softmax(z). up rises to 1 in the first
    sixth of the training, down falls after it; the authors switch at epoch 6 of 36. The similarities are the mean
    cosines of x_i with the rows of each class in the micro-batch.

    Our reading: a branch is a hidden layer and a linear one on x, where the authors copy the last stage of a ResNet,
    so it goes with any network. They skip batches in which a class has fewer than two rows; here such a class has
    similarity 0. T = 1.2 flattens the distribution, as in the public code, though the paper calls it sharpening. Each
    process compares the rows of its own micro-batch. The published model is the target alone.
    """

    name = "dmue"
    summary = (
        "the weighted cross-entropy with the given label, and the distance of the other classes' probabilities from "
        "what branches that do not know the label see (DMUE, She et al., 2021)"
    )
    uses_features = True
    HIDDEN = 128
    TEMPERATURE = 1.2

    @dataclass(frozen=True)
    class Settings:
        soft_weight: OnCard[float] = field(
            default=0.5, metadata={"help": "Weight of the distance from the latent distribution, omega."}
        )
        similarity_weight: OnCard[float] = field(
            default=1000.0, metadata={"help": "Weight of the similarity-preserving loss of the branches, gamma."}
        )
        ramp_share: OnCard[float] = field(
            default=1 / 6, metadata={"help": "Share of the training in which the branches are trained first."}
        )

        def __post_init__(self) -> None:
            check_ranges(self, soft_weight="[0, inf)", similarity_weight="[0, inf)", ramp_share="(0, 1]")

    def __init__(self, model: nn.Module, table: ConfidenceTable, options: MethodOptions) -> None:
        super().__init__(model, table, options)
        self.num_classes = len(table.class_names)
        if self.num_classes < 3:
            raise ValueError(f"loss='dmue' needs three classes or more; there are {self.num_classes}.")
        self.add_head(Branches(last_linear(model, self.name).in_features, self.HIDDEN, self.num_classes))

    def loss(self, batch: Batch) -> Tensor:
        assert batch.features is not None
        up, down = ramps(batch.progress / self.settings.ramp_share)
        target, soft, similarity, branches = self.parts(
            batch.logits[0].float(), self.pooled(batch.features[0]), batch.columns["labels"]
        )
        settings = self.settings
        target = target + settings.soft_weight * soft + settings.similarity_weight * similarity
        return up * target + down * branches

    def parts(self, logits: Tensor, features: Tensor, labels: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """target (B,), soft (B,), similarity () and branches (B,), from logits (B, K) and features (B, d)."""
        assert isinstance(self.head, Branches)
        states, of_branches = self.head(features)
        own = of_branches[labels, torch.arange(len(labels), device=labels.device)]
        latent = latent_distribution(own.detach(), labels, self.TEMPERATURE)
        known = nn.functional.one_hot(labels, self.num_classes).bool()
        soft = (logits.softmax(dim=1).masked_fill(known, 0.0) - latent).square().mean(dim=1)

        seen = class_similarity(features, labels, self.num_classes)
        importance = self.head.importance(torch.cat([seen, known.float()], dim=1)).sigmoid()
        target = cross_entropy_loss(importance * logits, labels)

        branches, similarity = torch.zeros_like(soft), soft.new_zeros(())
        for k in range(self.num_classes):
            others = labels != k
            if not others.any():
                continue
            hidden = torch.arange(self.num_classes, device=labels.device) == k
            losses = cross_entropy_loss(of_branches[k][others].masked_fill(hidden, float("-inf")), labels[others])
            # The branch's mean over its rows, as a share of the mean over the batch.
            branches[others] = branches[others] + losses * (len(labels) / int(others.sum())) / self.num_classes
            difference = row_normalized_gram(states[k][others]) - row_normalized_gram(features[others])
            similarity = similarity + difference.square().mean() / self.num_classes
        return target, soft, similarity, branches
