"""`fmkit runs` and `fmkit report`: what runs there are, and a page about one."""

from __future__ import annotations

import base64
import html
import json
import shlex
from collections.abc import Callable
from pathlib import Path
from typing import Any

from fmkit import runs
from fmkit.errors import ConfigError, FmkitError, SavedFileError
from fmkit.saving import parse_json, write_bytes

STYLE = """
:root { color-scheme: light dark; --ink: #1f2430; --soft: #667; --line: #ccd; --back: #fff; --accent: #2f6fde; }
@media (prefers-color-scheme: dark) {
  :root { --ink: #e6e8ef; --soft: #9aa; --line: #445; --back: #15181f; --accent: #7aa7ff; } }
body { font: 16px/1.5 system-ui, sans-serif; color: var(--ink); background: var(--back);
  max-width: 60rem; margin: 2rem auto; padding: 0 1rem; }
h1, h2 { line-height: 1.2; } h2 { margin-top: 2.5rem; }
table { border-collapse: collapse; } td { padding: .15rem 1rem .15rem 0; vertical-align: top; overflow-wrap: anywhere; }
td:first-child, figcaption, .soft { color: var(--soft); }
pre { border: 1px solid var(--line); padding: 1rem; white-space: pre-wrap; overflow-wrap: anywhere; font-size: .85rem; }
figure { margin: 1rem 0; } svg { width: 100%; height: auto; } img { max-width: 100%; background: #fff; }
svg text { font-size: 12px; fill: var(--soft); } polyline { fill: none; stroke: var(--accent); stroke-width: 1.5; }
svg rect { fill: none; stroke: var(--line); } polyline.way { stroke-width: .6; opacity: .6; }
circle { fill: var(--ink); }
"""


def listing(base: Path) -> list[dict[str, Any]]:
    """The runs in a folder, by name: steps done and in all, whether finished, the last loss.

    Raises:
        ConfigError: if there is no such folder.
    """
    if not base.is_dir():
        raise ConfigError(f"there is no folder {base}", "runs")
    return [_summary(folder) for folder in sorted(base.iterdir()) if (folder / runs.CONFIG).is_file()]


def _summary(folder: Path) -> dict[str, Any]:
    last: dict[str, float] = {}
    try:
        for record in runs.records(folder / runs.LINES) if (folder / runs.LINES).is_file() else ():
            last |= record
    except SavedFileError:  # killed within a line, or damaged: `fmkit runs show` says it
        pass
    return {
        "run": str(folder),
        "step": int(last.get("step", 0)),
        "finished": (folder / runs.FLOW).is_file(),
        "loss": last.get("loss"),
    }


def details(folder: Path) -> dict[str, Any]:
    """All that is known of a run: the summary, its environment, checkpoints and figures.

    Raises:
        ConfigError: if the folder holds no run.
        SavedFileError: if one of its files is damaged.
    """
    from fmkit.training.checkpoint import Checkpoints

    if not (folder / runs.CONFIG).is_file():
        raise ConfigError(f"{folder} holds no run: there is no {runs.CONFIG} in it", "run")
    kept = Checkpoints(folder)
    return {
        **_summary(folder),
        "checkpoints": [f.name for f in kept.files()],
        "best": kept.best(),
        "environment": _mapping(folder / runs.FACTS),
        "figures": _mapping(folder / runs.METRICS),
    }


def _mapping(path: Path) -> dict[str, Any]:
    """The mapping in a JSON file; an empty one where there is no file."""
    if not path.is_file():
        return {}
    try:
        found = parse_json(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise SavedFileError(f"{path} is damaged: {error}") from None
    if not isinstance(found, dict):
        raise SavedFileError(f"{path} is damaged: it holds no mapping")
    return found


def report(folder: Path, out: Path) -> dict[str, Any]:
    """Write the page about a run: one HTML file that needs neither a network nor a script.

    Raises:
        ConfigError: if the folder holds no run.
        SavedFileError: if one of its files is damaged, or the page cannot be written.
    """
    known = details(folder)
    records = runs.records(folder / runs.LINES) if (folder / runs.LINES).is_file() else []
    parts = [_head(known), _curves(records), _samples(folder), _ways(folder)]
    parts += [_table("Figures", known["figures"]), _table("Environment", known["environment"])]
    parts += [_reproduction(folder, known), _configuration(folder)]
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
    return f"<h2>Curves</h2>{drawn}" if drawn else ""


def _curve(name: str, points: list[tuple[float, float]]) -> str:
    points = [(x, y) for x, y in points if abs(y) < float("inf")]  # neither infinite nor NaN
    if not points:
        return ""
    place = _scaled(points, 640, 160)
    (x0, x1), (y0, y1) = ((min(v), max(v)) for v in zip(*points, strict=True))
    label = html.escape(name.replace("_", " "))
    return (
        f'<figure><figcaption>{label}</figcaption><svg viewBox="0 0 720 205" role="img" aria-label="{label}">'
        f'<rect x="70" y="10" width="640" height="160"/><g transform="translate(70 10)">'
        f'<polyline points="{_points(place(p) for p in points)}"/></g>'
        f'<text x="64" y="20" text-anchor="end">{y1:.4g}</text><text x="64" y="170" text-anchor="end">{y0:.4g}</text>'
        f'<text x="70" y="190">step {x0:.0f}</text><text x="710" y="190" text-anchor="end">{x1:.0f}</text>'
        "</svg></figure>"
    )


def _scaled(points: list[tuple[float, float]], width: float, height: float) -> Callable[[Any], tuple[float, float]]:
    """From the units of the points to those of a box, with y upwards."""
    (x0, x1), (y0, y1) = ((min(v), max(v)) for v in zip(*points, strict=True))
    wide, high = x1 - x0 or 1.0, y1 - y0 or 1.0
    return lambda p: ((p[0] - x0) / wide * width, height - (p[1] - y0) / high * height)


def _points(places: Any) -> str:
    return " ".join(f"{x:.1f},{y:.1f}" for x, y in places)


def _samples(folder: Path) -> str:
    path = folder / "samples.png"
    if not path.is_file():
        return ""
    data = base64.b64encode(path.read_bytes()).decode()
    return f'<h2>Samples</h2><img alt="samples of the flow" src="data:image/png;base64,{data}">'


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
