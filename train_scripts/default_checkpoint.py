"""Make a checkpoint that comes with the package.

    python train_scripts/default_checkpoint.py path/to/ferplus --out runs/default
    python train_scripts/default_checkpoint.py path/to/ferplus --out runs/vit \\
        --name fer-pll-tiny-vit-ferplus -- --bf16 true

The script trains on the candidate sets of 96 % of FER+'s Training, fits a temperature on the rest, and evaluates on
PublicTest. Then it copies weights in float16, configuration, card and figures to --to. The settings are those of
--name in hub_configs; where these have a pretrain.yaml, it pre-trains first, on all images of Training.
fer-pll-tiny-ferplus goes on from fer-pll-tiny-ferplus-teacher, which is trained on the same rows before, and learns
from it and the ViT in the package. PrivateTest is not used. It skips finished steps and resumes an interrupted run.
Options after `--` go to the runs and must not change what is learned.
"""

import argparse
import json
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType

import fer_pll_cli
from fer_pll.commands import calibrate, evaluate, finetune, prepare, pretrain
from fer_pll.hub.card import folder_card
from fer_pll.hub.files import CARD_NAME
from fer_pll.hub.push import published_files
from fer_pll.io.shipped import CHECKPOINTS, DEFAULT_NAME, VIT_NAME
from fer_pll.training.checkpoints import last_checkpoint
from fer_pll.training.config import config_folder

HELD_OUT_SHARE = 0.04
BALANCE = {DEFAULT_NAME: 0.25, VIT_NAME: 0.3}
"""Of fer-pll calibrate; above it, the accuracy loses more than the mean class accuracy gains."""

TEACHER = f"{DEFAULT_NAME}-teacher"
"""In hub_configs: where the default checkpoint starts from, and one of its two teachers; the other is VIT_NAME."""


def run(command: ModuleType, *argv: object) -> None:
    """Run one of the commands of `fer-pll` in this process."""
    print(f"$ fer-pll {command.__name__.rpartition('.')[2]} {' '.join(map(str, argv))}", flush=True)
    command.main([str(each) for each in argv])


def train(command: ModuleType, folder: Path, *argv: object) -> None:
    """Train to the end, from the last checkpoint if there is one. Do nothing if the run is finished."""
    if (folder / CARD_NAME).is_file():  # written last
        return
    again = ["--resume_from_checkpoint", "last"] if last_checkpoint(folder) else ["--overwrite"]
    run(command, *argv, "--output_dir", folder, *again)


def package(checkpoint: Path, to: Path, name: str) -> None:
    """Copy the files of a checkpoint, without the package's code, with a card that says how to load it by `name`.

    It replaces the files of an earlier copy in `to` and no others.
    """
    for file in published_files(checkpoint):
        if file.endswith(".py") or file == CARD_NAME:
            continue
        (to / file).parent.mkdir(parents=True, exist_ok=True)
        if file.endswith("config.json"):
            config = json.loads((checkpoint / file).read_text())
            for key in ("auto_map", "custom_pipelines"):  # they file the code
                config.pop(key, None)
            (to / file).write_text(json.dumps(config, indent=2) + "\n")
        else:
            shutil.copyfile(checkpoint / file, to / file)
    folder_card(to, name, license="apache-2.0", packaged=True).save(to / CARD_NAME)


def main(argv: Sequence[str] | None = None) -> None:
    argv = list(sys.argv[1:] if argv is None else argv)
    at = argv.index("--") if "--" in argv else len(argv)
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("ferplus", help="folder with the files of FER+; see fer-pll prepare ferplus --help")
    parser.add_argument("--out", type=Path, required=True, help="folder for data, runs and the checkpoint")
    parser.add_argument("--name", choices=list(BALANCE), default=DEFAULT_NAME, help="which one (default: %(default)s)")
    parser.add_argument("--to", type=Path, help="folder to copy it to (default: that in the package)")
    args, options = parser.parse_args(argv[:at]), argv[at + 1 :]

    images, data, calibrated = args.out / "pictures", args.out / "data", args.out / "calibrated"
    pretrained = (config_folder(args.name) / "pretrain.yaml").is_file()
    if pretrained and not images.is_dir():
        run(prepare, "ferplus", args.ferplus, "--out", images)
    if not data.is_dir():
        run(prepare, "ferplus", args.ferplus, "--out", data, "--hold-out", HELD_OUT_SHARE)
    common = ("--config", args.name, *options)
    if pretrained:
        train(pretrain, args.out / "pretrain", *common, "--data", images)
    start, taught = args.out / "pretrain" if pretrained else "none", ()
    if args.name == DEFAULT_NAME:
        start = args.out / TEACHER
        train(finetune, start, "--config", TEACHER, *options, "--data", data, "--init_from", "none")
        taught = ("--teacher", start, VIT_NAME, "--teacher_cache", args.out / "teachers.safetensors")
    train(finetune, args.out / "finetune", *common, "--data", data, "--init_from", start, *taught)
    if calibrated.is_dir():
        shutil.rmtree(calibrated)
    run(calibrate, args.out / "finetune", data, "--out", calibrated, "--half", "--balance", BALANCE[args.name])
    run(evaluate, calibrated, data, "--split", "validation", "--out", calibrated / "evaluation")
    to = args.to or Path(CHECKPOINTS[args.name])
    package(calibrated, to, args.name)
    print(f"written to {to}")


if __name__ == "__main__":
    fer_pll_cli.run(main)
