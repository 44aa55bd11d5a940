"""Atomic writes: a file or folder is complete or absent, whatever interrupts the writing."""

import json
import os
import re
import shutil
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from .errors import DataError

UNFINISHED = ".partial-"
"""Beginning of the name of a file that is being written, or was when its process was killed."""


@contextmanager
def whole_file(path: str | os.PathLike) -> Iterator[Path]:
    """Yields a temporary name beside `path`; at the end of the block that file replaces `path`.

    If the block raises, or the process is killed, `path` stays as it was. The temporary name keeps the ending, because
    many writers choose the format by it. A killed process leaves the temporary file behind; the next write to `path`
    starts it again. The folder is made if it is missing. Permissions follow the umask. Nothing is written through a
    symbolic link: a link at `path` is replaced, and what it names stays as it was.

    Raises:
        OSError: the file cannot be written.
    """
    target = Path(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    unfinished = target.with_name(f"{UNFINISHED}{target.name}")
    with naming(target, unfinished):
        mode = start_file(unfinished)
        try:
            yield unfinished
            unfinished.chmod(mode)  # some writers make a file of their own, readable by its owner only
            put_in_place(unfinished, target)
        except BaseException:
            unfinished.unlink(missing_ok=True)
            raise


@contextmanager
def whole_folder(path: str | os.PathLike, overwrite: bool = False) -> Iterator[Path]:
    """Yields the name of a folder to make, beside `path`; at the end of the block that folder replaces `path`.

    Where `path` is a symbolic link, that is done where the link leads: data may lie on another disk.

    An existing folder is moved aside just before and deleted just after, so a failure at any moment loses neither.
    What a killed process leaves beside `path` has a name that begins with `.NAME.partial-`. The permissions of the
    files follow the umask, whatever their writers chose.

    Args:
        path: the folder. An existing folder that is not empty is replaced only with `overwrite`.
        overwrite: see `path`. The caller checks what may be lost.

    Raises:
        FileExistsError: `path` is a file, or holds something while `overwrite` is off.
        OSError: the folder cannot be written.
    """
    target = Path(path).resolve()

    def check_free() -> None:
        if target.exists() and not (target.is_dir() and (overwrite or not any(target.iterdir()))):
            raise FileExistsError(f"{target} is there already")

    check_free()
    target.parent.mkdir(parents=True, exist_ok=True)
    workspace = Path(tempfile.mkdtemp(dir=target.parent, prefix=f".{target.name}.partial-"))
    new, former = workspace / "new", workspace / "former"
    try:
        yield new
        mode = start_file(workspace / "mode")
        for folder, _, names in os.walk(new):
            for name in names:
                file = Path(folder, name)
                if not file.is_symlink():
                    file.chmod(mode)
                    sync(file)
            sync(Path(folder))
        check_free()  # another process may have been quicker
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


def check_local(place: str | os.PathLike) -> None:
    """Raise an error unless results can be written at a path: an address, or an empty one, would be a folder here.

    Raises:
        DataError: it is an address such as s3://bucket/run, or empty.
    """
    text = os.fspath(place)
    if not text.strip():
        raise DataError("the path of an output is empty: name a folder or file")
    if re.match(r"[A-Za-z][A-Za-z0-9+.-]+:/", text):  # of two letters or more: C:/ is a drive
        raise DataError(f"{text} is an address, but results are written to this machine: name a folder or file on it")


def check_writable(folder: str | os.PathLike) -> None:
    """Raise an error if `folder` cannot be made, or no file can be made in it. Leaves nothing behind.

    For the beginning of a command: whoever waits for results learns at once that there is no place for them.

    Raises:
        DataError: a part of the path is a file, or a folder cannot be written to; or as `check_local`.
    """
    check_local(folder)
    existing = next(place for place in (Path(folder), *Path(folder).absolute().parents) if os.path.lexists(place))
    if not existing.is_dir():
        raise DataError(f"{folder} cannot be a folder, because {existing} is a file: name another one")
    try:
        with tempfile.TemporaryFile(dir=existing):
            pass
    except OSError as error:
        raise DataError(
            f"{folder} cannot be written ({error.strerror}: {existing}): name another, or make that one writable"
        ) from error


def check_apart(out: str | os.PathLike, read: Iterable[str | os.PathLike]) -> None:
    """Raise an error if `out` is one of the folders that are read, which writing would change or replace.

    Raises:
        DataError: it is, perhaps by another name.
    """
    if Path(out).resolve() in {Path(folder).resolve() for folder in read}:
        raise DataError(f"{out} is also read, so it is not written: name another folder")


def start_file(path: Path) -> int:
    """Make an empty file, in place of what has that name, and return its mode, which follows the umask.

    A symbolic link of that name is removed. If someone puts one there meanwhile, this fails: it is not followed.

    Raises:
        OSError: the file cannot be made.
    """
    path.unlink(missing_ok=True)
    descriptor = os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666)
    try:
        return os.fstat(descriptor).st_mode & 0o777
    finally:
        os.close(descriptor)


@contextmanager
def naming(target: Path, unfinished: Path) -> Iterator[None]:
    """Name `target` in errors about the temporary file, whose name nobody has given.

    A write that fails names no file, and safetensors has an exception of its own for it: both become an `OSError` with
    the name.
    """
    try:
        yield
    except OSError as error:
        if error.errno is not None and error.filename in (None, str(unfinished), unfinished):
            raise OSError(error.errno, os.strerror(error.errno), str(target)) from error
        raise
    except Exception as error:
        found = re.search(r"\(os error (\d+)\)", str(error))  # as Rust has it
        if found is None:
            raise
        raise OSError(int(found[1]), os.strerror(int(found[1])), str(target)) from error


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
