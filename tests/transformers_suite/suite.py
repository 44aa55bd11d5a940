"""transformers' own shared tests on our classes: `make test-transformers`.

Not one of `make test`'s: the tests come from the package index, see `fetch.py`. What they skip, and why, is in
`reasons.py`.

To run them on another configuration, add it to `CONFIGURATIONS`.
"""

import textwrap
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any
from unittest import TestCase, mock

import torch
from transformers.testing_utils import torch_device

from fer_pll import (
    FerPllBackbone,
    FerPllConfig,
    FerPllForImageClassification,
    FerPllForPreTraining,
    FerPllImageProcessor,
    FerPllModel,
)

from . import harness

SIZES = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 37,
    "patch_size": 8,
    "hog_cell_size": 4,
    "decoder_hidden_size": 32,
    "decoder_num_hidden_layers": 2,
    "decoder_num_attention_heads": 4,
    "decoder_intermediate_size": 37,
    "query_decoder_num_hidden_layers": 2,
}
ALL_CLASSES = (FerPllModel, FerPllForImageClassification, FerPllForPreTraining)


@dataclass
class Configuration:
    """settings: of `FerPllConfig`. classes: the models to test with them. flags: attributes of the test's class."""

    settings: dict[str, Any]
    classes: tuple[type, ...] = ALL_CLASSES
    flags: dict[str, Any] = field(default_factory=dict)


CONFIGURATIONS = {
    "Gray48": Configuration({"image_size": 48, "num_channels": 1}),
    "Color32": Configuration({"image_size": 32, "num_channels": 3, "position_embedding_type": "learned"}),
    "Color32Token": Configuration(
        {
            "image_size": 32,
            "num_channels": 3,
            "mask_style": "token",
            "position_embedding_type": "learned",
            "add_query_decoder": False,
        }
    ),
    "ResNet": Configuration(
        {
            "image_size": 32,
            "backbone_config": {
                "model_type": "resnet",
                "embedding_size": 8,
                "hidden_sizes": [8, 16],
                "depths": [1, 1],
                "layer_type": "basic",
                "num_channels": 3,
                "out_features": ["stage1", "stage2"],
            },
        },
        (FerPllModel, FerPllForImageClassification),
        {"has_attentions": False},  # no maps of the encoder; those of the label queries are tested with the others
    ),
}


def make_config(settings: dict[str, Any]) -> FerPllConfig:
    return FerPllConfig(**SIZES | settings)


PROCESSOR = FerPllImageProcessor(num_channels=1, size={"height": 48, "width": 48})
_CHECKPOINT = make_config(CONFIGURATIONS["Gray48"].settings)
THEIRS = harness.load([FerPllModel(_CHECKPOINT), FerPllForImageClassification(_CHECKPOINT)], PROCESSOR)
ModelTesterMixin = THEIRS["modeling_common"].ModelTesterMixin
ids_tensor, floats_tensor = (getattr(THEIRS["modeling_common"], name) for name in ("ids_tensor", "floats_tensor"))


class ModelTester:
    """What the mixin reads: sizes, and a batch."""

    batch_size = 3
    is_training = True
    num_masks = 3  # of the mask that the mixin makes for `bool_masked_pos`

    def __init__(self, parent: TestCase, settings: dict[str, Any]) -> None:
        self.parent = parent
        self.settings = settings
        config = self.get_config()
        for name in ("image_size", "patch_size", "num_channels", "hidden_size", "num_hidden_layers"):
            setattr(self, name, getattr(config, name))
        self.num_attention_heads = config.num_attention_heads
        self.num_labels = config.num_labels
        self.mask_length = config.grid_size**2
        self.show(FerPllModel)

    def show(self, model_class: type) -> None:
        """Tell the tests how many tokens the encoder of a class has."""
        config = self.get_config()
        drops = model_class is FerPllForPreTraining and config.mask_style == "visible"
        self.seq_length = 1 + (int(self.mask_length * (1 - config.mask_ratio)) if drops else self.mask_length)

    def get_config(self) -> FerPllConfig:
        return make_config(self.settings)

    def prepare_config_and_inputs_for_common(self) -> tuple[FerPllConfig, dict[str, torch.Tensor]]:
        pixels = floats_tensor([self.batch_size, self.num_channels, self.image_size, self.image_size])
        return self.get_config(), {"pixel_values": pixels}


class ModelTests(ModelTesterMixin, THEIRS["pipeline_mixin"].PipelineTesterMixin):
    """The tests of one configuration; subclasses say which."""

    configuration: Configuration
    test_resize_embeddings = False
    pipeline_model_mapping = {  # noqa: RUF012  # no ClassVar in transformers
        "image-classification": FerPllForImageClassification,
        "image-feature-extraction": FerPllModel,
    }

    def setUp(self) -> None:
        self.model_tester = ModelTester(self, self.configuration.settings)
        without_backbone = {
            name: each for name, each in self.configuration.settings.items() if name != "backbone_config"
        }
        self.config_tester = THEIRS["configuration_common"].ConfigTester(
            self, config_class=FerPllConfig, has_text_modality=False, **SIZES | without_backbone
        )

    def for_each_class(self, test: Callable[[], None]) -> None:
        """Classes one by one: in pre-training the encoder has fewer tokens."""
        for model_class in self.configuration.classes:
            with self.subTest(model_class.__name__):
                self.all_model_classes = (model_class,)
                self.model_tester.show(model_class)
                test()

    def test_attention_outputs(self) -> None:
        self.for_each_class(super().test_attention_outputs)

    def test_hidden_states_output(self) -> None:
        self.for_each_class(super().test_hidden_states_output)

    def test_model_get_set_embeddings(self) -> None:
        """As for any model of images: the embeddings are no table of words."""
        for model_class in self.all_model_classes:
            model = model_class(self.model_tester.get_config())
            self.assertIsInstance(model.get_input_embeddings(), torch.nn.Module)
            if model.config.backbone_config is not None:
                continue  # another network's first layer stays
            model.set_input_embeddings(new := torch.nn.Linear(1, 1))
            self.assertIs(model.get_input_embeddings(), new)
            self.assertIsNone(model.get_output_embeddings())

    def test_problem_types(self) -> None:
        """A face has one expression among several: anything else is refused, by its name."""
        for settings, message in (
            ({"problem_type": "multi_label_classification"}, "problem_type"),
            ({"problem_type": "regression"}, "problem_type"),
            ({"num_labels": 1}, "num_labels"),
        ):
            with self.subTest(**settings), self.assertRaisesRegex(Exception, message):
                FerPllForImageClassification(make_config(self.configuration.settings | settings))

    def test_config(self) -> None:
        self.config_tester.run_common_tests()

    def _prepare_for_class(self, inputs: dict[str, Any], model_class: type, return_labels: bool = False):
        inputs = super()._prepare_for_class(inputs, model_class, return_labels=return_labels)
        if model_class is FerPllForPreTraining:  # else each call hides other patches
            noise = torch.rand(len(inputs["pixel_values"]), self.model_tester.mask_length, generator=seeded())
            inputs["noise"] = noise.to(torch_device)
        return inputs


def seeded() -> torch.Generator:
    return torch.Generator().manual_seed(0)


for name, configuration in CONFIGURATIONS.items():
    attributes = {"configuration": configuration, "all_model_classes": configuration.classes, **configuration.flags}
    vars()[f"Test{name}"] = type(f"Test{name}", (ModelTests, TestCase), attributes | {"__module__": __name__})


class TestBackbone(THEIRS["backbone_common"].BackboneTesterMixin, TestCase):
    """Our encoder in others' models."""

    all_model_classes = (FerPllBackbone,)
    config_class = FerPllConfig

    def setUp(self) -> None:
        self.model_tester = ModelTester(self, {"image_size": 32, "out_features": ["stage1", "stage2"]})


class ImageProcessingTester(THEIRS["image_processing_common"].ImageProcessingTester):
    """What the mixin reads: the settings of an image processor, and images."""

    def _get_image_processing_classes(self) -> dict[str, type]:
        return {"pil": FerPllImageProcessor}

    def prepare_image_inputs(self, num_channels: int | None = None, **kwargs: Any) -> list[Any]:
        # The mixin cannot draw gray images for Pillow.
        as_arrays = kwargs.get("numpify") or kwargs.get("torchify")
        return super().prepare_image_inputs(num_channels=num_channels or (None if as_arrays else 3), **kwargs)


class ImageProcessorTests(THEIRS["image_processing_common"].ImageProcessingTestMixin):
    settings: dict[str, Any]

    def image_processor_tester_class(self, parent: TestCase) -> ImageProcessingTester:
        return ImageProcessingTester(parent, **self.settings)

    def test_pil_can_run_without_torchvision(self) -> None:
        """In a new process, which knows our class only once the package is imported."""

        def dedent(script: str) -> str:
            return original(script).replace("from transformers import", "import fer_pll\nfrom transformers import", 1)

        original = textwrap.dedent
        with mock.patch("textwrap.dedent", dedent):
            super().test_pil_can_run_without_torchvision()


PROCESSORS = {
    "Color": {"num_channels": 3, "size": {"height": 18, "width": 18}},
    "Gray": {"num_channels": 1, "size": {"height": 18, "width": 18}, "image_mean": [0.5], "image_std": [0.25]},
    "Pixels": {"size": {"height": 20, "width": 12}, "do_rescale": False, "do_normalize": False},
}
for name, settings in PROCESSORS.items():
    attributes = {"settings": settings, "__module__": __name__}
    vars()[f"Test{name}Processor"] = type(f"Test{name}Processor", (ImageProcessorTests, TestCase), attributes)
