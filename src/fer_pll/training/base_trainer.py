"""Base class of the trainers: augmentation and normalization on the device, optimizer groups, and the log."""

import time
import warnings
from collections.abc import Callable, Sequence
from typing import Any

import torch
from datasets import Dataset
from transformers import PreTrainedModel, TrainerCallback, set_seed
from transformers.trainer_utils import IntervalStrategy, TrainOutput, number_of_arguments, unwrap_peft_model

from ..data.collator import PixelCollator
from ..io.stored import describe
from ..model.image_processing_fer_pll import FerPllImageProcessor
from ..model.modeling_fer_pll import FerPllPreTrainedModel
from .arguments import ImageTrainingArguments
from .checkpoint_mixin import CheckpointMixin
from .numbered_rows import NumberedRows
from .param_groups import parameter_groups
from .publishing import PublishingMixin

PRIVATE_METHODS = (
    "_get_dataloader",
    "_get_train_sampler",
    "_hp_search_setup",
    "_load_best_model",
    "_load_callback_state",
    "_load_from_checkpoint",
    "_load_optimizer_and_scheduler",
    "_load_rng_state",
    "_prepare_inputs",
    "_push_from_checkpoint",
    "_save",
    "_save_checkpoint",
    "_save_rng_state",
)
"""Private methods of transformers' Trainer that our trainers override. A release of transformers can break these. A
test compares the list with the code, and with the Trainer that is installed."""

PRIVATE_METHODS_CALLED = ("_finish_current_push", "_get_output_dir")
"""Private methods of Trainer that we call but do not override."""


def check_image_processor(model: PreTrainedModel, image_processor: FerPllImageProcessor) -> None:
    """Raise `ValueError` if an image processor does not make the images that a fer-pll model is configured for.

    Other models are not checked: they do not say what images they take, or complain themselves.
    """
    model = unwrap_peft_model(model)
    if not isinstance(model, FerPllPreTrainedModel):
        return
    for name in ("image_mean", "image_std", "num_channels"):
        of_model, of_processor = getattr(model.config, name), getattr(image_processor, name)
        if name != "num_channels":
            of_model, of_processor = list(of_model), list(of_processor)
        if of_model != of_processor:
            raise ValueError(
                f"{name} is {of_model} in the model's config.json and {of_processor} in preprocessor_config.json: "
                "make them equal. The HOG targets are computed from the de-normalized images."
            )
    size: Any = image_processor.size  # a SizeDict, whatever the class had
    image_size = model.config.image_size
    if (size.height, size.width) != (image_size, image_size):
        raise ValueError(
            f"The model takes {image_size} x {image_size} pixels (config.json), the image processor makes "
            f"{size.height} x {size.width} (preprocessor_config.json): make them equal."
        )


def check_arguments(args: Any, kind: type) -> None:
    """Raise `ValueError` if a trainer's settings are not of its kind, such as transformers' own."""
    if not isinstance(args, kind):
        raise ValueError(
            f"args is a {type(args).__module__}.{type(args).__name__}: give a {kind.__name__} of fer_pll, which has "
            "the settings of transformers' TrainingArguments as well."
        )


def first_model(
    model: PreTrainedModel | None,
    model_init: Callable[..., PreTrainedModel] | None,
    seed: int,
    optimizers: Sequence[object] = (),
) -> PreTrainedModel:
    """The model that a trainer is made with: `model`, or what `model_init` makes.

    Raises:
        ValueError: neither or both are given, or `model_init` with an optimizer of another model's parameters.
    """
    if (model is None) == (model_init is None):
        raise ValueError(f"{'Neither' if model is None else 'Both'} of model and model_init given: give one of them.")
    if model is not None:
        return model
    if any(each is not None for each in optimizers):
        raise ValueError(
            "model_init makes a new model for each training, whose parameters `optimizers` does not have: leave one "
            "of them out, or give optimizer_cls_and_kwargs."
        )
    assert model_init is not None
    set_seed(seed)
    return model_init() if number_of_arguments(model_init) == 0 else model_init(None)


class LossCallback(TrainerCallback):
    """Has the loss logged also where the steps between two logs are more than there are.

    Logs at the end of each epoch that is shorter than `logging_steps`, and after the last step.
    """

    def on_step_end(self, args, state, control, **kwargs) -> None:
        if args.logging_strategy == IntervalStrategy.STEPS and state.global_step >= state.max_steps:
            control.should_log = True

    def on_epoch_end(self, args, state, control, **kwargs) -> None:
        epochs = max(state.epoch or 0.0, 1e-9)
        if args.logging_strategy == IntervalStrategy.STEPS and state.global_step / epochs < state.logging_steps:
            control.should_log = True


def prepare_network(model: PreTrainedModel, args: ImageTrainingArguments) -> None:
    """Set what a network of others needs.

    Such networks may have parameters without a part in the loss, which DDP has to look for: stages above the maps in
    use, the mask token of DINOv2. Convolutions train faster with the channels last in memory, if they follow one
    another; a transformer has a single one. A network of timm has its own switch for gradient checkpointing; of those
    that have none, a warning says so.
    """
    model = unwrap_peft_model(model)
    network: Any = getattr(model.base_model, "backbone", None)
    if network is not None or not isinstance(model, FerPllPreTrainedModel):
        args.ddp_find_unused_parameters = True
        kernels = [parameter for parameter in model.parameters() if parameter.ndim == 4]
        for kernel in kernels if len(kernels) > 1 else ():
            kernel.data = kernel.data.contiguous(memory_format=torch.channels_last)
    if network is None or not args.gradient_checkpointing:
        return
    inside: Any = getattr(network, "_backbone", None)
    if hasattr(inside, "set_grad_checkpointing"):
        inside.set_grad_checkpointing(True)
    elif not network.supports_gradient_checkpointing:
        warnings.warn(
            f"gradient_checkpointing: a {type(network).__name__} keeps all that it computed; only the label queries "
            "compute theirs again.",
            stacklevel=2,
        )


class ImageTrainer(CheckpointMixin, PublishingMixin):
    """A Trainer over data sets with the column `image`.

    A row's number is its place in the data set: the DataLoader adds it under the key `index`. The collator yields
    8-bit pixels; `_prepare_inputs` augments (in training) and normalizes them on the device. Random numbers are keyed
    by (seed, epoch, index). Logs have `images_per_second`: the images that all processes trained on since the last
    log, divided by the time since then.
    """

    processing_class: FerPllImageProcessor
    num_views = 1  # how many times each image is augmented in training
    strong_views = 0  # how many of these, counted from the last, strongly

    def __init__(
        self,
        model: PreTrainedModel | None,
        args: ImageTrainingArguments,
        model_init: Callable[..., PreTrainedModel] | None = None,
        **kwargs: Any,
    ) -> None:
        check_arguments(args, ImageTrainingArguments)
        if kwargs.get("compute_loss_func") is not None:
            raise ValueError(
                "compute_loss_func is refused, because it would never be called: choose a loss by name, or give "
                "FerPllTrainer a `method`, a subclass of Method."
            )
        model = first_model(model, model_init, args.seed, kwargs.get("optimizers", ()))
        image_processor = kwargs["processing_class"]
        check_image_processor(model, image_processor)
        kwargs["data_collator"] = kwargs.get("data_collator") or PixelCollator(image_processor)
        prepare_network(model, args)
        super().__init__(model, args, **kwargs)
        self.model_init = model_init  # type: ignore[assignment]  # Trainer tests it for `None`, against its annotation
        self.add_callback(LossCallback())
        # Our losses are means over the micro-batch, so Trainer must divide them by the accumulation steps.
        self.loss_is_scaled_for_ga = False
        self.augmentation = args.augmentation()
        mean, std = image_processor.image_mean, image_processor.image_std
        self._mean = torch.tensor(mean, device=args.device).view(-1, 1, 1) * 255
        self._std = torch.tensor(std, device=args.device).view(-1, 1, 1) * 255
        self._start_measuring()

    @property
    def current_epoch(self) -> int:
        """Number of the current epoch, from 0. A resumed run counts on."""
        return int(self.state.epoch or 0)

    def _get_dataloader(self, dataset: Any, *args: Any, **kwargs: Any) -> torch.utils.data.DataLoader:
        return super()._get_dataloader(
            NumberedRows(dataset) if isinstance(dataset, Dataset) else dataset, *args, **kwargs
        )

    def _prepare_inputs(self, inputs: dict[str, Any]) -> dict[str, Any]:
        inputs = super()._prepare_inputs(inputs)
        pixels = inputs["pixel_values"]
        epoch = inputs.pop("epoch", self.current_epoch)  # a stream knows each image's pass over the data
        if self.model.training:
            weak = self.num_views - self.strong_views
            views = (
                (self.augmentation if view < weak else self.augmentation.stronger())(
                    pixels, inputs["index"], epoch, view
                )
                for view in range(self.num_views)
            )
            pixels = torch.cat(list(views))  # (V * B, C, H, W), all images of a view together
        inputs["pixel_values"] = (pixels.float() - self._mean) / self._std
        return inputs

    def create_optimizer(self, model: PreTrainedModel | None = None) -> torch.optim.Optimizer:
        # Trainer makes two groups; layer-wise learning rates need one for each depth.
        if self.optimizer is None:
            model = model or self.model
            if self.optimizer_cls_and_kwargs is None:
                optimizer_class, options = self.get_optimizer_cls_and_kwargs(self.args, model)
            else:
                optimizer_class, options = self.optimizer_cls_and_kwargs
            own = [name for name in ("params", "model", "optimizer_dict") if name in options]
            if own or not isinstance(optimizer_class, type):
                raise ValueError(
                    f"optim={self.args.optim} makes parameter groups of its own, which layer_decay and the rule that "
                    "some parameters do not decay cannot join: choose another optimizer."
                )
            groups = parameter_groups(
                model,
                options.get("lr", self.args.learning_rate),
                options.get("weight_decay", self.args.weight_decay),
                self.args.layer_decay,
            )
            self.optimizer = optimizer_class(groups, **options)
        return self.optimizer

    def check_optimizer(self) -> None:
        """Raise a `ValueError` where optimizer or schedule cannot be made, before the training begins."""
        if self.is_fsdp_enabled:  # they are made of the sharded model
            return
        try:
            self.create_optimizer_and_scheduler(num_training_steps=1)
        except (ImportError, LookupError, TypeError, ValueError) as error:
            settings = ("optim", "optim_args", "lr_scheduler_type", "lr_scheduler_kwargs")
            given = ", ".join(f"{name}={getattr(self.args, name)}" for name in settings if getattr(self.args, name))
            raise ValueError(f"There is no such optimizer or schedule ({given}): {describe(error)}") from error
        self.optimizer = self.lr_scheduler = None
        self._created_lr_scheduler = False

    def _hp_search_setup(self, trial: Any) -> None:
        super()._hp_search_setup(trial)  # gives `args` the values of the trial
        self.augmentation = self.args.augmentation()

    def _start_measuring(self) -> None:
        """Restart the measurement of `images_per_second`."""
        self._images_since, self._last_log = 0, time.perf_counter()

    def train(self, *args: Any, **kwargs: Any) -> TrainOutput:
        self._start_measuring()
        return super().train(*args, **kwargs)

    def training_step(self, model: torch.nn.Module, inputs: dict[str, Any], *args: Any, **kwargs: Any) -> torch.Tensor:
        loss = super().training_step(model, inputs, *args, **kwargs)
        self._images_since += len(inputs["index"])
        return loss

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        if "loss" in logs:  # a training log, not an evaluation
            seconds = time.perf_counter() - self._last_log
            logs["images_per_second"] = round(self._images_since * self.args.world_size / seconds, 1)
            self._start_measuring()
        super().log(logs, start_time)
