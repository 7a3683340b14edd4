"""The UNet: published parameter counts, any size, conditions, derivatives by every way fmkit takes them, precision."""

import pytest
import torch
from torch.nn import functional as F

import fmkit
from fmkit import specs
from fmkit.errors import ArgumentError
from fmkit.fields import ClassifierFree, UNet, VectorField
from fmkit.fields.blocks import Attention, Norm, ResBlock, resized


def lively(*arguments, seed=0, **more):
    """A UNet whose last layers are not at zero."""
    torch.manual_seed(seed)
    field = UNet(*arguments, **more)
    for parameter in field.parameters():
        if not parameter.any():
            torch.nn.init.normal_(parameter, std=0.3)
    return field.eval()


def small(event=(1, 5, 6), **more):
    """As few numbers as have every piece: two levels, attention, both changes of resolution."""
    return lively(event, channels=8, channel_mult=(1, 2), res_blocks=1, attention=(4,), head_channels=4, **more)


def points(n, *event, dtype=torch.float32):
    return torch.randn(n, *event, generator=torch.Generator().manual_seed(1), dtype=dtype)


@pytest.mark.parametrize(
    ("preset", "event", "millions"),
    [
        ("cifar10", (3, 32, 32), 153.1),
        ("imagenet32", (3, 32, 32), 210.0),
        ("imagenet64", (3, 64, 64), 276.4),
        ("imagenet128", (3, 128, 128), 507.3),
    ],
)
def test_the_papers_networks_have_the_papers_numbers_of_parameters(preset, event, millions):
    with torch.device("meta"):
        field = UNet(event, preset=preset)
    assert sum(p.numel() for p in field.parameters()) / 1e6 == pytest.approx(millions, rel=1e-3)


@pytest.mark.parametrize("updown", [False, True])
@pytest.mark.parametrize("event", [(1, 24, 24), (3, 30, 30), (1, 28, 32), (2, 27, 27), (1, 1, 5)])
def test_any_size(event, updown):
    field = lively(event, channels=4, channel_mult=(1, 1, 2), res_blocks=1, resblock_updown=updown).double()
    x = points(2, *event, dtype=torch.float64)
    out = field(torch.tensor([0.2, 0.7]), x)
    assert out.shape == x.shape
    # Every pixel of the answer hears of every corner: the levels below see the whole image. (In float64: what the far
    # corner says may be less than a single-precision unit of the answer.)
    for corner in ((0, 0), (-1, -1)):
        changed = x.clone()
        changed[:, 0, corner[0], corner[1]] += 1
        assert ((field(torch.tensor([0.2, 0.7]), changed) - out).abs().amin((0, 1)) > 0).all()


def test_an_untrained_field_is_zero_and_blocks_begin_as_their_skip():
    x, e = points(3, 4, 6, 6), points(3, 16)
    assert (UNet((4, 6, 6), preset="tiny")(torch.rand(3), x) == 0).all()
    assert torch.equal(ResBlock(4, 4, 16, 0.0, True)(x, e), x)
    assert torch.equal(Attention(4, 2)(x, False), x)
    assert torch.equal(ResBlock(4, 4, 16, 0.0, True, "down")(x, e), F.avg_pool2d(x, 2))


def test_attention_is_torchs_own():
    """torch.nn.MultiheadAttention with the same weights is an implementation of another author."""
    c, heads = 12, 3
    ours, theirs = Attention(c, heads), torch.nn.MultiheadAttention(c, heads, batch_first=True)
    with torch.no_grad():
        for layer in (ours.qkv, ours.out):
            layer.weight.normal_(std=0.5)
            layer.bias.normal_()
        theirs.in_proj_weight.copy_(ours.qkv.weight[:, :, 0, 0])
        theirs.in_proj_bias.copy_(ours.qkv.bias)
        theirs.out_proj.weight.copy_(ours.out.weight[:, :, 0, 0])
        theirs.out_proj.bias.copy_(ours.out.bias)
    x = points(2, c, 3, 5)
    tokens = F.group_norm(x, 3, eps=1e-5).flatten(2).transpose(1, 2)
    want = x + theirs(tokens, tokens, tokens, need_weights=False)[0].transpose(1, 2).reshape(x.shape)
    for plainly in (False, True):
        torch.testing.assert_close(ours(x, plainly), want, rtol=1e-5, atol=1e-5)


def test_a_residual_block_is_its_formula():
    torch.manual_seed(0)
    x, e = points(2, 8, 4, 4), points(2, 6)
    for scale_shift in (True, False):
        block = ResBlock(8, 16, 6, 0.0, scale_shift)
        torch.nn.init.normal_(block.last.weight)
        h = block.first(F.silu(F.group_norm(x, 2)))
        m = block.modulate(e)[:, :, None, None]
        h = F.group_norm(h, 4) * (1 + m[:, :16]) + m[:, 16:] if scale_shift else F.group_norm(h + m, 4)
        torch.testing.assert_close(block(x, e), block.skip(x) + block.last(F.silu(h)))


def test_resolution_is_halved_by_means_and_doubled_by_copies():
    x = torch.arange(9.0).reshape(1, 1, 3, 3)
    assert resized(x, "down").tolist() == [[[[2.0, 3.5], [6.5, 8.0]]]]
    assert resized(resized(x, "down"), "up", (3, 3)).tolist() == [[[[2, 2, 3.5], [2, 2, 3.5], [6.5, 6.5, 8]]]]


@pytest.mark.parametrize(("channels", "groups"), [(192, 32), (256, 32), (128, 32), (32, 8), (6, 1), (2, 1), (80, 20)])
def test_groups_divide_the_channels(channels, groups):
    assert Norm(channels).num_groups == groups


def test_depends_on_time_point_and_label():
    field, x, t = small(classes=3), points(4, 1, 5, 6), torch.linspace(0.1, 0.9, 4)
    labels = torch.tensor([0, 1, 2, 0])
    base = field(t, x, labels)
    for changed in (field(t * 0.9, x, labels), field(t, x, (labels + 1) % 3), field(t, x)):
        assert ((changed - base).flatten(1).abs().amax(1) > 1e-3).all()
    guided = ClassifierFree(field, 2.5)(t, x, labels)
    torch.testing.assert_close(guided, field(t, x) + 2.5 * (base - field(t, x)))


def test_vector_conditions():
    field, x, t = small(cond_dim=3), points(2, 1, 5, 6), torch.tensor([0.3, 0.6])
    assert (field(t, x, torch.ones(2, 3)) - field(t, x, torch.zeros(2, 3))).abs().max() > 1e-3


def test_image_conditions_stand_beside_the_image_at_its_size():
    field, x, t = small(cond_channels=2), points(2, 1, 5, 6), torch.tensor([0.3, 0.6])
    low = points(2, 2, 3, 3)
    out = field(t, x, low)
    torch.testing.assert_close(out, field(t, x, F.interpolate(low, size=(5, 6), mode="bilinear")))
    assert (out - field(t, x)).abs().max() > 1e-3
    # None is the learnt colour: an image of it answers as its absence
    torch.testing.assert_close(field(t, x), field(t, x, field.image.null.expand(2, -1, 5, 6)))
    local = low.clone()
    local[0] += 1
    assert torch.equal(field(t, x, local)[1], out[1])


@pytest.mark.parametrize("kind", ["label", "image"])
def test_conditions_are_dropped_as_often_as_said(kind):
    n = 1500
    of = {"classes": 3} if kind == "label" else {"cond_channels": 1}
    field = lively((1, 2, 2), channels=4, channel_mult=(1,), res_blocks=1, cond_dropout=0.3, **of)
    cond = torch.ones(n, dtype=torch.int64) if kind == "label" else torch.ones(n, 1, 2, 2)
    t, x = torch.full((n,), 0.5), torch.zeros(n, 1, 2, 2)
    free, bound = field(t[:1], x[:1]), field(t[:1], x[:1], cond[:1])
    torch.manual_seed(0)
    out = field.train()(t, x, cond)
    dropped, kept = (torch.isclose(out, v, atol=1e-5).flatten(1).all(1) for v in (free, bound))
    assert (dropped ^ kept).all()
    assert dropped.double().mean().item() == pytest.approx(0.3, abs=5 * (0.21 / n) ** 0.5)


def test_one_step_of_training_makes_the_condition_matter():
    torch.manual_seed(0)
    field, x = UNet((1, 4, 4), preset="tiny", classes=2), points(8, 1, 4, 4)
    labels = torch.arange(8) % 2
    optimizer = torch.optim.Adam(field.parameters(), 1e-2)
    for _ in range(4):  # the first moves the last layer off zero, the second the last of a block, then the condition's
        optimizer.zero_grad()
        (field(torch.rand(8), x, labels) - (2.0 * labels - 1)[:, None, None, None]).square().mean().backward()
        optimizer.step()
    assert all(p.grad is not None and p.grad.any() for p in (field.condition.label.weight, field.first.weight))
    assert (field(0.5, x, labels) - field(0.5, x, 1 - labels)).abs().max() > 1e-4


def test_derivatives_by_the_point_agree():
    """Forward mode, vectorised reverse mode and the Jacobian written out, in float64."""
    field = small(classes=2).double()
    x, t = points(2, 1, 5, 6, dtype=torch.float64), torch.tensor([0.3, 0.6], dtype=torch.float64)
    labels, v = torch.tensor([0, 1]), points(2, 1, 5, 6, dtype=torch.float64).flip(0)

    def f(x):
        return field.velocity(t, x, labels)

    h = 1e-6
    slope = (f(x + h * v) - f(x - h * v)) / (2 * h)
    torch.testing.assert_close(torch.func.jvp(f, (x,), (v,))[1], slope, rtol=1e-6, atol=1e-7)
    jacobian = torch.autograd.functional.jacobian(lambda y: f(y).sum(0), x).movedim(3, 0).reshape(2, 30, 30)
    trace = torch.stack([j.trace() for j in jacobian])
    for divergence in (fmkit.ExactDivergence(), fmkit.ExactDivergence(chunk=3)):
        velocity, rate = divergence.rate(lambda s, y: f(y), x)(0.0, x)
        torch.testing.assert_close(velocity, f(x))
        torch.testing.assert_close(rate[:, 0], trace)
    estimate = fmkit.HutchinsonDivergence(300).rate(lambda s, y: f(y), x, torch.Generator().manual_seed(0))(0.0, x)[1]
    error = estimate.std(1) / 300**0.5
    assert ((estimate.mean(1) - trace).abs() < 5 * error).all()


@pytest.mark.filterwarnings("ignore:log-densities by")
def test_a_flow_has_likelihoods_with_gradients_and_is_saved(tmp_path):
    field = small((1, 4, 4), classes=2)
    flow = fmkit.Flow(fmkit.sources.Gaussian(), field, fmkit.solvers.Heun(2), event_shape=(1, 4, 4))
    x = points(2, 1, 4, 4)
    log_prob = flow.log_prob(x, torch.tensor([0, 1]), divergence=fmkit.HutchinsonDivergence(1))
    flow.save(tmp_path / "unet.flow")
    again = fmkit.Flow.load(tmp_path / "unet.flow")
    torch.testing.assert_close(again.log_prob(x, torch.tensor([0, 1])), flow.log_prob(x, torch.tensor([0, 1])))
    assert torch.isfinite(log_prob).all()
    field.double()
    x = x.detach().double().requires_grad_()
    total = flow.log_prob(x, torch.tensor([0, 1]), differentiable=True).sum()
    by_x, by_weight = torch.autograd.grad(total, (x, field.middle[0].attention.qkv.weight))
    step = torch.zeros_like(x)
    step[1, 0, 2, 3] = 1e-5
    after, before = (flow.log_prob((x + s).detach(), torch.tensor([0, 1])).sum() for s in (step, -step))
    assert by_x[1, 0, 2, 3].item() == pytest.approx(((after - before) / 2e-5).item(), rel=1e-4)
    assert by_weight.abs().max() > 0


def test_checkpointing_and_memory_format_change_no_number():
    x, t = points(3, 1, 5, 6), torch.tensor([0.1, 0.5, 0.8])
    weights, gradients = small().state_dict(), []
    for more in ({"dropout": 0.2}, {"dropout": 0.2, "checkpointing": True}, {}, {"channels_last": True}):
        field = small(**more).train()
        field.load_state_dict(weights)
        torch.manual_seed(3)
        field(t, x).square().sum().backward()
        gradients.append([p.grad for p in field.parameters()])
    assert field.middle[0].block.first.weight.is_contiguous(memory_format=torch.channels_last)
    for one, other in (gradients[:2], gradients[2:]):
        for a, b in zip(one, other, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4)


@pytest.mark.slow
def test_it_compiles_to_one_graph():
    field, x, t = small(classes=3), points(2, 1, 5, 6), torch.tensor([0.3, 0.6])
    labels = torch.tensor([0, 2])
    graph = torch.compile(field.forward, backend="eager", fullgraph=True)
    torch.testing.assert_close(graph(t, x, labels), field(t, x, labels))


def test_precision():
    field, x = small(), points(2, 1, 5, 6)
    exact = field(0.7, x)
    assert field.double()(0.7, x.double()).dtype == torch.float64
    torch.testing.assert_close(field(0.7, x.double()).float(), exact, rtol=1e-4, atol=1e-4)
    field.float()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        torch.testing.assert_close(field(0.7, x).float(), exact, rtol=0.1, atol=0.1 * exact.abs().max().item())
    near = [field(torch.full((1,), s), x[:1]) for s in (0.999, 0.9995)]  # one number in bfloat16
    assert (near[0] - near[1]).abs().max() > 1e-5
    half = field.bfloat16()(torch.full((2,), 0.7), x.bfloat16())
    assert half.dtype == torch.bfloat16
    torch.testing.assert_close(half.float(), exact, rtol=0.1, atol=0.1 * exact.abs().max().item())


def test_norms_are_not_taken_in_16_bits():
    """Half the channels' scale at 300 with a spread of 1, which bfloat16 sums to nothing."""
    x = (300 + 4 * points(1, 8, 16, 16)).bfloat16()
    want = F.group_norm(x.double(), 2)
    torch.testing.assert_close(Norm(8).bfloat16()(x).double(), want, rtol=0.01, atol=0.02)


def test_a_configuration_names_a_preset_and_what_is_other():
    spec = {"name": "unet", "preset": "cifar10", "channels": 8, "attention": [8]}
    supplied = specs.Context(supplied={"event_shape": (1, 28, 28), "classes": 10})
    field = specs.build(VectorField, spec, "field", supplied)
    attended = [level.stages[0].attention is not None for level in field.down]
    assert attended == [False, False, True, False]
    assert len(field.down[0].stages) == 2
    assert field.first.out_channels == 8
    assert field.condition.label.num_embeddings == 10


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: UNet(64), "event_shape is 64, expected that of images"),
        (lambda: UNet((8, 8)), r"event_shape is \(8, 8\), expected that of images"),
        (lambda: UNet((1, 0, 8)), "a length of event_shape is 0"),
        (lambda: UNet((1, 8, 8), preset="smal"), "there is no preset 'smal'; did you mean 'small'"),
        (
            lambda: UNet((1, 28, 28), attention=(14,)),
            "attention is at 14, and the levels of 28x28 images are at 32, 16",
        ),
        (lambda: UNet((1, 8, 8), channels=0), "channels is 0"),
        (lambda: UNet((1, 8, 8), channel_mult=()), "channel_mult is empty"),
        (lambda: UNet((1, 8, 8), channel_mult=(1, 0)), "an entry of channel_mult is 0"),
        (lambda: UNet((1, 8, 8), channel_mult=2), "channel_mult is 2, expected a list"),
        (lambda: UNet((1, 8, 8), attention=("8",)), "an entry of attention is '8'"),
        (lambda: UNet((1, 8, 8), res_blocks=0), "res_blocks is 0"),
        (lambda: UNet((1, 8, 8), heads=0), "heads is 0"),
        (lambda: UNet((1, 8, 8), heads=5), "32 channels do not divide into 5 heads"),
        (lambda: UNet((1, 8, 8), head_channels=0), "head_channels is 0"),
        (lambda: UNet((1, 8, 8), dropout=1.0), "dropout is 1.0, expected a share"),
        (lambda: UNet((1, 8, 8), cond_channels=1, cond_dropout=-1.0), "cond_dropout is -1.0"),
        (lambda: UNet((1, 8, 8), cond_channels=0), "cond_channels is 0"),
        (lambda: UNet((1, 8, 8), cond_channels=1, classes=2), "cond_channels is given beside classes"),
        (lambda: UNet((1, 8, 8), classes=2, cond_dim=2), "classes and cond_dim are both given"),
        (lambda: small()(0.5, torch.zeros(2, 1, 6, 5)), r"x has events of shape \(1, 6, 5\), this UNet was made for"),
        (lambda: small()(0.5, torch.zeros(2, 1, 5, 6), torch.zeros(2)), "an unconditional UNet"),
        (
            lambda: small(cond_channels=2)(0.5, torch.zeros(2, 1, 5, 6), torch.zeros(2, 1, 5, 6)),
            r"cond is torch.float32 of shape \(2, 1, 5, 6\), expected images \(2, 2, h, w\)",
        ),
        (lambda: small(cond_channels=2)(0.5, torch.zeros(2, 1, 5, 6), "cat"), "cond is 'cat', expected a tensor"),
        (
            lambda: small(classes=2)(0.5, torch.zeros(2, 1, 5, 6), torch.tensor([0, 2])),
            r"labels range over 0 \.\. 2, expected 0 \.\. 1",
        ),
    ],
)
def test_mistakes_are_refused(call, message):
    with pytest.raises(ArgumentError, match=message):
        call()
