"""How a router and a replica show each other that they know the secret, without sending it.

The replica sends a nonce; the router answers with its own nonce and a keyed hash (HMAC-SHA-256,
RFC 2104) of both; the replica answers with another one. What a listener heard is of no use for
the next connection, which has other nonces.
"""

import hashlib
import hmac
import secrets

NONCE_BYTES = 16
_HASH_BYTES = hashlib.sha256().digest_size
PROOF_BYTES = NONCE_BYTES + _HASH_BYTES


def nonce() -> bytes:
    return secrets.token_bytes(NONCE_BYTES)


def router_proof(secret: bytes, of_replica: bytes, of_router: bytes) -> bytes:
    """What a router sends: its nonce, and the hash."""
    return of_router + _hash(secret, b"router", of_replica, of_router)


def check_router(secret: bytes, of_replica: bytes, proof: bytes) -> bytes | None:
    """The nonce of a router that knows the secret; None for any other."""
    of_router, given = proof[:NONCE_BYTES], proof[NONCE_BYTES:]
    expected = _hash(secret, b"router", of_replica, of_router)
    return of_router if hmac.compare_digest(given, expected) else None


def replica_proof(secret: bytes, of_replica: bytes, of_router: bytes) -> bytes:
    return _hash(secret, b"replica", of_replica, of_router)


def check_replica(secret: bytes, of_replica: bytes, of_router: bytes, proof: bytes) -> bool:
    return hmac.compare_digest(proof, replica_proof(secret, of_replica, of_router))


def _hash(secret: bytes, who: bytes, of_replica: bytes, of_router: bytes) -> bytes:
    return hmac.digest(secret, b"\0".join((who, of_replica, of_router)), "sha256")
