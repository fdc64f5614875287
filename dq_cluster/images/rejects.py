"""Why an input is left out: a closed vocabulary, which reports group by."""

from enum import StrEnum

from dq_cluster.errors import DqError


class Reason(StrEnum):
    """Why an input did not become a code. The vocabulary is closed: reports group by it."""

    MISSING = "missing"  # named, but not there; or a null value
    EMPTY = "empty"  # zero bytes
    TOO_LARGE = "too_large"  # more bytes than allowed
    TOO_MANY_PIXELS = "too_many_pixels"  # a decompression bomb, or simply too big
    NOT_AN_IMAGE = "not_an_image"  # no known image format
    UNSUPPORTED_FORMAT = "unsupported_format"  # a known format, or kind of it, that is not read
    TRUNCATED = "truncated"  # the data end early
    CORRUPT = "corrupt"  # the data contradict the format
    CRASHED_DECODER = "crashed_decoder"  # it kills the process that decodes it, or takes too long
    FORBIDDEN = "forbidden"  # the address is not one that may be fetched
    UNREACHABLE = "unreachable"  # the address did not answer, in time or with an image
    UNREADABLE_FILE = "unreadable_file"  # the tar or Parquet file around it is damaged
    BAD_FEATURE = "bad_feature"  # null, of another dimension, or not finite
    NO_ID = "no_id"  # a null id
    DUPLICATE_ID = "duplicate_id"  # the id came before in the same fragment


class RejectError(DqError):
    """One input cannot be encoded, and why. `reason` is what the rejects file holds.

    detail: what a person who sent the image should know beyond the reason.
    """

    def __init__(self, reason: Reason, detail: str = "") -> None:
        super().__init__(reason, detail)
        self.reason, self.detail = reason, detail

    def __str__(self) -> str:
        return f"{self.reason.value} ({self.detail})" if self.detail else self.reason.value
