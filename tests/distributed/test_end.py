"""How a process of several ends: its threads of communication may still be at work."""

import subprocess
import sys

import pytest

CODE = """
import sys
import torch
from torch.distributed.device_mesh import init_device_mesh
import fer_pll_cli

def main(argv):
    rank, file = argv
    torch.distributed.init_process_group("gloo", init_method=f"file://{file}", rank=int(rank), world_size=2)
    main.mesh = init_device_mesh("cpu", (2,))  # it keeps its group when torch.distributed gives its groups up
    for _ in range(3000):
        torch.distributed.all_reduce(torch.ones(1000), group=main.mesh.get_group(), async_op=True)
    print("done")
    return STATUS

fer_pll_cli.run(main, sys.argv[1:])
"""


@pytest.mark.parametrize("status", [0, 75])
def test_a_process_ends_with_its_status_while_its_threads_free_tensors(tmp_path, status):
    command = [sys.executable, "-c", CODE.replace("STATUS", str(status))]
    running = [
        subprocess.Popen(
            [*command, str(rank), str(tmp_path / "store")], stdout=subprocess.PIPE, stderr=subprocess.PIPE
        )
        for rank in (0, 1)
    ]
    ends = [process.communicate(timeout=300) for process in running]
    assert [process.returncode for process in running] == [status, status], ends
    assert [printed for printed, _ in ends] == [b"done\n"] * 2
