"""`fmkit train` and `fmkit evaluate`."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fmkit import recipes, runs
from fmkit.arguments import device_of
from fmkit.config import Job, Layers, assemble, load_layers, parsed
from fmkit.errors import ArgumentError, ConfigError

if TYPE_CHECKING:
    from rich.table import Table

    from fmkit.divergence import Divergence

# What the report at the end of a training of images takes at most, some hundred steps' worth of work.
BRIEF = {"samples": 200, "scored": 64, "draws": 1024}
SUFFIXES = {".yaml", ".yml", ".json"}


def layers_of(target: str, words: Sequence[str]) -> tuple[Layers, str, Path | None]:
    """The configuration of a recipe, a file or a run folder; a name for it; the folder if it was one."""
    path = Path(target)
    if path.is_dir():
        return runs.configuration(path, words), path.name, path
    if path.suffix in SUFFIXES or path.is_file():
        return load_layers({}, path, words), path.stem, None
    if "/" in target and not path.exists() and target.count("/") > 1:
        raise ConfigError(f"there is no file or run folder {target}", "train")
    return load_layers(recipes.find(target), None, words, target), target.rpartition("/")[2], None


def train_run(target: str, words: Sequence[str], out: Path | None, resume: bool, quiet: bool) -> dict[str, Any]:
    """Train, save, score and draw; the figures."""
    layers, name, folder = layers_of(target, words)
    if folder is not None:  # a run's own folder means: go on with it
        out, resume = out or folder, True
    job = assemble(layers, progress=not quiet)
    with job.engine:
        return _train(job, name, out, resume, quiet)


def _train(job: Job, name: str, out: Path | None, resume: bool, quiet: bool) -> dict[str, Any]:
    """The figures, in the process that writes; nothing in others."""
    engine = job.engine
    chosen = out or (runs.newest(name) if resume else runs.choose(name)) if engine.main else ""
    folder = Path(engine.tell(str(chosen)))
    if not engine.main:
        job.trainer.fit(job.split.train, validation=_validation(job), folder=folder, resume=resume, engine=engine)
        return {}
    if not resume and (folder / runs.LINES).exists():
        raise ConfigError(f"{folder} holds a run already; add --resume, or choose another folder", "--out")
    runs.begin(folder, job, sys.argv[1:])
    if not quiet:
        print(f"training {name} in {folder}", file=sys.stderr)
    flow = job.trainer.fit(job.split.train, validation=_validation(job), folder=folder, resume=resume, engine=engine)
    flow.save(folder / runs.FLOW)
    from fmkit.evaluation import is_costly

    brief = is_costly(job.split)
    if brief and not quiet:
        print(f"scoring {BRIEF['scored']} held-out samples; of all: fmkit evaluate {folder}", file=sys.stderr)
    figures = report(flow, job, folder, brief=brief)
    if not quiet:
        show(figures)
        print(f"\nthe run is in {folder}", file=sys.stderr)
    return figures


def evaluate_run(
    folder: Path, seed: int, dequantizations: int, divergence: str | None, quiet: bool = True, device: str = "auto"
) -> dict[str, Any]:
    """Score an earlier run again, and draw its pictures anew."""
    from fmkit.divergence import Divergence
    from fmkit.evaluation import is_costly
    from fmkit.specs import build

    place = device_of(device)
    job = assemble(runs.configuration(folder, [f"trainer.device={place}"]), progress=False)
    chosen = None if divergence is None else build(Divergence, parsed(divergence, "--divergence"), "--divergence")
    if is_costly(job.split) and not quiet:
        print("likelihoods, samples and their ways: this may take minutes", file=sys.stderr)
    return report(runs.load_flow(folder, place), job, folder, seed, dequantizations, chosen)


def report(
    flow: Any,
    job: Job,
    folder: Path,
    seed: int | None = None,
    dequantizations: int = 1,
    divergence: Divergence | None = None,
    brief: bool = False,
) -> dict[str, Any]:
    """The figures and the pictures of a trained flow, in its run folder; `brief` ones are of fewer samples."""
    from fmkit.baselines import are_quick, bits_per_dim
    from fmkit.evaluation import above_floor, evaluate, pairing

    seed = job.config.seed if seed is None else seed
    less = {"samples": BRIEF["samples"], "scored": BRIEF["scored"]} if brief else {}
    figures = evaluate(flow, job.split, seed, dequantizations=dequantizations, divergence=divergence, **less)
    if are_quick(job.split) and job.split.levels is not None and figures["bits_per_dim"] is not None:
        figures["baselines_bits_per_dim"] = bits_per_dim(job.split, job.config.seed)
    job.trainer.recall(folder)
    figures |= pairing(job.trainer, job.split.train, seed)
    figures |= above_floor(flow, job.trainer, job.split.train, BRIEF["draws"] if brief else None)
    figures["losses"] = _losses(folder / runs.LINES)
    runs.write_json(folder / runs.METRICS, figures)
    try:
        _draw(flow, job, folder)
    except ArgumentError as error:
        print(f"no pictures: {error}", file=sys.stderr)
    return figures


def show(figures: dict[str, Any]) -> None:
    """The figures as a table, for people."""
    from rich.console import Console
    from rich.table import Table

    table = Table(box=None, show_header=False, padding=(0, 2))
    if figures.get("bits_per_dim") is not None:
        table.add_row("held-out bits per dimension", _with_error(figures, "bits_per_dim"))
        for name, bits in figures.get("baselines_bits_per_dim", {}).items():
            table.add_row(f"  {name}", f"{bits:.3f}")
    if figures.get("nll") is not None:
        table.add_row("held-out negative log-likelihood, nats", _with_error(figures, "nll"))
    if "likelihood_refused" in figures:
        table.add_row("no likelihood", figures["likelihood_refused"])
    table.add_row("evaluations a sample (NFE)", f"{figures['nfe']:.0f}")
    for key in ("sliced_wasserstein", "frechet"):
        floor = figures.get(f"{key}_floor")
        beside = f"  (training data: {floor:.4f})" if floor is not None else ""
        table.add_row(f"{key.replace('_', ' ')} to held-out data", f"{figures[key]:.4f}{beside}")
    _show_ways(table, figures)
    for name, value in figures["losses"].items():
        table.add_row(name.replace("_", " "), f"{value:.4f}")
    if figures["loss_floor"] is None:
        table.add_row("no least possible loss", figures["loss_floor_refused"])
    else:
        table.add_row("least possible loss", f"{_with_error(figures, 'loss_floor', 4)}  ({figures['loss_floor_of']})")
        table.add_row("  the averaged weights' above it", _with_error(figures, "loss_excess", 4))
    Console().print(table)


def _show_ways(table: Table, figures: dict[str, Any]) -> None:
    """How the flow moves, and what its coupling paired."""
    if figures.get("path_energy") is not None:
        table.add_row("path energy", f"{figures['path_energy']:.4f}  (W2² {figures['transport_squared']:.4f})")
        table.add_row("  normalized (NPE)", f"{figures['normalized_path_energy']:.4f}")
        table.add_row("  curvature", f"{figures['path_curvature']:.4f}")
    if figures.get("coupling_cost") is not None:
        beside = f"random {figures['coupling_independent_cost']:.4f}, best {figures['coupling_optimal_cost']:.4f}"
        table.add_row("squared distance of pairs", f"{figures['coupling_cost']:.4f}  ({beside})")
        lost = figures["coupling_lost_source"], figures["coupling_lost_data"]
        table.add_row("  samples in no pair", "source {:.1%}, data {:.1%}".format(*lost))
        if figures["coupling_label_error"] is not None:
            table.add_row("  labels lost or doubled", f"{figures['coupling_label_error']:.1%}")
        if figures["coupling_leak"] is not None:
            table.add_row("  of x0 told by the condition", f"{figures['coupling_leak']:.1%}")


def _with_error(figures: dict[str, Any], key: str, digits: int = 3) -> str:
    error = figures[f"{key}_standard_error"]
    return f"{figures[key]:.{digits}f}" + ("" if error is None else f" ± {error:.{digits}f}")


def _validation(job: Job) -> Any:
    """The held-out data, for the validation loss; it decides nothing about the training."""
    import dataclasses

    return dataclasses.replace(job.split.train, x=job.split.test, cond=job.split.test_cond, x0=None)


def _losses(lines: Path) -> dict[str, float]:
    """The last loss of each kind."""
    last: dict[str, float] = {}
    for record in runs.records(lines) if lines.exists() else ():
        last |= {k: v for k, v in record.items() if k.endswith("loss")}
    return last


def _draw(flow: Any, job: Job, folder: Path) -> None:
    from fmkit import plots
    from fmkit.cli.images import draw_restored
    from fmkit.evaluation import conditions
    from fmkit.randomness import stream

    plots.curves(folder / runs.LINES, folder / "curves.png")
    images = plots.as_images(job.split.test[:1]) is not None
    n, seed = 64 if images else 2000, job.config.seed
    x = flow.sample(n, cond=conditions(job.split, n, seed), generator=stream(seed, "samples"))
    plots.samples(x, folder / "samples.png", None if images else job.split.test[:2000], job.split.levels)
    if job.split.degrade is not None:
        draw_restored(flow, job.split, folder, seed)
