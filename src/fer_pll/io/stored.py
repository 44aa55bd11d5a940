"""Reading files of checkpoints, runs and prepared sets: any damage becomes a `DataError` that names the file.

A download that was cut off, an HTML page in a file's place, and values of another type than the program writes give
the same kind of error. This module is the only one that reads such JSON, safetensors and PyTorch files.
"""

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from .errors import DataError

MAX_JSON_BYTES = 2**26
"""A JSON file beside a model has kilobytes; the log of a run of a million steps has some megabytes."""

AGAIN = "get the file again, or write it again with the command that made it"


@contextmanager
def reading(path: str | os.PathLike, advice: str = AGAIN) -> Iterator[None]:
    """Turns every exception of the code that reads `path` into a `DataError`, with the original as its cause.

    It catches all of them, because libraries raise any kind of exception for files that are damaged or hostile. Put
    nothing but the reading inside.

    Args:
        path: the file or folder, for the message.
        advice: what to do about it, for the message.

    Raises:
        DataError: the code raised any `Exception`; a `DataError` stays as it is.
    """
    try:
        yield
    except DataError:
        raise
    except Exception as error:
        if isinstance(error, FileNotFoundError) and not Path(path).exists():
            raise DataError(f"{path} is missing: {advice}") from error
        raise DataError(f"{path} cannot be read ({describe(error)}): {advice}") from error


def describe(error: BaseException) -> str:
    """Kind and message of an exception, in one line of at most 300 characters."""
    cause = error.__cause__ if type(error).__name__.startswith("Strict") and error.__cause__ else error
    text = " ".join(str(cause).split())
    return f"{type(cause).__name__}: {text if len(text) <= 300 else text[:297] + '...'}".removesuffix(": ")


def read_json(path: str | os.PathLike, shape: Any = dict, advice: str = AGAIN) -> Any:
    """The value in a JSON file.

    Args:
        path: the file, UTF-8.
        shape: what the value must be like, see `check_shape`.
        advice: what to do about a damaged file, for the message.

    Raises:
        DataError: the file is missing, has more than `MAX_JSON_BYTES`, is not JSON, or has another shape.
    """
    with reading(path, advice):
        with Path(path).open("rb") as stream:
            content = stream.read(MAX_JSON_BYTES + 1)
        if len(content) > MAX_JSON_BYTES:
            raise DataError(f"{path} has more than {MAX_JSON_BYTES // 2**20} MiB, which no such file has: {advice}")
        try:
            value = json.loads(content.decode("utf-8-sig"))
        except (ValueError, RecursionError) as error:
            raise DataError(f"{path} is not JSON ({describe(error)}): {advice}") from error
    check_shape(value, shape, str(path), advice)
    return value


def check_shape(value: Any, shape: Any, place: str, advice: str = AGAIN) -> None:
    """Check that a value from a file is built as expected.

    Args:
        value: of JSON.
        shape: a type (`bool` is no `int`, an `int` is a `float`, and all is an `object`); `[shape]` for a list;
            `{str: shape}` for an object with any keys; `{"name": shape, "name?": shape}` for an object that has these
            keys, those with `?` perhaps, and may have others; a tuple of shapes for any one of them.
        place: the file, for the message.
        advice: what to do about it, for the message.

    Raises:
        DataError: something is of another type or missing; the message names the place, such as `size.width`.
    """

    def fail(where: str, found: Any, expected: str) -> None:
        found = repr(found)
        found = found if len(found) <= 60 else found[:57] + "..."
        raise DataError(f"{place}{f': {where}' if where else ''} is {found} where {expected} should be: {advice}")

    def check(value: Any, shape: Any, where: str) -> None:
        if isinstance(shape, dict):
            if not isinstance(value, dict):
                fail(where, value, "an object {...}")
            for name, inner in shape.items():
                if name is str:
                    for key, each in value.items():
                        check(each, inner, f"{where}.{key}".strip("."))
                    continue
                key = name.removesuffix("?")
                if key in value:
                    check(value[key], inner, f"{where}.{key}".strip("."))
                elif key == name:
                    raise DataError(f"{place} has no {f'{where}.{key}'.strip('.')}: {advice}")
        elif isinstance(shape, list):
            if not isinstance(value, list):
                fail(where, value, "a list")
            for number, each in enumerate(value):
                check(each, shape[0], f"{where}[{number}]")
        else:
            shapes = shape if isinstance(shape, tuple) else (shape,)
            types = tuple(each for each in shapes if isinstance(each, type))
            types += (int,) if float in types else ()
            if isinstance(value, types) and (not isinstance(value, bool) or {bool, object} & set(types)):
                return
            for inner in shapes:
                if isinstance(value, type(inner)) and not isinstance(inner, type):
                    check(value, inner, where)
                    return
            names = [_TYPE_NAMES[each if isinstance(each, type) else type(each)] for each in shapes]
            fail(where, value, " or ".join(names))

    check(value, shape, "")


_TYPE_NAMES = {
    dict: "an object {...}",
    list: "a list",
    str: "text",
    int: "a whole number",
    float: "a number",
    bool: "true or false",
    type(None): "null",
}


def read_tensor_shapes(path: str | os.PathLike, advice: str = AGAIN) -> dict[str, tuple[int, ...]]:
    """Names and shapes of the tensors in a safetensors file. Reads its header, and checks that the file is whole.

    Raises:
        DataError: the file is missing, cut off, or no safetensors file.
    """
    from safetensors import safe_open  # not above: programs without torch import this package

    with reading(path, advice), safe_open(path, framework="np") as file:
        return {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118  # no __iter__


def read_tensors(path: str | os.PathLike, advice: str = AGAIN) -> dict[str, Any]:
    """The tensors of PyTorch in a safetensors file, by name.

    Raises:
        DataError: the file is missing, cut off, or no safetensors file.
    """
    from safetensors.torch import load_file  # not above: programs without torch import this package

    with reading(path, advice):
        return load_file(path)


def sort_header(path: str | os.PathLike) -> None:
    """Put the metadata of a safetensors file in order, in place, so that equal contents give equal files.

    The library writes them in a random order.
    """
    with Path(path).open("r+b") as file:
        size = int.from_bytes(file.read(8), "little")
        header = json.loads(file.read(size))
        header["__metadata__"] = dict(sorted(header.get("__metadata__", {}).items()))
        ordered = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode().ljust(size)
        if len(ordered) == size:  # the same text in another order
            file.seek(8)
            file.write(ordered)


def read_torch(path: str | os.PathLike, advice: str = AGAIN, **options: Any) -> Any:
    """The value in a file of `torch.save` that holds tensors, numbers, text and containers only; no code runs.

    Args:
        path: the file.
        advice: what to do about a damaged file, for the message.
        options: of `torch.load`.

    Raises:
        DataError: the file is missing or damaged, or holds something else, which could be code.
    """
    import torch
    from transformers.trainer_pt_utils import safe_globals  # the types of NumPy in Trainer's random states

    with reading(path, advice), safe_globals():
        return torch.load(path, weights_only=True, **options)
