"""Launcher of `benchmarks`: one part of fer-pll against the library that a user would otherwise take; see --help."""

import fer_pll_cli
from benchmarks.main import main

if __name__ == "__main__":
    fer_pll_cli.run(main)
