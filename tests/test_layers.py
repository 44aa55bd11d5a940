"""The house: imports go downwards only, and what runs without torch imports nothing that needs it.

Every import counts, also those inside functions and under TYPE_CHECKING.
"""

import ast
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "src" / "fer_pll"

# From the bottom up. A module belongs to the longest name that it begins with. Within a layer imports are free, except
# for circles. A folder that is not named here is an error: say where it belongs.
LAYERS = (
    ("io", "model"),
    ("labels",),
    ("metrics", "plots"),
    ("faces",),
    ("data",),
    ("data.sources", "data.streaming"),
    ("data.prepare",),
    ("hub",),
    ("inference",),
    ("training.methods",),
    ("training",),
    ("audit",),
    ("commands",),
    ("",),  # the package itself: what `import fer_pll` offers
)

# What `fer-pll predict --backend onnx` runs on.
WITHOUT_TORCH = (
    "io", "faces", "plots.timeline", "inference.predict", "inference.media", "model.face_answers",
    "model.face_alignment", "model.face_detection",
    "inference.onnx_runtime", "inference.explanation", "inference.recognizing", "inference.video", "inference.marked",
)  # fmt: skip
NEEDS_TORCH = {"torch", "transformers", "datasets", "accelerate", "safetensors", "sklearn", "pandas", "evaluate"}


def module_name(path: Path) -> str:
    parts = path.relative_to(PACKAGE).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {module_name(path): path for path in PACKAGE.rglob("*.py")}


def imports(name: str, everywhere: bool = True) -> set[str]:
    """What a module imports: modules of ours by their name in the package, others as `=name` of their top package.

    `everywhere`: also inside functions and under TYPE_CHECKING.
    """
    path = MODULES[name]
    tree = ast.parse(path.read_text())
    nodes = ast.walk(tree) if everywhere else iter(tree.body)
    package = name.split(".") if path.name == "__init__.py" and name else name.split(".")[:-1]
    found = set()
    for node in nodes:
        if isinstance(node, ast.Import):
            targets = [(alias.name, ()) for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = ["fer_pll", *package][: len(package) + 2 - node.level] if node.level else []
            targets = [(".".join([*base, *([node.module] if node.module else [])]), [a.name for a in node.names])]
        else:
            continue
        for target, names in targets:
            top, _, inside = target.partition(".")
            if top != "fer_pll":
                found.add(f"={top}")
                continue
            for each in names or ("",):
                whole = f"{inside}.{each}".strip(".")
                found.add(whole if whole in MODULES else inside)
    return found - {name}


def layer(name: str) -> int:
    for length in range(name.count(".") + 1, -1, -1):
        prefix = ".".join(name.split(".")[:length])
        for height, names in enumerate(LAYERS):
            if prefix in names and (prefix or not name):
                return height
    raise AssertionError(f"{name} is in no layer: name its folder in LAYERS")


@pytest.mark.parametrize("name", sorted(MODULES))
def test_imports_go_downwards(name):
    upwards = {other for other in imports(name) if not other.startswith("=") and layer(other) > layer(name)}
    assert not upwards, f"{name or 'fer_pll'} imports from above: {', '.join(sorted(upwards))}"


def test_no_circles():
    graph = {name: {other for other in imports(name) if not other.startswith("=")} for name in MODULES}
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        pytest.fail(f"a circle of imports: {' -> '.join(error.args[1])}")


def test_what_travels_with_a_checkpoint_imports_nothing_else_of_ours():
    for name in MODULES:
        if name.split(".")[0] == "model":
            ours = {other for other in imports(name) if not other.startswith("=")}
            outside = {other for other in ours if other.split(".")[0] != "model"}
            assert not outside, f"{name}: {outside}"


def test_what_runs_without_torch_imports_nothing_that_needs_it():
    start = [name for name in MODULES if any(name == free or name.startswith(f"{free}.") for free in WITHOUT_TORCH)]
    assert len(start) > len(WITHOUT_TORCH)
    seen, waiting = set(), list(start)
    while waiting:
        name = waiting.pop()
        if name in seen or not name:
            continue
        seen.add(name)
        found = imports(name, everywhere=False)
        needed = {other[1:] for other in found if other.startswith("=")} & NEEDS_TORCH
        assert not needed, f"{name} imports {', '.join(needed)}"
        waiting += [other for other in found if not other.startswith("=")]
        waiting += [name.rpartition(".")[0]]  # its package is imported first


def test_a_circle_and_an_import_from_above_are_found():
    assert layer("training.methods.base") < layer("training.trainer") < layer("audit.report")
    assert {"io.errors", "=numpy"} <= imports("data.dataset")
    assert "=torch" in imports("training.trainer", everywhere=False)
