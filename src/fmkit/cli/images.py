"""`fmkit evaluate --images` and `--restored`: samples beside real images, restored images beside the true ones."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
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
    features: str | None = None,
    device: str = "auto",
) -> dict[str, Any]:
    """The figures, which also go into `images.json` of the run folder."""
    from fmkit.config import parsed
    from fmkit.image_evaluation import evaluate_images, feature_extractor, labelled_images

    config, flow, split = _trained(run, device)
    asked = {"seed": seed, "solver": solver, "steps": steps, "guidance": guidance, "interval": guidance_interval}
    try:
        images = labelled_images(config.data, config.seed, labels=features is None or split.classes is not None)
    except ArgumentError as error:
        raise ConfigError(f"the classifier needs labelled images: {error}", "--images") from error
    extractor = None
    if features is not None:
        extractor = feature_extractor(parsed(features, "--features"), images, "--features").to(flow.device)

    def measured() -> dict[str, Any]:
        how = {"samples": n, "seed": seed, "solver": chosen_solver(flow, solver, steps), "features": extractor}
        return evaluate_images(guided(flow, guidance, guidance_interval), split, images, **how)

    return _kept(measured, asked | {"features": features}, run / runs.IMAGES, "--images")


def evaluate_restored(
    run: Path, n: int, seed: int, solver: str | None, steps: int | None, device: str = "auto"
) -> dict[str, Any]:
    """The figures of restored images, which also go into `restored.json` of the run folder, and a picture of some.

    FID among them where the images have labels, of which the classifier is made.
    """
    from fmkit.image_evaluation import labelled_images
    from fmkit.restoration import evaluate_restoration

    config, flow, split = _trained(run, device)
    chosen = chosen_solver(flow, solver, steps)
    try:
        labelled = labelled_images(config.data, config.seed)
    except FmkitError:  # images without labels have no FID, and all the rest
        labelled = None

    def measured() -> dict[str, Any]:
        return evaluate_restoration(flow, split, labelled, samples=n, seed=seed, solver=chosen)

    asked = {"seed": seed, "solver": solver, "steps": steps}
    figures = _kept(measured, asked, run / runs.RESTORED, "--restored")
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


def _trained(run: Path, device: str) -> tuple[Any, Any, Any]:
    """The run's configuration, flow and data."""
    from fmkit.config import validate
    from fmkit.data import DataSet
    from fmkit.specs import build

    config = validate(runs.configuration(run))
    return config, runs.load_flow(run, device), build(DataSet, config.data, "data").load(config.seed)


def _kept(measured: Callable[[], dict[str, Any]], asked: Mapping[str, Any], path: Path, option: str) -> dict[str, Any]:
    """Figures and what was asked for, written into the run folder; an argument that cannot be is the option's."""
    try:
        figures = measured()
    except ArgumentError as error:
        raise ConfigError(str(error), option) from error
    figures |= {k: v for k, v in asked.items() if v is not None}
    runs.write_json(path, figures)
    return figures


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
    of = figures.get("features", "a classifier of the same data")
    print(f"in the features of {of}: compare within it, and beside the held-out images")


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
