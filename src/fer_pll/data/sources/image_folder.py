"""A folder of images for each class, a layout of many data sets: one label for each image."""

import argparse
from pathlib import Path

from ...io.errors import DataError
from ...labels.expressions import canonical_name, in_order_of_expressions
from ..image_writer import ImageRecord
from ..provenance import Provenance
from .base import Opened, Source

SPLIT_OF_FOLDER = {
    "train": "train",
    "training": "train",
    "val": "validation",
    "valid": "validation",
    "validation": "validation",
    "test": "test",
}
IMAGE_ENDINGS = {".jpg", ".jpeg", ".png", ".bmp", ".gif", ".tif", ".tiff", ".webp"}


def list_image_folder(source: str | Path) -> tuple[dict[str, list[ImageRecord]], list[str]]:
    """Lists the images in `SOURCE/SPLIT/CLASS/`, or in `SOURCE/CLASS/`, where all of them are `train`.

    Names of folders may be capitalized. The folders train, val, valid, validation and test are splits. Every other
    folder with images is a class; its name may be a synonym (see `expressions.SYNONYMS`). Images are found by their
    ending, in subfolders too, and listed in the order of their paths.

    Returns:
        records with `label` by split, and the names of the classes. Where all classes are expressions of FER+, they
        are in its order, else in alphabetical order.

    Raises:
        DataError: there is no such folder, it has no images, images lie outside any class, or a class has two folders.
    """
    source = Path(source)
    if not source.is_dir():
        raise DataError(f"{source} is not a folder: name one with a folder of images for each class")
    top = _folders(source)
    splits = {name: folder for name, folder in top.items() if name in SPLIT_OF_FOLDER}
    if splits and len(splits) < len(top):
        others = sorted(set(top) - set(splits))
        raise DataError(
            f"{source} holds splits ({', '.join(splits)}) and other folders ({', '.join(others)[:200]}) side by side: "
            "move one kind away"
        )
    found: dict[str, dict[str, Path]] = {}  # folders of the classes, by split
    for name, folder in (splits or {"train": source}).items():
        split = SPLIT_OF_FOLDER[name]
        if split in found:
            raise DataError(f"{source} has two folders for the split {split}: join them")
        loose = next((path for path in sorted(folder.iterdir()) if _is_image(path)), None)
        if loose is not None:
            raise DataError(f"{loose} lies in no folder of a class: move it into one, e.g. {folder / 'happiness'}")
        found[split] = {}
        for folder_name, class_folder in _folders(folder).items():
            class_name = canonical_name(folder_name)
            if class_name in found[split]:
                raise DataError(f"{class_folder} and {found[split][class_name]} are both {class_name}: join them")
            found[split][class_name] = class_folder
    names = in_order_of_expressions(sorted({name for folders in found.values() for name in folders}))

    listed = {}
    for split, folders in found.items():
        rows = [
            ImageRecord(path, path.relative_to(source).as_posix(), {"label": names.index(name)})
            for name, folder in folders.items()
            for path in folder.rglob("*")
            if _is_image(path)
        ]
        if rows:
            listed[split] = sorted(rows, key=lambda row: row.row_id)
    if not listed:
        raise DataError(
            f"{source} holds no images ({', '.join(sorted(IMAGE_ENDINGS))}) in folders: make one for each class"
        )
    return listed, names


def _folders(folder: Path) -> dict[str, Path]:
    """Folders by their lower-case names; hidden ones left out."""
    return {
        path.name.lower(): path for path in sorted(folder.iterdir()) if path.is_dir() and not path.name.startswith(".")
    }


def _is_image(path: Path) -> bool:
    return path.suffix.lower() in IMAGE_ENDINGS and not path.name.startswith(".") and path.is_file()


class ImageFolder(Source):
    name = "folder"
    summary = "a folder of images for each class"

    def add_arguments(self, parser: argparse.ArgumentParser) -> None:
        parser.add_argument("source", help="folder with train, validation and test, or with a folder for each class")

    def open(self, options: argparse.Namespace) -> Opened:
        splits, class_names = list_image_folder(options.source)
        return Opened(class_names, splits, provenance=Provenance(source=self.name))
