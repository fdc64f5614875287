"""JSON that every parser reads: NaN and the infinities are null."""

import json
import math
from collections.abc import Mapping
from typing import Any

from pydantic import BaseModel


def to_json(value: object) -> str:
    """`value` as one line of JSON; what JSON has no type for is written as its text."""
    return json.dumps(_plain(value), allow_nan=False, default=str)


def _plain(value: Any) -> Any:
    if isinstance(value, BaseModel):
        return _plain(value.model_dump(mode="json"))
    if isinstance(value, Mapping):
        return {str(name): _plain(each) for name, each in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [_plain(each) for each in value]
    if hasattr(value, "tolist"):  # numpy's numbers and arrays
        return _plain(value.tolist())
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value
