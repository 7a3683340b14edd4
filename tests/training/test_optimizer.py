"""The lean update is torch's AdamW and torch's clipping, bit for bit where nothing is clipped."""

import copy

import pytest
import torch
from torch import nn

from fmkit.training.optimizer import FusedAdamW


def network(seed=0):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(3, 16), nn.SiLU(), nn.Linear(16, 2))


def groups(net, decay):
    matrices, rest = ([p for p in net.parameters() if (p.ndim > 1) is wide] for wide in (True, False))
    return [{"params": matrices, "weight_decay": decay}, {"params": rest, "weight_decay": 0.0}]


def both(decay=0.1, betas=(0.8, 0.95)):
    ours, theirs = network(), network()
    lean = FusedAdamW(groups(ours, decay), 1e-2, betas)
    return ours, lean, theirs, torch.optim.AdamW(groups(theirs, decay), lr=1e-2, betas=betas, fused=True)


def gradients(net, step, scale=1.0):
    generator = torch.Generator().manual_seed(step)
    for parameter in net.parameters():
        parameter.grad = scale * torch.randn(parameter.shape, generator=generator, dtype=parameter.dtype)


def test_it_is_torchs_step_bit_for_bit():
    ours, lean, theirs, full = both()
    for step in range(6):
        for net in (ours, theirs):
            gradients(net, step)
        for optimizer in (lean, full):
            for group in optimizer.param_groups:
                group["lr"] = 1e-2 / (step + 1)
        lean.update()
        full.step()
    for a, b in zip(ours.parameters(), theirs.parameters(), strict=True):
        assert torch.equal(a, b)
        for key in ("step", "exp_avg", "exp_avg_sq"):
            assert torch.equal(lean.state[a][key], full.state[b][key])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("scale", [1e-3, 1.0, 100.0], ids=["below", "near", "far above"])
def test_it_clips_as_torch_does(scale, dtype):
    ours, lean, theirs, full = both()
    ours.to(dtype), theirs.to(dtype)
    for step in range(6):
        for net in (ours, theirs):
            gradients(net, step, scale)
        lean.update(clip=2.0)
        torch.nn.utils.clip_grad_norm_(theirs.parameters(), 2.0)
        full.step()
        for a, b in zip(ours.parameters(), theirs.parameters(), strict=True):
            torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-7)
            if scale < 0.01:
                assert torch.equal(a, b)


def test_a_weight_without_a_gradient_is_left_alone_as_torch_leaves_it():
    ours, lean, theirs, full = both()
    for step in range(8):
        for net in (ours, theirs):
            gradients(net, step)
            if step % 3 == 1 or step == 0:
                net[0].bias.grad = None
        before = ours[0].bias.detach().clone()
        lean.update()
        full.step()
        assert torch.equal(before, ours[0].bias) is (step % 3 == 1 or step == 0)
    for a, b in zip(ours.parameters(), theirs.parameters(), strict=True):
        assert torch.equal(a, b)


def test_it_goes_on_from_a_state_that_was_loaded():
    ours, lean, _, _ = both()
    for step in range(3):
        gradients(ours, step)
        lean.update(clip=1.0)
    later = copy.deepcopy(ours)
    other = FusedAdamW(groups(later, 0.1), 1e-2, (0.8, 0.95))
    other.load_state_dict(copy.deepcopy(lean.state_dict()))
    for step in range(3, 6):
        for net, optimizer in ((ours, lean), (later, other)):
            gradients(net, step)
            optimizer.update(clip=1.0)
    for a, b in zip(ours.parameters(), later.parameters(), strict=True):
        assert torch.equal(a, b)


def test_weights_of_two_precisions_are_stepped_too():
    net = network()
    net[2].double()
    twin = copy.deepcopy(net)
    parameters, others = list(net.parameters()), list(twin.parameters())
    lean = FusedAdamW([{"params": parameters}], 1e-2, (0.9, 0.99))
    full = torch.optim.AdamW(others, lr=1e-2, betas=(0.9, 0.99), fused=True)
    for step in range(4):
        for p, q in zip(parameters, others, strict=True):
            p.grad = torch.full_like(p, step + 1.0)
            q.grad = torch.full_like(q, step + 1.0)
        lean.update(clip=1e9)
        full.step()
    assert all(torch.equal(p, q) for p, q in zip(parameters, others, strict=True))
