"""Divergences against the Jacobian's trace from torch.autograd.functional, for any event shape and precision."""

import math

import pytest
import torch

from fmkit import divergence as divergence_module
from fmkit.divergence import ExactDivergence, HutchinsonDivergence
from fmkit.errors import ArgumentError

EVENTS = [(), (3,), (2, 3, 4)]


def field(event, dtype, seed=0):
    """v(t, x) = tanh(x A + t) x, flattened: every output depends on every input."""
    d = math.prod(event)
    a = torch.randn(d, d, generator=torch.Generator().manual_seed(seed), dtype=dtype) / math.sqrt(d)

    def f(t, x):
        flat = x.reshape(x.shape[0], -1)
        return (torch.tanh(flat @ a + t) * flat).reshape(x.shape)

    return f


def points(event, dtype, n=5):
    return torch.randn(n, *event, generator=torch.Generator().manual_seed(1), dtype=dtype)


def jacobians(f, t, x):
    """(B, D, D), one row at a time."""
    d = x[0].numel()
    rows = [torch.autograd.functional.jacobian(lambda y: f(t, y), x[i : i + 1]).reshape(d, d) for i in range(len(x))]
    return torch.stack(rows)


@pytest.mark.parametrize("event", EVENTS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("chunk", [None, 1, 5, 1000])
def test_exact_is_the_trace_of_the_jacobian(event, dtype, chunk):
    f, x = field(event, dtype), points(event, dtype)
    velocity, divergence = ExactDivergence(chunk).rate(f, x)(0.3, x)
    want = jacobians(f, 0.3, x).diagonal(dim1=1, dim2=2).sum(1)
    torch.testing.assert_close(velocity, f(0.3, x))
    tolerance = 1e-12 if dtype == torch.float64 else 1e-5
    torch.testing.assert_close(divergence, want[:, None], rtol=tolerance, atol=tolerance)
    assert divergence.dtype == dtype


@pytest.mark.parametrize("event", EVENTS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("distribution", ["rademacher", "gaussian"])
def test_hutchinson_is_z_j_z_over_its_probes_in_the_mean(event, dtype, distribution):
    """Unbiased: the mean over 20,000 probes within five standard errors; and each has the variance of its kind."""
    f, x, n = field(event, dtype), points(event, dtype, n=2), 20_000
    jacobian = jacobians(f, 0.3, x)
    trace = jacobian.diagonal(dim1=1, dim2=2).sum(1)
    symmetric = (jacobian + jacobian.mT) / 2
    variance = 2 * symmetric.square().sum((1, 2))
    if distribution == "rademacher":
        variance = variance - 2 * symmetric.diagonal(dim1=1, dim2=2).square().sum(1)
    generator = torch.Generator().manual_seed(0)
    each = HutchinsonDivergence(n, distribution).rate(f, x, generator)(0.3, x)[1].T
    assert each.shape == (n, 2)
    error = (each.double().mean(0) - trace.double()).abs()
    assert (error < 5 * (variance.double() / n).sqrt() + 1e-5).all()
    if variance.min() > 1e-6:  # over one-dimensional events a Rademacher probe has no variance
        torch.testing.assert_close(each.double().var(0), variance.double(), rtol=0.1, atol=1e-6)
    assert each.dtype == dtype


@pytest.mark.parametrize("event", EVENTS)
def test_one_rademacher_probe_is_exact_for_a_diagonal_jacobian(event):
    x = points(event, torch.float64)
    _, divergence = HutchinsonDivergence().rate(lambda t, y: torch.sin(y) * t, x, torch.Generator().manual_seed(0))(
        2.0, x
    )
    torch.testing.assert_close(divergence, (2 * torch.cos(x)).reshape(5, -1).sum(1, True), rtol=1e-13, atol=1e-13)


@pytest.mark.parametrize(
    "divergence", [ExactDivergence(), HutchinsonDivergence(3), HutchinsonDivergence(1, "gaussian")], ids=repr
)
@pytest.mark.parametrize("event", EVENTS)
def test_a_field_that_ignores_the_point_has_none(divergence, event):
    x = points(event, torch.float32)
    velocity, got = divergence.rate(lambda t, y: torch.full(y.shape, 2.0), x, torch.Generator().manual_seed(0))(0.1, x)
    assert got.shape == (5, divergence.estimates)
    assert (got == 0).all()
    assert (velocity == 2).all()


def test_probes_stay_for_an_integration_and_follow_from_the_generator():
    f, x = field((3,), torch.float64), points((3,), torch.float64)
    before = torch.get_rng_state()
    rate = HutchinsonDivergence(1, "gaussian").rate(f, x, torch.Generator().manual_seed(0))
    again = HutchinsonDivergence(1, "gaussian").rate(f, x, torch.Generator().manual_seed(0))
    other = HutchinsonDivergence(1, "gaussian").rate(f, x, torch.Generator().manual_seed(1))
    assert torch.equal(torch.get_rng_state(), before)
    first = rate(0.3, x)[1]
    assert torch.equal(first, rate(0.3, x)[1])
    assert torch.equal(first, again(0.3, x)[1])
    assert not torch.equal(first, other(0.3, x)[1])


def test_rows_have_probes_of_their_own():
    """Averaged over equal rows the estimate converges, which shared probes would not."""
    f, x = field((4,), torch.float64), torch.ones(20_000, 4, dtype=torch.float64)
    estimate = HutchinsonDivergence().rate(f, x, torch.Generator().manual_seed(0))(0.3, x)[1].mean()
    exact = ExactDivergence().rate(f, x[:1])(0.3, x[:1])[1]
    assert estimate.item() == pytest.approx(exact.item(), abs=0.05)


@pytest.mark.parametrize("divergence", [ExactDivergence(), HutchinsonDivergence(2)], ids=repr)
def test_differentiable(divergence):
    """d/dw of div(w x³) = sum 3 x² ; Rademacher is exact here."""
    x = points((3,), torch.float64).requires_grad_()
    w = torch.tensor(0.5, dtype=torch.float64, requires_grad=True)
    _, got = divergence.rate(lambda t, y: w * y**3, x.detach(), torch.Generator().manual_seed(0))(0.0, x)
    got = got.mean(1)
    dw, dx = torch.autograd.grad(got.sum(), (w, x))
    torch.testing.assert_close(dw, (3 * x**2).sum().detach())
    torch.testing.assert_close(dx, (6 * w * x).detach())


def test_no_gradient_is_kept_where_none_is_asked_for():
    x = points((3,), torch.float64)
    with torch.no_grad():
        velocity, got = ExactDivergence().rate(field((3,), torch.float64), x)(0.3, x)
    assert not velocity.requires_grad
    assert not got.requires_grad


def test_refusals():
    for wrong in (0, -1, 1.5, True, "3"):
        with pytest.raises(ArgumentError, match=f"chunk is {wrong!r}, expected a whole number of at least 1"):
            ExactDivergence(wrong)
        with pytest.raises(ArgumentError, match=f"probes is {wrong!r}, expected a whole number of at least 1"):
            HutchinsonDivergence(wrong)
    with pytest.raises(ArgumentError, match="distribution is 'normal', expected 'rademacher' or 'gaussian'"):
        HutchinsonDivergence(1, "normal")


class Pulled(torch.autograd.Function):
    """A slope passed on as it is, that notes how many come at once."""

    at_once: list[int]

    @staticmethod
    def forward(slope):
        return slope.clone()

    @staticmethod
    def setup_context(ctx, inputs, output):
        pass

    @staticmethod
    def vmap(info, in_dims, slope):
        Pulled.at_once.append(info.batch_size)
        return slope.clone(), in_dims[0]


class Identity(torch.autograd.Function):
    """x, whose slopes are noted."""

    @staticmethod
    def forward(x):
        return x.clone()

    @staticmethod
    def setup_context(ctx, inputs, output):
        pass

    @staticmethod
    def backward(ctx, slope):
        return Pulled.apply(slope)


def rows_at_once(divergence, x):
    """How many products with the Jacobian are taken at once, each time."""
    Pulled.at_once = []
    divergence.rate(lambda t, y: Identity.apply(y), x)(0.0, x)
    return Pulled.at_once


@pytest.mark.parametrize(("device", "elements"), [("cpu", 2**20), ("meta", 2**21)])
def test_memory_is_bounded_by_chunks(device, elements):
    """Rows of the Jacobian times the size of the batch: 2^20 numbers at once on a processor, 2^21 elsewhere."""
    n = elements // 2**16
    x = torch.ones(2**8, 2**8, device=device)
    assert rows_at_once(ExactDivergence(), x) == [n] * (2**8 // n)
    assert rows_at_once(HutchinsonDivergence(3 * n), x) == [n] * 3
    assert rows_at_once(ExactDivergence(chunk=2**7), x) == [2**7] * 2
    wide = torch.ones(elements // 2 + 2, 2, device=device)
    assert rows_at_once(HutchinsonDivergence(5), wide) == rows_at_once(HutchinsonDivergence(5, "gaussian"), wide)
    assert rows_at_once(HutchinsonDivergence(5), wide) == [1] * 5


@pytest.mark.parametrize("divergence", [ExactDivergence(), HutchinsonDivergence(3)], ids=repr)
def test_all_is_taken_where_the_points_are(divergence):
    x = torch.ones(2, 3, device="meta")
    velocity, estimates = divergence.rate(lambda t, y: y**2, x)(0.0, x)
    assert velocity.device == estimates.device == x.device


@pytest.mark.parametrize(
    "divergence", [ExactDivergence(), HutchinsonDivergence(), HutchinsonDivergence(5, "gaussian")], ids=repr
)
def test_exact_is_what_does_not_depend_on_probes(divergence):
    f, x = field((3,), torch.float64), points((3,), torch.float64)
    a, b = (divergence.rate(f, x, torch.Generator().manual_seed(seed))(0.3, x)[1] for seed in (0, 1))
    assert torch.equal(a, b) == divergence.exact


@pytest.mark.parametrize("elements", [1, 7, 10**9])
@pytest.mark.parametrize("divergence", [ExactDivergence(), HutchinsonDivergence(9, "gaussian")], ids=repr)
def test_chunks_change_nothing_but_the_memory(divergence, elements, monkeypatch):
    f, x = field((2, 3), torch.float64), points((2, 3), torch.float64)
    whole = divergence.rate(f, x, torch.Generator().manual_seed(0))(0.3, x)[1]
    monkeypatch.setattr("fmkit.divergence.CPU_ELEMENTS", elements)
    torch.testing.assert_close(divergence.rate(f, x, torch.Generator().manual_seed(0))(0.3, x)[1], whole)


def test_as_many_columns_as_probes_each_an_estimate_of_its_own():
    """The mean over k columns has 1/k of the variance of one: they are independent."""
    f, x = field((6,), torch.float64), torch.ones(20_000, 6, dtype=torch.float64)
    each = HutchinsonDivergence(4, "gaussian").rate(f, x, torch.Generator().manual_seed(0))(0.3, x)[1]
    assert each.shape == (20_000, 4)
    assert each.mean(1).var().item() == pytest.approx(each.var().item() / 4, rel=0.05)


# -- a few rows, one after the other -----------------------------------------------------------------------------------

FEW = [ExactDivergence(), HutchinsonDivergence(), HutchinsonDivergence(3, "gaussian")]


class Weighted(torch.nn.Module):
    """A field with weights, of two coordinates that depend on each other."""

    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.tensor([[0.5, -1.0], [2.0, 0.3]], dtype=torch.float64))

    def forward(self, t, x):
        return torch.tanh(x @ self.weight) * x.square()


def both_ways(divergence, f, x, monkeypatch):
    """The rate one after the other, and vectorised."""
    for few in (divergence_module.FEW, 0):
        monkeypatch.setattr(divergence_module, "FEW", few)
        yield divergence.rate(f, x, torch.Generator().manual_seed(0))(0.3, x)


@pytest.mark.parametrize("divergence", FEW, ids=repr)
def test_one_after_the_other_as_vectorised(divergence, monkeypatch):
    f, x = Weighted(), points((2,), torch.float64)
    gradients = []
    for velocity, estimates in both_ways(divergence, f, x, monkeypatch):
        assert torch.equal(velocity, f(0.3, x))
        gradients.append((estimates, *torch.autograd.grad(estimates.sum() + velocity.sum(), f.weight)))
    for one, other in zip(*gradients, strict=True):
        torch.testing.assert_close(one, other)


@pytest.mark.parametrize("divergence", FEW, ids=repr)
def test_gradients_reach_points_that_were_computed(divergence, monkeypatch):
    f, leaf = Weighted(), points((2,), torch.float64).requires_grad_()
    found = []
    for velocity, estimates in both_ways(divergence, f, 2 * leaf, monkeypatch):
        found.append(torch.autograd.grad(estimates.sum() + velocity.square().sum(), leaf, retain_graph=True)[0])
    torch.testing.assert_close(*found)


@pytest.mark.parametrize("divergence", FEW, ids=repr)
def test_without_gradients_none_are_kept(divergence):
    f, x = Weighted(), points((2,), torch.float64)
    with torch.no_grad():
        velocity, estimates = divergence.rate(f, x)(0.3, x)
    assert not velocity.requires_grad
    assert not estimates.requires_grad
    assert not x.requires_grad


@pytest.mark.parametrize("divergence", FEW, ids=repr)
def test_a_constant_field_has_none_either_way(divergence, monkeypatch):
    for f in (lambda t, x: torch.ones_like(x), lambda t, x: Weighted().weight[0].expand_as(x)):
        for velocity, estimates in both_ways(divergence, f, points((2,), torch.float64), monkeypatch):
            assert torch.equal(estimates, torch.zeros_like(estimates))
            assert velocity.shape == (len(estimates), 2)


@pytest.mark.parametrize("divergence", FEW, ids=repr)
def test_inside_other_transforms_and_in_inference_mode(divergence):
    f, x = Weighted(), points((2,), torch.float64)
    rate = divergence.rate(f, x, torch.Generator().manual_seed(0))
    expected = rate(0.3, x)[1].detach()
    with torch.inference_mode():
        torch.testing.assert_close(rate(0.3, x)[1], expected)
    (by_vjp,) = torch.func.vjp(lambda y: rate(0.3, y)[1].sum(), x)[1](torch.ones((), dtype=x.dtype))
    leaf = x.clone().requires_grad_()
    torch.testing.assert_close(by_vjp, torch.autograd.grad(rate(0.3, leaf)[1].sum(), leaf)[0])
