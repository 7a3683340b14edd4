"""What every process of a test of several does: `main(FOLDER, NAME...)` under torchrun's variables.

Each named run leaves its folder NAME there, and from each rank a NAME-RANK.safetensors: what was trained, its average.
"""

import functools
import json
import os
import signal

import torch
from safetensors.torch import save_file

import fmkit
import fmkit.training.compiled
from fmkit.fields import MLP, UNet
from fmkit.objectives import LogitNormal, Loss, Objective, VelocityMatching
from fmkit.training import FSDP, Trainer, engine_of_environment

STEPS = 12


class ByHand(Objective):
    """Conditional flow matching by `torch.func` on the bare network, with a derivative in time beside it.

    loss = |u - v|² + 0.1 |du/dt|², u by `functional_call` on the network's weights, du/dt by forward mode: nothing of
    which a wrapper's forward would hear.
    """

    def loss(self, network, path, batch, *, ema=None, step=0, generator=None):
        t = torch.rand(len(batch.x1), generator=generator, dtype=torch.float64)
        point = path.sample(t, batch.x0, batch.x1, generator=generator)
        weights = dict(network.named_parameters())

        def answer(at):
            return torch.func.functional_call(network, weights, (at, point.x, batch.cond))

        u, du = torch.func.jvp(answer, (t,), (torch.ones_like(t),))
        return Loss((u - point.velocity).square().mean(1) + 0.1 * du.square().mean(1), t, {})

    def field(self, network, path, *, source=None, coupling=None):
        return VelocityMatching().field(network, path, source=source, coupling=coupling)


class Dies(VelocityMatching):
    """Conditional flow matching that sends its process a signal in the middle of a step."""

    def loss(self, network, path, batch, *, ema=None, step=0, generator=None):
        here = os.environ.get("RANK") == os.environ.get("DIES") and torch.is_grad_enabled()  # not in validation
        if here and str(step) == os.environ.get("DIES_AT"):
            os.kill(os.getpid(), getattr(signal, os.environ.get("DIES_OF", "SIGKILL")))
        return super().loss(network, path, batch, ema=ema, step=step, generator=generator)


def data(shape=(2,)):
    """48 labelled points in float64."""
    generator = torch.Generator().manual_seed(1)
    cond = torch.arange(48) % 3
    x = torch.randn(48, *shape, generator=generator, dtype=torch.float64)
    return x + cond.double().view(-1, *[1] * len(shape)), cond


def network():
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0 if os.environ.get("RANK", "0") == "0" else 1)  # rank 0's are everyone's
        return MLP(2, width=7, depth=2, classes=3)  # seven rows do not divide among two


def settings(**given):
    given = {"steps": STEPS, "batch_size": 8, "lr": 1e-2, "ema": 0.9, "precision": "float64", **given}
    return fmkit.Settings(log_every=4, checkpoint_every=4, validate_every=6, device="cpu", keep=9, **given)


def trainer(objective=None, path=None, coupling=None, field=None, **given):
    return Trainer(
        path or fmkit.paths.CondOT(),
        field or network(),
        objective or VelocityMatching(LogitNormal()),
        coupling=coupling,
        settings=settings(**given),
        callbacks=[],
    )


def coupled(**given):
    return trainer(
        path=fmkit.paths.ICFM(0.2), coupling=fmkit.couplings.OptimalTransport(), coupling_batches=2, clip=0.5, **given
    )


def image_net():
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        net = UNet((1, 8, 8), channels=8, res_blocks=1, channel_mult=(1, 2), attention=(4,), classes=3)
        for p in net.parameters():  # what begins at zero would leave most of the network without a gradient
            p.data += 0.05 * torch.randn(p.shape)
    return net


def traced(made):
    """Its steps as graphs, without the making of kernels, which takes a compiler and seconds."""
    compiled = functools.partial(torch.compile, backend="eager")
    fmkit.training.compiled.torch.compile = lambda f, *, backend, **more: compiled(f, **more)
    return made


RUNS = {
    "coupled": lambda: (coupled(), None),
    "accumulated": lambda: (coupled(accumulate=2), None),
    "by-hand": lambda: (trainer(ByHand()), None),
    "compiled": lambda: (traced(coupled(compile=True)), None),
    "recomputed": lambda: (coupled(checkpoint_activations=True), None),
    "apart": lambda: (coupled(across_ranks=False), None),
    "semidiscrete": lambda: (trainer(coupling=fmkit.couplings.Semidiscrete(steps=50)), None),
    "dies": lambda: (trainer(Dies(), clip=0.5), None),
    "fsdp": lambda: (coupled(), FSDP()),
    "fsdp-accumulated": lambda: (coupled(accumulate=2, checkpoint_activations=True), FSDP()),
    "fsdp-dies": lambda: (trainer(Dies(), clip=0.5), FSDP()),
    "fsdp-unet": lambda: (trainer(field=image_net(), steps=2), FSDP()),
}


def run(name, folder, engine=None):
    """Train one, or go on with it."""
    made, own = RUNS[name]()
    x, cond = data((1, 8, 8) if name.endswith("unet") else (2,))
    kept = folder / name
    flow = made.fit(
        x, cond, validation=fmkit.data.Data(x[:16], cond[:16]), folder=kept, resume=kept.exists(), engine=engine or own
    )
    average = fmkit.fields.network_of(flow.field).state_dict()
    tensors = {f"network.{k}": v for k, v in made.field.state_dict().items()}
    return tensors | {f"ema.{k}": v for k, v in average.items()}


def gradients(folder):
    """One weight used by rank 1 alone, one by all, one by none."""
    engine = engine_of_environment()
    with engine:
        alone, all_, none = (torch.nn.Parameter(torch.zeros(3)) for _ in range(3))
        all_.grad = torch.full((3,), 1.0 + engine.rank)
        if engine.rank == 1:
            alone.grad = torch.arange(3.0)
        engine.add_gradients([alone, all_, none], [alone, all_, none])
        told = engine.tell(f"rank {engine.rank} says ü")
        (folder / f"gradients-{engine.rank}.json").write_text(
            json.dumps([alone.grad.tolist(), all_.grad.tolist(), none.grad is None, told])
        )


def main(folder, *names):
    for name in names:
        if name == "gradients":
            gradients(folder)
            continue
        tensors = run(name, folder)
        rank = os.environ.get("RANK", "0")
        save_file(tensors, folder / f"{name}-{rank}.safetensors")
