"""Runs of several processes on this machine, held against the same run in one.

Everything is in float64, so that "the same but for rounding" is a sharp statement.
"""

import json
import shutil
import signal
import socket
import subprocess
import sys

import pytest
import torch
from safetensors.torch import load_file

import fmkit
from fmkit.errors import ArgumentError, CombinationError
from fmkit.training import DDP, FSDP, Single
from fmkit.training.batches import Sampler
from fmkit.training.distributed import blocks_of, first_node, found
from fmkit.training.interruption import Interruption
from fmkit.training.shares import Rows, Share, check_shares, shares
from tests import processes
from tests.training import ranks as program

pytestmark = pytest.mark.xdist_group("processes")  # they share what two processes have trained
ROUNDING = {"rtol": 0, "atol": 1e-12}


def start(ranks, folder, *names, **environment):
    """So many processes, under torchrun's variables; beside each, the file of what it says on standard error."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    given = {"MASTER_ADDR": "localhost", "MASTER_PORT": str(port), "WORLD_SIZE": str(ranks), **environment}
    started = []
    for rank in range(ranks):
        said = folder / f"{port}-{rank}.err"
        own = {"RANK": str(rank), "LOCAL_RANK": str(rank)}
        started.append((processes.start(program.main, folder, *names, said=said, **given, **own), said))
    return started


def finish(started):
    """Exit codes, and what was said on standard error."""
    for process, _ in started:
        process.join(100)
    late = [process.pid for process, _ in started if process.is_alive()]
    for process, _ in started:
        process.kill()
    assert not late, "processes that do not end"
    return [process.exitcode for process, _ in started], [said.read_text() for _, said in started]


def of(folder, name, rank=0):
    return load_file(folder / f"{name}-{rank}.safetensors")


def metrics(folder, name):
    return [json.loads(line) for line in (folder / name / "metrics.jsonl").read_text().splitlines()]


def same(got, wanted, **tolerance):
    assert got.keys() == wanted.keys()
    for key, value in wanted.items():
        torch.testing.assert_close(got[key], value, **tolerance, msg=lambda m, key=key: f"{key}: {m}")


@pytest.fixture(scope="module")
def two(tmp_path_factory):
    """The runs on two ranks; those of the slow tests, when they are asked for."""
    folder = tmp_path_factory.mktemp("two")

    def make(*names):
        codes, said = finish(start(2, folder, *names))
        assert codes == [0, 0], "\n".join(said)

    make("gradients", *(name for name in program.RUNS if name not in ("compiled", "fsdp-dies")))
    return folder


@pytest.fixture(scope="module")
def one(tmp_path_factory):
    """Runs in this process, made when they are asked for."""
    folder, made = tmp_path_factory.mktemp("one"), {}

    def get(name):
        if name not in made:
            made[name] = program.run(name, folder, Single())
        return made[name]

    get.folder = folder
    return get


PLAIN = {
    "coupled": "coupled",
    "accumulated": "coupled",
    "by-hand": "by-hand",
    "recomputed": "coupled",
    "semidiscrete": "semidiscrete",
    "fsdp": "coupled",
    "fsdp-accumulated": "coupled",
    "fsdp-unet": "fsdp-unet",
}


@pytest.mark.parametrize(("name", "reference"), PLAIN.items())
def test_two_processes_train_the_very_network_that_one_does(name, reference, two, one):
    wanted = one(reference)
    for rank in (0, 1):
        same(of(two, name, rank), wanted, **ROUNDING)
    lines, references = metrics(two, name), metrics(one.folder, reference)
    assert [line.keys() for line in lines] == [line.keys() for line in references]
    for line, like in zip(lines, references, strict=True):
        assert line == pytest.approx(like, abs=1e-12)


@pytest.mark.parametrize("name", ["accumulated", "recomputed"])
def test_passes_and_recomputation_leave_a_run_as_it_is(name, one):
    same(one(name), one("coupled"), **ROUNDING)


def test_a_network_in_parts_is_saved_as_one_process_saves_it(two, one):
    one("coupled")
    file = f"coupled/checkpoints/step_{program.STEPS:08d}.safetensors"
    whole = load_file(one.folder / file)
    over_time = whole.pop("over_time")
    assert over_time.shape == (1, 2, 8)
    for name in ("coupled", "fsdp"):
        saved = load_file(two / file.replace("coupled/", f"{name}/"))
        torch.testing.assert_close(saved.pop("over_time").sum(0, keepdim=True), over_time, **ROUNDING)  # a row a rank
        same(saved, whole, **ROUNDING)


def test_gradients_of_some_processes_reach_all(two):
    for rank in (0, 1):
        alone, everyone, none, told = json.loads((two / f"gradients-{rank}.json").read_text())
        assert alone == [0.0, 1.0, 2.0]
        assert everyone == [3.0, 3.0, 3.0]
        assert none
        assert told == "rank 0 says ü"


def test_processes_that_draw_apart_end_alike_and_elsewhere(two, one):
    first, second = of(two, "apart", 0), of(two, "apart", 1)
    same(first, second, rtol=0, atol=0)
    assert any(not torch.allclose(first[k], v, atol=1e-6) for k, v in one("coupled").items())


@pytest.mark.parametrize("name", ["dies", pytest.param("fsdp-dies", marks=pytest.mark.slow)])
def test_a_run_whose_process_was_killed_goes_on_on_any_number(name, two, one, tmp_path):
    codes, said = finish(start(2, tmp_path, name, DIES="1", DIES_AT="10"))
    assert codes[1] == -signal.SIGKILL
    assert codes[0] == 1
    assert "rank 0 lost another process" in said[0]
    assert sorted(p.name[:13] for p in (tmp_path / name / "checkpoints").iterdir()) == [
        "step_00000004",
        "step_00000008",
    ]
    for ranks in (1, 4):
        shutil.copytree(tmp_path, tmp_path / str(ranks))
    same(program.run(name, tmp_path / "1", Single()), one(name), **ROUNDING)
    again = start(2, tmp_path, name)
    four = start(4, tmp_path / "4", name)
    for started in (again, four):
        codes, said = finish(started)
        assert not any(codes), "\n".join(said)
    same(of(tmp_path, name), of(two, name), rtol=0, atol=0)
    same(of(tmp_path / "4", name, 3), one(name), **ROUNDING)
    assert (tmp_path / name / "metrics.jsonl").read_bytes() == (two / name / "metrics.jsonl").read_bytes()
    assert metrics(tmp_path / "4", name)[-1] == pytest.approx(metrics(two, name)[-1], abs=1e-12)


def test_all_processes_leave_after_the_step_in_which_one_was_told_to(one, tmp_path):
    codes, said = finish(start(2, tmp_path, "dies", DIES="1", DIES_AT="5", DIES_OF="SIGTERM"))
    assert codes == [143, 143]
    assert f"SIGTERM after step 6 of {program.STEPS}: saved in" in said[0]
    assert "SIGTERM" not in said[1]
    assert (tmp_path / "dies" / "checkpoints" / "step_00000006.safetensors").exists()
    same(program.run("dies", tmp_path, Single()), one("dies"), **ROUNDING)


def test_asking_whether_to_leave_is_no_work_of_the_gpu(monkeypatch):
    """Where the group speaks on processors too; torch's device without memory stands for a GPU."""
    gpu, asked = torch.device("meta"), []
    monkeypatch.setattr("torch.distributed.all_reduce", lambda tensor: asked.append(tensor.device.type))
    for backends, place in (("cpu:gloo,cuda:nccl", "cpu"), ("cuda:nccl", "meta")):
        monkeypatch.setattr("torch.distributed.get_backend_config", lambda backends=backends: backends)
        engine = DDP()
        engine.ranks = 2
        stop = Interruption()
        stop.signal = signal.SIGINT
        if place == "cpu":
            assert stop.heard(engine, gpu)
            assert stop.signal == signal.SIGINT
        else:
            with pytest.raises(NotImplementedError, match="meta"):  # it has no values to look at
                stop.heard(engine, gpu)
        assert asked.pop() == place


class Watch(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight, self.asked = torch.nn.Parameter(torch.ones(())), []

    def forward(self, t, x, cond=None):
        self.asked.append(len(x))
        return self.weight * x + t[:, None]


def test_shares_are_the_batch_in_order():
    class Second(Single):
        rank, ranks = 1, 2

    assert [(s.number, s.begin, s.end) for s in shares(8, Second(), 2, across=True)] == [(2, 4, 6), (3, 6, 8)]
    assert [(s.number, s.begin, s.end, s.of) for s in shares(4, Second(), 2, across=False)] == [
        (2, 0, 2, 8),
        (3, 2, 4, 8),
    ]
    value = torch.arange(8.0)
    both = [s.mean(value) for e in (Single(), Second()) for s in shares(8, e, 2, across=True)]
    assert both[0] + both[1] == value.mean()
    whole = [sum(s.mean(value) for s in shares(7, e, 1, across=True)) for e in [Second()]]
    assert whole[0] == value[3:7].sum() / 7


def test_a_network_answers_for_its_rows_alone():
    inner = Watch()
    rows = Rows(inner, Share(0, 2, 5, 6, 6))
    t, x = torch.rand(6), torch.randn(6, 3)
    out = rows(t, x)
    assert inner.asked == [3]
    torch.testing.assert_close(out[2:5], x[2:5] + t[2:5, None])
    assert out.isnan().any(1).tolist() == [True, True, False, False, False, True]
    out[2:5].square().sum().backward()
    assert inner.weight.grad.isfinite()
    rows(torch.cat([t, t]), torch.cat([x, x]))  # twice the batch: answered in full
    assert inner.asked == [3, 12]
    each = torch.func.vmap(lambda a, b: rows.inner.weight * b + a)(t, x)
    assert each.isfinite().all()
    assert rows.asked is inner.asked


def test_parts_of_the_sampler_are_the_rows_of_the_whole():
    whole = Sampler(10, 6, 3)
    parts = [Sampler(10, 6, 3, (rank, 3)) for rank in range(3)]
    for step in (0, 4):
        rows = whole.indices(step, 2).view(2, 3, 2)
        for rank, part in enumerate(parts):
            assert part.indices(step, 2).tolist() == rows[:, rank].flatten().tolist()


def test_a_batch_that_does_not_divide_is_refused():
    check_shares(12, 3, 2)
    with pytest.raises(ArgumentError, match=r"batch_size is 10 for 3 processes of 2 passes each, .* as 12"):
        check_shares(10, 3, 2)
    with pytest.raises(ArgumentError, match="multiple of 3"):
        program.trainer(accumulate=3).fit(*program.data())


def test_what_engines_refuse(monkeypatch):
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    with pytest.raises(CombinationError, match="float16"):
        FSDP().check(fmkit.Settings(precision="float16"))
    with pytest.raises(CombinationError, match="compile"):
        FSDP().check(fmkit.Settings(compile=True))
    with pytest.raises(ArgumentError, match="torchrun"):
        DDP().begin()
    with pytest.raises(ArgumentError, match="timeout"):
        DDP(timeout=0)
    with pytest.raises(CombinationError, match="Watch has no blocks"):
        fmkit.Trainer(
            fmkit.paths.CondOT(), Watch(), settings=fmkit.Settings(checkpoint_activations=True), callbacks=[]
        ).fit(torch.randn(8, 3))


SLURM = {
    "SLURM_STEP_NUM_TASKS": "8",
    "SLURM_PROCID": "5",
    "SLURM_LOCALID": "1",
    "SLURM_STEP_NODELIST": "gpu[03-04,7]",
    "SLURM_JOB_ID": "40123",
}


def test_the_environment_says_which_process_this_is():
    assert found({}) is None
    assert found({"WORLD_SIZE": "1", "RANK": "0"}) is None
    assert found({"SLURM_NTASKS": "4", "SLURM_PROCID": "0"}) is None  # in a batch script, without srun
    assert found({"WORLD_SIZE": "4", "RANK": "3", "LOCAL_RANK": "1", "MASTER_ADDR": "a", "MASTER_PORT": "9"}) == (
        3,
        4,
        1,
        "a",
        9,
    )
    assert found(SLURM) == (5, 8, 1, "gpu03", 20123)
    assert found({**SLURM, "MASTER_ADDR": "head", "MASTER_PORT": "7"})[3:] == ("head", 7)
    for broken in ({"WORLD_SIZE": "2"}, {"WORLD_SIZE": "2", "RANK": "2"}, {"WORLD_SIZE": "two", "RANK": "0"}):
        with pytest.raises(ArgumentError, match="environment"):
            found(broken)


@pytest.mark.parametrize(
    ("nodes", "first"),
    [("n1", "n1"), ("n1,n2", "n1"), ("n[1-4]", "n1"), ("a[02,05-9]-x,b3", "a02-x"), ("gpu-3-[10]", "gpu-3-10")],
)
def test_the_first_of_slurms_nodes(nodes, first):
    assert first_node(nodes) == first


def test_blocks_are_the_modules_in_the_innermost_lists():
    net = fmkit.fields.MLP(2, width=4, depth=3)
    assert list(blocks_of(net)) == list(net.blocks)
    unet = program.image_net()
    assert {type(block).__name__ for block in blocks_of(unet)} == {"Stage"}
    assert len(list(blocks_of(unet))) == 2 + 2 + 4  # down, in the middle, up


@pytest.mark.slow
def test_compiled_steps_of_two_processes(one, tmp_path):
    codes, said = finish(start(2, tmp_path, "compiled"))
    assert codes == [0, 0], "\n".join(said)
    assert "cannot be compiled" not in "".join(said)
    same(of(tmp_path, "compiled", 1), one("coupled"), **ROUNDING)


@pytest.mark.slow
def test_the_command_line_under_torchrun(tmp_path):
    words = ["train", "moons", "field.width=16", "trainer.steps=30", "trainer.batch_size=32", "--json"]
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "-m", "fmkit", *words]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["nfe"] > 0  # once
    assert sorted(p.name for p in (tmp_path / "runs").iterdir()) == ["moons"]
    alone = subprocess.run([sys.executable, "-m", "fmkit", *words], cwd=tmp_path, capture_output=True, text=True)
    losses = json.loads(alone.stdout)["losses"]
    assert json.loads(done.stdout)["losses"] == pytest.approx(losses, rel=1e-5)
