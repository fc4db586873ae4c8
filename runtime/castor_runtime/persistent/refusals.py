"""What went wrong with a tier that is not here, as a sentence that says what to do.

The libraries below fsspec raise what they like. No secret is in what they say.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from castor_runtime.persistent.tier import TierError

INSTALL_S3: Final = "pip install 'castor-ckpt[s3]'"

_EXPIRED: Final = {
    "ExpiredToken",
    "ExpiredTokenException",
    "TokenRefreshRequired",
    "RequestExpired",
}
_NO_BUCKET: Final = {"NoSuchBucket", "404"}
_UNREACHED: Final = {
    "ClientConnectorError",
    "ClientOSError",
    "ClientPayloadError",
    "ConnectTimeoutError",
    "ConnectionClosedError",
    "ConnectionTimeoutError",
    "EndpointConnectionError",
    "FSTimeoutError",
    "HTTPClientError",
    "IncompleteRead",
    "ReadTimeoutError",
    "ResponseStreamingError",
    "ServerDisconnectedError",
    "ServerTimeoutError",
}
_NO_CREDENTIALS: Final = {"NoCredentialsError", "PartialCredentialsError", "ProfileNotFound"}
_CREDENTIALS: Final = (
    "see to AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, the profile, or the file of ?credentials= "
    "on this machine"
)


def told(url: str, error: BaseException) -> TierError:
    """Return the error of a tier, told in a sentence."""
    what, for_good = _what(error)
    return TierError(f"{url} {what}", for_good=for_good)


def _what(error: BaseException) -> tuple[str, bool]:
    """Return what went wrong, and whether it stays so."""
    codes = {code for one in _chain(error) if (code := _code(one))}
    kinds = {kind.__name__ for one in _chain(error) for kind in type(one).__mro__}
    said = " ".join(str(error).split()).rstrip(".") or type(error).__name__
    found = (f"failed ({type(error).__name__}: {said})", False)
    if isinstance(error, ImportError):
        found = f"needs a package that is not installed ({said}): {INSTALL_S3} for s3", True
    elif codes & _NO_BUCKET or isinstance(error, FileNotFoundError):
        found = "is in no bucket or folder that is there: make it, or name another", True
    elif codes & _EXPIRED:
        found = f"refuses access, the credentials have expired: {_CREDENTIALS}", False
    elif kinds & _NO_CREDENTIALS:
        found = f"needs credentials ({said}): {_CREDENTIALS}", True
    elif isinstance(error, PermissionError):
        found = f"refuses access ({said}): {_CREDENTIALS}", True
    elif kinds & _UNREACHED or isinstance(error, ConnectionError | TimeoutError):
        found = f"cannot be reached ({said}): see to its endpoint and the network", False
    elif isinstance(error, OSError):
        found = f"failed ({said}): see what its server says of that", False
    return found


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


def _code(error: BaseException) -> str:
    response = getattr(error, "response", None)
    if not isinstance(response, dict):
        return ""
    return str(response.get("Error", {}).get("Code", ""))
