"""Launcher of `comparisons`: the paper's comparisons, as matrices of runs over one data set; see --help."""

import fer_pll_cli
from comparisons.main import main

if __name__ == "__main__":
    fer_pll_cli.run(main)
