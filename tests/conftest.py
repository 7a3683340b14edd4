"""What the tests share: exact Gaussian mixtures under a schedule, seeded generators, measured orders.

Nothing here is computed by fmkit: schedules are written again from the papers, as variances where fmkit has standard
deviations, and marginal fields come from the closed form for mixtures. With x_t = alpha x1 + noise of variance var(t),
data sum_k w_k N(mu_k, c_k² I), V_k = alpha² c_k² + var, and r_k the posterior weights of the components,

    p_t(x) = sum_k w_k N(x; alpha mu_k, V_k I)
    u_t(x) = sum_k r_k [V_k'/(2 V_k) (x - alpha mu_k) + alpha' mu_k],   V_k' = 2 alpha alpha' c_k² + var'
"""

import math
from collections.abc import Callable
from typing import NamedTuple

import hypothesis
import pytest
import torch
from torch import Tensor

from fmkit.fields import VectorField

torch.set_num_threads(1)
hypothesis.settings.register_profile("fmkit", deadline=None, derandomize=True, max_examples=30, database=None)
hypothesis.settings.load_profile("fmkit")


def pytest_configure(config) -> None:
    # torch's own forward mode scripts its decompositions when it is first used, and warns about itself.
    config.addinivalue_line(
        "filterwarnings", "ignore:`torch.jit.script` is (deprecated|not supported):DeprecationWarning"
    )


@pytest.fixture
def traced(monkeypatch):
    """torch.compile with everything but the making of kernels, which takes a compiler and seconds; what was traced."""
    made, compiled = [], torch.compile

    def counting(graph, inputs):
        made.append(graph)
        return graph.forward

    def compile(function, *, backend=None, **options):
        return compiled(function, backend=counting, **options)

    monkeypatch.setattr("torch.compile", compile)
    yield made
    torch._dynamo.reset()


class Schedule(NamedTuple):
    """alpha, alpha', the variance of all that is not data, its derivative, and where the path is valid."""

    alpha: Callable[[Tensor], Tensor]
    d_alpha: Callable[[Tensor], Tensor]
    var: Callable[[Tensor], Tensor]
    d_var: Callable[[Tensor], Tensor]
    interval: tuple[float, float] = (0.0, 1.0)


def _vp() -> Schedule:
    def total(t):  # T(1 - t), eq. 18
        s = 1 - t
        return 0.1 * s + 0.5 * s * s * 19.9

    def beta(t):
        return 0.1 + (1 - t) * 19.9

    return Schedule(
        lambda t: torch.exp(-total(t) / 2),
        lambda t: beta(t) * torch.exp(-total(t) / 2) / 2,
        lambda t: -torch.expm1(-total(t)),
        lambda t: -beta(t) * torch.exp(-total(t)),
        (0.0, 1 - 1e-5),
    )


_LOG = math.log(5000.0)
_QUARTER = math.pi / 2
SCHEDULES = {
    "condot": Schedule(lambda t: t, torch.ones_like, lambda t: (1 - t) ** 2, lambda t: -2 * (1 - t)),
    "vp": _vp(),
    "ve": Schedule(
        torch.ones_like,
        torch.zeros_like,
        lambda t: 2500 * torch.exp(-2 * _LOG * t),
        lambda t: -5000 * _LOG * torch.exp(-2 * _LOG * t),
    ),
    "cosine": Schedule(
        lambda t: torch.cos(_QUARTER * (1 - t)),
        lambda t: _QUARTER * torch.sin(_QUARTER * (1 - t)),
        lambda t: torch.cos(_QUARTER * t) ** 2,
        lambda t: -_QUARTER * torch.sin(math.pi * t),
    ),
    "polynomial": Schedule(
        lambda t: t * t, lambda t: 2 * t, lambda t: (1 - t * t) ** 2, lambda t: -4 * t * (1 - t * t)
    ),
    "linear-vp": Schedule(lambda t: t, torch.ones_like, lambda t: 1 - t * t, lambda t: -2 * t, (0.0, 1 - 1e-5)),
    "icfm": Schedule(lambda t: t, torch.ones_like, lambda t: (1 - t) ** 2 + 0.01, lambda t: -2 * (1 - t)),
    "schrodinger-bridge": Schedule(
        lambda t: t,
        torch.ones_like,
        lambda t: (1 - t) ** 2 + t * (1 - t),  # = 1 - t: Brownian motion run backward
        lambda t: -torch.ones_like(t),
        (1e-5, 1 - 1e-5),
    ),
}


class Mixture:
    """sum_k w_k N(mu_k, c_k² I) in D dimensions, float64."""

    def __init__(self, weights, means, stds) -> None:
        self.w = torch.tensor(weights, dtype=torch.float64)
        self.mu = torch.tensor(means, dtype=torch.float64)
        self.c2 = torch.tensor(stds, dtype=torch.float64) ** 2

    def sample(self, n: int, generator: torch.Generator) -> Tensor:
        k = torch.multinomial(self.w, n, replacement=True, generator=generator)
        noise = torch.randn(n, self.mu.shape[1], generator=generator, dtype=torch.float64)
        return self.mu[k] + self.c2[k].sqrt()[:, None] * noise

    def _components(self, alpha: Tensor, var: Tensor, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """x - alpha mu_k (B, K, D), V_k (B, K), log w_k N_k (B, K)."""
        away = x[:, None] - alpha[:, None, None] * self.mu
        v = alpha[:, None] ** 2 * self.c2 + var[:, None]
        log = torch.log(self.w) - away.square().sum(-1) / (2 * v) - self.mu.shape[1] / 2 * torch.log(2 * math.pi * v)
        return away, v, log

    def log_prob(self, x: Tensor, schedule: Schedule | None = None, t: float | Tensor = 1.0) -> Tensor:
        """log p_t(x), or the data's own without a schedule."""
        t = torch.as_tensor(t, dtype=torch.float64).expand(len(x))
        if schedule is None:
            alpha, var = torch.ones_like(t), torch.zeros_like(t)
        else:
            alpha, var = schedule.alpha(t), schedule.var(t)
        return torch.logsumexp(self._components(alpha, var, x.double())[2], 1)

    def velocity(self, schedule: Schedule, t: Tensor, x: Tensor) -> Tensor:
        """u_t(x) for times (B,) and points (B, D)."""
        alpha, d_alpha = schedule.alpha(t), schedule.d_alpha(t)
        away, v, log = self._components(alpha, schedule.var(t), x)
        d_v = 2 * (alpha * d_alpha)[:, None] * self.c2 + schedule.d_var(t)[:, None]
        each = (d_v / (2 * v))[..., None] * away + d_alpha[:, None, None] * self.mu
        return (torch.softmax(log, 1)[..., None] * each).sum(1)

    def posterior(self, schedule: Schedule, t: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
        """E[x1 | x_t = x] and E[noise of unit variance | x_t = x]."""
        alpha, var = schedule.alpha(t), schedule.var(t)
        away, v, log = self._components(alpha, var, x)
        r = torch.softmax(log, 1)[..., None]
        data = self.mu + (alpha[:, None] * self.c2 / v)[..., None] * away
        noise = (var.sqrt()[:, None] / v)[..., None] * away
        return (r * data).sum(1), (r * noise).sum(1)


class ExactField(VectorField):
    """The marginal field of a mixture; `anchor` only gives a flow of it its precision."""

    def __init__(self, mixture, schedule, dtype=torch.float64) -> None:
        super().__init__()
        self.mixture, self.schedule = mixture, schedule
        self.anchor = torch.nn.Parameter(torch.zeros((), dtype=dtype))

    @property
    def interval(self):
        return self.schedule.interval

    def forward(self, t, x, cond=None):
        return self.mixture.velocity(self.schedule, t.double(), x.double()).to(x.dtype)


@pytest.fixture(scope="session")
def schedules() -> dict[str, Schedule]:
    """Every path's schedule, written independently of fmkit."""
    return SCHEDULES


@pytest.fixture(scope="session")
def mixtures() -> dict[int, Mixture]:
    """A mixture in one, two and three dimensions, with mean near 0 and spread near 1."""
    return {
        1: Mixture([0.4, 0.6], [[-0.9], [0.6]], [0.35, 0.5]),
        2: Mixture([0.3, 0.3, 0.4], [[-0.8, 0.3], [0.8, 0.5], [0.0, -0.6]], [0.3, 0.4, 0.5]),
        3: Mixture([0.5, 0.5], [[-0.7, 0.2, 0.5], [0.7, -0.2, -0.5]], [0.5, 0.4]),
    }


@pytest.fixture(scope="session")
def new_mixture() -> type[Mixture]:
    """The class of mixtures."""
    return Mixture


@pytest.fixture(scope="session")
def exact_field() -> type[ExactField]:
    """The class of exact fields."""
    return ExactField


@pytest.fixture(scope="session")
def seeded() -> Callable[[int], torch.Generator]:
    """A new generator from a seed."""
    return lambda seed=0: torch.Generator().manual_seed(seed)


@pytest.fixture(scope="session")
def observed_order() -> Callable[[list[int], list[float]], float]:
    """The order of convergence seen between the last two of a row of errors."""

    def order(steps, errors):
        return math.log(errors[-2] / errors[-1]) / math.log(steps[-1] / steps[-2])

    return order
