"""A folder of images for each class, a layout of many data sets: one label for each image."""

import argparse
import os
from collections.abc import Iterator, Sequence
from pathlib import Path

from ...io.errors import DataError
from ...io.images import IMAGE_ENDINGS, is_image_name
from ...labels.expressions import canonical_name, in_order_of_expressions
from ..image_writer import ImageRecord
from ..provenance import Provenance
from .base import Opened, Source, add_classes_argument, parse_classes

SPLIT_OF_FOLDER = {
    "train": "train",
    "training": "train",
    "val": "validation",
    "valid": "validation",
    "validation": "validation",
    "test": "test",
}


def list_image_folder(
    source: str | Path, class_names: Sequence[str] | None = None
) -> tuple[dict[str, list[ImageRecord]], list[str]]:
    """Lists the images in `SOURCE/SPLIT/CLASS/`, or in `SOURCE/CLASS/`, where all of them are `train`.

    Names of folders may be capitalized. The folders train, val, valid, validation and test are splits. Every other
    folder with images is a class; its name may be a synonym (see `expressions.SYNONYMS`). Images are found by their
    ending, in subfolders too, and listed in the order of their paths. Folders may be links.

    Args:
        source: the folder.
        class_names: names of the classes in the order of the model's outputs, by canonical spelling. Where the folders
            are numbers and these are not, they name the numbers from the lowest up.

    Returns:
        records with `label` by split, and the names of the classes: `class_names` or, without them, those of the
        folders. Where all of these are expressions of FER+, they are in its order, else in alphabetical order.

    Raises:
        DataError: there is no such folder, it has no images, images lie outside any class, or a class has two folders.
            Without `class_names`: there is a single class, or all are numbers. With them: a folder is none of them.
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
        loose = next((path for path in sorted(folder.iterdir()) if is_image_name(path.name) and path.is_file()), None)
        if loose is not None:
            raise DataError(f"{loose} lies in no folder of a class: move it into one, e.g. {folder / 'happiness'}")
        found[split] = {}
        for folder_name, class_folder in _folders(folder).items():
            class_name = canonical_name(folder_name)
            if class_name in found[split]:
                raise DataError(f"{class_folder} and {found[split][class_name]} are both {class_name}: join them")
            found[split][class_name] = class_folder
    images = {
        split: [(name, path) for name, folder in folders.items() for path in images_below(folder)]
        for split, folders in sorted(found.items(), key=lambda item: list(SPLIT_OF_FOLDER.values()).index(item[0]))
    }
    if not any(images.values()):
        raise DataError(
            f"{source} holds no images ({', '.join(sorted(IMAGE_ENDINGS))}) in folders: make one for each class"
        )
    names, label_of = _name_classes(
        source, sorted({name for paths in images.values() for name, _ in paths}), class_names
    )
    listed = {
        split: [
            ImageRecord(path, path.relative_to(source).as_posix(), {"label": label_of[name]}) for name, path in paths
        ]
        for split, paths in images.items()
        if paths
    }
    return {split: sorted(rows, key=lambda row: row.row_id) for split, rows in listed.items()}, names


def _name_classes(
    source: Path, folders: list[str], class_names: Sequence[str] | None
) -> tuple[list[str], dict[str, int]]:
    """The names of the classes, and the label of each folder's name."""
    numbers = bool(folders) and all(name.isascii() and name.isdigit() for name in folders)
    given = ", ".join(folders)[:200]
    if class_names is None:
        if numbers:
            raise DataError(
                f"{source}: the folders of the classes are numbers ({given}): name their classes from the lowest up "
                "with --classes NAME,NAME,...; for RAF-DB, use `fer-pll prepare rafdb`"
            )
        if len(folders) == 1:
            raise DataError(
                f"{source} has a single class, {given!r}: name the folder whose folders are the classes, or splits "
                f"with classes in them (such as {source / folders[0]}), or say --classes {given} to go on with one"
            )
        class_names = in_order_of_expressions(folders)
    elif numbers and not set(folders) & set(class_names):
        if len(class_names) != len(folders):
            raise DataError(
                f"{source} has {len(folders)} folders of numbers ({given}), but --classes has {len(class_names)} "
                "names: give one for each, from the lowest number up"
            )
        return list(class_names), {name: label for label, name in enumerate(sorted(folders, key=int))}
    unknown = next((name for name in folders if name not in class_names), None)
    if unknown is not None:
        raise DataError(
            f"{source}: the folder {unknown!r} is none of the classes {', '.join(class_names)}: add it to --classes, "
            "or move it away"
        )
    return list(class_names), {name: list(class_names).index(name) for name in folders}


def images_below(folder: Path) -> Iterator[Path]:
    """The images in a folder and below, in linked folders too. A folder that a link leads back to is read once."""
    seen: set[Path] = set()
    for place, folders, files in os.walk(folder, followlinks=True):
        here = Path(place).resolve()
        if here in seen:
            folders.clear()
            continue
        seen.add(here)
        yield from (path for name in files if is_image_name(name) and (path := Path(place, name)).is_file())


def _folders(folder: Path) -> dict[str, Path]:
    """Folders by their lower-case names; hidden ones, and those of macOS archives, left out."""
    return {
        path.name.lower(): path
        for path in sorted(folder.iterdir())
        if path.is_dir() and not path.name.startswith(".") and path.name != "__MACOSX"
    }


class ImageFolder(Source):
    name = "folder"
    summary = "a folder of images for each class"
    validation_share = 0.1

    def add_arguments(self, parser: argparse.ArgumentParser) -> None:
        parser.add_argument("source", help="folder with train, validation and test, or with a folder for each class")
        add_classes_argument(parser, "the names of the folders; needed where these are numbers, or a single one")

    def open(self, options: argparse.Namespace) -> Opened:
        splits, class_names = list_image_folder(options.source, parse_classes(options.classes))
        read_as = f"a folder of images with {len(class_names)} classes"
        provenance = Provenance(source=self.name)
        return Opened(class_names, splits, provenance=provenance, read_as=read_as, root=Path(options.source))
