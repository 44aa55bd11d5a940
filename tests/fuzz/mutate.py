"""Damage for files, drawn from a seed: bytes for any file, and changes that keep the form of a format."""

import copy
import csv
import io
import json
import random
import struct
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

Mutate = Callable[[bytes, random.Random], bytes]

HTML = b"<!DOCTYPE html><html><body><h1>404 Not Found</h1></body></html>\n"
NUMBERS = [
    "0",
    "-1",
    "1e308",
    "nan",
    "inf",
    "99999999999",
    "2147483648",
    "9223372036854775808",
    "1.5",
    "0x10",
    "1e-320",
]
TEXTS = [
    "",
    "x",
    "\x00",
    "\n",
    '"',
    "../../x",
    "/etc/passwd",
    "http://127.0.0.1:9/x.png",
    "é☃",
    "=1+1",
    "x" * 70_000,
    "\u202e",
    "{{7*7}}",
]
VALUES: list[Any] = [
    *(None, True, False, 0, -1, 1, 2**31, 2**63, -(2**63), 10**30, 0.5, 1e308, float("nan"), float("inf")),
    *("", "x", "\ud800", "\x00", "../../../etc/passwd", "a" * 5000, "nope", "float1", "evil/kernel"),
    *([], {}, [None], [[]], {"x": 1}, ["a", "b"], [0] * 1000),
]


def damage_bytes(data: bytes, rng: random.Random) -> bytes:
    """One to four of: bits flipped, bytes replaced, a part doubled, taken out, moved or filled, the end cut off."""
    if rng.random() < 0.08:
        return rng.choice([b"", HTML, b"\x00" * len(data), data[: len(data) // 2], data + data, b"PK\x03\x04" + data])
    changed = bytearray(data)
    for _ in range(rng.choice([1, 1, 1, 2, 3, 4])):
        if not changed:
            break
        # Most formats have what matters at their beginning or end.
        region = rng.choice([len(changed), len(changed), min(64, len(changed)), min(512, len(changed))])
        at = rng.randrange(region)
        at = len(changed) - 1 - at if rng.random() < 0.2 else at
        length = min(rng.choice([1, 1, 2, 4, 8, 32, 256]), len(changed) - at)
        kind = rng.randrange(8)
        if kind == 0:
            changed[at] ^= 1 << rng.randrange(8)
        elif kind == 1:
            changed[at : at + length] = rng.randbytes(length)
        elif kind == 2:
            changed[at:at] = changed[at : at + length]
        elif kind == 3:
            del changed[at : at + length]
        elif kind == 4:
            changed[at : at + length] = rng.choice([b"\x00", b"\xff", b"\x7f"]) * length
        elif kind == 5:
            del changed[rng.randrange(len(changed)) :]
        elif kind == 6:
            part = bytes(changed[at : at + length])
            del changed[at : at + length]
            to = rng.randrange(len(changed) + 1)
            changed[to:to] = part
        else:
            changed[at : at + 4] = struct.pack(rng.choice("<>") + "I", rng.choice([0, 1, 2**31 - 1, 2**31, 2**32 - 1]))
    return bytes(changed)


def damage_tree(value: Any, rng: random.Random) -> Any:
    """A JSON value with one node replaced, taken out, renamed or put deeper."""
    places: list[tuple[Any, Any]] = []
    waiting = [value]
    while waiting:
        node = waiting.pop()
        if isinstance(node, (dict, list)):
            for key in node if isinstance(node, dict) else range(len(node)):
                places.append((node, key))
                waiting.append(node[key])
    if not places or rng.random() < 0.03:
        return copy.deepcopy(rng.choice(VALUES))
    parent, key = rng.choice(places)
    kind = rng.randrange(9)
    if kind <= 4:
        parent[key] = copy.deepcopy(rng.choice(VALUES))
    elif kind == 5:
        del parent[key]
    elif kind == 6 and isinstance(parent, dict):
        parent[rng.choice([*TEXTS[:8], f"{key}x", "0", "7"])] = parent.pop(key)
    elif kind == 7:
        parent[key] = [parent[key]]
    else:
        parent[key] = {"x": parent[key]}
    return value


def damage_json(data: bytes, rng: random.Random) -> bytes:
    """A changed JSON file, at times one that nests deeply or has a key twice."""
    try:
        value = json.loads(data)
    except ValueError:
        return damage_bytes(data, rng)
    if rng.random() < 0.04:
        depth = rng.choice([900, 5000, 200_000])
        return rng.choice([b"[" * depth, b"[" * depth + b"]" * depth, b'{"a":' * depth + b"1" + b"}" * depth])
    for _ in range(rng.choice([1, 1, 1, 2, 3])):
        value = damage_tree(value, rng)
    text = json.dumps(value)
    if rng.random() < 0.03 and text.startswith("{"):
        text = text[:-1] + ", " + text[1:]  # each key twice
    return text.encode()


def damage_json_lines(data: bytes, rng: random.Random) -> bytes:
    lines = data.splitlines()
    at = rng.randrange(len(lines))
    if rng.random() < 0.3:
        lines[at : at + 1] = rng.choice([[], [lines[at]] * 2, [b"{}"], [b"[]"], [b"", lines[at]], [b"null"]])
    else:
        lines[at] = damage_json(lines[at], rng)
    return b"\n".join(lines) + b"\n"


def damage_cells(data: bytes, rng: random.Random) -> bytes:
    """A table of text with a cell, a line or the header changed."""
    text = data.decode("utf-8", "replace")
    separator = max(",;\t ", key=text.partition("\n")[0].count)
    rows = [line.split(separator) for line in text.splitlines()]
    for _ in range(rng.choice([1, 1, 2, 3])):
        at = rng.randrange(len(rows)) if rows else 0
        if not rows or not rows[at]:
            break
        cell = rng.randrange(len(rows[at]))
        kind = rng.randrange(8)
        if kind <= 2:
            rows[at][cell] = rng.choice(NUMBERS + TEXTS)
        elif kind == 3:
            del rows[at][cell]
        elif kind == 4:
            rows[at].insert(cell, rng.choice(NUMBERS + TEXTS))
        elif kind == 5:
            rows.insert(at, list(rows[rng.randrange(len(rows))]))
        elif kind == 6:
            del rows[at]
        else:
            rows[0][min(cell, len(rows[0]) - 1)] = rng.choice([*rows[0], *TEXTS])
    text = "\n".join(separator.join(row) for row in rows) + "\n"
    if rng.random() < 0.1:
        stream = io.StringIO()
        csv.writer(stream, delimiter=separator, quoting=csv.QUOTE_ALL).writerows(rows)
        text = stream.getvalue()
    encoded = text.encode(rng.choice(["utf-8", "utf-8", "utf-8", "utf-8", "utf-8-sig", "utf-16", "utf-32"]), "replace")
    return encoded + rng.choice([b"", b"", b"", b"\xff\xfe", b'"', b"\r"])


def damage_words(data: bytes, rng: random.Random) -> bytes:
    """Text such as YAML, with a value, a name or a line changed."""
    lines = data.decode("utf-8", "replace").splitlines()
    odd = [
        *NUMBERS,
        *TEXTS,
        "[1, 2",
        "{}",
        "null",
        "!!python/object/apply:os.system [true]",
        "&a [*a]",
        "2020-01-01",
        "[" * 5000,
        "- x",
        "yes",
    ]
    at = rng.randrange(len(lines))
    name, colon, _ = lines[at].partition(":")
    kind = rng.randrange(5)
    if kind <= 2:
        lines[at] = f"{name}{colon} {rng.choice(odd)}"
    elif kind == 3:
        lines[at] = f"{rng.choice(odd)}: 1"
    else:
        lines[at : at + 1] = rng.choice([[], [lines[at]] * 2, ["\t" + lines[at]], [lines[at], rng.choice(odd)]])
    return ("\n".join(lines) + "\n").encode("utf-8", "replace")


def damage_parquet(data: bytes, rng: random.Random) -> bytes:
    """A Parquet file with another schema or other values."""
    try:
        table = pq.read_table(io.BytesIO(data))
    except (pa.ArrowException, OSError):
        return damage_bytes(data, rng)
    at = rng.randrange(table.num_columns)
    name, column = table.column_names[at], table.column(at)
    kind = rng.randrange(6)
    if kind == 0:
        table = table.remove_column(at)
    elif kind == 1:
        table = table.rename_columns(
            [rng.choice(TEXTS[:9]) if i == at else n for i, n in enumerate(table.column_names)]
        )
    elif kind == 2:
        table = table.append_column(rng.choice([name, "x", ""]), column)
    elif kind == 3:
        table = table.slice(0, rng.choice([0, 1]))
    elif kind == 4:
        other = rng.choice(
            [pa.string(), pa.int64(), pa.float64(), pa.bool_(), pa.binary(), pa.list_(pa.int8()), pa.null()]
        )
        table = table.set_column(at, name, pa.nulls(table.num_rows, other))
    else:
        value = rng.choice([v for v in VALUES if v != "\ud800" and not (isinstance(v, int) and abs(v) > 2**62)])
        try:
            table = table.set_column(at, name, pa.array([value] * table.num_rows))
        except (pa.ArrowException, OverflowError):
            table = table.remove_column(at)
    stream = io.BytesIO()
    try:
        pq.write_table(table, stream)
    except (pa.ArrowException, ValueError):
        return damage_bytes(data, rng)
    return stream.getvalue()


def damage_safetensors(data: bytes, rng: random.Random) -> bytes:
    """A safetensors file with another header, of the right length."""
    (length,) = struct.unpack("<Q", data[:8])
    header = damage_json(data[8 : 8 + length], rng)
    return struct.pack("<Q", len(header)) + header + data[8 + length :]


def damage_png(data: bytes, rng: random.Random) -> bytes:
    """A PNG file with a changed chunk whose checksum is right."""
    chunks, at = [], 8
    while at + 8 <= len(data):
        (length,) = struct.unpack(">I", data[at : at + 4])
        chunks.append((data[at + 4 : at + 8], data[at + 8 : at + 8 + length]))
        at += 12 + length
    at = rng.randrange(len(chunks))
    kind, body = chunks[at]
    chunks[at] = (kind, damage_bytes(body, rng))
    if rng.random() < 0.2:
        chunks.insert(rng.randrange(len(chunks)), chunks[rng.randrange(len(chunks))])
    parts = [
        struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))
        for kind, body in chunks
    ]
    return data[:8] + b"".join(parts)


def damage_npy(data: bytes, rng: random.Random) -> bytes:
    """A NumPy file whose header says something else."""
    descr = rng.choice(["'<f4'", "'|O'", "'<U9'", "[('a', '<f4')]", "'V8'", "'M8[s]'", "nope", "'>f8'", "'<c8'"])
    shape = rng.choice(
        ["()", "(136,)", "(0,)", "(2, 68)", "(10**12,)", "(1000000000000,)", "(-1,)", "(1, 1, 136)", "'x'"]
    )
    header = (
        f"{{'descr': {descr}, 'fortran_order': {rng.choice(['False', 'True', '3'])}, 'shape': {shape}, }}\n".encode()
    )
    return data[:6] + b"\x01\x00" + struct.pack("<H", len(header)) + header + data[128:]


BY_ENDING: dict[str, Mutate] = {
    ".csv": damage_cells,
    ".tsv": damage_cells,
    ".txt": damage_cells,
    ".json": damage_json,
    ".jsonl": damage_json_lines,
    ".npy": damage_npy,
    ".parquet": damage_parquet,
    ".png": damage_png,
    ".safetensors": damage_safetensors,
    ".yaml": damage_words,
}


def damage(file: Path, rng: random.Random) -> None:
    """Damage a file in place: its bytes, or its contents where the form of its ending is known."""
    data = file.read_bytes()
    of_form = BY_ENDING.get(file.suffix)
    changed = data
    for _ in range(20):  # a change may change nothing
        mutate = damage_bytes if of_form is None or rng.random() < 0.35 else of_form
        try:
            changed = mutate(data, rng)
        except RecursionError:
            changed = b"[" * 5000
        if changed != data:
            break
    file.write_bytes(changed)
