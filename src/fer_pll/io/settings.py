"""Reading the JSON files of a checkpoint."""

import json
from pathlib import Path
from typing import Any


def read_settings(file: Path) -> dict[str, Any]:
    """The object in a JSON file.

    Raises:
        ValueError: the file is no JSON, or no object; the message names it.
        OSError: it cannot be read.
    """
    try:
        settings = json.loads(file.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{file} is no JSON, perhaps cut off ({error}): get it again") from error
    if not isinstance(settings, dict):
        raise ValueError(f"{file} holds {type(settings).__name__}, not an object {{...}}: get it again")
    return settings
