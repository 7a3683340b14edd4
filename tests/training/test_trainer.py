"""The trainer: what it learns, what it takes, and that a run continues as if nothing had happened."""

import contextlib
import json
import math
import time

import numpy as np
import pytest
import torch

import fmkit
from fmkit.errors import ArgumentError, CombinationError, SavedFileError, TrainingError
from fmkit.randomness import seed_dropout
from fmkit.training import Callback, stream
from tests import processes


def small(**settings):
    values = {"steps": 12, "batch_size": 16, "log_every": 4, "checkpoint_every": 5, "loss_floor": False, **settings}
    return fmkit.Settings(**values)


def trainer(field=None, callbacks=(), path=None, **settings):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        field = field or fmkit.fields.MLP(2, width=8, depth=1, dropout=0.2)
    return fmkit.Trainer(path or fmkit.paths.CondOT(), field, settings=small(**settings), callbacks=callbacks)


def blob(n=64):
    return torch.randn(n, 2, generator=torch.Generator().manual_seed(3)) * 0.3 + torch.tensor([2.0, -1.0])


def weights(module):
    return {k: v.clone() for k, v in module.state_dict().items()}


def assert_same(a, b):
    assert a.keys() == b.keys()
    for key in a:
        assert torch.equal(a[key], b[key]), key


def test_training_recovers_a_gaussian():
    run = fmkit.Trainer(
        fmkit.paths.CondOT(),
        fmkit.fields.MLP(2, width=32, depth=1),
        settings=fmkit.Settings(steps=400, batch_size=128, lr=3e-3, decay="cosine", ema=0.99, log_every=400),
        callbacks=(),
    )
    flow = run.fit(blob(2000))
    x = flow.sample(2000, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(x.mean(0), torch.tensor([2.0, -1.0]), atol=0.05, rtol=0)
    torch.testing.assert_close(x.std(0), torch.tensor([0.3, 0.3]), atol=0.05, rtol=0)


def test_the_bare_loop_and_the_trainer_take_the_same_steps():
    """An independent implementation of the loop, from the documented streams, ends at the very same weights."""
    data = blob()
    settings = dict(steps=7, batch_size=16, lr=1e-2, warmup=3, decay="linear", clip=0.5, ema=0.9, weight_decay=0.1)
    run = trainer(**settings)
    bare = fmkit.fields.MLP(2, width=8, depth=1, dropout=0.2)
    bare.load_state_dict(run.field.state_dict())
    averaged = [p.detach().clone() for p in bare.parameters()]
    flow = run.fit(data)

    path, optimizer = (
        fmkit.paths.CondOT(),
        torch.optim.AdamW(
            [
                {"params": [p for p in bare.parameters() if p.ndim > 1], "weight_decay": 0.1},
                {"params": [p for p in bare.parameters() if p.ndim < 2], "weight_decay": 0.0},
            ],
            fused=True,
        ),
    )
    order = torch.randperm(64, generator=stream(0, "order", 0)), torch.randperm(64, generator=stream(0, "order", 1))
    drawn = torch.randn(32 * 16, 2, generator=stream(0, "source", 0))  # of 32 steps at once
    bare.train()
    for k in range(7):
        rows = torch.cat(order)[16 * k : 16 * (k + 1)]
        for group in optimizer.param_groups:
            group["lr"] = 1e-2 * ((k + 1) / 3 if k < 3 else 1 - (k - 3) / 4)
        torch.manual_seed(fmkit.randomness.stream_seed(0, "dropout", k))
        x1 = data[rows]
        x0 = drawn[16 * k : 16 * (k + 1)]
        t = torch.rand(16, generator=stream(0, "objective", k), dtype=torch.float64)
        w = t.float()[:, None]
        x = w * x1 + (1 - t).float()[:, None] * x0
        loss = ((bare(t.float(), x) - (x1 - x0)) ** 2).mean(1).mean()
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(bare.parameters(), 0.5)
        optimizer.step()
        decay = min(0.9, (1 + k) / (10 + k))
        for a, p in zip(averaged, bare.parameters(), strict=True):
            a.lerp_(p.detach(), 1 - decay)
    for (name, a), b in zip(run.field.named_parameters(), bare.parameters(), strict=True):
        torch.testing.assert_close(a, b, atol=1e-6, rtol=1e-5, msg=name)
    for a, b in zip(flow.field.network.parameters(), averaged, strict=True):
        torch.testing.assert_close(a.data, b, atol=1e-6, rtol=1e-5)
    assert path.interval == (0.0, 1.0)


def test_a_run_depends_on_its_seed_alone_and_leaves_the_global_state():
    torch.manual_seed(1)
    before = torch.get_rng_state()
    first = trainer().fit(blob())
    assert torch.equal(before, torch.get_rng_state())
    torch.manual_seed(2)
    second = trainer().fit(blob())
    assert_same(weights(first.field), weights(second.field))
    other = trainer(seed=1).fit(blob())
    assert not torch.equal(other.field.network.last.weight, first.field.network.last.weight)


class Stop(Callback):
    """Ends a run after some steps, as a crash would."""

    def __init__(self, at):
        super().__init__()
        self.at = at

    def on_step(self, run):
        if run.step == self.at:
            raise RuntimeError("crash")


@pytest.mark.parametrize("at", [1, 5, 6, 11])
def test_resume_is_exact(tmp_path, at):
    held_out = blob(20)
    options = dict(ema=0.9, clip=1.0, warmup=3, decay="cosine", validate_every=3)
    whole = trainer(**options).fit(blob(), validation=held_out, folder=tmp_path / "whole")
    with pytest.raises(RuntimeError, match="crash"):
        trainer(callbacks=[Stop(at)], **options).fit(blob(), validation=held_out, folder=tmp_path / "cut")
    resumed = trainer(**options).fit(blob(), validation=held_out, folder=tmp_path / "cut", resume=True)
    assert_same(weights(whole.field), weights(resumed.field))
    last = "checkpoints/step_00000012.safetensors"
    a, b = (fmkit.saving.read_tensors(tmp_path / name / last) for name in ("whole", "cut"))
    assert_same(a[0], b[0])
    assert a[1] == b[1]
    lines = (tmp_path / "whole/metrics.jsonl").read_text()
    assert lines == (tmp_path / "cut/metrics.jsonl").read_text()
    assert [json.loads(line)["step"] for line in lines.splitlines()] == [3, 4, 6, 8, 9, 12, 12]


def test_resume_with_conditions_augmentation_and_coupling(tmp_path):
    """Everything that draws, draws the same again."""

    def fit(folder, callbacks=(), resume=False):
        with torch.random.fork_rng():
            torch.manual_seed(0)
            field = fmkit.fields.MLP(2, width=8, depth=1, classes=3, cond_dropout=0.3)
        run = fmkit.Trainer(
            fmkit.paths.ICFM(),
            field,
            coupling=fmkit.couplings.OptimalTransport(),
            settings=small(),
            callbacks=callbacks,
        )
        labels = torch.arange(64) % 3
        data = fmkit.data.Data(blob(), labels, augment=lambda x, g: x + 0.1 * torch.randn(x.shape, generator=g))
        return run.fit(data, folder=folder, resume=resume)

    whole = fit(tmp_path / "whole")
    with pytest.raises(RuntimeError, match="crash"):
        fit(tmp_path / "cut", [Stop(8)])
    assert_same(weights(whole.field), weights(fit(tmp_path / "cut", resume=True).field))


class Slow(Callback):
    """Steps long enough for a signal to hit one."""

    def on_step(self, run):
        time.sleep(0.02)


def run_to_its_end(folder, *callbacks):
    torch.manual_seed(0)
    field = fmkit.fields.MLP(2, width=8, depth=1, dropout=0.2)
    settings = fmkit.Settings(steps=60, batch_size=8, log_every=4, checkpoint_every=7)
    run = fmkit.Trainer(fmkit.paths.CondOT(), field, settings=settings, callbacks=callbacks)
    data = torch.randn(40, 2, generator=torch.Generator().manual_seed(3))
    run.fit(data, folder=folder, resume=True).save(folder / "flow.safetensors")


@pytest.mark.xdist_group("processes")
def test_killed_for_real_and_resumed(tmp_path):
    whole, cut, said = tmp_path / "whole", tmp_path / "cut", tmp_path / "said"
    unbroken = processes.start(run_to_its_end, whole, said=said)
    victim = processes.start(run_to_its_end, cut, Slow(), said=said)
    deadline = time.monotonic() + 60
    while not list(cut.glob("checkpoints/step_00000014*")):
        assert victim.is_alive(), said.read_text()
        assert time.monotonic() < deadline
        time.sleep(0.01)
    victim.kill()
    victim.join()
    assert not (cut / "flow.safetensors").exists()
    again = processes.start(run_to_its_end, cut, said=said)
    for process in (unbroken, again):
        process.join(60)
        assert process.exitcode == 0, said.read_text()
    for name in ("metrics.jsonl", "flow.safetensors", "checkpoints/step_00000060.safetensors"):
        assert (whole / name).read_bytes() == (cut / name).read_bytes(), name


def test_a_damaged_checkpoint_gives_way_to_the_one_before(tmp_path):
    whole = trainer().fit(blob(), folder=tmp_path / "whole")
    with pytest.raises(RuntimeError, match="crash"):
        trainer(callbacks=[Stop(11)]).fit(blob(), folder=tmp_path / "cut")
    newest = sorted((tmp_path / "cut/checkpoints").iterdir())[-1]
    newest.write_bytes(newest.read_bytes()[:100])
    with pytest.warns(UserWarning, match="damaged"):
        resumed = trainer().fit(blob(), folder=tmp_path / "cut", resume=True)
    assert_same(weights(whole.field), weights(resumed.field))


def test_a_folder_that_holds_a_run_is_not_overwritten(tmp_path):
    trainer().fit(blob(), folder=tmp_path)
    with pytest.raises(TrainingError, match="holds a run already"):
        trainer().fit(blob(), folder=tmp_path)


def test_resuming_another_run_is_refused(tmp_path):
    trainer().fit(blob(), folder=tmp_path)
    with pytest.raises(SavedFileError, match=r"lr = 0.001, this run has 0.01"):
        trainer(lr=0.01, steps=20).fit(blob(), folder=tmp_path, resume=True)
    with pytest.raises(SavedFileError, match=r"path = condot, this run has vp"):
        trainer(path=fmkit.paths.VariancePreserving(), steps=20).fit(blob(), folder=tmp_path, resume=True)


def test_only_the_last_checkpoints_are_kept(tmp_path):
    trainer(steps=20, checkpoint_every=4, keep=3).fit(blob(), folder=tmp_path)
    names = sorted(p.name for p in (tmp_path / "checkpoints").iterdir())
    assert names == [f"step_000000{k}.safetensors" for k in (12, 16, 20)]


def test_every_sample_is_seen_once_an_epoch():
    sampler = fmkit.training.batches.Sampler(10, 4, seed=0)
    seen = torch.cat([sampler.indices(k) for k in range(5)])
    assert sorted(seen[:10].tolist()) == sorted(seen[10:].tolist()) == list(range(10))
    assert seen[:10].tolist() != seen[10:].tolist()
    alone = fmkit.training.batches.Sampler(10, 4, seed=0)
    assert torch.equal(alone.indices(3), sampler.indices(3))
    tiny = fmkit.training.batches.Sampler(3, 8, seed=0).indices(0)
    assert sorted(tiny[:3].tolist()) == sorted(tiny[3:6].tolist()) == [0, 1, 2]


class Rows(torch.utils.data.Dataset):
    def __init__(self, x, y=None):
        self.x, self.y = x, y

    def __len__(self):
        return len(self.x)

    def __getitem__(self, i):
        return self.x[i] if self.y is None else (self.x[i], self.y[i])


class Stream(torch.utils.data.IterableDataset):
    def __iter__(self):
        return iter(blob())


def test_every_form_of_data_gives_the_same_run():
    """A tensor, an array, a Dataset and a DataLoader of one content are one and the same training run."""
    x = blob()
    reference = weights(trainer().fit(x).field)
    loader = torch.utils.data.DataLoader(Rows(x), batch_size=16, shuffle=True)
    tensor_dataset = torch.utils.data.TensorDataset(x)
    for data in (x.double(), x.numpy(), Rows(x), loader, tensor_dataset, fmkit.data.Data(x)):
        assert_same(weights(trainer().fit(data).field), reference)


def test_conditions_come_along():
    x, y = blob(), torch.arange(64) % 3

    def fit(data, cond=None):
        with torch.random.fork_rng():
            torch.manual_seed(0)
            field = fmkit.fields.MLP(2, width=8, depth=1, classes=3)
        return weights(trainer(field).fit(data, cond).field)

    reference = fit(x, y)
    assert_same(fit(Rows(x, y)), reference)
    assert_same(fit(x.numpy(), y.numpy()), reference)
    with pytest.raises(ArgumentError, match="63 rows for 64 samples"):
        fit(x, y[:-1])
    with pytest.raises(ArgumentError, match="labels range over 0 .. 3, expected 0 .. 2"):
        fit(x, torch.arange(64) % 4)


def test_a_stream_is_read_in_order_and_again():
    flow = trainer(steps=9).fit(Stream())
    assert flow.event_shape == (2,)


def test_pairs_are_kept_together():
    """Paired data (x0, x0 + c) has the constant velocity c: a field that knows only c fits it to nothing."""

    class Constant(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.c = torch.nn.Parameter(torch.zeros(2))

        def forward(self, t, x):
            return self.c.expand_as(x)

    x0 = torch.rand(100, 2)
    shift = torch.tensor([1.0, -2.0])
    flow = trainer(Constant(), steps=400, lr=0.05, decay="linear", ema=0.0).fit((x0, x0 + shift))
    torch.testing.assert_close(flow.transport(x0, 0, 1), x0 + shift, atol=1e-3, rtol=0)
    start = flow.sample(50, generator=torch.Generator().manual_seed(0)) - shift
    distance = torch.cdist(start, x0).min(1).values
    assert distance.max() < 1e-2  # sampling begins at the given x0
    with pytest.raises(CombinationError, match="no density"):
        flow.log_prob(x0)
    mate = fmkit.Trainer(
        fmkit.paths.CondOT(), fmkit.fields.MLP(2), coupling=fmkit.couplings.OptimalTransport(), callbacks=()
    )
    with pytest.raises(CombinationError, match="pair it anew"):
        mate.fit((x0, x0 + shift))
    with pytest.raises(ArgumentError, match="not one|equal ones"):
        trainer().fit((x0[:, :1].clone(), x0))


def test_labels_follow_their_pairs(tmp_path):
    """Labels 0 begin at the left and labels 1 at the right: what is sampled by label begins on its own side."""
    labels = torch.arange(100) % 2
    x0 = torch.rand(100, 2) + 10.0 * labels[:, None]
    network = fmkit.fields.MLP(2, width=8, depth=1, classes=2)
    flow = trainer(network, steps=2).fit(fmkit.data.Data(x0 + 1.0, labels, x0))
    flow.save(tmp_path / "flow")
    for each in (flow, fmkit.Flow.load(tmp_path / "flow")):
        begin = each.trajectory(60, cond=labels[:60], solver=fmkit.solvers.Euler(1)).states[0]
        assert torch.equal((begin[:, 0] > 5).long(), labels[:60])
    with pytest.raises(ArgumentError, match="cond has 99 rows for 100 samples"):
        trainer(network, steps=2).fit(fmkit.data.Data(x0 + 1.0, labels[:99], x0))
    with pytest.raises(ArgumentError, match="x0 has 99 rows for 100 samples; expected one for each"):
        trainer(network, steps=2).fit(fmkit.data.Data(x0 + 1.0, labels, x0[:99]))


def test_pairs_whose_conditions_are_no_labels_say_that_sampling_begins_by_chance(tmp_path):
    x0 = torch.rand(100, 2)
    flow = trainer(fmkit.fields.MLP(2, width=8, depth=1, cond_dim=2), steps=2).fit(fmkit.data.Data(x0 + 1.0, x0, x0))
    flow.save(tmp_path / "flow")
    for each in (flow, fmkit.Flow.load(tmp_path / "flow")):
        with pytest.warns(UserWarning, match="drawn among all pairs"):
            each.sample(3, cond=x0[:3])
        assert each.transport(x0, 0, 1, x0).shape == x0.shape


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (torch.ones(4, 2, dtype=torch.int64), "dtype torch.int64, expected floating point"),
        (torch.ones(0, 2), "expected a non-empty"),
        (torch.ones(4), r"use data\[:, None\]"),
        (torch.tensor([[1.0, math.nan]]), "1 non-finite values, the first in row 0"),
        (np.ones((3, 2), dtype=np.int32), "expected floating point"),
        ([[1.0, 2.0]], "is a list"),
        ((torch.ones(2, 2),) * 3, "a tuple of 3"),
        (Rows(torch.ones(0, 2)), "empty"),
        (Rows([{"x": 1.0}] * 4), "expected tensors"),
    ],
)
def test_bad_data_is_refused(data, message):
    with pytest.raises(ArgumentError, match=message):
        trainer().fit(data)


def test_a_loss_that_is_not_finite_stops_the_run_and_keeps_its_checkpoint(tmp_path):
    class Explodes(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.w, self.calls = torch.nn.Parameter(torch.ones(1)), 0

        def forward(self, t, x):
            self.calls += 1
            return x * self.w * (math.nan if self.calls == 8 else 1.0)

    with pytest.raises(TrainingError, match=r"loss is nan at step 7"):
        trainer(Explodes(), ema=0.0).fit(blob(), folder=tmp_path)
    assert [p.name for p in (tmp_path / "checkpoints").iterdir()] == ["step_00000005.safetensors"]


def test_a_network_that_uses_none_of_its_weights_is_refused():
    class Deaf(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = torch.nn.Parameter(torch.ones(1))

        def forward(self, t, x):
            return -x

    with pytest.raises(TrainingError, match="the loss of Deaf depends on none of its weights"):
        settings = fmkit.Settings(steps=1, batch_size=4)
        fmkit.Trainer(fmkit.paths.CondOT(), Deaf(), settings=settings, callbacks=[]).fit(torch.randn(8, 2))


def test_weights_that_are_not_finite_are_not_kept(tmp_path):
    """A gradient can be infinite where the loss is not: sqrt at 0."""

    class Rooted(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.w = torch.nn.Parameter(torch.zeros(1))

        def forward(self, t, x):
            return x * 0 + torch.sqrt(self.w * 0)

    with pytest.raises(
        TrainingError, match=r"gradient of w is not finite, though the loss is at step 0 \(learning rate"
    ):
        trainer(Rooted(), ema=0.0, steps=1).fit(blob(), folder=tmp_path)
    assert not list((tmp_path / "checkpoints").iterdir())


@pytest.mark.filterwarnings("ignore:no weight has moved")
def test_fine_tuning_begins_with_the_given_flow(tmp_path):
    first = trainer().fit(fmkit.data.Data(blob(), transform=fmkit.transforms.Affine(1.0, 2.0)))
    again = trainer(steps=1, lr=1e-12, ema=0.0).fit(blob(), initial=first)
    x = blob(5)
    torch.testing.assert_close(again.log_prob(x), first.log_prob(x), atol=1e-4, rtol=0)
    more = fmkit.Trainer(first.field.path, first.field.network, settings=small(), callbacks=()).fit(blob())
    assert not torch.equal(more.sample(3), first.sample(3))
    with pytest.raises(ArgumentError, match="does not fit"):
        trainer(fmkit.fields.MLP(2, width=16, depth=1)).fit(blob(), initial=first)


@pytest.mark.parametrize("precision", ["bfloat16", "float64"])
def test_precisions(precision):
    seen = []

    class Spy(fmkit.fields.MLP):
        def forward(self, t, x, cond=None):
            seen.append((t.dtype, self.first(x).dtype))
            return super().forward(t, x, cond)

    flow = trainer(Spy(2, width=8, depth=1), precision=precision).fit(blob())
    wide = torch.float64 if precision == "float64" else torch.float32
    assert {p.dtype for p in flow.field.parameters()} == {wide}
    assert set(seen) == {(wide, torch.float64 if precision == "float64" else torch.bfloat16)}


def test_16_bits_come_as_near_to_the_floor():
    """With weights, averages or updates of 16 bits, steps of so small a rate would be lost in the rounding."""
    points, excess = fmkit.data.EightGaussians().load(0).train.x[:500].float(), []
    for precision in ("float32", "bfloat16"):
        with torch.random.fork_rng():
            torch.manual_seed(0)
            field = fmkit.fields.MLP(2, width=32, depth=1)
        fitted = trainer(field, steps=250, batch_size=64, lr=1e-3, ema=0.98, precision=precision)
        floor = fitted.loss_floor(points)
        before = floor.excess(field).value
        fitted.fit(points)
        excess.append(floor.excess(field).value)
    assert excess[0] < before / 4
    assert excess[1] == pytest.approx(excess[0], rel=0.02)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"stepz": 3}, "stepz: unknown key; did you mean 'steps'"),
        ({"steps": 0}, "steps: got 0"),
        ({"steps": "many"}, "steps: got 'many'"),
        ({"steps": True}, "steps: got True"),
        ({"ema": 1.0}, "ema: got 1.0"),
        ({"lr": math.nan}, "lr: got nan"),
        ({"precision": "half"}, "precision: got 'half'"),
        ({"seed": -1}, "seed: got -1"),
    ],
)
def test_settings_refuse(settings, message):
    with pytest.raises(ArgumentError, match=message):
        fmkit.Settings(**settings)


def test_learning_rate_at_its_corners():
    settings = small(steps=10, warmup=4, lr=1.0, decay="cosine")
    run = fmkit.training.Run(settings, fmkit.fields.MLP(2), {"path": fmkit.paths.CondOT()}, None)
    rates = []
    for run.step in range(10):
        rates.append(run.learning_rate())
    assert rates[:5] == [0.25, 0.5, 0.75, 1.0, 1.0]
    assert rates[7] == pytest.approx(0.5)
    assert rates[9] == pytest.approx((1 + math.cos(math.pi * 5 / 6)) / 2)


def test_tensorboard_gets_every_record(tmp_path):
    event_accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    trainer(callbacks=[fmkit.training.TensorBoard()]).fit(blob(), folder=tmp_path)
    reader = event_accumulator.EventAccumulator(str(tmp_path / "tensorboard"))
    reader.Reload()
    written = [(e.step, e.value) for e in reader.Scalars("loss")]
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [(k, pytest.approx(v, rel=1e-6)) for k, v in written] == [(r["step"], r["loss"]) for r in lines]


def test_a_field_without_weights_and_a_missing_device_are_refused():
    class Nothing(torch.nn.Module):
        def forward(self, t, x):
            return x

    with pytest.raises(TrainingError, match="nothing to train"):
        trainer(Nothing()).fit(blob())
    with pytest.raises(ArgumentError, match="device is 'cuda:99'|device is 'gpu'"):
        trainer(device="gpu").fit(blob())


def test_dropout_is_seeded_on_the_gpu_of_the_run_not_the_current_one(monkeypatch):
    """torch.cuda.manual_seed means the current GPU, which a run on cuda:1 does not make current."""
    current, seeded = ["cuda:0"], {}

    @contextlib.contextmanager
    def device(chosen):
        before, current[0] = current[0], str(chosen)
        yield
        current[0] = before

    monkeypatch.setattr(torch.cuda, "device", device)
    monkeypatch.setattr(torch.cuda, "manual_seed", lambda key: seeded.__setitem__(current[0], key))
    with torch.random.fork_rng(devices=[]):
        seed_dropout(0, 3, torch.device("cuda:1"))
        assert seeded == {"cuda:1": torch.initial_seed()}
    assert current == ["cuda:0"]
