"""Atomic writes: a file or folder is complete or absent, whatever interrupts the writing."""

import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any


@contextmanager
def whole_file(path: str | os.PathLike) -> Iterator[Path]:
    """Yields a temporary name beside `path`; at the end of the block that file replaces `path`.

    If the block raises, or the process is killed, `path` stays as it was. The temporary name keeps the ending, because
    many writers choose the format by it. A killed process leaves the temporary file behind; the next write to `path`
    starts it again. The folder is made if it is missing. Permissions follow the umask.

    Raises:
        OSError: the file cannot be written.
    """
    target = Path(path).resolve()  # through a symbolic link: the rename must stay on one file system
    target.parent.mkdir(parents=True, exist_ok=True)
    unfinished = target.with_name(f".partial-{target.name}")
    unfinished.unlink(missing_ok=True)
    try:
        unfinished.touch()
        mode = unfinished.stat().st_mode  # some writers make a file of their own, readable by its owner only
        yield unfinished
        unfinished.chmod(mode)
        put_in_place(unfinished, target)
    except BaseException:
        unfinished.unlink(missing_ok=True)
        raise


@contextmanager
def whole_folder(path: str | os.PathLike, overwrite: bool = False) -> Iterator[Path]:
    """Yields the name of a folder to make, beside `path`; at the end of the block that folder replaces `path`.

    An existing folder is moved aside just before and deleted just after, so a failure at any moment loses neither.
    What a killed process leaves beside `path` has a name that begins with `.NAME.partial-`.

    Args:
        path: the folder. An existing folder that is not empty is replaced only with `overwrite`.
        overwrite: see `path`. The caller checks what may be lost.

    Raises:
        FileExistsError: `path` is a file, or holds something while `overwrite` is off.
        OSError: the folder cannot be written.
    """
    target = Path(path).resolve()
    if target.exists() and not (target.is_dir() and (overwrite or not any(target.iterdir()))):
        raise FileExistsError(f"{target} is there already")
    target.parent.mkdir(parents=True, exist_ok=True)
    workspace = Path(tempfile.mkdtemp(dir=target.parent, prefix=f".{target.name}.partial-"))
    new, former = workspace / "new", workspace / "former"
    try:
        yield new
        for folder, _, names in os.walk(new):
            for name in names:
                sync(Path(folder, name))
            sync(Path(folder))
        if target.exists():
            target.rename(former)
        try:
            new.rename(target)
        except BaseException:
            if former.exists():
                former.rename(target)
            raise
        sync(target.parent)
    finally:
        shutil.rmtree(workspace, ignore_errors=True)


def write_text(path: str | os.PathLike, text: str) -> None:
    """Write a text file, UTF-8, whole or not at all (see `whole_file`)."""
    with whole_file(path) as unfinished:
        unfinished.write_text(text, encoding="utf-8")


def write_json(path: str | os.PathLike, value: Any, indent: int | None = 2) -> None:
    """Write a JSON file, whole or not at all (see `whole_file`). Values of other types become strings."""
    write_text(path, json.dumps(value, indent=indent, default=str) + "\n")


def put_in_place(unfinished: Path, target: Path) -> None:
    """Rename a finished file to `target`, in the same folder, after its contents have reached the disk."""
    sync(unfinished)
    unfinished.replace(target)
    sync(target.parent)


def sync(path: Path) -> None:
    """Wait until a file, or the names in a folder, are on the disk."""
    if path.is_dir() and os.name == "nt":  # Windows cannot open folders
        return
    descriptor = os.open(path, os.O_RDONLY if os.name != "nt" else os.O_RDWR)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
