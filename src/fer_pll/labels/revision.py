"""Rules that revise confidences during training (paper, Eq. 4 and 5)."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from ..io.ranges import check_range

# -- Responses v(C, Y, z): the score that a rule gives each label from confidences, candidates and logits, all (B, K).


def margin_response(confidence: Tensor, candidates: Tensor, logits: Tensor) -> Tensor:
    """v = C * sigmoid(z), Eq. 4 of the paper; (B, K), zero outside the candidates."""
    return confidence * torch.sigmoid(logits.detach().float())


def margin_softmax_response(confidence: Tensor, candidates: Tensor, logits: Tensor) -> Tensor:
    """v_k = exp(z_k) / sum_{j: C_j > 0} exp(z_j) where C_k > 0, else 0; (B, K), rows sum to 1.

    Unlike Eq. 4, it stays the same when all logits of a row shift together.
    """
    return _restricted_softmax(logits, confidence > 0)


def soft_response(confidence: Tensor, candidates: Tensor, logits: Tensor) -> Tensor:
    """v_k = exp(z_k) / sum_{j in Y} exp(z_j) where k in Y, else 0; (B, K), rows sum to 1."""
    return _restricted_softmax(logits, candidates)


def _restricted_softmax(logits: Tensor, allowed: Tensor) -> Tensor:
    return logits.detach().float().masked_fill(~allowed, float("-inf")).softmax(dim=1)


def response_margin(response: Tensor) -> Tensor:
    """v_(1) - v_(2) of Eq. 5, (B,): how far the leading candidate leads; NaN where the response holds NaN."""
    largest, second = response.topk(2, dim=1).values.unbind(dim=1)
    return largest - second


# -- Updates C'(C, v, value): the new confidences from a rule's response, (B, K); `value` is that of its setting.


def decide(confidence: Tensor, response: Tensor, threshold: float) -> Tensor:
    """Eq. 5 of the paper: the leading candidate gets all the confidence once it leads by more than a threshold.

        C' = one-hot(argmax v) if v_(1) - v_(2) > threshold else C

    All other entries of a decided row become zero: the sentence below Eq. 5 says so, its formula leaves it out. Among
    equal leaders the first class leads, but the margin is then 0, which never exceeds the threshold.
    """
    one_hot = torch.zeros_like(confidence).scatter_(1, response.argmax(dim=1, keepdim=True), 1.0)
    return torch.where((response_margin(response) > threshold)[:, None], one_hot, confidence)


def blend(confidence: Tensor, response: Tensor, momentum: float) -> Tensor:
    """C' = m C + (1 - m) v: with m > 0 a mean over visits (temporal ensembling, Laine and Aila, 2017)."""
    return response if momentum == 0 else momentum * confidence + (1 - momentum) * response


# -- Rules.


@dataclass(frozen=True)
class RuleSetting:
    """The number that a rule needs; it is a setting of the run, and its name begins with `revision_`."""

    name: str
    default: float
    help: str
    minimum: float = 0.0
    below: float = 1.0

    def check(self, value: float) -> float:
        """The value; raises `ValueError` naming the setting unless minimum <= value < below."""
        check_range(self.name, value, f"[{self.minimum:g}, {self.below:g})")
        return value

    def value(self, settings: Mapping[str, Any]) -> float:
        """The value among the settings of a run, or the default; checked, see `check`."""
        value = settings.get(self.name)
        return self.check(self.default if value is None else value)


@dataclass(frozen=True)
class RevisionRule:
    """A rule that revises confidences, and its texts for `--help` and the model card.

    Put one of your own into `REVISION_RULES`, or hand it to `ConfidenceTable.revise` or `FerPllTrainer`:

        hardest = RevisionRule("hardest", "the most probable candidate takes all", soft_response,
                               lambda confidence, response, _: one_hot(response.argmax(1), response.shape[1]).float())

    Args:
        name: of the rule, in `--revision` and the model card.
        summary: what it does to an image's confidences, for `--help` and the card; not a sentence, without a period.
        response: (C, Y, z) -> v, all (B, K), C and v float32, v >= 0 and zero outside the candidates, NaN where z is;
            it must detach z. `None`: `ConfidenceTable` revises nothing.
        update: (C, v, value) -> C', (B, K) float32, rows >= 0 with sum 1, zero outside the candidates.
        setting: the update gets its value; `None` if the update needs no value.
        after_loss: the loss of a visit sees the confidence that the row's previous visit left.
        final: rows with one label left are not revised again, unless every visit starts from the candidates.
        bound: C (N, K) -> (N,), an upper bound of each row's margin v_(1) - v_(2). `None`: no bound is known.
        describe: (settings, candidate_sets) -> a sentence for the card, see `sentence`.
    """

    name: str
    summary: str
    response: Callable[[Tensor, Tensor, Tensor], Tensor] | None = None
    update: Callable[[Tensor, Tensor, Any], Tensor] = decide
    setting: RuleSetting | None = None
    after_loss: bool = False
    final: bool = False
    bound: Callable[[Tensor], Tensor] | None = None
    describe: Callable[[Mapping[str, Any], Mapping[str, Any]], str] | None = None

    def value(self, settings: Mapping[str, Any]) -> float | None:
        """The value of the rule's setting, see `RuleSetting.value`; `None` for a rule without a setting."""
        return None if self.setting is None else self.setting.value(settings)

    def revise(
        self, confidence: Tensor, candidates: Tensor, logits: Tensor, value: float | None = None
    ) -> tuple[Tensor, Tensor]:
        """The confidences C' that follow C, and the response v to it, both (B, K) float32.

        A row whose response holds NaN stays unchanged; logits with NaN give such a response.

        Args:
            confidence: C, float32 (B, K), rows >= 0 with sum 1, zero outside the candidates.
            candidates: Y, bool (B, K).
            logits: z, (B, K), any float type; used detached and in float32, also under autocast.
            value: of the rule's setting; its default if not given.

        Raises:
            ValueError: the value lies outside its range, or the rule has no response.
        """
        if self.response is None:
            raise ValueError(f"the rule {self.name!r} has no response to revise confidences by")
        value = self.value({} if self.setting is None else {self.setting.name: value})
        response = self.response(confidence, candidates, logits)
        revised = self.update(confidence, response, value)
        return torch.where(response.isnan().any(dim=1, keepdim=True), confidence, revised), response

    def sentence(self, settings: Mapping[str, Any], candidate_sets: Mapping[str, Any]) -> str:
        """The sentence of a model card about the revision in a finished run.

        Args:
            settings: of the run: the rule's setting, `revision_warmup` (or `revision_warmup_epochs`, as earlier
                versions have it), `reversible`. The sentence leaves out those that are missing.
            candidate_sets: numbers of the confidence table: `rows`, `ambiguous`, `revised`.
        """
        if self.describe is not None:
            return self.describe(settings, candidate_sets)
        setting = "" if self.setting is None else f" ({self.setting.name} {self.value(settings):g})"
        anew = ", each time from equal confidences" if settings.get("reversible") else ""
        return (
            f"They were revised by the rule `{self.name}`{setting}{_from_when(settings)}{anew}: {self.summary}."
            f" Images revised at least once: {candidate_sets['revised']:,}."
        )


def _from_when(settings: Mapping[str, Any]) -> str:
    share, epochs = settings.get("revision_warmup"), settings.get("revision_warmup_epochs")
    if share:
        return f", after the first {100 * share:.3g} % of the training"
    return f", from epoch {epochs:g} on" if epochs else ""


def _describe_decision(
    settings: Mapping[str, Any], candidate_sets: Mapping[str, Any], leader: str, ending: str = ""
) -> str:
    """The sentence for a rule with a threshold; `leader` is the clause about who leads, with `{}` for the number."""
    leads = leader.format(settings.get(THRESHOLD.name, "the threshold"))
    when = _from_when(settings)
    if settings.get("reversible"):
        return (
            f"Each time the image is seen{when}, its candidates are judged anew, from equal confidences: where"
            f" {leads}, it takes all the confidence{ending}; where not, the candidates are equal again."
            f" Images revised at least once: {candidate_sets['revised']:,}."
        )
    return (
        f"As soon as{when and f'{when},'} {leads}, it becomes the label{ending}."
        f" Images that got their label that way: {candidate_sets['revised']:,}."
    )


def describe_each_visit(settings: Mapping[str, Any], candidate_sets: Mapping[str, Any], what: str) -> str:
    """The sentence for a rule that revises at every visit; `what` it then does, without a period.

    The other arguments are those of `RevisionRule.sentence`.
    """
    never = "" if candidate_sets["revised"] else " The training ended before any image was revised."
    return f"Each time the image is seen{_from_when(settings)}, {what}.{never}"


def _describe_soft(settings: Mapping[str, Any], candidate_sets: Mapping[str, Any]) -> str:
    becomes = "becomes its confidences"
    if settings.get(MOMENTUM.name):
        others = "equal shares" if settings.get("reversible") else "the former ones"
        becomes = f"makes up {100 - 100 * settings[MOMENTUM.name]:.0f} % of its new confidences, {others} the rest"
    return describe_each_visit(settings, candidate_sets, f"the softmax over its candidates {becomes}")


def _describe_none(settings: Mapping[str, Any], candidate_sets: Mapping[str, Any]) -> str:
    return "They were not revised during training."


def maximum_margin(confidence: Tensor) -> Tensor:
    """Upper bound (N,) of the margin of Eq. 5 for each row of confidences (N, K): 1/|Y| for uniform ones.

    v_(1) - v_(2) = C_(1) sigmoid(z_1) - v_(2) <= max C, since 0 <= sigmoid <= 1.
    """
    return confidence.amax(dim=1)


THRESHOLD = RuleSetting(
    "revision_threshold",
    0.2,
    "Margin of the two best candidates above which the best one is taken as the label (margin, margin_softmax).",
)
MOMENTUM = RuleSetting(
    "revision_momentum",
    0.0,
    "Share of the former confidence that soft keeps at each visit: a mean over epochs.",
)

REVISION_RULES: dict[str, RevisionRule] = {
    rule.name: rule
    for rule in (
        # Eq. 4 and 5 of the paper. The margin is at most max C, that is 1/|Y| for uniform confidences.
        RevisionRule(
            "margin",
            "once the best candidate's confidence times the sigmoid of its logit leads by more than the threshold, it "
            "takes all (Eq. 4 and 5)",
            margin_response,
            decide,
            THRESHOLD,
            final=True,
            bound=maximum_margin,
            describe=partial(
                _describe_decision,
                leader="one candidate's confidence, times the sigmoid of its logit, leads by more than {}",
                ending=" (Eq. 4 and 5 of the paper)",
            ),
        ),
        # Eq. 5 on probabilities: the model's softmax over the labels that are left.
        RevisionRule(
            "margin_softmax",
            "once the best candidate leads by more than the threshold in the softmax over the labels that are left, "
            "it takes all",
            margin_softmax_response,
            decide,
            THRESHOLD,
            final=True,
            describe=partial(
                _describe_decision,
                leader="one candidate leads by more than {} in the softmax over the labels that are left",
            ),
        ),
        # The update of RC (Feng et al., 2020) and PRODEN (Lv et al., 2020), with momentum 0. It belongs after the loss
        # of the visit: before it, the gradient of `pll_loss` would be that of `cc_loss`.
        RevisionRule(
            "soft",
            "the softmax over the candidates",
            soft_response,
            blend,
            MOMENTUM,
            after_loss=True,
            describe=_describe_soft,
        ),
        RevisionRule("none", "as they begin", describe=_describe_none),
    )
}
"""The rules by name. Add a rule of your own as an entry, see `RevisionRule`."""


def find_rule(rule: str | RevisionRule) -> RevisionRule:
    """The rule of a name, or the rule itself; raises `ValueError` listing the names for an unknown one."""
    if isinstance(rule, RevisionRule):
        return rule
    if rule not in REVISION_RULES:
        raise ValueError(f"revision={rule!r}: choose one of {', '.join(REVISION_RULES)}.")
    return REVISION_RULES[rule]


def uniform_confidence(candidates: Tensor) -> Tensor:
    """C_i = Y_i / |Y_i| (section 3.3.2 of the paper), float32 (B, K), of candidate sets (B, K) bool."""
    return candidates.float() / candidates.sum(dim=1, keepdim=True)
