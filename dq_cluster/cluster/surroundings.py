"""What Ray needs from the machine, checked before Ray starts: without it Ray fails with a stack
trace, or hangs."""

import errno
import os
import resource
import secrets
import socket
import tempfile
from collections.abc import Iterable, Mapping
from pathlib import Path

from dq_cluster.errors import ConfigError, StorageError

_PROXIES = ("http_proxy", "https_proxy", "grpc_proxy", "all_proxy")
_BYPASSES = ("no_proxy", "NO_PROXY", "no_grpc_proxy")
_LOOPBACK = ("localhost", "127.0.0.1", "::1")
# A socket's path has room for 107 bytes, and Ray puts below its folder
# /ray/session_2026-11-26_05-14-43_192138_4194304/sockets/plasma_store.
_LONGEST_FOLDER = 107 - 68
_FEWEST_FILES = 512
_CONNECT_S = 5.0
_IP = (socket.AF_INET, socket.AF_INET6)


def joined_address(environment: Mapping[str, str]) -> str:
    """What RAY_ADDRESS names, or an empty string where this process starts a Ray of its own."""
    address = environment.get("RAY_ADDRESS", "")
    return "" if address == "local" else address


def check_local() -> None:
    """What starting Ray on this machine needs.

    Raises ConfigError for a temporary folder or a limit that Ray cannot work with, and
    StorageError where the temporary folder is full.
    """
    _check_folder(Path(os.environ.get("RAY_TMPDIR") or os.environ.get("TMPDIR") or "/tmp"))
    _check_open_files()
    _have_token()


def check_joined(address: str) -> None:
    """Raise ConfigError where nothing answers at RAY_ADDRESS, or it cannot be one."""
    scheme, _, place = address.rpartition("://")
    if scheme not in ("", "ray"):
        raise ConfigError(
            f"RAY_ADDRESS={address}: expected HOST:PORT of the cluster's head, the port being that "
            "of `ray start` (6379 unless chosen otherwise); an http address is for `ray job submit`"
        )
    if place == "auto":
        return
    host, _, port = place.rpartition(":")
    if not host or not port.isdecimal():
        raise ConfigError(f"RAY_ADDRESS={address}: expected HOST:PORT, auto or local")
    advice = "start it, or unset RAY_ADDRESS to use a Ray of this command's own"
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=_CONNECT_S).close()
    except (OSError, OverflowError) as error:
        raise ConfigError(
            f"RAY_ADDRESS={address}: no Ray answers there ({_why(error)}); {advice}"
        ) from None
    if os.environ.get("RAY_USE_TLS", "0") == "0" and not _speaks_grpc(place):
        raise ConfigError(f"RAY_ADDRESS={address}: what answers there is not Ray; {advice}")


def _speaks_grpc(place: str) -> bool:
    import grpc

    options = [("grpc.enable_http_proxy", 0)]
    with grpc.insecure_channel(place, options) as channel:
        try:
            grpc.channel_ready_future(channel).result(timeout=2 * _CONNECT_S)
        except grpc.FutureTimeoutError:
            return False
    return True


def bypass_proxies(hosts: Iterable[str] = ()) -> None:
    """Keep the cluster's own traffic from the proxies that the environment names.

    `hosts` are addresses of nodes beside this one. Workers inherit what is set before Ray starts.
    """
    import psutil  # type: ignore[import-untyped]  # Ray brings it along

    own = [a.address for cards in psutil.net_if_addrs().values() for a in cards if a.family in _IP]
    os.environ.update(bypasses(os.environ, [*own, socket.gethostname(), *hosts]))


def bypasses(environment: Mapping[str, str], hosts: Iterable[str]) -> dict[str, str]:
    """The variables that say which hosts need no proxy, with `hosts` and this machine added.

    Empty where no proxy is named. gRPC looks at no_grpc_proxy alone where it exists, other
    programs at one of the two spellings.
    """
    if not any(environment.get(name) or environment.get(name.upper()) for name in _PROXIES):
        return {}
    added = [*_LOOPBACK, *(host.partition("%")[0] for host in hosts)]
    written = {name: environment.get(name, "") for name in _BYPASSES}
    both = f"{written['no_proxy']},{written['NO_PROXY']}"
    merged = _merged(both, added)
    variables = {"no_proxy": merged, "NO_PROXY": merged}
    if "no_grpc_proxy" in environment:
        variables["no_grpc_proxy"] = _merged(written["no_grpc_proxy"], added)
    return variables


def _merged(written: str, added: Iterable[str]) -> str:
    names = [name.strip() for name in written.split(",")]
    return ",".join(dict.fromkeys(name for name in (*names, *added) if name))


def _check_folder(folder: Path) -> None:
    where = f"Ray keeps its sockets and logs in {folder}/ray (TMPDIR, or RAY_TMPDIR for Ray alone)"
    size = len(os.fsencode(folder.absolute()))
    if size > _LONGEST_FOLDER:
        raise ConfigError(
            f"{where}: a path of {size} bytes, where sockets allow {_LONGEST_FOLDER}; "
            "set RAY_TMPDIR to a shorter one, for example /tmp"
        )
    try:
        (folder / "ray").mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder / "ray") as file:
            file.write(bytes(1 << 20))
    except OSError as error:
        kind = StorageError if error.errno in (errno.ENOSPC, errno.EDQUOT) else ConfigError
        raise kind(f"{where}, which cannot be written: {_why(error)}") from None


def _check_open_files() -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft >= _FEWEST_FILES:
        return
    limit = _FEWEST_FILES if hard == resource.RLIM_INFINITY else min(hard, _FEWEST_FILES)
    if limit < _FEWEST_FILES:
        raise ConfigError(
            f"the limit of open files is {hard}, and Ray needs {_FEWEST_FILES}: "
            "raise it (ulimit -n)"
        )
    resource.setrlimit(resource.RLIMIT_NOFILE, (limit, hard))


def _have_token() -> None:
    """Ray's processes prove to each other who they are by a token, which it keeps in the home
    folder; where that cannot be written, this Ray gets one of its own."""
    if os.environ.get("RAY_AUTH_MODE", "token").lower() != "token":
        return
    if os.environ.get("RAY_AUTH_TOKEN") or os.environ.get("RAY_AUTH_TOKEN_PATH"):
        return
    token = Path("~/.ray/auth_token").expanduser()
    try:
        token.parent.mkdir(parents=True, exist_ok=True)
        writable = os.access(token, os.R_OK) if token.exists() else os.access(token.parent, os.W_OK)
    except OSError:
        writable = False
    if not writable:
        os.environ["RAY_AUTH_TOKEN"] = secrets.token_hex(32)


def _why(error: BaseException) -> str:
    return (isinstance(error, OSError) and error.strerror) or str(error) or type(error).__name__
