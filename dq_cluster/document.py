"""Stored JSON documents: a later format is refused by its number, whatever else is in it."""

import json
import reprlib
from collections.abc import Mapping
from typing import Any, ClassVar, Self

from pydantic import ValidationError

from dq_cluster.config import Settings
from dq_cluster.errors import IntegrityError

FORMAT = 1


class Document(Settings):
    """Base of what is stored as JSON; `format` is raised when older readers would misread it.

    FORMAT: the one this reader knows. NAME: what errors call the document; REMEDY: what to do
    about one that is damaged.
    """

    FORMAT: ClassVar[int] = FORMAT
    NAME: ClassVar[str]
    REMEDY: ClassVar[str] = ""

    format: int = FORMAT

    @classmethod
    def parse(cls, data: bytes, origin: str) -> Self:
        """The document in `data`, which `origin` names in errors.

        Raises IntegrityError for another format, and for what is no valid document.
        """
        try:
            document = cls.model_validate_json(data)
        except ValidationError as error:
            _check_format(_object(data), cls.FORMAT, origin)
            first = error.errors(include_url=False, include_input=False)[0]
            where = "".join(f"{part}: " for part in first["loc"])
            raise IntegrityError(
                f"{origin} is not a valid {cls.NAME}: {where}{first['msg']}{cls.REMEDY}"
            ) from None
        _check_format({"format": document.format}, cls.FORMAT, origin)
        return document


def parse_record(data: bytes, origin: str) -> dict[str, Any]:
    """A JSON object that is no `Document`, of format 1 where it does not say another.

    Raises IntegrityError for a later format, and for what is no JSON object.
    """
    record = _object(data)
    if record is None:
        raise IntegrityError(f"{origin} is not a JSON object")
    _check_format(record, FORMAT, origin)
    return record


def _check_format(record: Mapping[str, Any] | None, format: int, origin: str) -> None:
    stored = format if record is None else record.get("format", format)
    if stored != format:
        later = isinstance(stored, int) and stored > format
        raise IntegrityError(
            f"{origin} has format {reprlib.repr(stored)}; this dq_cluster reads format {format}"
            + (": upgrade" if later else "")
        )


def _object(data: bytes) -> dict[str, Any] | None:
    try:
        value = json.loads(data)
    except (ValueError, RecursionError):
        return None
    return value if isinstance(value, dict) else None
