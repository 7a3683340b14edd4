"""Bits per dimension and nats against the exact probabilities of a discretised Gaussian."""

import math
import warnings

import pytest
import scipy.stats
import torch

from fmkit.divergence import HutchinsonDivergence
from fmkit.errors import ArgumentError
from fmkit.fields import VectorField
from fmkit.flow import Flow
from fmkit.metrics import bits_per_dim, bits_per_dim_with_error, nll
from fmkit.metrics.likelihood import _apart
from fmkit.solvers import RK4, Euler
from fmkit.sources import Gaussian
from fmkit.transforms import Affine

LEVELS, MEAN, STD = 17, 8.0, 3.0


class Still(VectorField):
    """v = 0 in float64, so that the flow's density is N(mean, std²) exactly; a condition moves it."""

    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros((), dtype=torch.float64))

    def forward(self, t, x, cond=None):
        moved = 0.0 if cond is None else cond.reshape(-1, *[1] * (x.ndim - 1))
        return self.weight * x + moved


@pytest.fixture(params=["in its units", "through a transform"])
def flow(request):
    """The density N(8, 3²) of each of four numbers, in the units of the grey levels."""
    # One Euler step is exact where the velocity does not change.
    if request.param == "in its units":
        return Flow(Gaussian(STD, MEAN), Still(), Euler(steps=1), event_shape=4)
    start = Gaussian(STD / 8.5, (MEAN - 8.5) / 8.5)
    return Flow(start, Still(), Euler(steps=1), event_shape=4, transform=Affine(8.5, 8.5))


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


@pytest.fixture
def images():
    """Grey levels drawn from the discretised law itself, in 0 .. 16."""
    x = MEAN + STD * torch.randn(20_000, 4, dtype=torch.float64, generator=seeded())
    return x.floor().clamp(0, LEVELS - 1)


def truth(images):
    """-log2 P(x <= X < x + 1)/d, image by image, from the normal distribution function."""
    cdf = scipy.stats.norm(MEAN, STD).cdf
    p = torch.tensor(cdf(images + 1) - cdf(images))
    return -p.log2().mean(1)


class TestBitsPerDim:
    def test_falls_to_the_truth_from_above(self, flow, images):
        exact = truth(images).mean().item()
        once, five, fifty = (
            bits_per_dim(flow, images, levels=LEVELS, samples=k, generator=seeded(1)).mean().item() for k in (1, 5, 50)
        )
        assert exact < fifty < five < once
        assert fifty - exact < 5e-4  # the gap is 1.3e-4, its Monte Carlo error 7e-5
        # Jensen's gap at K = 1 is E Var_u(log p)/2 to leading order: E (slope of log p)²/12/2 = 1/(24 std²) nats.
        assert (once - exact) * math.log(2) == pytest.approx(1 / (24 * STD**2), rel=0.25)

    def test_image_by_image(self, flow, images):
        images = images[:300]
        bits = bits_per_dim(flow, images, levels=LEVELS, samples=400, generator=seeded(1))
        assert bits.dtype == torch.float64
        torch.testing.assert_close(bits, truth(images), atol=0.03, rtol=0)

    def test_mixes_densities_and_not_their_logarithms(self, flow, images):
        images = images[:300]
        # The same dequantizations, one at a time.
        generator = seeded(1)
        singles = [bits_per_dim(flow, images, levels=LEVELS, generator=generator) for _ in range(3)]
        p = torch.stack([torch.exp2(-4 * b) for b in singles]).mean(0)
        together = bits_per_dim(flow, images, levels=LEVELS, samples=3, generator=seeded(1))
        torch.testing.assert_close(together, -p.log2() / 4)

    def test_does_not_depend_on_the_batch_size(self, flow, images):
        images = images[:300]
        whole, parts = (
            bits_per_dim(flow, images, levels=LEVELS, samples=2, batch_size=b, generator=seeded(1)) for b in (None, 77)
        )
        torch.testing.assert_close(whole, parts)

    def test_takes_integers_of_any_dtype_and_shape(self, images):
        flow = Flow(Gaussian(STD, MEAN), Still(), Euler(steps=1), event_shape=(2, 2))
        images = images[:300]
        expected = bits_per_dim(flow, images.reshape(-1, 2, 2), levels=LEVELS)
        for dtype in (torch.uint8, torch.int64, torch.float32):
            got = bits_per_dim(flow, images.reshape(-1, 2, 2).to(dtype), levels=LEVELS)
            assert torch.equal(got, expected)

    def test_conditions_travel_with_their_images(self, flow, images):
        images = images[:300]
        # Unit time with v = c moves the density by c in the model's units: 8.5 c in the user's, through the transform.
        cond = torch.arange(len(images), dtype=torch.float64) % 3
        unit = 1.0 if flow.transform is None else 8.5
        got = bits_per_dim(flow, images, cond / unit, levels=LEVELS, batch_size=77, samples=100)
        p = scipy.stats.norm(MEAN + cond[:, None], STD).cdf
        exact = -torch.tensor(p(images + 1) - p(images)).log2().mean(1)
        torch.testing.assert_close(got, exact, atol=0.06, rtol=0)

    @pytest.mark.parametrize(
        ("x", "arguments", "message"),
        [
            (torch.tensor([[0.0, 1.5]]), {}, r"x holds 1.5, expected whole grey levels 0 .. 16, not yet dequantized"),
            (torch.tensor([[0.0, 17.0]]), {}, r"grey levels range over 0 .. 17, expected 0 .. 16"),
            (torch.tensor([[-1, 3]]), {}, r"grey levels range over -1 .. 3, expected 0 .. 16"),
            (torch.tensor([[0.0, math.nan]]), {}, "x holds nan, expected whole grey levels"),
            (torch.tensor([[0.0, math.inf]]), {}, r"grey levels range over 0 .. inf"),
            (torch.zeros(0, 4), {}, r"x has shape \(0, 4\), expected a non-empty"),
            ([[0, 1]], {}, "expected a tensor"),
            (torch.zeros(2, 4), {"levels": 1}, "levels is 1, expected a whole number of at least 2"),
            (torch.zeros(2, 4), {"samples": 0}, "samples is 0, expected a whole number of at least 1"),
            (torch.zeros(2, 4), {"batch_size": 0}, "batch_size is 0, expected a whole number of at least 1"),
            (torch.zeros(2, 4), {"cond": torch.zeros(3)}, "3 conditions for 2 points"),
        ],
    )
    def test_mistakes_are_refused(self, flow, x, arguments, message):
        with pytest.raises(ArgumentError, match=message):
            bits_per_dim(flow, x, **{"levels": LEVELS, **arguments})


class Shear(VectorField):
    """v = A x + sin(B x) with A and B full: its Jacobian is not diagonal, so probes have noise."""

    def forward(self, t, x, cond=None):
        flat = x.flatten(1)
        a = 0.2 * torch.randn(2, flat.shape[1], flat.shape[1], generator=seeded(9), dtype=torch.float64).to(x.dtype)
        return (flat @ a[0] + torch.sin(flat @ a[1])).reshape(x.shape)


class TestErrorOfTheProbes:
    """bits_per_dim_with_error: the same dequantizations whatever the divergence, and an honest error."""

    def flow(self, divergence=None):
        return Flow(Gaussian(2.0), Shear(), RK4(6), (1, 3, 3), Affine(8.5, 4.0), divergence)

    def images(self, n):
        return torch.randint(17, (1, 1, 3, 3), generator=seeded(2)).expand(n, 1, 3, 3)

    @pytest.mark.parametrize("samples", [1, 4])
    def test_is_how_far_the_stochastic_figure_is_off(self, samples):
        exact, none = bits_per_dim_with_error(
            self.flow(), self.images(400), levels=LEVELS, samples=samples, generator=seeded(3)
        )
        assert (none == 0).all()
        probes = HutchinsonDivergence(32, "gaussian")
        bits, error = bits_per_dim_with_error(
            self.flow(probes), self.images(400), levels=LEVELS, samples=samples, generator=seeded(3)
        )
        z = (bits - exact) / error
        assert z.square().mean().sqrt().item() == pytest.approx(1.0, abs=0.15)
        assert torch.equal(
            bits,
            bits_per_dim(self.flow(probes), self.images(400), levels=LEVELS, samples=samples, generator=seeded(3)),
        )

    def test_of_one_probe_is_not_known(self):
        with pytest.raises(ArgumentError, match="one probe has no standard error"):
            bits_per_dim_with_error(self.flow(HutchinsonDivergence()), self.images(2), levels=LEVELS)

    @pytest.mark.parametrize("divergence", [None, HutchinsonDivergence(2)])
    def test_conditions_and_batches_are_those_of_the_figure_itself(self, divergence, images):
        flow, images = Flow(Gaussian(STD, MEAN), Still(), Euler(1), event_shape=4), images[:9]
        cond = torch.arange(9, dtype=torch.float64)
        how = {"levels": LEVELS, "divergence": divergence, "batch_size": 4}
        bits, error = bits_per_dim_with_error(flow, images, cond, generator=seeded(3), **how)
        assert torch.equal(bits, bits_per_dim(flow, images, cond, generator=seeded(3), **how))
        assert (error == 0).all()  # the field is diagonal
        assert not torch.equal(bits, bits_per_dim(flow, images, generator=seeded(3), **how))

    def test_solver_and_divergence_are_those_asked_for(self):
        images, probes = self.images(2), HutchinsonDivergence(2)
        for figure in (bits_per_dim, bits_per_dim_with_error):
            with pytest.raises(ZeroDivisionError):
                figure(self.flow(), images, levels=LEVELS, solver=Broken(1))
        asked = bits_per_dim_with_error(self.flow(), images, levels=LEVELS, divergence=probes, generator=seeded(3))
        own = bits_per_dim_with_error(self.flow(probes), images, levels=LEVELS, generator=seeded(3))
        assert torch.equal(torch.stack(asked), torch.stack(own))
        assert (asked[1] > 0).all()

    def test_a_figure_alone_takes_one_probe(self):
        flow = self.flow(HutchinsonDivergence())
        assert torch.isfinite(bits_per_dim(flow, self.images(2), levels=LEVELS)).all()

    def test_generators_have_probes_of_their_own(self):
        assert len({_apart(seeded(k)).initial_seed() for k in range(200)}) == 200

    def test_two_calls_with_one_generator_have_probes_of_their_own(self):
        generator, flow = seeded(3), self.flow(HutchinsonDivergence(2))
        first, second = (bits_per_dim(flow, self.images(2), levels=LEVELS, generator=generator) for _ in range(2))
        assert not torch.equal(first, second)


class Broken(Euler):
    """A solver that is known by what it does."""

    def solve(self, f, x0, times, *, generator=None):
        raise ZeroDivisionError


class TestDraws:
    def test_one_draw_unless_said_and_in_double_precision(self, flow, images):
        """Eq. 47 with the u of that generator; of one image as well, and of one at a time."""
        x = images[:3]
        u = torch.rand(x.shape, generator=seeded(5), dtype=torch.float64)
        want = -flow.log_prob(x + u) / (4 * math.log(2))
        assert torch.equal(bits_per_dim(flow, x, levels=LEVELS, generator=seeded(5)), want)
        one = bits_per_dim(flow, x[:1], levels=LEVELS, batch_size=1, generator=seeded(5))
        assert one.shape == (1,)

    def test_a_flow_in_single_precision_is_summed_in_double(self, images):
        flow = Flow(Gaussian(STD, MEAN), Still().float(), Euler(1), event_shape=4)
        for figure in bits_per_dim_with_error(flow, images[:3], levels=LEVELS, generator=seeded()):
            assert figure.dtype == torch.float64

    def test_samples_are_no_truth_value(self, flow, images):
        with pytest.raises(ArgumentError, match="samples is True"):
            bits_per_dim(flow, images, levels=LEVELS, samples=True)


class Watched(Still):
    """Notes how many points come at once."""

    def forward(self, t, x, cond=None):
        self.at_once = max(getattr(self, "at_once", 0), len(x))
        return super().forward(t, x, cond)


class TestNLL:
    def test_in_batches_by_the_solver_given(self):
        flow = Flow(Gaussian(), Watched(), Euler(1), event_shape=4)
        nll(flow, torch.zeros(20, 4, dtype=torch.float64), batch_size=6)
        assert flow.field.at_once == 6
        with pytest.raises(ZeroDivisionError):
            nll(flow, torch.zeros(20, 4, dtype=torch.float64), solver=Broken(1))

    def test_two_numbers_are_enough(self):
        flow = Flow(Gaussian(), Still(), Euler(1), event_shape=())
        value = nll(flow, torch.tensor([0.0, 1.0], dtype=torch.float64), batch_size=1)
        assert value.mean == pytest.approx(0.5 * math.log(2 * math.pi) + 0.25)
        assert value.standard_error == pytest.approx(0.25)

    def test_probes_follow_from_the_generator_and_are_the_same_without_one(self):
        flow = Flow(Gaussian(2.0), Shear(), RK4(2), (1, 3, 3), divergence=HutchinsonDivergence())
        x = torch.randn(4, 1, 3, 3, generator=seeded(), dtype=torch.float64)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # two steps are few
            before = torch.get_rng_state()
            assert nll(flow, x) == nll(flow, x)
            assert torch.equal(torch.get_rng_state(), before)
            assert nll(flow, x, generator=seeded(1)) == nll(flow, x, generator=seeded(1))
            assert nll(flow, x, generator=seeded(1)) != nll(flow, x, generator=seeded(2))

    def test_is_the_mean_of_minus_log_density(self, flow):
        x = MEAN + STD * torch.randn(300, 4, dtype=torch.float64, generator=seeded())
        exact = -scipy.stats.norm(MEAN, STD).logpdf(x).sum(1)
        value = nll(flow, x, batch_size=77)
        assert value.mean == pytest.approx(exact.mean(), rel=1e-10)
        assert value.standard_error == pytest.approx(scipy.stats.sem(exact), rel=1e-8)

    def test_conditions(self, flow):
        cond = torch.tensor([0.0, 1.0, 2.0], dtype=torch.float64)
        unit = 1.0 if flow.transform is None else 8.5
        x = (MEAN + cond[:, None]).expand(3, 4)
        assert nll(flow, x, cond / unit, batch_size=2).mean == pytest.approx(4 * math.log(STD * (2 * math.pi) ** 0.5))

    def test_needs_two_points(self, flow):
        with pytest.raises(ArgumentError, match="fewer than two points"):
            nll(flow, torch.zeros(1, 4))
