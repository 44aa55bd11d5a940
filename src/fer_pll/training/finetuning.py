"""Command-line options for fine-tuning, and the model and trainer built from them."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, Self

from datasets import Dataset
from transformers import AutoConfig, AutoModelForImageClassification, PreTrainedModel
from transformers.trainer_utils import IntervalStrategy, SaveStrategy

from ..data.candidate_sets import add_candidates
from ..data.transition import read_transition
from ..hub.card_settings import OnCard, card_settings
from ..io.shipped import DEFAULT_CONFIG
from ..model.configuration_fer_pll import FerPllConfig
from ..model.image_processing_fer_pll import FerPllImageProcessor
from ..model.modeling_fer_pll import FerPllForImageClassification
from .arguments import FerPllTrainingArguments
from .config import config_folder, load_config
from .initialization import initialize
from .run_folder import RunFolder
from .trainer import FerPllTrainer, check_training_set


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
            "(such as DINO) or ViTMAE. Default: random weights."
        },
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
        """The classifier of some classes, with weights from `init_from` or random ones, and its image processor.

        A config.json of another model of transformers gives that model, with random weights.

        Args:
            args: settings of the training.
            class_names: K names, in the order of the candidate sets. They take the place of those in config.json.
        """
        folder = config_folder(self.config)
        classes = {
            "id2label": dict(enumerate(class_names)),
            "label2id": {name: number for number, name in enumerate(class_names)},
        }
        other = AutoConfig.from_pretrained(folder)
        if not isinstance(other, FerPllConfig):
            if self.init_from is not None:
                raise ValueError(f"--init_from {self.init_from}: --config {self.config} is no model of fer-pll.")
            other.id2label, other.label2id = classes["id2label"], classes["label2id"]
            return AutoModelForImageClassification.from_config(other), FerPllImageProcessor.from_pretrained(folder)
        config, image_processor = load_config(
            self.config, drop_path_rate=args.drop_path_rate, add_query_decoder=self.add_query_decoder, **classes
        )
        model, initialization = initialize(FerPllForImageClassification, config, self.init_from)
        if initialization is not None and args.should_log:
            print(initialization, flush=True)
        model.set_attn_implementation(self.attn_implementation)
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
        model, image_processor = self.make_model(args, names)
        trainer = FerPllTrainer(
            model, args, processing_class=image_processor, train_dataset=train_dataset, eval_dataset=eval_dataset
        )
        trainer.data_settings = self.card_settings()
        return trainer

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
