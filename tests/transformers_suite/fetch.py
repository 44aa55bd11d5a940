"""Fetches transformers' own shared tests, of the version that is installed, when it is run as a script.

They are in its source distribution, which pip downloads from the package index, and not in its wheel. They go to
build/, which git ignores; none of them is part of this repository.
"""

import subprocess
import sys
import tarfile
import tempfile
from importlib.metadata import version
from pathlib import Path

VERSION = version("transformers")
ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "build" / "transformers-tests" / VERSION
TORCHAO = ROOT / "build" / "torchao"  # beside the environment, see tests/model/test_quantized.py
PACKAGE = "transformers_tests"  # as which they are imported; `tests` is ours


def fetch() -> None:
    """Fill FOLDER. Nothing happens where it is there already."""
    if FOLDER.is_dir():
        return
    FOLDER.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=FOLDER.parent) as scratch:
        pip = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--dest", scratch]
        subprocess.run([*pip, "--no-deps", "--no-binary", "transformers", f"transformers=={VERSION}"], check=True)
        archive = Path(scratch, f"transformers-{VERSION}.tar.gz")
        with tarfile.open(archive) as sources:
            prefix = f"transformers-{VERSION}/tests/"
            members = [member for member in sources if member.name.startswith(prefix)]
            if not members:
                raise SystemExit(f"{archive.name} holds no tests any more: see what transformers does with them now.")
            sources.extractall(scratch, members, filter="data")
        whole = Path(scratch, "whole")
        tests = Path(scratch, f"transformers-{VERSION}", "tests").rename(whole.with_name(PACKAGE))
        whole.mkdir()
        tests.rename(whole / PACKAGE)
        (whole / PACKAGE / "__init__.py").touch()
        # The tests look for the sources beside them, to import them by hand: empty, so that they take the package that
        # is installed.
        (whole / "src" / "transformers").mkdir(parents=True)
        (whole / "src" / "transformers" / "__init__.py").touch()
        whole.rename(FOLDER)


def fetch_torchao() -> None:
    """Fill TORCHAO, with the version of constraints.txt."""
    if not TORCHAO.is_dir():
        pip = [sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-deps"]
        subprocess.run([*pip, "-c", ROOT / "constraints.txt", "--target", TORCHAO, "torchao"], check=True)


if __name__ == "__main__":
    fetch()
    fetch_torchao()
