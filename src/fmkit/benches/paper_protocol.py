"""What the paper's experiment on images is made of: its five methods, its data, and what a cell costs.

From Lipman et al. (arXiv 2210.02747), Section 6 and Appendix E: the same network trained in five ways.
"""

from __future__ import annotations

import math
import re
import shlex
from dataclasses import dataclass, fields

from fmkit.arguments import DEVICES, check_count, check_number, shown
from fmkit.errors import ArgumentError, did_you_mean
from fmkit.fields.unet import UNET_PRESETS

LR, WARMUP, EMA = 1e-3, 0.05, 0.995
TOLERANCE = 1e-5
BUDGETS = (5, 10, 20, 50)  # evaluations of the few-step solvers
REFERENCE_NFE = 1000
DURING = (0.125, 0.25, 0.5, 1.0)  # shares of the training at which it is looked at
# Which the command has, beside the data, the budget and the features.
OPTIONS = ("preset", "batch", "samples", "nll_images", "dequantizations", "device")
UNITS = {"": 1, "s": 1, "m": 60, "h": 3600}


@dataclass(frozen=True)
class Method:
    """A way of training: how the table calls it, and its path and objective as a configuration names them."""

    label: str
    path: str
    objective: str


METHODS = {
    "ddpm": Method("DDPM", "vp", "noise"),
    "sm": Method("Score matching", "vp", "score"),
    "scoreflow": Method("ScoreFlow", "vp", "scoreflow"),
    "fm-diffusion": Method("FM, diffusion path", "vp", "velocity"),
    "fm-ot": Method("FM, OT path", "condot", "velocity"),
}


@dataclass(frozen=True)
class Protocol:
    """What a cell costs; results of different protocols are never mixed.

    Attributes:
        data: a registered set of labelled images, by its name or as a configuration describes it,
            `{name: fashion-mnist, size: 14}`.
        budget: seconds of training of each method, > 0.
        preset: of the UNet.
        batch: images a step.
        samples: images generated for each FID.
        nll_images: held-out images whose likelihood is taken, at most as many as there are.
        dequantizations: K, of each of these.
        noises: samples whose error against the reference solution is taken, at most `samples`.
        steps: of training, whatever the budget; None measures how many fit into it.
        device: where everything is computed, "cpu" or "cuda". A result that does not say is of the former.
        features: of FID, as a configuration writes them, `inception` or `{name: inception, weights: ...}`; None for
            those of a classifier of the same data.

    Raises:
        ArgumentError: for numbers out of range, an unknown preset or another device.
    """

    data: str
    budget: float
    preset: str = "tiny"
    batch: int = 128
    samples: int = 500
    nll_images: int = 100
    dequantizations: int = 5
    noises: int = 64
    steps: int | None = None
    device: str = "cpu"
    features: str | None = None

    def __post_init__(self) -> None:
        if not 0 < check_number("budget", self.budget) < math.inf:
            raise ArgumentError(f"budget is {self.budget:g} seconds, expected more than 0")
        if self.preset not in UNET_PRESETS:
            raise ArgumentError(f"preset is {shown(self.preset)}{did_you_mean(str(self.preset), UNET_PRESETS)}")
        if self.device not in DEVICES:
            raise ArgumentError(f"device is {shown(self.device)}, expected {' or '.join(DEVICES)}")
        least = {"batch": 1, "samples": 4, "nll_images": 2, "dequantizations": 1, "noises": 1}
        for name, smallest in least.items():
            check_count(name, getattr(self, name), smallest)
        if self.steps is not None:
            check_count("steps", self.steps)
        if self.noises > self.samples:
            raise ArgumentError(f"noises is {self.noises}, expected at most samples, {self.samples}")

    @property
    def stem(self) -> str:
        """Of the names of files: the data's name and settings, of letters, digits, full stops and hyphens.

        Examples:
            >>> Protocol("{name: fashion-mnist, size: 14}", 60).stem
            'fashion-mnist-size-14'
        """
        return re.sub(r"[^\w.]+", "-", self.data.replace("name:", "")).strip("-")

    @property
    def label(self) -> str:
        """What is trained on, for people.

        Examples:
            >>> Protocol("{name: fashion-mnist, size: 14}", 60).label
            'fashion-mnist, size 14'
        """
        return re.sub(r"[{}]|name: *", "", self.data).replace(":", "").strip()

    @property
    def command(self) -> str:
        """Which measures this protocol."""
        words = ["fmkit bench paper", f"--data {shlex.quote(self.data)}", f"--budget {time_of(self.budget)}"]
        words += [f"--{name.replace('_', '-')} {getattr(self, name)}" for name in OPTIONS if self._chosen(name)]
        words += [f"--features {shlex.quote(self.features)}"] if self.features is not None else []
        return " ".join(words)

    def _chosen(self, name: str) -> bool:
        return bool(getattr(self, name) != next(f.default for f in fields(self) if f.name == name))


def seconds_of(text: str) -> float:
    """Seconds from 90s, 2m, 1.5h or a bare number of seconds.

    Raises:
        ArgumentError: for anything else, or no time at all.

    Examples:
        >>> seconds_of("2m")
        120.0
    """
    found = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([smh]?)", text.strip()) if isinstance(text, str) else None
    if found is None or not float(found[1]) > 0:
        raise ArgumentError(f"budget is {shown(text)}, expected a time above 0, as 90s, 2m or 1h")
    return float(found[1]) * UNITS[found[2]]


def time_of(seconds: float) -> str:
    """Seconds as `seconds_of` reads them.

    Examples:
        >>> time_of(120), time_of(90), time_of(0.5)
        ('2m', '90s', '0.5s')
    """
    return f"{seconds / 60:g}m" if seconds % 60 == 0 else f"{seconds:g}s"


def check_method(name: str) -> Method:
    """The method of that name.

    Raises:
        ArgumentError: if there is none.
    """
    if not isinstance(name, str) or name not in METHODS:
        raise ArgumentError(f"method is {shown(name)}, which the table has not{did_you_mean(str(name), METHODS)}")
    return METHODS[name]
