"""Two machines, as network namespaces joined by a cable, with real launchers: trained, one killed, and gone on."""

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from fer_pll.training.checkpoints import last_checkpoint
from tiny import write_training

pytestmark = [pytest.mark.long, pytest.mark.timeout(3600)]

CONFIGURATION = Path(__file__).parents[2] / "train_scripts" / "accelerate" / "two_machines.yaml"
ADDRESSES = ["10.213.57.1", "10.213.57.2"]  # seen inside of the namespaces only
SETTINGS = """\
num_train_epochs: 30
per_device_train_batch_size: 8
learning_rate: 3.0e-3
save_strategy: steps
save_steps: 15
save_total_limit: 2
revision: soft
logging_steps: 30
"""


def ip(*arguments: str) -> None:
    done = subprocess.run(["ip", *arguments], capture_output=True, text=True)
    if done.returncode:
        raise OSError(f"ip {' '.join(arguments)}: {done.stderr.strip()}")


@pytest.fixture(scope="module")
def machines() -> Iterator[list[str]]:
    """Names of two network namespaces that reach each other, and nothing else."""
    if not sys.platform.startswith("linux") or os.geteuid() != 0:
        pytest.skip("network namespaces need Linux and root")
    if shutil.which("ip") is None:
        pytest.skip("network namespaces need the program ip (Debian: apt-get install iproute2)")
    names = [f"fer-pll-{os.getpid()}-{number}" for number in (0, 1)]
    cable = [f"fp{os.getpid()}-{number}" for number in (0, 1)]  # 15 characters at most
    try:
        try:
            for name in names:
                ip("netns", "add", name)
            ip("link", "add", cable[0], "netns", names[0], "type", "veth", "peer", "name", cable[1], "netns", names[1])
            for name, end, address in zip(names, cable, ADDRESSES, strict=True):
                ip("-n", name, "address", "add", f"{address}/24", "dev", end)
                for link in (end, "lo"):
                    ip("-n", name, "link", "set", link, "up")
        except OSError as error:
            pytest.skip(f"no network namespaces here: {error}")
        yield names
    finally:
        for name in names:
            subprocess.run(["ip", "netns", "delete", name], capture_output=True)


@pytest.fixture(scope="module")
def workspace(tmp_path_factory) -> Path:
    """A configuration and a data set, which both machines have."""
    return write_training(tmp_path_factory.mktemp("machines"), SETTINGS)


class Training:
    """One command line on both machines. The working folder is the same for both, or one for each."""

    def __init__(self, machines: list[str], workspace: Path, folders: list[Path], accelerate: bool = False):
        self.machines, self.workspace, self.folders, self.accelerate = machines, workspace, folders, accelerate

    def command(self, number: int) -> list[str]:
        launcher = ["torch.distributed.run", "--nnodes", "2", "--node_rank", number, "--nproc_per_node", "1"]
        launcher += ["--master_addr", ADDRESSES[0], "--master_port", "29613"]
        if self.accelerate:
            launcher = ["accelerate.commands.launch", "--config_file", CONFIGURATION, "--num_processes", "2"]
            launcher += ["--main_process_ip", ADDRESSES[0], "--machine_rank", number]
        options = ["--config", self.workspace / "config", "--data", self.workspace / "data", "--output_dir", "run"]
        options += ["--use_cpu", "--resume_from_checkpoint", "auto"]
        inside = ["ip", "netns", "exec", self.machines[number], sys.executable, "-m"]
        return [str(part) for part in [*inside, *launcher, "-m", "fer_pll.commands.finetune", *options]]

    def start(self) -> None:
        self.running = []
        for number, folder in enumerate(self.folders):
            folder.mkdir(parents=True, exist_ok=True)
            output = (folder / f"output-{number}.txt").open("w")
            environment = os.environ | {"GLOO_SOCKET_IFNAME": f"fp{os.getpid()}-{number}", "OMP_NUM_THREADS": "1"}
            self.running.append(
                subprocess.Popen(self.command(number), cwd=folder, env=environment, stdout=output, stderr=output)
            )

    def ends(self) -> list[int]:
        return [process.wait(timeout=1200) for process in self.running]

    def said(self) -> str:
        return "\n".join((folder / f"output-{n}.txt").read_text()[-6000:] for n, folder in enumerate(self.folders))

    def kill(self, number: int, after: int) -> None:
        """End all processes of a machine at once, when the run has saved so many checkpoints."""
        while not (self.folders[0] / f"run/checkpoint-{15 * after}/checksums.json").is_file():
            assert all(process.poll() is None for process in self.running), self.said()
            time.sleep(0.05)
        pids = subprocess.run(["ip", "netns", "pids", self.machines[number]], capture_output=True, text=True).stdout
        for pid in pids.split():
            os.kill(int(pid), signal.SIGKILL)

    def result(self) -> tuple[bytes, dict[str, torch.Tensor]]:
        """File of the confidences and weights. Only the main process writes them."""
        run = self.folders[0] / "run"
        return (run / "confidence.safetensors").read_bytes(), load_file(run / "model.safetensors")


@pytest.fixture(scope="module")
def whole(machines, workspace) -> tuple[bytes, dict[str, torch.Tensor]]:
    """What an undisturbed run with a shared folder ends with."""
    training = Training(machines, workspace, [workspace / "shared"] * 2)
    training.start()
    assert training.ends() == [0, 0], training.said()
    assert sorted(path.name for path in (workspace / "shared/run/checkpoint-90").glob("rng_state_*")) == [
        "rng_state_0.pth",
        "rng_state_1.pth",
    ]
    return training.result()


def assert_equal(result: tuple[bytes, dict[str, torch.Tensor]], whole: tuple[bytes, dict[str, torch.Tensor]]) -> None:
    assert result[0] == whole[0]
    assert all(torch.equal(result[1][name], weight) for name, weight in whole[1].items())


def test_with_a_disk_for_each_they_learn_the_same(machines, workspace, whole, tmp_path):
    training = Training(machines, workspace, [tmp_path / "first", tmp_path / "second"], accelerate=True)
    training.start()
    assert training.ends() == [0, 0], training.said()
    assert_equal(training.result(), whole)


@pytest.mark.parametrize(("disks", "killed"), [("shared", 0), ("separate", 1)])
def test_one_is_killed_and_the_same_command_goes_on(machines, workspace, whole, tmp_path, disks, killed):
    folders = [tmp_path / "both"] * 2 if disks == "shared" else [tmp_path / "first", tmp_path / "second"]
    training = Training(machines, workspace, folders)
    training.start()
    training.kill(killed, after=2)
    assert all(status != 0 for status in training.ends())  # the other one does not wait for it
    assert last_checkpoint(folders[0] / "run") is not None
    assert not (folders[0] / "run" / "model.safetensors").exists()
    training.start()
    assert training.ends() == [0, 0], training.said()
    assert_equal(training.result(), whole)
