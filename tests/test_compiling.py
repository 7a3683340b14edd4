"""Samples of a compiled field are those of the field, to rounding; without a compiler they are those of the field."""

import copy

import pytest
import torch

import fmkit
from fmkit.compiling import CompiledProtocol
from fmkit.errors import ArgumentError
from fmkit.fields import ClassifierFree
from fmkit.randomness import stream


def flow_of(objective=None, path=None, dtype=torch.float32, classes=3, solver=None):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = fmkit.fields.MLP(2, width=8, depth=1, classes=classes)
        for parameter in network.parameters():
            torch.nn.init.normal_(parameter, std=0.3)
    objective = fmkit.objectives.VelocityMatching() if objective is None else objective
    path = fmkit.paths.CondOT() if path is None else path
    known = {"source": fmkit.sources.Gaussian(), "coupling": fmkit.couplings.Independent()}
    field = objective.field(network, path, **known)
    start = path.start(fmkit.sources.Gaussian(), field.interval[0])
    return fmkit.Flow(start, field, fmkit.solvers.RK4(5) if solver is None else solver, 2).to(dtype)


def sampled(flow, n=6, cond=None, **options):
    return flow.sample(n, cond, generator=stream(0, "test"), **options)


NOISE = dict(objective=fmkit.objectives.NoisePrediction(), path=fmkit.paths.VariancePreserving())
FLOWS = {
    "RK4": {},
    "AB3": {"solver": fmkit.solvers.AB3(6)},
    "dopri5": {"solver": fmkit.solvers.Dopri5(1e-3, 1e-3)},
    "scipy": {"solver": fmkit.solvers.DOP853(1e-3, 1e-3)},
    "noise": NOISE,
    "SDE": {**NOISE, "solver": fmkit.solvers.EulerMaruyama(5)},
    "float64": {"dtype": torch.float64},
}


@pytest.mark.parametrize("name", FLOWS)
def test_samples_are_the_same_to_rounding(traced, name):
    flow = flow_of(**FLOWS[name])
    for cond in (None, torch.arange(6) % 3):
        plain, compiled = (sampled(flow, cond=cond, compile=compile) for compile in (False, True))
        assert compiled.dtype == plain.dtype
        torch.testing.assert_close(compiled, plain, rtol=1e-4, atol=1e-4)
    assert traced


def test_guidance_too(traced):
    flow = flow_of()
    guided = fmkit.Flow(flow.start, ClassifierFree(flow.field, 2.0), flow.solver, 2)
    plain, compiled = (sampled(guided, cond=1, compile=compile) for compile in (False, True))
    torch.testing.assert_close(compiled, plain, rtol=1e-4, atol=1e-4)
    assert not torch.allclose(plain, sampled(flow, cond=1))


def test_it_is_compiled_once_for_a_shape(traced):
    flow = flow_of()
    first = sampled(flow, compile=True)
    n = len(traced)
    assert n == 1
    assert torch.equal(sampled(flow, compile=True), first)
    flow.transport(first, compile=True)
    assert len(traced) == n


def test_the_weights_are_those_of_now_and_a_copy_has_its_own(traced):
    flow = flow_of()
    before = sampled(flow, compile=True)
    twin = copy.deepcopy(flow)
    with torch.no_grad():
        for p in flow.parameters():
            p.mul_(0.5)
    torch.testing.assert_close(sampled(flow, compile=True), sampled(flow), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(sampled(twin, compile=True), before, rtol=1e-4, atol=1e-4)
    assert not torch.allclose(sampled(flow, compile=True), before, atol=1e-3)
    flow.field = twin.field
    torch.testing.assert_close(sampled(flow, compile=True), before, rtol=1e-4, atol=1e-4)


def test_it_is_not_saved(traced, tmp_path):
    flow = flow_of()
    first = sampled(flow, compile=True)
    flow.save(tmp_path / "a.flow")
    torch.testing.assert_close(sampled(fmkit.Flow.load(tmp_path / "a.flow")), first, rtol=1e-4, atol=1e-4)


def test_without_a_compiler_the_field_is_called_as_it_is(monkeypatch):
    def broken(function, **options):
        def call(*arguments):
            raise RuntimeError("no C++ compiler found\nsecond line")

        return call

    monkeypatch.setattr("fmkit.compiling.torch.compile", broken)
    flow = flow_of()
    said = (
        r"PredictionField.velocity cannot be compiled \(RuntimeError: no C\+\+ compiler found\) and is called as it is"
    )
    with pytest.warns(UserWarning, match=said) as told:
        assert torch.equal(sampled(flow, compile=True), sampled(flow))
    assert len(told) == 1
    assert torch.equal(sampled(flow, compile=True), sampled(flow))  # and it is said once


def test_a_mistake_is_told_as_it_is_without(traced):
    flow = flow_of(classes=None)
    with pytest.raises(ArgumentError, match="unconditional"):
        sampled(flow, cond=1)
    sampled(flow, compile=True)
    with pytest.raises(ArgumentError, match="unconditional"):
        sampled(flow, cond=1, compile=True)
    n = len(traced)
    sampled(flow, compile=True)  # and it is compiled as before
    assert not flow._compiled["velocity", False].failed
    assert len(traced) == n
    for differentiable in (True, "adjoint"):
        with pytest.raises(ArgumentError, match="compile is True and differentiable"):
            sampled(flow, compile=True, differentiable=differentiable)
    with pytest.raises(ArgumentError, match="compile is 1, expected True or False"):
        sampled(flow, compile=1)


# Graphs that are recorded and replayed. No GPU is needed: what matters is that a replay writes where the last one did.


@pytest.fixture
def replayed(monkeypatch):
    """torch.compile whose functions answer in the same memory every time, as replays do; the modes it was asked for."""
    modes, steps, places = [], [], {}

    def compile(function, *, fullgraph, mode=None):
        modes.append(mode)

        def replay(*arguments):
            answer = function(*arguments)
            parts = answer if isinstance(answer, tuple) else (answer,)
            kept = places.setdefault((function, parts[0].shape), [torch.empty_like(part) for part in parts])
            for place, part in zip(kept, parts, strict=True):
                place.copy_(part)
            return type(answer)(*kept) if isinstance(answer, tuple) else kept[0]

        return replay

    monkeypatch.setattr("torch.compile", compile)
    monkeypatch.setattr("torch.compiler.cudagraph_mark_step_begin", lambda: steps.append(1))
    monkeypatch.setattr("fmkit.flow.recorded", lambda compile, device: compile == "graphs")
    return modes, steps


@pytest.mark.parametrize("name", FLOWS)
def test_answers_outlive_the_next_replay(replayed, name):
    """Adams-Bashforth keeps the slopes of steps before, and Runge-Kutta those of its stages."""
    flow = flow_of(**FLOWS[name])
    assert torch.equal(sampled(flow, compile="graphs"), sampled(flow))
    modes, steps = replayed
    assert modes == ["reduce-overhead"]
    assert len(steps) >= 5


@pytest.mark.parametrize("name", ["RK4", "AB3"])
def test_without_the_copy_they_would_not(replayed, name, monkeypatch):
    monkeypatch.setattr("fmkit.compiling._copied", lambda answer: answer)
    flow = flow_of(**FLOWS[name])
    assert not torch.allclose(sampled(flow, compile="graphs"), sampled(flow), atol=1e-3)


def test_the_times_of_a_recording_lie_where_the_points_do(replayed, monkeypatch):
    flow, given = flow_of(), []
    inner = CompiledProtocol._answer
    monkeypatch.setattr(CompiledProtocol, "_answer", lambda self, *a: given.append(a) or inner(self, *a))
    sampled(flow, compile="graphs")
    assert given
    for t, x, _ in given:
        assert isinstance(t, torch.Tensor)
        assert (t.device, t.dtype, t.shape) == (x.device, torch.float64, ())


def test_each_of_the_two_is_compiled_by_itself_and_copied_with_its_flow(replayed):
    flow = flow_of()
    for compile in (True, "graphs", "graphs", True):
        sampled(flow, compile=compile)
    assert replayed[0] == [None, "reduce-overhead"]
    twin = copy.deepcopy(flow)
    assert replayed[0][2:] == [None, "reduce-overhead"]
    assert [graph.graphs for graph in twin._compiled.values()] == [False, True]


def test_without_a_gpu_it_is_compiled_only(traced):
    flow = flow_of()
    with pytest.warns(UserWarning, match="CUDA graphs need a GPU, and the field is on cpu"):
        samples = sampled(flow, compile="graphs")
    torch.testing.assert_close(samples, sampled(flow), rtol=1e-4, atol=1e-4)
    assert len(traced) == 1
    with pytest.raises(ArgumentError, match="compile is 'graph'"):
        sampled(flow, compile="graph")


@pytest.mark.slow
def test_the_kernels_of_a_real_compiler():
    flow = flow_of()
    for n in (6, 9, 17):  # the second size is compiled for any
        torch.testing.assert_close(sampled(flow, n, compile=True), sampled(flow, n), rtol=1e-4, atol=1e-4)
