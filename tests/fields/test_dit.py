"""The diffusion transformer: published parameter counts, patches, positions, conditions, derivatives."""

import math

import pytest
import torch

import fmkit
from fmkit.errors import ArgumentError
from fmkit.fields import DiT
from fmkit.fields.dit import patchify, place, rotated, unpatchify


def lively(*arguments, **more):
    """A DiT whose gates and last layer are not at zero."""
    torch.manual_seed(0)
    field = DiT(*arguments, **more)
    for parameter in field.parameters():
        if not parameter.any():
            torch.nn.init.normal_(parameter, std=0.3)
    return field.eval()


def small(event=(1, 4, 6), **more):
    return lively(event, **{"preset": "tiny", "width": 16, "heads": 2} | more)


def points(n, *event, dtype=torch.float32):
    return torch.randn(n, *event, generator=torch.Generator().manual_seed(1), dtype=dtype)


@pytest.mark.parametrize(("preset", "millions"), [("S", 32.96), ("B", 130.51), ("L", 458.10), ("XL", 675.13)])
def test_presets_have_the_papers_numbers_of_parameters(preset, millions):
    """DiT-*/2 on 4x32x32 latents with 1000 classes; the paper's last layer also answers a variance."""
    with torch.device("meta"):
        field = DiT((4, 32, 32), preset=preset, classes=1000)
    positions = field.added.numel()  # a parameter that is not trained, there
    assert (sum(p.numel() for p in field.parameters()) + positions) / 1e6 == pytest.approx(millions, rel=1e-3)


@pytest.mark.parametrize(("event", "p"), [((1, 4, 6), 2), ((3, 9, 6), 3), ((2, 5, 5), 1), ((1, 4, 8), 4)])
def test_patches_are_put_together_again(event, p):
    x = points(2, *event)
    tokens = patchify(x, p)
    grid = event[1] // p, event[2] // p
    assert tokens.shape == (2, grid[0] * grid[1], event[0] * p * p)
    assert torch.equal(unpatchify(tokens, p, grid), x)
    # A token is the pixels of one patch, and torch's own unfolding cuts the same ones.
    assert torch.equal(tokens, torch.nn.functional.unfold(x, p, stride=p).transpose(1, 2))


@pytest.mark.parametrize("positions", ["sinusoidal", "rotary"])
def test_an_untrained_field_is_zero_and_its_blocks_are_the_identity(positions):
    field = DiT((1, 8, 8), preset="tiny", positions=positions)
    assert (field(torch.rand(3), points(3, 1, 8, 8)) == 0).all()
    tokens, e = points(3, 16, 64), points(3, 64)
    turn = None if field.angles is None else (field.angles.cos(), field.angles.sin())
    for block in field.blocks:
        assert torch.equal(block(tokens, e, turn, False), tokens)


def test_a_block_is_torchs_encoder_layer_where_nothing_modulates():
    """With gates at 1 and no scale or shift it is torch's pre-norm TransformerEncoderLayer of the same weights."""
    block = DiT((1, 4, 4), preset="tiny", depth=1).blocks[0]
    layer = torch.nn.TransformerEncoderLayer(
        64, 4, 256, 0.0, lambda x: torch.nn.functional.gelu(x, approximate="tanh"), 1e-6, True, True
    )
    pairs = [
        (layer.self_attn.in_proj_weight, block.qkv.weight),
        (layer.self_attn.in_proj_bias, block.qkv.bias),
        (layer.self_attn.out_proj.weight, block.out.weight),
        (layer.self_attn.out_proj.bias, block.out.bias),
        (layer.linear1.weight, block.mlp[0].weight),
        (layer.linear1.bias, block.mlp[0].bias),
        (layer.linear2.weight, block.mlp[2].weight),
        (layer.linear2.bias, block.mlp[2].bias),
    ]
    with torch.no_grad():
        for theirs, ours in pairs:
            theirs.copy_(torch.nn.init.normal_(ours, std=0.2))
        block.modulate.bias.view(6, 64)[0] = 1.0
        block.modulate.bias.view(6, 64)[3] = 1.0
    tokens = points(2, 4, 64)
    for plainly in (False, True):
        torch.testing.assert_close(block(tokens, points(2, 64), None, plainly), layer(tokens), rtol=1e-4, atol=1e-5)


def test_rotary_scores_depend_on_the_distance_alone():
    """q_i . k_j of one q and one k is the same for every pair of patches as far apart, and moves with the distance."""
    angles = place(4, 5, 8).double()
    assert angles.shape == (20, 4)
    q, k = points(2, 8, dtype=torch.float64)
    turned = [rotated(v.expand(20, 8), angles.cos(), angles.sin()) for v in (q, k)]
    scores = (turned[0] @ turned[1].T).reshape(4, 5, 4, 5)
    torch.testing.assert_close(scores[0, 0, 2, 1], scores[1, 3, 3, 4])
    torch.testing.assert_close(scores[0, 0, 0, 0], q @ k)
    assert (scores[0, 0, 0, 0] - scores[0, 0, 1, 0]).abs() > 1e-3
    assert (scores[0, 0, 1, 0] - scores[0, 0, 0, 1]).abs() > 1e-3
    torch.testing.assert_close(turned[0].norm(dim=1), q.norm().expand(20))


@pytest.mark.parametrize("positions", ["sinusoidal", "rotary"])
def test_knows_where_a_patch_is(positions):
    """Without positions, patches that change places would change places in the answer."""
    field, x = small(positions=positions), points(2, 1, 4, 6)
    swapped = x.clone()
    swapped[..., :2, :2], swapped[..., 2:, 4:] = x[..., 2:, 4:], x[..., :2, :2]
    out, other = field(0.3, x), field(0.3, swapped)
    assert (out[..., :2, :2] - other[..., 2:, 4:]).abs().max() > 1e-3


def test_depends_on_time_point_and_condition():
    field, x, t = small(classes=3), points(4, 1, 4, 6), torch.linspace(0.1, 0.9, 4)
    labels = torch.tensor([0, 1, 2, 0])
    base = field(t, x, labels)
    for changed in (field(t * 0.9, x, labels), field(t, x, (labels + 1) % 3), field(t, x)):
        assert ((changed - base).flatten(1).abs().amax(1) > 1e-4).all()
    vectors = small(cond_dim=3)
    assert (vectors(t, x, torch.ones(4, 3)) - vectors(t, x, torch.zeros(4, 3))).abs().max() > 1e-4


@pytest.mark.parametrize("more", [{"positions": "rotary", "qk_norm": True}, {}], ids=["rotary", "sinusoidal"])
def test_derivatives_by_the_point_agree(more):
    field = small((1, 2, 4), classes=2, **more).double()
    x, t = points(2, 1, 2, 4, dtype=torch.float64), torch.tensor([0.3, 0.6], dtype=torch.float64)
    labels, v = torch.tensor([0, 1]), points(2, 1, 2, 4, dtype=torch.float64).flip(0)

    def f(x):
        return field.velocity(t, x, labels)

    h = 1e-6
    slope = (f(x + h * v) - f(x - h * v)) / (2 * h)
    torch.testing.assert_close(torch.func.jvp(f, (x,), (v,))[1], slope, rtol=1e-6, atol=1e-7)
    jacobian = torch.autograd.functional.jacobian(lambda y: f(y).sum(0), x).movedim(3, 0).reshape(2, 8, 8)
    rate = fmkit.ExactDivergence().rate(lambda s, y: f(y), x)(0.0, x)[1]
    torch.testing.assert_close(rate[:, 0], torch.stack([j.trace() for j in jacobian]))


def test_normalised_queries_do_not_grow_with_the_weights():
    field, x = small(qk_norm=True), points(2, 1, 4, 6)
    before = field(0.5, x)
    with torch.no_grad():
        for block in field.blocks:
            block.qkv.weight[:32] *= 100  # queries and keys
            block.qkv.bias[:32] *= 100
    torch.testing.assert_close(field(0.5, x), before, rtol=1e-3, atol=1e-3)


def test_checkpointing_changes_no_gradient_and_files_bring_it_back(tmp_path):
    x, t, gradients = points(3, 1, 4, 6), torch.tensor([0.1, 0.5, 0.8]), []
    for checkpointing in (False, True):
        field = small(dropout=0.2, checkpointing=checkpointing, positions="rotary").train()
        torch.manual_seed(3)
        field(t, x).square().sum().backward()
        gradients.append([p.grad for p in field.parameters()])
    for a, b in zip(*gradients, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)
    flow = fmkit.Flow(fmkit.sources.Gaussian(), field.eval(), fmkit.solvers.Euler(2), event_shape=(1, 4, 6))
    flow.save(tmp_path / "dit.flow")
    again = fmkit.Flow.load(tmp_path / "dit.flow").field
    assert torch.equal(again(t, x), field(t, x))


@pytest.mark.slow
def test_it_compiles_to_one_graph():
    field, x, t = small(classes=3, positions="rotary", qk_norm=True), points(2, 1, 4, 6), torch.tensor([0.3, 0.6])
    labels = torch.tensor([0, 2])
    graph = torch.compile(field.forward, backend="eager", fullgraph=True)
    torch.testing.assert_close(graph(t, x, labels), field(t, x, labels))


def test_precision():
    field, x = small(qk_norm=True, positions="rotary"), points(2, 1, 4, 6)
    exact = field(0.7, x)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        torch.testing.assert_close(field(0.7, x).float(), exact, rtol=0.1, atol=0.1 * exact.abs().max().item())
    assert field.double()(0.7, x.double()).dtype == torch.float64
    half = field.bfloat16()(torch.full((2,), 0.7), x.bfloat16())
    torch.testing.assert_close(half.float(), exact, rtol=0.1, atol=0.1 * exact.abs().max().item())


def test_the_first_steps_reach_every_weight():
    torch.manual_seed(0)
    field, x = DiT((1, 4, 4), preset="tiny", classes=2), points(8, 1, 4, 4)
    labels = torch.arange(8) % 2
    optimizer = torch.optim.Adam(field.parameters(), 1e-2)
    for _ in range(3):
        optimizer.zero_grad()
        (field(torch.rand(8), x, labels) - (2.0 * labels - 1)[:, None, None, None]).square().mean().backward()
        optimizer.step()
    still = [name for name, p in field.named_parameters() if p.grad is None or not p.grad.any()]
    assert still == ["condition.null"]  # every condition was there


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: DiT((8, 8)), r"event_shape is \(8, 8\), expected that of images"),
        (lambda: DiT((1, 9, 6)), "9x6 images do not divide into patches of 2; patch_size can be 1, 3"),
        (lambda: DiT((1, 8, 8), patch_size=0), "patch_size is 0"),
        (lambda: DiT((1, 8, 8), preset="XXL"), "there is no preset 'XXL'; did you mean 'XL'"),
        (lambda: DiT((1, 8, 8), width=0), "width is 0"),
        (lambda: DiT((1, 8, 8), depth=0), "depth is 0"),
        (lambda: DiT((1, 8, 8), heads=5), "192 channels do not divide into 5 heads"),
        (lambda: DiT((1, 8, 8), width=6, heads=1), "sinusoidal positions take a width that is a multiple of 4, and it"),
        (lambda: DiT((1, 8, 8), width=12, heads=2, positions="rotary"), "rotary positions take a length of a head"),
        (lambda: DiT((1, 8, 8), positions="learnt"), "positions is 'learnt', expected 'sinusoidal' or 'rotary'"),
        (lambda: DiT((1, 8, 8), mlp_ratio=0.0), "mlp_ratio is 0.0"),
        (lambda: DiT((1, 8, 8), mlp_ratio=math.inf), "mlp_ratio is inf"),
        (lambda: DiT((1, 8, 8), dropout=1.0), "dropout is 1.0"),
        (lambda: DiT((1, 8, 8), classes=2, cond_dim=2), "classes and cond_dim are both given"),
        (lambda: small()(0.5, torch.zeros(2, 1, 6, 4)), r"x has events of shape \(1, 6, 4\), this DiT was made for"),
        (lambda: small()(0.5, torch.zeros(2, 1, 4, 6), torch.zeros(2)), "an unconditional DiT"),
    ],
)
def test_mistakes_are_refused(call, message):
    with pytest.raises(ArgumentError, match=message):
        call()
