"""What the processes of a campaign have imported before they are forked."""

import gc

import fer_pll.commands.finetune
import fer_pll.commands.prepare
import fer_pll.commands.pretrain
import matplotlib.backends.backend_agg  # noqa: F401

gc.collect()
gc.freeze()  # else each process copies all of it when it collects garbage
