"""The operators of an ONNX file, read before onnxruntime builds anything from it.

The file's format is protobuf: a message is a row of fields, each with a number, a type and a value. Only the numbers
below are followed; weights are passed over, not copied. See onnx.proto of ONNX and the encoding of protobuf.
"""

from collections.abc import Iterator
from pathlib import Path

from ..io.errors import DataError

# What `fer-pll export` writes for our models and other image classifiers of transformers, in float32 and int8, and the
# like. None of them repeats a part of the model, so the time is bounded by the file and the sizes of its tensors. A
# hostile file can still ask for much memory (Expand): take exported models, as all models, from people you trust.
# fmt: off
OPERATORS = frozenset((
    "Abs", "Add", "And", "AveragePool", "BatchNormalization", "Cast", "Ceil", "Clip", "Concat", "Constant", "Conv",
    "ConvInteger", "DequantizeLinear", "Div", "Dropout", "DynamicQuantizeLinear", "Elu", "Equal", "Erf", "Exp",
    "Expand", "Flatten", "Floor", "Gather", "Gelu", "Gemm", "GlobalAveragePool", "GlobalMaxPool", "Greater",
    "GroupNormalization", "HardSigmoid", "HardSwish", "Identity", "InstanceNormalization", "IsNaN",
    "LayerNormalization", "LeakyRelu", "Less", "Log", "MatMul", "MatMulInteger", "Max", "MaxPool", "Min", "Mish",
    "Mul", "Neg", "Not", "Or", "Pow", "PRelu", "QLinearConv", "QLinearMatMul", "QuantizeLinear", "Reciprocal",
    "ReduceMax", "ReduceMean", "ReduceMin", "ReduceSum", "Relu", "Reshape", "Round", "Selu", "Shape", "Sigmoid",
    "Slice", "Softmax", "Softplus", "Split", "Sqrt", "Squeeze", "Sub", "Tanh", "Transpose", "Unsqueeze", "Where",
))
# fmt: on
"""Operators that an exported model may have."""

# ModelProto: graph 7, functions 25. GraphProto: node 1. FunctionProto: node 7. NodeProto: op_type 4, domain 7.
_GRAPH, _FUNCTIONS, _GRAPH_NODE, _FUNCTION_NODE, _OPERATOR, _DOMAIN = 7, 25, 1, 7, 4, 7
_NAMES = (_OPERATOR, _DOMAIN)


def check_operators(content: bytes, file: Path) -> None:
    """Check that a model has no other operators than `OPERATORS`.

    Args:
        content: of the ONNX file.
        file: its name, for the message.

    Raises:
        DataError: it has, or this is no ONNX file.
    """
    try:
        found = set(_operators(memoryview(content)))
    except (ValueError, IndexError) as error:  # UnicodeDecodeError is a ValueError
        raise DataError(f"{file} is no ONNX file, or cut off ({one_line(error)}): export the model again") from error
    if not found:
        raise DataError(f"{file} is no ONNX file, it has no operators: export the model again")
    if unknown := sorted(found - OPERATORS):
        raise DataError(
            f"{file} has the operator {unknown[0]!r}, which `fer-pll export` never writes: it is not run, because "
            "such a model could run without end or take any memory; export the model yourself"
        )


def one_line(error: BaseException) -> str:
    """An error's message in one line of at most 300 characters."""
    return " ".join(str(error).split())[:300]


def _operators(model: memoryview) -> Iterator[str]:
    for number, part in _fields(model):
        if number in (_GRAPH, _FUNCTIONS):
            for inner, node in _fields(part):
                if inner == (_GRAPH_NODE if number == _GRAPH else _FUNCTION_NODE):
                    names = {field: bytes(value).decode() for field, value in _fields(node) if field in _NAMES}
                    domain = names.get(_DOMAIN)
                    yield (f"{domain}." if domain else "") + names.get(_OPERATOR, "")


def _fields(message: memoryview) -> Iterator[tuple[int, memoryview]]:
    """Number and bytes of a message's fields that have a length; numbers are passed over."""
    place, end = 0, len(message)
    while place < end:
        key, place = _varint(message, place)
        kind = key & 7
        if kind == 0:
            _, place = _varint(message, place)
        elif kind in (1, 5):
            place += 8 if kind == 1 else 4
        elif kind == 2:
            length, place = _varint(message, place)
            if place + length > end:
                raise ValueError("a field is longer than the file")
            yield key >> 3, message[place : place + length]
            place += length
        else:
            raise ValueError(f"a field of the unknown type {kind}")


def _varint(message: memoryview, place: int) -> tuple[int, int]:
    value = 0
    for shift in range(0, 70, 7):
        byte = message[place]
        place += 1
        value |= (byte & 127) << shift
        if byte < 128:
            return value, place
    raise ValueError("a number of more than ten bytes")
