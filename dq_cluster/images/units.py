"""Units: the pieces of a source that can be read on their own."""

from typing import NamedTuple


class Unit(NamedTuple):
    """A piece of the input that can be read on its own.

    path: of a file of the source; start, rows: which of its rows. An image file is one row, a
    Parquet row group its rows. A tar tells its rows only when read: 0 means not known. base: rows
    in the files before this one, where they are numbered.
    """

    path: str
    start: int = 0
    rows: int = 1
    base: int = 0
