"""Files and folders are there whole or not at all."""

import errno
import json
import multiprocessing
import os
import resource
import signal
from pathlib import Path

import numpy as np
import pytest

from fer_pll.io.atomic import check_writable, whole_file, whole_folder, write_json, write_text
from fer_pll.io.errors import DataError
from fer_pll.io.tables import TableWriter


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


def test_an_error_names_the_file_and_nothing_else(tmp_path):
    message = rf"^\[Errno 28\] No space left on device: '{tmp_path}/rows.csv'$"
    with pytest.raises(OSError, match=message), whole_file(tmp_path / "rows.csv"):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


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


def test_a_write_that_fails_names_the_file_whoever_writes_it(tmp_path):
    """Python names no file for a write that fails, and safetensors has an exception of its own."""
    from safetensors.numpy import save_file

    def limited(action) -> None:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))
        try:
            with whole_file(tmp_path / "table") as unfinished:
                action(unfinished)
        except OSError as error:
            os._exit(error.errno if error.filename == str(tmp_path / "table") else 1)

    def tensors(path: Path) -> None:
        save_file({"x": np.zeros(5000)}, path)

    assert exit_code_of(limited, lambda path: path.write_text("x" * 5000)) == errno.EFBIG
    assert exit_code_of(limited, tensors) == errno.EFBIG
    assert names(tmp_path) == []


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
        os.close(os.open(folder / "weights", os.O_CREAT | os.O_WRONLY, 0o600))  # as safetensors makes its files
    modes = {path.name: path.stat().st_mode & 0o777 for path in tmp_path.rglob("*")}
    assert modes == {"text": 0o640, "own": 0o640, "folder": 0o750, "file": 0o640, "weights": 0o640}


def test_nothing_is_written_through_a_link(tmp_path):
    """Neither through one at the target nor through one that someone has put at the name of the temporary file."""
    victim = tmp_path / "victim"
    victim.write_text("mine")
    for name in ("table.csv", ".partial-table.csv", "table.partial.csv"):
        (tmp_path / name).symlink_to(victim)
    write_text(tmp_path / "table.csv", "new")
    assert victim.read_text() == "mine" and not (tmp_path / "table.csv").is_symlink()
    assert (tmp_path / "table.csv").read_text() == "new"
    writer = TableWriter(tmp_path / "table.csv", {"a": str}, overwrite=True)
    writer.write({"a": "1"})
    writer.close(whole=True)
    assert victim.read_text() == "mine" and (tmp_path / "table.csv").read_text().split() == ["a", "1"]
    assert names(tmp_path) == ["table.csv", "victim"]


def test_links_to_folders_are_followed(tmp_path):
    (tmp_path / "disk").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "disk")
    (tmp_path / "set").symlink_to(tmp_path / "disk" / "empty")
    for name in ("link/set", "set"):
        with whole_folder(tmp_path / name) as folder:
            folder.mkdir()
    write_text(tmp_path / "link" / "text", "a")
    assert names(tmp_path / "disk") == ["empty", "set", "text"] and (tmp_path / "set").is_symlink()


def test_an_error_names_the_file_that_was_asked_for(tmp_path):
    target = Path("/proc/table.csv")
    with pytest.raises(OSError, match=r"'/proc/table\.csv'"):
        write_text(target, "new")
    with pytest.raises(OSError, match=r"'/proc/table\.csv'"):
        TableWriter(target, {"a": str})


@pytest.mark.parametrize("place", ["file", "file/new", "/proc/new", "/proc"])
def test_a_folder_that_cannot_be_written_is_found_before_the_work(tmp_path, place):
    (tmp_path / "file").write_text("a")
    with pytest.raises(DataError, match="name another"):
        check_writable(tmp_path / place)
    assert names(tmp_path) == ["file"]


def test_a_folder_that_can_be_written_need_not_be_there(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for place in ("new", "new/deep", ".", tmp_path):
        check_writable(place)
    assert names(tmp_path) == []


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


def test_of_two_that_write_the_same_folder_the_slower_one_is_refused(tmp_path):
    target = tmp_path / "set"
    with pytest.raises(FileExistsError, match="set is there already"), whole_folder(target) as slow:
        slow.mkdir()
        with whole_folder(target) as quick:
            quick.mkdir()
            (quick / "quick.txt").touch()
    assert [path.name for path in target.iterdir()] == ["quick.txt"]
    assert list(tmp_path.iterdir()) == [target]


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
