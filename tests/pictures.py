"""Real pictures for tests: crops of the photograph that matplotlib ships."""

import io
import tarfile
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

import matplotlib
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image


@cache
def photograph() -> Image.Image:
    """Grace Hopper, 512 x 600, RGB."""
    path = Path(matplotlib.get_data_path()) / "sample_data" / "grace_hopper.jpg"
    return Image.open(path).convert("RGB")


def encoded(image: Image.Image, kind: str = "JPEG", **options: Any) -> bytes:
    """The bytes of an image file."""
    sink = io.BytesIO()
    image.save(sink, kind, **options)
    return sink.getvalue()


@cache
def crops(count: int, side: int = 48) -> tuple[bytes, ...]:
    """`count` different JPEGs of `side` pixels, cut out of the photograph."""
    image = photograph()
    step = 7
    across = (image.width - side) // step
    boxes = (((n % across) * step, (n // across) * step) for n in range(count))
    return tuple(encoded(image.crop((x, y, x + side, y + side))) for x, y in boxes)


def write_folder(folder: Path, images: dict[str, bytes]) -> Path:
    for name, data in images.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(data)
    return folder


def write_parquet(path: Path, columns: Mapping[str, Any], row_group_size: int = 100) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table(columns), path, row_group_size=row_group_size)
    return path


def write_tar(path: Path, members: dict[str, bytes]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as tar:
        for name, data in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return path
