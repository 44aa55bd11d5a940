"""timm without torchvision, which PyPI has for CUDA builds of torch only.

timm imports torchvision for its data sets and transforms. Networks need nothing of it, so empty names in its place let
them be made. Where a torchvision can be imported, that one is used.
"""

import importlib.abc
import importlib.machinery
import importlib.util
import sys
import types

import pytest
from transformers.models.timm_backbone import modeling_timm_backbone
from transformers.utils import import_utils


class _AnyName(type):
    def __getattr__(cls, name: str) -> object:
        if name.startswith("__"):
            raise AttributeError(name)
        return _AnyName(name, (), {})


class _EmptyTorchvision(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] == "torchvision":
            return importlib.machinery.ModuleSpec(name, self, is_package=True)
        return None

    def create_module(self, spec):
        module = types.ModuleType(spec.name)
        module.__getattr__ = lambda name: getattr(_AnyName("anything", (), {}), name)
        return module

    def exec_module(self, module):
        pass


def import_timm() -> None:
    """Import timm, and let transformers use it. Nobody else finds a torchvision that is not there.

    Skips the test where there is no timm (`pip install --no-deps timm`).
    """
    if importlib.util.find_spec("timm") is None:
        pytest.skip("needs timm")
    try:
        import torchvision  # noqa: F401
    except (ImportError, RuntimeError):  # the latter: built for another torch
        finder = _EmptyTorchvision()
        sys.meta_path.insert(0, finder)
        try:
            import timm
        finally:
            sys.meta_path.remove(finder)
            for name in [name for name in sys.modules if name.split(".")[0] == "torchvision"]:
                del sys.modules[name]
        # transformers looks for torchvision before it looks for timm.
        modeling_timm_backbone.timm = timm
        import_utils.BACKENDS_MAPPING["timm"] = (lambda: True, "")
