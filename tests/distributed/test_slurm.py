"""The Slurm script under a real Slurm of two nodes on this machine: stopped by a signal, queued again, and gone on."""

import os
import platform
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from tiny import write_training

pytestmark = [pytest.mark.long, pytest.mark.timeout(1800)]

SCRIPT = Path(__file__).parents[2] / "train_scripts" / "accelerate" / "slurm.sh"
PROGRAMS = ("munged", "mungekey", "slurmctld", "slurmd", "sbatch", "srun", "scontrol", "scancel")
SETTINGS = """\
num_train_epochs: 40
per_device_train_batch_size: 8
learning_rate: 3.0e-3
save_strategy: steps
save_steps: 1000
revision: soft
logging_steps: 30
"""
CONFIGURATION = """\
ClusterName=toy
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={controller}
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool-%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd-%n.pid
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
ReturnToService=2
NodeName=one NodeHostname={host} NodeAddr=127.0.0.1 Port={one} CPUs=2 State=UNKNOWN
NodeName=two NodeHostname={host} NodeAddr=127.0.0.1 Port={two} CPUs=2 State=UNKNOWN
PartitionName=all Nodes=one,two Default=YES MaxTime=INFINITE State=UP
"""


def free_ports(number: int) -> list[int]:
    probes = [socket.socket() for _ in range(number)]
    for probe in probes:
        probe.bind(("127.0.0.1", 0))
    ports = [probe.getsockname()[1] for probe in probes]
    for probe in probes:
        probe.close()
    return ports


def wait_for(condition: Callable[[], bool], what: str, seconds: float = 600) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, what
        time.sleep(0.2)


class Slurm:
    """A cluster of two nodes, both this machine."""

    def __init__(self, folder: Path):
        self.folder = folder
        self.environment = os.environ | {
            "SLURM_CONF": str(folder / "slurm.conf"),
            "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}:/usr/sbin",
            "HF_HUB_OFFLINE": "1",
        }

    def run(self, *command: object, cwd: Path | None = None) -> str:
        command = [str(part) for part in command]
        done = subprocess.run(command, env=self.environment, capture_output=True, text=True, cwd=cwd or self.folder)
        assert done.returncode == 0, f"{command}: {done.stdout}{done.stderr}"
        return done.stdout

    def state(self, job: str) -> str:
        return self.run("squeue", "--noheader", "--states=all", "--jobs", job, "--format=%T").strip()

    def submit(self, folder: Path, workspace: Path) -> str:
        """Number of a job that runs the script with two tasks, one for each node."""
        options = ["--nodes", 2, "--ntasks-per-node", 1, "--gpus-per-node", 0, "--cpus-per-task", 1, "--time", 30]
        training = ["--config", workspace / "config", "--data", workspace / "data", "--output_dir", "run", "--use_cpu"]
        folder.mkdir()
        return self.run("sbatch", "--parsable", *options, SCRIPT, *training, cwd=folder).strip()


@pytest.fixture(scope="module")
def slurm(tmp_path_factory) -> Iterator[Slurm]:
    search = f"{os.environ['PATH']}:/usr/sbin"
    missing = [name for name in PROGRAMS if shutil.which(name, path=search) is None]
    if missing:
        pytest.skip(f"no {', '.join(missing)} (Debian: apt-get install slurmctld slurmd slurm-client munge)")
    if os.geteuid() != 0:
        pytest.skip("the daemons of Slurm need root")
    folder = tmp_path_factory.mktemp("slurm")
    slurm = Slurm(folder)
    ports = dict(zip(("controller", "one", "two"), free_ports(3), strict=True))
    (folder / "slurm.conf").write_text(CONFIGURATION.format(host=platform.node(), folder=folder, **ports))
    (folder / "state").mkdir()
    slurm.run("mungekey", "--create", "--keyfile", folder / "key")
    names = ("socket", "key-file", "log-file", "pid-file", "seed-file")
    files = ("munge.socket", "key", "munged.log", "munged.pid", "munged.seed")
    munge = [f"--{name}={folder / file}" for name, file in zip(names, files, strict=True)]
    commands = [["munged", "--force", "--foreground", *munge], ["slurmctld", "-D"]]
    commands += [["slurmd", "-D", "-N", node] for node in ("one", "two")]
    daemons = []
    try:
        for command in commands:
            log = (folder / f"{command[0]}-{command[-1]}.txt".replace("/", "-")).open("w")
            daemons.append(subprocess.Popen(command, env=slurm.environment, stdout=log, stderr=log, cwd=folder))
            if command[0] == "munged":
                wait_for((folder / "munge.socket").exists, "munged does not start", 60)
        idle = ["sinfo", "--noheader", "--states=idle", "--format=%D"]
        wait_for(
            lambda: subprocess.run(idle, env=slurm.environment, capture_output=True, text=True).stdout.strip() == "2",
            "the nodes do not come up",
            60,
        )
        yield slurm
    finally:
        subprocess.run(["scancel", "--user", "root", "--signal", "KILL"], env=slurm.environment, capture_output=True)
        for daemon in reversed(daemons):
            daemon.terminate()
            daemon.wait(timeout=60)


@pytest.fixture(scope="module")
def workspace(tmp_path_factory) -> Path:
    return write_training(tmp_path_factory.mktemp("training"), SETTINGS)


def test_a_job_that_a_signal_stops_is_queued_again_and_ends_as_if_nothing_had_happened(slurm, workspace, tmp_path):
    whole, stopped = tmp_path / "whole", tmp_path / "stopped"
    job = slurm.submit(whole, workspace)
    wait_for(lambda: slurm.state(job) not in ("PENDING", "CONFIGURING", "RUNNING", "COMPLETING"), "the job hangs")
    output = (whole / f"slurm-{job}.out").read_text(errors="replace")
    assert slurm.state(job) == "COMPLETED", output[-3000:]
    assert (whole / "run" / "checkpoint-120" / "rng_state_1.pth").is_file()  # of the second process

    job = slurm.submit(stopped, workspace)
    said = stopped / f"slurm-{job}.out"
    wait_for(lambda: said.is_file() and "'loss'" in said.read_text(errors="replace"), "the run does not start")
    slurm.run("scancel", "--signal", "USR1", job)
    wait_for(lambda: slurm.state(job) == "PENDING", "the job is not queued again")
    assert "SIGUSR1 has stopped the run after step" in said.read_text(errors="replace")
    assert f"job {job} is queued again" in said.read_text(errors="replace")
    assert not (stopped / "run" / "model.safetensors").exists()
    # Slurm would wait two minutes. In the second of the requeue it would refuse its own permit to start.
    slurm.run("scontrol", "update", f"JobId={job}", "StartTime=now+5")
    wait_for(lambda: slurm.state(job) not in ("PENDING", "CONFIGURING", "RUNNING", "COMPLETING"), "the job hangs")
    assert slurm.state(job) == "COMPLETED", said.read_text(errors="replace")[-3000:]
    for name in ("confidence.safetensors", "model.safetensors"):
        one, two = (load_file(folder / "run" / name) for folder in (whole, stopped))
        assert all(torch.equal(two[key], value) for key, value in one.items())


def test_a_job_that_fails_is_not_queued_again(slurm, workspace, tmp_path):
    job = slurm.submit(tmp_path / "job", tmp_path)  # no configuration is there
    wait_for(lambda: slurm.state(job) not in ("PENDING", "CONFIGURING", "RUNNING", "COMPLETING"), "the job hangs")
    assert slurm.state(job) == "FAILED"
    said = (tmp_path / "job" / f"slurm-{job}.out").read_text(errors="replace")
    assert "error: " in said and "queued again" not in said
