"""Command-line options for fine-tuning, and the model and trainer built from them."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, Any, Literal, Self, TypeVar, get_type_hints

import torch
from datasets import Dataset
from huggingface_hub.dataclasses import type_validator
from transformers import AutoModelForImageClassification, PreTrainedModel
from transformers.trainer_utils import HubStrategy, IntervalStrategy, SaveStrategy

from ..data.candidate_sets import add_candidates
from ..data.dataset import numpy_column
from ..data.provenance import Provenance
from ..data.row_ids import row_ids
from ..data.transition import read_transition
from ..hub.card import weights_digest
from ..hub.card_settings import CardMark, OnCard, card_settings
from ..io.pretrained import load_image_processor, load_model_config, make_model
from ..io.shipped import CHECKPOINTS, DEFAULT_CONFIG
from ..io.stored import reading
from ..io.terminal import say
from ..labels.candidates import dataset_fingerprint
from ..model.configuration_fer_pll import FerPllConfig
from ..model.image_processing_fer_pll import FerPllImageProcessor
from ..model.modeling_fer_pll import FerPllForImageClassification
from .arguments import FerPllTrainingArguments
from .backbones import (
    Images,
    configure,
    has_other_network,
    is_timm,
    load_classifier,
    read_images,
    read_settings,
    set_drop_path,
)
from .config import config_folder, load_config
from .initialization import initialize, naming
from .lora import add_adapters
from .run_folder import RunFolder
from .teachers import Distillation, Teacher, cached_probabilities
from .trainer import FerPllTrainer, check_training_set

logger = logging.getLogger(__name__)

T = TypeVar("T")
_OfLora = Annotated[T, CardMark(only_with=("lora", True))]


def packaged_start(init_from: str | None) -> dict[str, str]:
    """The setting `init_from` for the card, where it names a checkpoint in the package and no path."""
    return {"init_from": init_from} if init_from in CHECKPOINTS else {}


@dataclass
class FineTuningOptions:
    """Options of `fer-pll finetune` for data and model, beside the training arguments."""

    data: str = field(
        metadata={
            "help": "Folder written by fer-pll prepare; trains on `train`, evaluates on `validation`. The model gets "
            "its classes."
        }
    )
    config: str = field(
        default=DEFAULT_CONFIG,
        metadata={
            "help": "Sizes of the model and settings of the training: a name in hub_configs, or a folder with "
            "config.json and finetune.yaml."
        },
    )
    init_from: str | None = field(
        default=None,
        metadata={
            "help": "Weights to start from: folder or Hub name of a checkpoint of fer-pll pretrain or finetune, ViT "
            "(such as DINO) or ViTMAE, or where --config has another network, of that kind; fer-pll-tiny-ferplus and "
            "fer-pll-tiny-vit-ferplus are in the package; none: random weights. A checkpoint of fer-pll brings its "
            "kind of network along. Default: what the config says, else random weights."
        },
    )
    teacher: list[str] | None = field(
        default=None,
        metadata={
            "help": "Classifiers to learn from, beside the candidate sets: folders or Hub names. Of several, the mean "
            "of their probabilities counts. They see the images that the student sees."
        },
    )
    teacher_weight: float = field(
        default=0.5, metadata={"help": "Share of the teachers in the loss; the rest is that of the candidate sets."}
    )
    teacher_temperature: float = field(
        default=1.0, metadata={"help": "Above 1 it softens the teachers' probabilities, below 1 it sharpens them."}
    )
    teacher_cache: str | None = field(
        default=None,
        metadata={
            "help": "Ask the teachers only once, for each image and its mirror image, and keep their probabilities in "
            "this file (safetensors), for this run and others. Without it they are asked in each step."
        },
    )
    backbone: str | None = field(
        default=None,
        metadata={
            "help": "Take the network of this checkpoint in place of the encoder: folder or Hub name of any network "
            "that transformers has as a backbone (such as microsoft/resnet-18, facebook/dinov2-small), of ViT, or of "
            "timm. Color, size and normalization of the images are the checkpoint's; sizes of the label queries and "
            "settings of the training are those of --config, by default fer-pll-resnet18."
        },
    )
    backbone_weights: Literal["pretrained", "random"] = field(
        default="pretrained", metadata={"help": "Weights that --backbone starts with."}
    )
    backbone_features: list[str] | None = field(
        default=None,
        metadata={
            "help": "Names or numbers of the stages of --backbone whose feature maps the label queries attend to, "
            "such as stage3 stage4. Default: the last."
        },
    )
    image_size: int | None = field(
        default=None, metadata={"help": "Side of the images in pixels, in place of that of --backbone."}
    )
    architecture: Literal["label_queries", "plain"] = field(
        default="label_queries",
        metadata={"help": "plain: transformers' own classifier on --backbone, without anything of ours."},
    )
    max_candidates: OnCard[int] = field(
        default=2, metadata={"help": "How many labels, those with the most votes, become candidates."}
    )
    min_votes: OnCard[int] = field(default=1, metadata={"help": "Smallest number of votes for a candidate."})
    ties: OnCard[Literal["keep", "drop"]] = field(
        default="keep", metadata={"help": "What to do with labels tied at the cut."}
    )
    flip_probability: OnCard[float] = field(
        default=0.1,
        metadata={"help": "For data with one label instead of votes: probability that each other label joins it."},
    )
    set_size: OnCard[int | None] = field(
        default=None,
        metadata={"help": "Instead of flip_probability: this many candidates for each image, drawn at random."},
    )
    transition: OnCard[str | None] = field(
        default=None,
        metadata={
            "help": "Instead of flip_probability: CSV file with a line for each given label and a column for each "
            "class: the probability that the class joins; see fer_pll.data.transition."
        },
    )
    add_query_decoder: bool | None = field(
        default=None,
        metadata={
            "help": "Classify by label queries (true) or by a linear layer on the mean of the patch tokens (false); "
            "overrides the model config."
        },
    )
    lora: _OfLora[bool] = field(
        default=False,
        metadata={
            "help": "Keep the weights of the encoder as they are and learn a change of low rank for each linear layer "
            "(LoRA; needs peft), beside label queries and classifier. The model is merged with the changes in the end."
        },
    )
    lora_rank: _OfLora[int] = field(default=8, metadata={"help": "Rank of the changes of --lora."})
    lora_alpha: _OfLora[float | None] = field(
        default=None, metadata={"help": "The changes are scaled by alpha / rank. Default: twice the rank."}
    )
    lora_targets: _OfLora[list[str] | None] = field(
        default=None,
        metadata={
            "help": "Names of the encoder's layers that --lora changes, such as q_proj v_proj. Default: all linear "
            "layers or, in a convolutional network without any, all convolutions."
        },
    )
    settings: str | None = field(
        default=None,
        metadata={"help": "YAML file with settings that override the config's finetune.yaml."},
    )
    attn_implementation: str = field(
        default="sdpa",
        metadata={"help": "sdpa, eager or flash_attention_2. On a CPU, eager is faster for few tokens in bf16."},
    )

    def for_fold(self) -> Self:
        """These options for a part of the rows: a cache of the teachers' answers is one of all rows."""
        return replace(self, teacher_cache=None)

    def add_candidates(self, dataset: Dataset, seed: int) -> Dataset:
        """The rows with their candidate sets, see `data.candidate_sets.add_candidates`.

        Settings that do not apply to these data become `None`, so that no record claims them.
        """
        unused = {"max_candidates", "min_votes", "ties", "flip_probability", "set_size"}
        if "candidates" not in dataset.column_names:
            from_votes = "votes" in dataset.column_names
            unused &= {"flip_probability", "set_size"} if from_votes else {"max_candidates", "min_votes", "ties"}
            if self.transition is not None or self.set_size is not None:
                unused.add("flip_probability")
        transition = None
        if self.transition is not None:
            transition = read_transition(self.transition, dataset.features["label"].names)
        dataset = add_candidates(
            dataset,
            max_candidates=self.max_candidates,
            min_votes=self.min_votes,
            ties=self.ties,
            flip_probability=self.flip_probability,
            set_size=self.set_size,
            transition=transition,
            seed=seed,
        )
        for name in unused:
            setattr(self, name, None)
        return dataset

    def make_model(
        self, args: FerPllTrainingArguments, class_names: Sequence[str]
    ) -> tuple[PreTrainedModel, FerPllImageProcessor]:
        """The classifier of some classes and its image processor.

        Its weights are those of `init_from` or `backbone`, or random. A config.json of another model of transformers,
        and `architecture="plain"`, give that model.

        Args:
            args: settings of the training.
            class_names: K names, in the order of the candidate sets. They take the place of those in config.json.

        Raises:
            ValueError: options do not go together, or a checkpoint cannot be used.
            MissingExtra: the network needs a package that is not installed.
        """
        self._check_options()
        classes: dict[str, Any] = {
            "id2label": dict(enumerate(class_names)),
            "label2id": {name: number for number, name in enumerate(class_names)},
        }
        is_ours = isinstance(load_model_config(config_folder(self.config)), FerPllConfig)
        if self.architecture == "plain" or not (is_ours or self.backbone):
            return self._make_plain(args, classes)
        if not is_ours:
            raise ValueError(f"--config {self.config} is no model of fer-pll: leave it out, or --backbone.")
        config, image_processor = load_config(self.config, add_query_decoder=self.add_query_decoder, **classes)
        start, network, option = self.init_from, self.backbone, "--backbone"
        if network is None and start not in (None, "none"):
            option = "--init_from"
            with naming(option, start):
                network = start if has_other_network(start, config) else None
        if network is not None:
            with naming(option, network):
                images = self._images(network, Images.from_processor(image_processor, image_processor.num_channels))
                config = configure(network, config, images, self.backbone_features)
                if self.add_query_decoder is not None:  # else as in a checkpoint of ours
                    config.add_query_decoder = self.add_query_decoder
            image_processor = images.processor(image_processor.face_crop)
            if self.backbone_weights == "pretrained":
                start = network
        set_drop_path(config, args.drop_path_rate)
        model, initialization = initialize(FerPllForImageClassification, config, start, option)
        if initialization is not None and args.should_log:
            say(initialization)
        model.set_attn_implementation(self.attn_implementation)
        return model, image_processor

    def _check_options(self) -> None:
        for name in ("backbone_features", "image_size"):
            if self.backbone is None and getattr(self, name) is not None:
                raise ValueError(f"--{name} goes with --backbone.")
        if self.architecture == "plain" and (
            self.backbone is None or self.backbone_features or self.add_query_decoder
        ):
            raise ValueError(
                "--architecture plain needs a --backbone, and goes without --backbone_features and "
                "--add_query_decoder."
            )
        if self.backbone is not None and self.init_from is not None:
            raise ValueError("--init_from and --backbone are two checkpoints to start from: give one of them.")

    def _images(self, source: str, otherwise: Images) -> Images:
        """What the images of a model on `source` are like."""
        images = read_images(source) or otherwise
        return images if self.image_size is None else replace(images, size=self.image_size)

    def _make_plain(
        self, args: FerPllTrainingArguments, classes: dict[str, Any]
    ) -> tuple[PreTrainedModel, FerPllImageProcessor]:
        """A classifier of transformers, from `backbone`, or from a config.json of transformers and `init_from`."""
        folder = config_folder(self.config)
        image_processor = load_image_processor(folder, FerPllImageProcessor)
        if self.backbone is None:
            config, start, option = load_model_config(folder), self.init_from, "--init_from"
            if start is not None and (images := read_images(start)) is not None:
                of_config = Images.from_processor(image_processor, image_processor.num_channels)
                if (images.image_mean, images.image_std) != (of_config.image_mean, of_config.image_std):
                    raise ValueError(
                        f"--init_from {start} is for pixels with mean {images.image_mean} and deviation "
                        f"{images.image_std}; preprocessor_config.json of --config {self.config} has others: make "
                        "them equal, or give the checkpoint as --backbone with --architecture plain."
                    )
        else:
            start, option = self.backbone if self.backbone_weights == "pretrained" else None, "--backbone"
            with naming(option, self.backbone):
                if is_timm(read_settings(self.backbone)):
                    raise ValueError(
                        "a network of timm is used with the label queries only: leave out --architecture."
                    )
                config = load_model_config(self.backbone)
                images = self._images(
                    self.backbone, Images.from_processor(image_processor, image_processor.num_channels)
                )
            image_processor = images.processor(image_processor.face_crop)
        config._name_or_path = ""
        config.id2label, config.label2id = classes["id2label"], classes["label2id"]
        set_drop_path(config, args.drop_path_rate)
        if start is None:
            return make_model(AutoModelForImageClassification, config), image_processor
        with naming(option, start):
            model, new = load_classifier(start, config)
        if args.should_log:
            say(f"Weights from {start} ({config.model_type})", f"  new: {', '.join(new) or 'nothing'}")
        return model, image_processor

    def make_trainer(
        self, args: FerPllTrainingArguments, train_dataset: Dataset, eval_dataset: Dataset | None = None
    ) -> FerPllTrainer:
        """A trainer of a new model with the classes of the data set.

        Without an evaluation set, nothing is evaluated: the settings in `args` that ask for it are switched off.
        """
        names = train_dataset.features["label"].names
        check_training_set(train_dataset, names, args.confidence_init)
        if eval_dataset is None:
            self._train_without_evaluation(args)
        self._check_lora(args)
        provenance = Provenance.from_dataset(train_dataset)
        if packaged_start(self.init_from) and provenance is not None and provenance.source == "ferplus":
            logger.warning(
                "%s was trained on FER+, so it has seen these rows. To know what a model makes of rows that it has "
                "not seen, start from others: --init_from none.",
                self.init_from,
            )
        model, image_processor = self.make_model(args, names)
        if self.lora:
            model = add_adapters(model, self.lora_rank, self.lora_alpha, self.lora_targets)
        trainer = FerPllTrainer(
            model,
            args,
            processing_class=image_processor,
            train_dataset=train_dataset,
            eval_dataset=eval_dataset,
            distillation=self.make_distillation(args, names, train_dataset),
        )
        trainer.data_settings = self.card_settings()
        return trainer

    def make_distillation(
        self, args: FerPllTrainingArguments, names: Sequence[str], train_dataset: Dataset
    ) -> Distillation | None:
        """The part of the loss that comes from the teachers, of the classes `names`; `None` without teachers."""
        if not self.teacher:
            for name in ("teacher_weight", "teacher_temperature", "teacher_cache"):
                if getattr(self, name) != type(self).__dataclass_fields__[name].default:
                    raise ValueError(f"--{name}: name the teachers as well, with --teacher.")
            return None
        teachers = [Teacher.load(each, names, args.device) for each in self.teacher]
        said: list[Teacher] | torch.Tensor = teachers
        if self.teacher_cache:
            fingerprint = dataset_fingerprint(names, row_ids(train_dataset), numpy_column(train_dataset, "candidates"))
            digests = [weights_digest(checkpoint) or checkpoint for checkpoint in self.teacher]
            with args.main_process_first(desc="asking the teachers"):
                said = cached_probabilities(self.teacher_cache, teachers, digests, train_dataset, fingerprint)
        return Distillation(said, self.teacher_weight, self.teacher_temperature)

    def _check_lora(self, args: FerPllTrainingArguments) -> None:
        if not self.lora:
            return
        if self.init_from is None and (self.backbone is None or self.backbone_weights == "random"):
            raise ValueError(
                "--lora learns small changes of weights that are there: give --init_from or --backbone as well."
            )
        if args.freeze_backbone or args.unfreeze_after is not None:
            raise ValueError("--lora keeps the encoder's weights as they are: leave out --freeze_backbone.")
        if args.push_to_hub and args.hub_strategy != HubStrategy.END:
            raise ValueError(
                f"hub_strategy={HubStrategy(args.hub_strategy).value!r}: with --lora only the merged model is pushed, "
                "at the end; use end."
            )

    def _train_without_evaluation(self, args: FerPllTrainingArguments) -> None:
        if args.eval_strategy == IntervalStrategy.NO:
            return
        args.eval_strategy, args.do_eval = IntervalStrategy.NO, False
        args.load_best_model_at_end, args.metric_for_best_model = False, None
        if args.save_strategy == SaveStrategy.BEST:
            args.save_strategy = SaveStrategy.EPOCH
        if args.should_log:
            say(
                f"{self.data} has no split 'validation': the run trains without evaluation and keeps its last model. "
                "To have one, prepare the data with --validation-share 0.1."
            )

    def card_settings(self) -> dict[str, Any]:
        """How the candidate sets were made, for the card. Files and folders are shown by their names alone."""
        shown = card_settings(self) | packaged_start(self.init_from)
        shown |= {"transition": Path(self.transition).name} if self.transition else {}
        if self.teacher:
            shown |= {name: getattr(self, name) for name in ("teacher_weight", "teacher_temperature")}
            shown["teacher"] = ", ".join(Path(each).name for each in self.teacher)
        return shown

    @classmethod
    def from_run(cls, run: str | Path, **changes: Any) -> tuple[Self, FerPllTrainingArguments]:
        """Options and arguments of the `fer-pll finetune` that made the folder `run`. `changes` override arguments.

        Raises:
            ValueError: the folder has no settings, or not those of `fer-pll finetune`.
        """
        folder = RunFolder(run)
        settings = folder.settings
        with reading(folder.settings_file, "it is not what `fer-pll finetune` writes; train the run again"):
            for name, kind in get_type_hints(cls).items():
                value = settings["script"].get(name)
                if value is not None and not (kind is float and isinstance(value, int)):
                    type_validator(name, value, kind)
            return cls(**settings["script"]), FerPllTrainingArguments.from_settings(settings["arguments"], **changes)
