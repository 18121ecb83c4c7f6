"""Eleven photos of nine everyday things that come with scikit-image, scikit-learn and Gradio: nothing to download.

Far too few for a fine measure: one photo is nine percent. We looked at each and chose its word. For `flower` (a dahlia),
`rocket`, `motorcycle` and `tower` (Eiffel's) ImageNet has no class, and the vocabulary knows only their nearest kin. Left out:
people, drawings, textures, and what ImageNet has no word for. The photos keep the licenses of their packages and authors.
"""

from __future__ import annotations

import importlib.util
from pathlib import Path

from rift.dataset import ImageSet, store
from rift.review import Entry, Item, Notes

PHOTOS = {
    "skimage": {
        "data/chelsea.png": "cat",
        "data/coffee.png": "coffee",
        "data/motorcycle_left.png": "motorcycle",
        "data/rocket.jpg": "rocket",
    },
    "sklearn": {
        "datasets/images/china.jpg": "palace",  # a hall of Beijing's Summer Palace
        "datasets/images/flower.jpg": "flower",
    },
    "gradio": {
        "media_assets/images/cheetah.jpg": "cheetah",
        "media_assets/images/cheetah1.jpg": "cheetah",
        "test_data/cheetah2.jpg": "cheetah",
        "media_assets/images/lion.jpg": "lion",
        "media_assets/images/tower.jpg": "tower",
    },
}


def load(root: Path) -> ImageSet:
    """Return the photos whose packages are installed, kept under `root`; a package or file that is absent becomes a warning."""
    entries, notes = [], Notes()
    for package, photos in PHOTOS.items():
        spec = importlib.util.find_spec(package)  # finds the folder without importing, which for Gradio takes seconds
        if spec is None or spec.origin is None:
            lost = ", ".join(sorted(set(photos.values())))
            message = f"The package {package} is not installed, so its photos are left out: {lost}."
            notes.warnings.append(Item(file="", code="data.missing", message=message))
            continue
        for name, label in photos.items():
            path = Path(spec.origin).parent / name
            if path.is_file():
                entries.append(Entry(f"{label}/{package}-{path.name}", label, path.read_bytes))
            else:
                message = f"This version of {package} has no {name}, so the photo is left out."
                notes.warnings.append(Item(file=name, code="data.missing", message=message))
    return store(entries, root, name="bundled", about="Photos from scikit-image, scikit-learn and Gradio", notes=notes)
