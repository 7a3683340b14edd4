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
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from fmkit._version import __version__
from fmkit.arguments import check_count
from fmkit.errors import ArgumentError, SavedFileError, did_you_mean
from fmkit.randomness import stream, stream_seed

if TYPE_CHECKING:
    from fmkit.data import Split
    from fmkit.training import Callback

SEEDS = (42, 43, 44, 45, 46)
SIGMA, BATCH, EULER_STEPS, RATE, DECAY, WIDTH, DEPTH = 0.1, 512, 100, 1e-3, 1e-5, 64, 3
CHECKPOINT_EVERY = 1000


@dataclass(frozen=True)
class Row:
    """A method: how the table calls it, and its parts as a configuration names them."""

    label: str
    path: dict[str, Any]
    coupling: str


CONDOT, ICFM = {"name": "condot", "sigma_min": SIGMA}, {"name": "icfm", "sigma": SIGMA}
ROWS = {
    "fm": Row("FM", CONDOT, "independent"),
    "i-cfm": Row("I-CFM", ICFM, "independent"),
    "ot-cfm": Row("OT-CFM", ICFM, "ot"),
    "sf2m-exact": Row("[SF]2M exact", {"name": "schrodinger-bridge", "sigma": SIGMA}, "ot"),
}
DATA = {"8gaussians": "N → 8 Gaussians", "moons": "N → moons"}


@dataclass(frozen=True)
class Published:
    """A figure of the publication: mean and standard deviation over five seeds."""

    w2: tuple[float, float]
    npe: tuple[float, float]


PUBLISHED = {
    ("ot-cfm", "8gaussians"): Published((0.303, 0.043), (0.031, 0.027)),
    ("ot-cfm", "moons"): Published((0.130, 0.016), (0.083, 0.009)),
    ("i-cfm", "8gaussians"): Published((0.373, 0.103), (0.202, 0.055)),
    ("i-cfm", "moons"): Published((0.178, 0.014), (0.891, 0.120)),
    ("fm", "8gaussians"): Published((0.343, 0.058), (0.190, 0.054)),
    ("fm", "moons"): Published((0.209, 0.055), (0.762, 0.099)),
    ("sf2m-exact", "8gaussians"): Published((0.275, 0.058), (0.016, 0.012)),
    ("sf2m-exact", "moons"): Published((0.124, 0.023), (0.053, 0.038)),
}


@dataclass(frozen=True)
class Protocol:
    """What a cell costs. Anything below the defaults is another experiment, and is said to be one wherever it is shown.

    Attributes:
        steps: of training, >= 1.
        points: for training, as test set, and generated: so many of each, >= 2.

    Raises:
        ArgumentError: for fewer.
    """

    steps: int = 20_000
    points: int = 10_000

    def __post_init__(self) -> None:
        check_count("steps", self.steps)
        check_count("points", self.points, least=2)

    @property
    def full(self) -> bool:
        """Whether it is the published one."""
        return self == Protocol()


class Network(torch.nn.Module):
    """v(t, x): an MLP on [t, x] with SELU, weights initialised as torch does it, from the seed alone."""

    def __init__(self, seed: int) -> None:
        super().__init__()
        widths = [3, *[WIDTH] * DEPTH]
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(stream_seed(seed, "weights"))
            layers: list[torch.nn.Module] = []
            for before, after in itertools.pairwise(widths):
                layers += [torch.nn.Linear(before, after), torch.nn.SELU()]
            self.layers = torch.nn.Sequential(*layers, torch.nn.Linear(WIDTH, 2))

    def forward(self, t: Tensor, x: Tensor) -> Tensor:
        return self.layers(torch.cat([t[:, None], x], 1))


class Bench:
    """The cells of one protocol in one folder.

    Args:
        folder: where results and trainings go; made if it is not there.
        protocol: the published one by default. Results of another one in the folder are refused, never mixed.
        callbacks: for each training, a fresh list from this; none by default.

    Raises:
        SavedFileError: if the folder cannot be made.
    """

    def __init__(
        self,
        folder: str | Path,
        protocol: Protocol | None = None,
        callbacks: Callable[[], Sequence[Callback]] = tuple,
    ) -> None:
        self.folder, self.protocol = Path(folder), Protocol() if protocol is None else protocol
        self.callbacks = callbacks
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise SavedFileError(f"cannot make the folder {self.folder}: {error.strerror}") from error

    def cell(self, row: str, data: str, seed: int) -> dict[str, Any]:
        """The figures of one cell, measured now unless that was done before.

        Raises:
            ArgumentError: for a row or data set that the table has not, or a seed that is none.
            SavedFileError: for a folder that cannot be written, or holds results of another protocol.
            ConfigError: if a part is not installed.
        """
        check_cell(row, data, seed)
        path = self.folder / f"{data}_{row}_{seed}.json"
        return self._read(path) or self._write(path, self._measure(row, data, seed))

    def reference(self, data: str, seed: int) -> dict[str, Any]:
        """What all rows of a data set and a seed share: the floor, and W2 from the source to the test points."""
        check_cell(next(iter(ROWS)), data, seed)
        path = self.folder / f"{data}_reference_{seed}.json"
        return self._read(path) or self._write(path, self._refer(data, seed))

    def results(self) -> list[dict[str, Any]]:
        """Every result in the folder, cells and references, in the order of the table."""
        found = (
            self._read(self.folder / f"{data}_{row}_{seed}.json")
            for data in DATA
            for row in (*ROWS, "reference")
            for seed in self._seeds()
        )
        return [result for result in found if result]

    def _seeds(self) -> Iterator[int]:
        seeds = {path.stem.rpartition("_")[2] for path in self.folder.glob("*_*_*.json")}
        yield from sorted(int(seed) for seed in seeds if seed.isdecimal())

    def _measure(self, row: str, data: str, seed: int) -> dict[str, Any]:
        from fmkit.metrics import normalized_path_energy, path_energy

        known = self.reference(data, seed)
        split = self._split(data, seed)
        flow, seconds = self._train(row, split, f"{data}_{row}_{seed}", seed)
        began = time.monotonic()
        ways = path_energy(flow, self._source(seed))
        energy = ways.energy.mean().item()
        return {
            "row": row,
            "data": data,
            "seed": seed,
            "path": ROWS[row].path,
            "coupling": ROWS[row].coupling,
            "w2": _w2(ways.x, split.test),
            "npe": normalized_path_energy(energy, known["source_w2"] ** 2),
            "energy": energy,
            "curvature": ways.curvature.mean().item(),
            "training_seconds": seconds,
            "measuring_seconds": round(time.monotonic() - began, 1),
        }

    def _refer(self, data: str, seed: int) -> dict[str, Any]:
        dataset, split = self._dataset(data), self._split(data, seed)
        began = time.monotonic()
        fresh = dataset.sample(self.protocol.points, stream(seed, "transport2d-fresh"))
        return {
            "row": "reference",
            "data": data,
            "seed": seed,
            "floor": _w2(fresh, split.test),
            "source_w2": _w2(self._source(seed), split.test),
            "measuring_seconds": round(time.monotonic() - began, 1),
        }

    def _train(self, row: str, split: Split, name: str, seed: int) -> tuple[Any, float | None]:
        """The flow, and how long its training took (None if it was interrupted: nobody looked at the clock then)."""
        from fmkit.couplings import Coupling
        from fmkit.paths import ProbabilityPath
        from fmkit.solvers import Euler
        from fmkit.specs import build
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
        path = build(ProbabilityPath, ROWS[row].path, "path")
        coupling = build(Coupling, ROWS[row].coupling, "coupling")
        trainer = Trainer(
            path,
            Network(seed),
            coupling=coupling,
            solver=Euler(EULER_STEPS),
            settings=settings,
            callbacks=self.callbacks(),
        )
        folder = self.folder / "training" / f"{name}_{self.protocol.steps}x{self.protocol.points}"
        fresh, began = not folder.exists(), time.monotonic()
        flow = trainer.fit(split.train, folder=folder, resume=True)
        return flow, round(time.monotonic() - began, 1) if fresh else None

    def _dataset(self, data: str) -> Any:
        from fmkit.data import DataSet
        from fmkit.specs import build

        points = self.protocol.points
        return build(DataSet, {"name": data, "n_train": points, "n_test": points}, "data")

    def _split(self, data: str, seed: int) -> Split:
        return self._dataset(data).load(seed)

    def _source(self, seed: int) -> Tensor:
        """`(points, 2)` draws from N(0, I): where the samples begin, for every row."""
        return torch.randn(self.protocol.points, 2, generator=stream(seed, "transport2d-source"))

    def _read(self, path: Path) -> dict[str, Any] | None:
        try:
            result = json.loads(path.read_text())
            protocol = Protocol(**result["protocol"])
        except FileNotFoundError:
            return None
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise SavedFileError(f"{path} is no result of this table ({error}); remove it to measure anew") from None
        if protocol != self.protocol:
            raise SavedFileError(
                f"{path} was measured with {_said(protocol)}, and this is {_said(self.protocol)}; choose another folder"
            )
        return result

    def _write(self, path: Path, result: dict[str, Any]) -> dict[str, Any]:
        from fmkit.saving import write_bytes

        versions = {"fmkit": __version__, "torch": torch.__version__}
        result = {**result, "protocol": asdict(self.protocol), "versions": versions}
        write_bytes(path, json.dumps(result, indent=1).encode() + b"\n")
        return result


def check_cell(row: str, data: str, seed: int) -> None:
    """Refuse what is no cell of the table.

    Raises:
        ArgumentError: for an unknown row or data set, or a seed below 0.
    """
    for name, value, known in (("row", row, ROWS), ("data", data, DATA)):
        if value not in known:
            raise ArgumentError(f"{name} is {value!r}, which the table has not{did_you_mean(str(value), known)}")
    check_count("seed", seed, least=0)


def _said(protocol: Protocol) -> str:
    return f"{protocol.steps} steps and {protocol.points} points"


def _w2(x: Tensor, y: Tensor) -> float:
    from fmkit.metrics import Wasserstein

    return Wasserstein()(x, y)
