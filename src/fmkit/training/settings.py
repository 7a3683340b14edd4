"""The numbers of a training run, in one record."""

from __future__ import annotations

from typing import Annotated, Any, Literal

import pydantic
from pydantic import Field

from fmkit.errors import ArgumentError, did_you_mean

Share = Annotated[float, Field(ge=0, lt=1, strict=True)]


class Settings(pydantic.BaseModel):
    """How long, how fast and how precisely to train.

    Attributes:
        steps: optimizer steps.
        batch_size: samples a step, of all processes and passes together.
        accumulate: passes through the network that a step's batch is divided into, one after the other: less memory.
        lr: AdamW's learning rate after warm-up.
        warmup: steps of linear warm-up from 0.
        decay: of the learning rate after warm-up: to 0 at the last step, or not.
        weight_decay: AdamW's, on matrices only.
        betas: AdamW's.
        coupling_batches: batches that a coupling is shown at once: an optimal-transport batch larger than a step's.
        coupling_workers: threads that pair ahead of the step, 0 for none; by default 2 on a GPU and none on a
            processor, whose cores they would take from the step. The pairs are the same.
        clip: largest norm of the gradient, or null.
        skip_nonfinite: how many steps in all may be left out because their loss or gradient is not finite; each is
            recorded. With 0 the first of them ends the run.
        skip_corrupt: whether an item of a data set that cannot be read is replaced by the next one that can, with a
            warning; else it ends the run. Which stands for which is always the same.
        ema: decay of the weights' average that samples and is saved; 0 for none. It warms up as (1 + k)/(10 + k).
        precision: of the network's arithmetic; 16-bit ones are mixed (weights stay float32).
        compile: whether to compile a step's loss and gradients into one graph: seconds to two minutes before the first
            step. Where that is not possible the run says so and goes on without.
        seed: every random draw follows from it.
        device: as "cpu" or "cuda:1"; the first GPU, if there is one, by default.
        log_every: steps between two lines of metrics.
        validate_every: steps between two validation losses.
        checkpoint_every: steps between two checkpoints.
        keep: checkpoints kept.
        checkpoint_activations: keep no activations inside the network's blocks (the modules in its lists) while
            training: less memory, a third more time. fmkit's image networks have an option of their own.
        across_ranks: with several processes, draw and pair the whole batch in each, so that a run does not depend on
            their number; else each draws and pairs its own rows of it: less to load, and a coupling within a process.
        loss_floor: whether to show how far the loss is above the least possible, where that is known (a second's work).

    Raises:
        ArgumentError: for an unknown name, a wrong type or a value out of range.
    """

    model_config = pydantic.ConfigDict(extra="forbid", strict=True, frozen=True, defer_build=True)

    steps: int = Field(1000, ge=1)
    batch_size: int = Field(256, ge=1)
    accumulate: int = Field(1, ge=1)
    lr: float = Field(1e-3, gt=0, allow_inf_nan=False)
    warmup: int = Field(0, ge=0)
    decay: Literal["constant", "linear", "cosine"] = "constant"
    weight_decay: float = Field(0.0, ge=0, allow_inf_nan=False)
    betas: tuple[Share, Share] = Field((0.9, 0.999), strict=False)
    coupling_batches: int = Field(1, ge=1)
    coupling_workers: int | None = Field(None, ge=0)
    clip: float | None = Field(None, gt=0, allow_inf_nan=False)
    skip_nonfinite: int = Field(0, ge=0)
    skip_corrupt: bool = False
    ema: float = Field(0.999, ge=0, lt=1)
    precision: Literal["float32", "float64", "bfloat16", "float16"] = "float32"
    compile: bool = False
    seed: int = Field(0, ge=0)
    device: str | None = None
    log_every: int = Field(50, ge=1)
    validate_every: int = Field(500, ge=1)
    checkpoint_every: int = Field(500, ge=1)
    keep: int = Field(2, ge=1)
    checkpoint_activations: bool = False
    across_ranks: bool = True
    loss_floor: bool = True

    def __init__(self, **values: Any) -> None:
        try:
            super().__init__(**values)
        except pydantic.ValidationError as error:
            place, said = mistake(error, type(self).model_fields)
            raise ArgumentError(f"{place}: {said}") from None


def mistake(error: pydantic.ValidationError, known: Any) -> tuple[str, str]:
    """The first mistake of a pydantic model: the key, and what was got and expected, in one line."""
    first = error.errors()[0]
    place = ".".join(str(p) for p in first["loc"])
    if first["type"] == "extra_forbidden":
        return place, f"unknown key{did_you_mean(place, known)}"
    said = first["msg"].removeprefix("Input should be ").removeprefix("Value error, ")
    return place, f"got {first['input']!r}, expected {said}"
