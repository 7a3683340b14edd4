"""The run that the fault tests kill: `python program.py FOLDER`. It goes on with what lies in FOLDER."""

import os
import sys
import time
from pathlib import Path

import torch

import fmkit
from fmkit.training import Callback


class Slow(Callback):
    """Steps long enough for a signal to hit one."""

    def on_step(self, run):
        time.sleep(0.002)


def main(folder: Path, pace: str = "slow") -> None:
    torch.manual_seed(0)
    field = fmkit.fields.MLP(2, width=64, depth=3, dropout=0.2)
    settings = fmkit.Settings(
        steps=120, batch_size=8, log_every=4, checkpoint_every=3, validate_every=9, lr=1e-3, decay="cosine"
    )
    coupling = fmkit.couplings.OptimalTransport()
    callbacks = [Slow()] if pace == "slow" else []
    run = fmkit.Trainer(fmkit.paths.CondOT(), field, coupling=coupling, settings=settings, callbacks=callbacks)
    data = torch.randn(40, 2, generator=torch.Generator().manual_seed(3))
    flow = run.fit(data, validation=data[:16], folder=folder, resume=True)
    if os.environ.get("RANK", "0") == "0":
        flow.save(folder / "flow.safetensors")


if __name__ == "__main__":
    main(Path(sys.argv[1]), *sys.argv[2:])
