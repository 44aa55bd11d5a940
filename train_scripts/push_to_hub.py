"""Push a checkpoint to the Hugging Face Hub.

    python train_scripts/evaluate.py runs/finetune data/ferplus --split validation --out runs/finetune/evaluation
    python train_scripts/push_to_hub.py runs/finetune YOUR-NAME/fer-pll-tiny-ferplus

Writes the model card (README.md) anew from the folder's files: config.json, preprocessor_config.json, training.json
and, of evaluate.py, the metrics.json of each evaluation of these weights. Then pushes the card, weights (safetensors
only), configuration, image processor and code, so that it loads with `trust_remote_code=True` where fer-pll is not
installed. Optimisers, settings with paths of this machine and pictures of people stay here.

The token is that of `hf auth login`, or HF_TOKEN.
"""

import argparse
import os
import sys
from pathlib import Path

# Python puts the folder of a script first; there, evaluate.py would hide the library `evaluate`.
sys.path[:] = [entry for entry in sys.path if entry != os.path.dirname(os.path.abspath(__file__))]

from fer_pll.hub.card import folder_card
from fer_pll.hub.confidences import confidence_dataset, push_confidences
from fer_pll.hub.push import PushError, published_files, push_files
from fer_pll.io.atomic import write_text
from fer_pll.training.run_folder import RunFolder


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint", type=Path, help="folder of a checkpoint")
    parser.add_argument("repo", help="repository on the Hub, OWNER/NAME; made if it does not exist")
    parser.add_argument("--private", action="store_true", default=None, help="if it is made: nobody else sees it")
    parser.add_argument("--license", help="Hub identifier of the licence of the weights, for the card")
    parser.add_argument("--keep-card", action="store_true", help="push README.md as it is")
    parser.add_argument(
        "--with-confidences",
        metavar="DATA",
        help="push the revised confidences as well, without pictures, as the data set REPO-confidences; DATA is the "
        "prepared folder that the model was trained on",
    )
    parser.add_argument(
        "--with-images",
        action="store_true",
        help="put the pictures into that data set, if you may: most data sets of faces forbid to pass them on",
    )
    args = parser.parse_args()
    if args.with_images and args.with_confidences is None:
        parser.error("--with-images goes with --with-confidences DATA")

    published_files(args.checkpoint)  # raises where something is missing, before anything is written
    confidences = None
    if args.with_confidences is not None:
        confidences = confidence_dataset(
            *RunFolder(args.checkpoint).table_and_rows(args.with_confidences), args.with_images
        )
    if not args.keep_card:
        write_text(RunFolder(args.checkpoint).card, str(folder_card(args.checkpoint, args.repo, args.license)))
    files = published_files(args.checkpoint)
    commit = push_files(args.checkpoint, files, args.repo, private=args.private)
    print(f"pushed {len(files)} files to {commit.repo_url}: {', '.join(files)}")
    if confidences is not None:
        if args.with_images:
            terms = confidences.info.license or "they are not known to fer-pll"
            print(f"warning: pictures of people go along. Their terms: {terms}", file=sys.stderr)
        commit = push_confidences(confidences, f"{args.repo}-confidences", args.repo, args.license, args.private)
        print(f"pushed {len(confidences):,} confidences to {commit.repo_url}")


if __name__ == "__main__":
    try:
        main()
    except (ValueError, PushError, FileNotFoundError) as error:
        sys.exit(f"error: {error}")
