"""What a checkpoint needs.

These files travel with it to the Hub as remote code, so they import nothing of ours outside this folder.
"""

from .configuration_fer_pll import FerPllConfig
from .image_processing_fer_pll import FerPllImageProcessor
from .modeling_fer_pll import FerPllForImageClassification, FerPllForPreTraining, FerPllModel

__all__ = [
    "FerPllConfig",
    "FerPllForImageClassification",
    "FerPllForPreTraining",
    "FerPllImageProcessor",
    "FerPllModel",
]
