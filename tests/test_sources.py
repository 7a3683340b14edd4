"""Sources: samples that follow the density, densities against torch.distributions, seeds, refusals."""

import math

import pytest
import torch

from fmkit.errors import ArgumentError, CombinationError
from fmkit.sources import Conditioned, Convolved, Empirical, Gaussian, Scaled, Source, Uniform

N = 100_000
DENSITIES = {
    "gaussian": (Gaussian(), torch.distributions.Normal(0.0, 1.0)),
    "wide": (Gaussian(2.5, -1.0), torch.distributions.Normal(-1.0, 2.5)),
    "uniform": (Uniform(), torch.distributions.Uniform(-1.0, 1.0)),
    "interval": (Uniform(2.0, 5.0), torch.distributions.Uniform(2.0, 5.0)),
    "scaled": (Scaled(Uniform(0.0, 1.0), 3.0), torch.distributions.Uniform(0.0, 3.0)),
    "scaled of": (Scaled.of(Gaussian(2.0, 1.0), 3.0), torch.distributions.Normal(3.0, 6.0)),
    "convolved of": (Convolved.of(Gaussian(3.0, 1.0), 4.0), torch.distributions.Normal(1.0, 5.0)),
}


@pytest.mark.parametrize("name", DENSITIES)
def test_log_prob_sums_over_the_event(name, seeded):
    source, law = DENSITIES[name]
    for event in ((), (3,), (2, 3)):
        x = source.sample((5, *event), generator=seeded(0), dtype=torch.float64)
        want = law.log_prob(
            x.clamp_max(law.support.upper_bound - 1e-12 if "n" in name and hasattr(law, "low") else x.max())
        )
        want = want.reshape(5, -1).sum(1)
        got = source.log_prob(x)
        assert got.shape == (5,)
        torch.testing.assert_close(got, want.to(got.dtype), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", DENSITIES)
def test_samples_follow_the_density(name, seeded):
    """Kolmogorov-Smirnov, false alarm 1e-4."""
    source, law = DENSITIES[name]
    x = source.sample((N, 1), generator=seeded(1), dtype=torch.float64).flatten().sort().values
    exact, steps = law.cdf(x), torch.arange(N + 1, dtype=torch.float64) / N
    assert max((exact - steps[:-1]).max(), (steps[1:] - exact).max()) < 2.23 / math.sqrt(N)


def test_a_uniform_density_is_zero_outside():
    assert Uniform(0.0, 2.0).log_prob(torch.tensor([[0.5, 1.0], [0.5, 2.1], [-0.1, 1.0]])).tolist() == [
        pytest.approx(-2 * math.log(2)),
        -math.inf,
        -math.inf,
    ]


def test_the_ends_of_a_uniform_density_belong_to_it():
    """Numbers below 1 are drawn, and scaling rounds some of them up to the end itself."""
    x = torch.tensor([[-1.0, 1.0], [1.0, -1.0]])
    assert Uniform().log_prob(x).tolist() == [pytest.approx(-2 * math.log(2))] * 2


def test_scaled_and_blurred_gaussians_are_gaussians():
    scaled, blurred = Scaled.of(Gaussian(2.0, 1.5), 3.0), Convolved.of(Gaussian(3.0, 1.5), 4.0)
    assert (type(scaled), scaled.std, scaled.mean) == (Gaussian, 6.0, 4.5)
    assert (type(blurred), blurred.std, blurred.mean) == (Gaussian, 5.0, 1.5)


def test_other_sources_are_scaled_and_blurred_by_sampling(seeded):
    uniform = Uniform(0.0, 2.0)
    plain = uniform.sample((4, 3), generator=seeded(0))
    scaled = Scaled.of(uniform, 3.0)
    assert torch.equal(scaled.sample((4, 3), generator=seeded(0)), 3 * plain)
    assert scaled.log_prob(torch.tensor([[1.0, 5.0]])).tolist() == [pytest.approx(-2 * math.log(6))]
    generator = seeded(0)
    blurred = Convolved.of(uniform, 0.5).sample((4, 3), generator=generator)
    generator = seeded(0)
    uniform.sample((4, 3), generator=generator)
    torch.testing.assert_close(blurred, plain + 0.5 * torch.randn(4, 3, generator=generator))


class Conditional(Source):
    """All numbers are the condition, with the condition for a log-density."""

    def sample(self, shape, *, cond=None, generator=None, dtype=None, device=None):
        return torch.full(tuple(shape), float("nan") if cond is None else cond, dtype=dtype)

    def log_prob(self, x, cond=None):
        return torch.full((len(x),), float("nan") if cond is None else cond)


def test_conditions_reach_the_source_that_is_wrapped(seeded):
    assert (Scaled(Conditional(), 2.0).sample((3, 2), cond=5.0) == 10.0).all()
    assert (Scaled(Conditional(), 1.0).log_prob(torch.zeros(3, 2), 5.0) == 5.0).all()
    blurred = Convolved(Conditional(), 1e-3).sample((3, 2), cond=5.0, generator=seeded(0))
    torch.testing.assert_close(blurred, torch.full((3, 2), 5.0), rtol=0, atol=0.01)


def test_convolved_adds_variances(seeded):
    x = Convolved(Uniform(-1.0, 1.0), 0.5).sample((N, 1), generator=seeded(0), dtype=torch.float64)
    assert x.mean().item() == pytest.approx(0, abs=5 * math.sqrt(7 / 12 / N))
    assert x.var().item() == pytest.approx(1 / 3 + 0.25, rel=0.02)
    with pytest.raises(CombinationError, match="Convolved has no density"):
        Convolved(Uniform(), 0.5).log_prob(x)


def test_empirical_draws_its_rows_evenly(seeded):
    data = torch.arange(8.0).reshape(4, 2)
    x = Empirical(data).sample((N, 2), generator=seeded(0))
    rows = (x[:, :1] / 2).long().flatten()
    assert torch.equal(x, data[rows])
    counts = torch.bincount(rows, minlength=4).double()
    assert ((counts - N / 4) ** 2 / (N / 4)).sum() < 21.1  # chi-squared with 3 degrees, false alarm 1e-4
    with pytest.raises(CombinationError, match="Empirical has no density"):
        Empirical(data).log_prob(x)
    with pytest.raises(ArgumentError, match=r"asked for events \(3,\), the data has \(2,\)"):
        Empirical(data).sample((4, 3))


def test_empirical_keeps_a_copy():
    data = torch.zeros(4, 2)
    source = Empirical(data)
    data.fill_(1.0)
    assert (source.sample((3, 2)) == 0).all()
    assert not source.state_dict()  # its data is an argument, which is saved with it already


EVERY = [*(s for s, _ in DENSITIES.values()), Empirical(torch.randn(100, 2)), Convolved(Uniform(), 0.5)]


@pytest.mark.parametrize("source", EVERY, ids=repr)
def test_seeded_by_the_generator_alone(source, seeded):
    before = torch.get_rng_state()
    first, again, other = (source.sample((16, 2), generator=seeded(s)) for s in (1, 1, 2))
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


@pytest.mark.parametrize("source", EVERY, ids=repr)
def test_precision_is_what_was_asked_for(source, seeded):
    for dtype in (torch.float32, torch.float64):
        assert source.sample((3, 2), generator=seeded(0), dtype=dtype).dtype == dtype


@pytest.mark.parametrize("source", EVERY, ids=repr)
def test_samples_are_where_they_were_asked_for(source, seeded):
    """torch's device without memory stands for a GPU; rows of a data set are moved there."""
    generator = seeded(0) if isinstance(source, Empirical) else None  # no generator draws on it
    assert source.sample((3, 2), generator=generator, device="meta").device.type == "meta"


def test_only_the_unit_gaussian_is_standard_normal():
    assert Gaussian().standard_normal
    assert not any(s.standard_normal for s in (Gaussian(2.0), Gaussian(1.0, 0.1), Uniform(), Scaled(Gaussian(), 1.0)))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Gaussian(0.0), r"std is 0\.0, expected a positive standard deviation"),
        (lambda: Gaussian(-1.0), r"std is -1\.0"),
        (lambda: Gaussian(math.nan), "std is nan"),
        (lambda: Gaussian(math.inf), "std is inf"),
        (lambda: Gaussian(1.0, math.inf), "mean is inf, expected a finite number"),
        (lambda: Uniform(1.0, 1.0), r"low is 1\.0 and high 1\.0, expected low < high"),
        (lambda: Uniform(2.0, 1.0), "expected low < high"),
        (lambda: Uniform(-math.inf, 1.0), "both finite"),
        (lambda: Uniform(0.0, math.inf), "both finite"),
        (lambda: Scaled(Gaussian(), 0.0), r"scale is 0\.0, expected a positive number"),
        (lambda: Scaled(Uniform(), math.inf), "scale is inf"),
        (lambda: Convolved(Uniform(), -1.0), r"std is -1\.0"),
        (lambda: Empirical(torch.zeros(0, 2)), r"data has shape \(0, 2\), expected a non-empty"),
        (lambda: Empirical(torch.zeros(3, 2, dtype=torch.int64)), r"data has dtype torch\.int64"),
        (lambda: Empirical(torch.tensor([[math.nan]])), "data has 1 non-finite values"),
    ],
)
def test_values_out_of_range_are_refused(make, message):
    with pytest.raises(ArgumentError, match=message):
        make()


def test_conditioned_is_normal_around_each_condition(seeded):
    cond = torch.tensor([[[0.0, 5.0]], [[-3.0, 1.0]]], dtype=torch.float64)
    many = cond.repeat(N // 2, 1, 1)
    x = Conditioned(0.5).sample(many.shape, cond=many, generator=seeded(0), dtype=torch.float64)
    noise = ((x - many) / 0.5).flatten().sort().values
    exact, steps = torch.distributions.Normal(0.0, 1.0).cdf(noise), torch.arange(2 * N + 1) / (2 * N)
    assert max((exact - steps[:-1]).max(), (steps[1:] - exact).max()) < 2.23 / math.sqrt(2 * N)
    want = torch.distributions.Normal(cond, 0.5).log_prob(x[:2]).sum((1, 2))
    torch.testing.assert_close(Conditioned(0.5).log_prob(x[:2], cond), want)


def test_conditioned_without_noise_is_the_condition_itself():
    cond = torch.randn(4, 3)
    x = Conditioned(0.0).sample((4, 3), cond=cond)
    assert torch.equal(x, cond)
    x.fill_(0.0)
    assert not torch.equal(x, cond)  # the condition is the network's too
    assert Conditioned(0.0).sample((4, 3), cond=cond, dtype=torch.float64).dtype == torch.float64
    with pytest.raises(CombinationError, match="Conditioned has no density"):
        Conditioned(0.0).log_prob(x, cond)


@pytest.mark.parametrize(
    ("cond", "said"),
    [
        (None, "there is none"),
        (torch.arange(4), r"\(4,\)"),
        (torch.zeros(4), r"\(4,\)"),
        (torch.zeros(3, 2), r"\(3, 2\)"),
        (torch.zeros(4, 3), r"\(4, 3\)"),
        (torch.zeros(4, 2, dtype=torch.complex64), "a tensor"),
        (0.0, "0.0"),
    ],
)
def test_conditions_that_are_no_points_are_refused(cond, said):
    source = Conditioned(1.0)
    for ask in (lambda: source.sample((4, 2), cond=cond), lambda: source.log_prob(torch.zeros(4, 2), cond)):
        with pytest.raises(ArgumentError, match=said + r".*expected a point for each, of shape \(4, 2\)"):
            ask()
    with pytest.raises(ArgumentError, match="the condition"):
        source.sample((4, 2), cond=torch.full((4, 2), math.nan))


def test_noise_around_a_condition_adds_up():
    blurred = Convolved.of(Conditioned(3.0), 4.0)
    assert (type(blurred), blurred.std) == (Conditioned, 5.0)
    assert Scaled(blurred, 2.0).of_condition
    assert Convolved(blurred, 2.0).of_condition
    assert not Scaled(Gaussian(), 2.0).of_condition


def test_where_conditions_are_no_labels_a_draw_says_that_it_is_by_chance():
    data = torch.arange(10.0).reshape(5, 2)
    source = Empirical(data, conditioned=True)
    assert {*source.sample((200, 2))[:, 0].tolist()} == {0.0, 2.0, 4.0, 6.0, 8.0}  # by no condition: nothing to say
    with pytest.warns(UserWarning, match=r"drawn among all pairs: .* flow\.transport\(x0, 0, 1, cond\)"):
        source.sample((3, 2), cond=torch.zeros(3, 4))


def test_empirical_draws_by_label(seeded):
    data, labels = torch.arange(10.0).reshape(5, 2), torch.tensor([7, 3, 7, 7, 3])
    source, cond = Empirical(data, labels), torch.tensor([3, 7]).repeat(N // 2)
    x = source.sample((N, 2), cond=cond, generator=seeded(0))
    rows = (x[:, 0] / 2).long()
    assert torch.equal(x, data[rows])
    assert torch.equal(labels[rows], cond)
    counts = torch.bincount(rows, minlength=5).double()
    want = N / 2 / torch.tensor([3.0, 2.0, 3.0, 3.0, 2.0])
    assert ((counts - want) ** 2 / want).sum() < 21.1  # chi-squared with 3 degrees, false alarm 1e-4
    assert set((source.sample((200, 2), generator=seeded(0))[:, 0] / 2).tolist()) == {0, 1, 2, 3, 4}  # of any
    for label in (5, 2, 8):
        with pytest.raises(ArgumentError, match=rf"no sample of the source has the label {label}; there are \[3, 7\]"):
            source.sample((2, 2), cond=torch.tensor([3, label]))
    for wrong in (labels[:4], labels.float(), labels[:, None], labels > 3):
        with pytest.raises(ArgumentError, match="expected 5 integers: one for each sample"):
            Empirical(data, wrong)
