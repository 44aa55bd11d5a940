import gzip
import io
import json
import os
import subprocess
import sys
import tarfile
import textwrap
import threading
import tracemalloc
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from datasets import Dataset, DatasetDict

from fer_pll.data.dataset import save_dataset
from fer_pll.data.streaming.shards import FolderShard, ParquetShard, TarShard, find_shards, read_shard
from fer_pll.io.errors import DataError
from fer_pll.io.images import ImageError, decode_image
from tiny import make_dataset
from toy_streaming import encoded, write_folder, write_parquet, write_tar

FILES = encoded(20, 0)


@pytest.fixture(scope="module")
def shards(tmp_path_factory):
    folder = tmp_path_factory.mktemp("shards")
    write_parquet(folder / "p.parquet", FILES)
    write_tar(folder / "t.tar", FILES)
    write_tar(folder / "g.tar.gz", FILES, "w:gz")
    write_folder(folder / "pictures", FILES)
    return folder


@pytest.mark.parametrize("name", ["p.parquet", "t.tar", "g.tar.gz"])
@pytest.mark.parametrize("start", [0, 1, 8, 13, 20])
def test_a_shard_gives_its_images_from_any_row_on(shards, name, start):
    (shard,) = find_shards(str(shards / name))
    rows = list(shard.rows(start))
    assert [row[0] for row in rows] == list(range(start, 20))
    assert [row[2] for row in rows] == FILES[start:]
    assert all(f"{name}:{number}" in row_id for number, row_id, _ in rows)


def test_rows_before_the_start_are_not_read_from_parquet(shards, tmp_path):
    contents = bytearray((shards / "p.parquet").read_bytes())
    contents[4:200] = bytes(196)  # in the first row group
    (tmp_path / "p.parquet").write_bytes(contents)
    shard = ParquetShard(str(tmp_path / "p.parquet"))
    assert [row[2] for row in shard.rows(8)] == FILES[8:]
    rows = list(shard.rows())
    assert isinstance(rows[0][2], ImageError) and "rows 0 to 7" in str(rows[0][2])
    assert [row[2] for row in rows[1:]] == FILES[8:]  # the other row groups are whole


MEMBERS = """
import io, sys, tarfile
path, kind, size = sys.argv[1], sys.argv[2], int(sys.argv[3])


class Zeros(io.RawIOBase):
    def read(self, count=-1):
        return bytes(count)


with tarfile.open(path, "w:gz", compresslevel=1, format=tarfile.GNU_FORMAT) as archive:
    member = tarfile.TarInfo("0.png")
    if kind != "image":
        member.type = {"long name": tarfile.GNUTYPE_LONGNAME, "attributes": tarfile.XHDTYPE}[kind]
    member.size = size
    archive.addfile(member, Zeros())
    if kind != "image":
        member = tarfile.TarInfo("0.png")
    for number in (1, 2):
        member = tarfile.TarInfo(f"{number}.png")
        member.size = 3
        archive.addfile(member, io.BytesIO(b"abc"))
"""


@pytest.mark.parametrize("kind", ["image", "long name", "attributes"])
def test_an_archive_that_would_fill_the_memory(tmp_path, kind):
    """A few hundred KiB that become 300 MiB: an image, or the name of a file."""
    subprocess.run([sys.executable, "-c", MEMBERS, tmp_path / "a.tar.gz", kind, str(300 * 2**20)], check=True)
    assert (tmp_path / "a.tar.gz").stat().st_size < 2 * 2**20
    tracemalloc.start()
    rows = list(read_shard(TarShard(str(tmp_path / "a.tar.gz"))))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 30 * 2**20
    assert isinstance(rows[0][2], ImageError)
    if kind == "image":
        assert "300 MiB, more than 200 MiB: too large an image" in str(rows[0][2])
        assert [row[2] for row in rows[1:]] == [b"abc", b"abc"]
    else:
        assert "314,572,800 bytes of names" in str(rows[0][2]) and len(rows) == 1


def test_long_names_are_read(tmp_path):
    name = "x" * 3000 + ".png"
    for form in (tarfile.GNU_FORMAT, tarfile.PAX_FORMAT):
        with tarfile.open(tmp_path / "a.tar", "w", format=form) as archive:
            member = tarfile.TarInfo(name)
            member.size = 3
            archive.addfile(member, io.BytesIO(b"abc"))
        assert [row[2] for row in read_shard(TarShard(str(tmp_path / "a.tar")))] == [b"abc"]


def test_a_folder_gives_its_images_at_any_depth(shards):
    (shard,) = find_shards(str(shards / "pictures"))
    assert [row[0] for row in shard.rows(18)] == [18, 19]
    assert sorted(Path(file).read_bytes() for _, _, file in shard.rows()) == sorted(FILES)


def test_a_prepared_set_is_cut_into_shards_of_its_training_images(tmp_path, monkeypatch):
    monkeypatch.setattr("fer_pll.data.streaming.shards.IMAGES_PER_SHARD", 20)
    rows = make_dataset(48)
    save_dataset(DatasetDict(train=rows, test=make_dataset(5)), tmp_path / "set")
    found = find_shards(str(tmp_path / "set"))
    assert [len(list(shard.rows())) for shard in found] == [20, 20, 8]
    number, row_id, image = next(found[1].rows(3))
    assert (number, row_id) == (3, "row:23")
    assert decode_image(image, row_id).convert("L").tobytes() == rows[23]["image"].tobytes()


def test_what_a_source_names(shards, tmp_path):
    kinds = [type(shard) for shard in find_shards(str(shards))]
    assert kinds == [ParquetShard, TarShard, TarShard, FolderShard]
    assert len(find_shards(str(shards / "*.tar*"))) == 2
    names = [shard.name for shard in find_shards("https://host/{00..02}/faces-{8..10}.tar?key=1")]
    assert names[:3] == [f"https://host/00/faces-{number}.tar?key=1" for number in (8, 9, 10)]
    assert len(names) == 9


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("{tmp}/none/none", "no such file or folder"),
        ("{tmp}", "no Parquet files, no tar files and no images .* among 1 files"),
        ("{tmp}/*.parquet", "no file matches"),
    ],
)
def test_a_source_that_holds_nothing_is_named(tmp_path, source, message):
    (tmp_path / "list.csv").write_text("a")
    with pytest.raises(DataError, match=message):
        find_shards(source.format(tmp=tmp_path))


def test_an_address_may_be_longer_than_a_name_on_disk():
    signed = f"https://host/faces.tar?signature={'a' * 300}"
    assert find_shards(signed) == [TarShard(signed)]


def test_a_name_that_neither_a_folder_nor_the_hub_knows(monkeypatch):
    monkeypatch.setattr("datasets.config.HF_HUB_OFFLINE", True)
    with pytest.raises(DataError, match="--data some/faces: there is no such folder here, and no such data set"):
        find_shards("some/faces")


def test_the_column_of_images_is_found_or_asked_for(tmp_path):
    path = tmp_path / "p.parquet"
    pq.write_table(pa.table({"image": FILES, "mask": FILES, "id": list(range(20))}), path)
    assert [row[2] for row in ParquetShard(str(path)).rows()] == FILES
    pq.write_table(pa.table({"left": FILES, "right": FILES}), path)
    with pytest.raises(ValueError, match="2 columns hold images, of left, right: name the one"):
        next(ParquetShard(str(path)).rows())
    pq.write_table(pa.table({"id": [1]}), path)
    with pytest.raises(ValueError, match="0 columns"):
        next(ParquetShard(str(path)).rows())


def test_a_parquet_file_without_the_bytes_of_its_images(tmp_path):
    Dataset.from_dict({"image": [None, {"bytes": FILES[0], "path": None}]}).to_parquet(tmp_path / "p.parquet")
    first, second = ParquetShard(str(tmp_path / "p.parquet")).rows()
    assert isinstance(first[2], ImageError) and second[2] == FILES[0]


def test_a_tar_file_that_was_cut_off_never_passes_for_whole(shards, tmp_path):
    """tarfile itself takes one that ends between two files, or within a header, for whole."""
    whole = (shards / "t.tar").read_bytes()
    path = tmp_path / "cut.tar"
    end = len(whole.rstrip(b"\0")) + 512  # what follows only says that nothing follows
    for length in [*range(0, 4096, 256), *range(4096, end - 1024, 1536)]:
        path.write_bytes(whole[:length])
        rows = list(read_shard(TarShard(str(path)), 0))
        assert isinstance(rows[-1][2], ImageError), length
        assert [row[2] for row in rows[:-1]] == FILES[: len(rows) - 1]
        assert f"{path}" == rows[-1][1]


@pytest.mark.parametrize("name", ["t.tar", "g.tar.gz", "p.parquet", "none.tar", "empty.tar"])
def test_a_damaged_or_missing_shard_ends_with_a_row_that_says_so(shards, tmp_path, name):
    path = tmp_path / name
    if (shards / name).is_file():
        contents = bytearray((shards / name).read_bytes())
        contents[len(contents) // 2 :] = b"x" * (len(contents) - len(contents) // 2)
        path.write_bytes(contents)
    elif name == "empty.tar":
        write_tar(path, [])
    rows = list(read_shard(ParquetShard(str(path)) if name == "p.parquet" else TarShard(str(path)), 0))
    assert isinstance(rows[-1][2], ImageError)
    assert len(rows) < 21


COMMIT = "a" * 40


@pytest.fixture
def server(shards):
    """The shards on a loopback HTTP server that understands ranges, and as the data set user/faces of a Hub."""
    on_hub = {"data/train-00000-of-00002.parquet": "p.parquet", "data/train-00001-of-00002.parquet": "p.parquet"}
    on_hub["data/test-00000-of-00001.parquet"] = "p.parquet"

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            path = self.path.split("?")[0]
            if path.startswith("/api/datasets/user/faces/tree/"):
                folder = path.split("/tree/")[1].partition("/")[2]
                files = [{"type": "file", "path": name, "size": self.size(name), "oid": "b"} for name in on_hub]
                self.answer_json(files if folder else [{"type": "directory", "path": "data", "oid": "c"}])
            elif path.startswith("/api/datasets/user/faces"):
                files = [{"rfilename": name} for name in on_hub]
                self.answer_json({"id": "user/faces", "sha": COMMIT, "siblings": files})
            elif "/resolve/" in path:
                name = path.split("/resolve/")[1].partition("/")[2]
                self.answer(shards / on_hub[name] if name in on_hub else None)
            else:
                self.answer(shards / path.lstrip("/"))

        do_HEAD = do_GET

        def size(self, name):
            return (shards / on_hub[name]).stat().st_size

        def answer_json(self, content):
            body = json.dumps(content).encode()
            self.send_response(200)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def answer(self, path):
            self.send_response(404 if path is None or not path.is_file() else 206 if self.headers["Range"] else 200)
            self.send_header("X-Repo-Commit", COMMIT)
            if path is None or not path.is_file():
                self.send_header("X-Error-Code", "EntryNotFound")
                self.send_header("Content-Length", "0")
                return self.end_headers()
            contents = path.read_bytes()
            low, _, high = (self.headers["Range"] or "bytes=0-").removeprefix("bytes=").partition("-")
            first, last = int(low), min(int(high or len(contents)), len(contents) - 1)
            self.send_header("ETag", '"1"')
            self.send_header("Content-Range", f"bytes {first}-{last}/{len(contents)}")
            self.send_header("Content-Length", str(last - first + 1))
            self.end_headers()
            if self.command == "GET":
                self.wfile.write(contents[first : last + 1])

        def log_message(self, *args):
            pass

    http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=http.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{http.server_port}"
    http.shutdown()


def test_shards_on_a_server(server):
    for name in ("p.parquet", "t.tar", "g.tar.gz"):
        (shard,) = find_shards(f"{server}/{name}")
        assert [row[2] for row in shard.rows()] == FILES, name
    (missing,) = find_shards(f"{server}/missing.tar")
    (row,) = read_shard(missing, 0)
    assert "FileNotFoundError" in str(row[2])


def test_a_data_set_on_the_hub(server, tmp_path):
    """By its name, of which the split train is taken, and by the address of its files."""
    code = """
        import json
        from fer_pll.data.streaming.shards import find_shards
        for source in ("user/faces", "hf://datasets/user/faces/data/train-*.parquet"):
            print(json.dumps([[shard.name, [len(row[2]) for row in shard.rows()]] for shard in find_shards(source)]))
    """
    environment = {name: value for name, value in os.environ.items() if name != "HF_HUB_OFFLINE"}
    environment |= {"HF_ENDPOINT": server, "HF_HOME": str(tmp_path)}  # read when the libraries are imported
    command = [sys.executable, "-c", textwrap.dedent(code)]
    output = subprocess.run(command, env=environment, check=True, stdout=subprocess.PIPE, timeout=200).stdout
    by_name, by_address = (dict(json.loads(line)) for line in output.splitlines())
    files = [f"data/train-0000{number}-of-00002.parquet" for number in (0, 1)]
    assert list(by_name) == [f"hf://datasets/user/faces@{COMMIT}/{file}" for file in files]
    assert list(by_address) == [f"hf://datasets/user/faces/{file}" for file in files]
    assert [*by_name.values(), *by_address.values()] == 4 * [[len(file) for file in FILES]]


def test_gzip_that_was_cut_off(shards, tmp_path):
    whole = (shards / "g.tar.gz").read_bytes()
    assert gzip.decompress(whole)
    for length in (0, 10, len(whole) // 2, len(whole) - 200):
        (tmp_path / "cut.tar.gz").write_bytes(whole[:length])
        assert isinstance(list(read_shard(TarShard(str(tmp_path / "cut.tar.gz")), 0))[-1][2], ImageError)
