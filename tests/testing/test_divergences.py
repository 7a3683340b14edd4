"""Wrong divergences fail with the right law named; right ones pass."""

import pytest
import torch

from fmkit import paths
from fmkit.divergence import Divergence, ExactDivergence, HutchinsonDivergence
from fmkit.errors import ArgumentError
from fmkit.randomness import normal_like
from fmkit.testing import check_divergence


def broken(divergence):
    return {f.id.removeprefix("divergence.") for f in check_divergence(divergence).failed}


class Changed(Divergence):
    """A right divergence, and what a subclass makes of its estimates."""

    def __init__(self, right: Divergence) -> None:
        super().__init__()
        self.right, self.estimates = right, right.estimates
        self.exact = right.exact

    def rate(self, f, x, generator=None):
        rate = self.right.rate(f, x, generator)

        def changed(t, x):
            velocity, estimates = rate(t, x)
            return self.change(t, x, velocity, estimates)

        return changed


class OffByAHundredth(Changed):
    def change(self, t, x, velocity, estimates):
        return velocity, 1.01 * estimates


class Twice(Changed):
    """One estimate, given as often as there are to be."""

    def change(self, t, x, velocity, estimates):
        return velocity, estimates[:, :1].expand_as(estimates).contiguous()


class Averaged(Changed):
    """Columns that have been mixed: their spread tells too little."""

    def change(self, t, x, velocity, estimates):
        return velocity, (estimates + estimates.mean(1, keepdim=True)) / 2


class Together(Changed):
    def change(self, t, x, velocity, estimates):
        return velocity, estimates + 0.1 * (x.sum() - x.reshape(len(x), -1).sum(1))[:, None]


class Detached(Changed):
    def change(self, t, x, velocity, estimates):
        return velocity, estimates.detach()


class InPoints(Changed):
    """Differentiated in the points alone: the field's weights get half of what is theirs."""

    def change(self, t, x, velocity, estimates):
        return velocity, estimates.detach() + (estimates - estimates.detach()) / 2


class Single(Changed):
    def change(self, t, x, velocity, estimates):
        return velocity, estimates.float().to(estimates.dtype)


class Flat(Changed):
    def change(self, t, x, velocity, estimates):
        return velocity, estimates[:, 0]


class Still(Changed):
    def change(self, t, x, velocity, estimates):
        return torch.zeros_like(velocity), estimates


class Claims(Changed):
    """Estimates that pass for the trace."""

    exact = True

    def __init__(self, right: Divergence) -> None:
        super().__init__(right)
        self.exact = True

    def change(self, t, x, velocity, estimates):
        return velocity, estimates


class DrawsAnew(HutchinsonDivergence):
    def rate(self, f, x, generator=None):
        return lambda t, x: HutchinsonDivergence.rate(self, f, x, generator)(t, x)


class DrawsFromTheGlobal(HutchinsonDivergence):
    def rate(self, f, x, generator=None):
        return super().rate(f, x, None)


class OneSeed(HutchinsonDivergence):
    def rate(self, f, x, generator=None):
        return super().rate(f, x, torch.Generator().manual_seed(0))


class Probed(Divergence):
    """z^T J z with probes of a subclass's making."""

    estimates = 2

    def rate(self, f, x, generator=None):
        probes = self.probes(x, generator)

        def rate(t, x):
            velocity, pull = torch.func.vjp(lambda y: f(t, y), x)
            each = [self.product(pull(z)[0], z).reshape(len(x), -1).sum(1) for z in probes]
            return velocity, torch.stack(each, 1)

        return rate

    def product(self, row, z):
        return row * z


class Alike(Probed):
    """Probes whose entries are one number: E z z^T is not the identity."""

    def probes(self, x, generator):
        one = normal_like(x.reshape(len(x), -1)[:, :1], generator, 2)
        return one.reshape(2, len(x), *[1] * (x.ndim - 1)).expand(2, *x.shape)


class Wide(Probed):
    """Probes of a variance of 1.02."""

    def probes(self, x, generator):
        return normal_like(x, generator, 2) * 1.02**0.5


class Trace(Divergence):
    """An exact one for vectors, which loses the rest of a matrix."""

    exact = True

    def rate(self, f, x, generator=None):
        def rate(t, x):
            velocity, pull = torch.func.vjp(lambda y: f(t, y), x)
            total = torch.zeros(len(x), dtype=x.dtype)
            for i in range(x.shape[-1] if x.ndim > 1 else 1):
                e = torch.zeros_like(x)
                e[..., i] = 1
                row = pull(e if x.ndim > 1 else torch.ones_like(x))[0]
                total = total + (row[..., i] if x.ndim == 2 else row.reshape(len(x), -1)[:, i])
            return velocity, total[:, None]

        return rate


TWO = HutchinsonDivergence(2)


@pytest.mark.parametrize(
    ("divergence", "law"),
    [
        (OffByAHundredth(ExactDivergence()), "trace"),
        (Claims(HutchinsonDivergence()), "trace"),
        (Trace(), "trace"),
        (OffByAHundredth(TWO), "unbiased"),
        (OffByAHundredth(HutchinsonDivergence(2, "gaussian")), "unbiased"),
        (Alike(), "unbiased"),
        (Wide(), "unbiased"),
        (Twice(TWO), "error"),
        (Averaged(HutchinsonDivergence(4)), "error"),
        (Together(ExactDivergence()), "rows"),
        (Together(TWO), "rows"),
        (Detached(ExactDivergence()), "gradients"),
        (InPoints(TWO), "gradients"),
        (Single(ExactDivergence()), "shape"),
        (Flat(TWO), "shape"),
        (Still(ExactDivergence()), "shape"),
        (DrawsAnew(2), "seeds"),
        (DrawsFromTheGlobal(2), "seeds"),
        (OneSeed(2), "seeds"),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, Divergence) else value,
)
def test_a_wrong_divergence_breaks_the_law_it_breaks(divergence, law):
    assert law in broken(divergence)


@pytest.mark.parametrize(
    "divergence",
    [ExactDivergence(1), HutchinsonDivergence(), HutchinsonDivergence(5), HutchinsonDivergence(2, "gaussian")],
    ids=["in pieces", "one probe", "five", "gaussian"],
)
def test_a_right_one_passes(divergence):
    check_divergence(divergence).raise_if_failed()


def test_what_has_no_meaning_is_not_checked():
    unchecked = {f.id for f in check_divergence(HutchinsonDivergence()).unchecked}
    assert unchecked == {"divergence.trace", "divergence.error"}
    unchecked = {f.id for f in check_divergence(ExactDivergence()).unchecked}
    assert unchecked == {"divergence.unbiased", "divergence.error"}


def test_what_is_no_divergence_is_refused():
    with pytest.raises(ArgumentError, match="got a CondOT, expected a Divergence"):
        check_divergence(paths.CondOT())
