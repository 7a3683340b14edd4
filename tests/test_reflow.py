"""Pairs from a trained flow: where it carries fresh noise, and straighter ways from them."""

import pytest
import torch

import fmkit
from fmkit.errors import ArgumentError, CombinationError, SavedFileError
from fmkit.metrics.energy import path_energy
from fmkit.randomness import stream
from fmkit.reflow import Reflow
from fmkit.sources import Gaussian, Uniform

SHIFT = fmkit.transforms.Affine(torch.tensor([1.0, -2.0]), torch.tensor([2.0, 4.0]))


def curved(tmp_path, transform=None):
    """The exact flow between noise and two far Gaussians, in a file."""
    field = fmkit.MixtureOracle(fmkit.paths.CondOT(), means=[[-2.0, 0.0], [2.0, 0.0]], std=0.3)
    flow = fmkit.Flow(Gaussian(), field, fmkit.solvers.RK4(40), event_shape=2, transform=transform)
    flow.save(tmp_path / "flow.safetensors")
    return flow


def made(coupling, n=40, cond=None, seed=0):
    list(coupling.prepare(Gaussian(), torch.zeros(n, 2), cond, seed=seed))
    return coupling


@pytest.mark.parametrize("transform", [None, SHIFT], ids=["as it is", "in units"])
@pytest.mark.parametrize("place", [".", "flow.safetensors"])
def test_the_pairs_are_the_ends_of_the_flows_ways(place, transform, tmp_path):
    flow = curved(tmp_path, transform)
    x0, x1, rows = made(Reflow(str(tmp_path / place))).own
    assert torch.equal(x0, Gaussian().sample((40, 2), generator=stream(0, "reflow", 0)))
    torch.testing.assert_close(x1, flow.transport(x0, 0.0, 1.0))
    assert rows.tolist() == list(range(40))


@pytest.mark.parametrize(("pairs", "rows"), [(None, [0, 1, 2]), (5, [0, 1, 2, 0, 1]), (2, [0, 1])])
def test_as_many_as_asked_for(pairs, rows, tmp_path):
    curved(tmp_path)
    own = made(Reflow(str(tmp_path), pairs), n=3).own
    assert len(own[0]) == len(own[1]) == len(rows)
    assert own[2].tolist() == rows


def test_conditions_are_the_datas(tmp_path):
    torch.manual_seed(0)
    network = fmkit.fields.MLP(2, width=8, depth=1, classes=3)
    flow = fmkit.Flow(Gaussian(), network, fmkit.solvers.Euler(4), event_shape=2)
    flow.save(tmp_path / "flow.safetensors")
    labels = torch.tensor([2, 0, 1])
    x0, x1, rows = made(Reflow(str(tmp_path), 7), n=3, cond=labels).own
    torch.testing.assert_close(x1, flow.transport(x0, 0.0, 1.0, labels[rows]))


def test_cut_off_and_taken_up_again(tmp_path, monkeypatch):
    monkeypatch.setattr("fmkit.reflow.BATCH", 16)
    curved(tmp_path)
    whole, broken, again = made(Reflow(str(tmp_path))), Reflow(str(tmp_path)), Reflow(str(tmp_path))
    progress = broken.prepare(Gaussian(), torch.zeros(40, 2), seed=0)
    assert next(progress) == 16 / 40
    assert broken.own is None
    again.load_state_dict(broken.state_dict())
    assert list(again.prepare(Gaussian(), torch.zeros(40, 2), seed=0)) == [32 / 40, 1.0]
    for one, other in zip(again.own, whole.own, strict=True):
        assert torch.equal(one, other)


def test_training_takes_them_and_a_resumed_run_too(tmp_path):
    curved(tmp_path, SHIFT)
    x = torch.randn(48, 2, generator=torch.Generator().manual_seed(0)) * 3
    seen = []

    class Watch(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = torch.nn.Linear(2, 2)

        def forward(self, t, x):
            seen.append((t.clone(), x.clone()))
            return self.layer(x)

    def trainer(steps):
        torch.manual_seed(0)
        settings = fmkit.Settings(steps=steps, batch_size=16, checkpoint_every=2)
        return fmkit.Trainer(
            fmkit.paths.CondOT(), Watch(), coupling=Reflow(str(tmp_path)), settings=settings, callbacks=()
        )

    data = fmkit.data.Data(x, transform=SHIFT)
    whole = trainer(6).fit(data)
    x0, x1, _ = made(Reflow(str(tmp_path)), n=48).own
    t, at = seen[0]
    order = fmkit.training.batches.Sampler(48, 16, 0).indices(0)
    torch.testing.assert_close(at, (1 - t[:, None]) * x0[order] + t[:, None] * SHIFT(x1[order]))
    trainer(4).fit(data, folder=tmp_path / "run")
    again = trainer(6).fit(data, folder=tmp_path / "run", resume=True)
    for a, b in zip(whole.field.parameters(), again.field.parameters(), strict=True):
        assert torch.equal(a, b)


def test_the_next_round_is_straighter(tmp_path):
    first = curved(tmp_path)
    torch.manual_seed(0)
    trainer = fmkit.Trainer(
        fmkit.paths.CondOT(),
        fmkit.fields.MLP(2, width=48, depth=2),
        coupling=Reflow(str(tmp_path)),
        settings=fmkit.Settings(steps=600, batch_size=256, lr=3e-3, decay="cosine", ema=0.99),
        callbacks=(),
    )
    second = trainer.fit(torch.zeros(4000, 2))
    x0 = torch.randn(500, 2, generator=torch.Generator().manual_seed(1))
    bent, straight = (path_energy(flow, x0).curvature.mean().item() for flow in (first, second))
    assert straight < 0.2 * bent
    x = second.sample(2000, generator=torch.Generator().manual_seed(2))
    assert x[:, 0].abs().mean().item() == pytest.approx(2.0, abs=0.1)


def test_what_does_not_fit_is_refused(tmp_path):
    curved(tmp_path)
    with pytest.raises(SavedFileError, match="there is no file"):
        made(Reflow(str(tmp_path / "elsewhere")))
    with pytest.raises(CombinationError, match=r"has events of shape \(2,\), the data \(3,\)"):
        list(Reflow(str(tmp_path)).prepare(Gaussian(), torch.zeros(4, 3), seed=0))
    with pytest.raises(CombinationError, match="begins with .*gaussian.*, this run with .*uniform"):
        list(Reflow(str(tmp_path)).prepare(Uniform(), torch.zeros(4, 2), seed=0))
    with pytest.raises(CombinationError, match="are not made yet"):
        Reflow(str(tmp_path)).pair(torch.zeros(4, 2), torch.zeros(4, 2))
    with pytest.raises(ArgumentError, match="conditions are a list"):
        list(Reflow(str(tmp_path)).prepare(Gaussian(), torch.zeros(2, 2), ["a", "b"], seed=0))
    with pytest.raises(ArgumentError, match="pairs is 0"):
        Reflow(str(tmp_path), pairs=0)
