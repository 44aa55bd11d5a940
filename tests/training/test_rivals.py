"""Losses and updates of the methods of given labels, of crowds and of SoLar, against naive definitions in float64."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from datasets import List, Value
from torch import nn
from transformers import AutoModelForImageClassification, ResNetConfig, ViTConfig

import tiny
from fer_pll import FerPllForImageClassification
from fer_pll.data.augmentation import BatchAugmentation
from fer_pll.labels.confidence_table import ConfidenceTable
from fer_pll.training.methods import METHODS, Batch, Method, MethodOptions
from fer_pll.training.methods.ada_cm import two_view_contrastive
from fer_pll.training.methods.dmue import ramps
from fer_pll.training.methods.network import classify, last_map, last_stage
from fer_pll.training.methods.solar import refined_labels, sinkhorn, small_losses
from fer_pll.training.param_groups import parameter_groups

B, K, D = 12, 4, 32
LABELS = {"id2label": dict(enumerate(tiny.CLASSES)), "label2id": {name: i for i, name in enumerate(tiny.CLASSES)}}


def rows(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def softmax(z):
    e = np.exp(z - z.max())
    return e / e.sum()


def unit(x):
    return x / np.linalg.norm(x)


@pytest.fixture
def make_method():
    def make(name, queries=False, num_annotators=0, candidates=None, **settings) -> Method:
        torch.manual_seed(0)
        model = FerPllForImageClassification(tiny.tiny_config(add_query_decoder=queries)).train()
        sets = np.ones((B, K), dtype=bool) if candidates is None else candidates
        table = ConfidenceTable.from_candidates(sets, tiny.CLASSES, "f")
        return METHODS[name](model, table, MethodOptions(settings=settings, num_annotators=num_annotators))

    return make


def batch_of(method: Method, logits, features=None, maps=None, **given) -> Batch:
    return tiny.make_batch(method.model, logits, features=features, maps=maps, **given)


def numbers(tensor):
    return tensor.detach().double().numpy()


GIVEN = torch.arange(B) % K

# -------------------------------------------------------------------------------------------------- what a method gets


def models():
    yield "label queries", tiny.tiny_config()
    yield "mean of the tokens", tiny.tiny_config(add_query_decoder=False)
    stages = {"hidden_sizes": [8, 16], "depths": [1, 1], "layer_type": "basic", "out_features": ["stage1", "stage2"]}
    network = {"model_type": "resnet", "embedding_size": 8, "num_channels": 1, **stages}
    yield "label queries on two stages", tiny.tiny_config(backbone_config=network)
    yield "ResNet", ResNetConfig(hidden_sizes=[16, 32], depths=[1, 1], embedding_size=16, num_channels=1, **LABELS)
    small = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 64}
    yield "ViT", ViTConfig(image_size=16, patch_size=8, num_channels=1, **small, **LABELS)


@pytest.mark.parametrize("config", [pytest.param(config, id=name) for name, config in models()])
def test_the_classifier_makes_the_logits_from_the_features_that_were_kept(config):
    class Probe(Method):
        name, summary = "probe", "nothing"
        uses_features = uses_maps = True

    torch.manual_seed(0)
    model = AutoModelForImageClassification.from_config(config).train()
    table = ConfidenceTable.from_candidates(np.ones((B, K), dtype=bool), tiny.CLASSES, "f")
    method = Probe(model, table, MethodOptions())
    method.add_head(nn.Linear(3, 1))
    logits = model(pixel_values=rows(5, 1, 16, 16)).logits
    features, maps = method.taps.take()
    torch.testing.assert_close(method.classify(features), logits)
    assert method.pooled(features).shape == (5, features.shape[-1]) and maps.shape[0] == 5
    assert maps.shape[2] == maps.shape[3] == {"ResNet": 2}.get(type(config).__name__[:6], 2)
    if getattr(config, "add_query_decoder", None) is False:  # the grid's tokens are in their places
        torch.testing.assert_close(maps.mean(dim=(2, 3)), features)
    logits.sum().backward()  # a head that was not called has a gradient of zero, which DDP waits for
    assert all(torch.equal(p.grad, torch.zeros_like(p)) for p in method.head.parameters())
    assert method.taps.take() == (None, None)
    model.eval()
    model(pixel_values=rows(5, 1, 16, 16))
    assert method.taps.take() == (None, None)  # evaluations keep nothing


def test_maps_of_token_grids_and_what_has_none():
    class Output:
        def __init__(self, states):
            self.last_hidden_state = states

    class Registers:
        num_register_tokens = 4

    tokens = rows(2, 9, 3)
    for states, config in ((tokens, None), (rows(2, 10, 3), None), (rows(2, 14, 3), Registers())):
        found = last_map(Output(states), config, "x")
        assert torch.equal(found[:, :, 1, 2], states[:, -9:][:, 5])
    several = rows(2, 16 + 4, 3)
    found = last_stage(several, (torch.empty(2, 8, 4, 4), torch.empty(2, 8, 2, 2)))
    assert torch.equal(found[:, :, 1, 0], several[:, 16 + 2])
    with pytest.raises(ValueError, match="loss='x' needs a network whose encoder ends with a feature map"):
        last_map(Output(rows(2, 8, 3)), None, "x")


def test_mirrored_and_strong_views_reach_the_method(tmp_path, toy_processor, toy_train):
    config = tiny.tiny_config(add_query_decoder=False)
    seen = {}
    for loss in ("eac", "ada_cm"):
        trainer = tiny.make_trainer(tmp_path, config, toy_processor, toy_train, loss=loss, flip=False, max_steps=1)
        step, forward = trainer.method.step, trainer.model.forward

        def observed(batch, step=step):
            seen["batch"] = batch
            return step(batch)

        def watched(pixel_values, forward=forward, **kwargs):
            seen["pixels"] = pixel_values
            return forward(pixel_values=pixel_values, **kwargs)

        trainer.method.step, trainer.model.forward = observed, watched
        trainer.train()
        if loss == "eac":
            image, mirror = seen["pixels"].chunk(2)
            assert torch.equal(mirror, image.flip(-1)) and seen["batch"].maps.shape == (2, 16, 32, 2, 2)
            assert seen["batch"].logits.shape == (2, 16, 4)
        else:
            weak, again, strong = seen["batch"].pixel_values
            # Nothing but the strong view is augmented here; it has a rectangle of one gray in each image.
            assert torch.equal(weak, again) and (weak != strong).flatten(1).any(dim=1).all()
            assert seen["batch"].features.shape == (3, 16, 32)


def test_a_strong_augmentation_keeps_what_is_stronger_already():
    weak = BatchAugmentation(seed=3, crop_scale=0.9, rotation=45.0, light=0.1, erase=0.2)
    assert weak.stronger() == replace(weak, crop_scale=0.5, light=0.4, erase=1.0)


def test_own_layers_are_neither_saved_nor_refused(tmp_path, make_method):
    method = make_method("scn")
    method.model.save_pretrained(tmp_path)
    _, info = FerPllForImageClassification.from_pretrained(tmp_path, output_loading_info=True)
    assert not info["missing_keys"] and not info["unexpected_keys"]


# ------------------------------------------------------------------------------------------------- SCN, RUL, EAC, DACL


@pytest.mark.parametrize("queries", [False, True])
def test_scn_by_hand(make_method, queries):
    method = make_method("scn", queries, important_share=0.5, relabel_after=0.25)
    nn.init.normal_(method.head.weight, std=1.0)
    features, logits = rows(1, B, *[K] * queries, D), 4 * rows(1, B, K, seed=1)
    weight, bias = numbers(method.head.weight)[0], numbers(method.head.bias)[0]
    x = numbers(features[0]).mean(axis=1) if queries else numbers(features[0])
    labels = GIVEN.numpy().copy()

    def by_hand(labels, relabel):
        alpha = 1 / (1 + np.exp(-(x @ weight + bias)))
        order = sorted(range(B), key=lambda i: -alpha[i])
        high, low = order[:6], order[6:]
        rank = max(0.0, 0.15 - (np.mean(alpha[high]) - np.mean(alpha[low])))
        p = [softmax(alpha[i] * numbers(logits[0, i])) for i in range(B)]
        losses = [0.5 * -math.log(p[i][labels[i]]) + 0.5 * rank for i in range(B)]
        new = labels.copy()
        for i in low if relabel else []:
            if p[i].max() - p[i][labels[i]] > 0.2:
                new[i] = p[i].argmax()
        return losses, new

    losses = method.step(batch_of(method, logits, features, labels=GIVEN))
    np.testing.assert_allclose(numbers(losses), by_hand(labels, False)[0], rtol=1e-5)
    assert (method.relabeled == -1).all()
    losses = method.step(batch_of(method, logits, features, progress=0.25, labels=GIVEN))
    expected, new = by_hand(labels, True)
    np.testing.assert_allclose(numbers(losses), expected, rtol=1e-5)
    assert 0 < (new != labels).sum() <= 6 and torch.equal(
        method.labels(batch_of(method, logits, labels=GIVEN)), torch.tensor(new)
    )
    losses = method.step(batch_of(method, logits, features, progress=0.1, labels=GIVEN))
    np.testing.assert_allclose(numbers(losses), by_hand(new, False)[0], rtol=1e-5)  # new labels hold


def test_the_ranking_of_scn_pushes_the_groups_apart(make_method):
    method = make_method("scn", rank_weight=1.0)
    features, logits = rows(1, B, D), rows(1, B, K)
    optimizer = torch.optim.SGD(method.head.parameters(), lr=5.0)
    for _ in range(50):
        optimizer.zero_grad()
        loss = method.step(batch_of(method, logits, features, labels=GIVEN)).mean()
        loss.backward()
        optimizer.step()
    alpha = method.head(features[0]).sigmoid()[:, 0].sort(descending=True).values
    assert loss == 0 and alpha[:8].mean() - alpha[8:].mean() >= 0.15
    one = batch_of(method, logits[:, :1], features[:, :1], labels=GIVEN[:1])
    assert method.step(one).isfinite().all()  # one row: there is nothing to rank


@pytest.mark.parametrize("queries", [False, True])
def test_rul_by_hand(make_method, queries):
    method = make_method("rul", queries)
    features, other = rows(B, *[K] * queries, D), torch.randperm(B, generator=torch.Generator().manual_seed(5))
    weight, bias = (numbers(p) for p in (method.model.classifier.weight, method.model.classifier.bias))

    def by_hand(uncertainty):
        losses = []
        for i, j in enumerate(other.tolist()):
            mixed = (uncertainty[i] * x[i] + uncertainty[j] * x[j]) / (uncertainty[i] + uncertainty[j])
            z = (weight * mixed).sum(axis=1) + bias if queries else weight @ mixed + bias
            p = softmax(z)
            losses.append(-(math.log(p[GIVEN[i]]) + math.log(p[GIVEN[j]])) / 2)
        return losses

    x = numbers(features)
    nn.init.normal_(method.model.classifier.weight, std=1.0)
    weight = numbers(method.model.classifier.weight)
    losses = method.mixed_loss(features, GIVEN, other)
    np.testing.assert_allclose(numbers(losses), by_hand(np.ones(B)), rtol=1e-4, atol=1e-6)  # at first all are equal
    nn.init.normal_(method.head.weight, std=0.5)
    mean = x.mean(axis=1) if queries else x
    losses = method.mixed_loss(features, GIVEN, other)
    np.testing.assert_allclose(
        numbers(losses), by_hand(np.exp(mean @ numbers(method.head.weight)[0])), rtol=1e-4, atol=1e-6
    )


def test_the_step_of_rul_mixes_in_a_random_order(make_method):
    method = make_method("rul")
    batch = batch_of(method, rows(1, B, K), rows(1, B, D), labels=GIVEN)
    torch.manual_seed(1)
    losses = method.step(batch)
    torch.manual_seed(1)
    torch.testing.assert_close(losses, method.mixed_loss(batch.features[0], GIVEN, torch.randperm(B)))


def test_eac_by_hand(make_method):
    method = make_method("eac", attention_weight=3.0)
    maps, logits = rows(2, B, D, 2, 3), rows(2, B, K, seed=1)
    losses = method.step(batch_of(method, logits, maps=maps, labels=GIVEN))
    weight, f = numbers(method.model.classifier.weight), numbers(maps)
    for i in range(B):
        difference = 0.0
        for k in range(K):
            for a in range(2):
                for b in range(3):
                    here = sum(weight[k, c] * f[0, i, c, a, b] for c in range(D))
                    there = sum(weight[k, c] * f[1, i, c, a, 2 - b] for c in range(D))
                    difference += (here - there) ** 2 / (K * 2 * 3)
        expected = -math.log(softmax(numbers(logits[0, i]))[GIVEN[i]]) + 3 * difference
        assert losses[i].item() == pytest.approx(expected, rel=1e-5)
    symmetric = torch.stack([maps[0], maps[0].flip(-1)])  # a network that looks at the same places
    losses = method.step(batch_of(method, logits, maps=symmetric, labels=GIVEN))
    torch.testing.assert_close(losses, nn.functional.cross_entropy(logits[0], GIVEN, reduction="none"))


def test_eac_refuses_models_without_class_activation_maps(make_method):
    with pytest.raises(ValueError, match=r"loss='eac' needs a classifier on the mean.*--add_query_decoder false"):
        make_method("eac", queries=True)
    method = make_method("eac")
    with pytest.raises(ValueError, match="the classifier takes 32 values, but the encoder's last map has 8 channels"):
        method.step(batch_of(method, rows(2, B, K), maps=rows(2, B, 8, 2, 2), labels=GIVEN))


def test_dacl_by_hand(make_method):
    method = make_method("dacl", center_weight=0.1, center_step=0.5)
    method.centers = rows(K, D, seed=3)
    features, logits, centers = rows(1, B, D), rows(1, B, K, seed=1), numbers(method.centers)
    losses = method.step(batch_of(method, logits, features, labels=GIVEN))
    x, a = numbers(features[0]), numbers(method.head(features[0]))
    assert ((a > 0) & (a < 1)).all()
    expected, moved = [], centers.copy()
    for i in range(B):
        distance = sum(a[i, j] * (x[i, j] - centers[GIVEN[i], j]) ** 2 for j in range(D))
        expected.append(-math.log(softmax(numbers(logits[0, i]))[GIVEN[i]]) + 0.1 * distance / 2)
    for k in range(K):
        members = [i for i in range(B) if GIVEN[i] == k]
        moved[k] -= 0.5 * sum(a[i] * (centers[k] - x[i]) for i in members) / (1 + len(members))
    np.testing.assert_allclose(numbers(losses), expected, rtol=1e-5)
    np.testing.assert_allclose(numbers(method.centers), moved, rtol=1e-5, atol=1e-6)


def test_dda_by_hand(make_method):
    method = make_method("dda", center_weight=0.1, discriminant_weight=0.5, center_step=0.3)
    method.centers = 0.3 * rows(K, D, seed=3)
    features, logits, centers = 0.3 * rows(1, B, D), rows(1, B, K, seed=1), numbers(method.centers)
    losses = method.step(batch_of(method, logits, features, labels=GIVEN))
    x = numbers(features[0])
    for i in range(B):
        distances = np.array([sum((x[i, j] - centers[k, j]) ** 2 for j in range(D)) for k in range(K)])
        expected = -math.log(softmax(numbers(logits[0, i]))[GIVEN[i]]) + 0.05 * distances[GIVEN[i]]
        assert losses[i].item() == pytest.approx(expected - 0.25 * math.log(softmax(-distances)[GIVEN[i]]), rel=1e-5)
    moved = centers + 0.3 * np.stack([sum(x[i] - centers[k] for i in range(k, B, K)) / (1 + B // K) for k in range(K)])
    np.testing.assert_allclose(numbers(method.centers), moved, rtol=1e-5, atol=1e-6)


# ------------------------------------------------------------------------------------------------------------- DMUE


def test_dmue_by_hand(make_method):
    method = make_method("dmue", soft_weight=0.5, similarity_weight=10.0, ramp_share=0.5)
    labels = torch.tensor([0, 0, 1, 1, 1, 3, 3, 0, 1, 3, 0, 1])  # class 2 is missing
    features, logits = rows(1, B, D), rows(1, B, K, seed=1)
    losses = method.step(batch_of(method, logits, features, progress=0.25, labels=labels))
    head, x, z, y = method.head, numbers(features[0]), numbers(logits[0]), labels.numpy()
    states = [np.maximum(x @ numbers(m.weight).T + numbers(m.bias), 0) for m in head.hidden]
    outputs = [s @ numbers(m.weight).T + numbers(m.bias) for s, m in zip(states, head.output, strict=True)]
    target, soft = np.zeros(B), np.zeros(B)
    for i in range(B):
        others = [k for k in range(K) if k != y[i]]
        q = softmax(outputs[y[i]][i][others]) ** (1 / 1.2)
        p = softmax(z[i])
        soft[i] = ((p[others] - q / q.sum()) ** 2).sum() / K
        mean = {k: np.mean([unit(x[i]) @ unit(x[j]) for j in range(B) if y[j] == k]) for k in (0, 1, 3)}
        low, high = min(mean.values()), max(mean.values())
        seen = [(mean[k] - low) / (high - low) if k in mean else 0.0 for k in range(K)]
        inputs = torch.tensor([*seen, *np.eye(K)[y[i]]]).float()
        alpha = 1 / (1 + math.exp(-head.importance(inputs).item()))
        target[i] = -math.log(softmax(alpha * z[i])[y[i]])
    branches, similarity = 0.0, 0.0
    for k in range(K):
        members = [i for i in range(B) if y[i] != k]
        known = [c for c in range(K) if c != k]
        branches += np.mean([-math.log(softmax(outputs[k][i][known])[known.index(y[i])]) for i in members]) / K
        grams = [np.stack([unit(row) for row in v[members] @ v[members].T]) for v in (states[k], x)]
        similarity += ((grams[0] - grams[1]) ** 2).mean() / K
    up, down = math.exp(-5 * 0.25), 1.0  # half of the ramp
    expected = (up * (target + 0.5 * soft + 10 * similarity)).mean() + down * branches
    assert losses.mean().item() == pytest.approx(expected, rel=1e-5)
    assert ramps(1.0) == (1.0, 1.0) and ramps(2.0) == (1.0, math.exp(-0.25))
    with pytest.raises(ValueError, match="needs three classes"):
        model = FerPllForImageClassification(tiny.tiny_config(["a", "b"]))
        table = ConfidenceTable.from_candidates(np.ones((3, 2), dtype=bool), ["a", "b"], "f")
        METHODS["dmue"](model, table, MethodOptions())


# ------------------------------------------------------------------------------------- neighbors, consistency, Ada-CM


def test_ldl_by_hand(make_method):
    method = make_method("ldl", neighbors=3, neighbor_share=0.4, neighbor_temperature=0.2)
    features, logits = rows(2, B, D), rows(2, B, K, seed=1)
    losses = method.step(batch_of(method, logits[:1], features[:1], labels=GIVEN))
    torch.testing.assert_close(losses, nn.functional.cross_entropy(logits[0], GIVEN, reduction="none"))  # none yet
    losses = method.step(batch_of(method, logits[1:], features[1:], labels=GIVEN))
    before, now = numbers(features[0]), numbers(features[1])
    for i in range(B):
        cosines = sorted(((unit(now[i]) @ unit(before[j]), j) for j in range(B) if j != i), reverse=True)[:3]
        weights = softmax(np.array([cosine for cosine, _ in cosines]) / 0.2)
        near = sum(w * softmax(numbers(logits[0, j])) for w, (_, j) in zip(weights, cosines, strict=True))
        distribution = 0.6 * np.eye(K)[GIVEN[i]] + 0.4 * near
        assert losses[i].item() == pytest.approx(
            -(distribution * np.log(softmax(numbers(logits[1, i])))).sum(), rel=1e-5
        )
    assert method.queued == 2 * B and method.rows[:B].tolist() == method.rows[B : 2 * B].tolist() == list(range(B))


def test_mcr_by_hand(make_method):
    method = make_method("mcr", instance_weight=2.0, distance_weight=3.0, agreement_weight=0.5)
    features, logits = rows(2, B, D), rows(2, B, K, seed=1)
    losses = method.step(batch_of(method, logits, features, labels=GIVEN))
    one, two = ([unit(row) for row in numbers(view)] for view in features)
    for i in range(B):
        instance = 1 - one[i] @ two[i]
        distance = np.mean([(one[i] @ one[j] - two[i] @ two[j]) ** 2 for j in range(B)])
        near = sorted(((one[i] @ one[j], j) for j in range(B) if j != i), reverse=True)[:4]
        weights = softmax(np.array([cosine for cosine, _ in near]) / 0.1)
        q = sum(w * softmax(numbers(logits[0, j])) for w, (_, j) in zip(weights, near, strict=True))
        agreement = -(q * np.log(softmax(numbers(logits[1, i])))).sum()
        given = -math.log(softmax(numbers(logits[0, i]))[GIVEN[i]])
        assert losses[i].item() == pytest.approx(given + 2 * instance + 3 * distance + 0.5 * agreement, rel=1e-5)
    one_row = batch_of(method, logits[:, :1], features[:, :1], labels=GIVEN[:1])
    assert method.step(one_row).isfinite().all()


def test_ada_cm_by_hand(make_method):
    method = make_method("ada_cm")
    labels = torch.where(torch.arange(B) < 4, GIVEN, -1)
    features, logits = rows(3, B, D), rows(3, B, K, seed=1)
    logits[:2, 4:8] *= 12  # sure of something
    logits[1, 4:8] = logits[0, 4:8]
    p = np.stack([[softmax(row) for row in view] for view in numbers(logits[:2])]).mean(axis=0)
    sure = [i for i in range(4, B) if p[i].max() >= 0.8]
    unsure = [i for i in range(4, B) if i not in sure]
    assert len(sure) >= 3 and len(unsure) >= 3
    losses = method.step(batch_of(method, logits, features, labels=labels))
    given = np.mean([-math.log(softmax(numbers(logits[0, i]))[labels[i]]) for i in range(4)])
    pseudo = sum(-math.log(softmax(numbers(logits[2, i]))[p[i].argmax()]) for i in sure) / (B - 4)
    vectors = [unit(numbers(view[i])) for view in features[:2] for i in unsure]
    n, contrast = len(unsure), []
    for a in range(2 * n):
        scores = {b: math.exp(vectors[a] @ vectors[b] / 0.07) for b in range(2 * n) if b != a}
        contrast.append(-math.log(scores[(a + n) % (2 * n)] / sum(scores.values())))
    assert losses.mean().item() == pytest.approx(0.5 * given + pseudo + 0.1 * np.mean(contrast), rel=1e-5)

    # The margins of the next epoch, from the rows with a label that were right in this one.
    for i in range(4):
        logits[:, i] = 9 * torch.eye(K)[labels[i]] - (20.0 * torch.eye(K)[labels[i]] if i == 1 else 0.0)
    method.step(batch_of(method, logits, features, epoch=0.5, labels=labels))
    seen = method.seen.clone()
    method.step(batch_of(method, logits, features, epoch=3.0, labels=labels))
    mean = numbers(seen[0]) / np.maximum(numbers(seen[1]), 1)
    expected = np.maximum(0.97 * mean / (1 + math.exp(-3)), 0.8)
    np.testing.assert_allclose(numbers(method.class_margins), expected, rtol=1e-6)
    assert method.class_margins[0] > 0.8 and method.class_margins[1] == pytest.approx(0.8)


def test_rows_without_a_label_are_for_ada_cm_alone(tmp_path, toy_config, toy_processor, toy_train):
    half = toy_train.remove_columns("label").add_column(
        "label",
        [label if i % 2 else -1 for i, label in enumerate(toy_train["label"])],
        feature=toy_train.features["label"],
    )
    trainer = tiny.make_trainer(tmp_path, toy_config, toy_processor, half, loss="ada_cm", max_steps=2)
    trainer.train()
    assert np.isfinite([log["loss"] for log in trainer.state.log_history if "loss" in log]).all()
    with pytest.raises(ValueError, match="loss='scn' learns from the column 'label', which is undefined"):
        tiny.make_trainer(tmp_path, toy_config, toy_processor, half, loss="scn")


def test_two_views_that_agree_and_differ_from_all_others_cost_nothing():
    vectors = torch.eye(6)
    expected = math.log(math.exp(10) + 10 * 1) - 10  # 11 others, of which one is its own
    torch.testing.assert_close(two_view_contrastive(vectors, vectors, 0.1), torch.full((6,), expected))


# ------------------------------------------------------------------------------------------------------------- crowds


@pytest.mark.parametrize("name", ["crowd_layer", "annotator_confusion"])
def test_annotators_by_hand(make_method, name):
    method = make_method(name, num_annotators=3)
    assert method.columns == ("answers",)
    nn.init.normal_(method.head.annotators)
    matrices, logits = numbers(method.head.annotators), rows(1, B, K, seed=1)
    answers = torch.randint(-1, K, (B, 3), generator=torch.Generator().manual_seed(2))
    answers[0] = -1
    losses = method.step(batch_of(method, logits, answers=answers))
    for i in range(B):
        p, terms = softmax(numbers(logits[0, i])), []
        for r, answer in enumerate(answers[i].tolist()):
            if answer < 0:
                continue
            if name == "crowd_layer":
                terms.append(-math.log(softmax(matrices[r] @ p)[answer]))
            else:
                confusion = np.stack([softmax(row) for row in matrices[r]])
                terms.append(-math.log(sum(p[k] * confusion[k, answer] for k in range(K))))
        expected = np.mean(terms) if terms else 0.0
        if name == "annotator_confusion":
            expected += 0.01 * np.mean([np.trace(np.stack([softmax(row) for row in m])) for m in matrices])
        assert losses[i].item() == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("name", ["crowd_layer", "annotator_confusion"])
def test_votes_are_the_answers_of_annotators_who_are_alike(make_method, name):
    answers = torch.randint(0, K, (B, 5), generator=torch.Generator().manual_seed(2))
    votes = torch.stack([(answers == k).sum(dim=1) for k in range(K)], dim=1)
    each, together = make_method(name, num_annotators=5), make_method(name)
    assert together.columns == ("votes",) and together.head.annotators.shape == (1, K, K)
    logits = rows(1, B, K)
    of_answers = each.step(batch_of(each, logits, answers=answers))
    torch.testing.assert_close(of_answers, together.step(batch_of(together, logits, votes=votes)))


def test_votes_in_shares_count_as_whole_ones(make_method):
    method = make_method("crowd_layer")
    votes = torch.randint(1, 5, (B, K), generator=torch.Generator().manual_seed(3)).float()
    logits = rows(1, B, K)
    shares = method.step(batch_of(method, logits, votes=0.3 * votes / votes.sum(dim=1, keepdim=True)))
    torch.testing.assert_close(shares, method.step(batch_of(method, logits, votes=votes)))


def test_first_matrices_of_annotators(make_method):
    assert torch.equal(make_method("crowd_layer").head.annotators[0], torch.eye(K))
    method = make_method("annotator_confusion", num_annotators=2)
    expected = torch.full((K, K), 0.1 / 3).fill_diagonal_(0.9)
    torch.testing.assert_close(method.confusions(), expected.expand(2, -1, -1))
    decayed = [g for g in parameter_groups(method.model, 1.0, 0.1) if g["weight_decay"]]
    assert not any(p is method.head.annotators for group in decayed for p in group["params"])  # 0 is no good matrix


@pytest.mark.long
def test_the_trace_finds_the_annotators(make_method):
    """Answers of two annotators with known confusions; the truth is known to the model only through them."""
    rng = np.random.default_rng(0)
    truth = rng.integers(0, K, 4000)
    good = np.full((K, K), 0.1 / 3) + (0.9 - 0.1 / 3) * np.eye(K)
    bad = 0.6 * np.eye(K) + 0.4 * np.roll(np.eye(K), 1, axis=1)  # takes each class for the next one
    answers = torch.tensor(np.stack([[rng.choice(K, p=m[t]) for t in truth] for m in (good, bad)], axis=1))
    method = make_method("annotator_confusion", num_annotators=2, trace_weight=0.01)
    logits = nn.Parameter(torch.zeros(K, K))  # what the model says about the faces of each class
    nn.init.eye_(logits)
    optimizer = torch.optim.Adam([logits, *method.head.parameters()], lr=0.05)
    for _ in range(400):
        optimizer.zero_grad()
        method.step(batch_of(method, logits[torch.tensor(truth)][None], answers=answers)).mean().backward()
        optimizer.step()
    assert np.abs(numbers(method.confusions()) - np.stack([good, bad])).max() < 0.06
    assert logits.softmax(dim=1).diagonal().min() > 0.9


def test_a_training_set_with_answers_trains_annotators_of_its_own(tmp_path, toy_config, toy_processor, toy_train):
    answers = [[label, (label + 1) % K, -1] for label in toy_train["label"]]
    named = toy_train.add_column("answers", answers, feature=List(Value("int32"), length=3))
    trainer = tiny.make_trainer(tmp_path, toy_config, toy_processor, named, loss="annotator_confusion", max_steps=2)
    start = trainer.method.head.annotators.detach().clone()
    trainer.train()
    moved = (trainer.method.head.annotators.detach() != start).flatten(1).any(dim=1)
    assert len(moved) == 3 and moved.all()
    for rows_of_answers, match in (
        ([[0], [1, 2]] * 24, "rows of different lengths"),
        ([[0, 4]] * 48, r"has \[0, 4\] in row 0: answers are classes, 0 .. 3, or -1"),
    ):
        bad = toy_train.add_column("answers", rows_of_answers)
        with pytest.raises(ValueError, match=match):
            tiny.make_trainer(tmp_path, toy_config, toy_processor, bad, loss="crowd_layer")
    with pytest.raises(ValueError, match="loss='crowd_layer' needs the column 'votes'"):
        tiny.make_trainer(tmp_path, toy_config, toy_processor, toy_train.remove_columns("votes"), loss="crowd_layer")


# -------------------------------------------------------------------------------------------------------------- SoLar


def candidate_probabilities(number, seed=0):
    rng = np.random.default_rng(seed)
    inside = rng.dirichlet(np.ones(K), number) * (rng.random((number, K)) < 0.6)
    inside[np.arange(number), rng.integers(0, K, number)] += 0.1
    return inside


def test_sinkhorn_by_hand():
    inside, prior = candidate_probabilities(200), np.array([0.4, 0.3, 0.2, 0.1])
    plan = inside**3
    for _ in range(2000):
        plan *= 200 * prior / plan.sum(axis=0)
        plan /= plan.sum(axis=1, keepdims=True)
    p = torch.tensor(inside)
    labels = refined_labels(p, sinkhorn(p, torch.tensor(prior), 3.0, iterations=2000), 3.0)
    np.testing.assert_allclose(labels.numpy(), plan, atol=1e-6)
    np.testing.assert_allclose(labels.sum(dim=0).numpy(), 200 * prior, rtol=1e-4)
    assert (labels[p == 0] == 0).all()
    # Where all predictions are alike, each row gets the shares.
    same = torch.full((7, K), 0.25)
    torch.testing.assert_close(
        refined_labels(same, sinkhorn(same, torch.tensor(prior), 3.0), 3.0), torch.tensor(prior).float().expand(7, -1)
    )
    # A class that no row may have, and predictions that are zero in float32.
    hard = torch.tensor([[1e-30, 1.0, 0, 0], [0.5, 0.5, 0, 0]])
    assert refined_labels(hard, sinkhorn(hard, torch.full((4,), 0.25), 3.0), 3.0).isfinite().all()


def test_the_rows_of_each_class_with_the_smallest_losses():
    labels = torch.tensor([0, 0, 0, 0, 1, 1, 3])
    losses = torch.tensor([0.4, 0.1, 0.3, 0.2, 0.9, 0.8, 5.0])
    chosen = small_losses(labels, losses, torch.tensor([0.5, 0.1, 0.3, 0.1]), 0.5)
    assert chosen.tolist() == [False, True, False, True, False, True, True]  # ceil(1.75) = 2, 1 and 1


def test_solar_labels_a_row_whose_candidates_have_no_probability_left(make_method):
    """In float32 the softmax of the others is 0 beside a logit of 120."""
    candidates = np.ones((B, K), dtype=bool)
    candidates[0, 0] = False
    method = make_method("solar", candidates=candidates)
    logits = rows(2, B, K)
    logits[0, 0, 0] = 120.0
    method.step(batch_of(method, logits, epoch=0.5))
    assert method.step(batch_of(method, logits, epoch=1.0, progress=0.5)).isfinite().all()
    assert method.queue[: 2 * B].isfinite().all() and (method.queue[: 2 * B].sum(dim=1) > 0).all()


def test_solar_by_hand(make_method):
    candidates = candidate_probabilities(B, seed=2) > 0
    method = make_method("solar", candidates=candidates, solar_ramp=0.5)
    logits, prior = 3 * rows(2, B, K), candidates / candidates.sum(axis=1, keepdims=True)
    np.testing.assert_allclose(numbers(method.prior), prior.mean(axis=0), rtol=1e-6)
    uniform = method.table.confidence.clone()
    losses = method.step(batch_of(method, logits, epoch=0.5))
    torch.testing.assert_close(losses, -(uniform * logits[0].log_softmax(dim=1)).sum(dim=1))  # the first epoch
    left = numbers(method.table.confidence)
    p, strong = (np.stack([softmax(row) for row in numbers(view)]) for view in logits)
    inside = np.where(candidates, p, 0.0)
    np.testing.assert_allclose(left, inside / inside.sum(axis=1, keepdims=True), atol=1e-6)  # the rule soft

    counts = np.bincount(inside.argmax(axis=1), minlength=K)
    losses = method.step(batch_of(method, logits, epoch=1.0, progress=0.25))
    prior = 0.9 * prior.mean(axis=0) + 0.1 * counts / B
    np.testing.assert_allclose(numbers(method.prior), prior, rtol=1e-6)
    inside_scaled = inside / inside.max(axis=1, keepdims=True)
    both = np.concatenate([inside_scaled, inside_scaled]) ** 3.0  # the queue holds the first step
    plan = both.copy()
    for _ in range(50):
        plan *= 2 * B * prior / plan.sum(axis=0)
        plan /= plan.sum(axis=1, keepdims=True)
    q = plan[B:]
    cost = -(q * np.log(p)).sum(axis=1)
    eta, rho = 0.45, 0.5  # half of the ramp
    reliable = set()
    for k in range(K):
        members = sorted((i for i in range(B) if q[i].argmax() == k), key=lambda i: cost[i])
        reliable |= set(members[: max(math.ceil(rho * prior[k] * B), 1)])
    reliable |= {i for i in range(B) if (q[i] * p[i]).sum() > 0.99}
    others = [i for i in range(B) if i not in reliable]
    assert reliable and others
    sure = np.mean([cost[i] - (q[i] * np.log(strong[i])).sum() for i in reliable])
    unsure = np.mean([-(left[i] * np.log(p[i])).sum() for i in others])
    assert losses.mean().item() == pytest.approx(eta * sure + (1 - eta) * unsure, rel=1e-4)
    assert method.queued == 2 * B


# ------------------------------------------------------------------------------------------------------------- resume


def same_state(one, other):
    assert one.keys() == other.keys()
    for key, value in one.items():
        if isinstance(value, dict):
            same_state(value, other[key])
        else:
            assert torch.equal(torch.as_tensor(value), torch.as_tensor(other[key])), key


@pytest.mark.parametrize(
    "loss",
    [
        "scn",
        *(
            pytest.param(n, marks=pytest.mark.long)
            for n in ("solar", "papi", "crosel", "rul", "dmue", "dacl", "dda", "ldl", "ada_cm", "crowd_layer", "pico")
        ),
    ],
)
def test_a_resumed_run_ends_like_the_whole_one_also_with_an_average(
    tmp_path, toy_config, toy_processor, toy_train, loss
):
    settings = {"save_strategy": "steps", "save_steps": 4, "crop_scale": 0.7, "average_decay": 0.9}
    whole = tiny.make_trainer(tmp_path, toy_config, toy_processor, toy_train, loss=loss, **settings)
    whole.train()
    resumed = tiny.make_trainer(tmp_path, toy_config, toy_processor, toy_train, loss=loss, **settings)
    resumed.train(resume_from_checkpoint=str(tmp_path / "checkpoint-4"))
    for (name, one), other in zip(whole.model.named_parameters(), resumed.model.parameters(), strict=True):
        assert torch.equal(one, other), name
    same_state(whole.method.state_dict(), resumed.method.state_dict())
    assert torch.equal(whole.table.confidence, resumed.table.confidence)


@pytest.mark.parametrize("loss", [n for n in METHODS if not METHODS[n].uses_candidates])
def test_settings_out_of_range_are_refused(loss):
    bad = {"rank_weight": 2, "rank_margin": -1, "attention_weight": -1, "center_step": 2, "center_weight": -1}
    bad |= {"ramp_share": 0, "soft_weight": -1, "neighbors": 0, "neighbor_share": 2, "neighbor_temperature": 0}
    bad |= {"discriminant_weight": -1, "instance_weight": -1, "pseudo_weight": -1, "trace_weight": -1, "prior_step": 0}
    known = METHODS[loss].Settings.__dataclass_fields__
    for name, value in bad.items():
        if name in known:
            with pytest.raises(ValueError, match=f"{name}={value}"):
                METHODS[loss].make_settings({name: value})
    for name in known:  # each help says something
        assert METHODS[loss].Settings.__dataclass_fields__[name].metadata["help"].endswith(".")


def test_classify_takes_the_type_of_the_classifier():
    model = FerPllForImageClassification(tiny.tiny_config(add_query_decoder=False)).to(torch.bfloat16)
    assert classify(model, rows(3, D)).dtype == torch.bfloat16
