"""Wrong fields fail with the right law named; right ones pass, and are left as they were."""

import pytest
import torch

from fmkit.errors import ArgumentError
from fmkit.fields import MLP, ClassifierFree, ModuleField, PredictionField, VectorField
from fmkit.paths import CondOT
from fmkit.sources import Gaussian
from fmkit.testing import check_field


def broken(field, **options):
    return {f.id.removeprefix("field.") for f in check_field(field, **options).failed}


class Linear(VectorField):
    """v = A x + t, for wrong fields to start from."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = torch.nn.Linear(2, 2)

    def forward(self, t, x, cond=None):
        shift = 0 if cond is None else cond.to(x.dtype).reshape(-1, 1)
        return self.layer(x) + t[:, None].to(x.dtype) + shift


class CentresTheBatch(Linear):
    """It begins as zero, where nothing would be seen."""

    def __init__(self) -> None:
        super().__init__()
        torch.nn.init.zeros_(self.layer.weight)

    def forward(self, t, x, cond=None):
        return super().forward(t, x - 1e-3 * x.mean(0), cond)


class OneTimeForAll(Linear):
    def forward(self, t, x, cond=None):
        return super().forward(t[:1].expand(len(x)), x, cond)


class RollsConditions(Linear):
    def forward(self, t, x, cond=None):
        return super().forward(t, x, None if cond is None else cond[torch.arange(len(x))].cumsum(0))


class NeverNone(Linear):
    def forward(self, t, x, cond=None, calls=None):
        return super().forward(t, x, cond) + (torch.rand(()) if cond is None else 0)


class Draws(Linear):
    def forward(self, t, x, cond=None):
        torch.rand(1)
        return super().forward(t, x, cond)


class Double(Linear):
    def forward(self, t, x, cond=None):
        return super().forward(t, x, cond).double()


class InfiniteAtItsEnd(Linear):
    def forward(self, t, x, cond=None):
        return super().forward(t, x, cond) / (1 - t)[:, None].to(x.dtype)


class OffersTooMuch(Linear):
    @property
    def offers(self):
        return frozenset({"velocity", "average"})


class OffersNoise(Linear):
    @property
    def offers(self):
        return frozenset({"velocity", "stochastic"})


class TwoVelocities(Linear):
    def velocity(self, t, x, cond=None):
        return -self(t, x, cond)


COND = torch.tensor([0, 1, 2, 0, 1, 2])


@pytest.mark.parametrize(
    ("field", "laws"),
    [
        (CentresTheBatch(), {"rows"}),
        (OneTimeForAll(), {"rows", "condition"}),
        (RollsConditions(), {"condition", "rows"}),
        (NeverNone(), {"condition", "seeds", "rows", "offers"}),
        (Draws(), {"seeds"}),
        (Double(), {"shape"}),
        (InfiniteAtItsEnd(), {"shape"}),
        (OffersTooMuch(), {"offers"}),
        (OffersNoise(), {"offers"}),
        (TwoVelocities(), {"offers"}),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, VectorField) else "",
)
def test_a_wrong_field_breaks_the_law_it_breaks(field, laws):
    found = broken(field, cond=COND)
    assert found
    assert found <= laws


@pytest.mark.parametrize(
    ("field", "options"),
    [
        (Linear(), {"cond": COND}),
        (MLP((3, 2), width=8, depth=1), {}),
        (MLP(2, width=8, depth=1, classes=3, dropout=0.5), {"cond": COND}),
        (ClassifierFree(MLP(2, width=8, depth=1, classes=3), 2.0), {"cond": COND}),
        (PredictionField(MLP(2, width=8, depth=1), CondOT(), "data", (0.0, 0.99), True), {}),
        (ModuleField(MLP(4, width=8, depth=1)), {"x": torch.randn(3, 4, generator=torch.Generator().manual_seed(0))}),
    ],
    ids=["linear", "mlp", "classes", "guided", "prediction", "module"],
)
def test_a_right_field_passes(field, options):
    report = check_field(field, **options)
    report.raise_if_failed()
    assert len(report.passed) == 5


def test_conditions_that_were_not_handed_over_are_not_checked():
    (finding,) = check_field(Linear()).unchecked
    assert finding.id == "field.condition"


def test_the_field_is_left_as_it_was():
    field = MLP(2, width=8, depth=1).train()
    before = {k: v.clone() for k, v in field.state_dict().items()}
    check_field(field)
    assert field.training
    assert all(torch.equal(before[k], v) and v.dtype == torch.float32 for k, v in field.state_dict().items())
    with pytest.raises(ArgumentError, match="got a Gaussian, expected a VectorField"):
        check_field(Gaussian())
