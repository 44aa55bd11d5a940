"""The model card: what a checkpoint is, how it was trained, what was measured, and what it must not be used for."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from huggingface_hub import ModelCard, ModelCardData
from transformers import PreTrainedModel

from ..labels.confidence import ConfidenceTable
from ..model import FerPllForPreTraining

TAGS = ["fer-pll", "facial-expression-recognition", "partial-label-learning", "vision"]

SETTINGS = (
    "num_train_epochs",
    "per_device_train_batch_size",
    "gradient_accumulation_steps",
    "learning_rate",
    "lr_scheduler_type",
    "warmup_steps",
    "weight_decay",
    "adam_beta1",
    "adam_beta2",
    "layer_decay",
    "drop_path_rate",
    "mask_ratio",
    "crop_scale",
    "crop_ratio",
    "rotation",
    "flip",
    "light",
    "erase",
    "max_candidates",
    "min_votes",
    "ties",
    "flip_probability",
    "set_size",
    "transition",
    "loss",
    "confidence_init",
    "revision",
    "revision_threshold",
    "revision_warmup_epochs",
    "revision_momentum",
    "reversible",
    "class_balance",
    "uniform_weight",
    "uniform_temperature",
    "seed",
)
"""The settings that a card shows, where they are known; the others change speed or bookkeeping only."""


def template_path() -> Path:
    """The template `model_card.md`: inside the package in a wheel, at the top of a checkout."""
    package = Path(__file__).parents[1]
    shipped = package / "model_card.md"
    return shipped if shipped.is_file() else package.parents[1] / "model_card.md"


def model_card(
    model: PreTrainedModel,
    model_id: str,
    data: str | None = None,
    settings: Mapping[str, Any] | None = None,
    table: ConfidenceTable | None = None,
    metrics: Mapping[str, Mapping[str, Any]] | None = None,
    license: str | None = None,
    face_crop: Mapping[str, Any] | None = None,
) -> ModelCard:
    """The card of a checkpoint. What is not given is left out: the card claims nothing that was not measured.

    Args:
        model: a fer-pll model; its config names classes and sizes.
        model_id: what `from_pretrained` loads it by, a Hub name or a folder.
        data: what it was trained on, in a sentence; the loaders give one as `dataset.info.description`.
        settings: of the training, e.g. `args.to_dict()`; `SETTINGS` are picked out of it.
        table: the confidences as training left them; gives sizes of the candidate sets and the share revised.
        metrics: for each evaluation set or protocol, by its name, `accuracy`, `mean_class_accuracy`, `ece` and, where
            known, `per_class_recall` by class name, as under `protocols` in evaluate.py's metrics.json.
        license: Hub identifier of the licence of the weights.
        face_crop: how the training pictures show a face, as the image processor's `face_crop` says.

    Returns:
        the card; `card.save(path)` writes it.
    """
    pretraining = isinstance(model, FerPllForPreTraining)
    config = model.config
    card_data = ModelCardData(
        library_name="transformers",
        pipeline_tag="image-feature-extraction" if pretraining else "image-classification",
        tags=TAGS,
        license=license,
        metrics=["accuracy"] if metrics else None,
    )
    return ModelCard.from_template(
        card_data,
        template_path=str(template_path()),
        model_id=model_id,
        pretraining=pretraining,
        config=config,
        class_names=[config.id2label[i] for i in range(config.num_labels)],
        num_parameters=model.num_parameters(),
        data=data,
        settings={name: settings[name] for name in SETTINGS if settings.get(name) is not None} if settings else {},
        candidate_sets=None if table is None else _candidate_sets(table),
        metrics=metrics or {},
        face_crop=face_crop,
    )


def _candidate_sets(table: ConfidenceTable) -> dict[str, float]:
    set_sizes = table.candidates.sum(dim=1)
    ambiguous = int((set_sizes > 1).sum())
    return {
        "rows": len(table),
        "mean_size": set_sizes.float().mean().item(),
        "ambiguous": ambiguous,
        "revised": int((table.revised_epoch >= 0).sum()),
    }
