"""Gradio in a folder beside the environment, which git ignores; fetches it when it is run as a script.

Gradio takes no Pillow from 13 on, so it cannot be installed together with the versions of constraints.txt. What is
tested here are those versions otherwise, and the newest Pillow that Gradio takes: `pip install 'fer-pll[app]'` gives
the same.
"""

import os
import re
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FOLDER = ROOT / "build" / "gradio"
VERSIONS = ("gradio==6.31.0", "pillow==12.3.0")


def fetch() -> None:
    """Fill FOLDER. Nothing happens where it is there already."""
    if FOLDER.is_dir():
        return
    FOLDER.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=FOLDER.parent) as scratch:
        lines = (ROOT / "constraints.txt").read_text().splitlines()
        constraints = Path(scratch, "constraints.txt")
        constraints.write_text("\n".join(line for line in lines if not line.startswith("pillow==")))
        pip = [sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
        whole = Path(scratch, "whole")
        subprocess.run([*pip, "-c", constraints, "--target", whole, *VERSIONS], check=True)
        whole.rename(FOLDER)


def environment(**variables: str) -> dict[str, str]:
    """For a process that has Gradio. Skips the test where it is not there and need not be."""
    if not FOLDER.is_dir():
        assert "FER_PLL_NEEDS_GRADIO" not in os.environ, "python tests/gradio_beside.py"
        pytest.skip("no Gradio: python tests/gradio_beside.py")
    path = os.pathsep.join(map(str, (ROOT / "src", FOLDER)))
    return os.environ | {"PYTHONPATH": path, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"} | variables


@contextmanager
def served(*command: str, log: Path, cwd: Path, **variables: str) -> Iterator[str]:
    """The address of a page that a Python process serves, until the block ends."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    env = environment(GRADIO_SERVER_PORT=str(port), **variables)
    with log.open("w") as said:
        process = subprocess.Popen([sys.executable, *command], env=env, cwd=cwd, stdout=said, stderr=said)
    try:
        for _ in range(1200):
            if "shows the page" in log.read_text():
                break
            assert process.poll() is None, log.read_text()
            time.sleep(0.1)
        address = re.search(r"http://\S+", log.read_text())
        assert address is not None, log.read_text()
        yield address[0].replace("0.0.0.0", "127.0.0.1")
    finally:
        process.terminate()
        process.wait(30)


def ask(script: str, *arguments: object) -> str:
    """The output of a script in a process that has gradio_client."""
    run = subprocess.run(
        [sys.executable, "-c", script, *map(str, arguments)], env=environment(), capture_output=True, text=True
    )
    assert run.returncode == 0, run.stderr
    return run.stdout


if __name__ == "__main__":
    fetch()
