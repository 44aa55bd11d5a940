"""Every way to push, in one process. Leaves a prepared data set and a checkpoint, and prints what failed pushes said.

python pushing.py FOLDER, with HF_ENDPOINT and HF_TOKEN set, and the folder of the tests in PYTHONPATH. FOLDER gets
data/ferplus and runs; the last line of the output is JSON: the messages by scenario.
"""

import io
import json
import sys
from concurrent.futures import ThreadPoolExecutor
from contextlib import redirect_stderr
from functools import partial
from pathlib import Path

from datasets import DatasetDict

import fer_pll_cli
from fer_pll import FerPllTrainer
from fer_pll.data.dataset import save_dataset
from fer_pll.data.provenance import Provenance
from fer_pll.hub.push import PushError, published_files, push_files
from tiny import CROP, make_dataset, make_pretrainer, make_trainer, tiny_config, tiny_processor

SETTINGS = {
    "max_steps": 2,
    "per_device_train_batch_size": 24,
    "save_strategy": "steps",
    "save_steps": 1,
    "report_to": ["tensorboard"],  # whose files lie in the output folder and belong to nobody else
}
FAULTS = ("401", "403", "404", "409", "429", "500", "cut", "batch-429", "batch-500", "upload-403", "upload-cut")


def trainer(output_dir: Path, train, **settings) -> FerPllTrainer:
    return make_trainer(output_dir, tiny_config(), tiny_processor(face_crop=CROP), train, **SETTINGS | settings)


def message_of(push) -> str | None:
    """What a push says that does not come through; `None` where it does."""
    try:
        push()
    except PushError as error:
        return str(error)
    return None


def run_command(*arguments: object) -> str | None:
    """The last line of what `fer-pll push` says where it fails; `None` where it does not."""
    with redirect_stderr(io.StringIO()) as said:
        status = fer_pll_cli.main(["push", *map(str, arguments), "--keep-card"])
    sys.stderr.write(said.getvalue())
    return said.getvalue().splitlines()[-1] if status else None


def snapshot(folder: Path) -> dict[str, bytes]:
    return {str(path): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def main() -> None:
    folder = Path(sys.argv[1])
    runs = folder / "runs"
    train = make_dataset(48)
    Provenance("toy", split="train", kept=48, license="free for all.").attach(train)
    prepared = DatasetDict(train=train.remove_columns("candidates"), validation=make_dataset(24, seed=1))
    save_dataset(prepared, folder / "data" / "ferplus")

    # A checkpoint that was not pushed; two that were while they were trained, and not at the end; one at the end.
    local = trainer(runs / "finetune", train)
    local.train()
    local.save_model()
    local.create_model_card()
    local.save_confidence()
    for name, strategy in (("every-save", "every_save"), ("with-checkpoint", "checkpoint")):
        halfway = trainer(
            runs / name, train, push_to_hub=True, hub_strategy=strategy, hub_always_push=True, save_total_limit=2
        )
        halfway.train()
    messages = {}
    at_end = trainer(runs / "at-end", train, push_to_hub=True, hub_model_id="someone/at-end", hub_strategy="end")
    at_end.train()
    messages["at-end"] = message_of(at_end.save_model)  # cut off, its files saved before
    assert (runs / "at-end" / "model.safetensors").is_file() and (runs / "at-end" / "training.json").is_file()
    at_end.push_to_hub()

    image_processor = tiny_processor(face_crop=CROP)
    make_pretrainer(runs / "pretrained", tiny_config(), image_processor, train, **SETTINGS).push_to_hub()

    # By hand, as any model of transformers; what it finds there stays.
    local.model.push_to_hub("someone/by-hand")
    image_processor.push_to_hub("someone/by-hand")

    # Everything that can go wrong, and once more.
    checkpoint = runs / "finetune"
    files, before = published_files(checkpoint), snapshot(folder)

    def push_twice(fault: str) -> str | None:
        push = partial(push_files, checkpoint, files, f"someone/answers-{fault}")
        message = message_of(push)
        assert message_of(push) is None, fault
        return message

    with ThreadPoolExecutor(len(FAULTS)) as pool:  # huggingface_hub waits long before it tries again
        messages |= zip(FAULTS, pool.map(push_twice, FAULTS), strict=True)
    messages["command"] = run_command(checkpoint, "someone/command-403")

    # The images of the toy data set may go along.
    data = folder / "data" / "ferplus"
    assert run_command(checkpoint, "someone/with-images", "--with-confidences", data, "--with-images") is None
    assert snapshot(folder) == before
    print(json.dumps(messages))


if __name__ == "__main__":
    main()
