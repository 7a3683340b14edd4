"""The features of FID: Inception's, with the weights that published figures are measured with.

The weights are a file of 91 MB that pytorch-fid and torch-fidelity share, `pt_inception-2015-12-05-6726825d.pth`. It is
read here without unpickling anything but tensors, and nothing is downloaded. The network is fmkit's own text of it
(`inception_network`), which agrees with torch-fidelity's to rounding: that one comes with torchvision, whose binaries
fit one release and build of torch each, and break whatever else looks for it where they do not.
"""

from __future__ import annotations

import hashlib
import io
import warnings
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fmkit.arguments import check_count, shown
from fmkit.errors import ArgumentError, SavedFileError
from fmkit.metrics.cache import cache_folder
from fmkit.metrics.extractors import FeatureExtractor
from fmkit.metrics.features import grey_levels
from fmkit.metrics.inception_network import InceptionNetwork
from fmkit.saving import reason

FILE, SUM = "pt_inception-2015-12-05-6726825d.pth", "6726825d"  # the sum is the beginning of its SHA-256
ALSO = "weights-inception-2015-12-05-6726825d.pth"  # the same file as torch-fidelity names it
SOURCE = f"https://github.com/toshas/torch-fidelity/releases/download/v0.2.0/{ALSO}"
VERSION = 1  # of what is done to images: a change makes every kept reference another one
BATCH = 50


class Inception(FeatureExtractor):
    """The 2,048 pooled features of Inception v3, and its 1,008 logits without their bias, as of every published FID.

    Images are rounded down to grey levels, brought to 0 .. 255, to three channels where they have one, and to 299x299
    pixels as TensorFlow 1 did. A comparison with published figures also needs their numbers of images (50,000 drawn,
    against all of the training set), and images of the same size.

    Args:
        weights: the file; by default `pt_inception-2015-12-05-6726825d.pth` in fmkit's cache (FMKIT_CACHE, else
            ~/.cache/fmkit), or where pytorch-fid or torch-fidelity have left it.
        levels: number of grey levels of the images, at least 2; supplied by the data in a configuration.

    Raises:
        ArgumentError: if there is no such file, or levels are out of range.
        SavedFileError: for a file that holds no weights of this network.

    Warns:
        UserWarning: for weights that are not FID's.
    """

    def __init__(self, weights: str | Path | None = None, levels: int = 256) -> None:
        super().__init__()
        self.levels = check_count("levels", levels, least=2)
        path = _found(weights)
        try:
            content = path.read_bytes()
        except OSError as error:
            raise ArgumentError(f"cannot read the weights {path}: {reason(error)}") from error
        self.sum = hashlib.sha256(content).hexdigest()
        with torch.random.fork_rng(devices=[]):  # what initialises layers is the global generator
            self.network = InceptionNetwork().eval()
        _fill(self.network, content, path)
        self.network.requires_grad_(False)
        if not self.sum.startswith(SUM):
            _warn_of(path)

    @property
    def identity(self) -> str:
        return f"inception-{VERSION}-{self.levels}-{self.sum}"

    def forward(self, images: Tensor) -> Tensor:
        """`(B, 2048)` features, without gradients.

        Args:
            images: `(B, 1, H, W)` or `(B, 3, H, W)` in the data's units.

        Raises:
            ArgumentError: for images of another shape, without values, or in other units.
        """
        return self.with_logits(images)[0]

    @torch.no_grad()
    def with_logits(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Features `(B, 2048)` and logits `(B, 1008)`; errors as of `forward`."""
        if not isinstance(images, Tensor) or images.ndim != 4 or images.shape[1] not in (1, 3) or not images.numel():
            raise ArgumentError(f"images is {shown(images)}, expected a tensor (B, 1, H, W) or (B, 3, H, W)")
        x = grey_levels(images, tuple(images.shape[1:]), self.levels)
        x = (x * (255 / (self.levels - 1))).round().expand(-1, 3, -1, -1)
        weight = self.network.fc.weight
        pieces = [self.network(batch.to(weight.device, weight.dtype)) for batch in x.split(BATCH)]
        features, logits = (torch.cat(part) for part in zip(*pieces, strict=True))
        return features, logits

    def train(self, mode: bool = True) -> Inception:
        """It stays as it is: its normalisation is by constants."""
        return super().train(False)


def _found(weights: str | Path | None) -> Path:
    """The file that was named, or the first of those where it is looked for."""
    if weights is not None:
        path = Path(weights).expanduser()
        if not path.is_file():
            raise ArgumentError(f"there are no weights at {path}; FID's are {SOURCE}")
        return path
    places = [cache_folder() / FILE, *(Path(torch.hub.get_dir()) / "checkpoints" / name for name in (FILE, ALSO))]
    for place in places:
        if place.is_file():
            return place
    raise ArgumentError(
        f"there are no Inception weights at {places[0]}, nor in {places[1].parent}; fmkit downloads nothing: take "
        f"{SOURCE} (91 MB) and put it there under the name {FILE}, or say where it is (weights=...)"
    )


def _fill(network: InceptionNetwork, content: bytes, path: Path) -> None:
    """Read the weights into the network."""
    try:
        with warnings.catch_warnings():  # what torch says of foreign files is for its own developers
            warnings.simplefilter("ignore")
            tensors: Any = torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
    except Exception as error:  # whatever foreign bytes lead torch's reader into
        raise SavedFileError(f"{path} is no file of weights ({_line(error)}); FID's are {SOURCE}") from None
    if not isinstance(tensors, dict):
        raise SavedFileError(f"{path} holds {shown(tensors)}, expected weights by name; FID's are {SOURCE}")
    known = network.state_dict()
    wanted = {name for name in known if not name.endswith("num_batches_tracked")}
    wrong = sorted({name for name in tensors if name not in known} | {name for name in wanted if name not in tensors})
    if wrong:
        example = f"{wrong[0]!r} is {'too many' if wrong[0] in tensors else 'missing'}, one of {len(wrong)} such"
        raise SavedFileError(f"{path} holds weights of another network ({example}); FID's are {SOURCE}")
    for name in sorted(wanted):
        value = tensors[name]
        if not isinstance(value, Tensor) or value.shape != known[name].shape or not bool(value.isfinite().all()):
            raise SavedFileError(
                f"{path} holds {shown(value)} for {name!r}, expected finite numbers {tuple(known[name].shape)}; FID's "
                f"weights are {SOURCE}"
            )
    network.load_state_dict({name: tensors[name] for name in wanted}, strict=False)


def _line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0][:120]


def _warn_of(path: Path) -> None:
    said = f"{path} has not the SHA-256 sum of FID's weights ({SUM}...): compare within these features, not with papers"
    warnings.warn(said, UserWarning, stacklevel=4)
