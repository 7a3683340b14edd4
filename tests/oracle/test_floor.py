"""How the floor and the excess are estimated: with what draws, and in whose precision."""

import pytest
import torch

from fmkit.errors import ArgumentError
from fmkit.objectives import DataPrediction, VelocityMatching
from fmkit.oracle import Mixture, MixtureOracle, loss_excess, loss_floor
from fmkit.paths import ICFM, CondOT
from fmkit.sources import Gaussian


@pytest.mark.parametrize("path", [CondOT(), ICFM(0.5)], ids=["condot", "icfm"])
def test_every_draw_is_the_generators(path, seeded):
    """Whatever the global generator does, noise of the path's own included."""
    mixture = Mixture([[-1.0, 0.0], [2.0, 1.0]], std=0.5)

    class Zero(torch.nn.Module):
        def forward(self, t, x):
            return torch.zeros_like(x)

    for estimate in (loss_floor, lambda *about: loss_excess(Zero(), *about)):
        values = []
        for i in (0, 1):
            torch.manual_seed(i)
            values.append(estimate(mixture, path, Gaussian(), VelocityMatching(), 64, seeded(3)))
        assert values[0] == values[1]


def test_times_are_stratified(seeded):
    """Of one Gaussian the variance given x depends on the time alone, so all that is left is the times' own spread."""
    oracle = MixtureOracle(CondOT(), [[0.0]], std=0.3)
    runs = torch.tensor([oracle.loss_floor(DataPrediction(), 256, seeded(i)).value for i in range(40)])
    t = DataPrediction().time.sample(256 * 40, generator=seeded(0)).reshape(40, 256)
    free = (0.09 * (1 - t) ** 2 / (0.09 * t**2 + (1 - t) ** 2)).mean(1)
    assert runs.mean().item() == pytest.approx(free.mean().item(), rel=0.02)
    assert runs.std().item() < 0.1 * free.std().item()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_network_is_asked_in_its_own_precision(dtype, seeded):
    seen = set()

    class Look(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = torch.nn.Parameter(torch.zeros((), dtype=dtype))

        def forward(self, t, x):
            seen.add((t.dtype, x.dtype, x.requires_grad, torch.is_grad_enabled()))
            return self.weight * x

    loss_excess(Look(), Mixture([[0.0]]), CondOT(), Gaussian(), VelocityMatching(), 20, seeded(0))
    assert seen == {(dtype, dtype, False, False)}


def test_the_oracles_own_methods_ask_with_its_source_and_the_generator(seeded):
    source, x = Gaussian(2.0, 0.3), torch.tensor([[-1.0], [1.0]])
    oracle = MixtureOracle.empirical(CondOT(), x, source)
    given = MixtureOracle(CondOT(), x, std=0.0, source=source)
    at = torch.tensor([[0.4], [2.0]])
    assert torch.equal(oracle.velocity(0.3, at), given.velocity(0.3, at))
    network = torch.nn.Linear(1, 1)

    class Of(torch.nn.Module):
        def forward(self, t, x):
            return network(x)

    runs = [oracle.loss_excess(VelocityMatching(), Of(), 50, seeded(i)) for i in (1, 1, 2)]
    assert runs[0] == runs[1] != runs[2]


def test_without_a_generator_the_global_one_draws():
    law, about = Mixture([[0.0], [3.0]], std=0.5), (CondOT(), Gaussian(), VelocityMatching(), 50)
    values = []
    for seed in (0, 0, 1):
        torch.manual_seed(seed)
        values.append(loss_floor(law, *about))
    assert values[0] == values[1] != values[2]


def test_a_network_whose_first_weights_are_whole_numbers_is_asked_in_single_precision(seeded):
    class Quantised(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = torch.nn.Parameter(torch.ones(1, dtype=torch.int8), requires_grad=False)

        def forward(self, t, x):
            assert x.dtype == torch.float32
            return self.weight * x

    class Plain(torch.nn.Module):
        def forward(self, t, x):
            return x

    about = Mixture([[0.3]]), CondOT(), Gaussian(), VelocityMatching(), 20
    assert loss_excess(Quantised(), *about, seeded(0)) == loss_excess(Plain(), *about, seeded(0))


def test_what_are_no_networks_and_no_generators_is_refused(seeded):
    about = Mixture([[0.3]]), CondOT(), Gaussian(), VelocityMatching()
    with pytest.raises(ArgumentError, match="^network is 3, expected a Module$"):
        loss_excess(3, *about, 20)
    for wrong in (1, True, 2.0, "2"):
        with pytest.raises(ArgumentError, match="^n is .*, expected a whole number of at least 2$"):
            loss_floor(*about, wrong)
    with pytest.raises(ArgumentError, match="^generator is 3, expected"):
        loss_floor(*about, 20, 3)
