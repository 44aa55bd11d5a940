"""What a checkpoint needs.

These files travel with it to the Hub as remote code, so they import nothing of ours outside this folder. Each class is
loaded when it is first used: transformers and torch come with it.
"""

from importlib import import_module

_MODULES = {
    "FerPllConfig": ".configuration_fer_pll",
    "FerPllForImageClassification": ".modeling_fer_pll",
    "FerPllForPreTraining": ".modeling_fer_pll",
    "FerPllImageProcessor": ".image_processing_fer_pll",
    "FerPllModel": ".modeling_fer_pll",
}

__all__ = list(_MODULES)


def __getattr__(name: str):
    if name in _MODULES:
        return getattr(import_module(_MODULES[name], __name__), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
