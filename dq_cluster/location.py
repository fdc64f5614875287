"""Locations, written so that they mean the same in every process and on every machine.

A location is a local path or `s3://bucket/key`. A relative path starts at the folder in which
the user's command runs: workers of a Ray cluster run elsewhere, so no relative path is passed on.
"""

import os
import re

from dq_cluster.errors import InputError

_SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*)://(.*)", re.DOTALL)
_LOST_SLASH = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+:/(?!/)")
_PREFIXED = {"http", "https", "s3", "file"}
_CLIMB = re.compile(r".*/\.\.(?=/|$)", re.DOTALL)
_DRIVE = re.compile(r"[A-Za-z]:[\\/]")


def absolute(location: str) -> str:
    """`location` as an absolute path or as `s3://bucket/key`, without a slash at the end.

    `~` is the home folder; `file://` may stand before an absolute path, which is taken as it is
    written (no %20). Symbolic links keep their names. Doing it twice changes nothing. Raises
    InputError for what is neither.
    """
    if not location:
        raise InputError("a location is empty; name a file or folder, or an s3:// URI")
    if "\0" in location:
        raise InputError(f"location {location!r} has a NUL character in it")
    if match := _SCHEME.fullmatch(location):
        scheme, rest = match[1].lower(), match[2]
        if scheme == "s3":
            return _s3(location, rest)
        if scheme != "file":
            raise InputError(
                f"'{location}': scheme '{scheme}' is not file or s3; copy the data to a folder "
                "or an S3 bucket"
            )
        if not rest.startswith("/"):
            raise InputError(f"'{location}': write file:// before an absolute path: file:///data")
        return _on_disk(rest)
    if _DRIVE.match(location) or _LOST_SLASH.match(location):
        raise InputError(
            f"'{location}' is neither a path of this machine nor an s3:// URI; "
            f"for a folder of that name write ./{location}"
        )
    return _on_disk(_home(location))


def absolute_prefix(prefix: str) -> str:
    """A prefix of locations, which ends with a slash: a local path is made absolute.

    What has the scheme http, https, s3 or file keeps it. Raises InputError.
    """
    # Without the slash, https://example.com would allow https://example.com.evil.net.
    if not prefix.endswith("/") or prefix.endswith("://"):
        raise InputError(f"'{prefix}' must name a host or folder and end with /")
    if (match := _SCHEME.fullmatch(prefix)) and match[1].lower() in _PREFIXED:
        return f"{match[1].lower()}://{match[2]}"
    return absolute(prefix).rstrip("/") + "/"


def _s3(location: str, rest: str) -> str:
    bucket = rest.partition("/")[0]
    if not bucket:
        raise InputError(f"'{location}' names no bucket; write s3://bucket/key")
    return f"s3://{rest.rstrip('/')}"


def _home(path: str) -> str:
    expanded = os.path.expanduser(path)
    if expanded == path and path.startswith("~"):
        raise InputError(
            f"'{path}': there is no such user; for a folder of that name write ./{path}"
        )
    return expanded


def _on_disk(path: str) -> str:
    if not os.path.isabs(path):
        try:
            path = os.path.join(os.getcwd(), path)
        except FileNotFoundError:
            raise InputError(
                f"'{path}' is relative, and the folder this command runs in is gone; "
                "change to another folder or give an absolute path"
            ) from None
    # Behind a symbolic link `..` is the folder above its target, as for the operating system.
    if climb := _CLIMB.match(path):
        path = os.path.realpath(climb[0]) + path[climb.end() :]
    return "/" + os.path.abspath(path).lstrip("/")
