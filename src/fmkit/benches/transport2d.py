"""Two-dimensional transport from N(0, I): the protocol of [SF]2M (Tong et al. 2024, arXiv 2307.03672), Table 2.

A cell is one row (a path and a coupling), one data set and one seed:

    W2     exact, square-rooted, between as many samples by Euler in 100 steps as there are test points, and these
    NPE    |E integral |v|² dt - W2²(q0, q1)| / W2²(q0, q1), with W2² from the source's points to the test points
    floor  W2 between the test points and as many fresh ones: what a perfect flow would have

The network is a plain MLP on [t, x]; AdamW's own weights are taken, not their average, as in the publication. A cell's
result is a JSON file in the folder, written whole when it is done; until then its training lies beside, and goes on
from its last checkpoint.
"""

from __future__ import annotations

import itertools
import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from fmkit._version import __version__
from fmkit.benches.protocol import (
    BATCH,
    DECAY,
    DEPTH,
    DRAWN,
    EULER_STEPS,
    RATE,
    REFERENCE,
    ROWS,
    WIDTH,
    Protocol,
    Row,
    check_cell,
    dataset,
)
from fmkit.errors import SavedFileError
from fmkit.randomness import stream, stream_seed

if TYPE_CHECKING:
    from fmkit.data import Split
    from fmkit.training import Callback

CHECKPOINT_EVERY = 1000


class Network(torch.nn.Module):
    """v(t, x) of `(B,)` times and `(B, dim)` points: an MLP on [t, x] with SELU, its weights from the seed alone."""

    def __init__(self, seed: int, dim: int = 2) -> None:
        super().__init__()
        widths = [1 + dim, *[WIDTH] * DEPTH]
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(stream_seed(seed, "weights"))
            layers: list[torch.nn.Module] = []
            for before, after in itertools.pairwise(widths):
                layers += [torch.nn.Linear(before, after), torch.nn.SELU()]
            self.layers = torch.nn.Sequential(*layers, torch.nn.Linear(WIDTH, dim))

    def forward(self, t: Tensor, x: Tensor) -> Tensor:
        return self.layers(torch.cat([t[:, None], x], 1))


class Bench:
    """The cells of one protocol in one folder.

    Args:
        folder: where results and trainings go; made if it is not there.
        protocol: the published one by default. Results of another one in the folder are refused, never mixed.
        callbacks: for each training, a fresh list from this; none by default.
        rows: beside those of the table, by names of small letters, digits and hyphens.

    Raises:
        SavedFileError: if the folder cannot be made.
    """

    def __init__(
        self,
        folder: str | Path,
        protocol: Protocol | None = None,
        callbacks: Callable[[], Sequence[Callback]] = tuple,
        rows: Mapping[str, Row] | None = None,
    ) -> None:
        self.rows = {**(rows or {}), **ROWS}
        self.folder, self.protocol = Path(folder), Protocol() if protocol is None else protocol
        self.callbacks = callbacks
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise SavedFileError(f"cannot make the folder {self.folder}: {error.strerror}") from error

    def cell(self, row: str, data: str, seed: int) -> dict[str, Any]:
        """The figures of one cell, measured now unless that was done before.

        Raises:
            ArgumentError: for a row that is not known, or a seed that is none.
            SavedFileError: for a folder that cannot be written, or holds results of another protocol.
            ConfigError: if a part or the data set is not installed.
        """
        check_cell(row, data, seed, self.rows)
        self.reference(data, seed)
        path = self.folder / f"{data}_{row}_{seed}.json"
        return self._read(path) or self._write(path, self._measure(row, data, seed))

    def reference(self, data: str, seed: int) -> dict[str, Any]:
        """What all rows of a data set and a seed share: the floor, and W2 from the source to the test points.

        Errors as of `cell`.
        """
        check_cell(next(iter(ROWS)), data, seed)
        path = self.folder / f"{data}_{REFERENCE}_{seed}.json"
        return self._read(path) or self._write(path, self._refer(data, seed))

    def results(self) -> list[dict[str, Any]]:
        """Every result in the folder, cells and references, whoever asked for them; by data set, row and seed."""
        found = (self._read(path) for path in sorted(self.folder.glob("*.json")))
        return sorted((r for r in found if r), key=lambda r: (r["data"], r["row"], r["seed"]))

    def _measure(self, row: str, data: str, seed: int) -> dict[str, Any]:
        from fmkit.metrics import normalized_path_energy, path_energy

        known = self.reference(data, seed)
        split = self._split(data, seed)
        flow, seconds = self._train(row, split, f"{data}_{row}_{seed}", seed)
        began = time.monotonic()
        ways = path_energy(flow, self._source(split, seed))
        energy = ways.energy.mean().item()
        return {
            "row": row,
            "data": data,
            "seed": seed,
            "path": self.rows[row].path,
            "coupling": self.rows[row].coupling,
            "w2": _w2(ways.x, split.test),
            "npe": normalized_path_energy(energy, known["source_w2"] ** 2),
            "energy": energy,
            "curvature": ways.curvature.mean().item(),
            "training_seconds": seconds,
            "measuring_seconds": round(time.monotonic() - began, 1),
        }

    def _refer(self, data: str, seed: int) -> dict[str, Any]:
        split, began = self._split(data, seed), time.monotonic()
        fresh = self._split(data, stream_seed(seed, "transport2d-fresh")).test
        return {
            "row": REFERENCE,
            "data": data,
            "seed": seed,
            "floor": _w2(fresh, split.test),
            "source_w2": _w2(self._source(split, seed), split.test),
            "measuring_seconds": round(time.monotonic() - began, 1),
        }

    def _train(self, row: str, split: Split, name: str, seed: int) -> tuple[Any, float | None]:
        """The flow, and how long its training took (None if it was interrupted: nobody looked at the clock then)."""
        from fmkit.solvers import Euler
        from fmkit.training import Settings, Trainer

        settings = Settings(
            steps=self.protocol.steps,
            batch_size=BATCH,
            lr=RATE,
            weight_decay=DECAY,
            ema=0.0,
            seed=seed,
            device="cpu",
            log_every=500,
            checkpoint_every=CHECKPOINT_EVERY,
            keep=1,
            loss_floor=False,
        )
        path, coupling = self.rows[row].parts()
        trainer = Trainer(
            path,
            Network(seed, *split.event_shape),
            coupling=coupling,
            solver=Euler(EULER_STEPS),
            settings=settings,
            callbacks=self.callbacks(),
        )
        folder = self.folder / "training" / f"{name}_{self.protocol.steps}x{self.protocol.points}"
        fresh, began = not folder.exists(), time.monotonic()
        flow = trainer.fit(split.train, folder=folder, resume=True)
        return flow, round(time.monotonic() - began, 1) if fresh else None

    def _split(self, data: str, seed: int) -> Split:
        return dataset(data, self.protocol).load(seed)

    def _source(self, split: Split, seed: int) -> Tensor:
        """`(points, dim)` draws from N(0, I): where the samples begin, for every row."""
        return torch.randn(self.protocol.points, *split.event_shape, generator=stream(seed, "transport2d-source"))

    def _read(self, path: Path) -> dict[str, Any] | None:
        try:
            result = json.loads(path.read_text())
            protocol, row = Protocol(**result["protocol"]), self.rows.get(result["row"])
            parts = result.get("path"), result.get("coupling")
            drawn, expected = result.get("drawn", {}), DRAWN.get(result["data"], {})
        except FileNotFoundError:
            return None
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise SavedFileError(f"{path} is no result of this table ({error}); remove it to measure anew") from None
        if protocol != self.protocol:
            raise SavedFileError(
                f"{path} was measured with {_said(protocol)}, and this is {_said(self.protocol)}; choose another folder"
            )
        if drawn != expected:
            raise SavedFileError(
                f"{path} was measured with data drawn by {drawn}, and this is {expected}; choose another folder"
            )
        if row is not None and parts != (row.path, row.coupling):
            raise SavedFileError(
                f"{path} was measured with path {parts[0]} and coupling {parts[1]}, and this is {row.path} and "
                f"{row.coupling}; choose another name, or another folder"
            )
        return result

    def _write(self, path: Path, result: dict[str, Any]) -> dict[str, Any]:
        from fmkit.saving import write_bytes

        versions = {"fmkit": __version__, "torch": torch.__version__}
        drawn = {"drawn": DRAWN[result["data"]]} if result["data"] in DRAWN else {}
        result = {**result, **drawn, "protocol": asdict(self.protocol), "versions": versions}
        write_bytes(path, json.dumps(result, indent=1).encode() + b"\n")
        return result


def _said(protocol: Protocol) -> str:
    return f"{protocol.steps} steps and {protocol.points} points"


def _w2(x: Tensor, y: Tensor) -> float:
    from fmkit.metrics import Wasserstein

    return Wasserstein()(x, y)
