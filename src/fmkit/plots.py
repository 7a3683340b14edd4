"""The pictures of a run. matplotlib is an extra: `pip install 'fmkit[plot]'`."""

from __future__ import annotations

import io
import json
import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from fmkit.errors import ArgumentError
from fmkit.saving import write_bytes

if TYPE_CHECKING:
    from matplotlib.figure import Figure

INK, ACCENT = "#1f2430", "#2f6fde"


def figure(width: float, height: float) -> Figure:
    """An empty figure that belongs to no window.

    Raises:
        ArgumentError: if matplotlib is not installed.
    """
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ArgumentError("pictures need matplotlib: pip install 'fmkit[plot]'") from error
    made = Figure(figsize=(width, height), dpi=120, layout="constrained")
    FigureCanvasAgg(made)
    return made


def samples(x: Tensor, path: str | Path, reference: Tensor | None = None, levels: int | None = None) -> None:
    """Samples as a picture: images as a grid, points as a scatter plot (beside real ones, if given).

    Args:
        x: `(N, 2)` or more coordinates (the first two are shown), `(N, C, H, W)` images, or `(N, k²)` flat square ones
            of at least 16 pixels.
        path: the picture's file.
        reference: real samples of the same shape.
        levels: number of grey levels of integer images: samples are then rounded down to them, as dequantized data is.

    Raises:
        ArgumentError: for one-dimensional events without a reference shape, or without matplotlib.
    """
    images = as_images(x if levels is None else x.floor().clamp(0, levels - 1))
    if images is None:
        _scatter(x, path, reference)
    else:
        _grid(images, path)


def as_images(x: Tensor) -> Tensor | None:
    """`(N, H, W)` or `(N, H, W, 3)` images in [0, 1], or None if the samples are no images."""
    if x.ndim == 2:
        side = math.isqrt(x.shape[1])
        if side < 4 or side * side != x.shape[1]:
            return None
        x = x.reshape(-1, 1, side, side)
    if x.ndim != 4 or x.shape[1] not in (1, 3):
        return None
    x = x.detach().cpu().double()
    low, high = x.amin(), x.amax()
    x = ((x - low) / (high - low).clamp_min(1e-12)).clamp(0, 1)
    return x[:, 0] if x.shape[1] == 1 else x.permute(0, 2, 3, 1)


def tiles(x: Tensor, scale: Tensor | None = None) -> bytes:
    """A PNG of images, pixel for pixel, in a grid with a line between them.

    Args:
        x: images, as of `samples`.
        scale: samples whose darkest and brightest values, but for a few, are black and white; those of x by default.

    Raises:
        ArgumentError: if x are no images, or matplotlib is not installed.
    """
    low, high = (
        (x if scale is None else scale).detach().double().flatten().quantile(torch.tensor([0.01, 0.99]).double())
    )
    images = as_images(x.detach().cpu().double().clamp(low, high))
    if images is None:
        raise ArgumentError(f"x has events of shape {tuple(x.shape[1:])}, expected images of one or three channels")
    figure(1, 1)  # says how to install what is missing
    from matplotlib.image import imsave

    columns = math.ceil(math.sqrt(len(images)))
    rows, (tall, wide) = math.ceil(len(images) / columns), images.shape[1:3]
    grid = torch.ones(rows * (tall + 1) - 1, columns * (wide + 1) - 1, *images.shape[3:], dtype=images.dtype)
    for k, image in enumerate(images):
        top, left = k // columns * (tall + 1), k % columns * (wide + 1)
        grid[top : top + tall, left : left + wide] = image
    picture = io.BytesIO()
    imsave(picture, grid.numpy(), cmap="gray", vmin=0, vmax=1, format="png")
    return picture.getvalue()


def restored(given: Tensor, images: Tensor, targets: Tensor, path: str | Path) -> None:
    """Three rows: what was given, what was made of it, and the true images; each `(N, C, H, W)`, in the same units.

    Raises:
        ArgumentError: if they are no images, or matplotlib is not installed.
    """
    n, together = len(targets), as_images(torch.cat([given, images, targets]))
    if together is None:
        raise ArgumentError(f"targets have events of shape {tuple(targets.shape[1:])}, expected images")
    made = figure(0.75 * n + 1, 2.4)
    for i, axes in enumerate(made.subplots(3, n, squeeze=False).flat):
        axes.set(xticks=[], yticks=[])
        axes.spines[:].set_visible(False)
        axes.imshow(together[i].numpy(), cmap="gray", vmin=0, vmax=1, interpolation="nearest")
        if i % n == 0:
            axes.set_ylabel(("given", "restored", "true")[i // n])
    _write(made, path)


def _grid(images: Tensor, path: str | Path) -> None:
    n = len(images)
    columns = math.ceil(math.sqrt(n))
    rows = math.ceil(n / columns)
    made = figure(max(3.0, 0.75 * columns), max(3.0, 0.75 * rows))
    for i, axes in enumerate(made.subplots(rows, columns, squeeze=False).flat):
        axes.set_axis_off()
        if i < n:
            axes.imshow(images[i].numpy(), cmap="gray", vmin=0, vmax=1, interpolation="nearest")
    _write(made, path)


def _scatter(x: Tensor, path: str | Path, reference: Tensor | None) -> None:
    shown = [("samples", x, ACCENT)] + ([("data", reference, INK)] if reference is not None else [])
    made = figure(4.2 * len(shown), 4.2)
    panels = made.subplots(1, len(shown), squeeze=False, sharex=True, sharey=True)[0]
    for axes, (title, points, colour) in zip(panels, shown, strict=True):
        points = points.detach().cpu().flatten(1)
        if points.shape[1] == 1:
            axes.hist(points[:, 0].numpy(), bins=80, color=colour, density=True)
        else:
            size = min(6.0, 4000 / len(points))
            axes.scatter(points[:, 0], points[:, 1], s=size, color=colour, alpha=0.5, linewidths=0)
            axes.set_aspect("equal")
        axes.set_title(f"{title} ({len(points)})")
    _write(made, path)


def curves(metrics: str | Path, path: str | Path) -> None:
    """The curves of a run, from its `metrics.jsonl`: loss (and validation loss) and learning rate over steps."""
    records = [json.loads(line) for line in Path(metrics).read_text().splitlines()]
    made = figure(7.0, 3.4)
    left, right = made.subplots(1, 2, width_ratios=(2, 1))
    _line(left, records, "loss", INK)
    _line(left, records, "validation_loss", ACCENT)
    for record in (r for r in records if "loss_floor" in r):
        label = "learnt by heart" if "loss_floor_points" in record else "least possible"
        left.axhline(record["loss_floor"], color=INK, linewidth=1, linestyle=":", label=label)
    left.set(xlabel="step", ylabel="loss", title="Loss")
    if left.get_legend_handles_labels()[0]:
        left.legend(frameon=False)
    _line(right, records, "lr", INK)
    right.set(xlabel="step", title="Learning rate")
    for axes in (left, right):
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(alpha=0.25)
    _write(made, path)


def _write(made: Figure, path: str | Path) -> None:
    picture = io.BytesIO()
    made.savefig(picture, format=Path(path).suffix.lstrip(".") or "png", bbox_inches="tight")
    write_bytes(Path(path), picture.getvalue())


def _line(axes: Any, records: list[dict[str, Any]], key: str, colour: str) -> None:
    points = [(r["step"], r[key]) for r in records if key in r]
    if points:
        marker = "o" if len(points) < 20 else ""
        axes.plot(*zip(*points, strict=True), marker=marker, color=colour, label=key.replace("_", " "), linewidth=1.5)
