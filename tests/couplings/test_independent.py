"""The couplings that leave rows where they are."""

import pytest
import torch

from fmkit.couplings import Independent, OptimalTransport, Paired
from fmkit.errors import ArgumentError
from fmkit.sources import Gaussian


@pytest.mark.parametrize("coupling", [Independent(), Paired()], ids=repr)
def test_row_meets_row(coupling):
    i0, i1 = coupling.pair(torch.randn(5, 2), torch.randn(5, 2))
    assert i0.tolist() == i1.tolist() == [0, 1, 2, 3, 4]
    assert i0.dtype == torch.int64


@pytest.mark.parametrize("coupling", [Independent(), Paired()], ids=repr)
def test_rows_are_where_the_data_is(coupling, monkeypatch):
    monkeypatch.setattr("fmkit.couplings.independent.check_batches", lambda *batches: None)  # which asks for values
    x = torch.zeros(5, 2, device="meta")
    assert [i.device.type for i in coupling.pair(x, x)] == ["meta", "meta"]


def test_only_one_of_the_two_is_independent():
    assert Independent().independent
    assert not Paired().independent


@pytest.mark.parametrize("coupling", [Independent(), Paired()], ids=repr)
@pytest.mark.parametrize("rows", [(3, 4), (0, 0)])
def test_batches_that_do_not_fit_are_refused(coupling, rows):
    with pytest.raises(ArgumentError, match=r"x0 has shape \(3, 2\) and x1 \(4, 2\)|x0 has shape \(0, 2\), expected"):
        coupling.pair(torch.zeros(rows[0], 2), torch.zeros(rows[1], 2))


@pytest.mark.parametrize("coupling", [Independent(), Paired(), OptimalTransport()], ids=repr)
def test_nothing_is_fitted_first(coupling):
    assert list(coupling.prepare(Gaussian(), torch.zeros(4, 2), seed=0)) == []
