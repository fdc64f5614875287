"""The plan of a run, on storage: every fragment's units, written once and read by number.

    <run>/plan-<unique>.parquet   one row group per fragment
    <run>/plan.json               names the plan that counts; created if absent

Neither writing nor reading needs memory in proportion to the planned input.
"""

import os
import tempfile
import uuid
from collections.abc import Iterable
from typing import Any, ClassVar

import pyarrow as pa
import pyarrow.parquet as pq

from dq_cluster.encode.packing import pack
from dq_cluster.errors import InputError, NotFoundError
from dq_cluster.images.units import Unit
from dq_cluster.index.document import Document
from dq_cluster.storage import Storage, translated

_SCHEMA = pa.schema([("path", pa.string()), ("start", pa.int64()), ("rows", pa.int64())])


class Plan(Document):
    """What `plan.json` holds.

    rows: None where some unit does not tell; request: what was asked of the run, kept so that a
    continued run cannot mean something else; newest: the newest version of the index at the
    time, so that the run's own version is known to be newer.
    """

    NAME: ClassVar[str] = "plan"

    path: str
    fragments: int
    units: int
    rows: int | None
    request: dict[str, Any]
    newest: int = 0


def find_plan(storage: Storage, run: str) -> Plan | None:
    """The plan of the run in folder `run`, or None where there is none yet."""
    name = f"{run}/plan.json"
    try:
        return Plan.parse(storage.read(name), f"{storage.uri}/{name}")
    except NotFoundError:
        return None


def make_plan(
    storage: Storage,
    run: str,
    units: Iterable[Unit],
    *,
    fragment_rows: int,
    request: dict[str, Any],
    newest: int = 0,
) -> Plan:
    """Plan `units` and store the plan. If another driver stored one first, that one counts.

    Raises InputError when there is nothing to plan.
    """
    path = f"{run}/plan-{uuid.uuid4().hex[:12]}.parquet"
    fragments = count = rows = 0
    known = True
    with tempfile.TemporaryDirectory() as folder:
        local = os.path.join(folder, "plan.parquet")
        with pq.ParquetWriter(
            local, _SCHEMA, compression="ZSTD", use_dictionary=False, write_statistics=False
        ) as writer:
            for fragment in pack(units, fragment_rows):
                paths, starts, sizes = zip(*fragment, strict=True)
                table = pa.table([paths, starts, sizes], schema=_SCHEMA)
                writer.write_table(table, row_group_size=len(fragment))
                fragments += 1
                count += len(fragment)
                rows += sum(sizes)
                known = known and all(sizes)
        if not fragments:
            raise InputError("the source holds no images; check source.uri and source.kind")
        storage.upload(local, path)
    plan = Plan(
        path=path,
        fragments=fragments,
        units=count,
        rows=rows if known else None,
        request=request,
        newest=newest,
    )
    if storage.create(f"{run}/plan.json", plan.model_dump_json(indent=1).encode()):
        return plan
    winner = find_plan(storage, run)
    assert winner is not None
    if winner.path != path:
        storage.delete(path)
    return winner


class PlanReader:
    """Reads fragments of one plan by number; the footer is read once."""

    def __init__(self, storage: Storage, plan: Plan) -> None:
        self._storage, self._path = storage, plan.path
        with translated(storage, plan.path):
            self._file = pq.ParquetFile(storage.open(plan.path))

    def fragment(self, number: int) -> list[Unit]:
        """The units of fragment `number`, in order."""
        with translated(self._storage, self._path):
            table = self._file.read_row_group(number)
        return [Unit(*row) for row in zip(*(c.to_pylist() for c in table.columns), strict=True)]
