"""Pairs for the steps: the same whoever computes them and when, with labels on their samples."""

import itertools
import threading
import time

import pytest
import torch
from safetensors.torch import load_file

import fmkit
from fmkit import registry
from fmkit.couplings import Coupling, Independent, OptimalTransport, Semidiscrete, Sinkhorn
from fmkit.errors import ArgumentError, CombinationError
from fmkit.randomness import stream
from fmkit.training import state
from fmkit.training.batches import STEPS, batches_of
from fmkit.training.pairing import Pairing, ahead
from tests import processes

CPU = torch.device("cpu")
N, CLASSES = 60, 3


def data(**more):
    """Samples whose label can be read off them, far apart."""
    labels = torch.arange(N) % CLASSES
    x = torch.randn(N, 2, generator=torch.Generator().manual_seed(0)) * 0.1 + 10.0 * labels[:, None]
    return fmkit.data.Data(x, labels, **more)


def pairs(coupling, given=None, start=0, stop=9, source=None, **settings):
    given = data() if given is None else given
    s = fmkit.Settings(steps=stop, batch_size=16, **settings)
    batches = batches_of(given, s.batch_size, s.seed, CPU)
    pairing = Pairing(given, source or fmkit.sources.Gaussian(), coupling, s, torch.float32)
    list(pairing.prepare(batches))
    return list(pairing.pairs(batches, start, stop))


def assert_same(some, others):
    assert len(some) == len(others)
    for a, b in zip(some, others, strict=True):
        for x, y in zip(a, b, strict=True):
            assert (x is None and y is None) or torch.equal(x, y)


def example(name):
    if name in ("fmkit/semidiscrete", "fmkit/conditional-semidiscrete"):
        return registry.load("fmkit.couplings", name)(steps=20)
    return registry.load("fmkit.couplings", name)()


NAMES = [entry.qualified for entry in registry.entries("fmkit.couplings") if entry.name != "reflow"]  # it has its own


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("settings", [{}, {"coupling_batches": 2, "coupling_workers": 3}], ids=["alone", "in blocks"])
def test_labels_follow_their_samples(name, settings):
    found = pairs(example(name), **settings)
    assert len(found) == 9
    for batch in found:
        assert len(batch.x0) == len(batch.x1) == len(batch.cond) == 16
        assert torch.equal(batch.x1.mean(1).div(10).round().long(), batch.cond)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("workers", [1, 2, 5])
def test_the_pairs_are_those_of_this_thread(name, workers):
    given = data() if "conditional" in name else fmkit.data.Data(data().x)
    alone = pairs(example(name), given, coupling_workers=0, coupling_batches=2)
    assert_same(pairs(example(name), given, coupling_workers=workers, coupling_batches=2), alone)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("start", [1, 3, 4, 8])
def test_from_any_step_on_they_are_the_same(name, start):
    """Also from within a block: what a resumed run needs."""
    whole = pairs(example(name), coupling_batches=3)
    assert_same(pairs(example(name), start=start, coupling_batches=3), whole[start:])


class Watched(Coupling):
    """Exact transport that remembers what it was shown, and where."""

    def __init__(self):
        super().__init__()
        self.shown, self.threads = [], set()

    def pair(self, x0, x1, cond0=None, cond1=None, *, generator=None):
        self.shown.append((x0, x1, cond1, generator.initial_seed()))
        self.threads.add(threading.current_thread() is threading.main_thread())
        time.sleep(0.001)
        return OptimalTransport().pair(x0, x1)


def test_a_block_is_paired_once_and_is_what_the_steps_would_have_seen():
    coupling = Watched()
    found = pairs(coupling, coupling_batches=3, stop=8, coupling_workers=0)
    assert [len(x1) for _, x1, *_ in coupling.shown] == [48, 48, 48]
    alone = Watched()
    pairs(alone, stop=9, coupling_workers=0)
    for k, (x0, x1, cond, seed) in enumerate(coupling.shown):
        assert torch.equal(x1, torch.cat([b[1] for b in alone.shown[3 * k : 3 * k + 3]]))
        assert torch.equal(cond, torch.cat([b[2] for b in alone.shown[3 * k : 3 * k + 3]]))
        assert seed == stream(0, "coupling", k).initial_seed()
        generator = stream(0, "source", k)
        assert torch.equal(x0, fmkit.sources.Gaussian().sample(x1.shape, generator=generator))
    for k, batch in enumerate(found):  # and it hands them out in order: x1 keeps its place
        assert torch.equal(batch.x1, coupling.shown[k // 3][1][16 * (k % 3) : 16 * (k % 3) + 16])


def test_a_larger_batch_is_paired_more_cheaply(seeded):
    given = fmkit.data.Data(torch.randn(4000, 2, generator=seeded(0)) + 3)

    def cost(blocks):
        found = pairs(OptimalTransport(), given, stop=16, coupling_batches=blocks)
        return sum((b.x0 - b.x1).square().sum(1).mean().item() for b in found) / 16

    costs = [cost(blocks) for blocks in (1, 4, 16)]
    assert costs == sorted(costs, reverse=True)
    assert costs[0] > 1.01 * costs[2]


def test_workers_pair_beside_the_loop():
    coupling = Watched()
    pairs(coupling, coupling_workers=2)
    assert coupling.threads == {False}
    for beside_none in ({"coupling_workers": 0}, {}):
        alone = Watched()
        pairs(alone, **beside_none)
        assert alone.threads == {True}


def test_an_independent_coupling_needs_neither_threads_nor_blocks(monkeypatch):
    monkeypatch.setattr("fmkit.training.pairing.ThreadPoolExecutor", None)
    assert_same(
        pairs(Independent(), coupling_workers=4, coupling_batches=3),
        pairs(Independent(), coupling_workers=0),
    )


def test_what_nothing_pairs_is_drawn_for_many_steps_at_once_and_resumed_within_them(monkeypatch):
    from fmkit.training import batches

    for steps in (1, 4, 32):
        monkeypatch.setattr(batches, "STEPS", steps)
        whole = pairs(Independent(), stop=9)
        x0 = torch.randn(steps * 16, 2, generator=stream(0, "source", 0))
        assert torch.equal(torch.cat([b.x0 for b in whole[:steps]]), x0[: 16 * min(9, steps)])
        for start in (1, 4, 6):
            assert_same(pairs(Independent(), start=start, stop=9), whole[start:])
        order = torch.cat([torch.randperm(N, generator=stream(0, "order", epoch)) for epoch in range(3)])
        assert torch.equal(torch.cat([b.x1 for b in whole]), data().x[order[: 9 * 16]])  # a fresh x0 each, the same x1
        assert torch.equal(torch.cat([b.cond for b in whole]), data().cond[order[: 9 * 16]])


def test_large_steps_are_drawn_one_by_one_and_streams_are_not_read_ahead():
    def at_once(x, batch_size):
        return batches_of(fmkit.data.Data(x), batch_size, 0, CPU).steps_at_once

    assert at_once(torch.zeros(8, 2), 256) == 32
    assert at_once(torch.zeros(8, 64), 256) == 2
    assert at_once(torch.zeros(8, 3, 32, 32), 128) == 1

    class Rows(torch.utils.data.IterableDataset):
        def __iter__(self):
            return iter(torch.zeros(40, 2))

    assert at_once(Rows(), 4) == 1
    rows = torch.utils.data.TensorDataset(torch.zeros(8, 2))
    assert at_once(rows, 256) == at_once(torch.utils.data.DataLoader(rows, batch_size=256), 4) == 32

    class Described(torch.utils.data.Dataset):
        def __len__(self):
            return 8

        def __getitem__(self, i):
            return torch.zeros(2), {"label": i}

    assert at_once(Described(), 4) == 1


def test_fewer_pairs_than_samples_are_spread_over_the_steps():
    found = pairs(Sinkhorn(mass=0.5), coupling_batches=2, stop=4)
    assert [len(b.x1) for b in found] == [8, 8, 8, 8]


def test_pairs_of_the_users_are_kept():
    given = fmkit.data.Data(data().x, data().cond, -data().x)
    for settings in ({}, {"coupling_batches": 3, "coupling_workers": 2}):
        for batch in pairs(fmkit.couplings.Paired(), given, **settings):
            assert torch.equal(batch.x0, -batch.x1)


def test_conditions_that_are_no_tensors_are_not_joined():
    pairing = Pairing(
        data(), fmkit.sources.Gaussian(), OptimalTransport(), fmkit.Settings(coupling_batches=2), torch.float32
    )

    class Texts:
        device = CPU

        def iterate(self, start):
            return itertools.repeat(fmkit.training.batches.Samples(torch.zeros(4, 2), ["a"] * 4))

    with pytest.raises(ArgumentError, match="take coupling_batches = 1"):
        next(pairing.pairs(Texts(), 0, 4))


# -- semidiscrete: all of the data -------------------------------------------------------------------------------------


def test_it_is_fitted_in_the_models_units_and_pairs_with_what_training_sees():
    given = data(transform=fmkit.transforms.Affine(torch.tensor([3.0, 8.0]), torch.tensor([2.0, 4.0])))
    coupling = Semidiscrete(steps=60)
    found = pairs(coupling, given, stop=STEPS + 3)
    units = given.transform(given.x)
    blocks = [  # drawn for so many steps at once
        fmkit.sources.Gaussian().sample((16 * STEPS, 2), generator=stream(0, "source", block)) for block in range(2)
    ]
    for batch, x0 in zip(found, torch.cat(blocks).split(16), strict=False):
        partner = (torch.cdist(x0.double(), units.double()).square() - coupling.potentials).argmin(1)
        assert torch.equal(batch.x0, x0)
        assert torch.equal(batch.x1, units[partner])
        assert torch.equal(batch.cond, given.cond[partner])


def test_an_augmentation_comes_after_the_pairing():
    given = data(augment=lambda x, generator: x + 100)
    plain, moved = pairs(Semidiscrete(steps=20)), pairs(Semidiscrete(steps=20), given)
    for a, b in zip(plain, moved, strict=True):
        assert torch.equal(a.x0, b.x0)
        assert torch.equal(a.x1 + 100, b.x1)


def test_data_that_is_not_in_memory_cannot_be_fitted_to():
    stream_of = torch.utils.data.TensorDataset(data().x)
    trainer = fmkit.Trainer(
        fmkit.paths.CondOT(), fmkit.fields.MLP(2, width=8, depth=1), coupling=Semidiscrete(), callbacks=()
    )
    with pytest.raises(CombinationError, match="Semidiscrete is fitted to all of the data, which must be a tensor"):
        trainer.fit(stream_of)


def run_to_its_end(folder, steps):
    state.PREPARED_EVERY = 0.0
    torch.manual_seed(0)
    x = torch.randn(200, 2, generator=torch.Generator().manual_seed(1)) + 2
    trainer = fmkit.Trainer(
        fmkit.paths.CondOT(),
        fmkit.fields.MLP(2, width=8, depth=1),
        coupling=Semidiscrete(steps=steps),
        settings=fmkit.Settings(steps=10, batch_size=16, log_every=2),
        callbacks=(),
    )
    trainer.fit(x, folder=folder, resume=True).save(folder / "flow.safetensors")


@pytest.mark.xdist_group("processes")
def test_killed_in_the_middle_of_a_fit_and_resumed(tmp_path):
    whole, cut, said = tmp_path / "whole", tmp_path / "killed", tmp_path / "said"
    unbroken, victim = (processes.start(run_to_its_end, folder, 100, said=said) for folder in (whole, cut))
    checkpoint = cut / "checkpoints" / "step_00000000.safetensors"
    deadline = time.monotonic() + 60
    while not checkpoint.exists():
        assert victim.is_alive(), said.read_text()
        assert time.monotonic() < deadline
        time.sleep(0.005)
    victim.kill()
    victim.join()
    assert 0 < int(load_file(checkpoint)["coupling.done"]) < 100
    again = processes.start(run_to_its_end, cut, 100, said=said)
    for process in (unbroken, again):
        process.join(100)
        assert process.exitcode == 0, said.read_text()
    for name in ("metrics.jsonl", "flow.safetensors"):
        assert (cut / name).read_bytes() == (whole / name).read_bytes(), name
    assert b"coupling_marginal_error" in (cut / "metrics.jsonl").read_bytes()


# -- working ahead -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("workers", [0, 1, 4])
def test_ahead_keeps_the_order(workers):
    def slowly(k):
        time.sleep(0.002 * (k % 3))
        return k * k

    assert list(ahead(slowly, range(20), workers)) == [k * k for k in range(20)]


@pytest.mark.parametrize("workers", [0, 1, 4])
def test_ahead_is_lazy(workers):
    drawn = []

    def items():
        for k in itertools.count():
            drawn.append(k)
            yield k

    made = ahead(lambda k: k, items(), workers)
    assert [next(made) for _ in range(3)] == [0, 1, 2]
    assert len(drawn) == 3 + workers
    made.close()
    assert len(drawn) == 3 + workers


@pytest.mark.parametrize("workers", [0, 2])
def test_an_error_ahead_comes_where_it_belongs(workers):
    made = ahead(lambda k: 1 // (2 - k), range(5), workers)
    assert [next(made), next(made)] == [0, 1]
    with pytest.raises(ZeroDivisionError):
        next(made)


# -- after training ----------------------------------------------------------------------------------------------------


def trainer_of(coupling):
    return fmkit.Trainer(
        fmkit.paths.CondOT(),
        fmkit.fields.MLP(2, width=8, depth=1),
        coupling=coupling,
        settings=fmkit.Settings(steps=2, batch_size=16),
        callbacks=(),
    )


def test_a_fitted_coupling_is_recalled_from_its_run(tmp_path):
    fitted, anew = Semidiscrete(steps=30), Semidiscrete(steps=30)
    trainer_of(fitted).fit(data().x, folder=tmp_path)
    trainer_of(anew).recall(tmp_path)
    for name, value in fitted.state_dict().items():
        assert torch.equal(anew.state_dict()[name], value), name
    assert torch.equal(anew.pair(data().x[:7], data().x)[1], fitted.pair(data().x[:7], data().x)[1])


def test_where_nothing_was_fitted_nothing_is_recalled(tmp_path):
    coupling = Semidiscrete(steps=30)
    trainer_of(coupling).recall(tmp_path)  # no checkpoint
    trainer_of(OptimalTransport()).fit(data().x, folder=tmp_path)
    trainer_of(coupling).recall(tmp_path)  # of a coupling that is not fitted
    trainer_of(OptimalTransport()).recall(tmp_path)
    assert int(coupling.done) == 0


def test_a_recalled_coupling_of_another_kind_is_refused(tmp_path):
    class Other(Independent):
        def __init__(self):
            super().__init__()
            self.register_buffer("angle", torch.zeros(()))

    trainer_of(Other()).fit(data().x, folder=tmp_path)
    with pytest.raises(fmkit.errors.SavedFileError, match="does not fit this run's coupling"):
        trainer_of(Semidiscrete()).recall(tmp_path)
