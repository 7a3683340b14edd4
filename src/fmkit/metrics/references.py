"""What is remembered of real images, computed once for each data set and features, and kept."""

from __future__ import annotations

from pathlib import Path

from torch import Tensor

from fmkit.arguments import check_count, check_instance
from fmkit.errors import ArgumentError
from fmkit.metrics.cache import Kept, fingerprint
from fmkit.metrics.image_sets import KEPT, Features, ImageSet
from fmkit.shapes import check_data

VERSION = 1  # of what an `ImageSet` remembers
BATCH = 500


def reference_set(
    images: Tensor,
    features: Features,
    *,
    identity: str | None = None,
    kept: int = KEPT,
    cache: str | Path | None = None,
) -> ImageSet:
    """The `ImageSet` of real images, or the one kept from the last time.

    Args:
        images: `(N, C, H, W)` in the units that the features take.
        features: as of `ImageSet`.
        identity: of the features, anything that is another text where they answer otherwise; by default their own
            attribute of that name, which a `classifier` has.
        kept: how many rows of features are kept for KID, precision and recall.
        cache: folder in which it is kept, see `cache_folder`. A kept one that is damaged is made again, with a warning.

    Raises:
        ArgumentError: for what `ImageSet` refuses, or features without identity.
    """
    empty = ImageSet(features, kept)
    identity = getattr(features, "identity", None) if identity is None else check_instance("identity", identity, str)
    if not identity:
        raise ArgumentError("the features have no identity, by which what is kept is told from others'; say identity=")
    key = {
        "version": VERSION,
        "images": fingerprint(check_data(images, "images")),
        "features": identity,
        "kept": check_count("kept", kept, 2),
    }
    file = Kept("reference", key, cache)
    found = file.read()
    if found is not None:
        try:
            return empty.restore(found[0])
        except ArgumentError as error:
            file.damaged(f"{file.path} does not fit its own description: {error}")
    made = ImageSet(features, kept).extend(images.split(BATCH))
    file.write(made.remembered())
    return made
