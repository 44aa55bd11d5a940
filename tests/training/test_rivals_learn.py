"""What the later methods reach on handwritten digits whose labels are wrong, or that have several candidates.

A small convolutional network and a plain loop of steps stand in the place of model and trainer, which other tests
train: the methods see the same batches of features, maps, views and columns, and each training takes seconds.
"""

from itertools import pairwise

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits
from torch import nn
from transformers.modeling_outputs import BaseModelOutput, ImageClassifierOutput

from fer_pll.labels.confidence_table import ConfidenceTable
from fer_pll.training.methods import METHODS, Batch, Method, MethodOptions

K, TRAINING_ROWS, BATCH, EPOCHS = 10, 1200, 60, 12
CLASSES = [f"digit {k}" for k in range(K)]
NEW = [n for n in METHODS if not METHODS[n].uses_candidates and n not in ("cross_entropy", "soft_votes")]
UNLABELED = 0.8  # share of the rows that Ada-CM gets without a label
MORE_THAN_THREE_POINTS = {  # what wrong labels may cost, where it is more, and why; measured: 3.0 by cross-entropy
    "scn": 0.06,  # 3.9: half of the wrong labels get another one, of which a fifth is wrong again
    "eac": 0.15,  # 11.9: the mirror image of a digit is no digit, so both cannot be judged by the same places
    "dacl": 0.06,  # 3.9: a center loss trusts its labels
    "dda": 0.06,  # 3.7: as DACL
    "ada_cm": 0.06,  # 3.7: its labels are right, but few
}


class Encoder(nn.Module):
    def __init__(self):
        super().__init__()
        sizes, layers = (1, 32, 64, 64), []
        for before, after in pairwise(sizes):
            layers += [nn.Conv2d(before, after, 3, padding=1, bias=False), nn.BatchNorm2d(after), nn.ReLU()]
        self.layers = nn.Sequential(*layers[:6], nn.MaxPool2d(2), *layers[6:])

    def forward(self, pixel_values):
        return BaseModelOutput(last_hidden_state=self.layers(pixel_values))


class Digits(nn.Module):
    """A classifier on the mean of the last map, with what methods look for in one of transformers."""

    def __init__(self):
        super().__init__()
        self.base_model, self.classifier = Encoder(), nn.Linear(64, K)

    def forward(self, pixel_values):
        return ImageClassifierOutput(
            logits=self.classifier(self.base_model(pixel_values).last_hidden_state.mean(dim=(2, 3)))
        )


def shifted(pixels, generator, strong=False):
    """Images (B, 1, 8, 8) moved by up to a pixel; strong: with noise, and a square of 3 x 3 erased."""
    padded = nn.functional.pad(pixels, (1, 1, 1, 1))
    places = torch.randint(0, 3, (len(pixels), 2), generator=generator).tolist()
    moved = torch.stack([image[:, y : y + 8, x : x + 8] for image, (y, x) in zip(padded, places, strict=True)])
    if strong:
        moved += 0.2 * torch.randn(moved.shape, generator=generator)
        for image, (y, x) in zip(
            moved, torch.randint(0, 6, (len(pixels), 2), generator=generator).tolist(), strict=True
        ):
            image[:, y : y + 3, x : x + 3] = 0
    return moved


def train(name: str, columns: dict[str, torch.Tensor], candidates=None, **settings) -> tuple[float, Method]:
    """Accuracy on the test digits after a training with one method, and the method."""
    digits = load_digits()
    order = np.random.default_rng(0).permutation(len(digits.target))
    pixels = torch.tensor(digits.images[order] / 8 - 1, dtype=torch.float32)[:, None]
    torch.manual_seed(0)
    generator = torch.Generator().manual_seed(0)
    model = Digits()
    sets = np.ones((TRAINING_ROWS, K), dtype=bool) if candidates is None else candidates
    table = ConfidenceTable.from_candidates(sets, CLASSES, "f")
    annotators = columns["answers"].shape[1] if "answers" in columns else 0
    method = METHODS[name](model, table, MethodOptions(settings=settings, num_annotators=annotators))
    steps, done = EPOCHS * TRAINING_ROWS // BATCH, 0
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3, weight_decay=0.05)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 3e-3, total_steps=steps)
    for _ in range(EPOCHS):
        for index in torch.randperm(TRAINING_ROWS, generator=generator).split(BATCH):
            weak = method.num_views - method.strong_views
            views = torch.cat([shifted(pixels[index], generator, view >= weak) for view in range(method.num_views)])
            seen = views[: method.trained_views * BATCH]
            logits = model(torch.cat([seen, seen.flip(-1)]) if method.mirrored else seen).logits
            features, maps = method.taps.take()
            batch = Batch(
                logits=logits.unflatten(0, (-1, BATCH)),
                pixel_values=views.unflatten(0, (-1, BATCH)),
                index=index,
                revisable=torch.ones(BATCH, dtype=torch.bool),
                columns={column: columns[column][index] for column in method.columns},
                epoch=done * BATCH / TRAINING_ROWS,
                progress=done / steps,
                revising=True,
                model=model,
                features=None if features is None else features.unflatten(0, (-1, BATCH)),
                maps=None if maps is None else maps.unflatten(0, (-1, BATCH)),
            )
            optimizer.zero_grad()
            method.step(batch).mean().backward()
            optimizer.step()
            schedule.step()
            method.after_optimizer_step()
            done += 1
    with torch.no_grad():
        predicted = model.eval()(pixels[TRAINING_ROWS:]).logits.argmax(dim=1).numpy()
    return float((predicted == digits.target[order][TRAINING_ROWS:]).mean()), method


@pytest.fixture(scope="module")
def labels() -> dict[str, torch.Tensor]:
    """The true labels, labels of which a fifth is wrong, and the answers of three annotators who err as often."""
    digits = load_digits()
    truth = digits.target[np.random.default_rng(0).permutation(len(digits.target))][:TRAINING_ROWS]
    rng = np.random.default_rng(1)
    said = np.stack([truth] * 4, axis=1)
    said = np.where(rng.random(said.shape) < 0.2, (said + rng.integers(1, K, said.shape)) % K, said)
    return {
        name: torch.tensor(value)
        for name, value in (("truth", truth), ("labels", said[:, 0]), ("answers", said[:, 1:]))
    }


@pytest.fixture(scope="module")
def full_supervision(labels) -> float:
    """Accuracy with the true labels."""
    return train("cross_entropy", {"labels": labels["truth"]})[0]


@pytest.mark.long
@pytest.mark.parametrize("name", NEW)
def test_wrong_labels_cost_at_most_three_points_or_there_is_a_reason(labels, full_supervision, name):
    columns = {"labels": labels["labels"], "answers": labels["answers"]}
    if name == "ada_cm":  # for which labels are right, but few
        with_label = torch.from_numpy(np.random.default_rng(2).random(TRAINING_ROWS) >= UNLABELED)
        columns = {"labels": torch.where(with_label, labels["truth"], -1)}
    accuracy, _ = train(name, columns)
    print(f"{name}: {accuracy:.4f}, right labels: {full_supervision:.4f}")
    assert full_supervision > 0.97
    assert accuracy > full_supervision - MORE_THAN_THREE_POINTS.get(name, 0.03)


@pytest.mark.long
def test_scn_relabels_wrong_labels(labels):
    _, method = train("scn", {"labels": labels["labels"]})
    changed = method.relabeled >= 0
    right = (method.relabeled == labels["truth"])[changed].float().mean()
    print(f"{int(changed.sum())} of {TRAINING_ROWS} labels replaced, {right:.3f} of them by the right one")
    assert changed.sum() > 100 and right > 0.7


@pytest.fixture(scope="module")
def candidates(labels) -> np.ndarray:
    """The true labels and three of ten others."""
    sets = np.random.default_rng(3).random((TRAINING_ROWS, K)) < 0.3
    sets[np.arange(TRAINING_ROWS), labels["truth"]] = True
    return sets


@pytest.mark.long
@pytest.mark.parametrize("name", ["cc", "solar", "papi", "crosel"])
def test_labels_are_found_in_candidate_sets(labels, full_supervision, candidates, name):
    accuracy, method = train(name, {}, candidates)
    recovered = (method.table.confidence.argmax(dim=1) == labels["truth"]).float().mean()
    print(f"{name}: {accuracy:.4f}, right labels: {full_supervision:.4f}, labels found: {recovered:.3f}")
    # CroSel lost 2.3 points: in twelve epochs half of the images are selected.
    assert accuracy > full_supervision - (0.04 if name == "crosel" else 0.03)
    assert recovered > 0.95 or name == "cc"  # which revises nothing
    if name == "solar":
        shares = labels["truth"].bincount(minlength=K) / TRAINING_ROWS
        assert (method.prior - shares).abs().max() < 0.02
    if name == "crosel":
        chosen, found = method.select(torch.arange(TRAINING_ROWS))
        assert (chosen.float().mean(dim=1) > 0.3).all() and (found == labels["truth"])[chosen].float().mean() > 0.98
