"""A step waits for nothing: between two lines of metrics no value is looked at, where looking would wait for a GPU.

There need be no GPU for that. Looking at a value is an operation (`_local_scalar_dense`) or a method that hands it to
Python; both are counted, with fmkit told that values cannot be looked at for nothing, as it says of a GPU's.
"""

import collections

import pytest
import torch
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

import fmkit
from fmkit.training import Callback
from fmkit.training.batches import Sampler, _samples
from fmkit.training.step import Stepper

HANDED_OVER = {torch.Tensor.tolist, torch.Tensor.numpy, torch.Tensor.cpu, torch.Tensor.__array__, torch.equal}
LOOKS = {"_local_scalar_dense", "is_nonzero", "equal", "nonzero", "masked_select", "_unique2"}
STEPS = 7


class Operations(TorchDispatchMode):
    def __init__(self, seen):
        super().__init__()
        self.seen = seen

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        name = function.overloadpacket.__name__
        indexed_by_mask = name == "index" and any(i is not None and i.dtype == torch.bool for i in args[1])
        if name in LOOKS or indexed_by_mask:
            self.seen[name] += 1
        return function(*args, **(kwargs or {}))


class Methods(TorchFunctionMode):
    def __init__(self, seen):
        super().__init__()
        self.seen = seen

    def __torch_function__(self, function, types, args=(), kwargs=None):
        if function in HANDED_OVER:
            self.seen[function.__name__] += 1
        return function(*args, **(kwargs or {}))


class Counting(Callback):
    """What was looked at in each step after the first, which looks at the data, up to the last, which is logged."""

    def __init__(self):
        super().__init__()
        self.seen, self.steps = collections.Counter(), 0
        self.modes = [Operations(self.seen), Methods(self.seen)]

    def on_step(self, run):
        if run.step == 1:
            for mode in self.modes:
                mode.__enter__()
        if run.step == STEPS - 1:
            self.leave()
        self.steps += 1

    def leave(self):
        while self.modes:
            self.modes.pop().__exit__(None, None, None)

    def on_end(self, run):
        self.leave()


def looked_at(monkeypatch, field, data, cond=None, path=None, objective=None, **settings):
    """Of a run whose values cannot be looked at for nothing."""
    for module in ("shapes", "objectives.times", "paths.affine", "sources", "fields.embeddings"):
        monkeypatch.setattr(f"fmkit.{module}.readable", lambda x: False)
    # Where a prediction's interval ends is found with a number on the processor, wherever the run is.
    monkeypatch.setattr("fmkit.objectives.regression._inward", lambda end, other, fine: end + 1e-3 * (other - end))
    made = Stepper.__init__

    def on_a_gpu(self, run, *arguments):
        made(self, run, *arguments)
        self._looks = settings.get("skip_nonfinite", 0) > 0

    monkeypatch.setattr(Stepper, "__init__", on_a_gpu)
    counting = Counting()
    numbers = {"steps": STEPS, "batch_size": 4, "log_every": STEPS, "loss_floor": False, "device": "cpu", **settings}
    path = fmkit.paths.CondOT() if path is None else path
    chosen = fmkit.Settings(**numbers)
    fmkit.Trainer(path, field, objective, settings=chosen, callbacks=[counting]).fit(data, cond)
    assert counting.steps == STEPS
    return dict(counting.seen)


IMAGES = torch.randn(6, 1, 8, 8)
LABELS = torch.arange(6) % 3
RUNS = {
    "MLP": lambda: dict(field=fmkit.fields.MLP(2, width=8, depth=1), data=torch.randn(6, 2)),
    "UNet": lambda: dict(
        field=fmkit.fields.UNet((1, 8, 8), preset="tiny", classes=3, cond_dropout=0.2, dropout=0.1, channels_last=True),
        data=IMAGES,
        cond=LABELS,
        precision="bfloat16",
    ),
    "DiT": lambda: dict(
        field=fmkit.fields.DiT((1, 8, 8), preset="tiny", classes=3, cond_dropout=0.2),
        data=IMAGES,
        cond=LABELS,
        checkpoint_activations=True,
        accumulate=2,
    ),
    "noise": lambda: dict(
        field=fmkit.fields.MLP(2, width=8, depth=1),
        data=torch.randn(6, 2),
        path=fmkit.paths.VariancePreserving(),
        objective=fmkit.objectives.NoisePrediction(),
    ),
}
EXTRAS = {
    "plain": dict(),
    "clipped": dict(clip=1.0, weight_decay=0.1, decay="cosine", warmup=3, ema=0.99),
    "no average": dict(ema=0.0),
}


@pytest.mark.parametrize("extra", EXTRAS)
@pytest.mark.parametrize("run", RUNS)
def test_a_step_looks_at_no_value(monkeypatch, run, extra):
    torch.manual_seed(0)
    assert looked_at(monkeypatch, **RUNS[run](), **EXTRAS[extra]) == {}


def test_augmented_data_neither(monkeypatch):
    data = fmkit.data.Data(
        torch.randint(256, (6, 1, 8, 8)).float(),
        transform=fmkit.transforms.Affine(127.5, 127.5),
        augment=lambda x, generator: x + torch.rand(x.shape, generator=generator, device=x.device),
    )
    assert looked_at(monkeypatch, fmkit.fields.UNet((1, 8, 8), preset="tiny"), data) == {}


def test_the_count_sees_what_is_looked_at(monkeypatch):
    """Steps that may be left out have to be: their loss and the norm of their gradient, once each."""
    field = fmkit.fields.MLP(2, width=8, depth=1)
    seen = looked_at(monkeypatch, field, torch.randn(6, 2), skip_nonfinite=1)
    assert seen == {"_local_scalar_dense": 2 * (STEPS - 2)}


def test_indices_are_where_the_data_is_without_being_moved_at_each_step(monkeypatch):
    """A tensor that a GPU fetches from memory that is not pinned is waited for; an epoch's indices are moved once."""
    moves, to = [], torch.Tensor.to
    monkeypatch.setattr(torch.Tensor, "to", lambda x, *a, **k: moves.append(a) or to(x, *a, **k))
    sampler = Sampler(10, 4, 0, device="meta")
    for step in range(4):
        i = sampler.indices(step)
        assert (i.device.type, i.shape) == ("meta", (4,))
    assert moves == [("meta",)] * 2  # two epochs


def test_a_loaded_batch_is_fetched_by_a_gpu_in_its_own_time():
    asked = []

    class Loaded(torch.Tensor):
        def to(self, *arguments, **options):
            asked.append((*arguments, options))
            return self

    batch = torch.zeros(4, 2).as_subclass(Loaded)
    for device, waits in (("cuda", False), ("cpu", True), ("mps", True)):
        _samples([batch, batch], torch.device(device))
        assert asked[-2:] == [(torch.device(device), {"non_blocking": not waits})] * 2
