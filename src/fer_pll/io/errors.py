"""Errors in what a user gave, and their messages."""

import errno
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ..model.missing_extra import MissingExtra as MissingExtra


class DataError(ValueError):
    """Files, folders or options are not usable as they are; the message names the place and says what to do."""


@contextmanager
def naming_a_full_disk(path: Path) -> Iterator[None]:
    """Turns an error about a full disk, quota or file into a `DataError` that names `path`."""
    try:
        yield
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            raise
        raise DataError(
            f"{path} cannot be written ({error}): make room, then give the same command again; what is whole is used"
        ) from error


def name_some(names: list[str]) -> str:
    """The first four names, and how many more there are."""
    return ", ".join(names[:4]) + (f" and {len(names) - 4} more" if len(names) > 4 else "")
