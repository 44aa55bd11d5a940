"""Settings of the two trainings. Every field is a command-line option of the scripts and a key of the YAML files."""

import warnings
from dataclasses import dataclass, field

import torch
from transformers import TrainingArguments

from ..data.augmentation import BatchAugmentation
from .methods import METHODS


@dataclass
class ImageTrainingArguments(TrainingArguments):
    """What both trainings share: augmentation, layer-wise learning rates, and defaults that carry our columns."""

    crop_scale: float = field(
        default=1.0, metadata={"help": "Smallest share of the area that a random crop keeps (1: no random crops)."}
    )
    crop_ratio: float = field(default=1.0, metadata={"help": "Largest width / height of a random crop."})
    rotation: float = field(default=0.0, metadata={"help": "Largest random rotation, in degrees either way."})
    flip: bool = field(default=True, metadata={"help": "Mirror half of the pictures."})
    light: float = field(default=0.0, metadata={"help": "Largest random change of contrast and brightness."})
    erase: float = field(
        default=0.0, metadata={"help": "Share of the pictures in which a random rectangle is erased."}
    )
    layer_decay: float = field(
        default=1.0, metadata={"help": "Factor by which the learning rate falls per encoder block towards the input."}
    )
    remove_unused_columns: bool = field(
        default=False, metadata={"help": "Must stay false: `image` and `candidates` are needed."}
    )
    ddp_find_unused_parameters: bool | None = field(
        default=False, metadata={"help": "Every parameter takes part in every step, so searching is a waste."}
    )
    lr_scheduler_type: str = field(default="cosine", metadata={"help": "Learning rate schedule, after the warm-up."})
    report_to: None | str | list[str] = field(
        default="none", metadata={"help": "Where to report metrics besides the console, e.g. tensorboard."}
    )
    logging_nan_inf_filter: bool = field(
        default=False, metadata={"help": "Nothing to filter: a loss that is not finite ends the training."}
    )
    overwrite: bool = field(
        default=False, metadata={"help": "Replace the run that lies in the output folder (else it is an error)."}
    )

    def __post_init__(self):
        # Half precision on a CPU is refused unless one says that the CPU is meant.
        self.use_cpu = self.use_cpu or not torch.accelerator.is_available()
        super().__post_init__()
        if self.bf16 and self.use_cpu and torch.backends.cpu.get_cpu_capability() == "AVX2":
            warnings.warn(
                "bf16 on this CPU, which has no instructions for it, can take fifty times as long as float32. "
                "Switch it off with --bf16 false.",
                stacklevel=2,
            )
        if self.remove_unused_columns:
            raise ValueError("remove_unused_columns must stay false: the trainer needs `image` and `candidates`.")
        if self.hub_token is not None:
            raise ValueError(
                "hub_token is refused: it would be written in clear text into training_args.bin, which is pushed. "
                "Set the environment variable HF_TOKEN instead."
            )
        for name, low, high in (("crop_scale", 0, 1), ("layer_decay", 0, 1), ("light", -1e-9, 1), ("erase", -1e-9, 1)):
            if not low < getattr(self, name) <= high:
                raise ValueError(f"{name}={getattr(self, name)} must lie in ({max(low, 0)}, {high}].")
        if self.crop_ratio < 1:
            raise ValueError(f"crop_ratio={self.crop_ratio} must be at least 1.")

    def augmentation(self) -> BatchAugmentation:
        """The random changes of a training batch, keyed by `seed`."""
        return BatchAugmentation(
            seed=self.seed,
            crop_scale=self.crop_scale,
            crop_ratio=self.crop_ratio,
            rotation=self.rotation,
            flip=self.flip,
            light=self.light,
            erase=self.erase,
        )


@dataclass
class FerPllPreTrainingArguments(ImageTrainingArguments):
    """Settings of masked-image pre-training (paper, sections 3.2 and 4.2)."""

    objective: str = field(
        default="masked",
        metadata={
            "help": "masked: predict hidden patches, of which the model config says what and how (HOG, MaskFeat, MAE, "
            "SimMIM); moco: tell two views of a picture from the views of others."
        },
    )
    mask_ratio: float | None = field(
        default=None, metadata={"help": "Share of the patches that is hidden; overrides the model config."}
    )
    shuffle_buffer: int = field(
        default=4096,
        metadata={
            "help": "Streams: pictures that are shuffled together. Every DataLoader worker of every process holds "
            "about so many, encoded (4096 of 30 kB are 120 MB). The shards come in a new order in each pass."
        },
    )
    on_bad_data: str = field(
        default="skip",
        metadata={
            "help": "Streams: what is done with a shard that is missing or damaged and a picture that cannot be read. "
            "skip: leave it out and list it, with the reason, in unreadable.csv in the output folder; stop: end the "
            "training before the batch that lacks it."
        },
    )
    picture_steps: int | None = field(
        default=None,
        metadata={
            "help": "Draw what is predicted of six pictures after every so many steps (into pictures/ in the output "
            "folder); 0 for never. Default: with each checkpoint."
        },
    )
    contrastive_temperature: float = field(default=0.07, metadata={"help": "Temperature of the loss of moco."})
    queue_size: int = field(default=65536, metadata={"help": "Earlier pictures that moco compares with."})
    encoder_momentum: float = field(
        default=0.999,
        metadata={"help": "How slowly the key encoder of moco follows: the share that it keeps each step."},
    )

    def __post_init__(self):
        super().__post_init__()
        if self.objective not in ("masked", "moco"):
            raise ValueError(f"objective={self.objective!r}: choose masked or moco.")
        if self.contrastive_temperature <= 0:
            raise ValueError(f"contrastive_temperature={self.contrastive_temperature} must be positive.")
        if not 0 <= self.encoder_momentum < 1:
            raise ValueError(f"encoder_momentum={self.encoder_momentum} must lie in [0, 1).")
        if self.picture_steps is not None and self.picture_steps < 0:
            raise ValueError(f"picture_steps={self.picture_steps} must be positive, or 0 for no pictures.")
        if self.queue_size < 1:
            raise ValueError(f"queue_size={self.queue_size} must be at least 1.")
        if self.objective == "moco" and self.push_to_hub and self.hub_strategy != "end":
            raise ValueError(
                f"hub_strategy={self.hub_strategy.value!r}: with moco only the finished encoder is pushed; use end."
            )
        if self.on_bad_data not in ("skip", "stop"):
            raise ValueError(f"on_bad_data={self.on_bad_data!r}: choose skip or stop.")


@dataclass
class FerPllTrainingArguments(ImageTrainingArguments):
    """Settings of training with candidate sets (paper, sections 3.1, 3.3 and 4.2)."""

    loss: str = field(
        default="pll",
        metadata={
            "help": "Loss: pll (the paper's, Eq. 2), softmax (on the column `label`), soft_votes, cc, rc, proden, lw, "
            "lwc, pico or crpll."
        },
    )
    confidence_init: str = field(
        default="uniform",
        metadata={
            "help": "First confidences: uniform over the candidates, the shares of the votes inside them (votes), or "
            "the column `confidence` that an earlier training left (column)."
        },
    )
    revision: str | None = field(
        default=None,
        metadata={
            "help": "How confidences are revised: paper (Eq. 4 and 5: once the best candidate leads by more than the "
            "threshold, it takes all), normalized (the same on softmax over the candidates that are left), soft "
            "(softmax over the candidates) or none. Default: what belongs to the loss, paper with pll."
        },
    )
    revision_threshold: float = field(
        default=0.2,
        metadata={
            "help": "Margin of the two best candidates above which the best one is taken as the label (paper, "
            "normalized)."
        },
    )
    revision_warmup_epochs: float = field(
        default=0.0, metadata={"help": "Epochs before the first revision (0.5 is half an epoch)."}
    )
    revision_momentum: float = field(
        default=0.0,
        metadata={"help": "Share of the former confidence that soft keeps at each visit: a mean over epochs."},
    )
    reversible: bool = field(
        default=False,
        metadata={"help": "Revise from the initial candidates at each visit, so that no decision is final."},
    )
    class_balance: str = field(
        default="none",
        metadata={
            "help": "What is done for rare classes: none, sampler (each class is drawn as often, by the first "
            "confidences) or logit_adjustment (the log of the classes' shares is added to the logits in training)."
        },
    )
    contrastive_temperature: float = field(
        default=0.07, metadata={"help": "Temperature of the contrastive loss of pico."}
    )
    uniform_weight: float = field(
        default=1.0,
        metadata={"help": "Weight of the uniformity loss of the label queries (Eq. 3); 0 switches it off."},
    )
    uniform_temperature: float = field(default=0.1, metadata={"help": "Temperature of the uniformity loss."})
    uniform_literal: bool = field(
        default=False,
        metadata={"help": "Eq. 3 as printed, whose gradient vanishes at the paper's temperatures; for Table 8."},
    )
    drop_path_rate: float | None = field(
        default=None, metadata={"help": "Stochastic depth of the last encoder block; overrides the model config."}
    )

    def __post_init__(self):
        super().__post_init__()
        for name, allowed in (
            ("loss", tuple(METHODS)),
            ("confidence_init", ("uniform", "votes", "column")),
            ("class_balance", ("none", "sampler", "logit_adjustment")),
        ):
            if getattr(self, name) not in allowed:
                raise ValueError(f"{name}={getattr(self, name)!r}: choose one of {', '.join(allowed)}.")
        method = METHODS[self.loss]
        if self.revision is None:
            self.revision = method.revision
        if self.revision not in method.revisions:
            raise ValueError(
                f"revision={self.revision!r} does not go with loss={self.loss!r}: choose one of "
                f"{', '.join(method.revisions)}, or leave it out."
            )
        if not 0 <= self.revision_threshold < 1:
            raise ValueError(f"revision_threshold={self.revision_threshold} must lie in [0, 1) (Eq. 5).")
        if not 0 <= self.revision_momentum < 1:
            raise ValueError(f"revision_momentum={self.revision_momentum} must lie in [0, 1).")
        if self.uniform_temperature <= 0 or self.uniform_weight < 0:
            raise ValueError("uniform_temperature must be positive, uniform_weight not negative.")
        if self.contrastive_temperature <= 0:
            raise ValueError(f"contrastive_temperature={self.contrastive_temperature} must be positive.")
