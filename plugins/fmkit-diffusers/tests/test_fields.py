"""diffusers' UNet as a field: the library's own answer, any size, labels, derivatives, files."""

from __future__ import annotations

import pytest
import torch
from diffusers import UNet2DModel

import fmkit
from fmkit import registry, specs
from fmkit.errors import ArgumentError
from fmkit.fields import ClassifierFree, VectorField
from fmkit.testing import check_field
from fmkit_diffusers import DiffusersUNet


def lively(event=(1, 8, 8), **more):
    torch.manual_seed(0)
    field = DiffusersUNet(event, **{"channels": (8, 16), "layers": 1, "attention": (1,)} | more)
    torch.nn.init.normal_(field.net.conv_out.weight, std=0.3)
    return field.eval()


def points(n, *event, dtype=torch.float32):
    return torch.randn(n, *event, generator=torch.Generator().manual_seed(1), dtype=dtype)


def test_it_is_the_librarys_answer_at_a_thousand_times_the_time():
    field, x, t = lively(), points(3, 1, 8, 8), torch.tensor([0.1, 0.5, 0.9])
    assert isinstance(field.net, UNet2DModel)
    torch.testing.assert_close(field(t, x), field.net(x, t * 1000).sample)
    assert (DiffusersUNet((1, 8, 8), channels=(8,), attention=())(t, x) == 0).all()


@pytest.mark.parametrize("event", [(1, 9, 14), (3, 7, 7), (2, 4, 4)])
def test_any_size(event):
    field, x = lively(event), points(2, *event)
    out = field(0.4, x)
    assert out.shape == x.shape
    padded = torch.zeros(2, event[0], -(-event[1] // 2) * 2, -(-event[2] // 2) * 2)
    padded[..., : event[1], : event[2]] = x
    want = field.net(padded, torch.full((2,), 400.0)).sample
    torch.testing.assert_close(out, want[..., : event[1], : event[2]])


@pytest.mark.parametrize("more", [{}, {"classes": 2, "scale_shift": False}], ids=["plain", "labels"])
def test_it_keeps_the_laws_of_a_field(more):
    report = check_field(lively(**more), cond=torch.arange(6) % 2 if more else None, x=points(6, 1, 8, 8).double())
    assert report.ok, report


def test_labels_and_their_absence():
    field, x, t = lively(classes=3), points(4, 1, 8, 8), torch.linspace(0.1, 0.9, 4)
    labels = torch.tensor([0, 1, 2, 0])
    base, free = field(t, x, labels), field(t, x)
    for other in (free, field(t, x, (labels + 1) % 3), field(t * 0.9, x, labels)):
        assert ((base - other).flatten(1).abs().amax(1) > 1e-4).all()
    torch.testing.assert_close(ClassifierFree(field, 2.0)(t, x, labels), free + 2 * (base - free))


def test_labels_are_dropped_as_often_as_said():
    field, n = lively((1, 2, 2), channels=(8,), attention=(), classes=2, cond_dropout=0.3), 1500
    t, x, labels = torch.full((n,), 0.5), torch.zeros(n, 1, 2, 2), torch.ones(n, dtype=torch.int64)
    free, bound = field(t[:1], x[:1]), field(t[:1], x[:1], labels[:1])
    torch.manual_seed(0)
    out = field.train()(t, x, labels)
    dropped, kept = (torch.isclose(out, v, atol=1e-5).flatten(1).all(1) for v in (free, bound))
    assert (dropped ^ kept).all()
    assert dropped.double().mean().item() == pytest.approx(0.3, abs=5 * (0.21 / n) ** 0.5)


def test_derivatives_by_the_point_agree():
    field = lively((1, 3, 4), classes=2).double()
    x, t = points(2, 1, 3, 4, dtype=torch.float64), torch.tensor([0.3, 0.6], dtype=torch.float64)
    labels, v = torch.tensor([0, 1]), points(2, 1, 3, 4, dtype=torch.float64).flip(0)

    def f(x):
        return field.velocity(t, x, labels)

    h = 1e-6
    slope = (f(x + h * v) - f(x - h * v)) / (2 * h)
    (row,) = torch.autograd.grad(f(x.requires_grad_()), x, v, retain_graph=True)
    assert (row * v).sum().item() == pytest.approx((slope * v).sum().item(), rel=1e-6)
    jacobian = torch.autograd.functional.jacobian(lambda y: f(y).sum(0), x).movedim(3, 0).reshape(2, 12, 12)
    rate = fmkit.ExactDivergence().rate(lambda s, y: f(y), x)(0.0, x)[1]
    torch.testing.assert_close(rate[:, 0], torch.stack([j.trace() for j in jacobian]))


def test_it_is_named_configured_and_saved(tmp_path):
    assert registry.find("fmkit.fields", "diffusers-unet").package == "fmkit-diffusers"
    spec = {"name": "diffusers-unet", "channels": [8, 16], "attention": [1], "more": {"act_fn": "gelu"}}
    field = specs.build(VectorField, spec, "field", specs.Context(supplied={"event_shape": (1, 8, 8), "classes": 2}))
    torch.nn.init.normal_(field.net.conv_out.weight)
    assert field.net.config.act_fn == "gelu"
    flow = fmkit.Flow(fmkit.sources.Gaussian(), field.eval(), fmkit.solvers.Euler(2), event_shape=(1, 8, 8))
    flow.save(tmp_path / "a.flow")
    again, x, labels = fmkit.Flow.load(tmp_path / "a.flow").field, points(2, 1, 8, 8), torch.tensor([0, 1])
    assert torch.equal(again(0.5, x, labels), field(0.5, x, labels))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: DiffusersUNet((8, 8)), r"event_shape is \(8, 8\), expected that of images"),
        (lambda: DiffusersUNet((1, 8, 8), channels=()), "channels is empty"),
        (lambda: DiffusersUNet((1, 8, 8), channels=(8, 0)), "an entry of channels is 0"),
        (lambda: DiffusersUNet((1, 8, 8), layers=0), "layers is 0"),
        (lambda: DiffusersUNet((1, 8, 8), attention=(3,)), r"attention is at level 3, and the levels are 0 \.\. 2"),
        (lambda: DiffusersUNet((1, 8, 8), classes=0), "classes is 0"),
        (lambda: DiffusersUNet((1, 8, 8), dropout=1.0), "dropout is 1.0"),
        (lambda: DiffusersUNet((1, 8, 8), more={"colour": 1}), "UNet2DModel cannot be made: .*colour"),
        (lambda: lively()(0.5, torch.zeros(2, 1, 8, 6)), r"x has events of shape \(1, 8, 6\)"),
        (lambda: lively()(0.5, torch.zeros(2, 1, 8, 8), torch.zeros(2)), "unconditional DiffusersUNet; say classes="),
        (lambda: lively(classes=2)(0.5, torch.zeros(2, 1, 8, 8), torch.zeros(2)), "expected integer labels"),
        (lambda: lively(classes=2)(0.5, torch.zeros(2, 1, 8, 8), torch.tensor([0, 2])), "cond holds the label 2"),
        (lambda: lively(classes=2)(0.5, torch.zeros(2, 1, 8, 8), "cat"), "cond is 'cat'"),
    ],
)
def test_mistakes_are_refused(call, message):
    with pytest.raises(ArgumentError, match=message):
        call()
