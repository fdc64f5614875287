"""What Ray says of a run that goes well, kept from standard error.

Ray 2.60 reports as errors and warnings what it does by design. Its processes' own logs, in the
folder of its session, are not touched.
"""

import contextlib
import logging
import os
import re
import sys
import tempfile
from collections.abc import Iterator, MutableMapping

# Lines about Ray's own actors: Serve's controller ends while it is asked to.
_SKIPPED = r"Task ServeController\.graceful_shutdown failed\. There are infinite retries remaining"
# What RAY_BACKEND_LOG_LEVEL itself brings about.
_ANNOUNCED = re.compile(rb"Set ray log level from environment variable")
_LOGGERS = {
    # The pool of Ray Data restarts its actors, and their arguments live as long as the run.
    "ray.data": logging.ERROR,
    "ray.serve": logging.WARNING,
    # Whether tokens are used is decided by the machine (see `cluster.surroundings`).
    "ray._private.authentication.authentication_token_setup": logging.ERROR,
}


def quiet_environment(environment: MutableMapping[str, str]) -> None:
    """To be called before Ray is imported. What the environment says already is kept.

    RAY_BACKEND_LOG_LEVEL=info brings the accounts of Ray's C++ processes back.
    """
    environment.setdefault("RAY_DEDUP_LOGS_SKIP_REGEX", _SKIPPED)
    environment.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")


@contextlib.contextmanager
def without_announcements() -> Iterator[None]:
    """For the start of Ray: its C++ writes to the descriptor of standard error itself.

    All other lines come out when the block ends.
    """
    try:
        saved = os.dup(2)
    except OSError:  # closed by the caller
        yield
        return
    with tempfile.TemporaryFile() as file:
        os.dup2(file.fileno(), 2)
        try:
            yield
        finally:
            sys.stderr.flush()
            os.dup2(saved, 2)
            os.close(saved)
            file.seek(0)
            for line in file:
                if not _ANNOUNCED.search(line):
                    os.write(2, line)


def quiet_loggers() -> None:
    """To be called when Ray runs: it sets the levels of some loggers itself."""
    for name, level in _LOGGERS.items():
        logging.getLogger(name).setLevel(level)
