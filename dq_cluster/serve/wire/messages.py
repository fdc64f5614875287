"""The questions and answers of the data plane, as bodies of frames."""

from typing import Any

import numpy as np
import pyarrow as pa

from dq_cluster.search.merge import MISSING
from dq_cluster.search.placement import Layout
from dq_cluster.search.shard import Item, ShardAnswer, ShardQuery
from dq_cluster.serve.fanout import Failure
from dq_cluster.serve.wire.frames import WireError, pack_body, unpack_body

Body = bytes | memoryview


def pack_query(query: ShardQuery) -> bytes:
    values = {
        "layout": query.layout,
        "k": query.k,
        "nprobe": query.nprobe,
        "k_factor": query.k_factor,
        "filter": query.filter,
        "trace": query.trace,
    }
    return pack_body(values, [np.ascontiguousarray(query.embeddings, np.float32)])


def unpack_query(body: Body) -> ShardQuery:
    values, arrays = unpack_body(body)
    try:
        (embeddings,) = arrays
        layout = _layout(values.pop("layout", None))
        return ShardQuery(layout=layout, embeddings=embeddings, **values)
    except (TypeError, ValueError) as error:
        raise WireError(f"no query: {error}") from None


def pack_answer(answer: ShardAnswer) -> bytes:
    arrays = [answer.scores, answer.ordinals]
    if answer.second_scores is not None:
        arrays.append(answer.second_scores)
    return pack_body({"seconds": answer.seconds, "ids": answer.ids}, arrays)


def unpack_answer(body: Body) -> ShardAnswer:
    values, arrays = unpack_body(body)
    if len(arrays) not in (2, 3) or len({array.shape for array in arrays}) != 1:
        raise WireError("no answer: scores and ordinals do not go together")
    scores, ordinals, *second = arrays
    seconds, ids = _of(values, "seconds", float), _of(values, "ids", list | None)
    if ids is not None and len(ids) != np.count_nonzero(ordinals != MISSING):
        raise WireError("no answer: ids and ordinals do not go together")
    return ShardAnswer(scores, ordinals, seconds, second[0] if second else None, ids)


def pack_find(layout: Layout, id: int | str) -> bytes:
    return pack_body({"layout": layout, "id": id})


def unpack_find(body: Body) -> tuple[Layout, int | str]:
    values, _ = unpack_body(body)
    return _layout(values.get("layout")), _of(values, "id", int | str)


def pack_item(item: Item | None) -> bytes:
    if item is None:
        return pack_body({})
    return pack_body({"uri": item.uri, "ordinal": item.ordinal}, [item.embedding])


def unpack_item(body: Body) -> Item | None:
    values, arrays = unpack_body(body)
    if not arrays:
        return None
    return Item(arrays[0], values.get("uri"), _of(values, "ordinal", int))


def pack_take(layout: Layout, ordinals: np.ndarray, columns: tuple[str, ...]) -> bytes:
    return pack_body({"layout": layout, "columns": columns}, [ordinals.astype(np.int64)])


def unpack_take(body: Body) -> tuple[Layout, np.ndarray, tuple[str, ...]]:
    values, arrays = unpack_body(body)
    if len(arrays) != 1 or arrays[0].ndim != 1 or arrays[0].dtype != np.int64:
        raise WireError("no rows to take")
    return _layout(values.get("layout")), arrays[0], tuple(_of(values, "columns", list))


def pack_table(table: pa.Table) -> bytes:
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table)
    return pack_body({}, [np.frombuffer(sink.getvalue(), np.uint8)])


def unpack_table(body: Body) -> pa.Table:
    _, arrays = unpack_body(body)
    try:
        (data,) = arrays
        with pa.ipc.open_stream(pa.py_buffer(data)) as reader:
            table = reader.read_all()
        table.validate(full=True)
        return table
    except (ValueError, pa.ArrowException, OSError) as error:
        raise WireError(f"no table: {error}") from None


def pack_failure(failure: Failure) -> bytes:
    return pack_body({"reason": failure.reason, "refused": failure.refused})


def unpack_failure(body: Body) -> Failure:
    values, _ = unpack_body(body)
    return Failure(_of(values, "reason", str), refused=_of(values, "refused", bool))


def _layout(value: Any) -> Layout:
    match value:
        case [int(version), int(shards)] if shards > 0:
            return Layout(version, shards)
    raise WireError(f"layout is {value!r}")


def _of(values: dict[str, Any], name: str, kind: Any) -> Any:
    value = values.get(name)
    if not isinstance(value, kind):
        raise WireError(f"{name} is {value!r}")
    return value
