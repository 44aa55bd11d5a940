"""Pushing checkpoints to the Hub: the files that belong there, and errors that say what to do."""

import os
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path, PurePath

from huggingface_hub import CommitInfo, CommitOperationAdd, HfApi, ModelCard
from huggingface_hub.errors import HfHubHTTPError, LocalTokenNotFoundError, OfflineModeIsEnabled
from huggingface_hub.utils import httpx
from transformers import PreTrainedModel
from transformers.dynamic_module_utils import get_relative_import_files
from transformers.utils import CONFIG_NAME

from ..io.atomic import write_text
from ..io.errors import DataError
from ..io.names import ADAPTER_FILE, check_folder
from ..io.pretrained import check_finite_weights, weight_files
from ..io.stored import read_json, reading
from .card import folder_card, model_card, read_evaluations
from .files import (
    ADAPTER_FOLDER,
    ADAPTER_WEIGHTS_NAME,
    CARD_NAME,
    CONFUSION_MATRIX_NAME,
    METRICS_NAME,
    PREPROCESSOR_NAME,
    TRAINING_NAME,
)

_ADVICE = {
    401: "it does not know you: log in with `hf auth login`, or set HF_TOKEN to a token that may write",
    403: "your token may not write there: check the name before the slash, and that the token may write",
    404: "there is no such repository, or your token may not see it: check the name",
    409: "somebody else is changing the repository: try again",
    412: "somebody else has changed the repository meanwhile: try again",
}


class PushError(OSError):
    """A push failed. Nothing is lost: the files are where they were, and can be pushed again."""


@contextmanager
def push_errors(repo_id: str) -> Iterator[None]:
    """Turn errors of the Hub and the network into a `PushError` that says what to do."""
    try:
        yield
    except HfHubHTTPError as error:
        status = error.response.status_code
        advice = _ADVICE.get(status, "try again later" if status >= 500 else "see below")
        if status == 429:
            seconds = error.response.headers.get("Retry-After")
            advice = f"too many requests: try again in {seconds} seconds" if seconds else "too many requests: wait"
        raise PushError(f"{repo_id}: the Hub refused the push ({status}): {advice}.\n{error}") from error
    except OfflineModeIsEnabled as error:
        raise PushError(f"{repo_id}: HF_HUB_OFFLINE is set, so nothing can be pushed: unset it.") from error
    except LocalTokenNotFoundError as error:
        raise PushError(f"{repo_id}: log in with `hf auth login`, or set HF_TOKEN.") from error
    except RuntimeError as error:  # large files are sent before the commit
        cause = f"\n{error.__cause__}" if error.__cause__ else ""
        raise PushError(
            f"{repo_id}: a large file did not get through, and nothing of this push is there: try again.\n"
            f"{error}{cause}"
        ) from error
    except (httpx.TransportError, ConnectionError, TimeoutError) as error:
        raise PushError(
            f"{repo_id}: the connection to the Hub failed ({type(error).__name__}: {error}). Nothing of this push is "
            "there, unless the Hub's answer alone was lost: try again."
        ) from error


def published_files(folder: str | Path) -> list[str]:
    """The files of a checkpoint that belong in its repository, as paths inside its folder.

    These are the config, the safetensors weights, the image processor, and the code that `auto_map` and
    `custom_pipelines` name, with all that it imports; and, if they are there, the card, what it was made from
    (`training.json`, the metrics of these weights), the adapters that are merged into the weights, and the confusion
    matrices. Everything else stays: optimizers, settings with paths of this machine, pickles, predictions, galleries
    of images.

    Raises:
        DataError: a file that the checkpoint needs to load is missing or damaged, weights are NaN, or a file does not
            lie in the folder itself, see `check_plain_files`.
    """
    folder = Path(folder)
    if not (folder / CONFIG_NAME).is_file():
        raise DataError(f"{folder} has no {CONFIG_NAME}: name the folder of a checkpoint.")
    check_folder(folder)
    check_finite_weights(folder)  # also raises for weights that are cut off or missing
    if not (folder / PREPROCESSOR_NAME).is_file():
        raise DataError(
            f"{folder} has no {PREPROCESSOR_NAME}: save the image processor there as well, with its save_pretrained."
        )
    files = [CONFIG_NAME, *weight_files(folder), PREPROCESSOR_NAME, *_code(folder)]
    adapter = [f"{ADAPTER_FOLDER}/{name}" for name in (ADAPTER_FILE, ADAPTER_WEIGHTS_NAME)]
    files += [name for name in (CARD_NAME, TRAINING_NAME, *adapter) if os.path.lexists(folder / name)]
    for name in read_evaluations(folder):
        images = sorted((folder / name).glob(CONFUSION_MATRIX_NAME.format("*")))
        files += [f"{name}/{METRICS_NAME}", *(f"{name}/{image.name}" for image in images)]
    check_plain_files(folder, files)
    return files


def check_plain_files(folder: str | Path, files: Sequence[str]) -> None:
    """Check that files lie in a folder themselves, so that a push sends nothing from anywhere else.

    Args:
        folder: the folder; it may be reached through a link.
        files: paths inside it.

    Raises:
        DataError: a path leads out of the folder, is a link or lies behind one, or is no file.
    """
    root = Path(folder).resolve()
    for name in files:
        parts = PurePath(name).parts
        if not parts or ".." in parts or PurePath(name).is_absolute():
            raise DataError(f"{folder}: {name!r} does not lie in it, so it is not pushed: remove what names it")
        path = root.joinpath(*parts)
        if path.resolve() != path:
            raise DataError(
                f"{Path(folder) / name} is a link, or lies behind one, so it is not pushed: put a copy of the file in "
                "its place (cp -rL copies a folder so)"
            )
        if not path.is_file():
            raise DataError(f"{Path(folder) / name} is no file: remove it, or write it again")


def _code(folder: Path) -> list[str]:
    """The Python files that `auto_map` and `custom_pipelines` name and those that they import, each once."""
    files = set()
    for name in (CONFIG_NAME, PREPROCESSOR_NAME):
        settings = read_json(folder / name, {"auto_map?": {str: str}, "custom_pipelines?": {str: {"impl": str}}})
        named = [("auto_map", reference) for reference in settings.get("auto_map", {}).values()]
        named += [("custom_pipelines", each["impl"]) for each in settings.get("custom_pipelines", {}).values()]
        for key, reference in named:
            if "--" in reference:  # code of another repository
                continue
            if not re.fullmatch(r"\w+\.\w+", reference):
                raise DataError(f"{folder / name}: {key} names {reference!r}, no class of a file in its folder")
            module = folder / f"{reference.split('.')[0]}.py"
            check_plain_files(folder, [module.name] if os.path.lexists(module) else [])
            try:
                files |= {module.name, *(Path(file).name for file in get_relative_import_files(module))}
            except FileNotFoundError as error:
                raise DataError(
                    f"{folder} lacks {Path(error.filename).name}, part of its code: save it again."
                ) from error
            except ValueError as error:
                raise DataError(f"{module} is no text in UTF-8 ({error}): save the checkpoint again") from error
    return sorted(files)


def check_card(card: ModelCard, repo_id: str) -> None:
    """Ask the Hub whether it takes a card's metadata. Nothing is written, here or there.

    Raises:
        PushError: the Hub cannot be asked.
        DataError: the Hub refuses the metadata.
    """
    with push_errors(repo_id):
        try:
            card.validate()
        except ValueError as error:
            raise DataError(f"{repo_id}: the Hub refuses the metadata of the card ({error})") from error


def push_checkpoint(
    folder: str | Path,
    repo_id: str,
    license: str | None = None,
    keep_card: bool = False,
    private: bool | None = None,
) -> CommitInfo:
    """Push a checkpoint's `published_files` to the Hub, with a new card made from the files in the folder.

    Args:
        folder: the checkpoint.
        repo_id: `"name"` or `"owner/name"`; made where it does not exist.
        license: Hub identifier of the license of the weights, for the card.
        keep_card: push `README.md` as it is.
        private: whether a new repository is private.

    Raises:
        PushError: the push failed.
        DataError: a file that the checkpoint needs to load is missing or damaged, or the Hub refuses the card.
    """
    published_files(folder)  # raises if something is missing, before anything is written
    card_file = Path(folder) / CARD_NAME
    if not keep_card:
        card = folder_card(folder, repo_id, license)
        check_card(card, repo_id)  # the Hub would refuse the push, but the former card would be gone by then
        write_text(card_file, str(card))
    elif card_file.is_file():
        with reading(card_file, "correct its metadata, or push without --keep-card"):
            card = ModelCard.load(card_file)
        check_card(card, repo_id)
    return push_files(folder, published_files(folder), repo_id, private=private)


def push_files(
    folder: str | Path,
    files: Sequence[str],
    repo_id: str,
    path_in_repo: str = "",
    repo_type: str = "model",
    commit_message: str = "Upload checkpoint",
    token: str | None = None,
    private: bool | None = None,
    revision: str | None = None,
) -> CommitInfo:
    """Push files in one commit: all of them get there, or none. Make the repository where there is none.

    The card, which may be that of a run that was not pushed, calls the model by the name of the repository there.

    Args:
        folder: where the files lie.
        files: their paths inside `folder`.
        repo_id: `"name"` or `"owner/name"`.
        path_in_repo: folder of the repository to put them in; its root where not given.
        repo_type: `"model"`, `"dataset"` or `"space"`, one of Gradio.
        token: where not given, HF_TOKEN or the token of `hf auth login`. It is never written anywhere.
        private: whether a new repository is private.
        revision: branch; `main` where not given.

    Raises:
        PushError: the push failed.
        DataError: a file does not lie in the folder itself, see `check_plain_files`.
        ValueError: the Hub finds the card's metadata invalid.
    """
    check_plain_files(folder, files)
    api = HfApi(token=token)
    with push_errors(repo_id):
        repo_id = api.create_repo(
            repo_id,
            repo_type=repo_type,
            private=private,
            exist_ok=True,
            space_sdk="gradio" if repo_type == "space" else None,
        ).repo_id
        operations = [
            CommitOperationAdd(
                path_in_repo=f"{path_in_repo}/{name}" if path_in_repo else name,
                path_or_fileobj=_card_of(Path(folder) / name, repo_id)
                if (name, repo_type) == (CARD_NAME, "model")
                else Path(folder) / name,
            )
            for name in files
        ]
        return api.create_commit(
            repo_id, operations, repo_type=repo_type, commit_message=commit_message, revision=revision
        )


def _card_of(file: Path, repo_id: str) -> bytes:
    """A card as it is or, where its code loads what its heading names, such as the folder of a run, with `repo_id`."""
    card = file.read_text(encoding="utf-8")
    heading = re.search(r"^# (.+)$", card, re.MULTILINE)
    if heading is not None and f'"{heading[1]}"' in card:
        card = card.replace(heading[0], f"# {repo_id}", 1).replace(f'"{heading[1]}"', f'"{repo_id}"')
    return card.encode()


def push_card(
    model: PreTrainedModel,
    repo_id: str,
    token: str | None = None,
    private: bool | None = None,
    revision: str | None = None,
) -> None:
    """Push a card made from the model alone to a repository that has no card."""
    api = HfApi(token=token)
    with push_errors(repo_id):
        repo_id = api.create_repo(repo_id, private=private, exist_ok=True).repo_id
        if not api.file_exists(repo_id, CARD_NAME, revision=revision):
            card = CommitOperationAdd(path_in_repo=CARD_NAME, path_or_fileobj=str(model_card(model, repo_id)).encode())
            api.create_commit(repo_id, [card], commit_message="Upload model card", revision=revision)
