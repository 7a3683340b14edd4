"""`fmkit report`: a page about a run, one HTML file that needs neither a network nor a script."""

from __future__ import annotations

import base64
import html
import json
import math
import shlex
from collections.abc import Callable
from pathlib import Path
from typing import Any

from fmkit import runs
from fmkit.cli.runs import details
from fmkit.errors import ArgumentError, FmkitError, SavedFileError
from fmkit.saving import read_tensors, write_bytes

STYLE = """
:root { color-scheme: light dark; --ink: #1f2430; --soft: #667; --line: #ccd; --back: #fff; --accent: #2f6fde; }
@media (prefers-color-scheme: dark) {
  :root { --ink: #e6e8ef; --soft: #9aa; --line: #445; --back: #15181f; --accent: #7aa7ff; } }
body { font: 16px/1.5 system-ui, sans-serif; color: var(--ink); background: var(--back);
  max-width: 60rem; margin: 2rem auto; padding: 0 1rem; }
h1, h2 { line-height: 1.2; } h2 { margin-top: 2.5rem; }
table { border-collapse: collapse; } td { padding: .15rem 1rem .15rem 0; vertical-align: top; overflow-wrap: anywhere; }
td:first-child { min-width: 13rem; } td:first-child, figcaption, .soft { color: var(--soft); }
pre { border: 1px solid var(--line); padding: 1rem; white-space: pre-wrap; overflow-wrap: anywhere; font-size: .85rem; }
figure { margin: 1rem 0; } svg { width: 100%; height: auto; } img { max-width: 100%; background: #fff; }
svg text { font-size: 12px; fill: var(--soft); } polyline { fill: none; stroke: var(--accent); stroke-width: 1.5; }
.curves { display: grid; grid-template-columns: repeat(auto-fill, minmax(18rem, 1fr)); gap: 0 1.5rem; }
.curves text { font-size: 20px; }
.row { display: flex; flex-wrap: wrap; gap: .8rem; } .row figure { margin: 0; flex: 1 0 9rem; max-width: 15rem; }
.row img { width: 100%; image-rendering: pixelated; } .row circle { fill: var(--accent); }
svg rect { fill: none; stroke: var(--line); } polyline.way { stroke-width: .6; opacity: .6; }
circle { fill: var(--ink); }
"""


def report(folder: Path, out: Path) -> dict[str, Any]:
    """Write the page about a run: one HTML file that needs neither a network nor a script.

    Raises:
        ConfigError: if the folder holds no run.
        SavedFileError: if one of its files is damaged, or the page cannot be written.
    """
    known = details(folder)
    records = runs.records(folder / runs.LINES) if (folder / runs.LINES).is_file() else []
    parts = [_head(known), _samples(folder), _over_training(folder), _ways(folder)]
    parts += [_table("Figures", known["figures"]), _table("Figures of restored images", known["restored"])]
    parts += [_table("Figures of samples as images", known["images"]), _curves(records)]
    parts += [_table("Environment", known["environment"]), _reproduction(folder, known), _configuration(folder)]
    title = html.escape(folder.resolve().name)
    page = f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><title>{title}</title>'
    page += '<meta name="viewport" content="width=device-width">'
    page += '<meta http-equiv="Content-Security-Policy" content="default-src \'none\'; '
    page += "img-src data:; style-src 'unsafe-inline'\">"
    page += f"<style>{STYLE}</style></head><body>{''.join(parts)}</body></html>\n"
    write_bytes(out, page.encode("utf-8", "backslashreplace"))
    return {"out": str(out), "bytes": len(page)}


def _head(known: dict[str, Any]) -> str:
    state = "finished" if known["finished"] else "not finished"
    name = html.escape(Path(known["run"]).resolve().name)
    return f'<h1>{name}</h1><p class="soft">{state}, {known["step"]} steps</p>'


def _curves(records: list[dict[str, Any]]) -> str:
    """Every figure that was recorded at two steps or more."""
    found: dict[str, list[tuple[float, float]]] = {}
    for record in records:
        for key, value in record.items():
            if key != "step" and "step" in record:
                found.setdefault(key, []).append((record["step"], value))
    drawn = "".join(_curve(key, points) for key, points in found.items() if len(points) > 1)
    return f'<h2>Curves</h2><div class="curves">{drawn}</div>' if drawn else ""


def _curve(name: str, points: list[tuple[float, float]]) -> str:
    points = _finite(points)
    if not points:
        return ""
    place = _scaled(points, 640, 160)
    (x0, x1), (y0, y1) = ((min(v), max(v)) for v in zip(*points, strict=True))
    label = html.escape(name.replace("_", " "))
    return (
        f'<figure><figcaption>{label}</figcaption><svg viewBox="-40 0 760 205" role="img" aria-label="{label}">'
        f'<rect x="70" y="10" width="640" height="160"/><g transform="translate(70 10)">'
        f'<polyline points="{_points(place(p) for p in points)}"/></g>'
        f'<text x="64" y="20" text-anchor="end">{y1:.4g}</text><text x="64" y="170" text-anchor="end">{y0:.4g}</text>'
        f'<text x="70" y="190">step {x0:.0f}</text><text x="710" y="190" text-anchor="end">{x1:.0f}</text>'
        "</svg></figure>"
    )


def _finite(points: list[tuple[float, float]]) -> list[tuple[float, float]]:
    """Those that can be drawn: neither infinite nor NaN."""
    return [p for p in points if all(map(math.isfinite, p))]


def _scaled(points: list[tuple[float, float]], width: float, height: float) -> Callable[[Any], tuple[float, float]]:
    """From the units of the points to those of a box, with y upwards."""
    (x0, x1), (y0, y1) = ((min(v), max(v)) for v in zip(*points, strict=True))
    wide, high = x1 - x0 or 1.0, y1 - y0 or 1.0
    return lambda p: ((p[0] - x0) / wide * width, height - (p[1] - y0) / high * height)


def _points(places: Any) -> str:
    return " ".join(f"{x:.1f},{y:.1f}" for x, y in places)


def _samples(folder: Path) -> str:
    """The pictures that lie in the folder."""
    shown = {"samples.png": ("Samples", "samples of the flow"), "restored.png": ("Restored images", "restored images")}
    found = ""
    for name, (title, what) in shown.items():
        if (path := folder / name).is_file():
            data = base64.b64encode(path.read_bytes()).decode()
            found += f'<h2>{title}</h2><img alt="{what}" src="data:image/png;base64,{data}">'
    return found


def _over_training(folder: Path) -> str:
    """What the flow drew at some moments, all to one scale: that of the last."""
    from fmkit.training.snapshots import FOLDER

    files = sorted((folder / FOLDER).glob("step_*.safetensors"))
    found = []
    for path in files:
        tensors, header = read_tensors(path)
        x = tensors.get("x")
        if x is None or x.ndim < 2 or not len(x) or not x.is_floating_point():
            raise SavedFileError(f"{path} holds no samples")
        found.append((header.get("step"), x))
    if not found or len({x.shape[1:] for _, x in found}) > 1:
        return ""
    try:
        drawn = [_drawn(x, found[-1][1]) for _, x in found]
    except ArgumentError as error:  # matplotlib is not installed
        return f'<h2>Samples over training</h2><p class="soft">none: {html.escape(str(error))}</p>'
    row = "".join(
        f"<figure>{picture}<figcaption>step {html.escape(_shown(step))}</figcaption></figure>"
        for (step, _), picture in zip(found, drawn, strict=True)
    )
    return f'<h2>Samples over training</h2><div class="row">{row}</div>'


def _drawn(x: Any, last: Any) -> str:
    """Images as a grid; else a cloud of the first two coordinates, or of one and its rank among the others."""
    from fmkit import plots

    if plots.as_images(x) is not None:
        data = base64.b64encode(plots.tiles(x, last)).decode()
        return f'<img alt="samples" src="data:image/png;base64,{data}">'
    clouds = [_cloud(each) for each in (x, last)]
    box = _finite(clouds[1])
    if len(box) < 2:
        return ""
    place = _scaled(box, 200, 200)
    shown = [place(p) for p in _finite(clouds[0])]
    dots = "".join(f'<circle cx="{x:.1f}" cy="{y:.1f}" r="1.6"/>' for x, y in shown)
    return f'<svg viewBox="-10 -10 220 220" role="img" aria-label="samples">{dots}</svg>'


def _cloud(x: Any) -> list[tuple[float, float]]:
    points = x.flatten(1)
    if points.shape[1] == 1:
        points = points.sort(0).values
        return [(p, k / len(points)) for k, (p,) in enumerate(points.tolist())]
    return [tuple(p) for p in points[:, :2].tolist()]


def _ways(folder: Path) -> str:
    """From the source to the data: the ways of some samples, where they are points of a plane without a condition."""
    import torch

    if not (folder / runs.FLOW).is_file():
        return ""
    try:
        flow = runs.load_flow(folder)
        if flow.event_shape != (2,):
            return ""
        start, end = flow.interval
        times = torch.linspace(start, end, 21, dtype=torch.float64).tolist()
        found = flow.trajectory(128, times, generator=torch.Generator().manual_seed(0))
    except FmkitError as error:  # it needs a condition, or a part that is not installed
        return f'<h2>Trajectories</h2><p class="soft">none: {html.escape(str(error))}</p>'
    ways = torch.stack([flow.in_data_units(state) for state in found.states])
    place = _scaled([tuple(p) for p in ways.reshape(-1, 2).tolist()], 500, 500)
    lines = [[place(p) for p in way] for way in ways.transpose(0, 1).tolist()]
    drawn = "".join(f'<polyline class="way" points="{_points(line)}"/>' for line in lines)
    drawn += "".join(f'<circle cx="{line[-1][0]:.1f}" cy="{line[-1][1]:.1f}" r="2"/>' for line in lines)
    return (
        '<h2>Trajectories</h2><svg viewBox="-5 -5 510 510" style="max-width: 34rem" role="img" '
        f'aria-label="ways of samples">{drawn}</svg>'
    )


def _table(title: str, values: dict[str, Any]) -> str:
    if not values:
        return ""
    rows = "".join(
        f"<tr><td>{html.escape(str(key).replace('_', ' '))}</td><td>{html.escape(_shown(value))}</td></tr>"
        for key, value in values.items()
    )
    return f"<h2>{title}</h2><table>{rows}</table>"


def _shown(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.5g}"
    return value if isinstance(value, str) else json.dumps(value)


def _reproduction(folder: Path, known: dict[str, Any]) -> str:
    version = known["environment"].get("fmkit", "")
    lines = f"pip install fmkit=={shlex.quote(str(version))}\nfmkit train {shlex.quote(str(folder / runs.CONFIG))}"
    return f"<h2>How to reproduce</h2><pre>{html.escape(lines)}</pre>"


def _configuration(folder: Path) -> str:
    text = (folder / runs.CONFIG).read_text(encoding="utf-8", errors="replace")
    return f"<h2>Configuration</h2><pre>{html.escape(text)}</pre>"
