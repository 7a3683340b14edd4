"""Where times meet data: every accepted form means one thing, every other is refused."""

import math

import pytest
import torch

from fmkit import shapes
from fmkit.errors import ArgumentError

x = torch.zeros(3, 2)


@pytest.mark.parametrize(
    "t", [0.25, torch.tensor(0.25), torch.full((3,), 0.25), torch.full((3,), 0.25, dtype=torch.float64)]
)
def test_times_become_one_for_each_row_in_double_precision(t):
    got = shapes.batch_time(t, x)
    assert got.tolist() == [0.25] * 3
    assert got.dtype == torch.float64
    assert got.stride() == (1,)  # forward-mode differentiation refuses expanded memory


@pytest.mark.parametrize("shape", [(2,), (1,), (3, 1), (1, 3), (3, 2)])
def test_times_of_other_shapes_are_refused(shape):
    with pytest.raises(ArgumentError, match=r"expected \(3,\): one time for each row of x"):
        shapes.batch_time(torch.zeros(shape), x)


def test_widen_puts_a_coefficient_before_its_row():
    data = torch.ones(3, 2, 4)
    scale = torch.tensor([1.0, 2.0, 3.0], dtype=torch.float64)
    wide = shapes.widen(scale, data)
    assert wide.dtype == torch.float32
    assert (wide * data)[:, 0, 0].tolist() == [1.0, 2.0, 3.0]
    assert (wide * data).shape == data.shape
    assert (shapes.widen(torch.tensor(2.0), data) * data).shape == data.shape
    assert shapes.widen(scale, torch.ones(3)).shape == (3,)


def test_the_smallest_data_is_one_number_a_row():
    column = torch.tensor([1.0, 2.0])
    assert shapes.check_data(column) is column
    assert shapes.sum_event(column).tolist() == shapes.mean_event(column).tolist() == [1.0, 2.0]
    table = torch.tensor([[1.0, 2.0], [3.0, 6.0]])
    assert shapes.sum_event(table).tolist() == [3.0, 9.0]
    assert shapes.mean_event(table).tolist() == [1.5, 4.5]


def test_messages_name_the_input():
    for check in (shapes.check_data, shapes.check_finite):
        wrong = torch.tensor(float("nan"))
        with pytest.raises(ArgumentError, match="^x has"):
            check(wrong)
        with pytest.raises(ArgumentError, match="^points has"):
            check(wrong, "points")
    for k, name in enumerate(("x0", "x1")):
        pair = [torch.ones(2, 3), torch.ones(2, 3)]
        pair[k] = pair[k].long()
        with pytest.raises(ArgumentError, match=f"^{name} has dtype"):
            shapes.check_points(0.5, *pair, (0.0, 1.0))


def test_check_time_clamps_rounding_and_refuses_more():
    end = 1 - 1e-9
    assert shapes.check_time(torch.ones(3), x, (0.0, end)).tolist() == [end] * 3
    with pytest.raises(ArgumentError, match=r"t ranges over \[1, 1\], expected inside \[0\.0, 0\.999\]"):
        shapes.check_time(torch.ones(3), x, (0.0, 0.999))
    with pytest.raises(ArgumentError, match="expected floating point times"):
        shapes.check_time(torch.ones(3, dtype=torch.int32), x, (0.0, 1.0))


def test_check_time_forgives_a_single_precisions_rounding_at_either_end():
    inside = torch.tensor([0.1 - 9e-8, 0.5, 0.9 + 9e-8], dtype=torch.float64)
    assert shapes.check_time(inside, x, (0.1, 0.9)).tolist() == [0.1, 0.5, 0.9]
    for outside in (0.1 - 1.1e-7, 0.9 + 1.1e-7):
        with pytest.raises(ArgumentError, match=r"expected inside \[0\.1, 0\.9\]"):
            shapes.check_time(outside, x, (0.1, 0.9))


def test_apples_gpus_have_no_double_precision():
    assert shapes.time_dtype(torch.device("mps")) == torch.float32
    assert shapes.time_dtype(torch.device("cpu")) == shapes.time_dtype(torch.device("cuda")) == torch.float64


@pytest.mark.parametrize("t", [0.25, torch.tensor(0.25), torch.full((3,), 0.25)])
def test_times_go_where_the_data_is(t):
    assert shapes.batch_time(t, x.to("meta")).device.type == "meta"


def test_values_are_looked_at_on_the_cpu_only():
    """Elsewhere a look would wait for the device; on the meta device there is none to look at."""
    assert shapes.check_time(2.0, x.to("meta"), (0.0, 1.0)).device.type == "meta"


def test_check_points_asks_for_one_device_one_shape_and_one_dtype():
    with pytest.raises(ArgumentError, match="x0 is on the meta device, expected a tensor that has values"):
        shapes.check_points(0.5, x.to("meta"), x, (0.0, 1.0))
    with pytest.raises(ArgumentError, match="x0 has dtype torch.float32 and x1 torch.float64; a path needs one dtype"):
        shapes.check_points(0.5, x, x.double(), (0.0, 1.0))
    with pytest.raises(ArgumentError, match=r"x0 has shape \(2, 2\) and x1 \(3, 2\); a path needs equal shapes"):
        shapes.check_points(0.5, x[:2], x, (0.0, 1.0))
    t, x0, x1 = shapes.check_points(0.5, x, x + 1, (0.0, 1.0))
    assert (t.tolist(), x0 is x, torch.equal(x1, x + 1)) == ([0.5] * 3, True, True)


def test_check_time_works_inside_function_transforms():
    got = torch.func.vmap(lambda t: shapes.check_time(t, x, (0.0, 1.0)).sum())(torch.rand(4, 3))
    assert got.shape == (4,)


def test_check_finite_counts_and_locates():
    bad = torch.zeros(4, 2, 2)
    bad[2, 0, 1], bad[3] = float("nan"), float("inf")
    with pytest.raises(ArgumentError, match="data has 5 non-finite values, the first in row 2"):
        shapes.check_finite(bad, "data")
    with pytest.raises(ArgumentError, match="scale has 1 non-finite values, the first in row 1"):
        shapes.check_finite(torch.tensor([0.0, float("nan")]), "scale")
    assert shapes.check_finite(x) is x


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ([1.0], "y is a list, expected a torch tensor"),
        (
            torch.zeros(2, dtype=torch.int64),
            r"y has dtype torch\.int64, expected floating point; convert it with y\.float\(\)",
        ),
        (torch.zeros(2, dtype=torch.bool), r"torch\.bool"),
        (torch.zeros(2, dtype=torch.complex64), r"torch\.complex64"),
        (torch.tensor(1.0), r"y has shape \(\), expected a non-empty"),
        (torch.zeros(0, 2), r"y has shape \(0, 2\)"),
    ],
)
def test_check_data_refuses(value, message):
    with pytest.raises(ArgumentError, match=message):
        shapes.check_data(value, "y")


def test_sums_and_means_are_over_everything_but_the_batch():
    data = torch.arange(24.0).reshape(2, 3, 4)
    assert shapes.sum_event(data).tolist() == [66.0, 210.0]
    assert shapes.mean_event(data).tolist() == [5.5, 17.5]
    assert shapes.sum_event(torch.tensor([1.0, 2.0])).tolist() == [1.0, 2.0]
    assert shapes.mean_event(torch.tensor([1.0, 2.0])).tolist() == [1.0, 2.0]


@pytest.mark.parametrize(
    ("y", "message"),
    [
        ([1.0], r"^y is a list, expected a torch tensor like x, \(3, 2\)$"),
        (torch.zeros(2, 3), r"^y has shape \(2, 3\), expected that of x, \(3, 2\)$"),
        (torch.zeros(3, 2, dtype=torch.float64), r"^y has dtype torch.float64, expected that of x, torch.float32$"),
        (torch.zeros(3, 2, device="meta"), r"^y has device meta, expected that of x, cpu$"),
    ],
)
def test_check_like_asks_for_shape_dtype_and_device(y, message):
    good = torch.ones(3, 2)
    assert shapes.check_like(good, x, "y") is good
    with pytest.raises(ArgumentError, match=message):
        shapes.check_like(y, x, "y")
    with pytest.raises(ArgumentError, match="of the state, |like the state, "):
        shapes.check_like(y, x, "y", "the state")


def test_check_batch_is_finite_and_overflow_is_not_infinity():
    huge = torch.full((4, 2), 3e38)
    assert shapes.check_batch(huge) is huge
    for value in (math.nan, math.inf, -math.inf):
        wrong = torch.ones(4, 2)
        wrong[2, 1] = value
        with pytest.raises(ArgumentError, match="^x has 1 non-finite values, the first in row 2"):
            shapes.check_batch(wrong)
        with pytest.raises(ArgumentError, match="^points has 1 non-finite"):
            shapes.check_batch(wrong, "points")
    # inside a transform there are no values to look at
    assert torch.func.vmap(lambda row: shapes.check_batch(row).sum())(torch.ones(3, 2)).tolist() == [2.0] * 3


def test_a_shape_is_whole_numbers_of_at_least_one():
    assert shapes.check_shape([2, 3]) == (2, 3)
    assert shapes.check_shape((4,)) == (4,)
    for wrong, message in [
        (7, "^shape is 7, expected"),
        ("23", "^shape is '23', expected"),
        ((), r"^shape is \(\), expected"),
        ((2, 0), "^a length of the shape is 0, "),
        ((2, 1.5), "^a length of the shape is 1.5, "),
    ]:
        with pytest.raises(ArgumentError, match=message):
            shapes.check_shape(wrong)


def test_a_time_is_a_number_that_is_somewhere():
    for wrong, message in [
        (True, "^t is True, expected a number"),
        ("now", "^t is 'now', expected a number"),
        (torch.tensor(0.5, device="meta"), "^t is on the meta device"),
        (torch.full((3,), 0.5, device="meta"), "^t is on the meta device"),
    ]:
        with pytest.raises(ArgumentError, match=message):
            shapes.batch_time(wrong, x)
    assert shapes.batch_time(torch.tensor(0.5, device="meta"), x.to("meta")).device.type == "meta"
