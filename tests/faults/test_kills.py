"""A few kills in the suite; `python tests/faults/kills.py 100` is the long form, with `--ranks 2` too."""

import pytest

from tests.faults import kills

pytestmark = pytest.mark.xdist_group("processes")  # they share the server that processes are forked from


@pytest.mark.parametrize(
    ("kill", "ranks"), [(1, 1), pytest.param(3, 1, marks=pytest.mark.slow), pytest.param(3, 2, marks=pytest.mark.slow)]
)
def test_killed_runs_end_as_the_unbroken_one(tmp_path, kill, ranks):
    counts = kills.campaign(tmp_path, kills=kill, ranks=ranks)
    assert counts.kills == kill


def test_the_comparison_sees_one_bit(tmp_path):
    for name in ("whole", "cut"):
        (tmp_path / name / "checkpoints").mkdir(parents=True)
        for file in ("metrics.jsonl", "flow.safetensors", "checkpoints/step_00000001.safetensors"):
            (tmp_path / name / file).write_bytes(b"\x00\x01")
    assert not kills.differences(tmp_path / "whole", tmp_path / "cut")
    (tmp_path / "cut/checkpoints/step_00000001.safetensors").write_bytes(b"\x00\x03")
    assert kills.differences(tmp_path / "whole", tmp_path / "cut") == ["checkpoints/step_00000001.safetensors"]
