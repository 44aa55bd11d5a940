"""Why no confidence is revised in a run: said when its training begins, and again by the audit of what it left."""

from ..io.stored import read_json
from ..labels.confidence_table import ConfidenceTable
from ..labels.revision import REVISION_RULES, THRESHOLD, RevisionRule
from .run_folder import RunFolder


def warmup_is_over(
    step: int, max_steps: int, steps_per_epoch: float, share: float | None, epochs: float | None
) -> bool:
    """Whether confidences are revised in a step.

    Args:
        step: steps of the optimizer so far.
        max_steps: steps of the whole training; 0 outside of one.
        steps_per_epoch: steps of an epoch.
        share: the setting `revision_warmup`.
        epochs: the setting `revision_warmup_epochs`; where it is given, `share` is not used.
    """
    if epochs is not None:
        return step / steps_per_epoch >= epochs
    return step / max(max_steps, 1) >= (share or 0.0)


def idle_warmup(max_steps: int, steps_per_epoch: float, share: float | None, epochs: float | None) -> str | None:
    """The clause that says with numbers why the warm-up leaves no step for revisions; `None` where it leaves some.

    Arguments as in `warmup_is_over`.
    """
    if warmup_is_over(max_steps - 1, max_steps, steps_per_epoch, share, epochs):
        return None
    setting = f"revision_warmup {share:g}" if epochs is None else f"revision_warmup_epochs {epochs:g}"
    return (
        f"the warm-up ({setting}) takes all of the training, which has {max_steps / steps_per_epoch:.3g} epochs "
        f"({max_steps:,} steps)"
    )


def idle_rule(table: ConfidenceTable, rule: RevisionRule) -> str | None:
    """The clause that says why a rule has nothing to do; `None` where it has."""
    if rule.name == "none":
        return "the rule is none (--revision none)"
    if table.num_ambiguous == 0:
        return f"each of the {len(table):,} rows has one candidate, so there is nothing to choose from"
    return None


def why_unrevised(table: ConfidenceTable, run: RunFolder) -> str | None:
    """The clause that says why no row of a finished run was revised; `None` where one was.

    Args:
        table: the confidences that the run left.
        run: its folder, or a checkpoint in it. Without its settings, the clause says so.
    """
    if (table.revised_epoch >= 0).any():
        return None
    if not run.settings_file.is_file():
        return f"its rule found nothing to revise, or had no time to ({run.settings_file.name} is not there to say)"
    settings = run.settings["arguments"]
    name = settings.get("revision")
    rule = REVISION_RULES.get(name, RevisionRule(str(name), "of a method"))
    reason = idle_rule(table, rule)
    if reason is None and run.trainer_state.is_file():
        state = read_json(run.trainer_state, {"global_step": int, "epoch": (float, type(None))})
        steps, epochs = int(state["global_step"]), float(state["epoch"] or 0)
        share, warmup_epochs = settings.get("revision_warmup"), settings.get("revision_warmup_epochs")
        if steps and epochs:
            reason = idle_warmup(steps, steps / epochs, share, warmup_epochs)
    if reason is not None:
        return reason
    if rule.setting is THRESHOLD:
        return f"no candidate led by more than {THRESHOLD.name} {settings.get(THRESHOLD.name)}"
    return f"its rule, {name}, changed no confidence"
