"""The MLP: what it depends on, its conditions and how often they are dropped, what it refuses."""

import pytest
import torch

from fmkit.errors import ArgumentError
from fmkit.fields import MLP


def lively(*arguments, **more):
    """An MLP whose last layers are not at zero."""
    torch.manual_seed(0)
    field = MLP(*arguments, **more)
    for parameter in field.parameters():
        if not parameter.any():
            torch.nn.init.normal_(parameter, std=0.3)
    return field.eval()


t, x = torch.linspace(0, 1, 5), torch.randn(5, 2, generator=torch.Generator().manual_seed(0))


def test_an_untrained_field_is_zero():
    assert (MLP(2, 16, 2)(t, x) == 0).all()
    assert (MLP(2, 16, 2, classes=3)(t, x, torch.tensor([0, 1, 2, 0, 1])) == 0).all()


@pytest.mark.parametrize("event", [1, 4, (2, 3), (1, 4, 4)])
def test_any_event_shape(event):
    field = lively(event, width=8, depth=1)
    shape = (event,) if isinstance(event, int) else event
    points = torch.randn(5, *shape)
    out = field(t, points)
    assert out.shape == points.shape
    # rows are independent of each other, and a flattened event gives the flattened answer
    torch.testing.assert_close(field(t[2:3], points[2:3]), out[2:3])


def test_depends_on_time_point_and_condition():
    field = lively(2, width=16, depth=2, classes=3)
    labels = torch.tensor([0, 1, 2, 0, 1])
    base = field(t, x, labels)
    assert not torch.allclose(field(t * 0.9, x, labels), base)
    assert not torch.allclose(field(t, x + 0.1, labels), base)
    assert not torch.allclose(field(t, x, (labels + 1) % 3), base)
    assert not torch.allclose(field(t, x), base)


def test_resolves_near_times():
    """1e-3 apart is visible to the embedding, smoothly: the field is not a step function of time."""
    field = lively(2, width=16, depth=1)
    at = [field(torch.full((1,), s), x[:1]) for s in (0.5, 0.501, 0.502)]
    first, second = at[1] - at[0], at[2] - at[1]
    assert first.abs().max() > 1e-6
    assert (second - first).abs().max() < 0.3 * first.abs().max()


def test_vector_conditions():
    field = lively(2, width=16, depth=1, cond_dim=3)
    vectors = torch.randn(5, 3)
    base = field(t, x, vectors)
    assert not torch.allclose(field(t, x, vectors + 1), base)
    assert torch.equal(field(t, x, vectors.double()), base)


def test_conditions_are_dropped_as_often_as_said():
    """A dropped row answers as without a condition; 4000 rows at 0.3, within five standard errors; never at rest."""
    field, n = lively(2, width=8, depth=1, classes=3, cond_dropout=0.3), 4000
    times, points, labels = torch.full((n,), 0.5), torch.zeros(n, 2), torch.ones(n, dtype=torch.int64)
    free, bound = field(times[:1], points[:1]), field(times[:1], points[:1], labels[:1])
    assert not torch.allclose(free, bound)
    assert torch.allclose(field(times, points, labels), bound)
    field.train()
    torch.manual_seed(0)
    out = field(times, points, labels)
    dropped = torch.isclose(out, free).all(1)
    kept = torch.isclose(out, bound).all(1)
    assert (dropped ^ kept).all()
    assert dropped.double().mean().item() == pytest.approx(0.3, abs=5 * (0.21 / n) ** 0.5)


def test_the_absent_condition_is_learnt():
    field = lively(2, width=8, depth=1, classes=3)
    field(t, x).sum().backward()
    assert field.condition.null.grad.abs().sum() > 0


def test_precision_follows_the_weights():
    field = lively(2, width=8, depth=1).double()
    assert field(t.double(), x.double()).dtype == torch.float64
    # a float64 field resolves times that float32 rounds together
    near = field(torch.full((1,), 0.5 + 1e-9, dtype=torch.float64), x[:1].double())
    assert not torch.equal(near, field(torch.full((1,), 0.5, dtype=torch.float64), x[:1].double()))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: MLP(2, 8, 1)(t, torch.zeros(5, 3)), r"x has events of shape \(3,\), this MLP was made for \(2,\)"),
        (lambda: MLP(2, 8, 1)(t, x, torch.zeros(5)), r"a condition was given to an unconditional MLP"),
        (
            lambda: MLP(2, 8, 1, classes=3)(t, x, torch.zeros(5)),
            r"cond is torch\.float32 .*expected integer labels \(5,\)",
        ),
        (
            lambda: MLP(2, 8, 1, classes=3)(t, x, torch.zeros(4, dtype=torch.int64)),
            r"of shape \(4,\), expected integer labels",
        ),
        (
            lambda: MLP(2, 8, 1, classes=3)(t, x, torch.tensor([0, 1, 2, 3, 0])),
            r"labels range over 0 \.\. 3, expected 0 \.\. 2",
        ),
        (lambda: MLP(2, 8, 1, classes=3)(t, x, torch.tensor([0, 1, 2, -1, 0])), r"labels range over -1 \.\. 2"),
        (lambda: MLP(2, 8, 1, cond_dim=3)(t, x, torch.zeros(5, 2)), r"cond has shape \(5, 2\), expected \(5, 3\)"),
        (lambda: MLP(2, 0), "width is 0, expected at least 1"),
        (lambda: MLP(2, 8, 0), "depth is 0, expected at least 1"),
        (lambda: MLP(0), "event_shape is 0, expected at least 1"),
        (lambda: MLP((2, 0)), "event_shape is 0"),
        (lambda: MLP(()), "event_shape is 0"),
        (lambda: MLP(2, classes=0), "classes is 0"),
        (lambda: MLP(2, dropout=1.0), r"dropout is 1\.0, expected a share in \[0, 1\)"),
        (lambda: MLP(2, cond_dropout=-0.1), r"cond_dropout is -0\.1"),
        (lambda: MLP(2, classes=3, cond_dim=2), "classes and cond_dim are both given"),
    ],
)
def test_mistakes_are_refused(call, message):
    with pytest.raises(ArgumentError, match=message):
        call()
