"""What the processes of a campaign have imported before they are forked."""

import gc
from importlib import import_module

for name in (
    *("fer_pll.commands.finetune", "fer_pll.commands.prepare", "fer_pll.commands.pretrain"),
    "matplotlib.backends.backend_agg",
):
    import_module(name)
gc.collect()
gc.freeze()  # else each process copies all of it when it collects garbage
