import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fer_pll.model.uniformity import simplex_queries, uniformity_loss


def cosines(queries: torch.Tensor) -> torch.Tensor:
    """Pairwise cosines of different queries, in float64."""
    directions = torch.nn.functional.normalize(queries.double(), dim=-1)
    return (directions @ directions.T)[~torch.eye(len(queries), dtype=torch.bool)]


def reference(queries: np.ndarray, temperature: float, literal: bool) -> float:
    """The formula term by term in float64, with the largest exponent taken out of each sum."""
    directions = queries / np.linalg.norm(queries, axis=1, keepdims=True)
    total = 0.0
    for i, one in enumerate(directions):
        exponents = [one @ other / temperature for j, other in enumerate(directions) if literal or i != j]
        total += max(exponents) + math.log(sum(math.exp(e - max(exponents)) for e in exponents))
    return total / len(directions) * (1 if literal else temperature)


def minimum(num_classes: int, temperature: float) -> float:
    return temperature * math.log(num_classes - 1) - 1 / (num_classes - 1)


@given(st.integers(2, 12), st.integers(0, 6), st.integers(0, 2**31))
@settings(max_examples=40)
def test_simplex_queries(num_classes, spare, seed):
    dim = num_classes - 1 + spare
    queries = simplex_queries(num_classes, dim, torch.Generator().manual_seed(seed))
    assert queries.shape == (num_classes, dim) and queries.dtype == torch.float32
    torch.testing.assert_close(queries.norm(dim=1), torch.ones(num_classes), atol=1e-6, rtol=0)
    assert (cosines(queries) + 1 / (num_classes - 1)).abs().max() < 1e-6


def test_orientation_follows_the_generator():
    first, same, other = (simplex_queries(4, 8, torch.Generator().manual_seed(seed)) for seed in (0, 0, 1))
    assert torch.equal(first, same)
    assert not torch.allclose(first, other)


def test_simplex_is_made_on_the_cpu_whatever_the_default_device():
    with torch.device("meta"):
        queries = simplex_queries(4, 8)
    assert queries.device.type == "cpu"


@pytest.mark.parametrize(("num_classes", "dim"), [(1, 8), (8, 6)])
def test_impossible_simplex(num_classes, dim):
    with pytest.raises(ValueError, match=f"{num_classes} label queries in {dim} dimensions"):
        simplex_queries(num_classes, dim)


@pytest.mark.parametrize("temperature", [0.001, 0.01, 0.1, 1.0])
def test_closed_forms(temperature):
    # All equal: every cosine is 1. Orthogonal: every cosine is 0.
    same = uniformity_loss(torch.ones(5, 8), temperature)
    assert same.item() == pytest.approx(1 + temperature * math.log(4), rel=1e-5)
    orthogonal = uniformity_loss(3 * torch.eye(5), temperature)
    assert orthogonal.item() == pytest.approx(temperature * math.log(4), rel=1e-5)
    pair = uniformity_loss(torch.tensor([[1.0, 0.0], [-1.0, 0.0]]), temperature)
    assert pair.item() == pytest.approx(-1)


@given(
    st.integers(2, 9),
    st.integers(2, 12),
    st.sampled_from([0.001, 0.005, 0.01, 0.1, 1.0]),
    st.booleans(),
    st.integers(0, 2**31),
)
@settings(max_examples=60)
def test_equals_the_formula_in_float64(num_classes, dim, temperature, literal, seed):
    queries = np.random.default_rng(seed).normal(size=(num_classes, dim))
    loss = uniformity_loss(torch.from_numpy(queries), temperature, literal)
    assert loss.dtype == torch.float32 and loss.shape == ()
    expected = reference(queries.astype(np.float32).astype(float), temperature, literal)
    # A cosine carries float32's 1e-7; the literal form divides it by the temperature.
    assert loss.item() == pytest.approx(expected, abs=1e-6 / (temperature if literal else 1), rel=1e-6)


@given(st.integers(2, 9), st.integers(2, 12), st.floats(0.001, 1), st.integers(0, 2**31))
@settings(max_examples=60)
def test_never_below_the_minimum(num_classes, dim, temperature, seed):
    queries = torch.randn(num_classes, dim, generator=torch.Generator().manual_seed(seed))
    assert uniformity_loss(queries, temperature) >= minimum(num_classes, temperature) - 1e-6


@pytest.mark.parametrize("temperature", [0.001, 0.01, 0.1, 1.0])
@pytest.mark.parametrize("num_classes", [2, 7, 8])
def test_simplex_reaches_the_minimum(num_classes, temperature):
    queries = simplex_queries(num_classes, 32).requires_grad_()
    loss = uniformity_loss(queries, temperature)
    assert loss.item() == pytest.approx(minimum(num_classes, temperature), abs=1e-6)
    # At tau = 0.001 the weights of the pairs magnify float32's rounding of the cosines a thousand times.
    assert torch.autograd.grad(loss, queries)[0].abs().max() < 1e-6 / temperature


def test_descent_spreads_collapsed_queries():
    queries = (
        torch.ones(8, 16) + 0.01 * torch.randn(8, 16, generator=torch.Generator().manual_seed(0))
    ).requires_grad_()
    optimizer = torch.optim.Adam([queries], lr=0.05)
    for _ in range(300):
        optimizer.zero_grad()
        uniformity_loss(queries, 0.1).backward()
        optimizer.step()
    assert (cosines(queries.detach()) + 1 / 7).abs().max() < 0.02


def test_length_of_the_queries_does_not_matter():
    queries = torch.randn(5, 8, dtype=torch.float64)
    scaled = queries * torch.tensor([[1e-3], [1.0], [10.0], [1e3], [0.5]])
    torch.testing.assert_close(uniformity_loss(queries, 0.1), uniformity_loss(scaled, 0.1))


@pytest.mark.parametrize("temperature", [0.001, 0.005, 0.01])
def test_literal_form_is_one_over_tau_and_moves_nothing(temperature):
    """The self term: why Eq. 3 as printed regularizes nothing at the paper's temperatures."""
    queries = torch.randn(8, 64, generator=torch.Generator().manual_seed(0)).requires_grad_()
    loss = uniformity_loss(queries, temperature, literal=True)
    assert loss.item() == pytest.approx(1 / temperature, rel=1e-6)
    vanishing = torch.autograd.grad(loss, queries)[0].abs().max()
    # What is left is rounding: the self term's gradient, 1 / tau times a direction that normalization projects away.
    assert vanishing < 1e-6 / temperature
    ours = torch.autograd.grad(uniformity_loss(queries, temperature), queries)[0].abs().max()
    assert ours > 100 * vanishing


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("literal", [False, True])
@pytest.mark.parametrize("temperature", [0.001, 0.01])
def test_half_precision_does_not_overflow(dtype, literal, temperature):
    queries = (100 * torch.randn(8, 64, generator=torch.Generator().manual_seed(0))).to(dtype).requires_grad_()
    with torch.autocast("cpu", dtype=dtype):
        loss = uniformity_loss(queries, temperature, literal)
    assert loss.dtype == torch.float32
    assert loss.item() == pytest.approx(reference(queries.detach().double().numpy(), temperature, literal), rel=1e-5)
    assert torch.autograd.grad(loss, queries)[0].isfinite().all()


@pytest.mark.parametrize("literal", [False, True])
def test_gradient_equals_finite_differences_in_float64(literal):
    queries = np.random.default_rng(0).normal(size=(5, 6)).astype(np.float32).astype(float)
    tensor = torch.tensor(queries, dtype=torch.float32, requires_grad=True)
    (gradient,) = torch.autograd.grad(uniformity_loss(tensor, 0.2, literal), tensor)
    expected = np.empty_like(queries)
    for place in np.ndindex(queries.shape):
        step = np.zeros_like(queries)
        step[place] = 1e-6
        expected[place] = (reference(queries + step, 0.2, literal) - reference(queries - step, 0.2, literal)) / 2e-6
    np.testing.assert_allclose(gradient.numpy(), expected, atol=1e-5)


@pytest.mark.parametrize("temperature", [0, -0.1])
def test_temperature_must_be_positive(temperature):
    with pytest.raises(ValueError, match="must be greater than 0"):
        uniformity_loss(torch.randn(3, 4), temperature)
