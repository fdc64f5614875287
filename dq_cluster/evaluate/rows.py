"""The results of a comparison, row by row, and the files that keep them."""

import hashlib
import json
from collections.abc import Mapping

from pydantic import BaseModel, ConfigDict, ValidationError

from dq_cluster.errors import IntegrityError
from dq_cluster.storage import Storage


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
    """A file per row, so that an interrupted comparison continues with the rows it has.

    Rows count for the same `inputs` (settings and fingerprints of the features) and the same
    `code` (`evaluate.origin.code_digest`) only; others lie beside them, unread.
    """

    def __init__(self, folder: Storage, inputs: Mapping[str, object], code: str) -> None:
        request = json.dumps(inputs, sort_keys=True, default=str) + code
        key = hashlib.sha256(request.encode()).hexdigest()
        self._folder = folder.child(f"rows/{key[:12]}")

    def read(self) -> dict[tuple[str, int], Row]:
        """The rows that are there, by method and bits."""
        rows = [self._row(info.path) for info in self._folder.list() if info.path.endswith(".json")]
        return {(row.method, row.bits): row for row in rows}

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
