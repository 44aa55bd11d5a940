"""Data sources: one file for each data set or layout, named in `SOURCES`."""

from .affectnet import AffectNet
from .base import Opened, Source
from .fer2013 import Fer2013
from .ferplus import FerPlus
from .hf_dataset import HfDataset
from .image_folder import ImageFolder
from .rafdb import RafDb
from .synthetic.dataset import Synthetic
from .votes import Votes

SOURCES: dict[str, Source] = {
    source.name: source
    for source in (
        FerPlus(),
        Fer2013(),
        RafDb(),
        AffectNet(),
        Votes(),
        ImageFolder(),
        HfDataset(),
        Synthetic(),
    )
}
"""The sources by name. A new one is a file and a name in this list."""

__all__ = ["SOURCES", "Opened", "Source"]
