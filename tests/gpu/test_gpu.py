"""What only a GPU shows: that results are a processor's, that runs resume to the bit, that a step waits for nothing.

Without a GPU there is nothing to run here; with one, `pytest tests/gpu`.
"""

import pytest
import torch

import fmkit
from fmkit.benches import paper
from fmkit.benches.paper_protocol import Protocol
from fmkit.couplings import OptimalTransport, Semidiscrete, Sinkhorn
from fmkit.fields import MLP, ClassifierFree, DiT, UNet
from fmkit.solvers import AB3, RK4, Dopri5, Euler
from fmkit.training import Callback
from tests.commands import run

pytestmark = [
    pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU"),
    # torch's compiler would have float32 products be less precise, and fmkit leaves that to the user.
    pytest.mark.filterwarnings("ignore:TensorFloat32 tensor cores for float32"),
    pytest.mark.timeout(600),  # compiling a UNet's step takes a minute and a half
    pytest.mark.filterwarnings("ignore:Synchronization debug mode is a prototype"),
]
SHAPE = (2, 8, 8)


def data(n=256, shape=(2,)):
    generator = torch.Generator().manual_seed(0)
    left = torch.rand(n, *[1] * len(shape), generator=generator) < 0.5
    return 0.3 * torch.randn(n, *shape, generator=generator) + torch.where(left, -1.0, 1.0)


def made(kind, seed=0, **options):
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        if kind == "mlp":
            return MLP(2, width=32, depth=2, **options)
        if kind == "unet":
            sizes = {"preset": "tiny", "channels": 32, "attention": (4,)}
            return UNet(SHAPE, **{**sizes, **options})
        return DiT(SHAPE, "tiny", **options)


def fit(kind="mlp", cond=None, options=None, folder=None, resume=False, callbacks=(), **settings):
    numbers = {"steps": 8, "batch_size": 32, "lr": 1e-3, "clip": 1.0, "ema": 0.9, "seed": 3, "loss_floor": False}
    trainer = fmkit.Trainer(
        fmkit.paths.CondOT(),
        made(kind, **(options or {})),
        settings=fmkit.Settings(**{**numbers, **settings}),
        callbacks=callbacks,
    )
    given = data(shape=(2,) if kind == "mlp" else SHAPE)
    return trainer.fit(given, cond, folder=folder, resume=resume)


def weights(flow):
    return torch.cat([p.detach().flatten() for p in flow.field.parameters()])


class Losses(Callback):
    def __init__(self):
        super().__init__()
        self.seen = []

    def on_log(self, run, record):
        if "loss" in record:
            self.seen.append(record["loss"])


def losses(kind, **settings):
    seen = Losses()
    fit(kind, callbacks=[seen], log_every=1, lr=3e-4, **settings)
    return seen.seen


def test_a_run_is_on_the_gpu_where_nothing_is_said():
    flow = fit()
    assert {p.device.type for p in flow.field.parameters()} == {"cuda"}
    assert flow.sample(5).device.type == "cuda"


@pytest.mark.parametrize("kind", ["mlp", "unet", "dit"])
@pytest.mark.parametrize("how", ["float32", "bfloat16", "float16", "compiled", "bfloat16, compiled", "checkpointing"])
def test_every_way_of_a_step_learns_the_same(kind, how):
    """The losses of the first steps are those of float32 on the same draws, to what the precision leaves."""
    settings = {"precision": how.partition(",")[0]} if "float" in how else {}
    settings |= {"compile": True} if "compiled" in how else {}
    settings |= {"checkpoint_activations": True} if how == "checkpointing" and kind == "mlp" else {}
    options = {"checkpointing": True} if how == "checkpointing" and kind != "mlp" else {}
    plain, other = losses(kind), losses(kind, options=options, **settings)
    assert other == pytest.approx(plain, rel=0.03 if "16" in how else 2e-3)


def test_channels_last_is_a_layout():
    assert losses("unet", options={"channels_last": True}) == pytest.approx(losses("unet"), rel=2e-3)


@pytest.mark.parametrize("kind", ["mlp", "dit"])
@pytest.mark.parametrize("compile", [False, True])
def test_a_resumed_run_is_the_uninterrupted_one_to_the_bit(kind, compile, tmp_path):
    whole = fit(kind, compile=compile, steps=12)
    fit(kind, compile=compile, steps=6, folder=tmp_path)
    resumed = fit(kind, compile=compile, steps=12, folder=tmp_path, resume=True)
    assert torch.equal(weights(resumed), weights(whole))


@pytest.mark.parametrize("kind", ["mlp", "unet"])
@pytest.mark.parametrize("solver", [Euler(7), RK4(5), AB3(9), Dopri5(1e-4, 1e-4)], ids=repr)
@pytest.mark.parametrize("compile", [True, "graphs"])
def test_compiled_and_recorded_sampling_is_sampling(kind, solver, compile):
    flow = fit(kind, steps=30)
    drawn = [
        flow.sample(16, solver=solver, compile=how, generator=torch.Generator("cuda").manual_seed(1))
        for how in (False, compile, compile)
    ]
    torch.testing.assert_close(drawn[1], drawn[0], rtol=1e-2, atol=2e-3)
    torch.testing.assert_close(drawn[2], drawn[1], rtol=1e-4, atol=1e-4)


def test_recorded_guidance_is_guidance():
    labels = torch.arange(256) % 3
    flow = fit("unet", labels, {"classes": 3, "cond_dropout": 0.2}, steps=20)
    guided = fmkit.Flow(flow.start, ClassifierFree(flow.field, 2.0), RK4(5), flow.event_shape)
    drawn = [
        guided.sample(6, cond=labels[:6].cuda(), compile=how, generator=torch.Generator("cuda").manual_seed(1))
        for how in (False, "graphs")
    ]
    torch.testing.assert_close(drawn[1], drawn[0], rtol=1e-2, atol=2e-3)


@pytest.mark.parametrize("kind", ["mlp", "dit"])
def test_exact_likelihoods_are_a_processors(kind):
    flow = fit(kind, steps=20, precision="float64")
    x = data(4, (2,) if kind == "mlp" else SHAPE).double()
    there = flow.log_prob(x.cuda(), divergence=fmkit.ExactDivergence()).cpu()
    here = flow.to("cpu").log_prob(x, divergence=fmkit.ExactDivergence())
    torch.testing.assert_close(there, here, rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("coupling", [OptimalTransport, Semidiscrete, Sinkhorn])
def test_couplings_pair_beside_the_step(coupling):
    runs = []
    for workers in (0, 2):
        seen = Losses()
        trainer = fmkit.Trainer(
            fmkit.paths.CondOT(),
            made("mlp"),
            coupling=coupling(),
            settings=fmkit.Settings(steps=12, batch_size=64, coupling_workers=workers, log_every=1, loss_floor=False),
            callbacks=[seen],
        )
        trainer.fit(data())
        runs.append(seen.seen)
    assert runs[0] == runs[1]


def test_a_fit_on_the_gpu_is_known_again_on_a_processor():
    x1, coupling = data(40), Semidiscrete(steps=50)
    for _ in coupling.prepare(fmkit.sources.Gaussian(), x1.cuda()):
        pass
    x0 = torch.randn(500, 2, generator=torch.Generator().manual_seed(1))
    there = coupling.pair(x0.cuda(), x1.cuda())
    again = Semidiscrete(steps=50)
    again.load_state_dict({key: value.cpu() for key, value in coupling.state_dict().items()})
    here = again.pair(x0, x1)
    assert {i.device.type for i in there} == {"cuda"}
    assert (there[1].cpu() == here[1]).double().mean() > 0.99  # the borders of cells are a matter of rounding


@pytest.mark.parametrize("labels", [False, True])
@pytest.mark.parametrize("kind", ["mlp", "unet", "dit"])
@pytest.mark.parametrize("how", ["float32", "bfloat16", "compiled"])
def test_a_step_waits_for_nothing(kind, how, labels):
    """torch raises an error where it would wait."""

    class Strict(Callback):
        def on_step(self, run):
            torch.cuda.set_sync_debug_mode("error" if 3 <= run.step < 30 else "default")

        def on_end(self, run):
            torch.cuda.set_sync_debug_mode("default")

    cond = torch.arange(256) % 3 if labels else None
    options = {"classes": 3, "cond_dropout": 0.1} if labels else {}
    settings = {"compile": True} if how == "compiled" else {"precision": how}
    fit(kind, cond, options, callbacks=[Strict()], steps=31, log_every=31, batch_size=100, **settings)


@pytest.mark.parametrize("data", ["moons", "digits-classes"])
def test_a_run_from_the_command_line(data, tmp_path):
    """Trained, scored and drawn on the GPU; scored and sampled again on the processor."""
    small = ["trainer.steps=4", "trainer.batch_size=32"]
    assert run("train", data, *small, "--out", tmp_path / "run", "-q") == 0
    for device in ("cuda", "cpu"):
        assert run("sample", tmp_path / "run", "-n", 6, "-o", tmp_path / "x.npy", "--device", device) == 0
        assert run("evaluate", tmp_path / "run", "--json", "--device", device) == 0
    if data != "moons":
        assert run("evaluate", tmp_path / "run", "--images", 80, "--guidance", 2) == 0


def test_points_of_a_data_set_begin_on_the_gpu_too():
    settings = fmkit.Settings(steps=3, batch_size=8, loss_floor=False)
    source = fmkit.sources.Empirical(data(50) + 3)
    flow = fmkit.Trainer(fmkit.paths.CondOT(), made("mlp"), source=source, settings=settings, callbacks=[]).fit(data())
    assert flow.sample(4).device.type == "cuda"


@pytest.mark.filterwarnings("ignore")
def test_a_cell_of_the_papers_experiment(tmp_path):
    protocol = Protocol(
        "digits", 1.0, batch=16, samples=66, nll_images=2, dequantizations=1, noises=2, steps=8, device="cuda"
    )
    result = paper.Bench(tmp_path, protocol, tmp_path, classifier_steps=10).cell("fm-ot", 0)
    assert result["nfe"] > 10
    assert 0 < result["fid"] < 1e5


@pytest.mark.parametrize("path", [fmkit.paths.CondOT(), fmkit.paths.VariancePreserving()], ids=repr)
def test_the_oracle_is_a_processors(path):
    oracle = fmkit.MixtureOracle(path, [[0.0, 1.0], [2.0, -1.0]], std=[0.5, 0.3]).double()
    x, t = data(8).double(), torch.linspace(0.1, 0.9, 8, dtype=torch.float64)
    here = oracle.velocity(t, x), oracle.score(t, x), oracle.log_prob(t, x)
    there = oracle.to("cuda")
    for ours, other in zip(here, (there.velocity, there.score, there.log_prob), strict=True):
        torch.testing.assert_close(other(t.cuda(), x.cuda()).cpu(), ours, rtol=1e-10, atol=1e-12)
