"""What a training step with confidences sends between processes, besides the gradients."""

import os
import socket
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from contextlib import ExitStack
from multiprocessing import get_context
from statistics import median

STEPS = 12  # of the training that is listened to; the first two do not count


def gathers(processes, batch_size, classes):
    """What a process gets from all in a step of FerPllTrainer: number of gathers, their bytes, and their seconds.

    Args:
        processes: how many train, on this machine's CPU (gloo).
        batch_size: rows of a process.
        classes: labels.
    """
    with socket.socket() as probe, ExitStack() as stack, tempfile.TemporaryDirectory() as folder:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
        probe.close()
        pools = [stack.enter_context(ProcessPoolExecutor(1, get_context("spawn"))) for _ in range(processes)]
        jobs = [
            pool.submit(listen, rank, processes, port, batch_size, classes, folder) for rank, pool in enumerate(pools)
        ]
        return min(job.result() for job in jobs)  # the quickest; the sizes are the same


def listen(rank, processes, port, batch_size, classes, folder):
    """Train as one of several processes, and return what it gathered in a step."""
    names = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": processes, "LOCAL_WORLD_SIZE": processes}
    names |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    if processes > 1:
        os.environ.update({name: str(value) for name, value in names.items()})

    import torch
    from transformers import TrainerCallback

    torch.set_num_threads(1)
    steps, original = [], torch.distributed.all_gather

    def all_gather(outputs, tensor, *args, **kwargs):
        torch.distributed.barrier()  # otherwise the wait for the slowest process would count
        start = time.perf_counter()
        original(outputs, tensor, *args, **kwargs)
        steps[-1].append((sum(output.nbytes for output in outputs), time.perf_counter() - start))

    class Listener(TrainerCallback):
        def on_step_end(self, *args, **kwargs):
            steps.append([])

    trainer = make_trainer(processes * batch_size * STEPS, batch_size, classes, folder)
    trainer.add_callback(Listener())
    torch.distributed.all_gather = all_gather
    steps.append([])
    trainer.train()
    steps = [each for each in steps[2:STEPS] if each] or [[]]
    sizes = [sum(size for size, _ in each) for each in steps]
    return len(steps[-1]), median(sizes), median(sum(seconds for _, seconds in each) for each in steps)


def make_trainer(num_rows, batch_size, classes, folder):
    """A trainer of a very small model, whose pixels are in memory."""
    import numpy as np
    import torch
    from datasets import Dataset
    from transformers import PrinterCallback

    from fer_pll import (
        FerPllConfig,
        FerPllForImageClassification,
        FerPllImageProcessor,
        FerPllTrainer,
        FerPllTrainingArguments,
    )

    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 1, "intermediate_size": 16}
    sizes |= {"image_size": 16, "patch_size": 8, "num_channels": 1, "hog_cell_size": 4}
    labels = {str(number): number for number in range(classes)}
    config = FerPllConfig(
        **sizes, label2id=labels, id2label={number: name for name, number in labels.items()}, image_std=[0.25]
    )
    each = np.arange(num_rows) % classes
    rows = {
        "image": np.arange(num_rows),  # the collator has the pixels
        "row_id": [str(row) for row in range(num_rows)],
        "candidates": np.eye(classes, dtype=bool)[each] | np.eye(classes, dtype=bool)[each - 1],
    }
    args = FerPllTrainingArguments(
        folder,
        num_train_epochs=1,
        per_device_train_batch_size=batch_size,
        revision="soft",  # writes a row at each visit
        use_cpu=True,
        save_strategy="no",
        logging_strategy="no",
        disable_tqdm=True,
    )
    pixels = torch.randint(0, 256, (batch_size, 1, 16, 16), dtype=torch.uint8)

    def collate(batch):
        return {"pixel_values": pixels[: len(batch)], "index": torch.tensor([row["index"] for row in batch])}

    processor = FerPllImageProcessor(
        num_channels=1, size={"height": 16, "width": 16}, image_mean=config.image_mean, image_std=config.image_std
    )
    trainer = FerPllTrainer(
        FerPllForImageClassification(config),
        args,
        processing_class=processor,
        train_dataset=Dataset.from_dict(rows),
        data_collator=collate,
    )
    trainer.remove_callback(PrinterCallback)
    return trainer
