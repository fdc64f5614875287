"""The plan of a run, on storage: every fragment's units, written once and read by number.

    <run>/plan-<unique>.parquet   one row group per fragment
    <run>/plan.json               names the plan that counts; created if absent

Neither writing nor reading needs memory in proportion to the planned input.
"""

import uuid
from collections.abc import Callable, Iterable
from datetime import UTC, datetime
from typing import Any, ClassVar

import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import Field

from dq_cluster.document import Document
from dq_cluster.encoding.packing import pack
from dq_cluster.errors import DqError, InputError, NotFoundError
from dq_cluster.images.skipped import Skipped, skipped_text
from dq_cluster.images.units import Unit
from dq_cluster.storage import Storage, translated
from dq_cluster.storage.scratch import scratch_folder

PLAN = "plan.json"
# In the order of Unit; plans of earlier versions end after `rows`.
_SCHEMA = pa.schema(
    [
        ("path", pa.string()),
        ("start", pa.int64()),
        ("rows", pa.int64()),
        ("size", pa.int64()),
        ("stamp", pa.int64()),
        ("base", pa.int64()),
    ]
)


class Plan(Document):
    """What `plan.json` holds.

    rows: None where some unit does not tell; request: what was asked of a run that an older
    release began, `run.json` has it now; newest: the newest version of the index at the time, so
    that the run's own version is known to be newer. planned: when the input was listed; files:
    how many it had; skipped: what of it is no input, by kind; unread: how many of those are
    pictures, by format. Plans of earlier versions do not say these.
    """

    NAME: ClassVar[str] = "plan"

    path: str
    fragments: int
    units: int
    rows: int | None
    request: dict[str, Any] = Field(default_factory=dict)
    newest: int = 0
    planned: datetime | None = None
    files: int | None = None
    skipped: dict[str, int] = Field(default_factory=dict)
    unread: dict[str, int] = Field(default_factory=dict)


def find_plan(storage: Storage, run: str) -> Plan | None:
    """The plan of the run in folder `run`, or None where there is none yet."""
    name = f"{run}/{PLAN}"
    try:
        return Plan.parse(storage.read(name), f"{storage.uri}/{name}")
    except NotFoundError:
        return None


def make_plan(
    storage: Storage,
    run: str,
    units: Iterable[Unit],
    skipped: Skipped | None = None,
    *,
    fragment_rows: int,
    newest: int = 0,
    claim: Callable[[], None] = lambda: None,
) -> Plan:
    """Plan `units` and store the plan. If another driver stored one first, that one counts.

    skipped: where the source counts what it leaves out of `units`. `claim` is called when all
    units are known and before the plan counts.
    Raises InputError when there is nothing to plan, and what `claim` raises.
    """
    started = datetime.now(UTC)
    skipped = skipped or Skipped()
    path = f"{run}/plan-{uuid.uuid4().hex[:12]}.parquet"
    fragments = count = rows = files = 0
    counted, last = True, None
    with scratch_folder() as folder:
        local = folder / "plan.parquet"
        with pq.ParquetWriter(
            local, _SCHEMA, compression="ZSTD", use_dictionary=False, write_statistics=False
        ) as writer:
            for fragment in pack(units, fragment_rows):
                table = pa.table(list(zip(*fragment, strict=True)), schema=_SCHEMA)
                writer.write_table(table, row_group_size=len(fragment))
                fragments += 1
                count += len(fragment)
                rows += sum(unit.rows for unit in fragment)
                counted = counted and all(unit.rows for unit in fragment)
                for unit in fragment:
                    files += unit.path != last
                    last = unit.path
        if not fragments:
            left_out = skipped_text(skipped.take(), skipped.formats)
            raise InputError(
                "the source holds no images; check source.uri and source.kind"
                + (f" ({left_out})" if left_out else "")
            )
        storage.upload(local, path)
    plan = Plan(
        path=path,
        fragments=fragments,
        units=count,
        rows=rows if counted else None,
        newest=newest,
        planned=started,
        files=files,
        skipped=skipped.take(),
        unread=dict(skipped.formats),
    )
    try:
        claim()
    except DqError:
        storage.delete(path)
        raise
    if storage.create(f"{run}/{PLAN}", plan.model_dump_json(indent=1).encode()):
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
