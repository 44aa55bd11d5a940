"""Push a checkpoint to the Hugging Face Hub, with its card.

Writes a new model card (README.md) from the files in the folder: config.json,
preprocessor_config.json, training.json and the metrics.json of each fer-pll
evaluate of these weights. Then pushes the card, weights (safetensors only),
configuration, image processor and code, so that the model loads with
`trust_remote_code=True` where fer-pll is not installed. Optimizers, settings
with paths of this machine and images of people are not pushed. With --space a
Space is made of it as well, or instead: a page to try the model on.

The token is that of `hf auth login`, or HF_TOKEN.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

from transformers.utils import CONFIG_NAME

import fer_pll_cli

from ..hub.confidences import confidence_dataset, push_confidences
from ..hub.push import published_files, push_checkpoint
from ..hub.space import check_space, push_space
from ..io.errors import DataError
from ..io.terminal import say
from ..training.run_folder import RunFolder
from .options import quiet_transformers

EPILOG = """\
examples:
  fer-pll evaluate runs/finetune data/ferplus --out runs/finetune/evaluation
  fer-pll push runs/finetune YOUR-NAME/fer-pll-tiny-ferplus

  # with the revised confidences, as a data set of its own
  fer-pll push runs/finetune YOUR-NAME/fer-pll-tiny-ferplus \\
      --with-confidences data/ferplus

  # and a page to try it on; without REPO, the model lies in the Space itself
  fer-pll push runs/finetune YOUR-NAME/fer-pll-tiny-ferplus \\
      --space YOUR-NAME/expressions
  fer-pll push runs/finetune --space YOUR-NAME/expressions
"""


def make_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        "fer-pll push", description=__doc__, epilog=EPILOG, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("checkpoint", type=Path, help="folder of a checkpoint")
    parser.add_argument("repo", nargs="?", help="repository on the Hub, OWNER/NAME; made if it does not exist")
    parser.add_argument("--private", action="store_true", default=None, help="make a new repository private")
    parser.add_argument("--license", help="Hub identifier of the license of the weights, for the card")
    parser.add_argument(
        "--keep-card", action="store_true", help="push README.md as it is, with the name of the repository"
    )
    parser.add_argument(
        "--with-confidences",
        metavar="DATA",
        help="also push the revised confidences, without images, as the data set REPO-confidences; DATA is the "
        "prepared folder that the model was trained on",
    )
    parser.add_argument(
        "--with-images",
        action="store_true",
        help="put the images into that data set, if you may: most data sets of faces forbid sharing them",
    )
    parser.add_argument(
        "--space",
        metavar="OWNER/NAME",
        help="make a Space of that name, the page of `fer-pll app` with this model; it loads REPO or, with --private "
        "or without REPO, has the files itself",
    )
    return parser


def main(argv: Sequence[str] | None = None) -> None:
    parser = make_parser()
    args = parser.parse_args(argv)
    if args.with_images and args.with_confidences is None:
        parser.error("--with-images goes with --with-confidences DATA")
    if args.repo is None and args.space is None:
        parser.error("name the repository, OWNER/NAME, or a Space with --space OWNER/NAME")
    if args.repo is None and (args.with_confidences is not None or args.keep_card):
        parser.error("--with-confidences and --keep-card go with a repository: name it after the checkpoint")
    quiet_transformers()

    published_files(args.checkpoint)  # raises if something is missing, before anything is written
    classifier = "ForImageClassification" in (args.checkpoint / CONFIG_NAME).read_text(encoding="utf-8")
    if args.space is not None:
        if not classifier:
            raise DataError(
                f"{args.checkpoint} names no expressions yet, so a Space has nothing to show: fine-tune it"
            )
        check_space()  # raises if something is missing, before anything is pushed
    confidences = None
    if args.with_confidences is not None:
        confidences = confidence_dataset(
            *RunFolder(args.checkpoint).table_and_rows(args.with_confidences), args.with_images
        )
    repo_id = None
    if args.repo is not None:
        commit = push_checkpoint(args.checkpoint, args.repo, args.license, args.keep_card, args.private)
        files = published_files(args.checkpoint)
        repo_id = commit.repo_url.repo_id
        say(f"pushed {len(files)} files to {commit.repo_url}: {', '.join(files)}")
    if confidences is not None:
        if args.with_images:
            terms = confidences.info.license or "they are not known to fer-pll"
            say(f"warning: images of people go along. Their terms: {terms}", to_stderr=True)
        pushed = push_confidences(confidences, f"{args.repo}-confidences", args.repo, args.license, args.private)
        say(f"pushed {len(confidences):,} confidences to {pushed.repo_url}")
    if args.space is not None:
        # A Space has no token that could read a private repository.
        space = push_space(
            args.checkpoint, args.space, None if args.private else repo_id, args.license, args.private
        ).repo_url
        say(f"pushed a page with this model to {space}: the Hub builds it within minutes")
    if repo_id is None:
        return
    if classifier:
        fer_pll_cli.next_command("predict", "PHOTO.jpg", "--model", repo_id)
    else:
        fer_pll_cli.next_command("finetune", "--init_from", repo_id, "--help")


if __name__ == "__main__":
    fer_pll_cli.run(main)
