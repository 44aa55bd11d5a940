"""The page of a label audit: one HTML file that needs no other file, made from the template `page.html`."""

import base64
import io
import json
import re
from collections.abc import Sequence
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
from datasets import Dataset
from PIL import Image as PILImage
from PIL import ImageOps

from ..io.images import open_image
from .label_audit import LabelAudit
from .row_heat_maps import RowHeatMaps

TEMPLATE = Path(__file__).with_name("page.html")
THUMBNAIL = 96  # pixels, the longest side
SHEET_COLUMNS = 8  # and as many rows; one JPEG for 64 thumbnails saves 63 headers


def write_page(
    audit: LabelAudit, images: Dataset | None, title: str, max_rows: int, why: RowHeatMaps | None = None
) -> str:
    """The page as HTML. Everything from the data is JSON without `<`, and the page inserts it only as text.

    Args:
        audit: N rows.
        images: N rows with `image`; `None` for a page without images.
        title: name of what was audited.
        max_rows: number of rows to show, the most suspicious first; the images make up most of the file.
        why: heat maps of the most suspicious rows.

    Raises:
        ValueError: an image cannot be opened; the message has its row_id.
    """
    shown = audit.order[:max_rows]
    side, sheets = (0, []) if images is None else _thumbnails(images, [audit.row_ids[i] for i in shown], shown)
    page = TEMPLATE.read_text(encoding="utf-8")
    script = page.partition("<script>")[2].partition("</script>")[0]
    parts = {
        "script": f"sha256-{base64.b64encode(sha256(script.encode()).digest()).decode()}",
        "data": _payload(audit, title, shown, side, why).replace("<", "\\u003c"),
        "sheets": "\n".join(
            f'<script type="text/plain" id="sheet-{i}">{sheet}</script>' for i, sheet in enumerate(sheets)
        ),
    }
    return re.sub(r"\{\{(\w+)\}\}", lambda match: parts[match[1]], page)


def _why(why: RowHeatMaps | None) -> dict[str, Any]:
    """Heat maps for JSON: one byte for each value, -127 to 127, with one scale for the two maps of a row."""
    if why is None:
        return {"rows": 0}
    rows, _, height, width = why.values.shape
    largest = np.abs(why.values).max(axis=(1, 2, 3), keepdims=True)
    values = (why.values / np.maximum(largest, 1e-6) * 127).round().astype(np.int8)
    maps = base64.b64encode(values.tobytes()).decode()
    return {"rows": rows, "height": height, "width": width, "sizes": why.sizes, "maps": maps}


def _payload(audit: LabelAudit, title: str, shown: np.ndarray, side: int, why: RowHeatMaps | None) -> str:
    """The data of the page as JSON: a list for each column; tables row by row, shares in thousandths."""

    def thousandths(values: np.ndarray) -> list[int]:
        return (values[shown] * 1000).round().astype(int).reshape(-1).tolist()

    states = audit.table.candidates.numpy().astype(int) + audit.struck_out  # 1: a candidate, 2: struck out
    content = {
        "title": title,
        "source": audit.source,
        "fingerprint": audit.table.fingerprint,
        "classes": audit.class_names,
        "total": len(audit.given),
        "evidence": "votes" if audit.from_votes else "label",
        "beliefs": "belief" if audit.num_folds else "confidence",
        "ids": [audit.row_ids[i] for i in shown],
        "given": audit.given[shown].tolist(),
        "believed": audit.believed[shown].tolist(),
        "score": thousandths(audit.score),
        "epoch": audit.table.revised_epoch.numpy()[shown].tolist(),
        "votes": audit.votes[shown].reshape(-1).tolist(),
        "belief": thousandths(audit.posterior if audit.num_folds else audit.table.confidence.numpy()),
        "states": "".join(map(str, states[shown].reshape(-1))),
        "sheet": {"side": side, "columns": SHEET_COLUMNS},
        "why": _why(why),
    }
    return json.dumps(content, ensure_ascii=False, separators=(",", ":"))


def _thumbnails(images: Dataset, row_ids: Sequence[str], shown: np.ndarray) -> tuple[int, list[str]]:
    """The side of a thumbnail in pixels, and sheets of them in the order of `shown`, JPEG in base64."""
    side, sheets = 0, []
    per_sheet = SHEET_COLUMNS**2
    for start in range(0, len(shown), per_sheet):
        opened = []
        for row_id, i in zip(
            row_ids[start : start + per_sheet], shown[start : start + per_sheet].tolist(), strict=True
        ):
            try:
                opened.append(open_image(images[i]["image"]))
            except (OSError, ValueError) as error:
                raise ValueError(f"row {row_id}: its image cannot be opened ({error})") from error
        side = side or min(THUMBNAIL, max(opened[0].size))
        rows = -(-len(opened) // SHEET_COLUMNS)
        sheet = PILImage.new("RGB", (SHEET_COLUMNS * side, rows * side))
        for place, each in enumerate(opened):
            column, row = place % SHEET_COLUMNS, place // SHEET_COLUMNS
            sheet.paste(ImageOps.pad(each, (side, side)), (column * side, row * side))
        file = io.BytesIO()
        sheet.save(file, "JPEG", quality=75)
        sheets.append(base64.b64encode(file.getvalue()).decode())
    return side, sheets
