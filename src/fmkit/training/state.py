"""The state of a run: all that changes while it trains, and how it is written down and taken up again.

    folder/checkpoints/     the whole state after some steps; see `fmkit.training.checkpoint`
    folder/metrics.jsonl    one line a record; no clock in it, so runs can be compared

A checkpoint remembers how long the metrics file was. Resuming cuts it there and goes on, so no line is missing or
twice, however the run before ended.
"""

from __future__ import annotations

import contextlib
import copy
import json
import math
import os
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fmkit._version import __version__
from fmkit.arguments import check_count, shown
from fmkit.errors import ArgumentError, SavedFileError, TrainingError
from fmkit.parts import Part
from fmkit.paths import ProbabilityPath
from fmkit.saving import FORMAT, read_shapes, read_tensors, reason
from fmkit.specs import describe
from fmkit.training.callbacks import Callback
from fmkit.training.checkpoint import Checkpoints
from fmkit.training.engine import Engine, Single
from fmkit.training.health import LossOverTime, not_finite
from fmkit.training.optimizer import FusedAdamW, excess_of
from fmkit.training.settings import Settings

# Seconds between two checkpoints of a coupling that is being fitted.
PREPARED_EVERY = 5.0


class Run:
    """A training run under way.

    Attributes:
        settings: the run's numbers.
        network: what is trained.
        ema: the averaged copy, or the network itself where there is no averaging.
        optimizer: AdamW.
        scaler: the gradient scaler of float16, disabled else.
        step: steps done.
        skipped: of these, left out because their loss or gradient was not finite.
        over_time: the loss in each part of the path's interval, since it was last logged.
        folder: where the run is kept, or None.
        checkpoints: those in the folder, or None.
        validated: the step of the last validation loss, and the loss.
        engine: which process this is; rank 0 alone writes.
        flow: the flow of the averaged weights as they are, and n conditions for its samples (None if there are none).
    """

    def __init__(
        self,
        settings: Settings,
        network: torch.nn.Module,
        parts: dict[str, Part],
        folder: str | Path | None,
        engine: Engine | None = None,
    ) -> None:
        self.engine = engine or Single()
        average = copy.deepcopy(network).eval().requires_grad_(False) if settings.ema else None
        self.network = network = self.engine.spread(network)
        self.settings, self.parts, path = settings, parts, parts["path"]
        assert isinstance(path, ProbabilityPath)
        self.device = next((p.device for p in network.parameters()), torch.device("cpu"))
        self.trained = [p for p in network.parameters() if p.requires_grad]
        self.parameters: list[Tensor] = [p if (q := self._local(p)) is p else q.requires_grad_() for p in self.trained]
        if not self.parameters:
            raise TrainingError("the field has no parameters that require gradients; there is nothing to train")
        self.ema = network if average is None else self.engine.spread(average)
        # Listed once: walking through the modules at every step would cost more than the averaging.
        self._averages: list[Tensor] = [self._local(p) for p in self.ema.parameters()]
        self._weights = [self._local(p).detach() for p in network.parameters()]
        self._buffers = list(zip(self.ema.buffers(), network.buffers(), strict=True))
        self.optimizer = FusedAdamW(_groups(self.parameters, settings.weight_decay), settings.lr, settings.betas)
        self.scaler = torch.amp.GradScaler(self.device.type, enabled=settings.precision == "float16")
        self.step = 0
        self.total, self.counted = torch.zeros((), dtype=torch.float64, device=self.device), 0
        self.skipped = 0
        self.over_time = LossOverTime(path.interval, self.engine, self.device)
        self.folder = None if folder is None else Path(folder)
        self.checkpoints = None if self.folder is None else Checkpoints(self.folder)
        self.validated: tuple[int, float] | None = None
        self.callbacks: Sequence[Callback] = ()
        self.flow: Callable[[int], tuple[Any, Any]] = _not_begun
        self._metrics: Any = None

    @property
    def in_parts(self) -> bool:
        """Whether a process holds parts of the weights only."""
        return any(p is not q for p, q in zip(self.parameters, self.trained, strict=True))

    @property
    def steps(self) -> int:
        """Steps in all."""
        return self.settings.steps

    def learning_rate(self) -> float:
        """The rate of the step about to be taken."""
        s = self.settings
        if self.step < s.warmup:
            return s.lr * (self.step + 1) / s.warmup
        done = (self.step - s.warmup) / max(1, s.steps - s.warmup)
        factor = {"constant": 1.0, "linear": 1 - done, "cosine": (1 + math.cos(math.pi * done)) / 2}[s.decay]
        return s.lr * factor

    def gradient_norm(self) -> Tensor:
        """The norm of the whole gradient, of all processes' parts."""
        if self.scaler.is_enabled():
            self.scaler.unscale_(self.optimizer)
        return self.optimizer.norm(self.engine.add_parts)

    def not_finite(self) -> str:
        """Whose gradient is not finite here, in words."""
        trained = (name for name, p in self.network.named_parameters() if p.requires_grad)
        spoilt = not_finite(trained, self.parameters)
        return (
            f"the gradient of {', '.join(spoilt[:3])}{', ...' if len(spoilt) > 3 else ''}" if spoilt else "the gradient"
        )

    def update(self, norm: Tensor | None = None) -> None:
        """Take the optimizer's step with the gradients there are, and move the averaged weights.

        Args:
            norm: of the gradient, which is needed for clipping it.
        """
        clip = self.settings.clip
        if self.scaler.is_enabled():
            if clip is not None and norm is not None:
                excess = excess_of(norm, clip)
                torch._foreach_div_([p.grad for p in self.parameters if p.grad is not None], excess)
            self.scaler.step(self.optimizer)
            self.scaler.update()
        else:
            self.optimizer.update(clip, norm)
        self._average()

    @torch.no_grad()
    def _average(self) -> None:
        """Move the averaged weights towards the network's."""
        if self.ema is self.network:
            return
        decay = min(self.settings.ema, (1 + self.step) / (10 + self.step))
        torch._foreach_lerp_(self._averages, self._weights, 1 - decay)
        for average, buffer in self._buffers:
            average.copy_(buffer)

    def open(self, resume: bool) -> None:
        """Begin the run folder, or take up the run that lies there.

        Raises:
            TrainingError: if the folder holds a run and `resume` is False.
            SavedFileError: if the folder cannot be written, or its checkpoints do not fit this run.
        """
        if self.folder is None or self.checkpoints is None:
            return
        try:
            metrics = self.folder / "metrics.jsonl"
            if self.engine.main:
                self.checkpoints.open()
                if metrics.exists() and not resume:
                    raise TrainingError(f"{self.folder} holds a run already; resume it, or choose another folder")
                kept = self._load_newest()
            main = int(self.engine.tell(str(self.step)))
            if not self.engine.main:
                self._follow(main)
                return
            there = metrics.stat().st_size if metrics.exists() else 0
            if there < kept:
                raise SavedFileError(f"{metrics} has {there} bytes; the checkpoint was written when it had {kept}")
            self._metrics = open(metrics, "ab")  # noqa: SIM115 - open as long as the run
            self._metrics.truncate(kept)
            self._metrics.seek(kept)
        except (OSError, ValueError) as error:  # a ValueError: a name that no file system allows
            raise SavedFileError(f"cannot use the run folder {self.folder}: {reason(error)}") from error

    def _follow(self, step: int) -> None:
        """Take up the checkpoint that rank 0 has."""
        self._load_newest()
        if step != self.step:
            raise SavedFileError(
                f"rank {self.engine.rank} found step {self.step} in {self.folder}, rank 0 found step {step}; the run "
                "folder must lie where all processes see it"
            )

    def close(self) -> None:
        """Leave the run folder; the run's own state stays."""
        if self._metrics is not None:
            with contextlib.suppress(OSError):  # what could not be written has been said
                self._metrics.close()
            self._metrics = None

    def note(self, line: dict[str, Any]) -> None:
        """Append one line to the metrics, and tell the callbacks of it."""
        self.record(line)
        for callback in self.callbacks:
            callback.on_log(self, line)

    def record(self, line: dict[str, Any]) -> None:
        """Append one line to the metrics.

        Raises:
            SavedFileError: if it cannot be written.
        """
        if self._metrics is not None:
            try:
                self._metrics.write(json.dumps(line).encode() + b"\n")
                self._metrics.flush()
            except OSError as error:
                raise SavedFileError(self._lost(f"cannot write {self._metrics.name}: {reason(error)}")) from error

    def _lost(self, said: str) -> str:
        """An error of writing, and what is left."""
        files = self.checkpoints.files() if self.checkpoints is not None else []
        kept = f"the last good checkpoint is {files[0]}; resume from it" if files else "there is no checkpoint yet"
        return f"{said} (step {self.step}); {kept}"

    def check_weights(self) -> None:
        """Refuse to keep, or to hand over, weights that a non-finite gradient has spoilt.

        Raises:
            TrainingError: if any weight is not finite.
        """
        spoilt = sum(not bool(torch.isfinite(p).all()) for p in self.parameters)
        if self.engine.sum(torch.tensor([float(spoilt)], device=self.device)).item():
            raise TrainingError(
                f"weights are no longer finite after step {self.step - 1}, though the loss was; the checkpoint before "
                "is kept. Lower the learning rate, or clip gradients"
            )

    def prepare(self, progress: Iterable[float]) -> Iterator[float]:
        """Pass on the progress of a fit before the first step, with a checkpoint every few seconds."""
        last = time.monotonic()
        for done in progress:
            late = torch.tensor([float(time.monotonic() - last > PREPARED_EVERY)], device=self.device)
            if self.engine.sum(late).item():
                self.checkpoint()
                last = time.monotonic()
            yield done

    def checkpoint(self) -> None:
        """Write the whole state, atomically, and drop checkpoints beyond the last `keep` and the best.

        Raises:
            SavedFileError: if it cannot be written: a full disk, a folder that has gone. Those before are untouched.
        """
        if self.checkpoints is None:
            return
        tensors = self._tensors()  # of every process, where each has a part
        if not self.engine.main:
            return
        header = {
            "format": FORMAT,
            "fmkit": __version__,
            "kind": "checkpoint",
            "step": self.step,
            "settings": self.settings.model_dump(mode="json"),
            "parts": self._described(),
            "metrics_bytes": self._metrics.tell() if self._metrics else 0,
            "counted": self.counted,
            "skipped": self.skipped,
            "scaler": self.scaler.state_dict(),
        }
        loss = self.validated[1] if self.validated is not None and self.validated[0] == self.step else None
        try:
            if self._metrics is not None:
                os.fsync(self._metrics.fileno())
            self.checkpoints.write(self.step, tensors, header, self.settings.keep, loss)
        except (OSError, SavedFileError) as error:
            said = str(error) if isinstance(error, SavedFileError) else f"cannot write {self.folder}: {reason(error)}"
            raise SavedFileError(self._lost(said)) from error

    def _modules(self) -> dict[str, torch.nn.Module]:
        return {"network": self.network, "ema": self.ema, **self.parts}

    def _tensors(self) -> dict[str, Tensor]:
        tensors = {"total": self.total, "over_time": self.over_time.state()}
        for prefix, module in self._modules().items():
            tensors |= {f"{prefix}.{k}": self._whole(v, v) for k, v in module.state_dict().items()}
        for i, (part, parameter) in enumerate(zip(self.parameters, self.trained, strict=True)):
            state = self.optimizer.state.get(part, {})
            tensors |= {f"optimizer.{i}.{k}": self._whole(v, parameter) for k, v in state.items()}
        return tensors

    def _local(self, tensor: Tensor) -> Tensor:
        return self.engine.local(tensor)

    def _whole(self, tensor: Tensor, like: Tensor) -> Tensor:
        return self.engine.gather(self._local(tensor), like)

    def whole(self, module: torch.nn.Module) -> dict[str, Tensor]:
        """The state of the network or its average, of all processes together."""
        return {k: self._whole(v, v) for k, v in module.state_dict().items()}

    def _load_newest(self) -> int:
        """Take up the newest checkpoint there is; the length of the metrics file it knows of."""
        assert self.checkpoints is not None  # asked for only where there is a folder
        for path, header in self.checkpoints.sound():
            _check_header(header, path)
            self._check(header, path)
            self._check_shapes(path)
            tensors, _ = read_tensors(path)
            for prefix, module in self._modules().items():
                part = {k.removeprefix(f"{prefix}."): v for k, v in tensors.items() if k.startswith(f"{prefix}.")}
                self._load(module, part, prefix, path)
            for i, parameter in enumerate(self.trained) if header["step"] else ():  # before, there is no state
                if tensors.keys().isdisjoint(f"optimizer.{i}.{k}" for k in ("step", "exp_avg", "exp_avg_sq")):
                    continue  # a weight that had no gradient yet
                like = {"step": torch.Size(), "exp_avg": parameter.shape, "exp_avg_sq": parameter.shape}
                state = {k: _taken(tensors, f"optimizer.{i}.{k}", shape, path) for k, shape in like.items()}
                fused = self.optimizer.param_groups[0]["fused"]
                state["step"] = state["step"].to(self.device if fused else "cpu")
                self.optimizer.state[self.parameters[i]] = {
                    k: v.clone() if k == "step" else self.engine.share(v.to(parameter.device, copy=True), parameter)
                    for k, v in state.items()
                }
            self.scaler.load_state_dict(header["scaler"]) if self.scaler.is_enabled() else None
            self.total = _taken(tensors, "total", torch.Size(), path).to(self.device)
            self.counted, self.skipped = header["counted"], header.get("skipped", 0)
            if "over_time" in tensors:  # a younger key
                self.over_time.load(tensors["over_time"].to(self.device))
            self.step = header["step"]
            if self.engine.main:
                self.checkpoints.set_aside(path)
            return int(header["metrics_bytes"])
        if self.engine.main:
            self.checkpoints.set_aside(None)
        return 0

    def _load(self, module: torch.nn.Module, part: dict[str, Tensor], prefix: str, path: Path) -> None:
        there = module.state_dict()
        try:
            if not any(self._local(v) is not v for v in there.values()):
                module.load_state_dict(part)
                return
            if part.keys() != there.keys() or any(part[k].shape != v.shape for k, v in there.items()):
                raise RuntimeError("other names or shapes")
            for key, tensor in there.items():
                self._local(tensor).copy_(self.engine.share(part[key], tensor))
        except RuntimeError as error:
            raise SavedFileError(f"{path} does not fit this run's {prefix}: {error}") from error

    def _check(self, header: dict[str, Any], path: Path) -> None:
        """Refuse to go on with other numbers: the run would silently be neither the old one nor the new."""
        free = {"steps", "device", "keep", "checkpoint_every", "loss_floor", "coupling_workers", "compile"}
        free |= {"accumulate", "checkpoint_activations"}  # how a step is worked out, not what it is
        # A key that is younger than the checkpoint had its default.
        was, now = Settings().model_dump(mode="json") | header["settings"], self.settings.model_dump(mode="json")
        for key in now:
            if key not in free and was.get(key) != now[key]:
                raise SavedFileError(f"{path} was trained with {key} = {was.get(key)!r}, this run has {now[key]!r}")
        for key, part in self._described().items():
            if header["parts"].get(key) != part:
                raise SavedFileError(f"{path} was trained with {key} = {header['parts'].get(key)}, this run has {part}")

    def _check_shapes(self, path: Path) -> None:
        """Refuse other networks before they take memory."""
        shapes, _ = read_shapes(path)
        for prefix in ("network", "ema"):
            for key, value in self._modules()[prefix].state_dict().items():
                got, name = shapes.get(f"{prefix}.{key}"), f"{prefix}.{key}"
                if got is not None and isinstance(value, Tensor) and got != tuple(value.shape):
                    raise SavedFileError(f"{path} has shape {got} for {name}, this run has {tuple(value.shape)}")

    def _described(self) -> dict[str, Any]:
        """The parts as plain data; their tensors are in the checkpoint itself, or in the data."""
        return {key: describe(part, {}, key) for key, part in self.parts.items()}


def _not_begun(n: int) -> tuple[Any, Any]:
    raise TrainingError("the run has not begun")


def part_of_newest(folder: Path, part: str) -> dict[str, Tensor]:
    """The state of one part in the newest sound checkpoint of a run folder; empty where there is none."""
    newest = next((path for path, _ in Checkpoints(folder).sound()), None)
    tensors = read_tensors(newest)[0] if newest is not None else {}
    return {k.removeprefix(f"{part}."): v for k, v in tensors.items() if k.startswith(f"{part}.")}


def _check_header(header: dict[str, Any], path: Path) -> None:
    """Refuse a checkpoint whose description is damaged."""
    if header.get("kind") != "checkpoint":
        raise SavedFileError(f"{path} holds a {header.get('kind')!r}, expected a checkpoint")
    for key in ("step", "counted", "metrics_bytes"):
        try:
            check_count(key, header.get(key), least=0)
        except ArgumentError as error:
            raise SavedFileError(f"{path} is damaged: {error}") from None
    for key in ("settings", "parts"):
        if not isinstance(header.get(key), dict):
            raise SavedFileError(f"{path} is damaged: {key} is {shown(header.get(key))}, expected a mapping")


def _taken(tensors: dict[str, Tensor], key: str, shape: torch.Size, path: Path) -> Tensor:
    """A tensor of a checkpoint, if it is there and of the shape that this run has."""
    if key not in tensors or tensors[key].shape != shape:
        raise SavedFileError(f"{path} has {shown(tensors.get(key))} for {key}, expected one of shape {tuple(shape)}")
    return tensors[key]


def _groups(parameters: list[Tensor], decay: float) -> list[dict[str, Any]]:
    """Weight decay is for matrices: pulling a bias or a normalisation's gain towards zero only biases it."""
    if decay == 0:  # one group is one call of the fused optimizer
        return [{"params": parameters, "weight_decay": 0.0}]
    matrices = [p for p in parameters if p.ndim > 1]
    rest = [p for p in parameters if p.ndim <= 1]
    groups = [{"params": matrices, "weight_decay": decay}, {"params": rest, "weight_decay": 0.0}]
    return [group for group in groups if group["params"]]
