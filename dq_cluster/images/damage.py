"""Tells a damaged file from one that cannot be reached."""


def is_damage(error: Exception) -> bool:
    """Whether the file itself is damaged, and not its access or a lack of memory the cause.

    Arrow reports damage, too, as OSError; a filesystem's has a number, a cause, or a kind.
    """
    if not isinstance(error, OSError):
        return not isinstance(error, MemoryError)
    return type(error) is OSError and not error.errno and not error.__cause__
