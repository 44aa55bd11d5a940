"""Facial expression recognition from candidate label sets.

Importing the package registers its models with the Auto classes of transformers. What only training needs is loaded
when it is first used.
"""

from importlib import import_module

from transformers import (
    AutoConfig,
    AutoImageProcessor,
    AutoModel,
    AutoModelForImageClassification,
    AutoModelForPreTraining,
)
from transformers.pipelines import PIPELINE_REGISTRY

from .inference.pipeline import TASK, FacialExpressionPipeline
from .io.shipped import DEFAULT_CHECKPOINT
from .model import FerPllConfig, FerPllForImageClassification, FerPllForPreTraining, FerPllImageProcessor, FerPllModel

__version__ = "0.1.0"

AutoConfig.register(FerPllConfig.model_type, FerPllConfig)
AutoModel.register(FerPllConfig, FerPllModel)
AutoModelForPreTraining.register(FerPllConfig, FerPllForPreTraining)
AutoModelForImageClassification.register(FerPllConfig, FerPllForImageClassification)
AutoImageProcessor.register(FerPllConfig, image_processor_classes={"pil": FerPllImageProcessor})
PIPELINE_REGISTRY.register_pipeline(
    TASK,
    FacialExpressionPipeline,
    pt_model=AutoModelForImageClassification,
    default={"model": (DEFAULT_CHECKPOINT, "main")},
    type="image",
)

# Saved checkpoints carry these files, so that they load with `trust_remote_code=True` where this package is absent.
FerPllConfig.register_for_auto_class()
FerPllModel.register_for_auto_class("AutoModel")
FerPllForPreTraining.register_for_auto_class("AutoModelForPreTraining")
FerPllForImageClassification.register_for_auto_class("AutoModelForImageClassification")
FerPllImageProcessor.register_for_auto_class()


def load_default() -> tuple[FerPllForImageClassification, FerPllImageProcessor]:
    """The classifier that comes with the package, ready to predict, and its image processor.

    fer-pll-tiny-ferplus tells the eight expressions of FER+ apart, logits (B, 8), on faces cropped as its card
    describes. It is read from the package's own files: no network, no download.
    """
    model = FerPllForImageClassification.from_pretrained(DEFAULT_CHECKPOINT)
    return model.eval(), FerPllImageProcessor.from_pretrained(DEFAULT_CHECKPOINT)


_LAZY = {
    "ConfidenceTable": "fer_pll.labels.confidence_table",
    "FerPllTrainer": "fer_pll.training.trainer",
    "FerPllTrainingArguments": "fer_pll.training.arguments",
}

__all__ = [
    "ConfidenceTable",
    "FerPllConfig",
    "FerPllForImageClassification",
    "FerPllForPreTraining",
    "FerPllImageProcessor",
    "FerPllModel",
    "FerPllTrainer",
    "FerPllTrainingArguments",
    "FacialExpressionPipeline",
    "load_default",
]


def __getattr__(name: str):
    if name in _LAZY:
        return getattr(import_module(_LAZY[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
