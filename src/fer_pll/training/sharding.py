"""Parameters sharded over the processes: FSDP2 of torch, by way of accelerate. What else shards is refused.

The confidences are never sharded: each process holds the whole table.
"""

import os
import platform
import time
import uuid
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from accelerate.utils import gather_object
from transformers import PreTrainedModel
from transformers.trainer_utils import unwrap_peft_model

from ..io.atomic import UNFINISHED
from .processes import decided_by_main

SHARDED = "SHARDED_STATE_DICT"
"""Type of state dict (`fsdp_state_dict_type`) with which each process writes its own part of a checkpoint."""
_CONFIGURATION = "train_scripts/accelerate/fsdp.yaml"


def refuse_deepspeed(args: Any) -> None:
    """Raise `ValueError` if the launcher's environment or the training arguments ask for DeepSpeed."""
    if args.deepspeed is not None or _is_on("ACCELERATE_USE_DEEPSPEED"):
        raise ValueError(
            "DeepSpeed is refused, ZeRO-2 like its other stages: its engine steps and saves by itself, and nothing "
            "tests that the confidences of a checkpoint then come from the same step as its weights. To shard "
            f"optimizer and parameters, take FSDP2 ({_CONFIGURATION}); --deepspeed is to be left out."
        )


def refuse_fsdp1(args: Any) -> None:
    """Raise `ValueError` if FSDP is asked for in its first version, which is accelerate's default."""
    plugin = args.fsdp_plugin_args
    version = plugin["fsdp_version"] if plugin else os.environ.get("FSDP_VERSION", "1")
    if wants_fsdp(args) and int(version) == 1:
        raise ValueError(
            "FSDP1 is refused: it flattens the parameters, so that the optimizer cannot tell those apart that have no "
            "weight decay or another layer_decay, and transformers is about to remove it. Set fsdp_version: 2, as in "
            f"{_CONFIGURATION}."
        )


def wants_fsdp(args: Any) -> bool:
    """Whether the launcher or the training arguments ask for FSDP."""
    return bool(args.fsdp) or _is_on("ACCELERATE_USE_FSDP")


def _is_on(variable: str) -> bool:
    return os.environ.get(variable, "false").lower() in ("true", "1")


def prepare_sharding(accelerator: Any, model: PreTrainedModel, args: Any) -> None:
    """Tell FSDP which layers of a model it shards one by one; those of a configuration that it has not are left out.

    Warns where FSDP is asked for but off, as without GPUs.

    Raises:
        ValueError: the model has adapters (LoRA).
    """
    plugin = getattr(accelerator.state, "fsdp_plugin", None)
    if plugin is None:
        if wants_fsdp(args) and args.should_log:
            warnings.warn(
                "FSDP is asked for, but accelerate shards over several GPUs only: here each process holds the whole "
                "model.",
                stacklevel=2,
            )
        return
    if unwrap_peft_model(model) is not model:
        raise ValueError("Adapters (LoRA) need the whole model in each process: leave out --lora, or FSDP.")
    inside = {type(module).__name__ for module in model.modules()}
    # accelerate shards the first layer, which is inside FerPllEmbeddings, by itself.
    named = plugin.transformer_cls_names_to_wrap or set(model._no_split_modules or ()) - {"FerPllEmbeddings"}
    plugin.transformer_cls_names_to_wrap = sorted(inside & set(named))


def state_dict_type(accelerator: Any) -> str | None:
    """`FULL_STATE_DICT` or `SHARDED_STATE_DICT`; `None` without FSDP."""
    plugin = getattr(accelerator.state, "fsdp_plugin", None)
    return None if plugin is None else plugin.state_dict_type.name


def check_state_dict_type(checkpoint: str | Path, own: str | None) -> None:
    """Raise `ValueError` if a checkpoint was written with another type of state dict than a run has."""
    folder, written = Path(checkpoint), None
    if (folder / "pytorch_model_fsdp_0").is_dir():
        written = SHARDED
    elif (folder / "pytorch_model_fsdp.bin").is_file():
        written = "FULL_STATE_DICT"
    if written != own:
        before, now = (f"with FSDP and {each}" if each else "without FSDP" for each in (written, own))
        raise ValueError(
            f"{checkpoint} was written {before}, and this run is {now}: go on with the launch configuration that the "
            "run began with, or start another run from the checkpoint's model with --init_from."
        )


def check_shared_folder(args: Any, seconds: float = 5.0) -> None:
    """Check that all processes see the output folder of the main process, where each writes its part. All call it.

    Args:
        args: the training arguments, which know the processes.
        seconds: how long a disk of the network may take to show a file.

    Raises:
        ValueError: some do not; on all of them.
    """
    folder = Path(args.output_dir)
    mark = folder / decided_by_main(args, lambda: _leave_mark(folder))
    end = time.monotonic() + seconds
    while not (seen := mark.is_file()) and time.monotonic() < end:
        time.sleep(0.1)
    without = gather_object([] if seen else [f"process {args.process_index} on {platform.node()}"])
    if args.process_index == 0:
        mark.unlink(missing_ok=True)
    if without:
        raise ValueError(
            f"--output_dir {folder}: {', '.join(without)} cannot see the folder of the main process. With {SHARDED} a "
            "checkpoint is whole in one folder only: use one that all machines share, or FULL_STATE_DICT."
        )


def _leave_mark(folder: Path) -> str:
    folder.mkdir(parents=True, exist_ok=True)
    name = f"{UNFINISHED}{uuid.uuid4().hex}"
    (folder / name).touch()
    return name


@contextmanager
def own_class(model: Any) -> Iterator[None]:
    """Context in which a model that FSDP2 shards has its own class again.

    FSDP2 gives it a class made in torch, and `save_pretrained` would save torch's files as the code of the model.
    """
    from torch.distributed.fsdp import FSDPModule  # not above: the settings import this module, and need none of it

    sharded: Any = type(model)
    if isinstance(model, FSDPModule):
        model.__class__ = next(each for each in sharded.__mro__[1:] if not issubclass(each, FSDPModule))
    try:
        yield
    finally:
        model.__class__ = sharded
