"""Ids of an index: whole numbers of 64 bits, or text.

A file stores numbers as int64 where all of its own fit, else as uint64 (hashes often need the
64th bit). The `id_type` of a version is that of all its files together; readers convert the ids
of a file to it, which changes no number.
"""

import re
from collections.abc import Iterable, Sequence
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from dq_cluster.errors import InputError
from dq_cluster.index.manifest import FileEntry

SIGNED, UNSIGNED, TEXT = "int64", "uint64", "string"
NUMBERS = {SIGNED: range(-(2**63), 2**63), UNSIGNED: range(2**64)}
_WHOLE = re.compile(r"-?[0-9]{1,4000}")
_MIXED = "ids below 0 and ids from 2^63 on do not fit one index of 64-bit ids; write them as text"


def joined(parts: Sequence[pa.Array]) -> pa.Array:
    """All ids, as the narrowest type that holds them. Raises InputError where none does."""
    types = {part.type for part in parts}
    if types == {pa.int64(), pa.uint64()}:
        if any(pc.min(part).as_py() < 0 for part in parts if pc.count(part).as_py()):
            raise InputError(_MIXED)
        parts = [part.cast(pa.uint64()) for part in parts]
    return narrowed(pa.concat_arrays(parts))


def narrowed(ids: pa.Array) -> pa.Array:
    """uint64 ids as int64, if all of them fit; others as they are."""
    if ids.type == pa.uint64() and (pc.max(ids).as_py() or 0) in NUMBERS[SIGNED]:
        return ids.cast(pa.int64())
    return ids


def concat_rows(tables: Sequence[pa.Table]) -> pa.Table:
    """Tables with an `id` column as one; their ids may be int64 in one and uint64 in another."""
    ids = joined([table.column("id").combine_chunks() for table in tables])
    together = pa.concat_tables([table.drop_columns(["id"]) for table in tables])
    return together.add_column(0, "id", ids)


def common_type(types: Iterable[str], files: Iterable[FileEntry]) -> str:
    """The `id_type` of a version whose `files` have ids of `types`.

    Raises InputError where no type holds them all; the files' statistics tell.
    """
    kinds = sorted(set(types))
    if kinds == [SIGNED, UNSIGNED]:
        smallest = [file.stats["id"].min for file in files if "id" in file.stats]
        if any(isinstance(low, int) and low < 0 for low in smallest):
            raise InputError(_MIXED)
        return UNSIGNED
    if len(kinds) != 1:
        raise InputError(
            f"ids are {' in one part and '.join(kinds) or 'missing'}; an index has numbers or text"
        )
    return kinds[0]


def as_type(ids: pa.Array, id_type: str) -> pa.Array:
    """Ids of a file as the version's `id_type` (see `common_type`)."""
    return ids.cast(pa.type_for_alias(id_type))


def to_ids(given: Sequence[Any] | pa.Array, id_type: str) -> pa.Array:
    """The distinct ids among `given`, in their order, as an array of the version's `id_type`.

    Text is read as whole numbers where ids are numbers. Raises InputError, naming the first that
    cannot be an id.
    """
    arrow_type = pa.type_for_alias(id_type)
    try:
        # Only a type that is named takes numbers from 2^63 on.
        named = arrow_type if given and type(given[0]) is int and id_type != TEXT else None
        ids = given if isinstance(given, pa.Array) else pa.array(given, named)
    except (pa.ArrowInvalid, pa.ArrowTypeError, OverflowError):
        raise InputError(
            f"ids of this index are {id_type}; found others, or larger ones, among those given"
        ) from None
    if not len(ids):
        return pa.array([], arrow_type)
    if ids.null_count:
        raise InputError(f"{ids.null_count:,} of the {len(ids):,} ids given are null")
    text = pa.types.is_string(ids.type) or pa.types.is_large_string(ids.type)
    if id_type == TEXT and text:
        return pc.unique(ids.cast(arrow_type))
    if id_type == TEXT or not (text or pa.types.is_integer(ids.type)):
        raise InputError(f"ids of this index are {id_type}, not {ids.type}")
    if text:
        strange = ids.filter(pc.invert(pc.match_substring_regex(ids, r"^-?[0-9]+$")))
        if len(strange):
            raise InputError(
                f"ids of this index are whole numbers; found {strange[0].as_py()!r}"
                + (f" and {len(strange) - 1:,} more" if len(strange) > 1 else "")
            )
    try:
        return pc.unique(ids.cast(arrow_type))
    except pa.ArrowInvalid:
        numbers = NUMBERS[id_type]
        outside = next(each for each in ids.to_pylist() if int(each) not in numbers)
        raise _outside(outside, id_type) from None


def to_id(value: Any, id_type: str) -> int | str:
    """`value` as an id of the version. Raises InputError where it cannot be one."""
    if id_type == TEXT:
        return str(value)
    if isinstance(value, bool) or not _WHOLE.fullmatch(str(value)):
        raise InputError(f"ids of this index are whole numbers, not {value!r}")
    number = int(value)
    if number not in NUMBERS[id_type]:
        raise _outside(number, id_type)
    return number


def _outside(number: int | str, id_type: str) -> InputError:
    return InputError(f"id {number} is outside the ids of this index, which are {id_type}")
