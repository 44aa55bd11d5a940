"""Losses and updates of PaPi and CroSel against naive definitions in float64."""

import numpy as np
import pytest
import torch

import tiny
from fer_pll import FerPllForImageClassification
from fer_pll.labels.confidence_table import ConfidenceTable
from fer_pll.training.methods import METHODS, Batch, MethodOptions
from fer_pll.training.param_groups import depths, encoder_modules

B, K, N = 12, 4, 20


def numbers(tensor):
    return tensor.detach().double().numpy()


def softmax(z):
    e = np.exp(z - z.max(axis=-1, keepdims=True))
    return e / e.sum(axis=-1, keepdims=True)


def inside(p, candidates):
    kept = np.where(candidates, p, 0.0)
    return kept / kept.sum(axis=-1, keepdims=True)


def divergence(target, p):
    """KL(target || p) of two distributions, term by term."""
    return sum(t * (np.log(t) - np.log(q)) for t, q in zip(target, p, strict=True) if t > 0)


@pytest.fixture
def candidates():
    sets = np.random.default_rng(3).random((N, K)) < 0.5
    sets[np.arange(N), np.arange(N) % K] = True
    return sets


@pytest.fixture(params=[False, True], ids=["mean", "queries"])
def make(request, candidates):
    def make(name, **settings):
        torch.manual_seed(0)
        model = FerPllForImageClassification(tiny.tiny_config(add_query_decoder=request.param)).train()
        table = ConfidenceTable.from_candidates(candidates, tiny.CLASSES, "f")
        return METHODS[name](model, table, MethodOptions(settings=settings))

    return make


def batch_of(method, index, revising=True, progress=1.0, seed=0) -> Batch:
    """Random images, through the model as the trainer does it."""
    views = torch.randn(2, len(index), 1, 16, 16, generator=torch.Generator().manual_seed(seed))
    logits = 3 * method.model(pixel_values=views[: method.trained_views].flatten(0, 1)).logits
    features, _ = method.taps.take()
    return Batch(
        logits=logits.unflatten(0, (-1, len(index))),
        pixel_values=views,
        index=index,
        revisable=torch.ones(len(index), dtype=torch.bool),
        columns={},
        epoch=2.0,
        progress=progress,
        revising=revising,
        model=method.model,
        features=None if features is None else features.unflatten(0, (-1, len(index))),
    )


INDEX = torch.randperm(N, generator=torch.Generator().manual_seed(1))[:B]
OTHER = torch.randperm(B, generator=torch.Generator().manual_seed(2))


def embedding(method, pixels):
    """Unit vectors by the head, from what enters the classifier, mean over label queries."""
    method.model(pixel_values=pixels)
    features, _ = method.taps.take()
    features = features.mean(dim=1) if features.ndim == 3 else features
    vectors = numbers(method.head(features))
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


@pytest.mark.parametrize(("progress", "ramp"), [(0.0, 0.0), (0.05, 0.5), (0.6, 1.0)])
def test_papi_by_hand(make, candidates, progress, ramp):
    method = make("papi", prototype_weight=0.7, prototype_temperature=0.2)
    start = torch.randn(K, method.DIM, generator=torch.Generator().manual_seed(5))
    method.prototypes = torch.nn.functional.normalize(start, dim=1)
    method.prototypes[2] = 0  # not predicted so far
    prototypes = numbers(method.prototypes).copy()
    before = numbers(method.table.confidence).copy()
    batch = batch_of(method, INDEX, progress=progress)
    with torch.no_grad():
        losses = numbers(method.mixed_step(batch, 0.3, OTHER))
        z_first, z_strong = (embedding(method, view) for view in batch.pixel_values)
        z_mixed = embedding(method, 0.3 * batch.pixel_values[0] + 0.7 * batch.pixel_values[0][OTHER])

    rows, other = INDEX.numpy(), OTHER.numpy()
    p, strong = softmax(numbers(batch.logits[0])), softmax(numbers(batch.logits[1]))
    guide = inside(p, candidates[rows])
    phi = 0.95 - 0.15 * progress
    expected = before.copy()
    for i, row in enumerate(rows):
        if candidates[row].sum() > 1:
            expected[row] = phi * before[row] + (1 - phi) * np.eye(K)[guide[i].argmax()]
    np.testing.assert_allclose(numbers(method.table.confidence), expected, atol=1e-6)
    similar = [softmax(z @ prototypes.T / 0.2) for z in (z_strong, z_mixed)]
    for i, row in enumerate(rows):
        mean = -(expected[row] * (np.log(p[i]) + np.log(strong[i]))).sum() / 2
        aligned = divergence(guide[i], similar[0][i])
        aligned += divergence(0.3 * guide[i] + 0.7 * guide[other[i]], similar[1][i])
        assert losses[i] == pytest.approx(mean + 0.7 * ramp * aligned, rel=1e-4, abs=1e-5)
    for i in range(B):
        k = guide[i].argmax()
        moved = 0.99 * prototypes[k] + 0.01 * z_first[i]
        prototypes[k] = moved / np.linalg.norm(moved)
    np.testing.assert_allclose(numbers(method.prototypes), prototypes, atol=1e-5)


def test_papi_guides_prototypes_and_not_the_classifier(make):
    """The divergence moves head and encoder, but what guides it has no gradient: the classifier does not move."""
    method = make("papi", prototype_weight=1e6)
    method.prototypes = torch.nn.functional.normalize(torch.randn(K, method.DIM), dim=1)
    batch = batch_of(method, INDEX, revising=False)
    with_weight = method.mixed_step(batch, 0.5, OTHER)
    with_weight.mean().backward()
    large = method.model.classifier.weight.grad.clone()
    assert next(method.head.parameters()).grad.abs().max() > 1
    method.model.zero_grad()
    other = make("papi", prototype_weight=0.0)
    other.mixed_step(batch_of(other, INDEX, revising=False), 0.5, OTHER).mean().backward()
    torch.testing.assert_close(large, other.model.classifier.weight.grad, rtol=1e-3, atol=1e-4)
    assert (method.table.confidence == other.table.confidence).all()  # nobody revised


def test_crosel_selects_by_three_criteria(make, candidates):
    method = make("crosel", selection_visits=3, selection_threshold=0.8)
    rng = np.random.default_rng(4)
    said, sure = np.full((2, N, 3), -1), np.zeros((2, N, 3))
    for visit in range(6):
        index = torch.from_numpy(rng.permutation(N)[:B])
        log_p = torch.from_numpy(np.log(softmax(6 * rng.standard_normal((2, B, K))))).float()
        if visit % 2:  # now and then all are as sure as before
            log_p = torch.log_softmax(8.0 * torch.nn.functional.one_hot(index % K, K).expand(2, B, K).float(), dim=2)
        method.remember(batch_of(method, index), log_p)
        for network in range(2):
            for i, row in enumerate(index.tolist()):
                p = np.exp(numbers(log_p[network, i]))
                said[network, row] = [*said[network, row, 1:], p.argmax()]
                sure[network, row] = [*sure[network, row, 1:], p.max()]
    assert (numbers(method.predicted) == said).all()
    np.testing.assert_allclose(numbers(method.probability), sure, atol=1e-6)
    chosen, labels = method.select(torch.arange(N))
    expected = np.zeros((2, N), dtype=bool)
    for network in range(2):
        for row in range(N):
            last = said[network, row, -1]
            steady = last >= 0 and all(said[network, row] == last)
            expected[network, row] = steady and candidates[row, last] and sure[network, row].mean() > 0.8
    assert chosen.tolist() == expected.tolist() and (labels.numpy() == said[:, :, -1]).all()


def fill(method, selected):
    """As if the last visits had been such that `selected` (2, N) rows are chosen, with their first class."""
    first = method.table.candidates.int().argmax(dim=1)
    method.predicted[:] = first[None, :, None]
    method.probability[:] = torch.where(torch.as_tensor(selected), 0.95, 0.5)[:, :, None]
    return first.numpy()


@pytest.mark.parametrize("selected", ["some", "none", "all"])
def test_crosel_by_hand(make, candidates, selected):
    method = make("crosel", comix_weight=0.6)
    chosen = np.random.default_rng(6).random((2, N)) < {"some": 0.5, "none": 0.0, "all": 1.0}[selected]
    label = fill(method, chosen)
    memory = method.predicted.clone()
    batch = batch_of(method, INDEX)
    with torch.no_grad():
        losses = numbers(method.mixed_step(batch, 0.3, OTHER)).mean()
        mixed = 0.3 * batch.pixel_values[1] + 0.7 * batch.pixel_values[1][OTHER]
        second = numbers(method.head(pixel_values=batch.pixel_values[0]).logits)
        of_mixed = [softmax(numbers(net(pixel_values=mixed).logits)) for net in (method.model, method.head)]
    rows, other = INDEX.numpy(), OTHER.numpy()
    p = [softmax(numbers(batch.logits[0])), softmax(second)]
    mean = (p[0] + p[1]) / 2
    guess = inside(np.where(candidates[rows], mean, 0.0) ** 2, candidates[rows])  # T = 1/2
    total = 0.0
    for a, b in ((0, 1), (1, 0)):
        by_b = [i for i in range(B) if chosen[b, rows[i]]]
        targets = [np.eye(K)[label[rows[i]]] if i in by_b else guess[i] for i in range(B)]
        if by_b:
            total += np.mean([-np.log(p[a][i][label[rows[i]]]) for i in by_b])
        mixtures = [0.3 * targets[i] + 0.7 * targets[other[i]] for i in range(B)]
        comix = np.mean([-(t * np.log(q)).sum() for t, q in zip(mixtures, of_mixed[a], strict=True)])
        total += 0.6 * (1 - len(by_b) / B) * comix
    assert losses == pytest.approx(total, rel=1e-4)
    np.testing.assert_allclose(numbers(method.table.confidence[INDEX]), inside(mean, candidates[rows]), atol=1e-5)
    assert torch.equal(method.predicted[:, INDEX, :2], memory[:, INDEX, 1:])
    assert (numbers(method.predicted[:, INDEX, 2]) == np.stack([each.argmax(axis=1) for each in p])).all()
    away = np.setdiff1d(np.arange(N), rows)
    assert torch.equal(method.predicted[:, away], memory[:, away])


@pytest.mark.parametrize(("revising", "progress"), [(False, 1.0), (True, 0.39)])
def test_crosel_begins_with_cc_and_remembers(make, candidates, revising, progress):
    method = make("crosel", selection_after=0.4)
    before = method.table.confidence.clone()
    batch = batch_of(method, INDEX, revising=revising, progress=progress)
    with torch.no_grad():
        losses = numbers(method.step(batch))
        second = numbers(method.head(pixel_values=batch.pixel_values[0]).logits)
    rows = INDEX.numpy()
    for i in range(B):
        p = [softmax(numbers(batch.logits[0]))[i], softmax(second)[i]]
        assert losses[i] == pytest.approx(-sum(np.log(each[candidates[rows[i]]].sum()) for each in p), abs=1e-5)
    assert torch.equal(method.table.confidence, before) != revising
    assert (method.predicted[:, INDEX, 2] >= 0).all() and (method.predicted[:, INDEX, :2] == -1).all()
    assert not method.select(INDEX)[0].any()


def test_the_second_network_of_crosel_is_another_one_that_trains_like_the_first(make):
    method = make("crosel")
    model, second = method.model, method.head
    names = [name for name, _ in second.named_parameters()]
    for name in names:
        same = torch.equal(model.get_parameter(name), second.get_parameter(name))
        assert same == (not name.startswith("classifier.")), name
    fill(method, np.ones((2, N), dtype=bool))
    method.step(batch_of(method, INDEX)).mean().backward()
    for network in (model, second):
        moved = [name for name, p in network.named_parameters() if p.grad is not None and p.grad.abs().max() > 0]
        assert len(moved) >= len(names) - 8  # the biases of keys have no gradient but rounding
    found = depths(model)
    assert all(found[f"second_network.{name}"] == found[name] for name in names)
    own = {id(p) for module in encoder_modules(model) for p in module.parameters()}
    frozen = {name for name, p in model.named_parameters() if id(p) in own}
    assert {f"second_network.{name}" for name in frozen if not name.startswith("second")} < frozen
    assert "second_network.classifier.weight" not in frozen and "classifier.weight" not in frozen


@pytest.mark.parametrize(
    ("loss", "setting", "value"),
    [
        ("papi", "prototype_weight", -1),
        ("papi", "prototype_temperature", 0),
        ("crosel", "selection_visits", 0),
        ("crosel", "selection_threshold", 1.0),
        ("crosel", "selection_after", 1.0),
        ("crosel", "comix_weight", -0.5),
    ],
)
def test_settings_out_of_range_are_refused(loss, setting, value):
    with pytest.raises(ValueError, match=f"{setting}={value}"):
        METHODS[loss].make_settings({setting: value})
