"""Errors in what a user gave, and how they are told."""

import errno
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


class DataError(ValueError):
    """Files, folders or options that cannot be used as they are; the message names the place and says what to do."""


class MissingExtra(ImportError, ValueError):
    """A package of an optional extra is not installed; the message says how to install it."""


@contextmanager
def naming_a_full_disk(path: Path) -> Iterator[None]:
    """Turns the error of a disk, quota or file that can grow no more into a DataError that names `path`."""
    try:
        yield
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            raise
        raise DataError(
            f"{path} cannot be written ({error}): make room, then give the same command again; what is whole is used"
        ) from error


def name_some(names: list[str]) -> str:
    return ", ".join(names[:4]) + (f" and {len(names) - 4} more" if len(names) > 4 else "")
