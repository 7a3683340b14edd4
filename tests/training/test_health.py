"""Steps that are not finite are named, or left out without a trace; gradients' norms and losses over time are right."""

import json
import math

import pytest
import torch

import fmkit
from fmkit.data import Data
from fmkit.errors import ArgumentError, TrainingError
from fmkit.objectives import VelocityMatching
from fmkit.paths import CondOT, VarianceExploding
from fmkit.randomness import stream
from fmkit.training import Settings, Single
from fmkit.training.callbacks import Callback
from fmkit.training.health import BINS, KEPT, LossOverTime
from fmkit.training.step import Stepper

X = torch.randn(64, 2, generator=torch.Generator().manual_seed(0))


class Sick(torch.nn.Module):
    """Linear, and not finite for samples of certain calls: in its answer, or in its gradient alone."""

    def __init__(self, calls=(), gradients=(), rows=slice(None)):
        super().__init__()
        torch.manual_seed(0)
        self.a, self.b = torch.nn.Linear(3, 2), torch.nn.Linear(3, 2)
        self.calls, self.gradients, self.rows, self.called = calls, gradients, rows, 0

    def forward(self, t, x):
        tx = torch.cat([t[:, None].to(x.dtype), x], 1)
        answer = self.a(tx) + self.b(tx)
        if self.training:
            if self.called in self.calls:
                answer = answer.clone()
                answer[self.rows] = math.nan
            if self.called in self.gradients:
                answer = answer + torch.sqrt(self.b.weight.sum() * 0)  # its slope is 0 times infinity
            self.called += 1
        return answer


def train(network, data=X, folder=None, callbacks=(), resume=False, path=None, **settings):
    given = {"steps": 8, "batch_size": 8, "log_every": 4, "checkpoint_every": 2, "ema": 0.9, "loss_floor": False}
    settings = Settings(**(given | settings))
    trainer = fmkit.Trainer(path or CondOT(), network, settings=settings, callbacks=list(callbacks))
    return trainer.fit(data, folder=folder, resume=resume)


def lines(folder):
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def kept(folder):
    return sorted(path.name for path in (folder / "checkpoints").iterdir())


class Weights(Callback):
    """The weights, their average and the optimizer's state after each step."""

    def __init__(self):
        super().__init__()
        self.seen = []

    def on_step(self, run):
        state = [v.clone() for p in run.parameters for v in run.optimizer.state.get(p, {}).values()]
        self.seen.append([p.detach().clone() for p in (*run.network.parameters(), *run.ema.parameters())] + state)


def test_a_loss_that_is_not_finite_is_named_with_its_samples(tmp_path):
    rows = [2, 5]
    with pytest.raises(TrainingError) as caught:
        train(Sick(calls=[5], rows=rows), folder=tmp_path, seed=3)
    said = str(caught.value)
    assert "the loss is nan at step 5 (learning rate 0.001, seed 3), for samples " in said
    named = said.split("samples ")[1].split(" of the data")[0]
    order = fmkit.training.batches.Sampler(len(X), 8, 3).indices(5)
    assert [int(i) for i in named.split(", ")] == order[rows].tolist()
    assert kept(tmp_path) == ["step_00000002.safetensors", "step_00000004.safetensors"]


def test_samples_are_found_in_the_users_own_units_and_pairs(monkeypatch):
    """Under a coupling the samples of a batch stand in another order; a transform gives them other values."""
    x = 1000 * X + 5
    trainer = fmkit.Trainer(
        CondOT(),
        Sick(calls=[3], rows=[1]),
        coupling=fmkit.couplings.OptimalTransport(),
        settings=Settings(steps=8, batch_size=8, loss_floor=False),
        callbacks=[],
    )
    seen = batches_of_steps(monkeypatch)
    with pytest.raises(TrainingError) as caught:
        trainer.fit(Data(x, transform=fmkit.transforms.Affine(5.0, 1000.0)))
    index = int(str(caught.value).split("for sample ")[1].split(" of")[0])
    torch.testing.assert_close((x[index] - 5) / 1000, seen[3].x1[1])


def batches_of_steps(monkeypatch):
    """What each step was trained on, as it goes on."""
    seen, take = [], Stepper.take
    monkeypatch.setattr(Stepper, "take", lambda self, batch: seen.append(batch) or take(self, batch))
    return seen


def test_rows_are_named_where_the_data_is_not_in_memory_or_is_augmented():
    dataset = torch.utils.data.TensorDataset(X)
    with pytest.raises(TrainingError, match=r"for row 4 of its batch; the last"):
        train(Sick(calls=[1], rows=[4]), dataset)
    with pytest.raises(TrainingError, match=r"for rows 0, 1, 2, 3, 4, \.\.\. of its batch; the last"):
        train(Sick(calls=[1], rows=slice(0, 6)), Data(X, augment=lambda x, generator: x + 1))
    with pytest.raises(TrainingError, match=r"for all 8 samples of its batch; the last"):
        train(Sick(calls=[1]))


@pytest.mark.parametrize("clip", [None, 1.0])
def test_a_gradient_that_is_not_finite_never_reaches_a_checkpoint(tmp_path, clip):
    """Where nothing measures it, it has spoilt the weights when they are to be kept, and that is seen."""
    with pytest.raises(TrainingError, match=r"not finite|no longer finite|the loss is nan"):
        train(Sick(gradients=[4]), folder=tmp_path, clip=clip)
    assert kept(tmp_path) == ["step_00000002.safetensors", "step_00000004.safetensors"]
    for name in kept(tmp_path):
        tensors, _ = fmkit.saving.read_tensors(tmp_path / "checkpoints" / name)
        assert all(torch.isfinite(v).all() for v in tensors.values())


def test_a_gradient_that_is_not_finite_is_named_with_its_weights():
    with pytest.raises(TrainingError) as caught:
        train(Sick(gradients=[2]), clip=1.0)
    said = str(caught.value)
    assert "the gradient of b.weight is not finite, though the loss is at step 2 (" in said


@pytest.mark.parametrize("kind", ["calls", "gradients"])
def test_a_skipped_step_moves_nothing_and_is_counted(tmp_path, kind):
    watched, folder = Weights(), tmp_path / "run"
    train(Sick(**{kind: [3, 5]}), folder=folder, callbacks=[watched], skip_nonfinite=2)
    assert len(watched.seen) == 8
    for before, after, skipped in zip(watched.seen, watched.seen[1:], [0, 0, 1, 0, 1, 0, 0], strict=False):
        assert all(torch.equal(a, b) for a, b in zip(before, after, strict=True)) == bool(skipped)
    assert [(r["step"], r["skipped"]) for r in lines(folder) if "skipped" in r] == [(4, 1), (6, 2)]
    logged = [r for r in lines(folder) if "loss" in r]
    assert all(math.isfinite(value) for r in logged for value in r.values())
    assert [r["step"] for r in logged] == [4, 8]
    assert "gradient_norm" not in logged[0]  # that step was skipped
    with pytest.raises(TrainingError, match=r"at step 5 .*; 1 steps have been skipped already; the last checkpoint"):
        train(Sick(**{kind: [3, 5]}), skip_nonfinite=1)


def test_a_skipped_step_counts_in_no_mean(tmp_path):
    """Four steps, the last of them skipped: the mean loss is that of three."""
    train(Sick(calls=[3]), folder=tmp_path / "one", steps=4, skip_nonfinite=1)
    train(Sick(), folder=tmp_path / "two", steps=3, log_every=3)
    one, two = lines(tmp_path / "one")[-1], lines(tmp_path / "two")[-1]
    two.pop("gradient_norm")
    assert {**one, "step": 3} == two


def test_an_interval_of_skipped_steps_has_no_loss(tmp_path):
    train(Sick(calls=[4, 5, 6, 7]), folder=tmp_path, skip_nonfinite=9)
    assert lines(tmp_path)[-1] == {"step": 8, "lr": 1e-3}


def test_skipping_is_resumed_to_the_same_bits(tmp_path):
    folder, sick = tmp_path / "run", {"calls": [1], "gradients": [5]}
    train(Sick(**sick), folder=folder, skip_nonfinite=2, keep=9)
    whole = (folder / "metrics.jsonl").read_bytes()
    last = (folder / "checkpoints" / "step_00000008.safetensors").read_bytes()
    for name in kept(folder)[1:]:  # what is left is in the middle of an interval of the log
        (folder / "checkpoints" / name).unlink()
    again = Sick(**sick)
    again.called = 2
    train(again, folder=folder, skip_nonfinite=2, keep=9, resume=True)
    assert (folder / "metrics.jsonl").read_bytes() == whole
    assert (folder / "checkpoints" / "step_00000008.safetensors").read_bytes() == last
    with pytest.raises(TrainingError, match="2 steps have been skipped already"):
        train(Sick(calls=[0]), folder=folder, skip_nonfinite=2, steps=9, resume=True)


@pytest.mark.filterwarnings("ignore:the data have mean")
def test_compiled_steps_are_skipped_too(traced, tmp_path):
    """A trace is made once; what spoils a step must be in its samples."""
    x = X.clone()
    x[7] = 3e38  # finite, and its loss is not
    settings = {"folder": tmp_path, "batch_size": 64, "compile": True}
    with pytest.raises(TrainingError, match=r"the loss is (inf|nan) at step 0 .* for sample 7 of the data"):
        train(fmkit.fields.MLP(2, width=8, depth=1), x, **settings)
    assert traced


@pytest.mark.parametrize(("clip", "decay"), [(None, 0.0), (0.5, 0.1)])
def test_the_gradients_norm_is_that_of_the_last_step_before_clipping(tmp_path, clip, decay):
    class Norm(Callback):
        def on_step(self, run):
            grads = [p.grad.double().flatten() for p in run.network.parameters()]
            norms.append(torch.cat(grads).norm().item())

    norms = []
    train(Sick(), folder=tmp_path, callbacks=[Norm()], clip=clip, weight_decay=decay)
    if clip is None:  # else the gradients are scaled, perhaps in place, when the callback sees them
        assert [r["gradient_norm"] for r in lines(tmp_path)] == pytest.approx([norms[3], norms[7]], rel=1e-5)
    else:
        assert lines(tmp_path)[0]["gradient_norm"] > clip
        free = tmp_path / "free"
        train(Sick(), folder=free, steps=1)
        train(Sick(), folder=tmp_path / "tight", steps=1, clip=1e-3)
        assert lines(free)[0]["gradient_norm"] == lines(tmp_path / "tight")[0]["gradient_norm"]


@pytest.mark.filterwarnings("ignore:no weight has moved")
@pytest.mark.parametrize("path", [CondOT(), VarianceExploding()], ids=lambda p: type(p).__name__)
def test_losses_over_time_are_those_of_the_samples(monkeypatch, tmp_path, path):
    """Against the definition, from the same draws; the untrained field answers 0 throughout at this learning rate."""

    class Zero(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.w = torch.nn.Parameter(torch.zeros(()))

        def forward(self, t, x):
            return self.w * x

    trainer = fmkit.Trainer(path, Zero(), settings=Settings(steps=4, batch_size=8, log_every=4, lr=1e-30), callbacks=[])
    seen = batches_of_steps(monkeypatch)
    trainer.fit(X, folder=tmp_path)
    begin, end = path.interval
    sums, counts = [0.0] * BINS, [0] * BINS
    for step, batch in enumerate(seen):
        out = VelocityMatching().loss(Zero(), path, batch, generator=stream(0, "objective", step))
        for t, value in zip(out.t.tolist(), out.value.tolist(), strict=True):
            k = min(BINS - 1, math.floor(BINS * (t - begin) / (end - begin)))
            sums[k], counts[k] = sums[k] + value, counts[k] + 1
    (line,) = [r for r in lines(tmp_path) if "loss" in r]
    expected = {f"loss_t{k}": s / n for k, (s, n) in enumerate(zip(sums, counts, strict=True)) if n}
    assert {k: v for k, v in line.items() if k.startswith("loss_t")} == pytest.approx(expected)
    assert sum(sums) / sum(counts) == pytest.approx(line["loss"])


def test_accumulated_and_compiled_steps_have_the_same_losses_over_time(tmp_path, traced):
    def figures(name, **settings):
        torch.manual_seed(0)
        train(fmkit.fields.MLP(2, width=8, depth=1), folder=tmp_path / name, **settings)
        return [v for r in lines(tmp_path / name) for k, v in sorted(r.items()) if k.startswith("loss_t")]

    plain = figures("plain")
    assert len(plain) >= 10
    assert figures("accumulated", accumulate=4) == pytest.approx(plain, rel=1e-4)
    assert figures("compiled", compile=True) == pytest.approx(plain, rel=1e-4)
    assert traced


def test_sums_over_time_do_not_depend_on_when_they_are_made():
    generator = torch.Generator().manual_seed(0)
    shares = [(torch.rand(7, generator=generator), torch.rand(7, generator=generator)) for _ in range(2 * KEPT + 9)]
    often, seldom = (LossOverTime((0.0, 1.0), Single(), torch.device("cpu")) for _ in range(2))
    for k, (t, value) in enumerate(shares):
        for over_time in (often, seldom):
            over_time.begin()
            over_time.keep(t, value)
        if k % 5 == 0:
            often.settle()
        if k == 50:
            again = LossOverTime((0.0, 1.0), Single(), torch.device("cpu"))
            again.load(often.state())
            often = again
    assert often.take() == seldom.take()
    assert often.take() == {}


def test_the_sums_of_another_number_of_processes_are_taken_up_by_the_first():
    class Second(Single):
        rank, ranks = 1, 3

    every = torch.arange(2.0 * 2 * BINS, dtype=torch.float64).reshape(2, 2, BINS)
    first, second = (LossOverTime((0.0, 1.0), engine, torch.device("cpu")) for engine in (Single(), Second()))
    for over_time in (first, second):
        over_time.load(every)
    sums = every.sum(0)
    assert first.take() == {f"loss_t{k}": float(sums[0, k] / sums[1, k]) for k in range(BINS)}
    assert second.take() == {}


@pytest.mark.parametrize("wrong", [-1, 1.5, True, None])
def test_a_wrong_number_of_skips_is_refused(wrong):
    with pytest.raises(ArgumentError, match="skip_nonfinite: got"):
        Settings(skip_nonfinite=wrong)
