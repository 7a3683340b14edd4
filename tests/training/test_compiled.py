"""A compiled step is the eager one to rounding, and where it cannot be had the run goes on without."""

from contextlib import nullcontext

import pytest
import torch

import fmkit
from fmkit.errors import ArgumentError, TrainingError
from fmkit.objectives import Loss, Objective, VelocityMatching
from fmkit.randomness import stream
from fmkit.training.compiled import CompiledStep


def fit(field=None, objective=None, path=None, cond=None, **settings):
    numbers = dict(steps=6, batch_size=16, lr=1e-2, clip=0.5, ema=0.9, weight_decay=0.1, seed=3, loss_floor=False)
    if field is None:
        with torch.random.fork_rng():
            torch.manual_seed(0)
            field = fmkit.fields.MLP(2, width=8, depth=1, classes=None if cond is None else 3)
    trainer = fmkit.Trainer(
        fmkit.paths.CondOT() if path is None else path,
        field,
        objective,
        settings=fmkit.Settings(**{**numbers, **settings}),
        callbacks=(),
    )
    x = torch.randn(64, 2, generator=stream(0, "test")) * 0.3 + torch.tensor([2.0, -1.0])
    return {k: v.detach().clone() for k, v in trainer.fit(x, cond).field.named_parameters()}


def assert_near(some, others, **tolerance):
    assert some.keys() == others.keys()
    for name in some:
        torch.testing.assert_close(some[name], others[name], msg=name, **tolerance)


CASES = {
    "velocity": {},
    "labels": {"cond": torch.arange(64) % 3},
    "noise": {"objective": fmkit.objectives.NoisePrediction(), "path": fmkit.paths.VariancePreserving()},
    "weighted": {"objective": fmkit.objectives.ScoreMatching(), "path": fmkit.paths.VariancePreserving()},
    "float64": {"precision": "float64"},
}


@pytest.mark.filterwarnings("ignore:no weight has moved")
@pytest.mark.parametrize("case", CASES)
def test_a_compiled_run_is_the_eager_one_to_rounding(traced, case):
    eager = fit(**CASES[case])
    compiled = fit(**CASES[case], compile=True)
    assert_near(compiled, eager, rtol=1e-3, atol=1e-5)
    start = fit(**{**CASES[case], "lr": 1e-30})
    assert all(not torch.allclose(compiled[k], start[k], rtol=0, atol=1e-3) for k in eager if k.endswith("last.weight"))


def test_16_bits_inside_the_graph(traced):
    eager, compiled = fit(precision="bfloat16"), fit(precision="bfloat16", compile=True)
    assert all(v.dtype == torch.float32 for v in compiled.values())
    assert_near(compiled, eager, rtol=0.05, atol=0.02)


def test_dropout_follows_from_the_seed(traced):
    def dropped(seed):
        with torch.random.fork_rng():
            torch.manual_seed(0)
            return fit(fmkit.fields.MLP(2, width=8, depth=1, dropout=0.5), seed=seed, compile=True)

    first, second, other = dropped(3), dropped(3), dropped(4)
    assert all(torch.equal(first[k], second[k]) for k in first)
    assert any(not torch.equal(first[k], other[k]) for k in first)


def test_gradients_are_added_to_those_that_are_there(traced):
    network = fmkit.fields.MLP(2, width=8, depth=1)
    torch.nn.init.normal_(network.last.weight)
    path, objective = fmkit.paths.CondOT(), VelocityMatching()
    batch = tuple(torch.randn(8, 2, generator=stream(k, "test")) for k in (0, 1))
    question = objective.question(network, path, batch, generator=stream(0, "t"))
    step = CompiledStep(network, nullcontext)
    once, _ = step.backward(question)
    first = [p.grad.clone() for p in network.parameters()]
    step.backward(question)
    expected = objective.loss(network, path, batch, generator=stream(0, "t")).value.mean()
    torch.testing.assert_close(once, expected.detach())
    exact = torch.autograd.grad(expected, list(network.parameters()))
    for p, g, e in zip(network.parameters(), first, exact, strict=True):
        torch.testing.assert_close(g, e, rtol=1e-4, atol=1e-6)
        torch.testing.assert_close(p.grad, 2 * g)


class Partly(torch.nn.Module):
    """One layer that answers, one that nothing asks, one that is asked and multiplied by zero."""

    def __init__(self, used=True):
        super().__init__()
        torch.manual_seed(0)
        self.used, self.layer, self.idle, self.void = used, *(torch.nn.Linear(3, 2) for _ in range(3))

    def forward(self, t, x):
        h = torch.cat([x, t[:, None]], 1)
        return self.layer(h) + 0 * self.void(h) if self.used else h[:, :2].detach()


def test_weights_that_nothing_asks_are_left_alone_compiled_or_not(traced):
    """AdamW shrinks by weight decay what has a gradient of zeros, and leaves alone what has none."""
    with torch.random.fork_rng():
        start = {k: p.detach().clone() for k, p in Partly().named_parameters()}
        for compiled in (False, True):
            found = {".".join(k.split(".")[-2:]): v for k, v in fit(Partly(), compile=compiled).items()}
            assert all(torch.equal(found[k], start[k]) for k in start if k.startswith("idle"))
            assert not torch.equal(found["void.weight"], start["void.weight"])
            with pytest.raises(TrainingError, match="the loss of Partly depends on none of its weights"):
                fit(Partly(used=False), compile=compiled)


def test_where_there_is_no_compiler_the_run_says_so_and_is_the_eager_one(monkeypatch):
    def broken(function, **options):
        def call(*arguments):
            raise RuntimeError("no C++ compiler found\nsecond line")

        return call

    monkeypatch.setattr("fmkit.training.compiled.torch.compile", broken)
    with pytest.warns(UserWarning, match=r"cannot be compiled \(RuntimeError: no C\+\+ compiler found\) and is"):
        found = fit(compile=True)
    assert_near(found, fit(), rtol=0, atol=0)


class Branching(torch.nn.Module):
    """A network whose way depends on the values, which no graph holds."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.layer = torch.nn.Linear(3, 2)

    def forward(self, t, x):
        h = self.layer(torch.cat([x, t[:, None]], 1))
        return h if h.detach().sum().item() > 0 else 2 * h


def test_a_network_that_no_graph_holds_is_trained_without(traced):
    with torch.random.fork_rng():
        with pytest.warns(UserWarning, match="cannot be compiled"):
            found = fit(Branching(), compile=True)
        assert_near(found, fit(Branching()), rtol=0, atol=0)


def test_what_cannot_be_compiled_is_said_before_the_first_step():
    class Twofold(Objective):
        def loss(self, network, path, batch, *, ema=None, step=0, generator=None):
            value = (network(torch.zeros(len(batch.x1)), batch.x0) - batch.x1).square().mean(1)
            return Loss(value, torch.zeros(len(value)), {})

        def field(self, network, path, *, source=None, coupling=None):
            return VelocityMatching().field(network, path)

    with pytest.warns(UserWarning, match=r"cannot be compiled \(Twofold has more to ask"):
        fit(objective=Twofold(), compile=True)

    class Halved(VelocityMatching):
        """Another loss, and the question that it had."""

        def loss(self, network, path, batch, **options):
            loss = super().loss(network, path, batch, **options)
            return loss._replace(value=loss.value / 2)

    with pytest.warns(UserWarning, match=r"cannot be compiled \(Halved has more to ask"):
        fit(objective=Halved(), compile=True)
    with pytest.warns(UserWarning, match="bfloat16 needs no scaling"):
        fit(precision="float16", compile=True)
    with pytest.raises(ArgumentError, match="compile"):
        fmkit.Settings(compile="yes")


def test_the_mistake_of_a_network_is_told_as_it_is_without(traced):
    class Short(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = torch.nn.Linear(2, 1)

        def forward(self, t, x):
            return self.layer(x)

    with pytest.raises(ArgumentError, match="Short returned"):
        fit(Short(), compile=True)


@pytest.mark.slow
def test_the_kernels_of_a_real_compiler():
    assert_near(fit(compile=True), fit(), rtol=1e-3, atol=1e-5)
    labels = torch.arange(64) % 3
    assert_near(fit(cond=labels, compile=True), fit(cond=labels), rtol=1e-3, atol=1e-5)
