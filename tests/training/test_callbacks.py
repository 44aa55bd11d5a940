"""What one sees of a pre-training: images of its predictions and a probe of its features."""

from functools import partial

import numpy as np
import pytest
import torch
from PIL import Image
from skimage.feature import hog
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from fer_pll import FerPllForPreTraining
from fer_pll.plots.pretraining import hog_strokes
from fer_pll.training import callbacks as monitor
from fer_pll.training.callbacks import as_images
from fer_pll.training.linear_probe import LinearProbe
from fer_pll.training.pretraining import FerPllPreTrainer
from tiny import make_dataset, make_pretrainer, tiny_config, tiny_processor

SETTINGS = {"learning_rate": 1e-3, "save_strategy": "steps", "save_steps": 4}


def make_probed(tmp_path, probe=None, settings=None, **changes) -> FerPllPreTrainer:
    settings = SETTINGS | (settings or {}) | {"trainer_class": partial(FerPllPreTrainer, probe=probe)}
    config = tiny_config(**changes)
    return make_pretrainer(tmp_path, config, tiny_processor(config), make_dataset(48), **settings)


def drawn(tmp_path) -> list[str]:
    return sorted(path.name for path in (tmp_path / "pictures").glob("*"))


def test_a_training_with_images_and_probe_is_the_same_to_the_bit(tmp_path, toy_processor):
    """Masks, dropout and augmentation draw random numbers; looking at the model takes none of theirs."""
    changes = {"hidden_dropout_prob": 0.1, "drop_path_rate": 0.1}
    without = make_probed(tmp_path / "a", settings={"picture_steps": 0}, **changes)
    without.train()
    assert not (tmp_path / "a" / "pictures").exists()
    probe = LinearProbe(make_dataset(60, seed=3), toy_processor)
    seen = make_probed(tmp_path / "b", probe, settings={"picture_steps": 3}, **changes)
    seen.train()
    assert drawn(tmp_path / "b") == ["step-0000003.png", "step-0000006.png"]
    for name, weight in without.model.state_dict().items():
        assert torch.equal(weight, seen.model.state_dict()[name]), name
    losses = [[log["loss"] for log in trainer.state.log_history if "loss" in log] for trainer in (without, seen)]
    assert losses[0] == losses[1]
    assert seen.model.training == without.model.training

    probes = [(log["step"], log["probe_accuracy"]) for log in seen.state.log_history if "probe_accuracy" in log]
    assert [step for step, _ in probes] == [0, 4, 6]  # the start, the checkpoints; the last step is one
    assert all(0 <= accuracy <= 1 for _, accuracy in probes)
    saved = (tmp_path / "b" / "checkpoint-4" / "trainer_state.json").read_text()
    assert saved.count("probe_accuracy") == 2


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"mask_style": "token", "mask_shape": "blocks", "hog_gradient": "sobel", "image_size": 32, "mask_ratio": 0.5},
        {"pretraining_target": "normalized_pixels"},
        {"mask_style": "token", "pretraining_target": "pixels", "num_channels": 3},
    ],
)
def test_every_objective_is_drawn_with_each_checkpoint(tmp_path, changes):
    trainer = make_probed(tmp_path, settings={"report_to": "tensorboard", "num_train_epochs": 1}, **changes)
    trainer.train()
    assert drawn(tmp_path) == ["step-0000003.png"]  # the last step is a checkpoint
    figure = np.asarray(Image.open(tmp_path / "pictures" / "step-0000003.png"))
    assert figure.shape[1] > 1000 and figure.std() > 20
    events = EventAccumulator(str(next(tmp_path.rglob("events.*")).parent)).Reload()
    assert [image.step for image in events.Images("predictions")] == [3]
    assert {"train/images_per_second", "train/loss", "train/learning_rate"} <= set(events.Tags()["scalars"])


def test_momentum_contrast_is_probed_and_predicts_nothing_to_draw(tmp_path, toy_processor):
    settings = {"objective": "moco", "queue_size": 8, "save_strategy": "no"}
    probe = LinearProbe(make_dataset(60, seed=3), toy_processor)
    trainer = make_probed(tmp_path, probe, settings=settings)
    trainer.train()
    assert [log["step"] for log in trainer.state.log_history if "probe_accuracy" in log] == [0, 6]
    assert not (tmp_path / "pictures").exists()


@pytest.mark.parametrize("target", ["pixels", "normalized_pixels"])
@pytest.mark.parametrize("channels", [1, 3])
def test_pixel_targets_drawn_are_the_image(target, channels):
    model = FerPllForPreTraining(tiny_config(num_channels=channels, pretraining_target=target))
    pixels = torch.rand(2, channels, 16, 24)
    image = as_images(model, model.targets((pixels - 0.5) / 0.25), (pixels - 0.5) / 0.25)
    np.testing.assert_allclose(image, pixels.permute(0, 2, 3, 1), atol=1e-5)


def directions(image: np.ndarray, side: int) -> np.ndarray:
    """In which direction each cell is drawn, in degrees: 0 horizontal, 45 falling to the right; (rows, columns)."""
    height, width = image.shape
    cells = image.reshape(height // side, side, width // side, side)
    place = np.arange(side) - (side - 1) / 2
    rows, columns, both = (
        np.einsum("rycx,y,x->rc", cells, *weights)
        for weights in ((place**2, place**0), (place**0, place**2), (place, place))
    )
    return np.degrees(np.arctan2(2 * both, columns - rows)) / 2


def test_strokes_are_those_of_scikit_image():
    rng = np.random.default_rng(0)
    image = np.asarray(Image.fromarray(rng.integers(0, 256, (6, 4), dtype=np.uint8)).resize((128, 192), Image.BICUBIC))
    options = {"orientations": 9, "pixels_per_cell": (32, 32), "cells_per_block": (1, 1), "block_norm": "L2"}
    blocks, expected = hog(image, visualize=True, feature_vector=False, **options)
    ours = hog_strokes(blocks[:, :, 0, 0], side=32)
    assert ours.shape == expected.shape and 0 <= ours.min() < 0.1 < 0.9 < ours.max() <= 1
    difference = (directions(ours, 32) - directions(expected, 32) + 90) % 180 - 90
    assert abs(difference).max() < 8  # its strokes end at whole pixels
    # Strokes in the place of their mirror images would be seen.
    assert abs(directions(ours[:, ::-1], 32)[:, ::-1] - directions(expected, 32)).max() > 30


@pytest.mark.parametrize("gradient", ["central", "sobel"])
def test_a_stroke_lies_along_the_edge(gradient):
    """In either definition of the angle; 30 degrees is the middle of a bin of 20."""
    model = FerPllForPreTraining(tiny_config(image_size=32, hog_cell_size=8, hog_gradient=gradient))
    row, column = torch.meshgrid(torch.arange(32.0), torch.arange(32.0), indexing="ij")
    angle = torch.deg2rad(torch.tensor(30.0))
    wave = torch.sin((row * angle.cos() - column * angle.sin()) / 3)[None, None]  # its crests fall by 30 degrees
    image = as_images(model, model.targets(wave), wave)[0, :, :, 0]
    assert image.shape == (48, 48)
    assert abs(directions(image, 12)[1:-1, 1:-1] - 30).max() < 8


def test_the_probe_finds_what_is_in_the_features(toy_processor):
    """Half of the pixels tell the class; noise does not. The rows without a label take no part."""
    rows = make_dataset(90, seed=3)
    labels = rows["label"][:]
    rows = rows.remove_columns("label").add_column(
        "label", [-1 if i % 3 == 0 else label for i, label in enumerate(labels)], feature=rows.features["label"]
    )
    probe = LinearProbe(rows, toy_processor)
    assert len(probe.labels) == 60 and probe.num_training == 40 and (probe.labels >= 0).all()

    def halves(pixels):
        return torch.nn.functional.avg_pool2d(pixels, 8).flatten(1)

    assert probe.accuracy(halves, batch_size=7) == probe.accuracy(halves, batch_size=64) == 1.0
    noise = torch.Generator().manual_seed(0)
    assert probe.accuracy(lambda pixels: torch.randn(len(pixels), 4, generator=noise), batch_size=64) < 0.6
    assert np.isnan(probe.accuracy(lambda pixels: pixels.flatten(1) * float("nan"), batch_size=64))


def test_a_probe_needs_labels(toy_processor):
    rows = make_dataset(40)
    unknown = rows.remove_columns("label").add_column("label", [-1] * 40, feature=rows.features["label"])
    with pytest.raises(ValueError, match="at least 30 labeled images of two classes; there are 0 of 0"):
        LinearProbe(unknown, toy_processor)


def test_the_same_random_numbers_each_time(tmp_path, monkeypatch):
    """The masks of all images of a training are the same, so that they can be compared."""
    masks = []
    monkeypatch.setattr(monitor, "plot_predictions", lambda images, mask, *args, **kwargs: masks.append(mask))
    make_probed(tmp_path, settings={"picture_steps": 2}).train()
    assert len(masks) == 3 and all(np.array_equal(mask, masks[0]) for mask in masks)
