"""`fmkit sample`."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fmkit import runs
from fmkit.errors import ArgumentError, ConfigError

SUFFIXES = (".npz", ".npy", ".csv", ".png")
SAMPLES = 64


def sample_run(
    run: Path,
    n: int | None,
    out: Path,
    solver: str | None,
    steps: int | None,
    label: int | None,
    conditions: Path | None,
    guidance: str | None,
    guidance_interval: str | None,
    seed: int,
    log_prob: bool,
    compile: bool = False,
    device: str = "auto",
) -> dict[str, Any]:
    """Draw samples and write them; what was done."""
    from fmkit.randomness import stream

    if out.suffix not in SUFFIXES:
        raise ConfigError(f"got {out.name!r}, expected a name ending in {', '.join(SUFFIXES)}", "--out")
    if log_prob and out.suffix not in (".npz", ".csv"):
        raise ConfigError(f"log-densities go into .npz or .csv files, not {out.suffix}", "--log-prob")
    if not out.parent.is_dir():
        raise ConfigError(f"there is no folder {out.parent}", "--out")
    cond: Any = label if conditions is None else _conditions(conditions, label, n)
    if n is None:
        n = SAMPLES if conditions is None else len(cond)
    flow = runs.load_flow(run, device)
    chosen = chosen_solver(flow, solver, steps)
    flow = guided(flow, guidance, guidance_interval)
    generator = stream(seed, "samples", device=flow.device)
    facts: dict[str, Any] = {"n": n, "out": str(out), "seed": seed}
    # One integration for the NFE and the samples both; a log-density needs its own, augmented one.
    solution = flow.trajectory(n, cond=cond, solver=chosen, generator=generator, compile=compile)
    x = flow.in_data_units(solution.final)
    facts["nfe"] = solution.nfe.double().mean().item()
    densities = flow.log_prob(x, cond=cond) if log_prob else None
    _write(x, densities, out)
    return facts


def _conditions(file: Path, label: int | None, n: int | None) -> Any:
    """The conditions in a file, one for each of n samples where n is said."""
    import numpy as np
    import torch

    if label is not None:
        raise ConfigError("a label is a condition too; give one of the two", "--conditions")
    try:
        array = np.load(file, allow_pickle=False)
    except (ValueError, EOFError) as error:
        raise ConfigError(f"{file} is no .npy file of numbers: {error}", "--conditions") from None
    if not isinstance(array, np.ndarray) or array.dtype.kind not in "iuf" or array.ndim == 0 or not len(array):
        got = f"{array.dtype} of shape {array.shape}" if isinstance(array, np.ndarray) else "several arrays"
        raise ConfigError(f"{file} holds {got}, expected numbers, a row for each sample", "--conditions")
    if n is not None and n != len(array):
        raise ConfigError(f"{file} holds {len(array)} conditions for {n} samples, not one for each", "--conditions")
    cond = torch.from_numpy(array.astype(array.dtype.newbyteorder("=")))
    return cond.to(torch.get_default_dtype()) if cond.is_floating_point() else cond.long()


def chosen_solver(flow: Any, name: str | None, steps: int | None) -> Any:
    """The solver of that name or description, with so many steps; None for the flow's own."""
    from fmkit.config import parsed
    from fmkit.solvers import Solver
    from fmkit.specs import build, describe

    if name is None and steps is None:
        return None
    spec = describe(flow.solver) if name is None else parsed(name, "--solver")
    if steps is not None and isinstance(spec, str | Mapping):
        spec = {**({"name": spec} if isinstance(spec, str) else spec), "steps": steps}
    return build(Solver, spec, "--solver")


def guided(flow: Any, guidance: str | None, within: str | None) -> Any:
    """The flow with its field guided; `guidance` is a scale or a field's description without the field."""
    from fmkit import Flow
    from fmkit.config import parsed
    from fmkit.fields import GuidanceInterval, VectorField
    from fmkit.specs import build

    if guidance is None:
        if within is not None:
            raise ConfigError("there is no guidance to limit; add --guidance", "--guidance-interval")
        return flow
    spec = parsed(guidance, "--guidance")
    if isinstance(spec, int | float) and not isinstance(spec, bool):
        spec = {"name": "classifier-free", "scale": float(spec)}
    spec = {"name": spec} if isinstance(spec, str) else spec
    if not isinstance(spec, Mapping):
        raise ConfigError(f"got {guidance!r}, expected a number, or as {{name: cfg-zero-star, scale: 2}}", "--guidance")
    spec = dict(spec)
    if isinstance(spec.get("worse"), str):
        spec["worse"] = _worse(flow, Path(spec["worse"]))
    field = build(VectorField, {**spec, "field": flow.field}, "--guidance")
    if within is not None:
        try:
            start, end = (float(part) for part in within.split(","))
        except ValueError:
            raise ConfigError(f"got {within!r}, expected two times, as 0.2,0.8", "--guidance-interval") from None
        try:
            field = GuidanceInterval(field, start, end)
        except ArgumentError as error:
            raise ConfigError(str(error), "--guidance-interval") from error
    return Flow(flow.start, field, flow.solver, flow.event_shape, flow.transform, flow.divergence)


def _worse(flow: Any, run: Path) -> Any:
    """The field of another run, which must live in the same units."""
    import torch

    other = runs.load_flow(run).to(flow.device)
    probe = torch.stack([torch.zeros(flow.event_shape), torch.ones(flow.event_shape)]).to(flow.device, flow.dtype)
    if other.event_shape != flow.event_shape or not torch.allclose(
        flow.in_data_units(probe), other.in_data_units(probe.to(other.dtype)).to(flow.dtype)
    ):
        raise ConfigError(f"{run} was trained in other units than this run; train both on the same data", "--guidance")
    return other.field


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
