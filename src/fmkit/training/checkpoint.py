"""A run's checkpoints, kept like a database: written whole or not at all, each with its checksum.

    folder/checkpoints/step_00000500.safetensors     the whole state after 500 steps
    folder/checkpoints.json                          the manifest: SHA-256 sums, and validation losses

A checkpoint is written beside, synced, entered in the manifest, and only then renamed: a file that is there is whole
and has its sum. Where a run is killed in between, the manifest names a sum that no file has yet, which does no harm.
"""

from __future__ import annotations

import hashlib
import json
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from fmkit._version import __version__
from fmkit.errors import SavedFileError
from fmkit.saving import as_bytes, parse_json, read_shapes, reason, write_bytes

MANIFEST = "checkpoints.json"
MANIFEST_FORMAT = 1


class Checkpoints:
    """The checkpoints of a run folder.

    Args:
        folder: the run's.
    """

    def __init__(self, folder: Path) -> None:
        self.folder, self.place = folder, folder / "checkpoints"

    def open(self) -> None:
        """Make the place, and remove what a killed run left half-written."""
        self.place.mkdir(parents=True, exist_ok=True)
        for half in (*self.place.glob(".step_*"), *self.folder.glob(f".{MANIFEST}.*")):
            half.unlink(missing_ok=True)

    def files(self) -> list[Path]:
        """Newest first."""
        return sorted(self.place.glob("step_*.safetensors"), reverse=True)

    def write(
        self, step: int, tensors: Mapping[str, Tensor], header: Mapping[str, Any], keep: int, loss: float | None
    ) -> None:
        """Write a checkpoint, and drop all but the last `keep` and the best.

        Args:
            step: steps done.
            tensors: the state.
            header: its description, as JSON.
            keep: how many.
            loss: the validation loss at this step, where there is one; the best checkpoint has the least.

        Raises:
            SavedFileError: if it cannot be written; those before are untouched.
        """
        path = self.place / f"step_{step:08d}.safetensors"
        entries = self.entries()
        data = as_bytes(tensors, header)
        # Written a second time, the file has the sum before until it is renamed.
        sums = [hashlib.sha256(data).hexdigest(), *entries.get(path.name, {}).get("sha256", [])[:1]]
        entries[path.name] = {"sha256": sums} | ({} if loss is None else {"validation_loss": loss})
        manifest = {"format": MANIFEST_FORMAT, "fmkit": __version__, "files": dict(sorted(entries.items()))}
        text = json.dumps(manifest, indent=1).encode() + b"\n"
        write_bytes(path, data, ready=lambda: write_bytes(self.folder / MANIFEST, text))
        best = self.best(entries)
        for old in self.files()[keep:]:
            if old.name != best:
                old.unlink(missing_ok=True)

    def entries(self) -> dict[str, dict[str, Any]]:
        """The manifest's entries of the files that are there; none for a run that was written before manifests were.

        Raises:
            SavedFileError: if the manifest is of a format that this version does not know.
        """
        path = self.folder / MANIFEST
        if not path.is_file():
            return {}
        try:
            manifest = parse_json(path.read_text(encoding="utf-8"))
            found, format = manifest["files"], manifest["format"]
            if format != MANIFEST_FORMAT:
                raise SavedFileError(
                    f"{path} has format {format!r}; fmkit {__version__} reads format {MANIFEST_FORMAT}"
                )
            return {f.name: _entry(found[f.name]) for f in self.files() if f.name in found}
        except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
            if isinstance(error, SavedFileError):
                raise
            warnings.warn(f"{path} is damaged: the checkpoints are read without their checksums", stacklevel=2)
            return {}

    def best(self, entries: Mapping[str, Mapping[str, Any]] | None = None) -> str | None:
        """The name of the checkpoint of the least validation loss; None where none has one."""
        entries = self.entries() if entries is None else entries
        losses = {name: e["validation_loss"] for name, e in entries.items() if "validation_loss" in e}
        return min(losses, key=lambda name: (losses[name], name)) if losses else None

    def sound(self) -> Iterator[tuple[Path, dict[str, Any]]]:
        """The sound files and their headers, newest first; a damaged one is warned of and left out."""
        entries = self.entries()
        for path in self.files():
            try:
                if path.name in entries and _sum(path) not in entries[path.name]["sha256"]:
                    raise SavedFileError(f"{path} is damaged: its checksum is not the one in {MANIFEST}")
                _, header = read_shapes(path)
            except SavedFileError as error:
                warnings.warn(f"{error}; going on from the checkpoint before it", stacklevel=4)
                continue
            yield path, header

    def set_aside(self, newest: Path | None) -> None:
        """Rename what is newer than `newest`: it is damaged, and counted as kept it would push out what is whole."""
        for path in self.files():
            if newest is None or path.name > newest.name:
                path.replace(path.with_suffix(".damaged"))


def _entry(entry: dict[str, Any]) -> dict[str, Any]:
    if not all(isinstance(s, str) for s in entry["sha256"]):
        raise TypeError
    return {"sha256": list(entry["sha256"])} | (
        {"validation_loss": float(entry["validation_loss"])} if "validation_loss" in entry else {}
    )


def _sum(path: Path) -> str:
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise SavedFileError(f"cannot read {path}: {reason(error)}") from error
