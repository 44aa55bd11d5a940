"""The processes of a run: what the main one decides for all, and what to say when one is gone."""

from collections.abc import Callable
from typing import Any, TypeVar

from accelerate.utils import broadcast_object_list

T = TypeVar("T")

LOST = "another process of the run has ended or does not answer: see its own message"


def is_lost(error: BaseException) -> bool:
    """Whether an exception of PyTorch says that another process cannot be reached."""
    text = str(error).lower()
    return isinstance(error, RuntimeError) and (
        any(word in text for word in ("gloo", "nccl", "process group"))
        or type(error).__module__.startswith("torch.distributed")
        or type(error).__name__ in ("DistBackendError", "DistNetworkError", "DistStoreError")
    )


def decided_by_main(args: Any, decide: Callable[[], T]) -> T:
    """The result of `decide` in the main process, on every process.

    Args:
        args: the training arguments, which know the processes.
        decide: what to do in the main process only.

    Raises:
        ValueError, OSError: `decide` raised it, on every process.
    """
    if args.world_size == 1:
        return decide()
    outcome: list[Any] = [None, None]
    if args.process_index == 0:
        try:
            outcome[0] = decide()
        except (ValueError, OSError) as error:
            outcome[1] = error
    broadcast_object_list(outcome, from_process=0)
    if outcome[1] is not None:
        raise outcome[1]
    return outcome[0]
