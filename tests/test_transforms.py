"""Transforms own their log-determinant: against automatic differentiation."""

import math
import re

import pytest
import torch

from fmkit import specs
from fmkit.errors import ArgumentError
from fmkit.transforms import Affine, Transform

CASES = {
    "numbers": Affine(8.5, 8.5),
    "by coordinate": Affine(torch.tensor([1.0, -2.0, 3.0]), torch.tensor([0.5, 2.0, 1e3])),
    "one shift": Affine(7.0, torch.tensor([0.5, 2.0, 1e-3])),
}


@pytest.fixture
def x():
    return torch.randn(5, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


class TestAffine:
    @pytest.mark.parametrize("name", CASES)
    def test_log_det_is_that_of_the_jacobian(self, name, x):
        transform = CASES[name]
        jacobians = torch.func.vmap(torch.func.jacrev(lambda row: transform(row[None])[0]))(x)
        torch.testing.assert_close(transform.log_det(x), torch.linalg.slogdet(jacobians).logabsdet)

    def test_log_det_of_images_counts_every_pixel(self):
        images = torch.zeros(2, 3, 4, 5)
        expected = torch.full((2,), -60 * math.log(127.5))
        torch.testing.assert_close(Affine(127.5, 127.5).log_det(images), expected)

    @pytest.mark.parametrize("name", CASES)
    def test_inverse(self, name, x):
        torch.testing.assert_close(CASES[name].inverse(CASES[name](x)), x)
        torch.testing.assert_close(CASES[name](CASES[name].inverse(x)), x)

    def test_forward_in_the_symbols_of_the_law(self):
        y = Affine(torch.tensor([1.0, 2.0]), torch.tensor([2.0, 4.0]))(torch.tensor([[5.0, 0.0]]))
        assert y.tolist() == [[2.0, -0.5]]

    def test_digits_that_float32_cannot_hold_are_taken_away_in_float64(self):
        """A column near 3333: the difference is rounded once, at the end, and not the shift before it."""
        x = torch.tensor([[3333.25]])
        assert Affine(1e4 / 3, 1e-3)(x).item() == pytest.approx((3333.25 - 1e4 / 3) / 1e-3, rel=1e-7)
        assert Affine(1e4 / 3, 3.0).inverse(torch.zeros(1, 1)).item() == pytest.approx(1e4 / 3, rel=6e-8)
        # 1/3 in half precision is off by 2e-4 of itself
        assert Affine(0.0, 1 / 3)(torch.ones(1, 1).half()).dtype == torch.float16
        assert Affine(100 / 3, 1e-2)(torch.tensor([[33.34375]]).half()).item() == pytest.approx(1.0417, abs=1e-3)

    def test_is_the_identity_unless_said(self, x):
        assert torch.equal(Affine()(x), x)
        assert torch.equal(Affine().log_det(x), torch.zeros(5).double())

    def test_keeps_a_copy_and_is_no_state(self, x):
        shift = torch.zeros(3, dtype=torch.float64)
        transform = Affine(shift)
        shift.fill_(1.0)
        assert torch.equal(transform(x), x)
        assert not transform.state_dict()  # its numbers are arguments, which are saved with it already

    def test_stays_in_float64_whatever_the_model_is_in(self):
        transform = Affine(1 / 3, 1 / 7).half()
        assert transform.shift.item() == 1 / 3
        assert transform(torch.zeros(1, 1)).dtype == torch.float32
        assert transform(torch.zeros(1, 1, dtype=torch.float64)).item() == pytest.approx(-7 / 3, rel=1e-15)

    def test_the_way_back_is_rounded_once(self):
        """2^24 + 1 is no float32; 2^24 + 2 is, though the shift, and the scaled point, are not all."""
        transform = Affine(2.0**24 + 1, 1.0)
        back = transform.inverse(torch.ones(1, 1))
        assert back.dtype == torch.float32
        assert back.item() == 2.0**24 + 2
        assert Affine(0.0, 1 / 3).inverse(torch.full((1, 1), 3.0)).item() == 1.0

    def test_moves_with_the_model(self):
        transform = torch.nn.Sequential(Affine(1.0, 2.0)).to("meta")[0]
        assert transform.shift.device.type == transform.scale.device.type == "meta"

    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            ((0.0, 0.0), "scale has a minimum of 0, expected positive"),
            ((0.0, torch.tensor([1.0, -2.0])), "scale has a minimum of -2"),
            ((math.nan, 1.0), "shift has 1 non-finite"),
            ((0.0, math.inf), "scale has 1 non-finite"),
        ],
    )
    def test_mistakes_are_refused(self, arguments, message):
        with pytest.raises(ArgumentError, match=message):
            Affine(*arguments)

    def test_survives_being_written_down(self, x):
        tensors = {}
        spec = specs.describe(CASES["by coordinate"], tensors)
        again = specs.build(Transform, spec, "transform", specs.Context(tensors))
        assert torch.equal(again(x), CASES["by coordinate"](x))
        assert torch.equal(again.log_det(x), CASES["by coordinate"].log_det(x))


class TestStandardise:
    def test_gives_mean_zero_and_deviation_one(self, x):
        data = x * torch.tensor([3.0, 0.5, 1.0]) + torch.tensor([1e3, -5.0, 0.0])
        y = Affine.standardise(data)(data)
        torch.testing.assert_close(y.mean(0), torch.zeros(3).double(), atol=1e-11, rtol=0)
        torch.testing.assert_close(y.square().mean(0), torch.ones(3).double())

    def test_a_constant_coordinate_is_divided_by_the_floor(self, x):
        x[:, 1] = 4.0
        transform = Affine.standardise(x, floor=0.1)
        largest = x.std(0, correction=0).max()
        torch.testing.assert_close(transform.scale[1], 0.1 * largest)
        assert transform(x)[:, 1].abs().max() < 1e-12

    def test_the_floor_is_a_hundredth_of_the_largest_deviation(self):
        data = torch.tensor([[0.0, 5.0, 0.0], [8.0, 5.0, 0.02]], dtype=torch.float64)
        assert Affine.standardise(data).scale.tolist() == pytest.approx([4.0, 0.04, 0.04])
        # where nothing varies, of 1
        assert Affine.standardise(torch.ones(4, 2)).scale.tolist() == pytest.approx([0.01, 0.01])

    def test_statistics_are_taken_in_float64(self):
        x = 1e4 + torch.arange(4.0)[:, None]
        assert Affine.standardise(x).scale.item() == pytest.approx(math.sqrt(1.25), rel=1e-12)


@pytest.mark.parametrize(
    ("own", "event"), [((), (3,)), ((1,), (3,)), ((3,), (3,)), ((3,), (2, 3)), ((2, 1), (2, 3)), ((3, 1, 1), (3, 4, 5))]
)
def test_a_shift_broadcasts_to_events(own, event):
    shift = torch.rand(own, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    x = torch.ones(4, *event, dtype=torch.float64)
    assert torch.equal(Affine(shift)(x), x - shift)


@pytest.mark.parametrize(
    ("own", "event"),
    [((2,), (3,)), ((3,), (3, 4)), ((4, 5), (3, 5)), ((5, 4), (5, 3)), ((1, 3), (3,)), ((2,), (3, 1)), ((3,), ())],
)
def test_events_that_a_shift_would_change_in_shape_are_refused(own, event):
    x = torch.ones(4, *event)
    for transform in (Affine(torch.zeros(own)), Affine(0.0, torch.ones(own))):
        message = f"has events of shape {event}, this transform's are {own}"
        for name, apply in (("x", transform.forward), ("y", transform.inverse), ("x", transform.log_det)):
            with pytest.raises(ArgumentError, match=f"^{re.escape(f'{name} {message}')}"):
                apply(x)


def test_what_is_no_points_is_refused_by_name():
    for name, apply in (("x", Affine().forward), ("y", Affine().inverse), ("x", Affine.standardise)):
        with pytest.raises(ArgumentError, match=f"^{name} is a list"):
            apply([[1.0]])
        with pytest.raises(ArgumentError, match=f"^{name} has 1 non-finite"):
            apply(torch.tensor([[1.0], [math.nan]]))
    for x, message in ((torch.zeros(0, 2), "^x has shape"), (torch.zeros(3), r"^x has shape \(3,\), expected \(N, ")):
        with pytest.raises(ArgumentError, match=message):
            Affine.standardise(x)


def test_the_floor_is_a_share():
    x = torch.tensor([[0.0, 0.0], [2.0, 0.2]])
    assert Affine.standardise(x, 0.0).scale.tolist() == pytest.approx([1.0, 0.1])
    assert Affine.standardise(x, 1.0).scale.tolist() == [1.0, 1.0]
    for floor in (-0.1, 1.5, math.nan, "1"):
        with pytest.raises(ArgumentError, match="^floor is "):
            Affine.standardise(x, floor)
