"""Folders of exported models that are damaged or hostile: one error that names the file, and no run without end."""

import json
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper
from PIL import Image
from transformers import (
    ConvNextConfig,
    ConvNextForImageClassification,
    MobileNetV2Config,
    MobileNetV2ForImageClassification,
    ResNetConfig,
    ResNetForImageClassification,
    ViTConfig,
    ViTForImageClassification,
)

import fer_pll_cli
from fer_pll import FerPllForImageClassification
from fer_pll.inference.onnx_export import export_onnx, write_model
from fer_pll.inference.onnx_operators import check_operators
from fer_pll.inference.onnx_runtime import OnnxClassifier
from fer_pll.io.errors import DataError
from tiny import tiny_config, tiny_processor

CROP = {"name": "FER+", "template": [[0.3, 0.4], [0.7, 0.4], [0.5, 0.6], [0.35, 0.8], [0.65, 0.8]],
        "size": 16, "color": "gray", "margin": 0.0}  # fmt: skip
NAN = float("nan")


@pytest.fixture(scope="module")
def exported(tmp_path_factory) -> Path:
    place = tmp_path_factory.mktemp("exported")
    torch.manual_seed(0)
    FerPllForImageClassification(tiny_config()).save_pretrained(place / "model")
    tiny_processor(face_crop=CROP).save_pretrained(place / "model")
    return export_onnx(str(place / "model"))[0]


@pytest.fixture
def folder(exported, tmp_path) -> Path:
    return Path(shutil.copytree(exported, tmp_path / "folder"))


JSON_DAMAGE = {
    "empty": b"",
    "cut off": b'{"id2label": {"0": "a"',
    "page": b"<!DOCTYPE html><html>",
    "list": b"[]",
    "null": b"null",
    "object": b"{}",
    "number": b"5",
    "deep": b"[" * 100_000,
    "bytes": b"\xff\xfe\x00\x01",
}


@pytest.mark.parametrize("damage", JSON_DAMAGE)
@pytest.mark.parametrize("name", ["config.json", "preprocessor_config.json"])
def test_damaged_json(name, damage, folder):
    (folder / name).write_bytes(JSON_DAMAGE[damage])
    with pytest.raises(DataError, match=f"{folder / name}"):
        OnnxClassifier(folder)


@pytest.mark.parametrize("name", ["config.json", "preprocessor_config.json", "model.onnx"])
def test_a_missing_file(name, folder):
    (folder / name).unlink()
    with pytest.raises(DataError, match=f"no {name} in there"):
        OnnxClassifier(folder)


VALUES: dict[str, list[Any]] = {
    "id2label": [None, [], {}, {"0": "a"}, {"0": "a", "2": "b"}, {"0": 5, "1": "b"}, {"0": "a", "1": "a"}, 5,
                 {str(k): str(k) for k in range(5)}],
    "num_channels": [None, 0, 2, 3, "1", -1, 2**40, [1]],
    "size": [None, 16, "x", [], {}, {"width": 16}, {"width": "x", "height": 16}, {"width": 48.5, "height": 16},
             {"width": 40_000, "height": 40_000}, {"width": 2**31, "height": 2**31}, {"width": 0, "height": 16},
             {"width": 20, "height": 16}, {"width": True, "height": 16}],
    "resample": [None, 9, -1, "x", 2.5, [], {}],
    "rescale_factor": [None, "x", NAN, 0, -1, float("inf"), [], {}],
    "image_mean": [None, [], [0.5, 0.5], ["x"], [NAN], [None], "x", {}],
    "image_std": [None, [], [0.5, 0.5], ["x"], [NAN], [0], [-1], [float("inf")], {}],
    "face_crop": [5, [], {}, {"x": 1}, "x", {**CROP, "size": 20_000}, {**CROP, "size": "x"}, {**CROP, "margin": NAN},
                  {**CROP, "template": [[NAN, 0]] * 5}, {**CROP, "color": 5}],
}  # fmt: skip


@pytest.mark.parametrize(("key", "value"), [(key, value) for key, values in VALUES.items() for value in values])
def test_an_impossible_value_is_named_before_anything_of_its_size_is_made(key, value, folder):
    file = folder / ("config.json" if key == "id2label" else "preprocessor_config.json")
    settings = json.loads(file.read_text())
    file.write_text(json.dumps({**settings, key: value}))
    begin = time.process_time()
    with pytest.raises(DataError) as raised:
        OnnxClassifier(folder)
    assert file.name in str(raised.value) or "model.onnx" in str(raised.value)
    assert "\n" not in str(raised.value) and time.process_time() - begin < 5


def model_of(
    *nodes: onnx.NodeProto, shape: list[Any] | None = None, outputs: int = 4, **named: Any
) -> onnx.ModelProto:
    taken = helper.make_tensor_value_info("pixel_values", TensorProto.FLOAT, shape or ["batch", 1, 16, 16])
    given = helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", outputs])
    graph = helper.make_graph(list(nodes), "graph", [taken], [given], **named)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=9)


def endless(operator: str) -> onnx.ModelProto:
    """A model whose answer needs 2**62 rounds."""
    body = helper.make_graph(
        [helper.make_node("Identity", ["go"], ["again"]), helper.make_node("Add", ["sum", "sum"], ["total"])],
        "body",
        [
            helper.make_tensor_value_info("round", TensorProto.INT64, []),
            helper.make_tensor_value_info("go", TensorProto.BOOL, []),
            helper.make_tensor_value_info("sum", TensorProto.FLOAT, None),
        ],
        [
            helper.make_tensor_value_info("again", TensorProto.BOOL, []),
            helper.make_tensor_value_info("total", TensorProto.FLOAT, None),
        ],
    )
    flat = helper.make_node("Flatten", ["pixel_values"], ["flat"])
    rounds = helper.make_tensor("rounds", TensorProto.INT64, [], [2**62])
    go = helper.make_tensor("true", TensorProto.BOOL, [], [True])
    loop = helper.make_node("Loop", ["rounds", "true", "flat"], ["logits"], body=body)
    if operator == "in a function":
        function = helper.make_function(
            "ours", "Again", ["rounds", "true", "flat"], ["logits"], [loop], [helper.make_opsetid("", 20)]
        )
        call = helper.make_node("Again", ["rounds", "true", "flat"], ["logits"], domain="ours")
        model = model_of(flat, call, initializer=[rounds, go], outputs=256)
        model.functions.append(function)
        return model
    return model_of(flat, loop, initializer=[rounds, go], outputs=256)


@pytest.mark.parametrize("where", ["in the graph", "in a function"])
def test_a_model_that_would_run_for_ever_is_not_run(where, folder):
    (folder / "model.onnx").write_bytes(endless(where).SerializeToString())
    begin = time.monotonic()
    with pytest.raises(DataError, match=r"model\.onnx has the operator '(Loop|ours\.Again)'"):
        OnnxClassifier(folder)
    assert time.monotonic() - begin < 5


@pytest.mark.parametrize(
    ("operator", "domain"),
    [("Loop", ""), ("If", ""), ("Scan", ""), ("ConstantOfShape", ""), ("Tile", ""), ("Range", ""),
     ("RandomNormal", ""), ("SequenceMap", ""), ("Resize", ""), ("Pad", ""),
     ("MatMul", "evil"), ("Attention", "com.microsoft")],
)  # fmt: skip
def test_only_known_operators(operator, domain, tmp_path):
    node = helper.make_node(operator, ["pixel_values"], ["logits"], domain=domain)
    with pytest.raises(DataError, match=f"the operator '{domain}{'.' * bool(domain)}{operator}'"):
        check_operators(model_of(node).SerializeToString(), tmp_path / "model.onnx")


MODEL_DAMAGE: dict[str, Callable[[bytes], bytes]] = {
    "empty": lambda content: b"",
    "half": lambda content: content[: len(content) // 2],
    "without its end": lambda content: content[:-1],
    "page": lambda content: b"<!DOCTYPE html><html><body>404</body></html>",
    "zeros": lambda content: bytes(1000),
    "noise": lambda content: np.random.default_rng(0).bytes(1000),
    "other file": lambda content: b"\x89PNG\r\n\x1a\n" + bytes(99),
    "no graph": lambda content: onnx.ModelProto(ir_version=9).SerializeToString(),
    "other image": lambda content: model_of(
        helper.make_node("Flatten", ["pixel_values"], ["logits"]), shape=["batch", 1, 49, 49], outputs=2401
    ).SerializeToString(),
    "three channels": lambda content: model_of(
        helper.make_node("Flatten", ["pixel_values"], ["logits"]), shape=["batch", 3, 16, 16], outputs=768
    ).SerializeToString(),
    "other classes": lambda content: model_of(
        helper.make_node("Flatten", ["pixel_values"], ["logits"]), outputs=256
    ).SerializeToString(),
    "does not add up": lambda content: model_of(
        helper.make_node("Gemm", ["pixel_values"], ["logits"])
    ).SerializeToString(),
    "external data": lambda content: model_of(
        helper.make_node("Flatten", ["pixel_values"], ["flat"]),
        helper.make_node("MatMul", ["flat", "weights"], ["logits"]),
        initializer=[external("/etc/passwd")],
    ).SerializeToString(),
}  # fmt: skip


def external(location: str) -> onnx.TensorProto:
    tensor = TensorProto(name="weights", data_type=TensorProto.FLOAT, dims=[256, 4])
    tensor.data_location = TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value=location)
    return tensor


@pytest.mark.parametrize("damage", MODEL_DAMAGE)
def test_a_damaged_model(damage, folder, capsys):
    file = folder / "model.onnx"
    file.write_bytes(MODEL_DAMAGE[damage](file.read_bytes()))
    with pytest.raises(DataError, match=str(file)) as raised:
        OnnxClassifier(folder)
    assert "\n" not in str(raised.value)
    Image.new("L", (9, 9)).save(folder / "a.png")
    assert fer_pll_cli.main(["predict", str(folder / "a.png"), "--cropped", "--model", str(folder)]) == 1
    assert f"error: {file}" in capsys.readouterr().err


@pytest.mark.parametrize("value", [NAN, float("inf")])
def test_nan_is_an_error(value, folder):
    flat = helper.make_node("Flatten", ["pixel_values"], ["flat"])
    weights = helper.make_tensor("weights", TensorProto.FLOAT, [256, 4], np.full(1024, value, np.float32))
    model = model_of(flat, helper.make_node("MatMul", ["flat", "weights"], ["logits"]), initializer=[weights])
    (folder / "model.onnx").write_bytes(model.SerializeToString())
    with pytest.raises(DataError, match=r"model\.onnx: its logits are NaN"):
        OnnxClassifier(folder)([Image.new("L", (16, 16), 200)])


common = {"num_labels": 4, "num_channels": 1}
MODELS = {
    "fer_pll": lambda: FerPllForImageClassification(tiny_config()),
    "mean of patches": lambda: FerPllForImageClassification(
        tiny_config(add_query_decoder=False, position_embedding_type="learned", hidden_act="silu")
    ),
    "vit": lambda: ViTForImageClassification(
        ViTConfig(hidden_size=16, num_attention_heads=2, num_hidden_layers=1, intermediate_size=16, image_size=16,
                  patch_size=8, attn_implementation="eager", **common)
    ),
    "resnet": lambda: ResNetForImageClassification(
        ResNetConfig(embedding_size=8, hidden_sizes=[8, 16], depths=[1, 1], **common)
    ),
    "convnext": lambda: ConvNextForImageClassification(
        ConvNextConfig(hidden_sizes=[8, 16], depths=[1, 1], num_stages=2, **common)
    ),
    "mobilenet": lambda: MobileNetV2ForImageClassification(MobileNetV2Config(depth_multiplier=0.35, **common)),
}  # fmt: skip


@pytest.mark.parametrize("dtype", ["float32", "int8"])
@pytest.mark.parametrize(
    "name", [pytest.param(each, marks=[] if each == "fer_pll" else pytest.mark.long) for each in MODELS]
)
def test_what_is_exported_has_known_operators(name, dtype, tmp_path):
    model = MODELS[name]().eval()
    model.config.image_size = 16 if "image_size" not in model.config.to_dict() else model.config.image_size
    write_model(model, tmp_path / "model.onnx", dtype)
    content = (tmp_path / "model.onnx").read_bytes()
    check_operators(content, tmp_path / "model.onnx")
    nodes = onnx.load_from_string(content).graph.node
    assert len(nodes) > 5 and "Conv" in {node.op_type for node in nodes}


def test_an_exported_folder_runs_without_torch_and_without_being_told(exported, tmp_path):
    Image.new("L", (9, 9)).save(tmp_path / "a.png")
    code = (
        "import sys, fer_pll_cli\n"
        f"argv = ['predict', {str(tmp_path / 'a.png')!r}, '--cropped', '--model', {str(exported)!r}]\n"
        "status = fer_pll_cli.main(argv)\n"
        "print(status, 'torch' in sys.modules, 'transformers' in sys.modules)"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.splitlines()[-1] == "0 False False", run.stderr
    assert "1 image in 1 file: 1 face" in run.stdout
