"""The results of a comparison, row by row, and the files that keep them."""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path

from pydantic import BaseModel, ConfigDict, ValidationError

import dq_cluster
from dq_cluster.errors import IntegrityError
from dq_cluster.storage import Storage

# What decides the figures of a row: the model, the baselines, and how they are measured.
_MEASURING = (
    "model/*.py",
    "evaluate/baselines/*.py",
    "evaluate/compare.py",
    "evaluate/exact.py",
    "evaluate/metrics.py",
    "evaluate/rows.py",
    "evaluate/variants.py",
)


class Row(BaseModel):
    """One method at one code length, and what was measured with each seed.

    bits: 0 for exact search on the features. map: mAP@k by label; recall: recall@10 of the exact
    nearest features; training: DeepQuan's `variance` and `perplexity` at the end of training.
    curve: (recall, precision) after 1 … k results, mean over queries and seeds. ap: AP@k per
    query, and first: the rows of the database found first, nearest first, both of the first
    seed. seconds: spent on all seeds.
    """

    # Strings, because JSON has no NaN and null would not be read back.
    model_config = ConfigDict(frozen=True, ser_json_inf_nan="strings")

    method: str
    bits: int
    map: tuple[float, ...]
    recall: tuple[float, ...]
    training: dict[str, tuple[float, ...]]
    curve: tuple[tuple[float, float], ...]
    ap: tuple[float, ...]
    first: tuple[tuple[int, ...], ...]
    seconds: float


class RowFiles:
    """A file per row, so that a comparison that was cut short goes on with what it has.

    Rows count for the same `inputs` (settings and fingerprints of the features) and the same
    code only; others lie beside them, unread.
    """

    def __init__(self, folder: Storage, inputs: Mapping[str, object]) -> None:
        key = hashlib.sha256(json.dumps(inputs, sort_keys=True, default=str).encode())
        package = Path(dq_cluster.__file__).parent
        for pattern in _MEASURING:
            for source in sorted(package.glob(pattern)):
                key.update(source.read_bytes())
        self._folder = folder.child(f"rows/{key.hexdigest()[:12]}")

    def read(self) -> dict[tuple[str, int], Row]:
        """The rows that are there, by method and bits."""
        found = [
            self._row(info.path) for info in self._folder.list() if info.path.endswith(".json")
        ]
        return {(row.method, row.bits): row for row in found}

    def _row(self, name: str) -> Row:
        try:
            return Row.model_validate_json(self._folder.read(name))
        except ValidationError as error:
            raise IntegrityError(
                f"{self._folder.uri}/{name} is no row of a comparison "
                f"({error.error_count()} errors); delete it to measure it again"
            ) from None

    def write(self, row: Row) -> None:
        """Keep a row."""
        name = f"{row.method.replace(' ', '-')}-{row.bits}.json"
        self._folder.write(name, row.model_dump_json().encode())
