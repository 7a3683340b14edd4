"""Two sets of images by their features: FID, KID, inception score, precision and recall.

The features are any function's, `images (B, C, H, W) -> (B, F)`. Images are seen in batches and forgotten; of their
features all go into the moments, and the first `kept` into what needs pairs. A number is comparable only with one of
the same features, the same number of samples and the same reference.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Mapping

import torch
from torch import Tensor

from fmkit.arguments import check_count, shown
from fmkit.errors import ArgumentError
from fmkit.metrics.base import as_points, squared_distances
from fmkit.metrics.moments import Moments, moments_distance
from fmkit.shapes import check_finite

Features = Callable[[Tensor], Tensor]
BLOCK = 2**24
KEPT = 10_000


class ImageSet:
    """What is remembered of a set of images: the moments of all features, the first of them, and their class mixture.

    Args:
        features: `(B, C, H, W) -> (B, F)`; called without gradients. With a method `with_logits`, which answers with
            features `(B, F)` and logits `(B, K)` at once, the inception score is known as well.
        kept: how many rows of features are kept for KID, precision and recall.

    Raises:
        ArgumentError: if the features are no function.
    """

    def __init__(self, features: Features, kept: int = KEPT) -> None:
        if not callable(features):
            raise ArgumentError(f"features is {shown(features)}, expected a function (B, C, H, W) -> (B, F)")
        self.features, self.kept = features, check_count("kept", kept, least=2)
        self.moments = Moments()
        self._rows: list[Tensor] = []
        self._shape: tuple[int, ...] | None = None
        self._range: tuple[float, float] | None = None
        self._entropies, self._classes = 0.0, torch.zeros(0, dtype=torch.float64)

    @property
    def count(self) -> int:
        """How many images were added."""
        return self.moments.count

    @property
    def rows(self) -> Tensor:
        """The features that were kept, `(at most kept, F)`."""
        if not self._rows:
            raise ArgumentError("no images were added")
        return torch.cat(self._rows)

    def add(self, images: Tensor) -> ImageSet:
        """Add a batch of images; itself.

        Raises:
            ArgumentError: for what is no floating-point images of the shape of those before, or not finite; or if the
                function answers with no features of them.
        """
        self._look_at(images)
        with torch.no_grad():
            both = getattr(self.features, "with_logits", None)
            rows, logits = (self.features(images), None) if both is None else both(images)
            classes = None if logits is None else torch.log_softmax(logits.cpu().double(), 1)
        if not isinstance(rows, Tensor) or rows.ndim != 2 or len(rows) != len(images):
            raise ArgumentError(f"features returned {shown(rows)} for {len(images)} images, expected (B, F)")
        room = self.kept - sum(map(len, self._rows))
        self.moments.add(rows)
        if room > 0:
            self._rows.append(rows[:room].detach().cpu().float())
        if classes is not None:
            share = classes.exp()
            self._entropies += (share * classes).sum().item()
            self._classes = share.sum(0) + (self._classes if len(self._classes) else 0.0)
        return self

    def extend(self, batches: Iterable[Tensor]) -> ImageSet:
        """Add every batch; itself."""
        for batch in batches:
            self.add(batch)
        return self

    def inception_score(self) -> float:
        """exp E KL(p(class | image) || p(class)), from 1 to the number of classes, greater is better.

        Raises:
            ArgumentError: if the features know no classes, or nothing was added.
        """
        if not len(self._classes):
            raise ArgumentError("the features have no method with_logits, so there is no inception score")
        mean = self._classes / self.count
        entropy = torch.special.entr(mean).sum().item()
        return float(torch.tensor(self._entropies / self.count + entropy, dtype=torch.float64).exp())

    def remembered(self) -> dict[str, Tensor]:
        """All of it as tensors, which `restore` takes.

        Raises:
            ArgumentError: if nothing was added.
        """
        moments = {"rows": self.rows, "mean": self.moments.mean, "scatter": self.moments.scatter}
        numbers = {"count": self.count, "shape": self._shape, "range": self._range, "entropies": self._entropies}
        made = {k: torch.tensor(v, dtype=torch.float64) for k, v in numbers.items()}
        return made | moments | {"classes": self._classes}

    def restore(self, tensors: Mapping[str, Tensor]) -> ImageSet:
        """Remember what `remembered` gave, instead of what it does; itself.

        Raises:
            ArgumentError: for tensors that were not given by it.
        """
        names = {"count", "shape", "range", "entropies", "rows", "mean", "scatter", "classes"}
        if set(tensors) != names:
            raise ArgumentError(f"there are {sorted(tensors)}, expected {sorted(names)}")
        for name, value in tensors.items():
            check_finite(value.reshape(-1), name)
        width, count = len(tensors["mean"]), int(tensors["count"])
        shapes = {"rows": (min(count, self.kept), width), "mean": (width,), "scatter": (width, width), "range": (2,)}
        for name, shape in shapes.items():
            if tuple(tensors[name].shape) != shape:
                raise ArgumentError(f"{name} has shape {tuple(tensors[name].shape)}, expected {shape}")
        self.moments.count, self.moments.mean, self.moments.scatter = count, tensors["mean"], tensors["scatter"]
        self._rows, self._classes, self._entropies = [tensors["rows"]], tensors["classes"], float(tensors["entropies"])
        self._shape = tuple(int(n) for n in tensors["shape"])
        low, high = tensors["range"].tolist()
        self._range = low, high
        return self

    def _look_at(self, images: Tensor) -> None:
        if not isinstance(images, Tensor) or images.ndim != 4 or not images.numel():
            raise ArgumentError(f"images is {shown(images)}, expected a tensor (B, C, H, W)")
        if not images.is_floating_point():
            raise ArgumentError(
                f"images has dtype {images.dtype}, expected floating point in the units that the features take"
            )
        check_finite(images, "images")
        if self._shape not in (None, tuple(images.shape[1:])):
            raise ArgumentError(f"images have shape {tuple(images.shape[1:])}, those before had {self._shape}")
        self._shape = tuple(images.shape[1:])
        low, high = (v.item() for v in torch.aminmax(images))
        self._range = (low, high) if self._range is None else (min(low, self._range[0]), max(high, self._range[1]))

    def check_against(self, reference: ImageSet) -> None:
        """Refuse what cannot be compared; warn of images that look to be in other units.

        Raises:
            ArgumentError: for images of other shapes, or empty sets.

        Warns:
            UserWarning: where one range of values is less than half as wide as the other, or reaches beyond it by half.
        """
        if self._range is None or reference._range is None:
            raise ArgumentError("no images were added")
        if self._shape != reference._shape:
            raise ArgumentError(f"images have shape {self._shape} and the reference {reference._shape}")
        (a, b), (c, d) = self._range, reference._range
        margin = (d - c) / 2
        if b - a < margin or a < c - margin or b > d + margin:
            warnings.warn(
                f"images are in [{a:.3g}, {b:.3g}] and the reference in [{c:.3g}, {d:.3g}]; are these the same units?",
                stacklevel=3,
            )


def image_distances(samples: ImageSet, reference: ImageSet, neighbours: int = 3) -> dict[str, float]:
    """`fid`, `kid`, `precision`, `recall`, and `inception_score` where the features know classes.

    Raises:
        ArgumentError: for sets that cannot be compared, or fewer than `neighbours` + 1 images.
    """
    samples.check_against(reference)
    precision, recall = precision_recall(samples.rows, reference.rows, neighbours)
    figures = {
        "fid": moments_distance(samples.moments, reference.moments),
        "kid": kernel_inception_distance(samples.rows, reference.rows),
        "precision": precision,
        "recall": recall,
    }
    return figures | ({"inception_score": samples.inception_score()} if len(samples._classes) else {})


def kernel_inception_distance(samples: Tensor, reference: Tensor) -> float:
    """KID: the unbiased squared MMD with k(x, y) = (x.y/F + 1)³, of features `(N, F)` and `(M, F)`.

    (Binkowski et al., arXiv 1801.01401.) All pairs at once, not an average over subsets, which has the same mean and
    more variance. A value may be slightly negative.
    """
    x, y = as_points(samples, reference)
    across = _kernel_sum(x, y) / (len(x) * len(y))
    own = [
        (_kernel_sum(z, z) - (z.square().sum(1) / z.shape[1] + 1).pow(3).sum().item()) / (len(z) * (len(z) - 1))
        for z in (x, y)
    ]
    return sum(own) - 2 * across


def precision_recall(samples: Tensor, reference: Tensor, neighbours: int = 3) -> tuple[float, float]:
    """The share of samples among the reference, and of the reference among samples (Kynkäänniemi et al., 1904.06991).

    A point is among a set if it is no further from one of its points than that one's k-th neighbour.

    Args:
        samples: features `(N, F)`.
        reference: `(M, F)`.
        neighbours: k.

    Raises:
        ArgumentError: if a set has no k neighbours.
    """
    x, y = as_points(samples, reference)
    check_count("neighbours", neighbours)
    if min(len(x), len(y)) <= neighbours:
        raise ArgumentError(f"a set has {min(len(x), len(y))} points, expected more than neighbours, {neighbours}")
    return _share_among(x, y, neighbours), _share_among(y, x, neighbours)


def _share_among(points: Tensor, others: Tensor, k: int) -> float:
    """The share of points inside some ball around `others`."""
    rows = max(1, BLOCK // max(len(points), len(others)))
    radii = torch.cat([squared_distances(o, others).kthvalue(k + 1).values for o in others.split(rows)])
    inside = [(squared_distances(p, others) <= radii * (1 + 1e-9)).any(1) for p in points.split(rows)]
    return torch.cat(inside).double().mean().item()


def _kernel_sum(x: Tensor, y: Tensor) -> float:
    rows = max(1, BLOCK // len(y))
    return sum((part @ y.T / x.shape[1] + 1).pow(3).sum().item() for part in x.split(rows))
