"""Fetches packages from npm's registry for the tests of the web page. They go to build/, which git ignores."""

import shutil
import subprocess
import tempfile
from pathlib import Path

from fer_pll.inference.web_export import RUNTIME

FOLDER = Path(__file__).parents[1] / "build" / "npm"
TRANSFORMERS_JS = "@huggingface/transformers@4.3.2"


def missing_programs() -> str | None:
    """Which of the programs that this needs is not installed, as the reason to skip a test."""
    missing = [name for name in ("node", "npm") if shutil.which(name) is None]
    return f"no {missing[0]}: apt-get install nodejs npm" if missing else None


def fetch_runtime() -> Path:
    """The file of onnxruntime-web, as a user fetches it."""
    archive = FOLDER / f"{RUNTIME.replace('@', '-')}.tgz"
    if not archive.is_file():
        FOLDER.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=FOLDER) as scratch:
            subprocess.run(["npm", "pack", "--silent", RUNTIME], cwd=scratch, check=True)
            Path(scratch, archive.name).rename(archive)
    return archive


def fetch_transformers_js() -> Path:
    """The folder with transformers.js in its node_modules. No script of a package is run."""
    folder = FOLDER / "transformers.js"
    if not folder.is_dir():
        FOLDER.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=FOLDER) as scratch:
            options = ["--ignore-scripts", "--no-audit", "--no-fund", "--silent"]
            whole = Path(scratch, "whole")
            whole.mkdir()
            subprocess.run(["npm", "install", *options, TRANSFORMERS_JS], cwd=whole, check=True)
            whole.rename(folder)
    return folder
