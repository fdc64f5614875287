"""What an application must not forget, in the store of the Ray cluster (its GCS).

It outlives every process of the application, and the head node where Ray keeps the store in Redis.
"""

import secrets
from dataclasses import dataclass

from ray.experimental import internal_kv

_NAMESPACE = "dq_cluster"


@dataclass(frozen=True)
class ClusterMemory:
    """The version that one deployed application serves. `name` is that application's own.

    Both methods wait for the cluster's head and raise RayError where it does not answer.
    """

    name: str

    def read(self) -> int | None:
        """What was written last, None before the first time."""
        value = internal_kv._internal_kv_get(self._key, namespace=_NAMESPACE)
        return None if value is None else int(value)

    def write(self, version: int) -> None:
        internal_kv._internal_kv_put(self._key, str(version), namespace=_NAMESPACE)

    @property
    def _key(self) -> str:
        return f"served/{self.name}"


def shared_secret() -> bytes:
    """A secret that every process of this Ray cluster can read, made by the first that asks.

    Who can read the store can run code in the cluster, so it is as safe as Ray's own token.
    Waits for the cluster's head and raises RayError where it does not answer.
    """
    key = "secret"
    internal_kv._internal_kv_put(key, secrets.token_hex(32), overwrite=False, namespace=_NAMESPACE)
    return bytes(internal_kv._internal_kv_get(key, namespace=_NAMESPACE))
