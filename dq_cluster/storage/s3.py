"""Everything about S3 and s3fs: access to a bucket, its atomic writes, its errors.

Endpoint, region, and credentials come from the standard AWS environment variables and files.
Two more variables describe buckets of others:

    DQ_S3_ANONYMOUS=open-images,laion       public buckets, asked without credentials; * is all
    DQ_S3_REQUESTER_PAYS=their-photos       buckets whose readers pay; * is all
"""

import functools
import hashlib
import os
from collections.abc import Iterator
from datetime import datetime
from typing import Any

import fsspec

from dq_cluster.errors import DqError, NotFoundError, StorageError, StorageRefusedError
from dq_cluster.storage.listing import FileInfo

_LOST_RACE = {"PreconditionFailed", "ConditionalRequestConflict", "412", "409"}
_KEYS = "check AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY, AWS_SESSION_TOKEN, or AWS_PROFILE"
_REGION = "set AWS_DEFAULT_REGION to the bucket's region, or AWS_ENDPOINT_URL to its server"
_ACCESS = (
    "ask for the right to read (for an index also to write) it; a public bucket needs "
    "DQ_S3_ANONYMOUS=<bucket>, one that makes readers pay DQ_S3_REQUESTER_PAYS=<bucket>"
)
_CREDENTIALS = (
    "set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or AWS_PROFILE; "
    "for a public bucket DQ_S3_ANONYMOUS=<bucket>"
)
# The code of an S3 answer, or the name of a botocore error: what it means, and what to do.
_REFUSED = {
    "NoCredentialsError": ("no S3 credentials were found", _CREDENTIALS),
    "PartialCredentialsError": ("the S3 credentials are incomplete", _CREDENTIALS),
    "ProfileNotFound": ("the AWS profile does not exist", "check AWS_PROFILE"),
    "CredentialRetrievalError": ("the S3 credentials could not be fetched", _KEYS),
    "TokenRetrievalError": ("the S3 credentials could not be fetched", _KEYS),
    "NoAuthTokenError": ("the S3 credentials could not be fetched", _KEYS),
    "UnauthorizedSSOTokenError": ("the AWS login has expired", "run 'aws sso login'"),
    "SSOTokenLoadError": ("the AWS login has expired", "run 'aws sso login'"),
    "InvalidAccessKeyId": ("S3 does not know the access key", _KEYS),
    "SignatureDoesNotMatch": ("S3 does not accept the secret key", _KEYS),
    "InvalidToken": ("S3 does not accept the session token", _KEYS),
    "ExpiredToken": ("the S3 credentials have expired", "renew them; " + _KEYS),
    "TokenRefreshRequired": ("the S3 credentials have expired", "renew them; " + _KEYS),
    "AccessDenied": ("S3 denies access", _ACCESS),
    "AllAccessDisabled": ("S3 denies access", _ACCESS),
    "403": ("S3 denies access", f"{_KEYS}; {_ACCESS}"),  # to a HEAD request: all that is said
    "401": ("S3 denies access", f"{_KEYS}; {_ACCESS}"),
    "RequestTimeTooSkewed": ("S3 finds this machine's clock wrong", "set the clock (NTP)"),
    "PermanentRedirect": ("the bucket is in another region", _REGION),
    "301": ("the bucket is in another region", _REGION),
    "307": ("the bucket is in another region", _REGION),
    "AuthorizationHeaderMalformed": ("the bucket is in another region", _REGION),
    "IllegalLocationConstraintException": ("the bucket is in another region", _REGION),
    "InvalidRegionError": ("the region's name is malformed", _REGION),
    "NoRegionError": ("no region is set", _REGION),
    "400": ("S3 finds the request bad", f"{_REGION}; the credentials may have expired"),
    "InvalidBucketName": ("the bucket's name is malformed", "check the address"),
    "ParamValidationError": ("the bucket's name or the key is malformed", "check the address"),
    "KeyTooLongError": ("the name is too long for S3", "use shorter names"),
    "InvalidObjectState": ("the object is archived", "restore it first (S3 Glacier)"),
    "NotImplemented": ("the server knows no conditional writes", "use one that does"),
    "EndpointProviderError": ("the S3 server's address is malformed", "check AWS_ENDPOINT_URL"),
    "SSLError": ("the server's certificate was refused", "check AWS_ENDPOINT_URL, AWS_CA_BUNDLE"),
}
_SILENT = "check AWS_ENDPOINT_URL, the region, and the network"
_FAILED = {
    "EndpointConnectionError": ("the S3 server does not answer", _SILENT),
    "ConnectTimeoutError": ("the S3 server does not answer", _SILENT),
    "ProxyConnectionError": ("the proxy does not answer", "check HTTPS_PROXY and NO_PROXY"),
    "ConnectionClosedError": ("the S3 server closed the connection", "try again"),
    "ReadTimeoutError": ("the S3 server stopped answering", "try again"),
    "SlowDown": ("the S3 server has too much to do", "try again later, or with fewer readers"),
    "ServiceUnavailable": ("the S3 server has too much to do", "try again later"),
    "503": ("the S3 server has too much to do", "try again later, or with fewer readers"),
}


def filesystem(bucket: str) -> Any:
    """The fsspec filesystem for a bucket; the same object for buckets that are reached alike."""
    _ask_again_when_busy()
    return fsspec.filesystem(
        "s3",
        default_cache_type="none",
        use_listings_cache=False,
        anon=_named(bucket, "DQ_S3_ANONYMOUS"),
        requester_pays=_named(bucket, "DQ_S3_REQUESTER_PAYS"),
    )


def _named(bucket: str, variable: str) -> bool:
    names = [name.strip() for name in os.environ.get(variable, "").split(",")]
    return bucket in names or "*" in names


def files(files: Any, top: str) -> Iterator[FileInfo]:
    """Every object below `top`, in the order of paths."""
    bucket, _, key = top.partition("/")
    token: dict[str, str] = {}
    while True:
        page = files.call_s3(
            "list_objects_v2", Bucket=bucket, Prefix=f"{key}/" if key else "", **token
        )
        for entry in page.get("Contents", ()):
            if not entry["Key"].endswith("/"):
                path = f"{bucket}/{entry['Key']}"
                yield info(path, entry["Size"], entry["LastModified"], entry["ETag"])
        if not page.get("NextContinuationToken"):
            return
        token = {"ContinuationToken": page["NextContinuationToken"]}


def info(path: str, size: int, modified: datetime, etag: str) -> FileInfo:
    digest = hashlib.blake2b(etag.strip('"').encode(), digest_size=8).digest()
    return FileInfo(path, int(size), modified, int.from_bytes(digest, signed=True))


def create(files: Any, path: str, data: bytes) -> bool:
    """Write only if `path` is absent. False if it exists: the first writer wins."""
    return _put_if(files, path, data, IfNoneMatch="*")


def replace(files: Any, path: str, data: bytes, expected: bytes) -> bool:
    """Write only if `path` still holds `expected`."""
    tag = files.info(path)["ETag"]
    if files.cat_file(path) != expected:
        return False
    return _put_if(files, path, data, IfMatch=tag)


def _put_if(files: Any, path: str, data: bytes, **condition: str) -> bool:
    bucket, _, key = path.partition("/")
    try:
        files.call_s3("put_object", Bucket=bucket, Key=key, Body=data, **condition)
    except OSError as error:
        if _answer(error)[0] in _LOST_RACE:
            return False
        raise
    return True


def explained(where: str, error: Exception) -> DqError | None:
    """What an error of S3 means, in one line; None if it is none, or speaks for itself."""
    code, message = _answer(error)
    if code == "NoSuchBucket":
        bucket = where.removeprefix("s3://").partition("/")[0]
        return NotFoundError(f"{where}: the bucket '{bucket}' does not exist{_server()}")
    if isinstance(error, ValueError) and str(error).startswith("Invalid endpoint"):
        return StorageRefusedError(f"{where}: {error}; check AWS_ENDPOINT_URL")
    if code in _REFUSED:
        meaning, advice = _REFUSED[code]
        return StorageRefusedError(f"{where}: {meaning}{message}; {advice}")
    if code in _FAILED:
        meaning, advice = _FAILED[code]
        return StorageError(f"{where}: {meaning}{message or _server()}; {advice}")
    return None


def _server() -> str:
    endpoint = os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL")
    return f" at {endpoint}" if endpoint else ""


def _answer(error: BaseException) -> tuple[str, str]:
    """The code of the answer that s3fs made an OSError of, and what it said and who; or the name
    of a botocore error."""
    for each in (error, error.__cause__):
        if response := getattr(each, "response", None):
            said = response.get("Error", {})
            return str(said.get("Code", "")), f"{_server()} ({said.get('Message', 'no reason')})"
        for kind in type(each).__mro__:
            if kind.__module__ == "botocore.exceptions" and kind.__name__ in _REFUSED | _FAILED:
                return kind.__name__, ""
    return "", ""


@functools.cache
def _ask_again_when_busy() -> None:
    """Let s3fs repeat HEAD requests that a busy server refused, as it does all others.

    It looks for the reason in the answer's text, and the answer to a HEAD request has none. The
    hook for it is s3fs' own, and of the process: what was hooked in before is asked, too.
    """
    import s3fs.core

    before = s3fs.core.CUSTOM_ERROR_HANDLER
    s3fs.core.set_custom_error_handler(lambda error: _is_busy(error) or before(error))


def _is_busy(error: Exception) -> bool:
    answer = (getattr(error, "response", None) or {}).get("ResponseMetadata", {})
    return bool(answer.get("HTTPStatusCode") == 503)
