"""From a photograph to an expression, on real faces: as good as with the crops of the data set itself.

Needs FER_PLL_FERPLUS, the folder with fer2013.csv and fer2013new.csv, and FER_PLL_CHECKPOINT, a model trained on FER+.
"""

import os
from pathlib import Path

import numpy as np
import pyarrow.parquet
import pytest
from PIL import Image

from fer_pll.data.prepare import prepare
from fer_pll.inference.predict import predict

COUNT, ENLARGE = 500, 4


@pytest.mark.long
@pytest.mark.timeout(1800)
@pytest.mark.skipif(
    not {"FER_PLL_FERPLUS", "FER_PLL_CHECKPOINT"} <= set(os.environ), reason="FER_PLL_FERPLUS, FER_PLL_CHECKPOINT"
)
def test_faces_on_canvases_are_found_and_recognized_like_their_crops(tmp_path, capsys):
    validation = prepare("ferplus", os.environ["FER_PLL_FERPLUS"], out=tmp_path / "data")["validation"]
    rng = np.random.default_rng(0)
    labels = {}
    for folder in ("crops", "photographs"):
        (tmp_path / folder).mkdir()
    for row in rng.permutation(len(validation))[:COUNT].tolist():
        name = f"{row:05}.png"
        crop = validation[row]["image"]
        labels[name] = validation.features["label"].names[validation[row]["label"]]
        crop.save(tmp_path / "crops" / name)
        side = crop.width * ENLARGE
        size = rng.integers(1.25 * side, 2.5 * side, 2)
        canvas = Image.new("L", tuple(size.tolist()), int(rng.integers(64, 192)))
        canvas.paste(crop.resize((side, side), Image.Resampling.BICUBIC), tuple(rng.integers(0, size - side).tolist()))
        canvas.save(tmp_path / "photographs" / name)

    rows = {}
    options = {"model": os.environ["FER_PLL_CHECKPOINT"], "crop": "fer-pll-tiny-ferplus", "batch_size": 32}
    for folder in ("crops", "photographs"):
        table = tmp_path / f"{folder}.parquet"
        predict([str(tmp_path / folder)], out=str(table), cropped=folder == "crops", **options)
        rows[folder] = pyarrow.parquet.read_table(table).to_pylist()
    expressions = {folder: {} for folder in rows}
    for folder in rows:
        for row in rows[folder]:
            name = Path(row["file"]).name
            if row["expression"] and row["face"] == 0:
                expressions[folder][name] = row["expression"]
    found = expressions["photographs"]
    more = sum(row["face"] == 1 for row in rows["photographs"])

    def accuracy(folder: str, names) -> float:
        return float(np.mean([expressions[folder].get(name) == labels[name] for name in names]))

    with capsys.disabled():
        print(f"\nfaces found: {len(found)} of {len(labels)}; images with more than one: {more}")
        for folder in expressions:
            print(f"{folder}: {accuracy(folder, found):.1%} of the found, {accuracy(folder, labels):.1%} of all")
    assert len(found) >= 0.95 * len(labels)
    assert abs(accuracy("photographs", found) - accuracy("crops", found)) <= 0.03
    assert accuracy("crops", labels) - accuracy("photographs", labels) <= 0.03
