"""Files that are damaged in every way: each is an error that names the file, and says what to do."""

import ast
import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

import fer_pll
from fer_pll.io import stored
from fer_pll.io.errors import DataError
from fer_pll.io.pretrained import load_model_config
from fer_pll.io.stored import check_shape, read_json, read_tensor_shapes, read_torch, reading

SOURCE = Path(fer_pll.__file__).parent
HTML = b"<!DOCTYPE html><html>404</html>"


@pytest.mark.parametrize(
    "content",
    [
        *(b"", b"{", b"\xff\xfe{", HTML, b"\x00" * 50, b"nul", b'{"a": 1} x'),
        *(b"[" * 200_000, b'{"a":' * 100_000, b"[]", b"null", b"5", b'"text"', b"true"),
    ],
    ids=repr,
)
def test_what_is_no_json_object_is_named(tmp_path, content):
    file = tmp_path / "config.json"
    file.write_bytes(content)
    with pytest.raises(DataError, match=r"config\.json.*: do this"):
        read_json(file, advice="do this")


def test_a_missing_and_a_huge_file_are_named(tmp_path, monkeypatch):
    with pytest.raises(DataError, match=r"none\.json is missing"):
        read_json(tmp_path / "none.json")
    with pytest.raises(DataError, match="cannot be read"):
        read_json(tmp_path)  # a folder
    monkeypatch.setattr(stored, "MAX_JSON_BYTES", 2**20)
    (tmp_path / "big.json").write_bytes(b'{"a": "' + b"x" * 2**20 + b'"}')
    with pytest.raises(DataError, match=r"big\.json has more than 1 MiB"):
        read_json(tmp_path / "big.json")


@pytest.mark.parametrize(
    ("value", "shape", "said"),
    [
        ({"a": 1}, {"a": str}, "a is 1 where text should be"),
        ({"a": True}, {"a": int}, "a is True where a whole number should be"),
        ({"a": True}, {"a": float}, "a is True where a number should be"),
        ({}, {"a": {"b": int}}, "has no a"),
        ({"a": {}}, {"a": {"b": int}}, r"has no a\.b"),
        ({"a": {"x": [1, "2"]}}, {"a": {str: [int]}}, r"a\.x\[1\] is '2' where a whole number"),
        ({"a": [1]}, {"a": ({"b": int}, type(None))}, "a is .1. where an object .* or null should be"),
        ({"a": {"b": "x"}}, {"a": ({"b": int}, type(None))}, r"a\.b is 'x'"),
        ({"a": "x" * 999}, {"a?": int}, r"a is 'x+\.\.\."),
        ([], {}, "is .. where an object"),
        ({}, [int], "is {} where a list"),
    ],
)
def test_a_wrong_shape_is_named_by_its_place(value, shape, said):
    with pytest.raises(DataError, match=f"file.json.*{said}") as error:
        check_shape(value, shape, "file.json")
    assert len(str(error.value)) < 300


@pytest.mark.parametrize(
    ("value", "shape"),
    [
        ({"a": 1, "more": None}, {"a": float, "b?": str}),
        ({"a": None}, {"a": ({"b": int}, type(None))}),
        ({"a": {"b": 2}}, {"a": ({"b": int}, type(None))}),
        ({"x": 1, "y": [True]}, {str: object}),
        ([["a"], []], [[str]]),
    ],
)
def test_a_right_shape_is_taken(value, shape):
    check_shape(value, shape, "file.json")


def test_weights_and_states_that_are_damaged_are_named(tmp_path):
    weights, state = tmp_path / "model.safetensors", tmp_path / "optimizer.pt"
    save_file({"a": torch.zeros(3, 2)}, weights)
    torch.save({"a": torch.zeros(3), "b": [1, "x"]}, state)
    assert read_tensor_shapes(weights) == {"a": (3, 2)}
    assert set(read_torch(state)) == {"a", "b"}
    for file, read in ((weights, read_tensor_shapes), (state, read_torch)):
        whole = file.read_bytes()
        for damaged in (b"", whole[: len(whole) // 2], whole[:-1], HTML, whole[:8], b"\xff" * 100):
            file.write_bytes(damaged)
            with pytest.raises(DataError, match=f"{file.name} cannot be read") as error:
                read(file)
            assert error.value.__cause__ is not None
        file.unlink()
        with pytest.raises(DataError, match=f"{file.name} is missing"):
            read(file)


class Evil:
    """What a hostile pickle does: it touches a file when it is opened."""

    def __init__(self, file: Path) -> None:
        self.file = file

    def __reduce__(self) -> tuple:
        return Path.touch, (self.file,)


def test_a_pickle_with_code_runs_nothing(tmp_path):
    torch.save({"a": Evil(tmp_path / "ran")}, tmp_path / "optimizer.pt")
    with pytest.raises(DataError, match=r"optimizer\.pt cannot be read"):
        read_torch(tmp_path / "optimizer.pt")
    assert not (tmp_path / "ran").exists()


def test_every_exception_becomes_ours_with_its_cause(tmp_path):
    for error in (KeyError("a"), RecursionError(), MemoryError(), AttributeError("x\ny"), OSError(5, "I/O")):
        with (
            pytest.raises(DataError, match=r"file cannot be read \(\w+.*\): again") as raised,
            reading("file", "again"),
        ):
            raise error
        assert raised.value.__cause__ is error and "\n" not in str(raised.value)
    with pytest.raises(DataError, match=r"^mine$"), reading("file"):
        raise DataError("mine")
    with pytest.raises(KeyboardInterrupt), reading("file"):
        raise KeyboardInterrupt


def calls(tree: ast.AST) -> list[tuple[str, ast.Call]]:
    return [(ast.unparse(node.func), node) for node in ast.walk(tree) if isinstance(node, ast.Call)]


def test_checkpoints_are_loaded_and_their_files_read_in_one_place():
    """No other module of the package opens a model or a pickle, and none lets code in a checkpoint run."""
    found = set()
    for path in SOURCE.rglob("*.py"):
        module = path.relative_to(SOURCE).as_posix()
        for name, _ in calls(ast.parse(path.read_text())):
            last = name.rpartition(".")[2]
            loads = last in ("from_pretrained", "from_config", "get_config_dict") and not name.startswith("FaceCrop.")
            if loads or name in ("torch.load", "json.load", "pickle.load", "load_file", "torch.hub.load"):
                found.add((module, name))
    assert found == {
        ("inference/pipeline.py", "super().from_pretrained"),  # of a name on the Hub, as `pipeline` was told
        ("io/pretrained.py", "PreTrainedConfig.get_config_dict"),
        ("io/pretrained.py", "(config_class or AutoConfig).from_pretrained"),
        ("io/pretrained.py", "processor_class.from_pretrained"),
        ("io/pretrained.py", "AutoImageProcessor.from_pretrained"),
        ("io/pretrained.py", "model_class.from_pretrained"),
        ("io/pretrained.py", "model_class.from_config"),
        ("io/stored.py", "torch.load"),
        ("io/stored.py", "load_file"),
    }
    for name, call in calls(ast.parse((SOURCE / "io" / "pretrained.py").read_text())):
        if name.endswith((".from_pretrained", ".from_config")) and not name.startswith("processor_class"):
            trust = {keyword.arg: ast.unparse(keyword.value) for keyword in call.keywords}
            assert trust["trust_remote_code"] == "False", name


def test_json_of_this_kind_is_read_in_one_place():
    """What else parses JSON: text inside other files, and the ONNX folder, which runs without the rest."""
    parses = set()
    for path in SOURCE.rglob("*.py"):
        if any(name == "json.loads" for name, _ in calls(ast.parse(path.read_text()))):
            parses.add(path.relative_to(SOURCE).as_posix())
    others = {"inference/onnx_runtime.py", "io/tables.py", "data/provenance.py", "labels/confidence_table.py"}
    assert parses - {"io/stored.py"} <= others


def test_the_message_of_a_strict_config_is_its_cause(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "fer_pll", "hidden_size": 0}))
    with pytest.raises(DataError, match=r"config\.json: cannot be used \(ValueError: hidden_size=0 must be"):
        load_model_config(tmp_path)
