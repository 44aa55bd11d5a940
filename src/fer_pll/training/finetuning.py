"""Command-line options for fine-tuning, and the model and trainer built from them."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, Any, Literal, Self, TypeVar

from datasets import Dataset
from transformers import AutoConfig, AutoModelForImageClassification, PreTrainedModel
from transformers.trainer_utils import HubStrategy, IntervalStrategy, SaveStrategy

from ..data.candidate_sets import add_candidates
from ..data.transition import read_transition
from ..hub.card_settings import CardMark, OnCard, card_settings
from ..io.shipped import DEFAULT_CONFIG
from ..model.configuration_fer_pll import FerPllConfig
from ..model.image_processing_fer_pll import FerPllImageProcessor
from ..model.modeling_fer_pll import FerPllForImageClassification
from .arguments import FerPllTrainingArguments
from .backbones import (
    Images,
    configure,
    is_timm,
    load_classifier,
    read_images,
    read_settings,
    set_drop_path,
)
from .config import config_folder, load_config
from .initialization import initialize, naming
from .lora import add_adapters
from .quiet import quiet
from .run_folder import RunFolder
from .trainer import FerPllTrainer, check_training_set

T = TypeVar("T")
_OfLora = Annotated[T, CardMark(only_with=("lora", True))]


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
            "(such as DINO) or ViTMAE; where --config has another network, of that kind. Default: random weights."
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
        is_ours = isinstance(AutoConfig.from_pretrained(config_folder(self.config)), FerPllConfig)
        if self.architecture == "plain" or not (is_ours or self.backbone):
            return self._make_plain(args, classes)
        start = self.init_from
        if self.backbone is None:
            config, image_processor = load_config(self.config, add_query_decoder=self.add_query_decoder, **classes)
        else:
            if not is_ours:
                raise ValueError(f"--config {self.config} is no model of fer-pll: leave it out, or --backbone.")
            base, base_processor = load_config(self.config, add_query_decoder=self.add_query_decoder, **classes)
            with naming("--backbone", self.backbone):
                images = self._images(self.backbone, Images.of(base_processor))
                config = configure(self.backbone, base, images, self.backbone_features)
            image_processor = images.processor(base_processor.face_crop)
            if self.backbone_weights == "pretrained":
                start = self.backbone
        set_drop_path(config, args.drop_path_rate)
        option = "--init_from" if self.backbone is None else "--backbone"
        model, initialization = initialize(FerPllForImageClassification, config, start, option)
        if initialization is not None and args.should_log:
            print(initialization, flush=True)
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
            raise ValueError(
                "--init_from and --backbone are two checkpoints to start from: give one of them. A run of ours on "
                "another network is continued with --backbone RUN as well."
            )

    def _images(self, source: str, otherwise: Images) -> Images:
        """What the images of a model on `source` are like."""
        images = read_images(source) or otherwise
        return images if self.image_size is None else replace(images, size=self.image_size)

    def _make_plain(
        self, args: FerPllTrainingArguments, classes: dict[str, Any]
    ) -> tuple[PreTrainedModel, FerPllImageProcessor]:
        """A classifier of transformers, from `backbone`, or from a config.json of transformers and `init_from`."""
        folder = config_folder(self.config)
        image_processor = FerPllImageProcessor.from_pretrained(folder)
        if self.backbone is None:
            config, start, option = AutoConfig.from_pretrained(folder), self.init_from, "--init_from"
            if start is not None and (images := read_images(start)) is not None:
                of_config = Images.of(image_processor)
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
                config = AutoConfig.from_pretrained(self.backbone, trust_remote_code=False)
                images = self._images(self.backbone, Images.of(image_processor))
            image_processor = images.processor(image_processor.face_crop)
        config._name_or_path = ""
        config.id2label, config.label2id = classes["id2label"], classes["label2id"]
        set_drop_path(config, args.drop_path_rate)
        if start is None:
            return AutoModelForImageClassification.from_config(config), image_processor
        with naming(option, start), quiet():
            model, new = load_classifier(start, config)
        if args.should_log:
            print(f"Weights from {start} ({config.model_type})\n  new: {', '.join(new) or 'nothing'}", flush=True)
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
        model, image_processor = self.make_model(args, names)
        if self.lora:
            model = add_adapters(model, self.lora_rank, self.lora_alpha, self.lora_targets)
        trainer = FerPllTrainer(
            model, args, processing_class=image_processor, train_dataset=train_dataset, eval_dataset=eval_dataset
        )
        trainer.data_settings = self.card_settings()
        return trainer

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
            print(
                f"{self.data} has no split 'validation': the run trains without evaluation and keeps its last model. "
                "To have one, prepare the data with --validation-share 0.1.",
                flush=True,
            )

    def card_settings(self) -> dict[str, Any]:
        """How the candidate sets were made, for the card. A file is shown by its name, without its folder."""
        shown = card_settings(self)
        return shown | ({"transition": Path(self.transition).name} if self.transition else {})

    @classmethod
    def from_run(cls, run: str | Path, **changes: Any) -> tuple[Self, FerPllTrainingArguments]:
        """Options and arguments of the `fer-pll finetune` that made the folder `run`. `changes` override arguments.

        Raises:
            ValueError: the folder has no settings, or not those of `fer-pll finetune`.
        """
        folder = RunFolder(run)
        settings = folder.settings
        try:
            return cls(**settings["script"]), FerPllTrainingArguments.from_settings(settings["arguments"], **changes)
        except (ValueError, TypeError) as error:
            raise ValueError(
                f"{folder.settings_file} is not what `fer-pll finetune` writes ({error}): train the run again."
            ) from error
