"""What the scripts that train a classifier are told of data and model, and what they make of it."""

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

from datasets import Dataset

from ..data.prepared import add_candidates
from ..model import FerPllConfig, FerPllForImageClassification, FerPllImageProcessor
from .arguments import FerPllTrainingArguments
from .settings import SETTINGS_NAME, config_folder
from .trainer import FerPllTrainer


@dataclass
class ClassificationScript:
    config: str = field(metadata={"help": "Name in hub_configs, or a folder with config.json and finetune.yaml."})
    data: str = field(
        metadata={"help": "Folder written by prepare_data.py; trains on `train`, judges by `validation`."}
    )
    pretrained: str | None = field(
        default=None, metadata={"help": "Checkpoint of pretrain.py, folder or Hub name. Default: random weights."}
    )
    max_candidates: int = field(default=2, metadata={"help": "Labels with the most votes that become candidates."})
    min_votes: int = field(default=1, metadata={"help": "Votes that a candidate needs."})
    ties: str = field(default="keep", metadata={"help": "Labels tied at the cut: keep or drop."})
    flip_probability: float = field(
        default=0.1,
        metadata={"help": "Where the data have one label in the place of votes: how likely each other one joins it."},
    )
    set_size: int | None = field(
        default=None,
        metadata={"help": "Instead of flip_probability: as many candidates for each picture, whichever they are."},
    )
    attn_implementation: str = field(
        default="sdpa",
        metadata={"help": "sdpa, eager or flash_attention_2. On a CPU, eager is quicker for few tokens in bf16."},
    )

    def add_candidates(self, dataset: Dataset, seed: int) -> Dataset:
        """The rows with their candidate sets, see `data.prepared.add_candidates`."""
        return add_candidates(
            dataset,
            max_candidates=self.max_candidates,
            min_votes=self.min_votes,
            ties=self.ties,
            flip_probability=self.flip_probability,
            set_size=self.set_size,
            seed=seed,
        )

    def make_model(self, args: FerPllTrainingArguments) -> tuple[FerPllForImageClassification, FerPllImageProcessor]:
        """The classifier, from `pretrained` or random, and its image processor."""
        folder = config_folder(self.config)
        config = FerPllConfig.from_pretrained(folder)
        if args.drop_path_rate is not None:
            config.drop_path_rate = args.drop_path_rate
        if self.pretrained is None:
            model = FerPllForImageClassification(config)
        else:
            model = FerPllForImageClassification.from_pretrained(self.pretrained, config=config)
        model.set_attn_implementation(self.attn_implementation)
        return model, FerPllImageProcessor.from_pretrained(folder)

    def make_trainer(
        self, args: FerPllTrainingArguments, train_dataset: Dataset, eval_dataset: Dataset | None = None
    ) -> FerPllTrainer:
        """A trainer of a new model."""
        model, image_processor = self.make_model(args)
        return FerPllTrainer(
            model, args, processing_class=image_processor, train_dataset=train_dataset, eval_dataset=eval_dataset
        )

    @classmethod
    def of_run(cls, run: str | Path, **changes: Any) -> tuple[Self, FerPllTrainingArguments]:
        """What finetune.py was told when it made the folder `run`; `changes` go over its arguments.

        Raises:
            ValueError: where the folder has no settings, or others than finetune.py writes.
        """
        path = Path(run) / SETTINGS_NAME
        if not path.is_file():
            raise ValueError(f"{run} has no {SETTINGS_NAME}, which finetune.py writes: train it with that.")
        try:
            settings = json.loads(path.read_text())
            arguments = {name: value for name, value in settings["arguments"].items() if not name.endswith("_token")}
            return cls(**settings["script"]), FerPllTrainingArguments(**arguments | changes)
        except (ValueError, TypeError, KeyError) as error:
            raise ValueError(f"{path} is not what finetune.py writes ({error}): train the run again.") from error
