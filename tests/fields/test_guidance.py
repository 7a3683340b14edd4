"""Classifier-free guidance: free + scale (conditional - free), and never more than the field it wraps."""

import pytest
import torch

from fmkit.errors import ArgumentError
from fmkit.fields import ClassifierFree, ModuleField, PredictionField
from fmkit.paths import CondOT, VariancePreserving


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
