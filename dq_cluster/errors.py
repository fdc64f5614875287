"""The exceptions of dq_cluster.

Every message says what is wrong, with the numbers, and what to do about it. The command line
turns a `UserError` into exit status 2 and any other `DqError` into exit status 1.
"""


class DqError(Exception):
    """Something failed that the caller could not have prevented by asking differently."""


class UserError(DqError):
    """The request itself is wrong; asking again unchanged will fail again."""


class ConfigError(UserError):
    """A configuration file or override does not validate."""


class NotFoundError(UserError):
    """A path, version, model, or id that was named does not exist."""


class InputError(UserError):
    """Input data does not have the promised form (schema, dimension, type, size)."""


class NothingNewError(InputError):
    """Every image of the source is in the index already; nothing was changed."""


class IntegrityError(DqError):
    """Stored data disagrees with what its manifest, digest, or geometry says."""


class ConflictError(DqError):
    """Another writer was first; nothing was changed."""


class StorageError(DqError):
    """Storage refused or failed an operation (permission, network, full disk)."""


class UnavailableError(DqError):
    """A service, or a part of one, does not answer; it may, when asked again later."""


class DoesNotFitError(DqError):
    """A version needs more memory than the replica may use; nothing was loaded."""


class StorageRefusedError(UserError):
    """Storage denies access, or the place named cannot be written."""


class QualityGateError(DqError):
    """A model or version missed the quality its configuration demands; it is not published."""
