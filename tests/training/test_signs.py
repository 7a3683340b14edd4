"""Signs of a run that goes wrong: each told once, and none told of runs that go well."""

import warnings

import pytest
import torch

import fmkit
from fmkit import recipes, registry
from fmkit.config import assemble, load_layers
from fmkit.data import Data
from fmkit.errors import ArgumentError, ConfigError, HealthWarning
from fmkit.paths import CondOT, VarianceExploding, VariancePreserving
from fmkit.randomness import stream
from fmkit.training import Callback, Settings
from fmkit.training.signs import FEWEST, Signs
from fmkit.training.state import Run

X = torch.randn(256, 2, generator=stream(0, "test"))
X = (X - X.mean()) / X.std()


def trainer(path=None, field=None, callbacks=(), **settings):
    numbers = dict(steps=4, batch_size=256, log_every=2, checkpoint_every=2, loss_floor=False) | settings
    with torch.random.fork_rng():
        torch.manual_seed(0)
        field = fmkit.fields.MLP(2, width=8, depth=1) if field is None else field
    return fmkit.Trainer(path or CondOT(), field, settings=Settings(**numbers), callbacks=callbacks)


def told(fit):
    """What is said in a run, and how often: Python's own filter would show a repeated warning once."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        fit()
    assert all(w.category is HealthWarning and w.filename == __file__ for w in caught)
    return [str(w.message) for w in caught]


# -- the data ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("factor", "shift"), [(100.0, 0.0), (0.01, 0.0), (1.0, 50.0), (255.0, 128.0)])
def test_data_of_no_usual_size_are_told_of_once(factor, shift):
    x = X * factor + shift
    (said,) = told(lambda: trainer().fit(x))
    assert f"standard deviation {factor:.3g} in the network's units" in said
    assert "standardize them" in said
    assert told(lambda: trainer().fit(Data(x, transform=fmkit.transforms.Affine(shift, factor)))) == []


def test_a_path_that_begins_with_the_data_or_ends_with_the_source():
    short = VariancePreserving(beta_max=2.0)  # alpha is exp(-1.05 / 2) = 0.59 at the beginning, sigma 0.81
    (said,) = told(lambda: trainer(short).fit(X))
    assert "VariancePreserving begins with 0.7" in said
    (said,) = told(lambda: trainer(VarianceExploding(sigma_min=0.2)).fit(0.3 * X))
    assert "VarianceExploding ends with 0.6" in said
    assert told(lambda: trainer(VariancePreserving()).fit(X)) == []
    assert told(lambda: trainer(VarianceExploding()).fit(X)) == []


@pytest.mark.parametrize("name", sorted({e.name for e in registry.entries("fmkit.paths")}))
def test_standardized_data_suit_every_path(name):
    path = registry.load("fmkit.paths", name)
    if name == "geodesic":  # it has a manifold, and a size of its own
        return
    assert told(lambda: of_batch(path(), torch.randn(256, 2, generator=stream(1, "test")), X)) == []


def of_batch(path, x0, x1):
    run = Run(Settings(), fmkit.fields.MLP(2, width=8, depth=1), {"path": path}, None)
    Signs(run, path).of_batch(fmkit.objectives.Batch(x0, x1))


@pytest.mark.parametrize("name", recipes.names())
def test_no_recipe_is_told_of_its_data(name):
    try:
        job = assemble(load_layers(recipes.find(name), None, [], name), progress=False)
        x0, x1, _ = next(job.trainer.unpaired(job.split.train)[1])
    except (ArgumentError, ConfigError) as error:  # a data set whose package or file is not here
        assert "install" in str(error) or "needs it" in str(error)
        return
    assert told(lambda: of_batch(job.trainer.path, x0, x1)) == []


# -- the loss ---------------------------------------------------------------------------------------------------------


class Blow(Callback):
    """Spoils the network at a step."""

    def __init__(self, at):
        super().__init__()
        self.at = at

    def on_step(self, run):
        if run.step in self.at:
            with torch.no_grad():
                run.network.last.bias.add_(30.0)


def test_a_leap_of_the_loss_is_told_of_once():
    (said,) = told(lambda: trainer(steps=60, callbacks=[Blow({38, 50})]).fit(X))
    assert "the loss was " in said
    assert " over the steps up to 40, " in said
    assert told(lambda: trainer(steps=60).fit(X)) == []


def watcher():
    run = Run(Settings(), fmkit.fields.MLP(2, width=8, depth=1), {"path": CondOT()}, None)
    return Signs(run, CondOT())


@pytest.mark.parametrize("spread", [0.02, 0.1, 0.2])
def test_a_loss_that_only_scatters_is_no_leap(spread):
    noise = torch.randn(3000, generator=stream(2, "test"), dtype=torch.float64)
    signs = watcher()
    losses = (5 * 0.99 ** torch.arange(3000) + 1) * (spread * noise).exp()
    assert told(lambda: [signs.of_line({"step": k, "loss": v}) for k, v in enumerate(losses.tolist())]) == []


def test_a_leap_needs_lines_before_it():
    signs = watcher()
    assert told(lambda: [signs.of_line({"step": k, "loss": v}) for k, v in enumerate([1, 1, 1, 1, 50])]) == []
    assert FEWEST == 5
    (said,) = told(lambda: [signs.of_line(line) for line in ({"step": 9}, {"step": 10, "loss": 50.0})])
    assert "50 times what it was before (1)" in said


# -- the weights ------------------------------------------------------------------------------------------------------


def test_weights_that_never_move():
    (said,) = told(lambda: trainer(lr=1e-30).fit(X))
    assert said.startswith("no weight has moved in the steps up to 2 (learning rate 1e-30)")

    class Idle(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = torch.nn.Linear(2, 2)

        def forward(self, t, x):
            return x + 0 * self.layer(x)

    (said,) = told(lambda: trainer(field=Idle()).fit(X))
    assert "see why gradients are 0" in said


def test_an_average_that_stands_still(monkeypatch):
    assert told(lambda: trainer(ema=0.999).fit(X)) == []
    assert told(lambda: trainer(ema=0.0).fit(X)) == []

    monkeypatch.setattr(Run, "_average", lambda self: None)
    (said,) = told(lambda: trainer(steps=8, ema=1 - 1e-12).fit(X))
    assert said.startswith("the averaged weights, which sampling uses, have not moved in the steps up to 2")
    assert "ema is 0.999999999999" in said


# -- labels -----------------------------------------------------------------------------------------------------------


def test_a_rare_label_without_a_class_is_refused_before_the_first_step(tmp_path):
    labels = torch.arange(256) % 3
    labels[-1] = 7
    steps = []

    class Seen(Callback):
        def on_step(self, run):
            steps.append(run.step)

    made = trainer(field=fmkit.fields.MLP(2, width=8, depth=1, classes=3), callbacks=[Seen()])
    with pytest.raises(ArgumentError, match=r"labels range over 0 \.\. 7, expected 0 \.\. 2"):
        made.fit(X, labels, folder=tmp_path / "run")
    assert steps == []
    assert not (tmp_path / "run").exists()
