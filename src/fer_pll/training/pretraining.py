"""Pre-training of the encoder on images alone (paper, section 3.2)."""

from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from transformers import PreTrainedModel
from transformers.trainer_utils import EvalLoopOutput, SaveStrategy

from ..data.dataset import is_prepared, load_dataset, load_images
from ..data.streaming.stream import ImageStream
from ..io.shipped import DEFAULT_CONFIG
from ..io.terminal import say
from ..model.configuration_fer_pll import FerPllConfig
from ..model.modeling_fer_pll import FerPllForPreTraining, FerPllPreTrainedModel
from .arguments import FerPllPreTrainingArguments
from .base_trainer import check_arguments
from .callbacks import NUM_IMAGES, PreTrainingMonitor
from .checkpoints import saving_model
from .config import load_config
from .finetuning import packaged_start
from .initialization import initialize
from .linear_probe import LinearProbe
from .moco import FerPllForMomentumContrast
from .stream_trainer import StreamTrainer


def pretraining_model(config: FerPllConfig, args: FerPllPreTrainingArguments) -> FerPllPreTrainedModel:
    """The model that `args.objective` trains, with random weights."""
    if args.objective == "moco":
        return FerPllForMomentumContrast(config, args.queue_size, args.contrastive_temperature, args.encoder_momentum)
    return FerPllForPreTraining(config)


@dataclass
class PreTrainingOptions:
    """Options of `fer-pll pretrain` for data and model, beside the training arguments."""

    data: list[str] = field(
        metadata={
            "action": "extend",
            "help": "What to train on: one or several sources, joined to one set, each with its split `train`. "
            "Folders written by fer-pll prepare; or, read as a stream: folders with Parquet files, tar files "
            "(WebDataset) or images at any depth; patterns of such files, local or at an address ('shards/*.parquet', "
            "'https://host/faces-{000..127}.tar', 'hf://datasets/user/name/*.tar'); names of data sets on the Hub.",
        }
    )
    config: str = field(
        default=DEFAULT_CONFIG,
        metadata={
            "help": "Sizes of the model and settings of the training: a name in hub_configs, or a folder with "
            "config.json and pretrain.yaml."
        },
    )
    streaming: bool = field(
        default=False,
        metadata={
            "help": "Read folders written by fer-pll prepare as a stream too. A stream counts steps, not epochs: give "
            "--max_steps and --save_steps. It should have at least as many shards as processes times "
            "--dataloader_num_workers. See also --shuffle_buffer and --on_bad_data."
        },
    )
    init_from: str | None = field(
        default=None,
        metadata={
            "help": "Weights to start from: folder or Hub name of a checkpoint of ours, ViT (such as DINO) or ViTMAE; "
            "fer-pll-tiny-vit-ferplus is in the package; none: random weights. Default: what the config says, "
            "else random weights."
        },
    )
    probe: str | None = field(
        default=None,
        metadata={
            "help": "Folder written by fer-pll prepare, with labels. With each checkpoint, a linear classifier is "
            "trained and tested on the features of at most 3,000 images of `train`, to see whether the features get "
            "better. Logged as probe_accuracy."
        },
    )
    attn_implementation: str = field(
        default="sdpa",
        metadata={"help": "sdpa, eager or flash_attention_2. On a CPU, eager is faster for few tokens in bf16."},
    )

    def make_trainer(self, args: FerPllPreTrainingArguments) -> "FerPllPreTrainer":
        """A trainer of a new model, with random weights or those of `init_from`.

        A stream has no epochs: with one, `args.save_strategy` "epoch" becomes "steps".

        Raises:
            ValueError: data, configuration or settings cannot be used.
        """
        if self.streaming or not all(is_prepared(source) for source in self.data):
            train_dataset = ImageStream(self.data, args.shuffle_buffer, args.seed, args.process_index, args.world_size)
            if args.save_strategy == "epoch":
                args.save_strategy = SaveStrategy.STEPS
        else:
            train_dataset = load_images(self.data)
        config, image_processor = load_config(self.config, mask_ratio=args.mask_ratio)
        model, initialization = initialize(partial(pretraining_model, args=args), config, self.init_from)
        if isinstance(model, FerPllForMomentumContrast):
            model.start_alike()
        if initialization is not None and args.should_log:
            say(initialization)
        model.set_attn_implementation(self.attn_implementation)
        probe = None
        if self.probe is not None:
            probe = LinearProbe(load_dataset(self.probe, "train"), image_processor)
        trainer = FerPllPreTrainer(
            model, args, processing_class=image_processor, train_dataset=train_dataset, probe=probe
        )
        trainer.data_settings = packaged_start(self.init_from)
        return trainer


class FerPllPreTrainer(StreamTrainer):
    """Pre-trains an encoder on the images of prepared data sets or of a stream; it never reads labels.

    Args:
        model: a `FerPllForPreTraining` or `FerPllForMomentumContrast`, see `pretraining_model`.
        args: settings.
        processing_class: the checkpoint's image processor.
        train_dataset: rows with `image`, or an `ImageStream`.
        probe: measures the features, see `PreTrainingMonitor`.
        eval_dataset: rows with `image`; their loss is `eval_loss`, with the same hidden patches at each evaluation.

    Raises:
        ValueError: the objective is moco, and there is an evaluation set, a sharded model, or the like.
    """

    args: FerPllPreTrainingArguments

    def __init__(
        self,
        model: FerPllPreTrainedModel,
        args: FerPllPreTrainingArguments,
        probe: LinearProbe | None = None,
        **kwargs: Any,
    ) -> None:
        check_arguments(args, FerPllPreTrainingArguments)
        if args.objective == "moco" and kwargs.get("eval_dataset") is not None:
            raise ValueError("eval_dataset: moco has no loss to evaluate by, its queue is that of the training.")
        self.num_views = 2 if args.objective == "moco" else 1
        super().__init__(model, args, **kwargs)
        whole = not self.is_fsdp_enabled
        if not whole and (probe is not None or args.picture_steps):
            raise ValueError("--probe and --picture_steps need the whole model on one process, so not FSDP.")
        if not whole and args.objective == "moco":
            raise ValueError("--objective moco needs the whole model in each process: train it without FSDP.")
        draws = whole and args.objective == "masked"
        self.monitor = PreTrainingMonitor(self, args.picture_steps if draws else 0, probe)
        self.add_callback(self.monitor)

    def _save_checkpoint(self, model: torch.nn.Module, trial: Any) -> None:
        if self.args.should_save:
            self.monitor.look()  # first, so that the saved log has the probe
        super()._save_checkpoint(model, trial)

    @property
    def published_model(self) -> PreTrainedModel:
        model = super().published_model
        return model.fer_pll if isinstance(model, FerPllForMomentumContrast) else model

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        # Key encoder and queue are for resuming; only the encoder is published.
        if output_dir is None and self.args.objective == "moco":
            if self.args.should_save:
                with saving_model(self.run_folder.path):
                    self.published_model.save_pretrained(self.run_folder.path)
                    self.processing_class.save_pretrained(self.run_folder.path)
            if self.args.push_to_hub and not _internal_call:
                self.push_to_hub(commit_message="Model save")
        else:
            super().save_model(output_dir, _internal_call)

    def compute_loss(
        self,
        model: torch.nn.Module,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: torch.Tensor | int | None = None,
    ) -> torch.Tensor | tuple[torch.Tensor, Any]:
        if self.monitor.images is None:
            self.monitor.images = inputs["pixel_values"][:NUM_IMAGES]
        outputs = model(pixel_values=inputs["pixel_values"])
        return (outputs.loss, outputs) if return_outputs else outputs.loss

    def prediction_step(
        self, model: torch.nn.Module, inputs: dict[str, Any], *args: Any, **kwargs: Any
    ) -> tuple[torch.Tensor, None, None]:
        with torch.no_grad(), self.compute_loss_context_manager():
            loss: Any = self.compute_loss(model, self._prepare_inputs(inputs))
        return loss.detach(), None, None

    def evaluation_loop(self, *args: Any, **kwargs: Any) -> EvalLoopOutput:
        # The same masks each time, so that losses compare; the training draws as if there were no evaluation.
        with torch.random.fork_rng([self.args.device] if self.args.device.type == "cuda" else []):
            torch.manual_seed(self.args.seed)
            return super().evaluation_loop(*args, **kwargs)
