"""Wrong couplings fail with the right law named; right ones, drawn or fitted, pass."""

import numpy as np
import pytest
import torch

from fmkit.couplings import Coupling, Independent, OptimalTransport, Paired, Semidiscrete
from fmkit.couplings.base import check_batches
from fmkit.errors import ArgumentError
from fmkit.sources import Gaussian
from fmkit.testing import check_coupling


def broken(coupling):
    return {f.id.removeprefix("coupling.") for f in check_coupling(coupling).failed}


class Doubles(OptimalTransport):
    """Samples from the plan with replacement: some of x1 is used twice, some never."""

    def pair(self, x0, x1, cond0=None, cond1=None, *, generator=None):
        i0, i1 = super().pair(x0, x1)
        rows = torch.randint(len(i1), (len(i1),), generator=generator)
        return i0[rows], i1[rows]


class DoublesTheSource(Independent):
    """One row of x0 is always left out, for the first."""

    def pair(self, x0, x1, cond0=None, cond1=None, *, generator=None):
        i0, i1 = super().pair(x0, x1)
        return i0.where(i0 < len(x0) - 1, 0), i1


class ReseedsNumpy(OptimalTransport):
    def pair(self, x0, x1, cond0=None, cond1=None, *, generator=None):
        np.random.seed(0)
        return super().pair(x0, x1)


class DrawsFromTheGlobal(Coupling):
    def pair(self, x0, x1, cond0=None, cond1=None, *, generator=None):
        check_batches(x0, x1)
        return torch.randperm(len(x0)), torch.arange(len(x1))


class SaysIndependent(OptimalTransport):
    @property
    def independent(self):
        return True


class TakesAnything(Coupling):
    """Orders by the first coordinate, whatever it is."""

    def pair(self, x0, x1, cond0=None, cond1=None, *, generator=None):
        n = min(len(x0), len(x1))
        return x0[:n].reshape(n, -1)[:, :1].sum(1).argsort(), x1[:n].reshape(n, -1)[:, :1].sum(1).argsort()


class Int32(Independent):
    def pair(self, x0, x1, cond0=None, cond1=None, *, generator=None):
        return tuple(i.int() for i in super().pair(x0, x1))


class SortsInPlace(Paired):
    def pair(self, x0, x1, cond0=None, cond1=None, *, generator=None):
        found = super().pair(x0, x1)
        x0.copy_(x0.flip(0))
        return found


class DropsTheConditioned(Independent):
    def pair(self, x0, x1, cond0=None, cond1=None, *, generator=None):
        i0, i1 = super().pair(x0, x1)
        return (i0, i1) if cond1 is None else (i0[:-1], i1[:-1])


class FitsByGlobalDraws(Independent):
    def prepare(self, source, x1, cond=None, *, seed=0):
        torch.rand(1)
        yield 0.5
        yield 1.0


class ForgetsSome(Semidiscrete):
    """Every other sample is never met."""

    def pair(self, x0, x1, cond0=None, cond1=None, *, generator=None):
        i0, i1 = super().pair(x0, x1, cond0, cond1, generator=generator)
        return i0, i1 // 2 * 2


class LosesNoise(Semidiscrete):
    """The last x0 is left out, for the first."""

    def pair(self, x0, x1, cond0=None, cond1=None, *, generator=None):
        i0, i1 = super().pair(x0, x1, cond0, cond1, generator=generator)
        return torch.cat((i0[:-1], i0[:1])), i1


class Nearest(Semidiscrete):
    """To the nearest sample, whatever its cell's mass."""

    def prepare(self, source, x1, cond=None, *, seed=0):
        yield from super().prepare(source, x1, cond, seed=seed)
        self.potentials.zero_()


@pytest.mark.parametrize(
    ("coupling", "law"),
    [
        (ForgetsSome(steps=50), {"marginals", "conditions"}),
        (LosesNoise(steps=50), {"marginals", "conditions"}),
        (Nearest(steps=50), {"marginals", "conditions"}),
        (Doubles(), {"marginals", "conditions"}),
        (DoublesTheSource(), {"marginals", "conditions"}),
        (ReseedsNumpy(), {"seeds"}),
        (DrawsFromTheGlobal(), {"seeds", "prepare", "refuses"}),
        (SaysIndependent(), {"independent"}),
        (TakesAnything(), {"refuses"}),
        (Int32(), {"indices"}),
        (SortsInPlace(), {"conditions"}),
        (DropsTheConditioned(), {"conditions"}),
        (FitsByGlobalDraws(), {"prepare"}),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, Coupling) else "",
)
def test_a_wrong_coupling_breaks_the_law_it_breaks(coupling, law):
    found = broken(coupling)
    assert found
    assert found <= law


def test_doubling_is_named_with_the_row_and_how_often():
    finding = next(f for f in check_coupling(Doubles()).failed if f.id == "coupling.marginals")
    assert "keeps its marginals" in finding.law
    assert "of x1 is used" in finding.line


class Shuffled(Coupling):
    """Independent draws, shuffled by the generator."""

    @property
    def independent(self):
        return True

    def pair(self, x0, x1, cond0=None, cond1=None, *, generator=None):
        check_batches(x0, x1)
        return torch.randperm(len(x0), generator=generator), torch.arange(len(x1))


class DrawnFromAPlan(Shuffled):
    """Every row of x1 once; its partner is drawn, so x0 keeps its law on average only."""

    def pair(self, x0, x1, cond0=None, cond1=None, *, generator=None):
        check_batches(x0, x1)
        return torch.randint(len(x0), (len(x1),), generator=generator), torch.arange(len(x1))


class Fitted(Coupling):
    """It cannot pair before it was prepared."""

    def __init__(self) -> None:
        super().__init__()
        self.direction = None

    def prepare(self, source, x1, cond=None, *, seed=0):
        self.direction = torch.randn(x1[0].numel(), generator=torch.Generator().manual_seed(seed), dtype=x1.dtype)
        yield 1.0

    def pair(self, x0, x1, cond0=None, cond1=None, *, generator=None):
        check_batches(x0, x1)
        i0, i1 = ((x.flatten(1) @ self.direction).argsort() for x in (x0, x1))
        return i0, i1


@pytest.mark.parametrize("coupling", [Shuffled(), DrawnFromAPlan(), Fitted()], ids=lambda c: type(c).__name__)
def test_a_right_coupling_passes(coupling):
    """fmkit's own, fitted ones and draws from a plan among them, are in `test_registered`."""
    check_coupling(coupling).raise_if_failed()
    if isinstance(coupling, Fitted):
        assert coupling.direction is None  # a copy was fitted


def test_other_parts_are_refused():
    with pytest.raises(ArgumentError, match="got a Gaussian, expected a Coupling"):
        check_coupling(Gaussian())
