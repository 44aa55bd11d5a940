"""`fer-pll out-of-fold` as a file, for launchers that take one: `accelerate launch`, `torchrun`."""

import fer_pll_cli
from fer_pll.commands.out_of_fold import main

if __name__ == "__main__":
    fer_pll_cli.run(main)
