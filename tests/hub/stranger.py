"""A process that has never heard of fer_pll, installed or not: what a checkpoint meets in other people's hands."""

import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

HIDE_PACKAGE = """
import sys

class Hidden:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] == "fer_pll":
            raise ModuleNotFoundError("No module named 'fer_pll'", name="fer_pll")

sys.meta_path.insert(0, Hidden())
try:
    import fer_pll
except ModuleNotFoundError:
    pass
else:
    sys.exit("fer_pll is not hidden")
"""


def run_stranger(code: str, *arguments: object, environment: Mapping[str, str], cwd: Path) -> str:
    """What `code` prints, run where `import fer_pll` fails."""
    environment = {name: value for name, value in environment.items() if name != "PYTHONPATH"}
    command = [sys.executable, "-I", "-c", HIDE_PACKAGE + code, *map(str, arguments)]
    done = subprocess.run(command, env=environment, cwd=cwd, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout
