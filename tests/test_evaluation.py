"""What the report of a run says of its flow's ways and of its coupling, against closed forms."""

import math
import warnings

import pytest
import torch

import fmkit
from fmkit.data import Data, Split
from fmkit.errors import LikelihoodWarning
from fmkit.evaluation import COUPLED_BATCHES, is_costly, likelihood, pairing, quality, ways
from fmkit.randomness import stream
from fmkit.transforms import Affine


def oracle_flow(mean, std, **rest):
    field = fmkit.MixtureOracle(fmkit.paths.CondOT(), means=[mean], std=std)
    return fmkit.Flow(fmkit.sources.Gaussian(), field, event_shape=2, **rest)


def split_of(x, cond=None, **rest):
    return Split(Data(x, cond, **rest), x, cond)


def test_a_flow_between_equal_gaussians_moves_by_the_shift():
    """N(0, I) to N(m, I) under CondOT: V = (1-t)² + t², and x_t = t m + sqrt(V) x0, so K = |m|² + d E (sqrt(V)')².

    V' = 4t - 2 and the integral of V'²/(4V) is 2 - pi/2; W2² is |m|².
    """
    x = torch.randn(1000, 2, generator=torch.Generator().manual_seed(3)) + torch.tensor([6.0, 8.0])
    found = ways(oracle_flow([6.0, 8.0], 1.0), split_of(x), seed=0)
    assert found["path_energy"] == pytest.approx(100 + 2 * (2 - math.pi / 2), rel=0.01)
    assert found["path_curvature"] == pytest.approx(2 * (2 - math.pi / 2), rel=0.1)  # x0 comes back to where it was
    assert found["transport_squared"] == pytest.approx(100, rel=0.02)
    wanted = abs(found["path_energy"] - found["transport_squared"]) / found["transport_squared"]
    assert found["normalized_path_energy"] == pytest.approx(wanted)
    assert found["transport_points"] == 1000


def test_the_ways_are_in_the_units_of_the_model():
    """Data a hundred times as wide, and a transform that takes that away: the same figures."""
    x = torch.randn(200, 2, generator=torch.Generator().manual_seed(3)) + torch.tensor([6.0, 8.0])
    plain = ways(oracle_flow([6.0, 8.0], 1.0), split_of(x), seed=0)
    wide = oracle_flow([6.0, 8.0], 1.0, transform=Affine(scale=100.0))
    scaled = ways(wide, split_of(100 * x.double()), seed=0)
    for key, value in plain.items():
        assert scaled[key] == pytest.approx(value, rel=1e-4)


def test_a_flow_by_an_sde_has_no_path_energy():
    flow = oracle_flow([1.0, 0.0], 1.0, solver=fmkit.solvers.HeunSDE(10))
    found = ways(flow, split_of(torch.randn(50, 2)), seed=0)
    assert found["path_energy"] is None
    assert "a path energy is of an ODE" in found["path_energy_refused"]


def test_a_likelihood_that_says_nothing_is_refused_and_a_rough_one_warned_of():
    """One Euler step backwards leaves a narrow Gaussian far outside the source; of 40 a bound is known."""
    x = torch.randn(50, 2, generator=torch.Generator().manual_seed(0)) * 0.05

    def found(steps):
        return likelihood(oracle_flow([0.0, 0.0], 0.05, solver=fmkit.solvers.Euler(steps)), split_of(x), seed=0)

    said = found(1)
    assert said["nll"] is None
    assert "log-densities by Euler in 1 steps are off by about" in said["likelihood_refused"]
    with pytest.warns(LikelihoodWarning, match="Euler in 40 steps") as caught:
        rough = found(40)
    assert [type(w.message) for w in caught] == [LikelihoodWarning]
    exact = likelihood(oracle_flow([0.0, 0.0], 0.05), split_of(x), seed=0)["nll"]
    off = abs(rough["nll"] - exact) / 2 / math.log(2)
    assert 0.5 * off < caught[0].message.bits < 2 * off
    assert "likelihood_refused" not in rough


def test_other_warnings_pass_the_likelihood(monkeypatch):
    def score(*_, **__):
        warnings.warn("of its own", RuntimeWarning, stacklevel=1)
        return 1.0, 0.1

    monkeypatch.setattr("fmkit.evaluation.nll", score)
    with pytest.warns(RuntimeWarning, match="of its own"):
        assert likelihood(oracle_flow([0.0, 0.0], 1.0), split_of(torch.randn(5, 2)), seed=0)["nll"] == 1.0


def trainer_of(coupling, **settings):
    settings = fmkit.Settings(**{"batch_size": 64, **settings})
    field = fmkit.fields.MLP(2, 8, 1, classes=2)
    return fmkit.Trainer(fmkit.paths.CondOT(), field, coupling=coupling, settings=settings, callbacks=[])


@pytest.fixture
def halves():
    """Two classes far to the left and to the right."""
    labels = torch.arange(400) % 2
    x = torch.stack([20.0 * labels - 10, torch.zeros(400)], 1) + 0.1 * torch.randn(
        400, 2, generator=stream(0, "halves")
    )
    return Data(x, labels)


def test_the_coupling_is_looked_at_as_it_is_in_training(halves):
    found = pairing(trainer_of(fmkit.couplings.OptimalTransport()), halves, seed=0)
    assert found["coupling_cost"] == pytest.approx(found["coupling_optimal_cost"])
    assert (found["coupling_lost_source"], found["coupling_lost_data"], found["coupling_label_error"]) == (0, 0, 0)
    assert found["coupling_leak"] == pytest.approx(1 / math.pi, abs=0.1)
    assert (found["coupling_batches"], found["coupling_batch_size"]) == (COUPLED_BATCHES, 64)
    # |x0|² + |x1|² in expectation, and all of it for the independent coupling
    independent = pairing(trainer_of(None), halves, seed=0)
    assert independent["coupling_independent_cost"] == pytest.approx(102, rel=0.05)
    assert independent["coupling_cost"] == pytest.approx(102, rel=0.05)
    assert independent["coupling_leak"] == pytest.approx(0, abs=0.05)


def test_the_batches_are_those_of_the_training(halves, monkeypatch):
    """Of step 0 and of step 1, as the trainer draws them, before they are paired."""
    trainer = trainer_of(fmkit.couplings.OptimalTransport(), steps=2)
    coupling, batches = trainer.unpaired(halves)
    shown = [next(batches), next(batches)]
    seen = []
    pair = type(coupling).pair

    def watched(self, x0, x1, cond0=None, cond1=None, **rest):
        seen.append((x0, x1, cond1))
        return pair(self, x0, x1, cond0, cond1, **rest)

    monkeypatch.setattr(type(coupling), "pair", watched)
    trainer.fit(halves)
    for batch, trained in zip(shown, seen, strict=True):
        for a, b in zip(batch, trained, strict=True):
            assert torch.equal(a, b)


def test_a_coupling_of_all_the_data_is_looked_at_once_it_is_fitted(halves):
    """Its pairs are those of an optimal map: no other pairing of the same points costs less."""
    trainer = trainer_of(fmkit.couplings.Semidiscrete(50), steps=1)
    assert pairing(trainer, halves, seed=0)["coupling_cost"] is None
    trainer.fit(halves)
    found = pairing(trainer, halves, seed=0)
    assert found["coupling_cost"] == pytest.approx(found["coupling_optimal_cost"], rel=1e-6)
    assert found["coupling_cost"] < 0.98 * found["coupling_independent_cost"]
    assert found["coupling_lost_source"] == 0


def test_given_pairs_keep_their_cost():
    x0 = torch.randn(64, 2, generator=stream(0, "x0"))
    data = Data(x0 + torch.tensor([3.0, 4.0]), x0=x0)
    found = pairing(trainer_of(None), data, seed=0)
    assert found["coupling_cost"] == pytest.approx(25.0, rel=1e-5)
    assert found["coupling_label_error"] is None
    assert found["coupling_leak"] is None


def test_a_coupling_that_cannot_be_looked_at_says_why():
    found = pairing(trainer_of(None, batch_size=1), Data(torch.randn(10, 2)), seed=0)
    assert found["coupling_cost"] is None
    assert "expected at least two to compare" in found["coupling_refused"]


def test_on_a_manifold_there_is_neither():
    class Curved(fmkit.paths.CondOT):
        euclidean = False

    trainer = fmkit.Trainer(Curved(), fmkit.fields.MLP(2, 8, 1), callbacks=[])
    found = pairing(trainer, Data(torch.randn(10, 2)), seed=0)
    assert found == {
        "coupling_cost": None,
        "coupling_refused": "this run lives on a manifold, where |x0 - x1|² is no cost",
    }
    flow = fmkit.Flow(fmkit.sources.Gaussian(), trainer.objective.field(trainer.field, trainer.path), event_shape=2)
    assert "manifold" in ways(flow, split_of(torch.randn(50, 2)), seed=0)["path_energy_refused"]


def test_of_large_images_some_are_scored_by_a_probe_each(monkeypatch):
    """v = -x/2 has the divergence -d/2 along every probe, so the exact one and one probe agree."""
    monkeypatch.setattr("fmkit.evaluation.SCORED", 0)

    class Shrinking(torch.nn.Module):
        def forward(self, t, x):
            return -x / 2

    x = 0.6 * torch.randn(100, 1, 17, 17, generator=torch.Generator().manual_seed(0))
    flow = fmkit.Flow(fmkit.sources.Gaussian(), Shrinking(), event_shape=(1, 17, 17))
    some, every = (likelihood(flow, split_of(x), 0, divergence=d) for d in (None, fmkit.ExactDivergence()))
    assert some["held_out"] == every["held_out"] == 64
    assert some["nll"] == pytest.approx(every["nll"], abs=1e-3)
    normal = torch.distributions.Normal(0.0, math.exp(-0.5))
    exact = -normal.log_prob(x).sum((1, 2, 3))
    assert some["nll"] == pytest.approx(exact.mean().item(), abs=5 * exact.std().item() / 8)
    small = likelihood(fmkit.Flow(fmkit.sources.Gaussian(), Shrinking(), event_shape=4), split_of(x[:, 0, 0, :4]), 0)
    assert small["held_out"] == 100


def test_what_samples_are_compared_with_is_not_augmented():
    """Arrows to the right, trained on with their mirror images: of samples that are the held-out ones nothing is left,
    and of mirrored ones much is."""

    def torn(x, generator):
        raise AssertionError("it was augmented")

    x = torch.zeros(60, 1, 4, 4)
    x[:, :, :, 3] = torch.arange(60.0).remainder(7)[:, None, None] + 200
    split = Split(Data(x, augment=torn), x, levels=256)
    own = quality(x + torch.rand(x.shape, generator=stream(0, "u")), split, seed=0)
    assert own["sliced_wasserstein"] < 1
    assert own["sliced_wasserstein_floor"] < 1
    assert quality(x.flip(3), split, seed=0)["sliced_wasserstein"] > 50
    points = Split(Data(x.flatten(1) + 0.25, augment=torn), x.flatten(1) + 0.25)
    assert quality(x.flatten(1) + 0.25, points, seed=0)["frechet"] == pytest.approx(0, abs=1e-6)  # as they are


def test_one_image_has_bits_and_no_standard_error():
    x = torch.tensor([[1.0, 0.0], [1.0, 1.0], [0.0, 1.0]])
    flow = oracle_flow([1.0, 1.0], 0.7)
    alone, some = (likelihood(flow, Split(Data(x), x[:n], levels=2), seed=0) for n in (1, 3))
    assert alone["bits_per_dim_standard_error"] is None
    assert (alone["held_out"], some["held_out"]) == (1, 3)
    assert math.isfinite(alone["bits_per_dim"])
    assert 0 < some["bits_per_dim_standard_error"] < 1


def test_of_what_is_costly_only_so_many_are_scored():
    """The first of those that all would be, so that a short report is part of the long one."""
    x = torch.randint(0, 4, (100, 1, 2, 2), generator=stream(0, "levels")).float()
    field = fmkit.MixtureOracle(fmkit.paths.CondOT(), means=torch.full((1, 1, 2, 2), 1.5), std=1.5)
    flow = fmkit.Flow(fmkit.sources.Gaussian(), field, event_shape=(1, 2, 2))
    split = Split(Data(x), x, levels=4)
    assert is_costly(split)
    assert [likelihood(flow, split, 0, scored=n)["held_out"] for n in (7, 100, 200, None)] == [7, 100, 100, 100]
    flat = Split(Data(x.flatten(1)), x.flatten(1), levels=4)
    assert not is_costly(flat)
    assert is_costly(split_of(torch.zeros(3, 257)))
