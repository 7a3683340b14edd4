"""`fmkit sample`."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fmkit import runs
from fmkit.errors import ArgumentError, ConfigError

SUFFIXES = (".npz", ".npy", ".csv", ".png")


def sample_run(
    run: Path,
    n: int,
    out: Path,
    solver: str | None,
    steps: int | None,
    label: int | None,
    guidance: float | None,
    seed: int,
    log_prob: bool,
    compile: bool = False,
) -> dict[str, Any]:
    """Draw samples and write them; what was done."""
    from fmkit.randomness import stream

    if out.suffix not in SUFFIXES:
        raise ConfigError(f"got {out.name!r}, expected a name ending in {', '.join(SUFFIXES)}", "--out")
    if log_prob and out.suffix not in (".npz", ".csv"):
        raise ConfigError(f"log-densities go into .npz or .csv files, not {out.suffix}", "--log-prob")
    if not out.parent.is_dir():
        raise ConfigError(f"there is no folder {out.parent}", "--out")
    flow = runs.load_flow(run)
    chosen = _solver(flow, solver, steps)
    if guidance is not None:
        flow = _guided(flow, guidance)
    generator = stream(seed, "samples", device=flow.device)
    facts: dict[str, Any] = {"n": n, "out": str(out), "seed": seed}
    # One integration for the NFE and the samples both; a log-density needs its own, augmented one.
    solution = flow.trajectory(n, cond=label, solver=chosen, generator=generator, compile=compile)
    x = flow.in_data_units(solution.final)
    facts["nfe"] = solution.nfe.double().mean().item()
    densities = flow.log_prob(x, cond=label) if log_prob else None
    _write(x, densities, out)
    return facts


def _solver(flow: Any, name: str | None, steps: int | None) -> Any:
    from fmkit.config import parsed
    from fmkit.solvers import Solver
    from fmkit.specs import build, describe

    if name is None and steps is None:
        return None
    spec = describe(flow.solver) if name is None else parsed(name, "--solver")
    if steps is not None and isinstance(spec, str | Mapping):
        spec = {**({"name": spec} if isinstance(spec, str) else spec), "steps": steps}
    return build(Solver, spec, "--solver")


def _guided(flow: Any, scale: float) -> Any:
    from fmkit import Flow
    from fmkit.fields import ClassifierFree

    field = ClassifierFree(flow.field, scale)
    return Flow(flow.start, field, flow.solver, flow.event_shape, flow.transform, flow.divergence)


def _write(x: Any, densities: Any, out: Path) -> None:
    import io

    import numpy as np

    from fmkit import plots
    from fmkit.saving import write_bytes

    if out.suffix == ".png":
        plots.samples(x, out)
        return
    array, buffer = x.detach().cpu().numpy(), io.BytesIO()
    extra = {} if densities is None else {"log_prob": densities.cpu().numpy()}
    if out.suffix == ".npz":
        np.savez(buffer, samples=array, **extra)
    elif out.suffix == ".npy":
        np.save(buffer, array)
    else:
        flat = array.reshape(len(array), -1)
        names = [f"x{i}" for i in range(flat.shape[1])] + list(extra)
        if not flat.shape[1]:
            raise ArgumentError("there is nothing to write")
        table = np.column_stack([flat, *extra.values()])
        np.savetxt(buffer, table, delimiter=",", header=",".join(names), comments="", fmt="%.9g")
    write_bytes(out, buffer.getvalue())
