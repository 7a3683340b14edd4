"""Run folders: what a run leaves behind, and how it is found again.

config.yaml          the whole configuration; `fmkit train config.yaml` repeats the run
run.json             versions, machine, the words of the command line, the git revision they were given in
metrics.jsonl        one record a line: step, loss, lr; validation_loss
checkpoints/         the state of training, for resuming: the last ones, and the best by validation loss
checkpoints.json     their checksums
flow.safetensors     the trained flow
metrics.json         the figures of `fmkit evaluate`
samples.png          64 samples        curves.png    the losses over steps
report.html          the page of `fmkit report`
"""

from __future__ import annotations

import json
import platform
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from fmkit._version import __version__
from fmkit.arguments import device_of
from fmkit.config import Job, Layers, dump, load_layers
from fmkit.errors import ConfigError, SavedFileError
from fmkit.saving import reason, write_bytes

CONFIG, FLOW, METRICS, LINES = "config.yaml", "flow.safetensors", "metrics.json", "metrics.jsonl"
IMAGES, RESTORED = "images.json", "restored.json"
FACTS = "run.json"


def choose(name: str, base: Path = Path("runs")) -> Path:
    """A folder for a new run that does not exist yet: runs/digits, runs/digits-2, ..."""
    folder, k = base / name, 1
    while folder.exists():
        k += 1
        folder = base / f"{name}-{k}"
    return folder


def newest(name: str, base: Path = Path("runs")) -> Path:
    """The last folder that `choose` gave to a run of this name.

    Raises:
        ConfigError: if there is none.
    """
    folder, found = base / name, None
    k = 1
    while folder.exists():
        found, k = folder, k + 1
        folder = base / f"{name}-{k}"
    if found is None:
        raise ConfigError(f"there is no run to resume in {base / name}; name its folder", "--resume")
    return found


def begin(folder: Path, job: Job, words: Sequence[str]) -> None:
    """Make the folder and write down what is about to run."""
    import torch

    try:
        folder.mkdir(parents=True, exist_ok=True)
    except (OSError, ValueError) as error:  # a ValueError: a name that no file system allows
        raise SavedFileError(f"cannot make the run folder {folder}: {reason(error)}") from error
    write_bytes(folder / CONFIG, dump(job.config).encode())
    facts = {
        "command": list(words),
        "fmkit": __version__,
        "torch": torch.__version__,
        "python": platform.python_version(),
        "platform": platform.platform(),
        "threads": torch.get_num_threads(),
        "device": job.trainer.settings.device,
        "plugins": plugins_used(),
        "git": revision(),
    }
    write_json(folder / FACTS, facts)


def revision() -> str | None:
    """The git revision of the working folder, with "+changes" where files differ from it; None where there is none."""
    try:
        asked = ["git", "describe", "--always", "--abbrev=40", "--exclude=*", "--dirty=+changes"]
        answer = subprocess.run(asked, capture_output=True, text=True, timeout=10, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return answer.stdout.strip() or None


def plugins_used() -> dict[str, str]:
    """Packages besides fmkit that provide parts and are imported, with their versions."""
    from fmkit import registry

    return {
        e.package: e.version
        for e in registry.entries()
        if e.package != registry.HOME and e.value.partition(":")[0].split(".")[0] in sys.modules
    }


def configuration(folder: Path, words: Sequence[str] = ()) -> Layers:
    """The configuration of an earlier run.

    Raises:
        ConfigError: if the folder holds no run.
    """
    if not (folder / CONFIG).is_file():
        raise ConfigError(f"{folder} holds no run: there is no {CONFIG} in it", "run")
    return load_layers({}, folder / CONFIG, words)


def load_flow(run: Path, device: str = "cpu") -> Any:
    """The flow of a run folder, or of a file, on a device: "auto" is the GPU where there is one.

    Raises:
        SavedFileError: if there is none.
        ArgumentError: for a device that there is not.
    """
    from fmkit.flow import Flow

    place = device_of(device)
    if run.is_dir():
        run = run / FLOW
    if not run.is_file():
        raise SavedFileError(f"there is no trained flow at {run}; `fmkit train` makes one")
    return Flow.load(run).to(place)


def records(lines: Path) -> list[dict[str, Any]]:
    """The records of a `metrics.jsonl`.

    Raises:
        SavedFileError: naming the first line that is none.
    """
    found: list[dict[str, Any]] = []
    try:
        for line in lines.read_text(encoding="utf-8").splitlines():
            found.append({key: float(value) for key, value in json.loads(line).items()})
    except (OSError, ValueError, TypeError, AttributeError) as error:
        raise SavedFileError(f"{lines}, line {len(found) + 1}: no record of numbers ({reason(error)})") from None
    return found


def write_json(path: Path, values: dict[str, Any]) -> None:
    """Write JSON whole or not at all."""
    write_bytes(path, json.dumps(values, indent=2).encode() + b"\n")
