"""What all laws of data share: rows of latents, pieces that bound memory, draws, and a precision of their own."""

import pytest
import torch

from fmkit.errors import ArgumentError
from fmkit.oracle import Boxes, Mixture
from fmkit.oracle.law import CHUNK_ELEMENTS, Row
from fmkit.paths import ICFM, CondOT

LAWS = {"mixture": Mixture([[-1.0, 0.1], [2.0, 1.0]], std=[0.1, 0.7]), "boxes": Boxes([[0.1, 0.0]], [[1.0, 1.7]])}
LAWS["full"] = Mixture([[0.1, 0.0]], covariances=[[[1.0, 0.3], [0.3, 0.7]]])
laws = pytest.mark.parametrize("law", LAWS.values(), ids=LAWS)


def test_a_row_has_no_latent_noise_where_the_path_has_none():
    t = torch.tensor([0.25, 0.5], dtype=torch.float64)
    row = Row.of(CondOT().coefficients(t))
    assert [v.tolist() for v in row] == [[0.25, 0.5], [0.75, 0.5], [0.0, 0.0]]
    assert row.gamma.dtype == torch.float64
    assert Row.of(ICFM(0.5).coefficients(t)).gamma.tolist() == [0.5, 0.5]


@pytest.mark.parametrize("n", [1, 7, 1000])
def test_as_many_points_are_asked_about_at_once_as_fit_and_one_at_least(n):
    for law in (Mixture(torch.zeros(n, 3), std=1.0), Boxes(torch.zeros(n, 3), torch.ones(n, 3))):
        assert law.rows * law.size <= CHUNK_ELEMENTS < (law.rows + 1) * law.size
    assert Mixture(torch.zeros(CHUNK_ELEMENTS + 1, 1), std=0.0).rows == 1


@laws
def test_samples_are_doubles_from_the_generator_alone(law, seeded):
    before = torch.get_rng_state()
    first, again, other = (law.sample(5, seeded(s)) for s in (0, 0, 1))
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(first, again)
    assert not torch.isclose(first, other).any()
    assert first.shape == (5, 2)
    assert first.dtype == torch.float64
    assert law.sample(1).shape == (1, 2)
    assert not law.state_dict()  # it is made of its arguments, and those are saved
    for wrong in ({"n": 0}, {"n": True}, {"n": 3, "generator": 3}):
        with pytest.raises(ArgumentError, match=r"^(n|generator) is"):
            law.sample(**wrong)


@laws
def test_a_law_keeps_its_digits_whatever_the_precision_of_the_module_it_is_in(law, seeded):
    """And goes to the device where that module goes."""
    want = law.sample(4, seeded(0))
    module = torch.nn.ModuleList([law])
    for dtype in (torch.float32, torch.bfloat16):
        assert module.to(dtype) is module
        assert torch.equal(law.sample(4, seeded(0)), want)
    assert law.half() is law
    assert torch.equal(law.sample(4, seeded(0)), want)
    there = type(law)(*([[0.0]], [[1.0]])[: 1 + isinstance(law, Boxes)]).to("meta")
    assert {buffer.device.type for buffer in there.buffers()} == {there.device.type} == {"meta"}
    assert {b.dtype for b in there.buffers() if b.is_floating_point()} == {torch.float64}


@laws
def test_a_standardised_law_has_the_standardised_samples(law, seeded):
    """(x - shift)/scale of each sample, whatever the precision of the two."""
    shift, scale = torch.tensor([0.3, -1.0]), torch.tensor([2.0, 0.25])
    moved = law.standardised(shift, scale)
    want = (law.sample(200, seeded(0)) - shift.double()) / scale.double()
    if law is LAWS["full"]:  # whose axes are others
        want, got = (torch.cat([x.mean(0), x.T.cov().flatten()]) for x in (want, moved.sample(200_000, seeded(1))))
        want = torch.tensor([-0.1, 4.0, 0.25, 0.6, 0.6, 11.2], dtype=torch.float64)
        torch.testing.assert_close(got, want, rtol=0.02, atol=0.01)
    else:
        torch.testing.assert_close(moved.sample(200, seeded(0)), want, rtol=1e-6, atol=1e-6)
    one = law.standardised(torch.tensor(1.0), torch.tensor(2.0))
    assert one.event_shape == law.event_shape == (2,)


def test_what_a_law_is_made_of_moves_with_it_and_in_its_own_precision():
    """All modules within, unless torch is told to leave them where they are."""

    class Own(Boxes):
        def __init__(self):
            super().__init__([[0.0]], [[1.0]])
            self.within = torch.nn.Linear(1, 1)

    law = Own().to(torch.bfloat16)
    assert (law.within.weight.dtype, law.low.dtype) == (torch.bfloat16, torch.float64)
    law.to_empty(device="meta", recurse=False)
    assert (law.within.weight.device.type, law.device.type) == ("cpu", "meta")
    assert Own().to("meta").within.weight.device.type == "meta"
