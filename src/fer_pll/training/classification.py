"""What the scripts that train a classifier are told of data and model, and what they make of it."""

from dataclasses import dataclass, field

from datasets import Dataset

from ..data.prepared import add_candidates
from ..data.transition import read_transition
from ..model import FerPllConfig, FerPllForImageClassification, FerPllImageProcessor
from .arguments import FerPllTrainingArguments
from .settings import config_folder


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
    transition: str | None = field(
        default=None,
        metadata={
            "help": "Instead of flip_probability: CSV with a line for each given label, and in the column of each "
            "other class how likely it joins; see fer_pll.data.transition."
        },
    )
    attn_implementation: str = field(
        default="sdpa",
        metadata={"help": "sdpa, eager or flash_attention_2. On a CPU, eager is quicker for few tokens in bf16."},
    )

    def add_candidates(self, dataset: Dataset, seed: int) -> Dataset:
        """The rows with their candidate sets, see `data.prepared.add_candidates`."""
        transition = None
        if self.transition is not None:
            transition = read_transition(self.transition, dataset.features["label"].names)
        return add_candidates(
            dataset,
            max_candidates=self.max_candidates,
            min_votes=self.min_votes,
            ties=self.ties,
            flip_probability=self.flip_probability,
            set_size=self.set_size,
            transition=transition,
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
