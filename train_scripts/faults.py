"""Launcher of `campaign`: trainings are killed, damaged and starved, and must end as if nothing had been."""

import fer_pll_cli
from campaign.main import main

if __name__ == "__main__":
    fer_pll_cli.run(main)
