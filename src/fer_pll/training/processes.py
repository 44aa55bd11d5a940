"""Decisions that the main process takes for all processes of a run."""

from collections.abc import Callable
from typing import Any, TypeVar

from accelerate.utils import broadcast_object_list

T = TypeVar("T")


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
