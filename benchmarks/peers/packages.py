"""The peers, each from its package, and the environment where they live beside fmkit on one and the same torch."""

from __future__ import annotations

import importlib
import importlib.metadata
import importlib.util
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

ROOT = Path(__file__).parents[2]
ENVIRONMENT = ROOT / "build" / "peers"
PEERS = ("torchcfm", "flow_matching", "torchebm")
# What the peers' modules used here import beyond what fmkit needs itself. They are installed without their own
# dependencies, which would bring another torch, and dozens of packages that nothing here asks for.
LIGHT = ("POT", "absl-py", "matplotlib", "scikit-learn", "tqdm")
NAMES: dict[str, dict[str, tuple[str, ...]]] = {
    "torchcfm": {
        "torchcfm.conditional_flow_matching": (
            "ConditionalFlowMatcher",
            "ExactOptimalTransportConditionalFlowMatcher",
        ),
        "torchcfm.optimal_transport": ("OTPlanSampler",),
        "torchcfm.models.unet.unet": ("UNetModelWrapper",),
    },
    "flow_matching": {
        "flow_matching.path": ("AffineProbPath",),
        "flow_matching.path.scheduler": ("CondOTScheduler",),
        "flow_matching.solver": ("ODESolver", "ode_solver"),
    },
    "torchebm": {
        "torchebm.interpolants": ("LinearInterpolant",),
        "torchebm.samplers": ("FlowSampler",),
        "torchebm.couplings": ("ExactOTCoupling",),
    },
}


def present() -> bool:
    """Whether every peer can be imported here."""
    return all(importlib.util.find_spec(name) is not None for name in PEERS)


def load() -> dict[str, Any]:
    """Each peer, with what is used of it; what it does to the process at import is undone.

    torchebm lowers the precision of matrix products at its import, for the whole process: no other contestant is to
    gain or lose by that.
    """
    import torch

    precision = torch.get_float32_matmul_precision()
    peers = {
        peer: SimpleNamespace(
            **{name: getattr(importlib.import_module(module), name) for module in modules for name in modules[module]}
        )
        for peer, modules in NAMES.items()
    }
    torch.set_float32_matmul_precision(precision)
    return peers


def make(folder: Path = ENVIRONMENT) -> Path:
    """Make the environment if it is not there, and return its Python.

    Raises:
        SystemExit: if a package cannot be installed; what pip says is shown.
    """
    python, done = folder / "bin" / "python", folder / "complete"
    if done.exists():
        return python
    torch = importlib.metadata.version("torch").partition("+")[0]
    steps = [
        [sys.executable, "-m", "venv", str(folder)],
        [str(python), "-m", "pip", "install", "-q", "-U", "pip"],
        [str(python), "-m", "pip", "install", "-q", f"torch=={torch}"],
        [str(python), "-m", "pip", "install", "-q", "-e", str(ROOT), *LIGHT],
        [str(python), "-m", "pip", "install", "-q", "--no-deps", *PEERS],
    ]
    for step in steps:
        print(" ".join(step), flush=True)
        if subprocess.run(step, cwd=ROOT).returncode:
            raise SystemExit(f"the environment {folder} is not complete; try again")
    done.touch()
    return python


def hand_over(python: Path, module: str, words: list[str]) -> None:
    """Run the command `python -m MODULE` in another environment, whose torch must be the one that fmkit has here.

    Raises:
        SystemExit: if that torch is another one, or the command fails there.
    """
    ask = [str(python), "-c", "import importlib.metadata as m; print(m.version('torch'))"]
    there = subprocess.run(ask, capture_output=True, text=True).stdout.strip()
    here = importlib.metadata.version("torch")
    if there != here:
        raise SystemExit(f"{python} has torch {there or 'not at all'}, this environment has {here}; they must be one")
    done = subprocess.run([str(python), "-m", module, "--here", *words], cwd=ROOT)
    if done.returncode:
        raise SystemExit(done.returncode)
