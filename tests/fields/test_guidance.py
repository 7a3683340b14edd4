"""Classifier-free guidance: free + scale (conditional - free), and never more than the field it wraps."""

import pytest
import torch

from fmkit.errors import ArgumentError, CombinationError
from fmkit.fields import (
    MLP,
    Autoguidance,
    CFGZeroStar,
    ClassifierFree,
    DiT,
    GuidanceInterval,
    ModuleField,
    PredictionField,
    Rescheduled,
    UNet,
    VectorField,
)
from fmkit.fields.guidance import optimal_scale
from fmkit.flow import Flow
from fmkit.oracle import MixtureOracle
from fmkit.paths import CondOT, Cosine, VariancePreserving
from fmkit.solvers import Heun
from fmkit.sources import Gaussian


class Net(torch.nn.Module):
    """1 without a condition, the condition with one."""

    def forward(self, t, x, cond):
        return torch.ones_like(x) if cond is None else cond.to(x.dtype)[:, None].expand_as(x)


t, x, cond = torch.full((3,), 0.5), torch.zeros(3, 2), torch.tensor([2, 3, 5])


@pytest.mark.parametrize(("scale", "want"), [(0.0, [1, 1, 1]), (1.0, [2, 3, 5]), (2.0, [3, 5, 9]), (-1.0, [0, -1, -3])])
def test_the_formula(scale, want):
    field = ClassifierFree(ModuleField(Net()), scale)
    assert field(t, x, cond)[:, 0].tolist() == want
    assert field(t, x)[:, 0].tolist() == [1, 1, 1]


def test_the_noise_is_guided_as_the_velocity_is():
    """Both are affine in the prediction, so guiding either is guiding the prediction."""
    inner = PredictionField(Net(), CondOT(), "noise", gaussian=True)
    guided = ClassifierFree(inner, 2.0).stochastic(t, x, cond)
    assert guided.noise[:, 0].tolist() == [3, 5, 9]
    by_hand = PredictionField(Net(), CondOT(), "noise", gaussian=True)
    torch.testing.assert_close(guided.velocity, by_hand(t, x, torch.tensor([3, 5, 9])))
    torch.testing.assert_close(guided.std, torch.full((3, 1), 0.5))
    assert ClassifierFree(inner, 2.0).stochastic(t, x).noise[:, 0].tolist() == [1, 1, 1]


def test_a_wrapper_offers_what_it_wraps():
    path = VariancePreserving()
    for inner in (
        ModuleField(Net()),
        PredictionField(Net(), path, gaussian=True),
        PredictionField(Net(), path, "data", (0.1, 0.2)),
    ):
        field = ClassifierFree(inner, 2.0)
        assert field.offers == inner.offers
        assert field.interval == inner.interval
        assert field.euclidean == inner.euclidean


def test_a_protocol_that_guidance_has_no_formula_for_is_not_offered():
    class Average(ModuleField):
        offers = frozenset({"velocity", "average"})

    assert ClassifierFree(Average(Net())).offers == {"velocity"}


def test_costs_two_evaluations_and_one_without_a_condition():
    for arguments, cost in (((t, x, cond), 2), ((t, x), 1)):
        inner, calls = ModuleField(Net()), []
        inner.register_forward_hook(lambda *_, calls=calls: calls.append(1))
        ClassifierFree(inner, 2.0)(*arguments)
        assert len(calls) == cost


def test_the_scale_is_one_unless_said():
    assert ClassifierFree(ModuleField(Net())).scale == 1.0


@pytest.mark.parametrize("scale", [float("nan"), float("inf")])
def test_scales_that_are_no_number_are_refused(scale):
    with pytest.raises(ArgumentError, match=f"scale is {scale}, expected a finite number"):
        ClassifierFree(ModuleField(Net()), scale)


# Against closed forms: two classes, each one Gaussian, so that both velocities of CFG are known.


class Exact(VectorField):
    """The marginal field of N(±2, 0.25 I) by class, and of their equal mixture without one."""

    def __init__(self):
        super().__init__()
        means = torch.tensor([[-2.0, 0.0], [2.0, 0.0]])
        self.parts = torch.nn.ModuleList(MixtureOracle(CondOT(), mean[None], std=0.5) for mean in means)
        self.whole = MixtureOracle(CondOT(), means, std=0.5)

    @property
    def offers(self):
        return frozenset({"velocity", "stochastic"})

    def forward(self, t, x, cond=None):
        if cond is None:
            return self.whole.velocity(t, x)
        return torch.where(cond[:, None] == 0, self.parts[0].velocity(t, x), self.parts[1].velocity(t, x))

    def stochastic(self, t, x, cond=None):
        part = self.whole if cond is None else self.parts[int(cond[0])]
        return part.stochastic(t, x)


def points(n=64):
    generator = torch.Generator().manual_seed(0)
    at = torch.rand(n, generator=generator, dtype=torch.float64)
    return at, torch.randn(n, 2, generator=generator, dtype=torch.float64), torch.arange(n) % 2


def by_hand(t, x, cond):
    """v(t, x | c) and v(t, x), written out from the reference formula for CondOT with sigma = 1 - t."""
    m, s, c = t[:, None], 1 - t[:, None], 0.5
    variance, rate = m**2 * c**2 + s**2, m * c**2 - s
    means = torch.tensor([[-2.0, 0.0], [2.0, 0.0]], dtype=torch.float64)
    each = torch.stack([rate / variance * (x - m * mean) + mean for mean in means], 1)
    log = torch.stack([-(x - m * mean).square().sum(1, keepdim=True) / (2 * variance) for mean in means], 1)
    return each[torch.arange(len(x)), cond], (torch.softmax(log, 1) * each).sum(1)


@pytest.mark.parametrize("scale", [-1.0, 0.0, 0.5, 1.0, 3.0])
def test_guided_velocities_of_a_mixture(scale):
    at, y, c = points()
    bound, free = by_hand(at, y, c)
    torch.testing.assert_close(ClassifierFree(Exact(), scale)(at, y, c), free + scale * (bound - free))
    s = (bound * free).sum(1, keepdim=True) / free.square().sum(1, keepdim=True)
    torch.testing.assert_close(CFGZeroStar(Exact(), scale)(at, y, c), s * free + scale * (bound - s * free))
    torch.testing.assert_close(
        Autoguidance(Exact(), Blind(Exact().whole), scale)(at, y, c), free + scale * (bound - free)
    )


class Blind(VectorField):
    """Deaf to the condition."""

    def __init__(self, field):
        super().__init__()
        self.field = field

    def forward(self, t, x, cond=None):
        return self.field(t, x)


def test_the_ends_of_the_scale_are_bit_for_bit():
    at, y, c = points()
    field = Exact()
    other = Blind(field.whole)
    for guided in (ClassifierFree(field, 1.0), CFGZeroStar(field, 1.0), Autoguidance(field, other, 1.0)):
        assert torch.equal(guided(at, y, c), field(at, y, c))
    for guided in (ClassifierFree(field, 0.0), Autoguidance(field, other, 0.0)):
        assert torch.equal(guided(at, y, c), field(at, y))


def test_the_optimal_scale_leaves_nothing_along_the_free_velocity():
    """s minimises |bound - s free|²: the rest is orthogonal; and where free rests, s does no harm."""
    generator = torch.Generator().manual_seed(0)
    bound, free = torch.randn(2, 5, 3, 4, generator=generator, dtype=torch.float64)
    s = optimal_scale(bound, free)
    assert s.shape == (5, 1, 1)
    torch.testing.assert_close(((bound - s * free) * free).sum((1, 2)), torch.zeros(5, dtype=torch.float64))
    assert optimal_scale(bound, torch.zeros_like(free)).abs().max() == 0
    half = torch.full((1, 4096), 8.0, dtype=torch.float16)  # |free|² = 262144 is above the greatest half, 65504
    assert optimal_scale(2 * half, half).item() == 2


def test_cfg_zero_star_rests_before_zero_until():
    at, y, c = points()
    guided, free = CFGZeroStar(Exact(), 2.0, zero_until=0.3), CFGZeroStar(Exact(), 2.0)
    want = torch.where((at < 0.3)[:, None], 0.0, free(at, y, c))
    assert torch.equal(guided(at, y, c), want)
    assert (at < 0.3).any()
    edge = torch.full((64,), 0.3, dtype=torch.float64)
    assert torch.equal(guided(edge, y, c), free(edge, y, c))
    calls = []
    guided.field.register_forward_hook(lambda *_: calls.append(1))
    assert guided(torch.full((64,), 0.1), y, c).abs().max() == 0
    assert not calls


def test_an_interval_has_its_edges_and_costs_nothing_outside():
    at, y, c = points()
    at[:2] = torch.tensor([0.25, 0.75])  # the edges themselves are guided
    field = Exact()
    inner = ClassifierFree(field, 3.0)
    limited = GuidanceInterval(inner, 0.25, 0.75)
    inside = ((at >= 0.25) & (at <= 0.75))[:, None]
    assert torch.equal(limited(at, y, c), torch.where(inside, inner(at, y, c), field(at, y, c)))
    calls = []
    field.register_forward_hook(lambda *_: calls.append(1))
    for time, cost in ((0.1, 1), (0.5, 2), (0.9, 1)):
        calls.clear()
        limited(torch.full((64,), time), y, c)
        assert len(calls) == cost


def test_an_interval_of_an_sde_and_under_vmap():
    _, y, _ = points(8)
    field, ones = Exact(), torch.ones(8, dtype=torch.int64)
    inner = ClassifierFree(field, 3.0)
    limited = GuidanceInterval(inner, 0.4, 0.6)
    mixed = torch.tensor([0.1, 0.5] * 4, dtype=torch.float64)
    got, guided, plain = (f.stochastic(mixed, y, ones) for f in (limited, inner, field))
    for a, b, p in zip(got, guided, plain, strict=True):
        assert torch.equal(a[1::2], b[1::2])
        assert torch.equal(a[::2], p[::2])
    value, tangent = torch.func.jvp(lambda z: limited.velocity(mixed, z, ones), (y,), (torch.ones_like(y),))
    torch.testing.assert_close(value, limited(mixed, y, ones))
    nudged = (limited(mixed, y + 1e-6, ones) - limited(mixed, y - 1e-6, ones)) / 2e-6
    torch.testing.assert_close(tangent, nudged, rtol=1e-6, atol=1e-6)


def test_guidance_is_composed_and_kept_with_a_flow(tmp_path):
    nets = [MLP(2, width=8, depth=1, classes=2, cond_dropout=0.1) for _ in range(2)]
    for net in nets:
        for p in net.parameters():
            torch.nn.init.normal_(p, std=0.3)
    fields = (
        GuidanceInterval(CFGZeroStar(nets[0], 2.0, 0.1), 0.2, 0.9),
        Autoguidance(ClassifierFree(nets[0], 1.5), nets[1], 2.0),
    )
    for k, field in enumerate(fields):
        flow = Flow(Gaussian(), field, Heun(8), 2)
        flow.save(tmp_path / f"{k}.safetensors")
        again = Flow.load(tmp_path / f"{k}.safetensors")
        want, got = (f.sample(5, cond=1, generator=torch.Generator().manual_seed(0)) for f in (flow, again))
        assert torch.equal(want, got)


def test_the_density_under_guidance_is_that_of_the_guided_flow():
    """It integrates to one, whatever the scale, which p(x | c)^scale would not."""
    flow = Flow(Gaussian(), ClassifierFree(Exact(), 2.0), event_shape=2)
    line = torch.linspace(-6, 8, 57, dtype=torch.float64)
    grid = torch.cartesian_prod(line, line - 1)
    density = flow.log_prob(grid, cond=torch.ones(len(grid), dtype=torch.int64)).exp()
    assert density.sum().item() * 0.25**2 == pytest.approx(1, abs=2e-3)


def test_what_a_wrapper_cannot_do_is_not_offered():
    assert CFGZeroStar(Exact()).offers == {"velocity"}
    assert GuidanceInterval(CFGZeroStar(Exact())).offers == {"velocity"}
    assert Autoguidance(Exact(), Blind(Exact().whole)).offers == {"velocity"}
    assert Autoguidance(Exact(), Exact()).offers == {"velocity", "stochastic"}
    path = CondOT()
    early = PredictionField(Net(), path, "velocity", (0.0, 0.6))
    late = PredictionField(Net(), path, "velocity", (0.4, 1.0))
    assert Autoguidance(early, late).interval == (0.4, 0.6)


def test_guidance_that_makes_no_sense_is_refused():
    with pytest.raises(ArgumentError, match=r"guidance is a Exact, expected a field that guides"):
        GuidanceInterval(Exact())
    for start, end in ((0.5, 0.5), (-0.1, 0.5), (0.5, 1.1), (0.8, 0.2)):
        with pytest.raises(ArgumentError, match=f"start and end are {start} and {end}"):
            GuidanceInterval(ClassifierFree(Exact()), start, end)
    with pytest.raises(ArgumentError, match=r"zero_until is 1.0, expected a time in \[0, 1\)"):
        CFGZeroStar(Exact(), zero_until=1.0)
    with pytest.raises(ArgumentError, match=r"points of shape \(2,\) and worse \(3,\)"):
        Autoguidance(MLP(2, width=4, depth=1), MLP(3, width=4, depth=1))
    path = CondOT()
    halves = [PredictionField(Net(), path, "velocity", part) for part in ((0.0, 0.4), (0.6, 1.0))]
    with pytest.raises(CombinationError, match="no times are both's"):
        Autoguidance(*halves)


# Both answers in one call, and in two.


def shaken(network):
    """Weights that are not those of a beginner, whose answer is 0 whatever the condition; float64."""
    with torch.no_grad():
        for k, p in enumerate(network.parameters()):
            p.add_(0.2 * torch.randn(p.shape, generator=torch.Generator().manual_seed(k)))
    return network.double().eval()


class Twice(VectorField):
    """The same field without word that it takes both in one batch."""

    def __init__(self, field):
        super().__init__()
        self.field = field

    @property
    def offers(self):
        return self.field.offers

    @property
    def interval(self):
        return self.field.interval

    def forward(self, t, x, cond=None):
        return self.field.velocity(t, x, cond)

    def stochastic(self, t, x, cond=None):
        return self.field.stochastic(t, x, cond)


LABELS, VECTORS = torch.tensor([1, 0, 2, 2, 1]), torch.linspace(-1, 1, 20, dtype=torch.float64).reshape(5, 4)
NETWORKS = {
    "MLP, labels": (lambda: MLP(6, width=16, depth=2, classes=3, cond_dropout=0.2), (6,), LABELS),
    "MLP, vectors": (lambda: MLP(6, width=16, depth=2, cond_dim=4), (6,), VECTORS),
    "UNet, labels": (lambda: UNet((1, 8, 8), preset="tiny", channels=8, classes=3), (1, 8, 8), LABELS),
    "UNet, vectors": (lambda: UNet((1, 8, 8), preset="tiny", channels=8, cond_dim=4), (1, 8, 8), VECTORS),
    "UNet, images": (
        lambda: UNet((1, 8, 8), preset="tiny", channels=8, cond_channels=1),
        (1, 8, 8),
        VECTORS.reshape(5, 1, 2, 2),
    ),
    "DiT, labels": (lambda: DiT((1, 8, 8), preset="tiny", patch_size=2, classes=3), (1, 8, 8), LABELS),
    "DiT, vectors": (lambda: DiT((1, 8, 8), preset="tiny", patch_size=2, cond_dim=4), (1, 8, 8), VECTORS),
}
GUIDED = {
    "classifier-free": lambda f: ClassifierFree(f, 2.5),
    "below 0": lambda f: ClassifierFree(f, -0.5),
    "cfg-zero-star": lambda f: CFGZeroStar(f, 3.0, zero_until=0.2),
    "cfg-zero-star, 0": lambda f: CFGZeroStar(f, 0.0),
    "interval": lambda f: GuidanceInterval(ClassifierFree(f, 2.5), 0.3, 0.7),
    "rescheduled": lambda f: ClassifierFree(Rescheduled(f, CondOT(), Cosine()), 2.0),
    "prediction": lambda f: ClassifierFree(PredictionField(f, CondOT(), "noise", (0.1, 0.9)), 2.0),
}


@pytest.mark.parametrize("network", NETWORKS)
@pytest.mark.parametrize("guided", GUIDED)
def test_one_call_answers_as_two_do(network, guided):
    make, shape, given = NETWORKS[network]
    net, calls = shaken(make()), []
    y = torch.randn(5, *shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    at = torch.tensor([0.15, 0.35, 0.5, 0.65, 0.85], dtype=torch.float64)
    want = GUIDED[guided](Twice(net))(at, y, given)
    net.register_forward_hook(lambda *_: calls.append(1))
    torch.testing.assert_close(GUIDED[guided](net)(at, y, given), want, rtol=1e-9, atol=1e-9)
    assert len(calls) == (2 if guided == "interval" else 1)  # times inside and outside: guided, and plain
    assert (want - net(at, y, given)).abs().max() > 1e-3


def test_one_call_gives_velocity_and_noise_of_an_sde():
    inner = PredictionField(shaken(MLP(6, width=16, depth=2, classes=3)), CondOT(), "velocity", gaussian=True)
    at, y, calls = torch.linspace(0.1, 0.9, 5), torch.randn(5, 6, dtype=torch.float64), []
    want = ClassifierFree(Twice(inner), 2.0).stochastic(at, y, LABELS)
    inner.network.register_forward_hook(lambda *_: calls.append(1))
    for got, expected in zip(ClassifierFree(inner, 2.0).stochastic(at, y, LABELS), want, strict=True):
        torch.testing.assert_close(got, expected, rtol=1e-9, atol=1e-9)
    assert len(calls) == 1


def test_one_call_has_the_derivatives_of_two():
    """Of a likelihood under guidance, by forward mode and by vmap, and the gradients of weights."""
    make, shape, given = NETWORKS["DiT, labels"]
    net = shaken(make())
    y = torch.randn(5, *shape, dtype=torch.float64)
    at = torch.full((5,), 0.4, dtype=torch.float64)
    found = []
    for field in (ClassifierFree(net, 2.0), ClassifierFree(Twice(net), 2.0)):
        directions = torch.eye(5 * 64, dtype=torch.float64)[::50].reshape(-1, *y.shape)
        along = torch.func.vmap(lambda d, f=field: torch.func.jvp(lambda z: f.velocity(at, z, given), (y,), (d,))[1])
        gradients = torch.autograd.grad(field.velocity(at, y, given).square().sum(), list(net.parameters()))
        found.append([along(directions), *gradients])
    for got, want in zip(*found, strict=True):
        torch.testing.assert_close(got, want, rtol=1e-8, atol=1e-8)


def test_large_batches_are_asked_twice_on_a_cpu_and_wrong_conditions_are_refused_alike():
    net, calls = MLP(64, width=8, depth=1, classes=3), []
    net.register_forward_hook(lambda *_: calls.append(1))
    for n, cost in ((128, 1), (129, 2)):
        calls.clear()
        ClassifierFree(net, 2.0)(0.5, torch.zeros(n, 64), torch.zeros(n, dtype=torch.int64))
        assert len(calls) == cost
    for wrong, said in ((torch.tensor([0, 1, 3]), r"labels range over 0 .. 3"), (LABELS, r"integer labels \(3,\)")):
        with pytest.raises(ArgumentError, match=said):
            ClassifierFree(net, 2.0)(0.5, torch.zeros(3, 64), wrong)
    with pytest.raises(ArgumentError, match="unconditional MLP"):
        ClassifierFree(MLP(2, width=4, depth=1), 2.0)(0.5, torch.zeros(3, 2), torch.tensor([0, 1, 1]))


def test_the_ends_of_the_scale_cost_one_evaluation():
    at, y, c = points()
    field, calls = Exact(), []
    field.register_forward_hook(lambda *_: calls.append(1))
    for guided in (ClassifierFree(field, 0.0), ClassifierFree(field, 1.0), CFGZeroStar(field, 1.0)):
        calls.clear()
        guided(at, y, c)
        assert len(calls) == 1
