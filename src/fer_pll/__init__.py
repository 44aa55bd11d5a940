"""Facial expression recognition from candidate label sets.

Importing the package registers its models with the Auto classes of transformers. All other public
names are listed in `__init__.pyi`, and imported when they are first used.
"""

import ast
from importlib import import_module
from pathlib import Path
from typing import Any

from transformers import (
    AutoBackbone,
    AutoConfig,
    AutoImageProcessor,
    AutoModel,
    AutoModelForImageClassification,
    AutoModelForMaskedImageModeling,
    AutoModelForPreTraining,
)
from transformers.pipelines import PIPELINE_REGISTRY

from .inference.pipeline import TASK, FacialExpressionPipeline, NamedClassifier
from .io.shipped import DEFAULT_CHECKPOINT
from .model.configuration_fer_pll import FerPllConfig
from .model.configuration_fer_pll_resnet import FerPllResNetConfig
from .model.image_processing_fer_pll import FerPllImageProcessor
from .model.modeling_fer_pll import (
    FerPllBackbone,
    FerPllForImageClassification,
    FerPllForPreTraining,
    FerPllModel,
)
from .model.modeling_fer_pll_resnet import FerPllResNetBackbone

__version__ = "0.1.0"

AutoConfig.register(FerPllConfig.model_type, FerPllConfig)
AutoModel.register(FerPllConfig, FerPllModel)
AutoModelForPreTraining.register(FerPllConfig, FerPllForPreTraining)
AutoModelForMaskedImageModeling.register(FerPllConfig, FerPllForPreTraining)
AutoModelForImageClassification.register(FerPllConfig, FerPllForImageClassification)
AutoBackbone.register(FerPllConfig, FerPllBackbone)
AutoConfig.register(FerPllResNetConfig.model_type, FerPllResNetConfig)
AutoBackbone.register(FerPllResNetConfig, FerPllResNetBackbone)
AutoImageProcessor.register(FerPllConfig, image_processor_classes={"pil": FerPllImageProcessor})
PIPELINE_REGISTRY.register_pipeline(
    TASK,
    FacialExpressionPipeline,
    pt_model=NamedClassifier,
    default={"model": (DEFAULT_CHECKPOINT, "main")},
    type="image",
)

# Saved checkpoints contain these files, so that they load with `trust_remote_code=True` without this package.
FerPllConfig.register_for_auto_class()
FerPllModel.register_for_auto_class("AutoModel")
FerPllForPreTraining.register_for_auto_class("AutoModelForPreTraining")
FerPllForImageClassification.register_for_auto_class("AutoModelForImageClassification")
FerPllBackbone.register_for_auto_class("AutoBackbone")
FerPllResNetConfig.register_for_auto_class()
FerPllResNetBackbone.register_for_auto_class("AutoBackbone")
FerPllImageProcessor.register_for_auto_class()


def _public_names() -> dict[str, tuple[str, str]]:
    """For each public name, its module and its name there, as `__init__.pyi` imports them."""
    stub = ast.parse(Path(__file__).with_suffix(".pyi").read_text(encoding="utf-8"))
    imports = [node for node in stub.body if isinstance(node, ast.ImportFrom)]
    return {alias.asname: (f".{node.module}", alias.name) for node in imports for alias in node.names}


_PUBLIC = _public_names()

__all__ = sorted(_PUBLIC)


def __getattr__(name: str) -> Any:
    if name not in _PUBLIC:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    module, name_there = _PUBLIC[name]
    value = globals()[name] = getattr(import_module(module, __name__), name_there)
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
