"""A Trainer that writes to a run folder: what checkpoints and publishing share."""

from transformers import PreTrainedModel, Trainer

from .arguments import ImageTrainingArguments
from .run_folder import RunFolder


class RunTrainer(Trainer):
    """A Trainer of a model of transformers, with our arguments and our names of its output files."""

    args: ImageTrainingArguments
    model: PreTrainedModel
    _resumed = False

    @property
    def run_folder(self) -> RunFolder:
        """The output folder."""
        assert self.args.output_dir is not None  # `TrainingArguments` fills it in
        return RunFolder(self.args.output_dir)
