"""The trainer: data -> coupling -> path -> network -> objective -> optimizer, step by step.

Every random draw of a step follows from (seed, purpose, step), so a resumed run continues to the very same weights.
"""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from fmkit.arguments import checked
from fmkit.couplings import Coupling, Independent, OptimalTransport, Paired
from fmkit.data.base import Data
from fmkit.errors import ArgumentError, CombinationError, SavedFileError
from fmkit.fields import as_field, network_of
from fmkit.flow import Flow, check_reads
from fmkit.objectives import Batch, Objective, VelocityMatching
from fmkit.paths import ProbabilityPath
from fmkit.solvers import Dopri5, Solver
from fmkit.sources import INTEGERS, Empirical, Gaussian, Source
from fmkit.training.batches import batches_of, first_conditions
from fmkit.training.callbacks import Callback, Progress, Telemetry
from fmkit.training.engine import Engine, Single, engine_of_environment
from fmkit.training.floors import LossFloor, floor_of
from fmkit.training.interruption import Interruption
from fmkit.training.pairing import Pairing
from fmkit.training.recomputing import recomputing
from fmkit.training.settings import Settings
from fmkit.training.shares import check_shares
from fmkit.training.signs import Signs, check_labels
from fmkit.training.state import Run, part_of_newest
from fmkit.training.step import Stepper

VALIDATION_BATCHES = 8


class Trainer:
    """Trains a field on a path.

    Args:
        path: how a source sample becomes a data sample.
        field: the network: a field, or any module `(t, x)` or `(t, x, cond)`. It is trained in place.
        objective: what the network regresses on; the velocity by default.
        source: the law at t = 0; standard normal by default.
        coupling: which source sample meets which data sample; independent by default.
        solver: the flow's; dopri5 at 1e-5 by default.
        settings: steps, batch size, learning rate and the like.
        callbacks: told of every step; a progress bar, and telemetry in the run folder, by default.

    Raises:
        CombinationError: if path, objective, source and coupling have no meaning together.
    """

    @checked
    def __init__(
        self,
        path: ProbabilityPath,
        field: torch.nn.Module,
        objective: Objective | None = None,
        source: Source | None = None,
        coupling: Coupling | None = None,
        solver: Solver | None = None,
        settings: Settings | None = None,
        callbacks: Sequence[Callback] | None = None,
    ) -> None:
        self.path, self.field = path, field
        self.objective = VelocityMatching() if objective is None else objective
        self._source, self._coupling = source, coupling
        self.solver = Dopri5() if solver is None else solver
        self.settings = Settings() if settings is None else settings
        self.callbacks = [Progress(), Telemetry()] if callbacks is None else list(callbacks)
        self._check(source or Gaussian(), coupling or Independent())

    @checked
    def fit(
        self,
        data: Any,
        cond: Any = None,
        *,
        validation: Any = None,
        folder: str | Path | None = None,
        resume: bool = False,
        initial: Flow | None = None,
        engine: Engine | None = None,
    ) -> Flow:
        """Train, and return the flow of the averaged weights.

        Args:
            data: `(N, *event)` tensor or array, a torch Dataset or DataLoader of samples or (sample, condition) pairs,
                a tuple (x0, x1) of paired samples, or a `Data` record.
            cond: `(N, ...)` conditions of a tensor or array.
            validation: held-out data in the same forms; its loss is recorded every `validate_every` steps.
            folder: where checkpoints and metrics go; nothing is written without one.
            resume: go on with the run that lies in `folder`.
            initial: begin with this flow's weights, and its transform unless the data brings one (fine-tuning).
            engine: on how many processes; by default `DDP` where torchrun or srun started several, else this one.

        Raises:
            ArgumentError: if the data is not what it should be.
            TrainingError: if the loss is no longer finite, or `folder` holds a run and `resume` is False.
            SavedFileError: if the folder cannot be written; the last good checkpoint is kept.
            KeyboardInterrupt: after Ctrl-C, when the step under way is done and saved.
            SystemExit: with code 143 after SIGTERM, likewise.
        """
        with engine or engine_of_environment() as engine:
            return self._fit(engine, _as_data(data, cond), validation, folder, resume, initial)

    def _fit(
        self, engine: Engine, data: Data, validation: Any, folder: Any, resume: bool, initial: Flow | None
    ) -> Flow:
        s = self.settings
        check_shares(s.batch_size, engine.ranks, s.accumulate)
        engine.check(s)
        if initial is not None:
            data = self._begin_with(data, initial)
        source, coupling = self._ends(data)
        device = self._place(engine)
        source.to(device)
        if data.transform is not None:
            data.transform.to(device)
        part = (0, 1) if s.across_ranks else (engine.rank, engine.ranks)
        batches = batches_of(data, s.batch_size, s.seed, device, part, s.skip_corrupt)
        check_labels(self.field, getattr(batches, "cond", None))
        held_out = None if validation is None else self._held_out(validation, data, device)
        parts = {"path": self.path, "objective": self.objective, "source": source, "coupling": coupling}
        run = Run(s, self.field, parts, folder, engine)
        run.open(resume)
        run.callbacks = self.callbacks if engine.main else []
        pairing = Pairing(data, source, coupling, s, self._dtype, rank=part[0])
        self._prepare(run, pairing, batches)
        if coupling.own is not None:
            data, batches = self._of_its_own(data, batches, coupling, part)
            pairing = Pairing(data, source, coupling, s, self._dtype, rank=part[0])
        run.flow = lambda n: (self._flow_now(run, source, coupling, batches, data), first_conditions(batches, n))
        stepper = Stepper(run, self.path, self.objective, lambda x1: pairing.whence(batches, x1))
        signs = Signs(run, self.path)
        self._tell("on_start", run)
        least = self._find_least(run, data, source, coupling)
        global_state = torch.random.fork_rng([device] if device.type == "cuda" else [])
        stop, twice = Interruption(), recomputing(run.network, s.checkpoint_activations)
        global_state.__enter__()
        try:
            stop.listen()
            twice.__enter__()
            run.network.train()
            for batch in pairing.pairs(batches, run.step, s.steps) if run.step < s.steps else ():
                signs.of_batch(batch)
                stepper.take(batch)
                run.step += 1
                self._tell("on_step", run)
                if run.step % s.log_every == 0 or run.step == s.steps:
                    signs.of_line(self._log(run, stepper, least))
                if held_out is not None and (run.step % s.validate_every == 0 or run.step == s.steps):
                    self._validate(run, stepper, held_out, source, coupling)
                if run.step % s.checkpoint_every == 0 or run.step == s.steps:
                    run.check_weights()
                    run.checkpoint()
                    signs.of_weights()
                if run.step == s.steps:
                    break
                if stop.heard(run.engine, device):
                    stop.leave(run)
        finally:
            stop.restore()
            twice.__exit__(None, None, None)
            global_state.__exit__(None, None, None)
            self._tell("on_end", run)
            run.close()
        return self._flow(self._whole(run), source, coupling, batches.event_shape, data)

    @checked
    def recall(self, folder: str | Path) -> None:
        """Take up what the coupling of the run in `folder` was fitted to, for evaluating it; nothing if it never was.

        Raises:
            SavedFileError: if the checkpoint is damaged, or of another coupling.
        """
        if self._coupling is None or not self._coupling.state_dict():
            return
        if tensors := part_of_newest(Path(folder), "coupling"):
            try:
                self._coupling.load_state_dict(tensors)
            except RuntimeError as error:
                raise SavedFileError(f"the checkpoint in {folder} does not fit this run's coupling: {error}") from error

    def loss_floor(self, data: Any, cond: Any = None) -> LossFloor:
        """The least expected loss that any network can have in training on this data; arguments as of `fit`.

        Raises:
            CombinationError: where it is not known, and why.
            ArgumentError: if the data is not what it should be.
        """
        data = _as_data(data, cond)
        return floor_of(data, self.path, self.objective, *self._ends(data), self.settings.seed)

    def unpaired(self, data: Any, cond: Any = None) -> tuple[Coupling, Iterator[Batch]]:
        """The coupling, and what it is shown in training: the batches of steps 0, 1, ... before it pairs them.

        Arguments and errors as of `fit`.
        """
        data = _as_data(data, cond)
        source, coupling = self._ends(data)
        device = self._place(Single())
        if data.transform is not None:
            data.transform.to(device)
        s = self.settings
        batches = batches_of(data, s.batch_size, s.seed, device, skip=s.skip_corrupt)
        if coupling.own is not None:
            data, batches = self._of_its_own(data, batches, coupling)
        return coupling, Pairing(data, source, coupling, self.settings, self._dtype).unpaired(batches)

    def _prepare(self, run: Run, pairing: Pairing, batches: Any) -> None:
        """Fit a coupling that is fitted first, or go on with a fit that was cut off."""
        if run.step > 0:
            return
        progress = pairing.prepare(batches)
        try:
            for done in run.prepare(progress):
                self._tell("on_prepare", run, done)
        except BaseException:
            run.close()
            raise
        run.engine.copy(list(pairing.coupling.state_dict().values()))  # fitted alike, but perhaps not to the last bit
        if figures := pairing.coupling.figures:
            run.record({"step": 0, **{f"coupling_{name}": value for name, value in figures.items()}})

    def _of_its_own(
        self, data: Data, batches: Any, coupling: Coupling, part: tuple[int, int] = (0, 1)
    ) -> tuple[Data, Any]:
        """The coupling's pairs as data; an augmentation would tear them apart."""
        assert coupling.own is not None
        x0, x1, rows = coupling.own
        cond = None if batches.cond is None else batches.cond[rows]
        data = Data(x1, cond, x0, data.transform)
        return data, batches_of(data, self.settings.batch_size, self.settings.seed, x1.device, part)

    def _find_least(self, run: Run, data: Data, source: Source, coupling: Coupling) -> float | None:
        """The least possible loss, once in the metrics; None if it is not known, or not asked for."""
        if not self.settings.loss_floor:
            return None
        dropped = getattr(self.field, "cond_dropout", 0.0)
        try:
            floor = floor_of(data, self.path, self.objective, source, coupling, self.settings.seed, dropped)
        except CombinationError:
            return None
        record: dict[str, Any] = {"step": 0, "loss_floor": floor.value}
        record["loss_floor_standard_error"] = floor.standard_error
        if floor.points is not None:  # learnt by heart: a lower bound, which is not what to hope for
            record["loss_floor_points"] = floor.points
        if run.step == 0:
            run.record(record)
        self._tell("on_log", run, record)  # also after a resume: a bar says what its excess is over
        return floor.value

    @staticmethod
    def _log(run: Run, stepper: Stepper, least: float | None) -> dict[str, Any]:
        record = stepper.figures()
        if least is not None and "loss" in record:
            record["loss_excess"] = record["loss"] - least
        run.note(record)
        return record

    @torch.no_grad()
    def _validate(
        self, run: Run, stepper: Stepper, held_out: tuple[Data, Any], source: Source, coupling: Coupling
    ) -> None:
        """The loss of the averaged weights on held-out data, with the same draws every time."""
        data, batches = held_out
        if coupling.whole or coupling.own is not None:
            coupling = OptimalTransport()  # what comes nearest, of couplings that may be asked about other samples
        pairing = Pairing(data, source, coupling, self.settings, self._dtype, "validation-")
        was_training = run.ema.training
        run.ema.eval()
        losses = [stepper.held_out(batch, k) for k, batch in enumerate(pairing.pairs(batches, 0, VALIDATION_BATCHES))]
        run.ema.train(was_training)
        record = {"step": run.step, "validation_loss": run.engine.sum(torch.stack(losses)).mean().item()}
        run.validated = (run.step, record["validation_loss"])
        run.note(record)

    def _held_out(self, validation: Any, data: Data, device: torch.device) -> tuple[Data, Any]:
        s, held_out = self.settings, _as_data(validation, None)
        held_out = dataclasses.replace(held_out, transform=held_out.transform or data.transform)
        return held_out, batches_of(held_out, s.batch_size, s.seed, device, skip=s.skip_corrupt)

    def _begin_with(self, data: Data, initial: Flow) -> Data:
        try:
            as_field(self.field).load_state_dict(network_of(initial.field).state_dict())
        except RuntimeError as error:
            raise ArgumentError(f"the flow's network does not fit this trainer's field: {error}") from error
        return dataclasses.replace(data, transform=data.transform or initial.transform)

    def _ends(self, data: Data) -> tuple[Source, Coupling]:
        """The source and the coupling; given pairs are their own."""
        if data.x0 is None:
            return self._source or Gaussian(), self._coupling or Independent()
        if self._coupling is not None and not isinstance(self._coupling, Independent | Paired):
            raise CombinationError(
                f"the data comes in pairs (x0, x1), and {type(self._coupling).__name__} would pair it anew; "
                "drop the coupling, or the pairs"
            )
        source, coupling = self._source or _given(data), Paired()
        self._check(source, coupling)
        return source, coupling

    def _check(self, source: Source, coupling: Coupling) -> None:
        """Every part has its say before anything runs; making the field shows whether the network can be one."""
        if source.of_condition and not isinstance(coupling, Independent | Paired):
            raise CombinationError(
                f"{type(coupling).__name__} gives x0 another partner, and from {type(source).__name__} x0 belongs to "
                "its condition; drop the coupling, or take another source"
            )
        self.objective.check(self.path, source, coupling)
        self.path.check(source, self.field)
        field = self.objective.field(self.field, self.path, source=source, coupling=coupling)
        check_reads(self.solver, field)

    def _whole(self, run: Run) -> torch.nn.Module:
        """The averaged network; where it was kept in parts, these put together, and the field has what was trained."""
        if run.network is self.field:
            return run.ema
        self.field.load_state_dict(run.whole(run.network))
        if run.ema is run.network:
            return self.field
        average = copy.deepcopy(self.field).eval().requires_grad_(False)
        average.load_state_dict(run.whole(run.ema))
        return average

    def _place(self, engine: Engine) -> torch.device:
        name = engine.device(self.settings.device)
        try:
            device = torch.device(name)
            self.field.to(device, self._dtype)
        except (RuntimeError, AssertionError) as error:
            raise ArgumentError(f"device is {name!r}, which cannot be used here: {error}") from error
        for part in (self.path, self.objective):
            part.to(device)
        return device

    @property
    def _dtype(self) -> torch.dtype:
        return torch.float64 if self.settings.precision == "float64" else torch.float32

    def _flow_now(self, run: Run, source: Source, coupling: Coupling, batches: Any, data: Data) -> Flow:
        """Of the averaged weights as they are, which go on."""
        return self._flow(copy.deepcopy(run.ema), source, coupling, batches.event_shape, data)

    def _flow(
        self, network: torch.nn.Module, source: Source, coupling: Coupling, shape: Sequence[int], data: Data
    ) -> Flow:
        for average, weight in zip(network.parameters(), self.field.parameters(), strict=True):
            average.requires_grad_(weight.requires_grad)
        field = self.objective.field(network, self.path, source=source, coupling=coupling)
        flow = Flow(self.path.start(source, field.interval[0]), field, self.solver, tuple(shape), data.transform)
        return flow.to(next(network.parameters()).device).eval()

    def _tell(self, event: str, run: Run, *arguments: Any) -> None:
        for callback in run.callbacks:
            getattr(callback, event)(run, *arguments)


def _given(data: Data) -> Source:
    """Where the x0 of pairs come from, label by label where they have labels, of other conditions by chance."""
    x0, labels = torch.as_tensor(data.x0), data.cond
    if isinstance(labels, np.ndarray) and labels.dtype.kind in "iu":
        labels = torch.as_tensor(labels)
    by_label = isinstance(labels, torch.Tensor) and labels.shape == x0.shape[:1] and labels.dtype in INTEGERS
    return Empirical(x0, labels if by_label else None, conditioned=labels is not None and not by_label)


def _as_data(data: Any, cond: Any) -> Data:
    if isinstance(data, Data):
        return data
    if isinstance(data, tuple):
        if len(data) != 2:
            raise ArgumentError(f"data is a tuple of {len(data)}, expected paired samples (x0, x1)")
        return Data(data[1], cond, torch.as_tensor(data[0]))
    return Data(data, cond)
