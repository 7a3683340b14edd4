"""`fmkit runs`: what runs there are, and all that is known of one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from fmkit import runs
from fmkit.errors import ConfigError, SavedFileError
from fmkit.saving import parse_json


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
        "images": _mapping(folder / runs.IMAGES),
        "restored": _mapping(folder / runs.RESTORED),
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
