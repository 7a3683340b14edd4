"""Bad inputs: every argument of every public call is made wrong in turn, and each time the answer is a clear error.

A case is a call that works and, for each of its arguments, values that have no meaning there. The law: fmkit raises an
error of its own that says what was wrong; it never answers with a number, and no error of torch, numpy or Python's
arithmetic escapes. Parts come from the registry, so a new one is asked the same.
"""

import inspect
from typing import Any

import numpy as np
import pytest
import torch

import fmkit
from fmkit import couplings, fields, metrics, objectives, paths, randomness, registry, solvers, sources, transforms
from fmkit.parts import parameters_of
from tests.laws.sweep import (
    INF,
    NAN,
    NO_COUNT,
    NO_EVENTS,
    NO_GENERATOR,
    NO_MATCH,
    NO_NUMBER,
    NO_PART,
    NO_POINTS,
    NO_SCALE,
    NO_SPAN,
    NO_TIMES,
    Sweep,
    generator,
    hold,
    spoilt,
    without,
    x,
)

CASES = Sweep()
case = CASES.case

# -- paths ------------------------------------------------------------------------------------------------------------


class Bent(paths.GaussianPath):
    """A path that is not affine."""

    def mean(self, t, x1):
        return t * x1

    def std(self, t, x1):
        return 1 - t


def found(kind):
    """The registered parts of a kind that work on any points, by name."""
    for entry in registry.entries(f"fmkit.{kind}"):
        cls = entry.load()
        if all(p.default is not inspect.Parameter.empty for p in parameters_of(cls).values()):
            yield entry.qualified, cls


AFFINE = {name: cls() for name, cls in found("paths") if issubclass(cls, paths.AffinePath)}
for name, path in [*AFFINE.items(), ("a Gaussian path", Bent())]:
    case(
        f"{name}: sample",
        path.sample,
        lambda: {"t": 0.5, "x0": x(), "x1": x() + 1, "generator": generator()},
        t=NO_TIMES,
        x0=NO_MATCH,
        x1=NO_MATCH,
        generator=NO_GENERATOR,
    )
for name, path in AFFINE.items():
    case(
        f"{name}: convert",
        path.convert,
        lambda latent=path.has_latent: (
            {"t": 0.5, "x": x(), "want": "noise", "velocity": x()} | ({"data": x()} if latent else {})
        ),
        t=NO_TIMES,
        x=NO_MATCH,
        velocity=NO_MATCH,
        want={"None": None, "number": 3, "unknown": "speed", "list": ["data"]},
        speed={"unknown": x()},
    )
    case(
        f"{name}: start",
        path.start,
        lambda: {"source": sources.Gaussian(), "t0": 0.1},
        source=NO_PART,
        t0=without(NO_SCALE, "None") | {"after": 1.5},
    )

# -- sources ----------------------------------------------------------------------------------------------------------

SOURCES = [
    sources.Gaussian(2.0, 1.0),
    sources.Uniform(),
    sources.Scaled(sources.Uniform(), 2.0),
    sources.Empirical(x(9)),
    sources.Convolved(sources.Uniform(), 0.1),
]
for source in SOURCES:
    case(
        f"{type(source).__name__}: sample",
        source.sample,
        lambda: {"shape": (4, 2), "generator": generator(), "dtype": torch.float32, "device": "cpu"},
        shape={
            "None": None,
            "text": "ab",
            "number": 4,
            "parts": (2.5, 2),
            "negative": (-1, 2),
            "zero": (0, 2),
            "none": (),
            "nested": ((2,), 2),
            "True": (True, 2),
            "tensor": x(),
        },
        generator=NO_GENERATOR,
        dtype={"text": "float32", "integers": torch.int64, "complex": torch.complex64, "number": 3},
        device={"text": "a", "number": 1.5},
    )
for source in SOURCES[:3]:  # the others have no density; a point infinitely far away has density 0
    case(f"{type(source).__name__}: log_prob", source.log_prob, lambda: {"x": x()}, x=without(NO_POINTS, "inf"))

# -- couplings --------------------------------------------------------------------------------------------------------

DATA = x() + 1
for name, cls in found("couplings"):
    coupling = cls()
    for _ in coupling.prepare(sources.Gaussian(), DATA, torch.arange(4), seed=0):
        pass
    case(
        f"{name}: pair",
        coupling.pair,
        lambda: {"x0": x(), "x1": DATA, "cond0": None, "cond1": torch.arange(4), "generator": generator()},
        x0=without(NO_MATCH, "double", *(["batch"] if coupling.whole else [])),
        x1=without(NO_MATCH, "double"),
        cond0={"length": torch.arange(3)},
        cond1={"length": torch.arange(3), "text": "ab"},
        generator=NO_GENERATOR,
    )
    case(
        f"{name}: prepare",
        lambda cls=cls, **given: list(cls().prepare(**given)),
        lambda: {"source": sources.Gaussian(), "x1": x(), "cond": torch.arange(4), "seed": 0},
        source=NO_PART,
        x1=NO_POINTS,
        seed={"text": "a", "negative": -1, "half": 0.5},
    )

# -- solvers ----------------------------------------------------------------------------------------------------------


def stochastic(t, x):
    return fields.Stochastic(-x, x, torch.ones(len(x), 1))


NO_FUNCTION = {
    "None": None,
    "text": "a",
    "number": 3.0,
    "of another shape": lambda t, x: x[:, :1],
    "of another batch": lambda t, x: x[:1],
    "of nothing": lambda t, x: None,
    "of a number": lambda t, x: 1.0,
    "of integers": lambda t, x: torch.ones(4, 2, dtype=torch.int64),
    "of nan": lambda t, x: x * NAN,
    "of two": lambda t, x: (x, x),
}
for name, cls in found("solvers"):
    few = {"steps": 4} if "steps" in parameters_of(cls) else {}
    case(
        f"{name}: solve",
        cls(**few).solve,
        lambda f=stochastic if cls.reads == "stochastic" else lambda t, x: -x: {
            "f": f,
            "x0": x(),
            "times": (0.0, 1.0),
            "generator": generator(),
        },
        f=without(NO_FUNCTION, "of nan") if cls.reads == "stochastic" else NO_FUNCTION,
        x0=NO_POINTS | {"no parts": ()},
        times=NO_SPAN,
        generator=NO_GENERATOR,
    )
case("refined", solvers.refined, lambda: {"solver": solvers.RK4()}, solver=NO_PART)
for grid in (
    solvers.UniformGrid(),
    solvers.ShiftedGrid(),
    solvers.HalvedGrid(solvers.UniformGrid()),
    solvers.ListedGrid([0, 0.5, 1]),
):
    case(f"{type(grid).__name__}: fractions", grid.fractions, lambda: {"steps": 2}, steps=NO_COUNT | {"None": None})
    case(
        f"{type(grid).__name__}: times",
        grid.times,
        lambda: {"begin": 0.0, "end": 1.0, "steps": 2},
        begin=NO_NUMBER | {"the end": 1.0},
        end=NO_NUMBER | {"the beginning": 0.0},
        steps=NO_COUNT | {"None": None},
    )


# -- flows ------------------------------------------------------------------------------------------------------------


class Net(torch.nn.Module):
    """A user's network."""

    def __init__(self):
        super().__init__()
        self.layer = torch.nn.Linear(3, 2)

    def forward(self, t, x):
        return self.layer(torch.cat([x, t[:, None].to(x)], 1))


def oracle():
    return fmkit.MixtureOracle(paths.CondOT(), means=[[-1.0, 0.0], [1.0, 0.5]], std=0.5)


def labelled():
    network = fields.MLP(2, width=8, depth=1, classes=3)
    return objectives.VelocityMatching().field(network, paths.CondOT())


def flow(field):
    return fmkit.Flow(sources.Gaussian(), field, solvers.Euler(4), event_shape=2)


NO_SOLVER = {"a name": "euler", "a class": solvers.Euler, "another kind": paths.CondOT(), "steps": 4}
NO_DIVERGENCE = {"a name": "exact", "a class": fmkit.ExactDivergence, "another kind": paths.CondOT()}
NO_GRADIENTS = {"text": "yes", "None": None, "one": 1}
NO_CONDITION = {
    "length": torch.zeros(3, dtype=torch.int64),
    "text": "a",
    "texts": ["a"] * 4,
    "dict": {},
    "number": 7,
    "half": 0.5,
    "negative": torch.tensor([0, 1, -1, 0]),
    "unknown": torch.tensor([0, 1, 3, 0]),
    "no labels": torch.zeros(4),
    "rank": torch.zeros(4, 2, dtype=torch.int64),
    "without values": torch.zeros(4, dtype=torch.int64, device="meta"),
}
HOW = {"solver": NO_SOLVER, "generator": NO_GENERATOR}
GIVEN = {"solver": solvers.Euler(2), "generator": None}
conditional, free = flow(labelled()), flow(oracle())
case(
    "Flow.sample",
    conditional.sample,
    lambda: {"n": 4, "cond": 1, "differentiable": False} | GIVEN,
    n=NO_COUNT | {"None": None},
    cond=NO_CONDITION,
    differentiable=NO_GRADIENTS,
    **HOW,
)
case(
    "Flow.log_prob",
    conditional.log_prob,
    lambda: {"x": x(), "cond": 1, "differentiable": False} | GIVEN,
    x=NO_EVENTS,
    cond=NO_CONDITION,
    differentiable=NO_GRADIENTS,
    divergence=NO_DIVERGENCE,
    **HOW,
)
case(
    "Flow.log_prob_with_error",
    free.log_prob_with_error,
    lambda: {"x": x(), "divergence": fmkit.HutchinsonDivergence(2)} | GIVEN,
    x=NO_EVENTS,
    cond={"unwanted": 1},
    divergence=NO_DIVERGENCE | {"one probe": fmkit.HutchinsonDivergence(1)},
    **HOW,
)
case(
    "Flow.sample_with_log_prob",
    conditional.sample_with_log_prob,
    lambda: {"n": 4, "cond": 1} | GIVEN,
    n=NO_COUNT | {"None": None},
    cond=NO_CONDITION,
    divergence=NO_DIVERGENCE,
    differentiable=NO_GRADIENTS,
    **HOW,
)
case(
    "Flow.transport",
    free.transport,
    lambda: {"x": x(), "t0": 1.0, "t1": 0.0} | GIVEN,
    x=NO_EVENTS,
    t0=NO_SCALE | {"after": 1.5, "equal": 0.0},
    t1=NO_SCALE | {"after": 1.5, "equal": 1.0},
    cond={"unwanted": 1},
    **HOW,
)
case(
    "Flow.trajectory",
    free.trajectory,
    lambda: {"n": 4, "times": (0.0, 0.5, 1.0)} | GIVEN,
    n=NO_COUNT | {"None": None},
    times=without(NO_SPAN, "None", "inf") | {"after": (0.0, 2.0)},
    **HOW,
)
case("Flow.in_data_units", free.in_data_units, lambda: {"y": x()}, y=NO_EVENTS)
case(
    "Flow.rescheduled",
    flow(labelled()).rescheduled,
    lambda: {"path": paths.Cosine()},
    path={"None": None, "a name": "cosine", "latent": paths.ICFM(), "a class": paths.Cosine},
)
case(
    "Flow",
    fmkit.Flow,
    lambda: {"start": sources.Gaussian(), "field": oracle(), "event_shape": 2},
    start=NO_PART,
    field={"None": None, "a name": "mlp", "a path": paths.CondOT(), "a function": lambda t, x: x, "a class": Net},
    solver=NO_SOLVER,
    event_shape={"text": "a", "negative": -1, "half": 2.5, "zero": (2, 0), "True": True, "None": None},
    transform={"a name": "affine", "another kind": paths.CondOT()},
    divergence=NO_DIVERGENCE,
)

# -- oracles ----------------------------------------------------------------------------------------------------------

for name in ("data", "noise", "score", "log_prob", "responsibilities", "forward"):
    case(
        f"MixtureOracle.{name}",
        oracle() if name == "forward" else getattr(oracle(), name),
        lambda: {"t": 0.5, "x": x()},
        t=NO_TIMES,
        x=NO_EVENTS,
    )
case(
    "MixtureOracle.flow_map",
    fmkit.MixtureOracle(paths.CondOT(), means=[[0.0, 0.0]]).flow_map,
    lambda: {"x": x(), "t0": 0.1, "t1": 0.9},
    x=NO_EVENTS,
    t0=NO_TIMES,
    t1=NO_TIMES,
)
case(
    "MixtureOracle.loss_floor",
    oracle().loss_floor,
    lambda: {"objective": objectives.VelocityMatching(), "n": 100, "generator": generator()},
    objective=NO_PART,
    n=NO_COUNT | {"one": 1},
    generator=NO_GENERATOR,
)
case(
    "MixtureOracle.sample",
    oracle().sample,
    lambda: {"n": 4, "generator": generator()},
    n=NO_COUNT | {"None": None},
    generator=NO_GENERATOR,
    dtype={"text": "float32", "integers": torch.int64, "complex": torch.complex64},
)
ONE = [[1.0, 0.0], [0.0, 1.0]]
case(
    "MixtureOracle",
    fmkit.MixtureOracle,
    lambda: {"path": paths.CondOT(), "means": [[-1.0, 0.0], [1.0, 0.0]], "weights": [0.5, 0.5]},
    path=NO_PART,
    means={
        "None": None,
        "text": "a",
        "none": [],
        "ragged": [[1.0], [1.0, 2.0]],
        "nan": [[NAN, 0.0], [1.0, 0.0]],
        "number": 1.0,
        "complex": torch.zeros(2, 2, dtype=torch.complex64),
        "booleans": torch.zeros(2, 2, dtype=torch.bool),
        "three": [[0.0, 0.0]] * 3,
        "without values": torch.zeros(2, 2, device="meta"),
    },
    weights={"negative": [-0.5, 1.5], "zero": [0.0, 1.0], "nan": [NAN, 1.0], "one": [1.0], "rank": [[0.5, 0.5]]},
    std={"negative": -1.0, "nan": NAN, "three": [1.0, 1.0, 1.0], "text": "a", "rank": ONE},
    covariances={
        "one": ONE,
        "not symmetric": [ONE, [[1.0, 0.5], [0.0, 1.0]]],
        "not positive": [ONE, [[1.0, 2.0], [2.0, 1.0]]],
        "nan": [ONE, [[NAN, 0.0], [0.0, 1.0]]],
        "of another size": [[[1.0]], [[1.0]]],
    },
    source={"a name": "gaussian", "not Gaussian": sources.Uniform()},
)

# -- fields and objectives --------------------------------------------------------------------------------------------

TENSORS = without(NO_TIMES, "nan", "inf", "before", "after", "True", "one")
for field in (
    labelled(),
    fields.ClassifierFree(labelled()),
    fields.CFGZeroStar(labelled()),
    fields.Autoguidance(labelled(), labelled()),
    fields.GuidanceInterval(fields.ClassifierFree(labelled()), 0.2, 0.8),
    fields.Rescheduled(labelled(), paths.CondOT(), paths.Cosine()),
):
    case(
        type(field).__name__,
        field,
        lambda: {"t": torch.full((4,), 0.5), "x": x(), "cond": torch.zeros(4, dtype=torch.int64)},
        t=TENSORS,
        x=NO_EVENTS,
        cond=NO_CONDITION,
    )
case(
    "MLP",
    fields.MLP,
    lambda: {"event_shape": 2, "width": 8, "depth": 1, "classes": 3},
    event_shape={"text": "a", "negative": -1, "zero": 0, "half": 2.5, "none": (), "None": None, "True": True},
    width=NO_COUNT,
    depth=NO_COUNT,
    classes=NO_COUNT,
    cond_dim={"both": 3},
    dropout=NO_SCALE | {"one": 1.0},
    cond_dropout=NO_SCALE | {"one": 1.0},
)
IMAGES = {"text": "abc", "one": (8,), "two": (8, 8), "zero": (1, 0, 8), "half": (1, 2.5, 8), "None": None, "number": 8}
OF_NETWORKS = {
    "preset": {"None": None, "number": 3, "unknown": "huge"},
    "classes": NO_COUNT,
    "cond_dim": {"both": 3},
    "cond_dropout": NO_SCALE | {"one": 1.0},
    "dropout": NO_SCALE | {"one": 1.0},
    "heads": NO_COUNT | {"uneven": 7},
    "checkpointing": {"text": "yes", "one": 1, "None": None},
}
NO_COUNTS = {"text": "ab", "number": 2, "zero": (0,), "half": (1.5,), "nan": (NAN,), "True": (True,), "texts": ("1",)}
case(
    "UNet",
    fields.UNet,
    lambda: {"event_shape": (1, 4, 4), "preset": "tiny", "channels": 4, "classes": 3},
    event_shape=IMAGES,
    cond_channels={"both": 3, "zero": 0, "text": "a"},
    channels=NO_COUNT,
    channel_mult=NO_COUNTS | {"none": ()},
    res_blocks=NO_COUNT,
    attention=NO_COUNTS | {"nowhere": (64,)},
    head_channels=NO_COUNT | {"None": None},
    scale_shift={"text": "yes", "None": None},
    resblock_updown={"text": "yes", "None": None},
    channels_last={"text": "yes", "None": None},
    **OF_NETWORKS,
)
case(
    "DiT",
    fields.DiT,
    lambda: {"event_shape": (1, 4, 4), "preset": "tiny", "classes": 3},
    event_shape=IMAGES | {"odd": (1, 5, 4)},
    patch_size=NO_COUNT | {"None": None, "three": 3},
    width=NO_COUNT | {"odd": 7},
    depth=NO_COUNT,
    mlp_ratio=NO_SCALE | {"zero": 0.0},
    positions={"None": None, "number": 3, "unknown": "learnt"},
    qk_norm={"text": "yes", "None": None},
    **OF_NETWORKS,
)
for network in (
    fields.UNet((1, 2, 4), preset="tiny", channels=4, classes=3),
    fields.UNet((1, 2, 4), preset="tiny", channels=4, cond_channels=1),
    fields.DiT((1, 2, 4), preset="tiny", classes=3),
):
    cond = x(d=8).reshape(4, 1, 2, 4) if network.classes is None else torch.zeros(4, dtype=torch.int64)
    case(
        f"{type(network).__name__}, called",
        network,
        lambda cond=cond: {"t": torch.full((4,), 0.5), "x": x(d=8).reshape(4, 1, 2, 4), "cond": cond},
        t=TENSORS,
        x=NO_EVENTS | {"turned": x(d=8).reshape(4, 1, 4, 2)},
        cond=NO_CONDITION | {"of five": x(5, 8).reshape(5, 1, 2, 4), "channels": torch.zeros(4, 2, 2, 4)},
    )
case(
    "PredictionField",
    fields.PredictionField,
    lambda: {"network": Net(), "path": paths.CondOT(), "view": "data", "interval": (0.0, 0.9)},
    network={"None": None, "a name": "mlp", "a path": paths.CondOT()},
    path=NO_PART,
    view={"None": None, "number": 3, "unknown": "speed"},
    interval={"turned": (0.9, 0.1), "equal": (0.5, 0.5), "nan": (0.0, NAN), "outside": (-1.0, 2.0), "one": (0.0,)},
)
for name, cls in found("objectives"):
    case(
        f"{name}: loss",
        cls().loss,
        lambda: {"network": Net(), "path": paths.CondOT(), "batch": (x(), x() + 1), "generator": generator()},
        network={"None": None, "a name": "mlp", "of another shape": lambda t, x: x[:, :1]},
        path=NO_PART,
        batch={
            "None": None,
            "text": "ab",
            "one": (x(),),
            "four": (x(),) * 4,
            "events": (x(), x(d=3)),
            "rows": (x(), x(5)),
            "nan": (x(), spoilt(x(), NAN)),
            "inf": (spoilt(x(), INF), x()),
            "dtypes": (x(), x(dtype=torch.float64)),
            "condition": (x(), x(), torch.zeros(3)),
            "empty": (x()[:0], x()[:0]),
        },
        generator=NO_GENERATOR,
    )
    whole = {"path": paths.CondOT(), "source": sources.Gaussian(), "coupling": couplings.Independent()}
    case(f"{name}: check", cls().check, whole.copy, path=NO_PART, source=NO_PART, coupling=NO_PART)
for name, cls in found("time_samplers"):
    case(
        f"{name}: draw",
        cls().draw,
        lambda: {"uniform": torch.tensor([0.2, 0.9], dtype=torch.float64)},
        uniform={
            "None": None,
            "number": 0.5,
            "list": [0.5],
            "array": np.full(2, 0.5),
            "integers": torch.tensor([0, 1]),
            "booleans": torch.tensor([True]),
            "complex": torch.ones(2, dtype=torch.complex64),
            "nan": torch.tensor([NAN, 0.5]),
            "below": torch.tensor([-0.1, 0.5]),
            "above": torch.tensor([1.1, 0.5]),
            "empty": torch.zeros(0),
            "without values": torch.zeros(2, device="meta"),
        },
    )
    case(
        f"{name}: sample",
        cls().sample,
        lambda: {"n": 4, "interval": (0.0, 1.0), "generator": generator()},
        n=NO_COUNT | {"None": None},
        interval={
            "None": None,
            "text": "ab",
            "turned": (1.0, 0.0),
            "nan": (0.0, NAN),
            "one": (0.0,),
            "inf": (0.0, INF),
        },
        generator=NO_GENERATOR,
        device={"text": "a", "number": 1.5},
        stratified={"text": "yes", "None": None, "one": 1},
    )

# -- what networks answer ---------------------------------------------------------------------------------------------


class Answers(torch.nn.Module):
    """A user's network that answers as it is told."""

    def __init__(self, answer):
        super().__init__()
        self.answer, self.weight = answer, torch.nn.Parameter(torch.ones(1))

    def forward(self, t, x):
        return self.answer(x * self.weight) if callable(self.answer) else self.answer


class Own(fields.VectorField):
    """A user's field that does."""

    def __init__(self, answer: Any):
        super().__init__()
        self.answer = answer

    def forward(self, t, x, cond=None):
        return self.answer(x) if callable(self.answer) else self.answer


NO_ANSWER = {
    "None": None,
    "number": 1.0,
    "list": [[0.0, 0.0]] * 4,
    "array": np.zeros((4, 2)),
    "integers": torch.ones(4, 2, dtype=torch.int64),
    "booleans": torch.ones(4, 2, dtype=torch.bool),
    "complex": torch.ones(4, 2, dtype=torch.complex64),
    "two": lambda x: (x, x),
    "another shape": lambda x: x[:, :1],
    "another rank": lambda x: x[..., None],
    "another batch": lambda x: x[:2],
}


def trained(network):
    settings = fmkit.Settings(steps=1, batch_size=4)
    return fmkit.Trainer(paths.CondOT(), network, settings=settings, callbacks=[]).fit(x())


at = {"t": torch.full((4,), 0.5), "x": x()}
for name, ask in {
    "predict": lambda answer: fields.predict(Answers(answer), **at),
    "a module as a field": lambda answer: fields.ModuleField(Answers(answer))(**at),
    "a field": lambda answer: Own(answer)(**at),
    "a prediction": lambda answer: fields.PredictionField(Own(answer), paths.CondOT(), "data", (0.0, 0.9))(**at),
    "guidance": lambda answer: fields.ClassifierFree(Own(answer))(**at),
    "another schedule": lambda answer: fields.Rescheduled(Answers(answer), paths.CondOT(), paths.Cosine())(**at),
    "a loss": lambda answer: objectives.NoisePrediction().loss(Answers(answer), paths.CondOT(), (x(), x() + 1)),
    "training": lambda answer: trained(Answers(answer)),
    "excess": lambda answer: oracle().loss_excess(objectives.DataPrediction(), Answers(answer), n=100),
    "samples": lambda answer: flow(Own(answer)).sample(4),
    "densities": lambda answer: flow(Own(answer)).log_prob(x()),
}.items():
    case(f"the network's answer to {name}", ask, lambda: {"answer": lambda x: -x}, answer=NO_ANSWER)
case(
    "predict",
    fields.predict,
    lambda: {"network": Net(), "t": 0.5, "x": x(), "cond": None},
    network={"None": None, "a name": "mlp", "a class": Net, "a path": paths.CondOT()},
    t=NO_TIMES,
    x=NO_POINTS,
)
for name, call in {
    "MLP.velocity": labelled().velocity,
    "MixtureOracle.velocity": oracle().velocity,
    "MixtureOracle.stochastic": oracle().stochastic,
    "PredictionField.stochastic": fields.PredictionField(Net(), paths.CondOT(), "noise", (0.1, 0.9), True).stochastic,
}.items():  # these are for solvers, which may try any values: see the law below
    case(
        name,
        call,
        lambda: {"t": 0.5, "x": x()},
        t=without(TENSORS, "one nan", "one before", "one after"),
        x=without(NO_EVENTS, "nan", "inf", "event", "rank"),
    )
for name, field in {
    "an oracle": oracle(),
    "a network": labelled(),
    "guidance": fields.ClassifierFree(labelled()),
    "a prediction": objectives.VelocityMatching().field(labelled(), paths.CondOT()),
    "another schedule": fields.Rescheduled(oracle(), paths.CondOT(), paths.Cosine()),
}.items():
    case(
        f"a flow of {name}",
        fmkit.Flow,
        lambda field=field: {"start": sources.Gaussian(), "field": field, "event_shape": 2},
        event_shape={"longer": 3, "shorter": 1, "none": (), "rank": (1, 2), "column": (2, 1)},
    )

# -- randomness -------------------------------------------------------------------------------------------------------

NO_KEY = without(NO_COUNT, "zero") | {"None": None, "inf": INF}
for name, call in {"stream": randomness.stream, "stream_seed": randomness.stream_seed}.items():
    case(
        name,
        call,
        lambda: {"seed": 10**30, "purpose": "a", "step": 0, "rank": 0},
        seed=NO_KEY,
        step=NO_KEY,
        rank=NO_KEY,
        purpose={"None": None, "number": 3, "bytes": b"a"},
    )
case("stream: device", randomness.stream, lambda: {"seed": 0, "purpose": "a"}, device={"text": "a", "number": 1.5})

# -- divergences, transforms, metrics ---------------------------------------------------------------------------------

for divergence in (fmkit.ExactDivergence(), fmkit.HutchinsonDivergence(2)):
    case(
        type(divergence).__name__,
        lambda divergence=divergence, **given: divergence.rate(**given)(0.5, given["x"]),
        lambda: {"f": lambda t, x: -x, "x": x(), "generator": generator()},
        f=without(NO_FUNCTION, "of integers", "of nan"),
        x=without(NO_POINTS, "without values"),
        generator=NO_GENERATOR,
    )
affine = transforms.Affine(torch.tensor([1.0, 2.0]), 2.0)
case("Affine.forward", affine.forward, lambda: {"x": x()}, x=without(NO_EVENTS, "rank"))
case("Affine.inverse", affine.inverse, lambda: {"y": x()}, y=without(NO_EVENTS, "rank"))
case("Affine.log_det", affine.log_det, lambda: {"x": x()}, x=without(NO_EVENTS, "rank"))
case(
    "Affine.standardise",
    transforms.Affine.standardise,
    lambda: {"x": x(), "floor": 0.1},
    x=NO_POINTS,
    floor=NO_SCALE | {"above one": 1.5},
)
for name, cls in found("metrics"):
    sets = NO_EVENTS | {"one": x(1), "vector": torch.linspace(0, 1, 12)}
    case(
        f"{name}: distance",
        cls(),
        lambda: {"samples": x(12), "reference": x(12) + 0.1, "generator": generator()},
        samples=sets,
        reference=sets,
        generator=NO_GENERATOR,
    )
    few = NO_POINTS | {"three": x(3)}
    case(f"{name}: floor", cls().floor, lambda: {"reference": x(12)}, reference=few, generator=NO_GENERATOR)
MEANS = without(NO_POINTS, "list") | {"length": torch.zeros(3), "rank": torch.zeros(2, 2)}
COVARIANCES = {"None": None, "size": torch.eye(3), "nan": torch.eye(2) * NAN, "negative": -torch.eye(2)}
case(
    "frechet_distance",
    metrics.frechet_distance,
    lambda: {"mean1": torch.zeros(2), "cov1": torch.eye(2), "mean2": torch.ones(2), "cov2": torch.eye(2)},
    mean1=MEANS,
    cov1=COVARIANCES,
    mean2=MEANS,
    cov2=COVARIANCES | {"not symmetric": torch.tensor([[1.0, 0.5], [0.0, 1.0]])},
)
case(
    "sliced_wasserstein",
    metrics.sliced_wasserstein,
    lambda: {"x": x(), "y": x(5), "directions": torch.eye(2)},
    x=NO_EVENTS,
    y=NO_EVENTS,
    directions={"None": None, "size": torch.eye(3), "zero": torch.zeros(2, 2), "long": 2 * torch.eye(2)},
)
images = torch.tensor([[0, 1], [2, 3], [1, 1], [0, 0]])
case(
    "bits_per_dim",
    metrics.bits_per_dim,
    lambda: {"flow": free, "x": images, "levels": 4, "batch_size": 2} | GIVEN,
    flow=NO_PART,
    x=without(NO_EVENTS, "integers") | {"half": images + 0.5, "negative": images - 1, "too large": images + 1},
    levels=NO_COUNT | {"one": 1},
    samples=NO_COUNT,
    divergence=NO_DIVERGENCE,
    batch_size=NO_COUNT,
    **HOW,
)
case(
    "nll",
    metrics.nll,
    lambda: {"flow": free, "x": x(), "batch_size": 2} | GIVEN,
    flow=NO_PART,
    x=NO_EVENTS | {"one": x(1)},
    divergence=NO_DIVERGENCE,
    batch_size=NO_COUNT,
    **HOW,
)
case(
    "path_energy",
    metrics.path_energy,
    lambda: {"flow": free, "x0": x(), "solver": solvers.Euler(2)},
    flow=NO_PART,
    x0=NO_EVENTS,
    cond={"length": torch.zeros(3), "text": "a"},
    solver=NO_SOLVER,
)
case(
    "normalized_path_energy",
    metrics.normalized_path_energy,
    lambda: {"energy": 1.0, "squared_distance": 1.0},
    energy=NO_SCALE,
    squared_distance=NO_SCALE | {"zero": 0.0},
)
case(
    "coupling_diagnostics",
    metrics.coupling_diagnostics,
    lambda: {"coupling": couplings.OptimalTransport(), "x0": x(), "x1": x() + 1, "cond": torch.arange(4) % 2},
    coupling=NO_PART,
    x0=without(NO_MATCH, "double"),
    x1=without(NO_MATCH, "double"),
    cond={
        "length": torch.arange(3),
        "0-d": torch.tensor(1),
        "text": "ab",
        "list": [0, 1, 0, 1],
        "nan": torch.tensor([0.0, NAN, 1.0, 1.0]),
        "complex": torch.zeros(4, dtype=torch.complex64),
        "without values": torch.arange(4).to("meta"),
    },
    generator=NO_GENERATOR,
)


# -- constructors -----------------------------------------------------------------------------------------------------

RANGES = {  # what a parameter's type does not tell: values out of range, by its name
    "sigma_min": {"negative": -0.1, "too large": 1e3},
    "sigma_max": {"negative": -0.1, "too small": 1e-3},
    "beta_min": {"zero": 0.0, "too large": 100.0},
    "beta_max": {"zero": 0.0},
    "sigma": {"negative": -0.1, "inf": INF},
    "n": {"too small": 0.5, "inf": INF},
    "std": {"zero": 0.0, "negative": -1.0, "inf": INF},
    "mean": {"inf": INF},
    "low": {"inf": -INF, "too large": 2.0},
    "high": {"inf": INF, "too small": -2.0},
    "shift": {"zero": 0.0, "negative": -1.0, "inf": INF},
    "a": {"zero": 0.0, "inf": INF},
    "steps": {"zero": 0, "negative": -1},
    "max_steps": {"zero": 0},
    "max_nfe": {"zero": 0},
    "rtol": {"zero": 0.0, "negative": -1.0, "inf": INF},
    "atol": {"zero": 0.0, "negative": -1.0, "inf": INF},
    "lam": {"negative": -1.0, "inf": INF},
}
WRONG_TYPES = {
    float: {"text": "a", "list": [0.5], "nan": NAN, "True": True, "None": None, "a tensor": torch.tensor([0.1, 0.2])},
    int: {"text": "4", "list": [4], "2.5": 2.5, "2.0": 2.0, "True": True, "None": None, "nan": NAN},
    bool: {"text": "yes", "one": 1, "None": None},
    str: {"number": 3, "None": None},
}


def wrong_for(name, annotation):
    """Bad values for a constructor's parameter, from its annotation and its name."""
    if annotation in WRONG_TYPES:
        return WRONG_TYPES[annotation] | RANGES.get(name, {})
    return {"an object": object(), "bytes": b"1"} | RANGES.get(name, {})


for kind in ("paths", "sources", "time_samplers", "time_grids", "solvers"):
    for name, cls in found(kind):
        bad = {p.name: wrong_for(p.name, p.annotation) for p in parameters_of(cls).values()}
        case(f"{kind} {name}", cls, dict, **bad)
for cls, extra in ((sources.Scaled, "scale"), (sources.Convolved, "std")):
    case(
        cls.__name__,
        cls,
        lambda extra=extra: {"source": sources.Uniform(), extra: 1.0},
        source=NO_PART,
        **{extra: NO_SCALE | {"zero": 0.0}},
    )
case("Empirical", sources.Empirical, lambda: {"data": x()}, data=without(NO_POINTS, "list", "array"))
case("HalvedGrid", solvers.HalvedGrid, lambda: {"grid": solvers.UniformGrid()}, grid=NO_PART)
case(
    "ListedGrid",
    solvers.ListedGrid,
    lambda: {"positions": [0, 0.5, 1]},
    positions={
        "None": None,
        "text": "ab",
        "number": 1.0,
        "one": [0.0],
        "none": [],
        "unsorted": [0, 0.7, 0.5, 1],
        "nan": [0, NAN, 1],
        "short": [0, 0.5],
        "texts": ["a", "b"],
        "nested": [[0], [1]],
        "booleans": [False, True],
    },
)


# -- the law ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("call", "good", "bad"), CASES)
def test_each_bad_input_gets_a_clear_error(call, good, bad):
    hold(call, good, bad)


@pytest.mark.parametrize("protocol", ["velocity", "stochastic"])
def test_what_solvers_read_answers_nan_and_no_number_where_a_point_is_none(protocol):
    spoilt_row = spoilt(x(dtype=torch.float64), NAN)
    good, bad = (getattr(oracle(), protocol)(0.5, points) for points in (x(dtype=torch.float64), spoilt_row))
    good, bad = (value[:2] if isinstance(value, tuple) else (value,) for value in (good, bad))
    for a, b in zip(good, bad, strict=True):
        assert b[0].isnan().all()
        assert torch.equal(a[1:], b[1:])


def test_a_network_is_named_with_what_it_returned():
    said = r"Answers returned a tensor of shape \(4, 1\) for x of shape \(4, 2\), expected floating point of that shape"
    with pytest.raises(fmkit.errors.ArgumentError, match=said):
        fields.predict(Answers(lambda x: x[:, :1]), **at)


def test_there_are_many():
    assert CASES.values() > 4000
