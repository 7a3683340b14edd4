"""Training steps: fmkit's trainer against hand-written loops and the peers', without and with optimal transport."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import Any

import fmkit
from benchmarks.peers import loops
from benchmarks.peers.contest import turns
from benchmarks.peers.loops import Task
from benchmarks.peers.results import Note, Row
from fmkit import registry

SECTION, COUPLED = "training", "coupled"
SEED = 0
BATCHES, STEPS = (256, 512), 200
COUPLED_BATCH, COUPLED_STEPS = 512, 20
FIT_STEPS = 400  # of the semidiscrete potentials, once, before the steps that are timed
AVERAGED: dict[str, Any] = {"ema": loops.EMA, "clip": loops.CLIP}

Loop = Callable[[Task], float]


def contestants(peers: Mapping[str, Any]) -> dict[str, Loop]:
    """The loops without coupling, those of the peers that are here among them."""
    found: dict[str, Loop] = {
        "fmkit": loops.trainer,
        "fmkit, EMA and clipping": partial(loops.trainer, **AVERAGED),
        "bare loop": loops.bare,
        "bare loop, EMA and clipping": partial(loops.bare, averaged=True),
    }
    if compiles():
        found["fmkit, compiled"] = partial(loops.trainer, compile=True)
    for name, loop in (
        ("torchcfm", loops.torchcfm),
        ("flow_matching", loops.flow_matching),
        ("torchebm", loops.torchebm),
    ):
        if name in peers:
            found[name] = partial(loop, peer=peers[name])
    return found


def coupled(peers: Mapping[str, Any]) -> dict[str, Loop]:
    """The loops with optimal transport, and the same without."""
    found: dict[str, Loop] = {"fmkit": loops.trainer, "fmkit, ot": partial(loops.trainer, coupling=_coupling("ot"))}
    if semidiscrete():
        found["fmkit, semidiscrete"] = partial(loops.trainer, coupling=_coupling("semidiscrete", steps=FIT_STEPS))
    if "torchcfm" in peers:
        found["torchcfm"] = partial(loops.torchcfm, peer=peers["torchcfm"])
        matcher = "ExactOptimalTransportConditionalFlowMatcher"
        found["torchcfm, OT-CFM"] = partial(loops.torchcfm, peer=peers["torchcfm"], matcher=matcher)
    return found


def rows(contestants: Mapping[str, Loop], *, repeats: int, steps: int) -> Iterator[Row | Note]:
    """Seconds a step at every batch size."""
    if not compiles():
        yield Note(SECTION, "The compiled step is not measured: this fmkit has no setting `compile`.")
    yield from _rows(SECTION, contestants, BATCHES, repeats, steps)


def coupled_rows(contestants: Mapping[str, Loop], *, repeats: int, steps: int) -> Iterator[Row | Note]:
    """Seconds a step with optimal transport at batch 512."""
    if not semidiscrete():
        yield Note(COUPLED, "The semidiscrete coupling is not measured: this fmkit has none registered.")
    yield from _rows(COUPLED, contestants, (COUPLED_BATCH,), repeats, steps)


def compiles() -> bool:
    """Whether fmkit's settings know of compiled steps."""
    return "compile" in fmkit.Settings.model_fields


def semidiscrete() -> bool:
    """Whether fmkit has a semidiscrete coupling."""
    return any(entry.name == "semidiscrete" for entry in registry.entries("fmkit.couplings"))


def _coupling(name: str, **arguments: Any) -> Any:
    return registry.load("fmkit.couplings", name)(**arguments)


def _rows(
    section: str, contestants: Mapping[str, Loop], batches: tuple[int, ...], repeats: int, steps: int
) -> Iterator[Row]:
    data = fmkit.data.EightGaussians().load(SEED).train.x.float().contiguous()
    for batch in batches:
        task = Task(data, batch, steps)
        work = {name: partial(loop, task) for name, loop in contestants.items()}
        for name, seconds in turns(work, repeats, at_least=0.0).items():
            each = tuple(s / steps for s in seconds)
            yield Row(section, name, "8 Gaussians", data.shape[1], batch, None, each)
