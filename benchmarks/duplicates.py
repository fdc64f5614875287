"""Near-duplicates of photographs: precision and recall by kind of copy, beside perceptual hashes.

    python -m benchmarks.duplicates FOLDER … --others FOLDER --python peers/bin/python

The pile: distinct pictures of the folders (those of wallpaper packages), and those of `--others`,
of which there are no copies. Every picture gets copies of known kinds. A copy asks for what is near
it among the pile. Recall: copies that find their original. Precision: of all that such copies
find, the share that is the original. Each method's threshold is chosen on the even pictures, to
find most re-encoded, resized, and recoloured copies at a precision of 0.99 (or else the best F1);
the figures are of the odd ones. `--python` has imagehash. Training sees the pile and its copies, as
in a real pile, without knowing which is which.
"""

import argparse
import io
import json
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from PIL import Image, ImageDraw, ImageEnhance, ImageOps

from dq_cluster.cluster import ray_cluster
from dq_cluster.config import validate_settings
from dq_cluster.images.backbone import load_backbone
from dq_cluster.images.config import BackboneSettings
from dq_cluster.model.bundle import load_model
from dq_cluster.search.exact import Centroids
from dq_cluster.storage import Storage
from dq_cluster.training.config import TrainSettings
from dq_cluster.training.run import train

_SIDE = 480
_NEAR = 4  # bits of a difference hash: pictures this alike are one
_WANTED = ("re-encoded", "resized", "recoloured")
_PRECISION = 0.99
_HASHES = """
import sys, json, imagehash
from PIL import Image
out = {"pHash": [], "dHash": []}
for line in sys.stdin:
    with Image.open(line.strip()) as image:
        out["pHash"].append(str(imagehash.phash(image)))
        out["dHash"].append(str(imagehash.dhash(image)))
json.dump(out, sys.stdout)
"""
Picture = Image.Image


def recoded(quality: int) -> Callable[[Picture], Picture]:
    def make(image: Picture) -> Picture:
        data = io.BytesIO()
        image.save(data, "JPEG", quality=quality)
        return Image.open(data).convert("RGB")

    return make


def resized(share: float) -> Callable[[Picture], Picture]:
    return lambda i: i.resize((max(1, round(i.width * share)), max(1, round(i.height * share))))


def cropped(share: float) -> Callable[[Picture], Picture]:
    """Without `share` of the area, off the middle."""
    side = (1 - share) ** 0.5

    def make(image: Picture) -> Picture:
        width, height = round(image.width * side), round(image.height * side)
        left, top = (image.width - width) // 3, (image.height - height) // 3
        return image.crop((left, top, left + width, top + height))

    return make


def text(image: Picture) -> Picture:
    image = image.copy()
    draw = ImageDraw.Draw(image)
    size = image.height // 12
    for place, line in ((0.08, "WALLPAPER OF THE DAY"), (0.85, "www.example.org")):
        spot = (image.width * 0.06, image.height * place)
        draw.text(spot, line, fill="white", font_size=size, stroke_width=2, stroke_fill="black")
    return image


KINDS: dict[str, list[Callable[[Picture], Picture]]] = {
    "re-encoded": [recoded(q) for q in (90, 50, 20)],
    "resized": [resized(s) for s in (0.75, 0.5, 0.25)],
    "recoloured": [
        lambda i: ImageEnhance.Brightness(i).enhance(1.25),
        lambda i: ImageEnhance.Color(i).enhance(0.5),
        lambda i: ImageEnhance.Contrast(i).enhance(1.3),
    ],
    "cropped 2%": [cropped(0.02)],
    "cropped 5%": [cropped(0.05)],
    "cropped 10%": [cropped(0.1)],
    "cropped 20%": [cropped(0.2)],
    "cropped 30%": [cropped(0.3)],
    "mirrored": [ImageOps.mirror],
    "text": [text],
    "border": [lambda i: ImageOps.expand(i, round(0.06 * i.width), "black")],
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folders", nargs="+", type=Path)
    parser.add_argument("--others", nargs="*", type=Path, default=[])
    parser.add_argument("--python", type=Path, help="an environment with imagehash")
    parser.add_argument("--epochs", type=int, default=60)
    asked = parser.parse_args()
    photos = list(distinct(asked.folders, 10**6))
    others = list(distinct(asked.others, 200, [hash_of(p) for p in photos]))
    pile = photos + others
    images, kinds, of = list(pile), ["original"] * len(pile), list(range(len(pile)))
    for number, photo in enumerate(photos):
        for kind, makers in KINDS.items():
            images += [make(photo) for make in makers]
            kinds += [kind] * len(makers)
            of += [number] * len(makers)
    print(
        f"{len(photos)} photographs, {len(others)} other pictures, {len(images) - len(pile)} copies"
    )
    backbone = load_backbone(BackboneSettings())
    features = np.vstack(
        [
            backbone.features(
                np.stack([pixels(i, backbone.image_size) for i in images[at : at + 32]])
            )
            for at in range(0, len(images), 32)
        ]
    ).astype(np.float32)
    copies, target = np.arange(len(pile), len(images)), np.array(of)
    result = {}
    with tempfile.TemporaryDirectory() as folder:
        for name, given in {
            "64-bit codes": {"refine_bits": 0},
            "64-bit codes, second codes of 256 bits": {"refine_bits": 256},
        }.items():
            first, second = decoded(folder, features, given, asked.epochs)
            found = second if given["refine_bits"] else first
            result[name] = -distances(found[copies], found[: len(pile)])
        if asked.python:
            result |= hashed(folder, asked.python, images, copies, len(pile))
    unit = features / np.linalg.norm(features, axis=1, keepdims=True)
    result["features (cosine)"] = unit[copies] @ unit[: len(pile)].T
    report(result, np.array(kinds)[copies], target[copies])


def decoded(folder: str, features: np.ndarray, given: dict, epochs: int) -> tuple:
    """What the first and the second codes of the features stand for."""
    uri = f"{folder}/features-{given['refine_bits']}"
    Path(uri).mkdir()
    column = pa.FixedSizeListArray.from_arrays(pa.array(features.ravel()), features.shape[1])
    ids = pa.array(np.arange(len(features)))
    pq.write_table(pa.table({"id": ids, "feature": column}), f"{uri}/part-0.parquet")
    asked = {
        "features": uri,
        "index": f"{folder}/index-{given['refine_bits']}",
        "name": "copies",
        "model": {"objective": "neighbours", "epochs": epochs, "batch_size": 256, **given},
    }
    with ray_cluster():
        card = train(validate_settings(TrainSettings, asked, "train"))
    network, card = load_model(Storage(f"{folder}/index-{given['refine_bits']}"), card.digest)
    with torch.inference_mode():
        embedding = network.embed(torch.from_numpy(features))
        first = Centroids(network.codebooks.numpy(), card.geometry).of(
            network.code(embedding).numpy()
        )
        if card.geometry.refine is None:
            return first.astype(np.float32), None
        second = Centroids(network.refine_codebooks.numpy(), card.geometry.refine).of(
            network.refine(embedding).numpy()
        )
    return first.astype(np.float32), second.astype(np.float32)


def hashed(folder: str, python: Path, images: list, copies: np.ndarray, pile: int) -> dict:
    """Minus the Hamming distances of imagehash's hashes of 64 bits."""
    names = []
    for number, image in enumerate(images):
        names.append(f"{folder}/{number}.png")
        image.save(names[-1], compress_level=1)
    run = subprocess.run(
        [python, "-c", _HASHES], input="\n".join(names), capture_output=True, text=True, check=True
    )
    scores = {}
    for name, values in json.loads(run.stdout).items():
        bits = np.array([list(bytes.fromhex(value)) for value in values], np.uint8)
        flags = np.unpackbits(bits, axis=1).astype(np.int32)
        scores[name] = -(flags[copies, None] != flags[None, :pile]).sum(axis=2).astype(np.float32)
    return scores


def report(result: dict[str, np.ndarray], kinds: np.ndarray, target: np.ndarray) -> None:
    """Print a Markdown table and JSON: precision / recall by kind of the odd pictures."""
    table: dict[str, dict[str, list[float]]] = {}
    tune = target % 2 == 0
    for name, scores in result.items():
        wanted = tune & np.isin(kinds, _WANTED)
        limit = threshold(scores[wanted], target[wanted])
        table[name] = {"threshold": [round(float(limit), 5)]}
        table[name]["the three wanted"] = figures(
            scores, target, ~tune & np.isin(kinds, _WANTED), limit
        )
        for kind in KINDS:
            table[name][kind] = figures(scores, target, ~tune & (kinds == kind), limit)
    columns = ["the three wanted", *KINDS]
    print("| method | " + " | ".join(columns) + " |\n|" + "---|" * (len(columns) + 1))
    for name, row in table.items():
        cells = [f"{row[c][0]:.3f} / {row[c][1]:.3f}" for c in columns]
        print(f"| {name} | " + " | ".join(cells) + " |")
    print(json.dumps(table))


def figures(scores: np.ndarray, target: np.ndarray, of: np.ndarray, limit: float) -> list[float]:
    """Precision and recall of some copies at a threshold."""
    near = scores[of] >= limit
    right = near[np.arange(len(near)), target[of]]
    found = near.sum()
    return [round(float(right.sum() / max(found, 1)), 4), round(float(right.mean()), 4)]


def threshold(scores: np.ndarray, target: np.ndarray) -> float:
    """The lowest with the wanted precision; where there is none, that of the best F1."""
    right = np.zeros(scores.shape, bool)
    right[np.arange(len(target)), target] = True
    order = np.argsort(-scores, axis=None, kind="stable")
    values, hits = scores.ravel()[order], np.cumsum(right.ravel()[order])
    ends = np.append(values[1:] != values[:-1], True)
    precision, recall = hits / np.arange(1, len(hits) + 1), hits / len(target)
    good = np.flatnonzero(ends & (precision >= _PRECISION))
    if len(good) and recall[good].max() > 0.5:
        return float(values[good[-1]])
    f1 = np.where(ends, 2 * precision * recall / np.maximum(precision + recall, 1e-9), 0)
    return float(values[f1.argmax()])


def distances(queries: np.ndarray, others: np.ndarray) -> np.ndarray:
    return np.square(queries[:, None] - others[None]).sum(axis=2)


def distinct(folders: list[Path], most: int, known: list[int] | None = None) -> Iterator[Picture]:
    """Pictures of at least 200 pixels a side that are unlike each other, shrunk."""
    seen, count = list(known or []), 0
    paths = [
        p
        for f in folders
        for p in sorted(f.rglob("*"))
        if p.suffix.lower() in (".jpg", ".png", ".jpeg", ".webp")
    ]
    for path in paths:
        if path.is_symlink() or count == most:
            continue
        with Image.open(path) as opened:
            if min(opened.size) < 200:
                continue
            opened.draft("RGB", (_SIDE, _SIDE))
            rgba = opened.convert("RGBA")
        rgba.thumbnail((_SIDE, _SIDE))
        image = Image.alpha_composite(Image.new("RGBA", rgba.size, "white"), rgba).convert("RGB")
        value = hash_of(image)
        if all((value ^ other).bit_count() > _NEAR for other in seen):
            seen.append(value)
            count += 1
            yield image


def hash_of(image: Picture) -> int:
    small = np.asarray(image.convert("L").resize((9, 8)), np.int16)
    return int.from_bytes(np.packbits(small[:, 1:] > small[:, :-1]).tobytes())


def pixels(image: Picture, size: int) -> np.ndarray:
    """As encoding makes them of a file that is nothing but this picture."""
    from dq_cluster.images.decode import decode_image

    data = io.BytesIO()
    image.save(data, "BMP")
    return decode_image(data.getvalue(), size)


if __name__ == "__main__":
    main()
