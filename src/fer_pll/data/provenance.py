"""Provenance: which rows of which data set a prepared split holds, what was left out, and on what terms.

JSON text in `dataset.info.description` keeps it, so that it travels with a `Dataset` through select, filter, save and
load. Only this module makes sentences for people from it.
"""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from typing import Any

from datasets import Dataset

from ..io.stored import check_shape

_SPLITS = ("train", "validation", "test", "held_out")
_TEXT, _NUMBER = (str, type(None)), (int, type(None))
_SHAPE: dict[str, Any] = {
    **{f"{name}?": _TEXT for name in ("name", "source", "split", "protocol", "license", "hub_id", "text")},
    "kept?": _NUMBER,
    "dropped?": {str: int},
    "drawn_votes?": ({"number": int, "seed": _NUMBER}, type(None)),
    "corrections?": [{"file": str, "relabeled": int, "dropped": int}],
    "held_out?": ({"of": _TEXT, "rows": int, "seed": _NUMBER}, type(None)),
    "parts?": [(str, {str: object})],
}
_BETWEEN = "\n\n"  # what `datasets` puts between the descriptions of sets that it concatenates


@dataclass(frozen=True)
class Provenance:
    """Where the rows of one split come from.

    Args:
        name: what people call the data set, e.g. "FER+"; `None` for data that have no name.
        source: the name in `data.sources.SOURCES`.
        split: the split of the prepared set.
        protocol: the rows of the data set that were asked for.
        kept: rows that were prepared.
        dropped: rows that were left out, by reason.
        drawn_votes: `number` and `seed`, where votes were drawn as if fewer annotators had been asked.
        corrections: `file`, `relabeled` and `dropped` for each file of corrections.
        held_out: for a split that is a part of another one: `of` (that split), `rows`, and `seed` of the draw.
        license: terms of the data, in a sentence.
        hub_id: name on the Hub, where the data came from there.
        text: the sentence, where nothing else is known: earlier versions stored prose only.
        parts: the provenance of each set, where several were put together. The other fields are empty then.
    """

    name: str | None = None
    source: str | None = None
    split: str | None = None
    protocol: str | None = None
    kept: int | None = None
    dropped: dict[str, int] = field(default_factory=dict)
    drawn_votes: dict[str, int] | None = None
    corrections: list[dict[str, Any]] = field(default_factory=list)
    held_out: dict[str, Any] | None = None
    license: str | None = None
    hub_id: str | None = None
    text: str | None = None
    parts: list["Provenance"] = field(default_factory=list)

    @classmethod
    def from_dataset(cls, dataset: Dataset) -> "Provenance | None":
        """The provenance of a data set, or `None` where it has none. Concatenated sets have one part each."""
        found = cls.from_json(dataset.info.description)
        if found is None or found.license or found.parts:
            return found
        return replace(found, license=dataset.info.license or None)

    @classmethod
    def from_json(
        cls, content: Mapping[str, Any] | str | None, place: str = "the description of the data"
    ) -> "Provenance | None":
        """From `to_dict()`, its JSON, or the prose of earlier versions; `None` from nothing.

        Raises:
            DataError: a value has another type than the field; the message names `place`.
        """
        if not content:
            return None
        if isinstance(content, str):
            parts = [part for text in _split(content) if (part := _from_text(text)) is not None]
            return cls(parts=parts) if len(parts) > 1 else next(iter(parts), None)
        check_shape(content, (_SHAPE, str), place)
        known = {each.name for each in fields(cls)}
        values = {name: value for name, value in content.items() if name in known}
        parts = [part for each in content.get("parts", ()) if (part := cls.from_json(each, place)) is not None]
        return cls(**values | {"parts": parts})

    def to_dict(self) -> dict[str, Any]:
        """The known fields, ready for JSON, and the `sentence` for readers."""
        values = {each.name: getattr(self, each.name) for each in fields(self)}
        values["parts"] = [part.to_dict() for part in self.parts]
        return {name: value for name, value in values.items() if value} | {"sentence": self.sentence()}

    def attach(self, dataset: Dataset) -> None:
        """Store it in the data set's `info`, in place."""
        content = {name: value for name, value in self.to_dict().items() if name != "sentence"}
        dataset.info.description = json.dumps(content)
        dataset.info.license = self.terms() or ""

    def sentence(self) -> str:
        """A sentence for model cards and the console, with everything but the license."""
        if self.parts:
            return "; ".join(part.sentence() for part in self.parts)
        notes = [self.text or self._rows()]
        if self.drawn_votes is not None:
            notes.append(f"{self.drawn_votes['number']} votes drawn for each row (seed {self.drawn_votes['seed']})")
        notes += [
            f"{each['relabeled']} rows relabeled and {each['dropped']} dropped by {each['file']}"
            for each in self.corrections
        ]
        if self.held_out is not None:
            notes.append(f"{self.split}: {self.held_out['rows']} of them (seed {self.held_out['seed']})")
        return "; ".join(notes)

    def terms(self) -> str | None:
        """The license. Several sets give each license once."""
        if not self.parts:
            return self.license
        return " ".join(dict.fromkeys(terms for part in self.parts if (terms := part.terms()))) or None

    def title(self) -> str:
        """The name of the data set on a model card."""
        if self.parts:
            return " + ".join(dict.fromkeys(part.title() for part in self.parts))
        return self.name or self.hub_id or "unnamed data"

    def dataset_type(self) -> str:
        """The name in the metadata of a model card: the name on the Hub or, without one, a name of that form."""
        if not self.parts and (hub_ids := self.hub_ids()):
            return hub_ids[0]
        return re.sub(r"[^a-z0-9]+", "-", self.title().lower().replace("+", "plus")).strip("-")

    def hub_ids(self) -> list[str]:
        """The names on the Hub of the sets that the rows come from, each once; those without one are left out."""
        if self.parts:
            return list(dict.fromkeys(name for part in self.parts for name in part.hub_ids()))
        known = self.hub_id is not None and re.fullmatch(r"[\w.-]+(/[\w.-]+)?", self.hub_id, re.ASCII)
        return [self.hub_id] if self.hub_id and known else []

    def _rows(self) -> str:
        split = self.held_out["of"] if self.held_out else self.split
        about = " ".join(filter(None, (self.title(), split)))
        about += f", protocol {self.protocol}" if self.protocol else ""
        dropped = {reason: rows for reason, rows in self.dropped.items() if rows}
        if self.kept is None:
            return about
        if not dropped:
            return f"{about}: {self.kept} rows"
        reasons = ", ".join(f"{rows} {reason}" for reason, rows in dropped.items())
        return f"{about}: {self.kept} of {self.kept + sum(dropped.values())} rows; dropped: {reasons}"


def _split(description: str) -> list[str]:
    """The descriptions that `datasets` has joined into one. JSON has no empty lines, but prose may have some."""
    texts = description.strip().split(_BETWEEN)
    return texts if all(_is_ours(text) for text in texts) else [description.strip()]


def _is_ours(text: str) -> bool:
    try:
        return isinstance(json.loads(text), dict)
    except (ValueError, RecursionError):
        return False


def _from_text(text: str) -> Provenance | None:
    if _is_ours(text):
        return Provenance.from_json(json.loads(text))
    # Prose of earlier versions: "FER+ train, protocol all: 26903 of 28709 rows; ...; held_out: 1345 of them (seed 0)"
    head = text.partition(",")[0].partition(":")[0]
    before, _, last = head.rpartition(" ")
    name, split = (before, last) if last in _SPLITS else (head, None)
    drawn = re.search(r"; (train|held_out): \d+ of them", text)
    named = name and len(name) < 60 and "\n" not in name
    return Provenance(name=name if named else None, split=drawn[1] if drawn else split, text=text)
