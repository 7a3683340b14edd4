"""The paper's experiment on images (Lipman et al., arXiv 2210.02747): five ways of training one network.

A cell is a method and a seed. Every method has the same network, the same first weights, batches and noise, and the
same number of steps: those that a calibration on the machine says fit into the budget, once for all methods, so that
neither chance nor another process favours one. The seconds that each really took stand beside. A cell's result is
written whole when it is done; one that was cut off begins again, and none is run twice.
"""

from __future__ import annotations

import copy
import json
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from fmkit._version import __version__
from fmkit.arguments import check_count, device_of
from fmkit.benches import paper_measures as measures
from fmkit.benches.paper_protocol import (
    DURING,
    EMA,
    LR,
    METHODS,
    WARMUP,
    Protocol,
    check_method,
)
from fmkit.config import parsed
from fmkit.errors import SavedFileError
from fmkit.fields import UNet
from fmkit.image_evaluation import feature_extractor, labelled_images
from fmkit.randomness import stream_seed
from fmkit.training import Callback

if TYPE_CHECKING:
    from fmkit.data import Split
    from fmkit.flow import Flow
    from fmkit.training import Trainer

CALIBRATION, IGNORED = 30, 5


class Looks(Callback):
    """The averaged weights at some steps, and the seconds of the steps, without those of keeping weights.

    A GPU is waited for at those steps, at the last, and where a calibration begins to count; between them a step's
    seconds are those of asking for it, and only their sum means anything.

    Args:
        at: the steps.
    """

    def __init__(self, at: set[int]) -> None:
        super().__init__()
        self.at, self.kept, self.seconds = at, {}, []  # type: ignore[var-annotated]

    def on_start(self, run: Any) -> None:
        self._last = time.monotonic()

    def on_step(self, run: Any) -> None:
        if run.device.type == "cuda" and run.step in self.at | {IGNORED, run.steps}:
            torch.cuda.synchronize(run.device)
        self.seconds.append(time.monotonic() - self._last)
        if run.step in self.at:
            self.kept[run.step] = copy.deepcopy(run.ema.state_dict())
        self._last = time.monotonic()


class Bench:
    """The cells of one protocol in one folder.

    Args:
        folder: where results go; made if it is not there.
        protocol: what a cell costs. Results of another one in the folder are refused, never mixed.
        cache: where the classifier and the statistics of real images are kept; fmkit's cache by default.
        classifier_steps: of the classifier's training, for tests.
        tell: is told in a few words what is done next, for a cell takes minutes to hours; nobody by default.

    Raises:
        SavedFileError: if the folder cannot be made.
    """

    def __init__(
        self,
        folder: str | Path,
        protocol: Protocol,
        cache: Path | None = None,
        classifier_steps: int | None = None,
        tell: Callable[[str], Any] | None = None,
    ) -> None:
        self.folder, self.protocol = Path(folder), protocol
        self.cache, self.classifier_steps = cache, classifier_steps
        self.tell: Callable[[str], Any] = tell or (lambda text: None)
        self._split: Split | None = None
        self._judge: measures.Judge | None = None
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise SavedFileError(f"cannot make the folder {self.folder}: {error.strerror}") from error

    def cell(self, method: str, seed: int) -> dict[str, Any]:
        """The figures of one cell, measured now unless that was done before.

        Raises:
            ArgumentError: for a method that is not known, a seed that is none, data that are no labelled images, or a
                device that is not here.
            SavedFileError: for a folder that cannot be written, or holds results of another protocol.
        """
        check_method(method)
        check_count("seed", seed, least=0)
        path = self.folder / f"{self.protocol.stem}_{method}_{seed}.json"
        return self._read(path) or self._measure(path, method, seed)

    def results(self) -> list[dict[str, Any]]:
        """Every result in the folder, by method and seed."""
        return load_results(self.folder)

    @property
    def split(self) -> Split:
        """The images."""
        if self._split is None:
            self._split = labelled_images(parsed(self.protocol.data, "data"))
        return self._split

    @property
    def judge(self) -> measures.Judge:
        """Of generated images."""
        if self._judge is None:
            named, p = self.protocol.features, self.protocol
            features = None if named is None else feature_extractor(parsed(named, "features"), self.split).to(p.device)
            self.tell("features of the real images")
            self._judge = measures.Judge(self.split, self.cache, self.classifier_steps, features, p.device)
        return self._judge

    def steps(self) -> int:
        """As many as fit into the budget, by a calibration that the folder keeps."""
        return self.protocol.steps or int(self._calibration()["steps"])

    def _calibration(self) -> dict[str, Any]:
        """`steps` that fit into the budget, and `step_seconds`, the last time that this was measured or now."""
        path = self.folder / "calibration" / f"{self.protocol.stem}.json"
        if path.is_file():
            known: dict[str, Any] = json.loads(path.read_text())
            if Protocol(**known["protocol"]) == self.protocol:
                return known
        self.tell("how many steps fit into the budget")
        looks = Looks(set())
        self._trainer("fm-ot", 0, CALIBRATION, looks).fit(self._unlabelled())
        each = sum(looks.seconds[IGNORED:]) / (CALIBRATION - IGNORED)
        steps = max(8, int(self.protocol.budget / each))
        path.parent.mkdir(exist_ok=True)
        return self._write(path, {"steps": steps, "step_seconds": each})

    def _then(self) -> str:
        """How long measuring will take, where a step was timed: a third of it evaluates a batch."""
        if self.protocol.steps is not None:
            return ""
        each = self._calibration()["step_seconds"] / (3 * self.protocol.batch)
        minutes = measures.evaluations(self.protocol) * each / 60
        return f"; measuring it will take about {minutes:.0f} min" if minutes >= 1 else ""

    def _measure(self, path: Path, method: str, seed: int) -> dict[str, Any]:
        device_of(self.protocol.device)  # before anything is trained
        judge, steps = self.judge, self.steps()
        self.tell(f"training, {steps:,} steps{self._then()}")
        looks = Looks({max(1, round(share * steps)) for share in DURING})
        flow = self._trainer(method, seed, steps, looks).fit(self._unlabelled())
        began, protocol = time.monotonic(), self.protocol
        during = [self._look(flow, step, weights, seed) for step, weights in sorted(looks.kept.items())]
        self.tell("bits per dimension")
        bits = measures.likelihood(flow, self.split, protocol, seed)
        self.tell("FID and error of few steps")
        few_steps = measures.few_steps(flow, judge, protocol, seed)
        result = {
            "method": method,
            "seed": seed,
            "steps": steps,
            "training_seconds": round(sum(looks.seconds), 3),
            "parameters": sum(p.numel() for p in flow.field.parameters()),
            **bits,
            "fid": during[-1]["fid"],
            "nfe": during[-1]["nfe"],
            "during": during,
            "few_steps": few_steps,
            "held_out": judge.held_out(self.split, protocol.samples),
        }
        from fmkit.saving import FORMAT, write_tensors

        write_tensors(path.with_suffix(".safetensors"), measures.strips(flow, seed), {"format": FORMAT})
        return self._write(path, result | {"measuring_seconds": round(time.monotonic() - began, 1)})

    def _look(self, flow: Flow, step: int, weights: dict[str, Tensor], seed: int) -> dict[str, Any]:
        """What dopri5 makes of the weights of a step; the last ones are left in the flow."""
        from fmkit.fields import network_of

        self.tell(f"FID and NFE after {step:,} steps")
        network_of(flow.field).load_state_dict(weights)
        return {"step": step, **measures.adaptive(flow, self.judge, self.protocol, seed)}

    def _trainer(self, method: str, seed: int, steps: int, looks: Looks) -> Trainer:
        from fmkit.objectives import Objective
        from fmkit.paths import ProbabilityPath
        from fmkit.specs import build
        from fmkit.training import Settings, Trainer

        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(stream_seed(seed, "weights"))
            network = UNet(self.split.event_shape, preset=self.protocol.preset)
        settings = Settings(
            steps=steps,
            batch_size=self.protocol.batch,
            lr=LR,
            warmup=int(WARMUP * steps),
            decay="linear",
            ema=EMA,
            seed=seed,
            device=self.protocol.device,
            loss_floor=False,
        )
        chosen = METHODS[method]
        path = build(ProbabilityPath, chosen.path, "path")
        objective = build(Objective, chosen.objective, "objective")
        return Trainer(path, network, objective, settings=settings, callbacks=[looks])

    def _unlabelled(self) -> Any:
        from dataclasses import replace

        return replace(self.split.train, cond=None)

    def _read(self, path: Path) -> dict[str, Any] | None:
        result = read_result(path)
        if result is not None and Protocol(**result["protocol"]) != self.protocol:
            raise SavedFileError(
                f"{path} was measured with {result['protocol']}, and this is {asdict(self.protocol)}; choose another "
                "folder"
            )
        return result

    def _write(self, path: Path, result: dict[str, Any]) -> dict[str, Any]:
        from fmkit.saving import write_bytes

        versions = {"fmkit": __version__, "torch": torch.__version__}
        result = {**result, "protocol": asdict(self.protocol), "versions": versions}
        write_bytes(path, json.dumps(result, indent=1).encode() + b"\n")
        return result


def read_result(path: Path) -> dict[str, Any] | None:
    """A cell's result, or None where there is none.

    Raises:
        SavedFileError: for a file that is none.
    """
    try:
        result = json.loads(path.read_text())
        Protocol(**result["protocol"])
        check_method(result["method"])
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise SavedFileError(f"{path} is no result of this table ({error}); remove it to measure anew") from None
    return result


def load_results(folder: Path) -> list[dict[str, Any]]:
    """Every result in a folder, by data, method in the table's order, and seed."""
    found = [r for path in sorted(folder.glob("*.json")) if (r := read_result(path))]
    return sorted(found, key=lambda r: (r["protocol"]["data"], [*METHODS].index(r["method"]), r["seed"]))
