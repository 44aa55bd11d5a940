"""Files and folders are there whole or not at all."""

import errno
import json
import multiprocessing
import os
import resource
import signal
from pathlib import Path

import pytest

from fer_pll.io.atomic import whole_file, whole_folder, write_json, write_text


def names(folder) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def exit_code_of(function, path) -> int:
    process = multiprocessing.get_context("fork").Process(target=function, args=(path,))
    process.start()
    process.join()
    return process.exitcode


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


@pytest.fixture
def umask():
    before = os.umask(0o027)
    yield
    os.umask(before)


def test_a_file_appears_at_the_end_with_its_folder(tmp_path):
    path = tmp_path / "new" / "folder" / "rows.csv"
    with whole_file(path) as unfinished:
        assert unfinished.parent == path.parent and unfinished.suffix == ".csv"
        unfinished.write_text("a,b\n")
        assert not path.exists()
    assert path.read_text() == "a,b\n" and names(path.parent) == ["rows.csv"]


def test_texts_and_json(tmp_path):
    write_text(tmp_path / "text", "Gesicht: glücklich\n")
    assert (tmp_path / "text").read_bytes() == "Gesicht: glücklich\n".encode()
    write_json(tmp_path / "json", {"a": [1, None], "path": tmp_path})
    assert json.loads((tmp_path / "json").read_text()) == {"a": [1, None], "path": str(tmp_path)}
    assert (tmp_path / "json").read_text().startswith('{\n  "a"')
    with pytest.raises(ValueError, match="Circular"):
        value = []
        value.append(value)
        write_json(tmp_path / "json", value)
    assert json.loads((tmp_path / "json").read_text())["a"] == [1, None]


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_a_failure_leaves_the_former_file_and_nothing_else(tmp_path, error):
    path = tmp_path / "table"
    path.write_text("former")
    with pytest.raises(error), whole_file(path) as unfinished:
        unfinished.write_text("half")
        raise error
    assert path.read_text() == "former" and names(tmp_path) == ["table"]


def test_a_full_disk_leaves_the_former_file_and_nothing_else(tmp_path):
    """The limit on the size of a file fails as a full disk does, at whatever byte it is."""

    def write(path: Path) -> None:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))
        try:
            write_text(path, "x" * 5000)
        except OSError as error:
            os._exit(error.errno)

    (tmp_path / "table").write_text("former")
    assert exit_code_of(write, tmp_path / "table") == errno.EFBIG
    assert (tmp_path / "table").read_text() == "former" and names(tmp_path) == ["table"]


def test_a_process_killed_in_the_middle_leaves_the_former_file(tmp_path):
    def write(path: Path) -> None:
        with whole_file(path) as unfinished:
            unfinished.write_text("half")
            die()

    (tmp_path / "table").write_text("former")
    for _ in range(2):
        assert exit_code_of(write, tmp_path / "table") == -signal.SIGKILL
        assert (tmp_path / "table").read_text() == "former"
        assert names(tmp_path) == [".partial-table", "table"]  # one, however often that happens
    write_text(tmp_path / "table", "new")
    assert (tmp_path / "table").read_text() == "new" and names(tmp_path) == ["table"]


def test_permissions_follow_the_umask(tmp_path, umask):
    write_text(tmp_path / "text", "a")
    with whole_file(tmp_path / "own") as unfinished:  # a writer that makes a file of its own
        unfinished.unlink()
        os.close(os.open(unfinished, os.O_CREAT | os.O_WRONLY, 0o600))
    with whole_folder(tmp_path / "folder") as folder:
        folder.mkdir()
        (folder / "file").write_text("a")
    modes = {path.name: path.stat().st_mode & 0o777 for path in tmp_path.rglob("*")}
    assert modes == {"text": 0o640, "own": 0o640, "folder": 0o750, "file": 0o640}


def test_what_a_link_names_is_replaced_not_the_link(tmp_path):
    (tmp_path / "disk").mkdir()
    (tmp_path / "disk" / "table").write_text("former")
    (tmp_path / "link").symlink_to(tmp_path / "disk" / "table")
    write_text(tmp_path / "link", "new")
    assert (tmp_path / "link").is_symlink() and (tmp_path / "disk" / "table").read_text() == "new"


def test_a_folder_appears_at_the_end(tmp_path):
    with whole_folder(tmp_path / "new" / "set") as folder:
        (folder / "deep").mkdir(parents=True)
        (folder / "deep" / "file").write_text("a")
        assert not (tmp_path / "new" / "set").exists()
    assert (tmp_path / "new" / "set" / "deep" / "file").read_text() == "a" and names(tmp_path / "new") == ["set"]


def test_a_folder_that_holds_something_is_replaced_only_if_asked(tmp_path):
    (tmp_path / "set").mkdir()
    with whole_folder(tmp_path / "set") as folder:  # an empty one
        folder.mkdir()
        (folder / "old").write_text("a")
    with pytest.raises(FileExistsError, match="set is there already"), whole_folder(tmp_path / "set"):
        pytest.fail("it must not begin")
    with whole_folder(tmp_path / "set", overwrite=True) as folder:
        folder.mkdir()
        (folder / "new").write_text("b")
        assert names(tmp_path / "set") == ["old"]
    assert names(tmp_path / "set") == ["new"] and names(tmp_path) == ["set"]
    (tmp_path / "file").write_text("a")
    with pytest.raises(FileExistsError), whole_folder(tmp_path / "file", overwrite=True):
        pytest.fail("it must not begin")


@pytest.mark.parametrize("made", [True, False])  # without a new folder the rename fails, when the former one is aside
def test_a_failure_leaves_the_former_folder_and_nothing_else(tmp_path, made):
    (tmp_path / "set").mkdir()
    (tmp_path / "set" / "old").write_text("a")
    with pytest.raises(KeyError if made else FileNotFoundError), whole_folder(tmp_path / "set", True) as folder:
        if made:
            folder.mkdir()
            raise KeyError
    assert names(tmp_path / "set") == ["old"] and names(tmp_path) == ["set"]


def test_a_process_killed_in_the_middle_leaves_the_former_folder(tmp_path):
    (tmp_path / "set").mkdir()
    (tmp_path / "set" / "old").write_text("a")

    def write(path: Path) -> None:
        with whole_folder(path, overwrite=True) as folder:
            folder.mkdir()
            (folder / "half").write_text("b")
            die()

    assert exit_code_of(write, tmp_path / "set") == -signal.SIGKILL
    assert names(tmp_path / "set") == ["old"]
    assert len(names(tmp_path)) == 2 and names(tmp_path)[0].startswith(".set.partial-")
