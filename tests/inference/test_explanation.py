"""Heat maps: on classifiers whose reasons are known, on the checkpoint in the package, and where users get them."""

import io

import numpy as np
import pytest
from PIL import Image
from skimage.data import astronaut

import fer_pll_cli
from fer_pll import draw_explanation, load_recognizer
from fer_pll.data.sources.synthetic.dataset import Drawing
from fer_pll.inference.explanation import GRID, WINDOW, draw_heat_map, explain, heat_maps, log_odds
from fer_pll.io.shipped import VIT_NAME


def looks_at(row: int, column: int, side: int = 48):
    """A classifier of two classes: the second is the more likely, the brighter one cell is; nothing else counts."""
    cell = side // GRID

    def probabilities(crops):
        pixels = np.stack([np.asarray(crop.convert("L"), dtype=float) for crop in crops])
        at = pixels[:, row * cell : (row + 1) * cell, column * cell : (column + 1) * cell].mean(axis=(1, 2))
        p = 1 / (1 + np.exp(-at / 50))
        return np.stack([1 - p, p], axis=1)

    return probabilities


def crop_with(row: int, column: int, mode: str = "L", side: int = 48) -> Image.Image:
    """Dark, with one bright cell."""
    cell = side // GRID
    pixels = np.full((side, side), 20, dtype=np.uint8)
    pixels[row * cell : (row + 1) * cell, column * cell : (column + 1) * cell] = 220
    return Image.fromarray(pixels).convert(mode)


@pytest.mark.parametrize("mode", ["L", "RGB", "RGBA"])
@pytest.mark.parametrize(("row", "column"), [(0, 0), (3, 5), (7, 4)])
def test_the_cell_that_counts_is_found_and_no_cell_beyond_a_window_of_it(row, column, mode):
    crop = crop_with(row, column, mode)
    against, speaks_for = heat_maps(looks_at(row, column), crop)
    assert speaks_for.shape == (GRID, GRID) and speaks_for.dtype == np.float32
    assert np.unravel_index(speaks_for.argmax(), speaks_for.shape) == (row, column)
    np.testing.assert_allclose(against, -speaks_for, atol=1e-5)  # of two classes
    rows, columns = np.indices((GRID, GRID))
    far = (abs(rows - row) >= WINDOW) | (abs(columns - column) >= WINDOW)
    np.testing.assert_allclose(speaks_for[far], 0, atol=1e-5)
    # What hiding the cell alone costs, shared by the cells of each window that covers it: known in advance.
    mean = round(float(np.asarray(crop.convert("L"), dtype=float).mean()))
    whole, hidden = (log_odds(looks_at(row, column)([each]))[0, 1] for each in (crop, Image.new("L", (48, 48), mean)))
    inside = [
        (min(r + WINDOW, GRID) - max(r, 0)) * (min(c + WINDOW, GRID) - max(c, 0))
        for r in range(row - WINDOW + 1, row + 1)
        for c in range(column - WINDOW + 1, column + 1)
    ]
    expected = (whole - hidden) * np.mean([1 / cells for cells in inside])
    assert speaks_for[row, column] == pytest.approx(expected, rel=0.02)


def test_certain_answers_have_finite_log_odds():
    assert np.isfinite(log_odds(np.array([0.0, 1.0, 0.5]))).all()
    assert log_odds(np.array([0.5, 0.8])) == pytest.approx([0, np.log(4)])


@pytest.fixture(scope="module")
def recognize():
    return load_recognizer(device="cpu")


def drawn(number: int) -> Image.Image:
    return Image.open(io.BytesIO(Drawing("test", number, image_size=48)())).convert("L")


def lost_by_hiding(recognize, number: int) -> tuple[float, float]:
    """What the found class of a drawn face loses without its map's ten strongest cells, and without the weakest."""
    crop = drawn(number)
    before = recognize.probabilities([crop])[0]
    k = int(before.argmax())
    order = heat_maps(recognize.probabilities, crop)[k].ravel().argsort()[::-1]
    after = []
    for cells in (order[:10], order[-10:]):
        pixels = np.asarray(crop).copy()
        for row, column in (divmod(int(cell), GRID) for cell in cells):
            pixels[row * 6 : row * 6 + 6, column * 6 : column * 6 + 6] = round(pixels.mean())
        after.append(recognize.probabilities([Image.fromarray(pixels)])[0, k])
    return before[k] - after[0], before[k] - after[1]


def test_hiding_what_speaks_for_a_class_costs_more_than_hiding_the_rest(recognize):
    vit = load_recognizer(VIT_NAME)
    assert all(strongest > weakest for strongest, weakest in (lost_by_hiding(vit, number) for number in range(6)))
    # What windows cost alone need not add up: of the default network it holds for most drawn faces.
    of_strongest, of_weakest = np.transpose([lost_by_hiding(recognize, number) for number in range(12)])
    assert (of_strongest > of_weakest).mean() > 0.8 and of_strongest.mean() > 3 * max(of_weakest.mean(), 0)


def test_a_recognizer_explains_when_asked(recognize):
    photograph = Image.fromarray(astronaut())
    (plain,), (face,) = recognize(photograph), recognize(photograph, explain=True)
    assert plain == {name: value for name, value in face.items() if name not in ("crop", "heat_maps")}
    assert face["crop"].size == (48, 48) and face["crop"].mode == "L"
    classes = [recognize.model.config.id2label[k] for k in range(8)]
    assert list(face["heat_maps"]) == classes
    expected = heat_maps(recognize.probabilities, face["crop"])
    np.testing.assert_allclose(np.stack(list(face["heat_maps"].values())), expected, atol=1e-5)
    assert recognize(np.zeros((60, 80), np.uint8), explain=True) == []
    # She smiles: what speaks for happiness most is in the lower half.
    smile = face["heat_maps"]["happiness"]
    assert face["expressions"][0]["label"] == "happiness"
    assert smile.max(axis=1).argmax() >= GRID // 2


def test_figures_are_red_for_and_blue_against():
    heat_map = np.zeros((GRID, GRID), np.float32)
    heat_map[1, 1], heat_map[6, 6] = 2, -2
    picture = np.asarray(draw_heat_map(Image.new("L", (48, 48), 128), heat_map, side=160)).astype(int)
    red, blue = picture[30, 30], picture[130, 130]
    assert red[0] - red[2] > 50 and blue[2] - blue[0] > 50
    assert np.ptp(picture[80, 80]) <= 2 and abs(picture[80, 80, 0] - 128) <= 2  # gray where nothing speaks

    crop = crop_with(3, 3)
    face = {"expressions": [{"label": "dim", "score": 0.9}, {"label": "bright", "score": 0.1}]}
    figure = draw_explanation(face | explain(looks_at(3, 3), crop, ["dim", "bright"]), top=2, side=100)
    assert figure.width > 300 and figure.height > 100
    with pytest.raises(ValueError, match="explain=True"):
        draw_explanation(face)


def test_predict_saves_a_figure_for_each_face(tmp_path, capsys):
    Image.fromarray(np.hstack([astronaut(), astronaut()[:, ::-1]])).save(tmp_path / "two.png")
    why = tmp_path / "why"
    assert fer_pll_cli.main(["predict", str(tmp_path / "two.png"), "--explain", str(why)]) == 0
    assert f"explanations in {why}" in capsys.readouterr().out
    figures = sorted(why.iterdir())
    assert [figure.name for figure in figures] == ["two-2.png", "two.png"]
    pixels = np.asarray(Image.open(figures[0])).astype(int)
    assert ((pixels[..., 0] - pixels[..., 2]) > 40).sum() > 200  # something is red
    assert fer_pll_cli.main(["predict", str(tmp_path / "two.png"), "--explain", str(why)]) != 0
    assert "not empty" in capsys.readouterr().err

    drawn(0).save(tmp_path / "crop.png")
    crops = tmp_path / "crops"
    assert fer_pll_cli.main(["predict", str(tmp_path / "crop.png"), "--cropped", "--explain", str(crops)]) == 0
    assert [figure.name for figure in crops.iterdir()] == ["crop.png"]
