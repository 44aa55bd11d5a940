"""Settings of pre-training and fine-tuning. Every field is a command-line option and a key of the YAML files."""

import warnings
from argparse import SUPPRESS
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from typing import Annotated, Any, ClassVar, Literal, Self, TypeVar, get_args, get_origin, get_type_hints

import torch
from transformers import TrainingArguments
from transformers.trainer_utils import HubStrategy

from ..data.augmentation import BatchAugmentation
from ..hub.card_settings import CardMark, OnCard, card_settings
from ..io.ranges import check_range, check_ranges
from ..labels.renamed import current_name
from ..labels.revision import MOMENTUM, REVISION_RULES, THRESHOLD
from .methods import METHODS
from .sharding import refuse_deepspeed, refuse_fsdp1

T = TypeVar("T")


@dataclass
class ImageTrainingArguments(TrainingArguments):
    """Settings that both share: augmentation, layer-wise learning rates, and defaults that keep our columns."""

    CARD_SETTINGS_OF_TRAINER: ClassVar[tuple[str, ...]] = (
        "num_train_epochs",
        "max_steps",
        "per_device_train_batch_size",
        "gradient_accumulation_steps",
        "learning_rate",
        "lr_scheduler_type",
        "warmup_steps",
        "weight_decay",
        "adam_beta1",
        "adam_beta2",
        "seed",
    )
    """The settings of transformers that the card shows. Ours are marked `OnCard`."""

    crop_scale: OnCard[float] = field(
        default=1.0, metadata={"help": "Smallest share of the area that a random crop keeps; 1 switches crops off."}
    )
    crop_scale_max: OnCard[float] = field(
        default=1.0,
        metadata={"help": "Largest area of a random crop, at least 1; where the image ends, its border goes on."},
    )
    crop_ratio: OnCard[float] = field(default=1.0, metadata={"help": "Largest width / height of a random crop."})
    shift: OnCard[float] = field(
        default=0.0, metadata={"help": "Largest random shift, as a share of the image's width and height."}
    )
    rotation: OnCard[float] = field(default=0.0, metadata={"help": "Largest random rotation, in degrees either way."})
    flip: OnCard[bool] = field(default=True, metadata={"help": "Mirror half of the images."})
    light: OnCard[float] = field(default=0.0, metadata={"help": "Largest random change of contrast and brightness."})
    jpeg: OnCard[float] = field(
        default=0.0,
        metadata={"help": "Share of the images that are compressed as by JPEG, with a quality of 30 to 95."},
    )
    erase: OnCard[float] = field(default=0.0, metadata={"help": "Share of the images that lose a random rectangle."})
    layer_decay: OnCard[float] = field(
        default=1.0,
        metadata={
            "help": "Factor on the learning rate for each block of the encoder, or stage of another backbone, towards "
            "the input."
        },
    )
    remove_unused_columns: bool = field(
        default=False, metadata={"help": "Must stay false: the trainer needs `image` and `candidates`."}
    )
    ddp_find_unused_parameters: bool | None = field(
        default=False, metadata={"help": "Not needed: it is switched on for the networks that need it."}
    )
    lr_scheduler_type: str = field(default="cosine", metadata={"help": "Learning rate schedule, after the warm-up."})
    report_to: None | str | list[str] = field(  # noqa: RUF036  # HfArgumentParser fails on another order
        default="none", metadata={"help": "Where to report metrics besides the console, e.g. tensorboard."}
    )
    logging_nan_inf_filter: bool = field(
        default=False, metadata={"help": "Not needed: a loss that is not finite ends the run."}
    )
    overwrite: bool = field(
        default=False, metadata={"help": "Replace the run in the output folder. Without it, files there are an error."}
    )

    def __post_init__(self) -> None:
        refuse_deepspeed(self)  # first: transformers would ask for the package
        # transformers refuses half precision on a CPU unless the CPU is asked for.
        self.use_cpu = self.use_cpu or not torch.accelerator.is_available()
        super().__post_init__()
        refuse_fsdp1(self)
        if self.bf16 and self.use_cpu and torch.backends.cpu.get_cpu_capability() == "AVX2":
            warnings.warn(
                "bf16 on this CPU, which has no instructions for it, can take fifty times as long as float32. "
                "Switch it off with --bf16 false.",
                stacklevel=2,
            )
        if self.label_smoothing_factor:
            raise ValueError(
                f"label_smoothing_factor={self.label_smoothing_factor} has no effect here, so it is refused: the "
                "losses have targets of their own. Leave it at 0."
            )
        if self.remove_unused_columns:
            raise ValueError("remove_unused_columns must stay false: the trainer needs `image` and `candidates`.")
        if self.enable_jit_checkpoint:
            raise ValueError(
                "enable_jit_checkpoint is refused: it saves in the middle of a step, when the confidences are ahead "
                "of the weights. Without it, SIGTERM, SIGUSR1 and Ctrl-C save after the step."
            )
        if self.hub_token == "<HUB_TOKEN>":  # as `to_dict` hides one, or None
            self.hub_token = None
        if self.hub_token is not None:
            raise ValueError(
                "hub_token is refused: it would be written in clear text into training_args.bin, which is pushed. "
                "Set the environment variable HF_TOKEN instead."
            )
        self._check_numbers()
        for name, hint in get_type_hints(type(self)).items():
            literal = next((each for each in (hint, *get_args(hint)) if get_origin(each) is Literal), None)
            given = getattr(self, name)
            if literal is not None and not (given is None and literal is not hint):  # None, where it may be None
                _check_choice(name, given, get_args(literal))

    def _check_numbers(self) -> None:
        """The ranges of our numbers, and of transformers' where a bad one would fail late, do nothing or do harm."""
        for each in fields(TrainingArguments):
            value = getattr(self, each.name)
            if isinstance(value, float):
                check_range(each.name, value, "(-inf, inf)")
        check_ranges(
            self,
            crop_scale="(0, 1]",
            crop_scale_max="[1, inf)",
            crop_ratio="[1, inf)",
            shift="[0, 1]",
            rotation="[0, 180]",
            light="[0, 1]",
            jpeg="[0, 1]",
            erase="[0, 1]",
            layer_decay="(0, 1]",
            learning_rate="[0, inf)",
            weight_decay="[0, inf)",
            max_grad_norm="[0, inf)",
            adam_beta1="[0, 1)",
            adam_beta2="[0, 1)",
            adam_epsilon="(0, inf)",
            warmup_steps="[0, inf)",
            per_device_train_batch_size="[1, inf)",
            per_device_eval_batch_size="[1, inf)",
            gradient_accumulation_steps="[1, inf)",
            dataloader_num_workers="[0, inf)",
            seed="[0, 4294967295]",
            data_seed="[0, 4294967295]",
        )
        if self.max_steps != -1:
            check_range("max_steps", self.max_steps, "[1, inf)")
        else:
            check_range("num_train_epochs", self.num_train_epochs, "(0, inf)")

    def card_settings(self) -> dict[str, Any]:
        """The settings that the card shows, see `hub.card_settings`."""
        settings = self.to_dict()
        shown = {name: settings[name] for name in self.CARD_SETTINGS_OF_TRAINER}
        del shown["num_train_epochs" if self.max_steps > 0 else "max_steps"]
        return shown | card_settings(self)

    def augmentation(self) -> BatchAugmentation:
        """The random changes to a training batch, keyed by `seed`."""
        return BatchAugmentation(
            seed=self.seed,
            crop_scale=self.crop_scale,
            crop_scale_max=self.crop_scale_max,
            crop_ratio=self.crop_ratio,
            shift=self.shift,
            rotation=self.rotation,
            flip=self.flip,
            light=self.light,
            jpeg=self.jpeg,
            erase=self.erase,
        )


def _escape(text: str) -> str:
    return text.replace("%", "%%")  # argparse formats help texts


def _check_choice(name: str, value: Any, choices: tuple[str, ...]) -> None:
    if value not in choices:
        raise ValueError(f"{name}={value!r}: choose one of {', '.join(choices)}.")


_OfMoco = Annotated[T, CardMark(only_with=("objective", "moco"))]


@dataclass
class FerPllPreTrainingArguments(ImageTrainingArguments):
    """Settings of masked-image pre-training (paper, sections 3.2 and 4.2)."""

    objective: OnCard[Literal["masked", "moco"]] = field(
        default="masked",
        metadata={
            "help": "masked: predict hidden patches; the model config says what and how (HOG, MaskFeat, MAE, SimMIM). "
            "moco: tell two views of an image from the views of others."
        },
    )
    mask_ratio: OnCard[float | None] = field(
        default=None, metadata={"help": "Share of the patches to hide; overrides the model config."}
    )
    shuffle_buffer: int = field(
        default=4096,
        metadata={
            "help": "Streams: how many images are shuffled together. Every DataLoader worker of every process holds "
            "about this many encoded images (4096 of 30 kB are 120 MB). Each pass has a new order of the shards."
        },
    )
    on_bad_data: Literal["skip", "stop"] = field(
        default="skip",
        metadata={
            "help": "Streams: what to do about a shard that is missing or damaged, or an image that cannot be read. "
            "skip: leave it out and list it, with the reason, in unreadable.csv in the output folder. stop: end the "
            "run before the batch that lacks it."
        },
    )
    picture_steps: int | None = field(
        default=None,
        metadata={
            "help": "Draw the predictions for six images every so many steps, into pictures/ in the output folder; 0: "
            "never. Default: with each checkpoint, but not more often than every 50 steps, and at the end."
        },
    )
    contrastive_temperature: _OfMoco[float] = field(default=0.07, metadata={"help": "Temperature of the moco loss."})
    queue_size: _OfMoco[int] = field(default=65536, metadata={"help": "How many earlier images moco compares with."})
    encoder_momentum: _OfMoco[float] = field(
        default=0.999,
        metadata={"help": "Momentum of the key encoder of moco: the share that it keeps at each batch."},
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        check_ranges(
            self,
            contrastive_temperature="(0, inf)",
            encoder_momentum="[0, 1)",
            queue_size="[1, inf)",
            shuffle_buffer="[1, inf)",
        )
        if self.picture_steps is not None and self.picture_steps < 0:
            raise ValueError(f"picture_steps={self.picture_steps} must be positive, or 0 for no images.")
        if self.objective == "moco" and self.push_to_hub and self.hub_strategy != "end":
            strategy = HubStrategy(self.hub_strategy).value
            raise ValueError(f"hub_strategy={strategy!r}: with moco only the finished encoder is pushed; use end.")


@dataclass
class FerPllTrainingArguments(ImageTrainingArguments):
    """Settings of training with candidate sets (paper, sections 3.1, 3.3 and 4.2)."""

    loss: OnCard[str] = field(
        default="pll",
        metadata={
            "help": "What is minimized. "
            + _escape("; ".join(f"{name}: {method.summary}" for name, method in METHODS.items()))
            + "."
        },
    )
    method_settings: dict[str, Any] = field(default_factory=dict, metadata={"help": SUPPRESS})
    """The loss's own settings (`Method.Settings`). Each is an option of the command line."""
    confidence_init: OnCard[Literal["uniform", "votes", "column"] | None] = field(
        default=None,
        metadata={
            "help": "Confidences at the start. uniform: equal over the candidates; votes: the shares of the votes on "
            "the candidates; column: the column `confidence`, as an earlier run left it. Default: votes, if the data "
            "have votes; else column, if they have that; else uniform.",
        },
    )
    votes_temperature: OnCard[float] = field(
        default=1.0,
        metadata={
            "help": "With confidence_init votes: the shares of the votes are raised to 1 / votes_temperature and "
            "divided by their sum. Below 1 they lean to the label with most votes; 0.5 squares them."
        },
    )
    revision: OnCard[str | None] = field(
        default=None,
        metadata={
            "help": "How confidences are revised. "
            + _escape("; ".join(f"{name}: {rule.summary}" for name, rule in REVISION_RULES.items()))
            + ". Default: the rule that belongs to the loss, "
            + ", ".join(f"{method.find_rule().name} with {name}" for name, method in METHODS.items())
            + "."
        },
    )
    revision_threshold: OnCard[float] = field(default=THRESHOLD.default, metadata={"help": THRESHOLD.help})
    revision_warmup: OnCard[float | None] = field(
        default=None,
        metadata={"help": "Share of the training before the first revision; 0.5 is its first half. Default: 0."},
    )
    revision_warmup_epochs: OnCard[float | None] = field(
        default=None,
        metadata={
            "help": "Instead of revision_warmup: epochs before the first revision. Settings of earlier versions have "
            "it."
        },
    )
    revision_momentum: OnCard[float] = field(default=MOMENTUM.default, metadata={"help": MOMENTUM.help})
    reversible: OnCard[bool] = field(
        default=False,
        metadata={"help": "Revise from the initial candidates at each visit; no decision is final."},
    )
    class_balance: OnCard[Literal["none", "sampler", "logit_adjustment"]] = field(
        default="none",
        metadata={
            "help": "Help for rare classes. sampler: draw each class equally often, by the first confidences; "
            "logit_adjustment: add the log of the class shares to the logits in training."
        },
    )
    sampler_power: OnCard[float] = field(
        default=1.0,
        metadata={
            "help": "With class_balance sampler: rows are drawn by 1 / (share of their class)^sampler_power. "
            "1: each class equally often; 0.5: by the square roots of the shares."
        },
    )
    sampler_after: OnCard[float] = field(
        default=0.0,
        metadata={
            "help": "With class_balance sampler: share of the training after which it draws; before, each row comes "
            "once an epoch (deferred re-sampling)."
        },
    )
    uniform_weight: OnCard[float] = field(
        default=1.0,
        metadata={"help": "Weight of the uniformity loss on the label queries (Eq. 3); 0 switches it off."},
    )
    uniform_temperature: OnCard[float] = field(default=0.1, metadata={"help": "Temperature of the uniformity loss."})
    uniform_literal: bool = field(
        default=False,
        metadata={"help": "Eq. 3 as printed. Its gradient vanishes at the paper's temperatures; for Table 8."},
    )
    drop_path_rate: OnCard[float | None] = field(
        default=None, metadata={"help": "Stochastic depth of the last encoder block; overrides the model config."}
    )
    average_decay: OnCard[float] = field(
        default=0.0,
        metadata={
            "help": "Evaluate and save the exponential moving average of the weights: the share that it keeps in each "
            "step, e.g. 0.998; 0 switches it off."
        },
    )
    freeze_backbone: OnCard[bool] = field(
        default=False,
        metadata={"help": "Train only what turns features into classes; the encoder or backbone stays as it is."},
    )
    unfreeze_after: OnCard[float | None] = field(
        default=None,
        metadata={
            "help": "Epochs in which the encoder or backbone is frozen, before all is trained; 0.5 is half one."
        },
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        self.revision_is_chosen = self.revision is not None
        self.take_method()
        for setting in (THRESHOLD, MOMENTUM):
            setting.check(getattr(self, setting.name))
        self._check_warmup()
        check_ranges(
            self,
            unfreeze_after="(0, inf)",
            uniform_temperature="(0, inf)",
            uniform_weight="[0, inf)",
            votes_temperature="(0, inf)",
            drop_path_rate="[0, 1)",
            sampler_power="[0, 1]",
            average_decay="[0, 1)",
            revision_warmup_epochs="[0, inf)",
        )
        # `FerPllTrainer` knows which rows fill up a batch where each process reads its own part of the rows.
        for name, usual in (("split_batches", False), ("dispatch_batches", False), ("even_batches", True)):
            given = getattr(self.accelerator_config, name)
            if given not in (None, usual):
                raise ValueError(
                    f"accelerator_config: {name}={given} is refused, because each row must count once in an epoch: "
                    "leave it out."
                )
        if self.votes_temperature != 1 and self.confidence_init not in (None, "votes"):
            raise ValueError(
                f"votes_temperature={self.votes_temperature} has no effect with "
                f"confidence_init={self.confidence_init}."
            )
        if not 0 <= self.sampler_after <= 1:
            raise ValueError(f"sampler_after={self.sampler_after} is a share of the training: it must lie in [0, 1].")
        if self.class_balance == "sampler" and self.train_sampling_strategy != "random":
            raise ValueError(
                f"train_sampling_strategy={self.train_sampling_strategy} has no effect with class_balance=sampler."
            )
        for name, default in (("sampler_power", 1), ("sampler_after", 0)):
            if getattr(self, name) != default and self.class_balance != "sampler":
                raise ValueError(f"{name}={getattr(self, name)} has no effect without class_balance=sampler.")

    def take_method(self, of_another: bool = False) -> None:
        """Fill in what follows from `loss`: its rule, if no other was chosen, and the method's own settings.

        Args:
            of_another: `method_settings` may be those of another loss; what this one does not know is dropped.

        Raises:
            ValueError: there is no such loss or setting, or the rule does not go with it.
        """
        self.loss = current_name("loss", self.loss)
        _check_choice("loss", self.loss, tuple(METHODS))
        method = METHODS[self.loss]
        if of_another:
            names = {each.name for each in fields(method.Settings)}
            self.method_settings = {name: value for name, value in self.method_settings.items() if name in names}
        rule = current_name("revision", self.revision) if self.revision_is_chosen else None
        self.revision = method.find_rule(rule).name
        self.method_settings = asdict(method.make_settings(self.method_settings))

    def _check_warmup(self) -> None:
        """The warm-up is a share of the training or, `revision_warmup_epochs`, in epochs. The other is `None`."""
        share, epochs = self.revision_warmup, self.revision_warmup_epochs
        if share is not None and epochs is not None:
            raise ValueError(
                f"revision_warmup={share} and revision_warmup_epochs={epochs} are two ways to set the same: give one."
            )
        if epochs is None:
            self.revision_warmup = share = share or 0.0
        if share is not None and not 0 <= share <= 1:
            raise ValueError(f"revision_warmup={share} is a share of the training: it must lie in [0, 1].")

    @classmethod
    def from_settings(cls, settings: Mapping[str, Any], **changes: Any) -> Self:
        """Settings from the `to_dict()` that a run wrote, also with the version before. `changes` override it.

        Raises:
            TypeError: a setting does not exist.
            ValueError: a setting is out of its range.
        """
        settings = {name: value for name, value in settings.items() if not name.endswith("_token")}
        loss = METHODS.get(current_name("loss", settings.get("loss")))
        if loss is not None and settings.get("revision") == loss.find_rule().name:
            del settings["revision"]  # it followed from the loss, which `changes` may replace
        if changes.get("loss") not in (None, settings.get("loss")):
            settings.pop("method_settings", None)
        # In the version before, all losses had this setting of PiCO.
        temperature = settings.pop("contrastive_temperature", None)
        if temperature is not None and settings.get("loss") == "pico":
            settings["method_settings"] = {"contrastive_temperature": temperature}
        return cls(**settings | changes)
