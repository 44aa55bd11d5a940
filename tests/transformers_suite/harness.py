"""Makes transformers' shared tests importable, see `fetch.py`, and our classes known to them.

The source distribution lacks what the shared tests import from other folders of transformers' tests. `load` puts
modules of our own in their places. Models of transformers are found by name in its tables; ours are registered with
the Auto classes, which these tests do not read.
"""

import copy
import importlib
import json
import os
import sys
import tempfile
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
from PIL import Image
from transformers import PreTrainedModel, pipeline
from transformers.models.auto import modeling_auto

from fer_pll import FerPllConfig

from .fetch import FOLDER, PACKAGE

TYPE = FerPllConfig.model_type
TINY_MODELS = tempfile.TemporaryDirectory(prefix="fer-pll-tiny-")  # goes with the process
NAMES = {
    "MODEL_MAPPING_NAMES": "FerPllModel",
    "MODEL_FOR_PRETRAINING_MAPPING_NAMES": "FerPllForPreTraining",
    "MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING_NAMES": "FerPllForImageClassification",
}


def common_settings() -> dict[str, Any]:
    """A value other than the default for the settings that all configurations of transformers share."""
    return {
        "output_hidden_states": True,
        "return_dict": False,
        "dtype": "float16",
        "chunk_size_feed_forward": 5,
        "architectures": ["FerPllModel"],
        "id2label": {0: "one", 1: "other"},
        "label2id": {"one": 0, "other": 1},
    }


class ImagePipelineTests:
    """What the mixin of the pipelines asks of the tests of one pipeline."""

    task: str

    def get_test_pipeline(self, model: PreTrainedModel, tokenizer: Any, dtype: str = "float32", **processors: Any):
        made = pipeline(self.task, model=model, tokenizer=tokenizer, dtype=dtype, **processors)
        rng = np.random.default_rng(0)
        sizes = [(48, 48), (31, 70), (64, 20)]
        return made, [Image.fromarray(rng.integers(0, 256, (*size, 3), dtype=np.uint8)) for size in sizes]


class ImageClassificationPipelineTests(ImagePipelineTests):
    task = "image-classification"

    def run_pipeline_test(self, pipe: Any, examples: list[Image.Image]) -> None:
        names = set(pipe.model.config.id2label.values())
        for given in (examples[0], examples[0].convert("L"), examples):
            answers = pipe(given, top_k=len(names))
            for answer in answers if isinstance(given, list) else [answers]:
                assert {each["label"] for each in answer} == names
                assert abs(sum(each["score"] for each in answer) - 1) < 1e-2
        assert len(pipe(examples[0], top_k=2)) == 2


class ImageFeatureExtractionPipelineTests(ImagePipelineTests):
    task = "image-feature-extraction"

    def run_pipeline_test(self, pipe: Any, examples: list[Image.Image]) -> None:
        config = pipe.model.config
        assert np.shape(pipe(examples[0])) == (1, 1 + config.grid_size**2, config.hidden_size)
        assert np.shape(pipe(examples[0], pool=True)) == (1, config.hidden_size)
        assert pipe(examples[0], return_tensors=True).shape[-1] == config.hidden_size


def tiny_checkpoints(folder: Path, models: list[PreTrainedModel], processor: Any) -> None:
    """Checkpoints for the tests of the pipelines, laid out as transformers' script for these does."""
    for model in models:
        place = folder / TYPE / type(model).__name__
        model.save_pretrained(place)
        processor.save_pretrained(place)
    summary = {
        type(model).__name__: {"tokenizer_classes": [], "processor_classes": [type(processor).__name__]}
        for model in models
    }
    (folder / "reports").mkdir()
    (folder / "reports" / "tiny_model_summary.json").write_text(json.dumps(summary))


def load(checkpoints: list[PreTrainedModel], processor: Any) -> dict[str, ModuleType]:
    """The modules with the mixins, by the last part of their names.

    Args:
        checkpoints: models that the tests of the pipelines load.
        processor: their image processor.

    Raises:
        FileNotFoundError: the tests have not been fetched.
    """
    if not FOLDER.is_dir():
        raise FileNotFoundError(f"{FOLDER} is not there: `make test-transformers` fetches it.")
    for table, name in NAMES.items():
        getattr(modeling_auto, table)[TYPE] = name
    sys.path.insert(0, str(FOLDER))
    stand_in(f"{PACKAGE}.exporters.test_export", ExportTesterMixin=type("ExportTesterMixin", (), {}))
    stand_in(f"{PACKAGE}.generation.test_utils", GenerationTesterMixin=type("GenerationTesterMixin", (), {}))
    stand_in(f"{PACKAGE}.utils.test_configuration_utils", config_common_kwargs=common_settings())
    stand_in("fetch_hub_objects_for_ci", url_to_local_path=lambda url: url)
    for each in (ImageClassificationPipelineTests, ImageFeatureExtractionPipelineTests):
        name = each.task.replace("-", "_")
        stand_in(f"tests.pipelines.test_pipelines_{name}", **{each.__name__: each})
    # The mixin takes a class from the package `transformers` itself.
    transformers = sys.modules["transformers"]
    setattr(transformers, type(processor).__name__, type(processor))

    tiny_checkpoints(Path(TINY_MODELS.name), checkpoints, processor)
    os.environ["TRANSFORMERS_TINY_MODEL_PATH"] = TINY_MODELS.name
    kinds = ("modeling_common", "configuration_common", "image_processing_common", "pipeline_mixin", "backbone_common")
    modules = {kind: importlib.import_module(f"{PACKAGE}.test_{kind}") for kind in kinds}
    # Theirs makes all settings with `_std` in their names tiny. `image_std` is one of these, and no initialization.
    modules["modeling_common"]._config_zero_init = zero_init
    return modules


def zero_init(config: FerPllConfig) -> FerPllConfig:
    """A copy of the configuration with next to no initialization."""
    changed = copy.deepcopy(config)
    changed.initializer_range = 1e-10
    return changed


def stand_in(name: str, **contents: Any) -> None:
    module = sys.modules[name] = ModuleType(name)
    vars(module).update(contents)
