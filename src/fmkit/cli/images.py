"""`fmkit evaluate --images` and `--restored`: samples beside real images, restored images beside the true ones."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fmkit import runs
from fmkit.cli.sampling import chosen_solver, guided
from fmkit.errors import ArgumentError, ConfigError, FmkitError

if TYPE_CHECKING:
    from fmkit.data import Split
    from fmkit.flow import Flow
    from fmkit.solvers import Solver

SHOWN = 16  # restored images, in a picture


def evaluate_images_of(
    run: Path,
    n: int,
    seed: int,
    solver: str | None,
    steps: int | None,
    guidance: str | None,
    guidance_interval: str | None,
) -> dict[str, Any]:
    """The figures, which also go into `images.json` of the run folder."""
    from fmkit.config import validate
    from fmkit.data import DataSet
    from fmkit.image_evaluation import evaluate_images
    from fmkit.specs import build

    config = validate(runs.configuration(run))
    flow = runs.load_flow(run)
    split = build(DataSet, config.data, "data").load(config.seed)
    try:
        figures = evaluate_images(
            guided(flow, guidance, guidance_interval),
            split,
            _labelled(config.data, config.seed),
            samples=n,
            seed=seed,
            solver=chosen_solver(flow, solver, steps),
        )
    except ArgumentError as error:
        raise ConfigError(str(error), "--images") from error
    asked = {"seed": seed, "solver": solver, "steps": steps, "guidance": guidance, "interval": guidance_interval}
    figures |= {k: v for k, v in asked.items() if v is not None}
    runs.write_json(run / runs.IMAGES, figures)
    return figures


def evaluate_restored(run: Path, n: int, seed: int, solver: str | None, steps: int | None) -> dict[str, Any]:
    """The figures of restored images, which also go into `restored.json` of the run folder, and a picture of some.

    FID among them where the images have labels, of which the classifier is made.
    """
    from fmkit.config import validate
    from fmkit.data import DataSet
    from fmkit.restoration import evaluate_restoration
    from fmkit.specs import build

    config = validate(runs.configuration(run))
    flow = runs.load_flow(run)
    split = build(DataSet, config.data, "data").load(config.seed)
    chosen = chosen_solver(flow, solver, steps)
    try:
        try:
            labelled = _labelled(config.data, config.seed)
        except FmkitError:  # images without labels have no FID, and all the rest
            labelled = None
        figures = evaluate_restoration(flow, split, labelled, samples=n, seed=seed, solver=chosen)
    except ArgumentError as error:
        raise ConfigError(str(error), "--restored") from error
    figures |= {k: v for k, v in {"seed": seed, "solver": solver, "steps": steps}.items() if v is not None}
    runs.write_json(run / runs.RESTORED, figures)
    try:
        draw_restored(flow, split, run, seed, chosen)
    except ArgumentError as error:
        print(f"no picture: {error}", file=sys.stderr)
    return figures


def draw_restored(flow: Flow, split: Split, folder: Path, seed: int, solver: Solver | None = None) -> None:
    """What was given of the first held-out images, what the flow makes of it, and the images: `restored.png`."""
    from fmkit import plots
    from fmkit.restoration import restore

    found = restore(flow, split, samples=SHOWN, seed=seed, solver=solver)
    plots.restored(found.given, found.images, found.targets, folder / "restored.png")


def _labelled(data: Any, seed: int) -> Any:
    """The run's images as images, with labels, whatever its own form is."""
    import inspect

    from fmkit import registry
    from fmkit.data import DataSet
    from fmkit.specs import build

    spec = {"name": data} if isinstance(data, str) else dict(data)
    while isinstance(spec.get("data"), str | Mapping):  # images inside, as of super-resolution
        spec = {"name": spec["data"]} if isinstance(spec["data"], str) else dict(spec["data"])
    name = spec["name"]
    known = inspect.signature(registry.load("fmkit.datasets", name)).parameters
    if "labels" in known:
        spec["labels"] = True
    if "flat" in known:
        spec["flat"] = False
    split = build(DataSet, spec, "data").load(seed)
    if split.classes is None or split.levels is None:
        raise ConfigError(
            f"the classifier needs labelled images of whole grey levels, and {name!r} has none: digits, mnist-5k, "
            "fashion-mnist, or images with classes",
            "--images",
        )
    return split


def show_images(figures: Mapping[str, Any]) -> None:
    """The figures as a table, for people."""
    from rich.console import Console
    from rich.table import Table

    table = Table(box=None, padding=(0, 2), show_edge=False)
    for heading in ("", f"{figures['images']} samples", f"{figures['images_held_out']} held-out images"):
        table.add_column(heading, justify="left" if not heading else "right")
    names = {"fid": "FID", "kid": "KID", "precision": "precision", "recall": "recall", "inception_score": "IS"}
    for key, name in names.items():
        if key in figures:
            table.add_row(name, f"{figures[key]:.4f}", f"{figures[f'{key}_held_out']:.4f}")
    if "recognised" in figures:
        table.add_row("recognised as their label", f"{figures['recognised']:.1%}", f"{figures['accuracy']:.1%}")
    table.add_row("evaluations a sample (NFE)", f"{figures['nfe']:.0f}", "")
    Console().print(table)
    print("in the features of a classifier of the same data: compare within it, and beside the held-out images")


def show_restored(figures: Mapping[str, Any]) -> None:
    """The figures as a table, for people."""
    from rich.console import Console
    from rich.table import Table

    beside = "given" if "psnr_given" in figures else "bicubic"
    table = Table(box=None, padding=(0, 2), show_edge=False)
    for heading in ("", f"{figures['images']} images", beside):
        table.add_column(heading, justify="left" if not heading else "right")
    names = {"psnr": "PSNR, dB", "ssim": "SSIM", "consistency": "consistency, grey levels"}
    for key, name in names.items():
        if key in figures:
            both = (f"{figures[k]:.3f} ± {figures[f'{k}_standard_error']:.3f}" for k in (key, f"{key}_{beside}"))
            table.add_row(name, *both)
    if "fid" in figures:
        said = f"FID (of the true images: {figures['fid_held_out']:.3f})"
        table.add_row(said, f"{figures['fid']:.3f}", f"{figures[f'fid_{beside}']:.3f}")
    table.add_row("evaluations a sample (NFE)", f"{figures['nfe']:.0f}", "")
    Console().print(table)
