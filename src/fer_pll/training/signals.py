"""Signals that end a run: it stops after the step that it is at, and saves where it is."""

import os
import signal
import threading
import time
from types import FrameType
from typing import Any, Self

from ..io.terminal import say

STATUS_TO_REQUEUE = 75
"""Exit status of a run that a signal of the scheduler stopped: EX_TEMPFAIL of sysexits.h, "try again later"."""


PASSED_ON = 10.0
"""Seconds in which torchrun passes on a signal that Slurm or a terminal has sent to its processes as well."""


class RunInterrupted(KeyboardInterrupt):
    """A signal has stopped the run. The message says where, and how it goes on.

    Attributes:
        status: the exit status of the command: 130 after Ctrl-C, else `STATUS_TO_REQUEUE`.
    """

    def __init__(self, message: str, number: int) -> None:
        super().__init__(message)
        self.status = 130 if number == signal.SIGINT else STATUS_TO_REQUEUE


class StopSignals:
    """Context in which the first SIGTERM, SIGUSR1 or SIGINT only sets `received`. A second one ends the process.

    Slurm sends SIGTERM before it ends a job, and with `sbatch --signal=USR1@120` SIGUSR1 two minutes earlier. Child
    processes, such as DataLoader workers, end at SIGTERM and SIGUSR1 as usual. Under torchrun, which passes on what it
    gets, more signals within `PASSED_ON` seconds are the same one; it ends its processes itself after half a minute.
    Outside of the main thread the context does nothing, because Python cannot handle signals there.

    Attributes:
        received: the number of the signal, or 0.
    """

    NUMBERS = tuple(getattr(signal, name) for name in ("SIGTERM", "SIGUSR1", "SIGINT") if hasattr(signal, name))

    def __init__(self) -> None:
        self.received = 0
        self._first = 0.0  # when the first came
        self._process = os.getpid()
        self._before: dict[int, Any] = {}

    def __enter__(self) -> Self:
        if threading.current_thread() is threading.main_thread():
            self._before = {number: signal.signal(number, self._receive) for number in self.NUMBERS}
        return self

    def __exit__(self, *exception: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _receive(self, number: int, frame: FrameType | None) -> None:
        if os.getpid() != self._process:  # a worker process, which has inherited this handler
            if number != signal.SIGINT:  # Ctrl-C reaches the whole group; the run itself ends its workers
                self._end(number)
            return
        if self.received:
            passed_on = "TORCHELASTIC_RUN_ID" in os.environ and time.monotonic() - self._first < PASSED_ON
            if not passed_on:
                self._end(number)
            return
        self.received, self._first = number, time.monotonic()
        name = signal.Signals(number).name
        say(f"{name}: the run saves and stops after this step; a second signal ends it at once.", to_stderr=True)

    def _end(self, number: int) -> None:
        """Do what the signal does by default."""
        signal.signal(number, signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL)
        os.kill(os.getpid(), number)
