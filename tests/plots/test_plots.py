import inspect
import itertools
import pkgutil
import weakref
from importlib import import_module

import numpy as np
import pytest
from matplotlib._pylab_helpers import Gcf
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.text import Text
from PIL import Image

from fer_pll import plots
from fer_pll.inference.video import Timeline
from fer_pll.labels.candidate_summary import CandidateSummary
from fer_pll.labels.expressions import EXPRESSIONS
from fer_pll.plots import style
from fer_pll.plots.audit import plot_audit
from fer_pll.plots.candidate_sets import plot_candidate_sets
from fer_pll.plots.confusion_matrix import plot_confusion_matrix
from fer_pll.plots.curves import plot_curves, plot_training_curves
from fer_pll.plots.gallery import plot_gallery
from fer_pll.plots.pretraining import plot_predictions
from fer_pll.plots.timeline import plot_timeline


@pytest.fixture
def figures(monkeypatch):
    """The figures that were saved, so that a test can ask what is in them, in inches and pixels."""
    saved = []
    savefig = Figure.savefig

    def save(figure, *args, **kwargs):
        savefig(figure, *args, **kwargs)
        saved.append(figure)

    monkeypatch.setattr(Figure, "savefig", save)
    return saved


def texts_of(axes):
    return [text for text in axes.texts if text.get_text()]


def assert_legible(figure):
    """No text touches another one or leaves the figure."""
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    texts = list(figure.texts)
    for axes in figure.axes:
        texts += [child for child in axes.get_children() if isinstance(child, Text)]  # titles among them
        if axes.axison:
            texts += [axes.xaxis.label, axes.yaxis.label]
            for axis in (axes.xaxis, axes.yaxis):
                low, high = sorted(axis.get_view_interval())
                texts += [tick.label1 for tick in axis.get_major_ticks() if low <= tick.get_loc() <= high]
                texts += [tick.label2 for tick in axis.get_major_ticks() if low <= tick.get_loc() <= high]
        if axes.get_legend():
            texts += axes.get_legend().get_texts()
    texts = [text for text in texts if text.get_text() and text.get_visible()]
    assert len(texts) > 5
    boxes = [(text.get_text(), text.get_window_extent(canvas.get_renderer()).padded(-1)) for text in texts]
    for content, box in boxes:
        assert figure.bbox.x0 <= box.x0 and box.x1 <= figure.bbox.x1, content
        assert figure.bbox.y0 <= box.y0 and box.y1 <= figure.bbox.y1, content
    # the boxes of slanted texts overlap where the texts do not
    upright = [box for box, text in zip(boxes, texts, strict=True) if text.get_rotation() % 90 == 0]
    for (content, box), (other_content, other) in itertools.combinations(upright, 2):
        assert not box.overlaps(other), (content, other_content)


def realistic_matrix():
    generator = np.random.default_rng(0)
    rows = [1257, 890, 434, 372, 309, 29, 83, 0]
    return np.array([generator.multinomial(n, 0.6 * np.eye(8)[k] + 0.05) for k, n in enumerate(rows)])


def test_confusion_matrix(tmp_path, figures):
    path = tmp_path / "confusion.png"
    matrix = realistic_matrix()
    plot_confusion_matrix(matrix, EXPRESSIONS, path, title="PublicTest, all")
    assert Image.open(path).format == "PNG" and min(Image.open(path).size) > 800
    axes = figures[0].axes[0]
    shares = axes.images[0].get_array()
    np.testing.assert_allclose(shares.sum(axis=1), [1, 1, 1, 1, 1, 1, 1, 0])
    np.testing.assert_allclose(shares[1], matrix[1] / 890)
    shown = [text.get_text() for text in texts_of(axes)]
    assert shown[:2] == [f"{matrix[0, 0] / 1257:.0%}", f"{matrix[0, 0]:,}"]
    assert len(shown) == 2 * (np.count_nonzero(matrix) + 1)  # empty cells are left empty, but never a diagonal one
    assert [label.get_text() for label in axes.get_xticklabels()] == list(EXPRESSIONS)
    assert axes.get_yticklabels()[0].get_text() == "neutral\nn = 1,257"
    assert axes.get_title() == "PublicTest, all"
    assert_legible(figures[0])


def test_confusion_matrix_must_be_square(tmp_path):
    with pytest.raises(ValueError, match=r"8 class names must be square, got shape \(7, 7\)"):
        plot_confusion_matrix(np.eye(7, dtype=int), EXPRESSIONS, tmp_path / "confusion.png")


LOG = [
    {"loss": 2.0, "learning_rate": 1e-4, "revised_fraction": 0.0, "mean_margin": 0.1, "epoch": 0.5, "step": 5},
    {"loss": 1.5, "learning_rate": 2e-4, "revised_fraction": 0.2, "mean_margin": 0.2, "epoch": 1.0, "step": 10},
    {"eval_loss": 1.6, "eval_accuracy": 0.6, "eval_mean_class_accuracy": 0.4, "epoch": 1.0, "step": 10},
    {"label_recovery": 0.8, "epoch": 1.0, "step": 10},
    {"loss": 1.2, "learning_rate": 1e-4, "revised_fraction": 0.5, "mean_margin": 0.25, "epoch": 1.5, "step": 15},
    {"eval_loss": 1.4, "eval_accuracy": 0.7, "eval_mean_class_accuracy": 0.5, "epoch": 2.0, "step": 20},
    {"train_loss": 1.4, "train_runtime": 12.0, "epoch": 2.0, "step": 20},
]


def test_training_curves_draw_what_was_logged(tmp_path, figures):
    path = tmp_path / "curves.png"
    plot_training_curves(LOG, path)
    assert Image.open(path).format == "PNG"
    panels = {axes.get_title(loc="left"): axes for axes in figures[0].axes}
    assert list(panels) == [
        "Loss", "Evaluation accuracy", "Learning rate", "Revised rows", "Mean margin", "Label recovery"
    ]  # fmt: skip
    curves = {title: [line.get_xydata().tolist() for line in axes.lines] for title, axes in panels.items()}
    assert curves["Loss"] == [[[0.5, 2.0], [1.0, 1.5], [1.5, 1.2]], [[1.0, 1.6], [2.0, 1.4]]]
    assert curves["Evaluation accuracy"] == [[[1.0, 0.6], [2.0, 0.7]], [[1.0, 0.4], [2.0, 0.5]]]
    assert curves["Revised rows"] == [[[0.5, 0.0], [1.0, 0.2], [1.5, 0.5]]]
    assert curves["Label recovery"] == [[[1.0, 0.8]]]
    legend = panels["Evaluation accuracy"].get_legend()
    assert [text.get_text() for text in legend.get_texts()] == ["accuracy", "mean class accuracy"]
    assert panels["Loss"].get_xlim() == panels["Label recovery"].get_xlim()
    assert_legible(figures[0])


def test_training_curves_of_pretraining_have_no_empty_panels(tmp_path, figures):
    log = [{key: entry[key] for key in ("loss", "learning_rate", "epoch") if key in entry} for entry in LOG]
    plot_training_curves(log, tmp_path / "curves.png")
    assert [axes.get_title(loc="left") for axes in figures[0].axes] == ["Loss", "Learning rate"]


def test_training_curves_need_something_to_draw(tmp_path):
    with pytest.raises(ValueError, match="log_history holds nothing to draw"):
        plot_training_curves([{"train_loss": 1.0, "epoch": 2.0}], tmp_path / "curves.png")


def gallery(count):
    generator = np.random.default_rng(1)
    images = [Image.fromarray(generator.integers(0, 256, (48, 48), dtype=np.uint8)) for _ in range(count)]
    votes = np.tile([5, 0, 2, 0, 0, 0, 2, 1], (count, 1))
    candidates = np.tile(np.array([1, 0, 1, 0, 0, 0, 1, 0], dtype=bool), (count, 1))
    confidence = candidates / 3
    confidence[0] = np.eye(8)[2]
    return images, votes, candidates, confidence, EXPRESSIONS


def test_gallery_strikes_out_what_was_ruled_out(tmp_path, figures):
    path = tmp_path / "gallery.png"
    plot_gallery(*gallery(8), path, true_labels=[2, 2, -1, 0, 0, 0, 0, 7])
    assert Image.open(path).format == "PNG"
    images, bars, sets = figures[0].axes[0::3], figures[0].axes[1::3], figures[0].axes[2::3]
    assert len(images) == len(bars) == len(sets) == 8
    assert [bar.get_width() for bar in bars[0].patches] == [5, 0, 2, 0, 0, 0, 2, 1]
    assert len({bar.get_facecolor() for bar in bars[0].patches}) == 2  # candidates and others
    assert [text.get_text() for text in texts_of(sets[0])] == [
        "neutral", "0.00", "surprise", "1.00", "fear", "0.00", "truth: surprise"
    ]  # fmt: skip
    assert [line.get_ydata()[0] for line in sets[0].lines] == [0.5, 2.5]  # neutral and fear
    name = sets[0].texts[0].get_window_extent().transformed(sets[0].transData.inverted())
    assert sets[0].lines[0].get_xdata()[0] < name.x0 < name.x1 < sets[0].lines[0].get_xdata()[1]
    assert not sets[1].lines
    truths = [axes.texts[-1] for axes in sets[:4]]
    assert truths[2].get_text() == "truth: unknown"
    right, wrong, unknown, tied = (text.get_color() for text in truths)
    assert right == tied == style.GREEN and wrong == style.RED and unknown == style.MUTED
    assert_legible(figures[0])


def test_gallery_of_one_color_image_without_truth(tmp_path, figures):
    _, *rest = gallery(1)
    plot_gallery([np.zeros((64, 64, 3), dtype=np.uint8)], *rest, tmp_path / "gallery.png")
    assert [text.get_text() for text in texts_of(figures[0].axes[2])][-1] == "0.00"
    assert_legible(figures[0])


def test_gallery_refuses_what_does_not_belong_together(tmp_path):
    images, votes, *rest = gallery(3)
    with pytest.raises(ValueError, match=r"3 images and 8 class names need .* \(3, 8\), got \(2, 8\)"):
        plot_gallery(images, votes[:2], *rest, tmp_path / "gallery.png")
    with pytest.raises(ValueError, match="0 images"):
        plot_gallery([], votes, *rest, tmp_path / "gallery.png")


def test_no_figure_is_left_with_pyplot(tmp_path):
    before = list(Gcf.figs)
    plot_training_curves(LOG, tmp_path / "curves.png")
    plot_gallery(*gallery(1), tmp_path / "gallery.png")
    plot_confusion_matrix(realistic_matrix(), EXPRESSIONS, tmp_path / "confusion.png")
    assert list(Gcf.figs) == before


def test_figures_do_not_pile_up_in_memory(tmp_path):
    gone = []

    def draw() -> None:
        with style.drawing(tmp_path / "figure.png", dpi=20, figsize=(2, 2)) as figure:
            figure.subplots(2).tolist()
        gone.append(weakref.ref(figure))

    for _ in range(3):
        draw()
    assert [figure() is None for figure in gone[:2]] == [True, True]  # the third goes with the next figure


def test_candidate_sets(tmp_path, figures):
    rows = np.array([0, 12_000, 0, 9_000, 4_000, 30, 0, 0, 0])  # no set of two
    alone, among = np.arange(8) * 1000 + 3, np.arange(8)[::-1] * 900
    summary = CandidateSummary(EXPRESSIONS, rows, np.full(9, 0.5), alone, among, np.full(8, 1 / 8), 30)
    plot_candidate_sets(summary, tmp_path / "a.png")
    with Image.open(tmp_path / "a.png") as image:
        assert image.size[0] > 1000
    by_size, by_class = figures[0].axes
    assert [bar.get_height() for bar in by_size.patches] == [12_000, 9_000, 4_000, 30]
    assert [text.get_text() for text in texts_of(by_size)] == ["47.9%", "36.0%", "16.0%", "0.1%"]
    assert [tick.get_text() for tick in by_size.get_xticklabels()] == ["1", "3", "4", "5"]
    assert [bar.get_width() for bar in by_class.patches] == [*alone, *among]
    assert [bar.get_x() for bar in by_class.patches] == [0] * 8 + alone.tolist()
    assert_legible(figures[0])


HOSTILE = (
    r"a$\frac{$b",
    "$x^2$",
    "a|b",
    "\"'",
    "two\nlines",
    "row_id",
    "\x00\x1b[0m",
    "long " * 30,
    "_under",
    "%d {}",
)


def timeline_of(classes) -> Timeline:
    """One person, whose classes are all as probable."""
    timeline = Timeline(classes)
    for frame in range(9):
        timeline.add(0, frame / 10, *[np.full(len(classes), 1 / len(classes))] * 2)
    return timeline


FIGURES = {
    "plot_audit": lambda path: plot_audit(np.eye(10, dtype=int), np.eye(10), HOSTILE, path, HOSTILE[0]),
    "plot_candidate_sets": lambda path: plot_candidate_sets(
        CandidateSummary(HOSTILE, np.full(11, 5), np.full(11, 0.5), np.arange(10), np.arange(10), np.full(10, 0.1), 0),
        path,
    ),
    "plot_confusion_matrix": lambda path: plot_confusion_matrix(np.eye(10, dtype=int), HOSTILE, path, HOSTILE[0]),
    "plot_curves": lambda path: plot_curves({HOSTILE[0]: [[(0, 0.5), (1, 0.6)]]}, path, *HOSTILE[:3]),
    "plot_gallery": lambda path: plot_gallery(
        [np.zeros((48, 48), dtype=np.uint8)] * 10, np.eye(10), np.eye(10), np.eye(10)[::-1], HOSTILE, path, range(10)
    ),
    "plot_predictions": lambda path: plot_predictions(
        np.zeros((1, 8, 8, 1)), np.ones((1, 2, 2)), *np.zeros((2, 1, 8, 8, 1)), path, HOSTILE[0]
    ),
    "plot_timeline": lambda path: plot_timeline(timeline_of(HOSTILE), path),
    "plot_training_curves": lambda path: plot_training_curves(LOG, path),
}


def test_every_figure_is_tried_with_names_from_the_data():
    modules = [import_module(f"fer_pll.plots.{module.name}") for module in pkgutil.iter_modules(plots.__path__)]
    functions = {name for module in modules for name, _ in inspect.getmembers(module, inspect.isfunction)}
    assert {name for name in functions if name.startswith("plot_")} == FIGURES.keys()


@pytest.mark.parametrize("name", FIGURES)
def test_names_from_the_data_are_drawn_as_they_are(name, tmp_path, figures):
    """A `$` begins no formula, which would draw something else, or end the command with half of its files written."""
    (tmp_path / "link").write_bytes(b"mine")
    (tmp_path / "a.png").symlink_to(tmp_path / "link")
    FIGURES[name](tmp_path / "a.png")
    with Image.open(tmp_path / "a.png") as image:
        assert image.format == "PNG"
    assert (tmp_path / "link").read_bytes() == b"mine" and len(list(tmp_path.iterdir())) == 2
    texts = [text for text in figures[0].findobj(Text) if text.get_text()]  # those without one may be made just now
    assert texts and not any(text.get_parse_math() for text in texts)
    if name not in ("plot_training_curves", "plot_curves", "plot_predictions"):
        drawn = {text.get_text() for text in texts}
        expected = {*HOSTILE[:4], "two lines", "row_id", "long long long long long…"[:23].rstrip("…") + "…", "_under"}
        assert all(any(text.startswith(each) for text in drawn) for each in expected)


def test_curves_of_seeds_that_logged_at_other_steps_or_never(tmp_path, figures):
    curves = {"some": [[(1, 0.2), (2, 0.4)], [(2, 0.8)], []], "none": [[], []], "no seed": []}
    plot_curves(curves, tmp_path / "a.png", "a title", "epoch", "share")
    axes = figures[0].axes[0]
    assert [(line.get_label(), line.get_xydata().tolist()) for line in axes.lines] == [
        ("some", [[1, 0.2], [2, pytest.approx(0.6)]])
    ]
    band = {tuple(point) for point in axes.collections[0].get_paths()[0].vertices.tolist()}
    assert band == {(1, 0.2), (2, 0.4), (2, 0.8)}
    with pytest.raises(ValueError, match="a title: there is nothing to draw, no curve has a point"):
        plot_curves({"none": [[], []]}, tmp_path / "b.png", "a title", "epoch", "share")
    assert not (tmp_path / "b.png").exists()


def test_an_audit_without_doubt_says_so(tmp_path, figures):
    plot_audit(np.diag([3, 4]), np.eye(2), ["a", "b"], tmp_path / "a.png", "its run")
    assert [text.get_text() for text in texts_of(figures[0].axes[0])] == ["no row"]
    plot_audit(np.array([[3, 1], [0, 4]]), np.eye(2), ["a", "b"], tmp_path / "a.png", "its run")
    assert [text.get_text() for text in texts_of(figures[1].axes[0])] == ["1"]
    assert figures[1].axes[0].get_xlabel() == "believed label"
