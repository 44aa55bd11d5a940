"""Runs a Python file or module whose processes accelerate takes for GPUs, so that it shards on the CPU (gloo).

accelerate turns FSDP on for GPUs only. Nothing else differs from GPUs for our code; the collectives are real.

python sharded_on_cpu.py FILE.py ARGUMENTS, or: python sharded_on_cpu.py MODULE ARGUMENTS
"""

import runpy
import sys

import torch
from accelerate.state import PartialState
from accelerate.utils import DistributedType


def take_for_gpus() -> None:
    torch.distributed.init_process_group("gloo")
    PartialState._prepare_backend = lambda self, *args: ("gloo", DistributedType.MULTI_GPU)

    def set_device(self: PartialState) -> None:
        self.device = torch.device("cpu")

    PartialState.set_device = set_device


if __name__ == "__main__":
    take_for_gpus()
    del sys.argv[0]
    name = sys.argv[0]
    if name.endswith(".py"):
        runpy.run_path(name, run_name="__main__")
    else:
        runpy.run_module(name, run_name="__main__", alter_sys=True)
