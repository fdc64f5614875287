"""The ordered values that a column can have, and the place of a filter's value among them.

Times, durations, and decimals are compared as whole numbers of their smallest step, so that no
rounding to a float comes between the filter and the stored value.
"""

import math
import re
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, date, datetime, time
from decimal import Decimal
from fractions import Fraction
from typing import Any, Protocol

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.types as pt

from dq_cluster.search.values import DIGITS

EXACT_IN_DOUBLES = 2**53
"""Whole numbers up to this one are exact in a double."""
_WHOLE = re.compile(r"[+-]?[0-9]{1,40}")
_DECIMAL = re.compile(r"[+-]?[0-9]{1,100}(\.[0-9]{1,100})?")
_TIME = r"(?P<clock>[0-9]{2}:[0-9]{2}(?::[0-9]{2})?)(?:\.(?P<rest>[0-9]{1,9}))?"
_CLOCK = re.compile(_TIME)
_STAMP = re.compile(
    rf"(?P<day>[0-9]{{4}}-[0-9]{{2}}-[0-9]{{2}})(?:[T ]{_TIME})?"
    r"(?P<zone>Z|[+-][0-9]{2}(?::?[0-9]{2})?)?"
)
_DURATION = re.compile(r"(?P<sign>-?)PT(?P<whole>[0-9]{1,20})(?:\.(?P<rest>[0-9]{1,9}))?S")
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


class Domain(Protocol):
    """The values of a type."""

    @property
    def takes(self) -> str:
        """What may be written to compare with them, in words."""

    @property
    def bounded(self) -> bool:
        """Whether a file's statistics are such values."""

    def read(self, written: Any) -> Any:
        """What was written, exactly. Raises ValueError where it is of another kind."""

    def below(self, exact: Any) -> Any:
        """The greatest value that is not above `exact`, or None."""

    def above(self, exact: Any) -> Any:
        """The smallest value that is not below `exact`, or None."""

    def comparable(self, column: pa.Array) -> pa.Array:
        """The column as Arrow compares it with `array`."""

    def array(self, values: list[Any], kind: pa.DataType) -> pa.Array:
        """Values of the domain, as the type of what `comparable` gave."""


def domain_of(kind: pa.DataType) -> Domain | None:
    """The domain of a canonical type, None where its values have no order."""
    if pt.is_null(kind):
        return _Steps("numbers, text, true, or false", _scalar, 1, 0)
    if pt.is_boolean(kind):
        return _Steps("true or false", _boolean, 0, 1, pa.int8(), bounded=True)
    if pt.is_integer(kind):
        info = np.iinfo(kind.to_pandas_dtype())
        exactly = _wide if info.bits == 64 else _number
        return _Steps("numbers", exactly, int(info.min), int(info.max), bounded=True)
    if pt.is_floating(kind):
        return _Floats()
    if pt.is_string(kind):
        return _Texts()
    if pt.is_decimal(kind):
        unit, limit = Fraction(10) ** kind.scale, 10**kind.precision - 1
        takes = "numbers, or text such as '1.10'"
        return _Steps(takes, lambda written: unit * _decimal(written), -limit, limit)
    if pt.is_date(kind):
        return _ticks(32, "a date, as in '2024-01-31'", _day)
    if pt.is_timestamp(kind):
        zoned = bool(kind.tz)
        takes = f"a time {'with' if zoned else 'without'} a zone, as in '2024-01-31T12:00:00"
        takes += "Z'" if zoned else "'"
        return _ticks(64, takes, lambda written: _instant(written, zoned), kind.unit)
    if pt.is_time(kind):
        return _ticks(kind.bit_width, "a time of day, as in '23:59:59.5'", _clock, kind.unit)
    if pt.is_duration(kind):
        return _ticks(64, "seconds, as a number or as in 'PT1.5S'", _elapsed, kind.unit)
    return None


@dataclass(frozen=True)
class _Steps:
    """Whole numbers from `low` to `high`; `kind` is the integer type that the column is read as.

    Decimals stay decimals to Arrow: here they are counted in units of their last digit.
    """

    takes: str
    exactly: Callable[[Any], Any]
    low: int
    high: int
    kind: pa.DataType | None = None
    bounded: bool = False

    def read(self, written: Any) -> Any:
        return self.exactly(written)

    def below(self, exact: Any) -> int | None:
        return None if exact < self.low else min(math.floor(exact), self.high)

    def above(self, exact: Any) -> int | None:
        return None if exact > self.high else max(math.ceil(exact), self.low)

    def comparable(self, column: pa.Array) -> pa.Array:
        if self.kind is None:
            return column
        return column.cast(self.kind) if pt.is_boolean(column.type) else column.view(self.kind)

    def array(self, values: list[Any], kind: pa.DataType) -> pa.Array:
        if not pt.is_decimal(kind):
            return pa.array(values, kind)
        parts = [(int(n < 0), tuple(map(int, str(abs(n)))), -kind.scale) for n in values]
        return pa.array(map(Decimal, parts), kind)


@dataclass(frozen=True)
class _Floats:
    """Doubles; float32 are doubles too. NaN is above and below nothing, and equal to nothing."""

    takes: str = "numbers"
    bounded: bool = True

    def read(self, written: Any) -> Any:
        return _number(written)

    def below(self, exact: float) -> float:
        near = _nearest(exact)
        return near if near <= exact else math.nextafter(near, -math.inf)

    def above(self, exact: float) -> float:
        near = _nearest(exact)
        return near if near >= exact else math.nextafter(near, math.inf)

    def comparable(self, column: pa.Array) -> pa.Array:
        return pc.add(column.cast(pa.float64()), 0.0)  # -0.0 becomes 0.0: a hash tells them apart

    def array(self, values: list[Any], kind: pa.DataType) -> pa.Array:
        return pa.array(values, kind)


@dataclass(frozen=True)
class _Texts:
    """Text, ordered by code point."""

    takes: str = "text"
    bounded: bool = True

    def read(self, written: Any) -> str:
        text = _text(written)
        text.encode()  # a UnicodeEncodeError is a ValueError: half a character
        return text

    def below(self, exact: str) -> str:
        return exact

    def above(self, exact: str) -> str:
        return exact

    def comparable(self, column: pa.Array) -> pa.Array:
        return column

    def array(self, values: list[Any], kind: pa.DataType) -> pa.Array:
        return pa.array(values, kind)


def _nearest(exact: float) -> float:
    try:
        return float(exact) + 0.0
    except OverflowError:
        return math.inf if exact > 0 else -math.inf


def _ticks(bits: int, takes: str, exactly: Callable[[Any], Any], unit: str = "s") -> _Steps:
    """Units of time in integers of `bits` bits; `exactly` reads seconds (of dates: days)."""
    limit, steps = 2 ** (bits - 1), 10 ** DIGITS[unit]
    kind = pa.int32() if bits == 32 else pa.int64()
    return _Steps(takes, lambda written: steps * exactly(written), -limit, limit - 1, kind)


def _boolean(written: Any) -> int:
    if not isinstance(written, bool):
        raise ValueError
    return int(written)


def _number(written: Any) -> int | float:
    if isinstance(written, bool) or not isinstance(written, int | float):
        raise ValueError
    if isinstance(written, float) and not math.isfinite(written):
        raise ValueError("it must be finite")
    return written


def _wide(written: Any) -> int | float:
    """A number for a column of 64-bit integers, which JavaScript's and gRPC's doubles round."""
    digits = isinstance(written, str) and _WHOLE.fullmatch(written)
    if digits and abs(int(written)) > EXACT_IN_DOUBLES:
        return int(written)
    return _unrounded(_number(written))


def _unrounded(number: int | float) -> int | float:
    if isinstance(number, float) and EXACT_IN_DOUBLES < abs(number) <= 2.0**64:
        raise ValueError("it may have been rounded; write it as a whole number or as text")
    return number


def _text(written: Any) -> str:
    if not isinstance(written, str):
        raise ValueError
    return written


def _scalar(written: Any) -> float:
    """Between 0 and 1, where an all-null column has no value, whatever it is compared with."""
    if not isinstance(written, str | int | float):
        raise ValueError
    return 0.5


def _decimal(written: Any) -> Fraction:
    if isinstance(written, str):
        return Fraction(_matched(_DECIMAL, written)[0])
    return Fraction(repr(_unrounded(_number(written))))  # 0.1 means 0.1, not the double beside it


def _matched(pattern: re.Pattern[str], written: Any) -> re.Match[str]:
    match = pattern.fullmatch(_text(written))
    if match is None:
        raise ValueError
    return match


def _rest(match: re.Match[str]) -> Fraction:
    """The digits after the point of a second."""
    digits = match["rest"] or "0"
    return Fraction(int(digits), 10 ** len(digits))


def _day(written: Any) -> int:
    return date.fromisoformat(_text(written)).toordinal() - _EPOCH.toordinal()


def _clock(written: Any) -> Fraction:
    match = _matched(_CLOCK, written)
    clock = time.fromisoformat(match["clock"])
    return clock.hour * 3600 + clock.minute * 60 + clock.second + _rest(match)


def _instant(written: Any, zoned: bool) -> Fraction:
    match = _matched(_STAMP, written)
    if zoned != bool(match["zone"]):
        raise ValueError("its zone is missing" if zoned else "it has a zone")
    text = f"{match['day']}T{match['clock'] or '00:00'}{match['zone'] or '+00:00'}"
    since = datetime.fromisoformat(text) - _EPOCH
    return since.days * 86400 + since.seconds + _rest(match)


def _elapsed(written: Any) -> Fraction:
    if not isinstance(written, str):
        return _decimal(written)
    match = _matched(_DURATION, written)
    return (-1 if match["sign"] else 1) * (int(match["whole"]) + _rest(match))
