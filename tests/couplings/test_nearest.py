"""The cells of a power diagram: by walking from cell to cell as by looking at all of them."""

import pytest
import torch

from fmkit.couplings import nearest
from fmkit.couplings.nearest import Cells


def by_definition(x, y, g):
    return (torch.cdist(x, y, compute_mode="donot_use_mm_for_euclid_dist").square() - g).argmin(1)


def points(kind, n, d, seeded):
    y = torch.randn(n, d, generator=seeded(0), dtype=torch.float64)
    g = torch.rand(n, generator=seeded(1), dtype=torch.float64)
    if kind == "clusters":
        y = 0.01 * y + 5.0 * (torch.arange(n) % 4)[:, None]
    if kind == "far off":
        y = y + 1e7 * (-1.0) ** torch.arange(d)
    if kind == "many empty cells":
        g = 20 * g
    if kind == "ties":
        y, g = y.round(decimals=1), 0 * g
    return y, g


@pytest.mark.parametrize("kind", ["plain", "clusters", "far off", "many empty cells"])
@pytest.mark.parametrize("d", [1, 2, 3, 4])
@pytest.mark.parametrize("n", [1, 40, 511, 512, 700])
def test_the_cell_is_the_nearest_by_definition(kind, d, n, seeded):
    y, g = points(kind, n, d, seeded)
    cells = Cells(y, g)
    x = y.mean(0) + 3 * torch.randn(300, d, generator=seeded(2), dtype=torch.float64)
    assert torch.equal(cells.of(x), by_definition(x, y, g))
    assert (cells._walk is not None) == (n >= 512 and d in (2, 3))


@pytest.mark.parametrize("d", [2, 3])
@pytest.mark.parametrize("kind", ["plain", "clusters", "many empty cells"])
def test_a_walk_begins_at_a_corner_of_its_cell(kind, d, seeded):
    """Where d + 1 cells meet each is the nearest, so no cell beats the one that a corner is kept with."""
    walk = Cells(*points(kind, 600, d, seeded))._walk
    values = walk.tree.data @ walk.y.T - walk.h
    kept = values[range(len(values)), walk.cells]
    assert (values.max(1) - kept <= 1e-7 * abs(kept).clip(1)).all()


@pytest.mark.parametrize("d", [1, 2, 3, 5])
@pytest.mark.parametrize("kind", ["plain", "clusters", "many empty cells"])
def test_the_second_best_and_by_how_much(kind, d, seeded):
    y, g = points(kind, 600, d, seeded)
    x = y.mean(0) + 3 * torch.randn(200, d, generator=seeded(2), dtype=torch.float64)
    best, second, gap = Cells(y, g).two(x)
    value, index = (torch.cdist(x, y).square() - g).topk(2, largest=False)
    assert torch.equal(best, index[:, 0])
    assert torch.equal(second, index[:, 1])
    torch.testing.assert_close(gap, value[:, 1] - value[:, 0], rtol=1e-6, atol=1e-8)


def test_between_cells_that_tie_any_will_do(seeded):
    y, g = points("ties", 800, 2, seeded)
    x = torch.randn(500, 2, generator=seeded(2), dtype=torch.float64).round(decimals=1)
    value = torch.cdist(x, y).square() - g
    found = value.gather(1, Cells(y, g).of(x)[:, None])[:, 0]
    torch.testing.assert_close(found, value.amin(1), atol=1e-10, rtol=0)


@pytest.mark.parametrize("y", [torch.zeros(600, 2), torch.arange(600.0)[:, None].expand(600, 2)])
def test_points_without_a_hull_are_looked_at_one_by_one(y, seeded):
    cells, x = Cells(y, torch.zeros(600)), 600 * torch.rand(50, 2, generator=seeded(0), dtype=torch.float64)
    if bool((y == 0).all()):
        assert cells._walk is None
    found = (x - y[cells.of(x)]).square().sum(1)
    torch.testing.assert_close(found, torch.cdist(x, y.double()).square().amin(1))


def test_a_cell_with_too_many_neighbours_is_not_walked_from(seeded):
    """A wheel: the hub touches every other cell."""
    x = torch.randn(50, 2, generator=seeded(0), dtype=torch.float64)
    for spokes in (nearest.NEIGHBOURS, nearest.NEIGHBOURS + 1):
        angle = torch.linspace(0, 2 * torch.pi, spokes + 1, dtype=torch.float64)[:-1]
        y = torch.cat((torch.zeros(1, 2), torch.stack((angle.cos(), angle.sin()), 1)))
        cells = Cells(y, torch.zeros(spokes + 1))
        assert (cells._walk is None) == (spokes > nearest.NEIGHBOURS)
        assert torch.equal(cells.of(x), by_definition(x, y, torch.zeros(spokes + 1)))


def test_all_points_at_a_time_or_a_few(seeded, monkeypatch):
    y, g = points("plain", 50, 5, seeded)
    x = torch.randn(33, 5, generator=seeded(2), dtype=torch.float64)
    whole, two = Cells(y, g).of(x), Cells(y, g).two(x)
    monkeypatch.setattr(nearest, "CHUNK", 100)
    assert torch.equal(Cells(y, g).of(x), whole)
    for a, b in zip(Cells(y, g).two(x), two, strict=True):
        torch.testing.assert_close(a, b)


def test_of_two_cells_one_is_the_second_best():
    best, second, gap = Cells(torch.tensor([[0.0], [4.0]]), torch.zeros(2)).two(torch.tensor([[1.0], [4.0]]))
    assert (best.tolist(), second.tolist(), gap.tolist()) == ([0, 1], [1, 0], [8.0, 16.0])


def test_one_cell_has_no_second_best():
    with pytest.raises(ValueError, match="one cell"):
        Cells(torch.zeros(1, 2), torch.zeros(1)).two(torch.zeros(3, 2))
