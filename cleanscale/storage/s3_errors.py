"""What S3 answers when it does not do what it was asked: what may pass, what stays, and how a user mends it."""

from __future__ import annotations

import http.client
from dataclasses import dataclass
from typing import Any

import aiohttp
from botocore.exceptions import (
    ClientError,
    HTTPClientError,
    IncompleteReadError,
    ResponseStreamingError,
    SSLError,
)
from botocore.exceptions import ConnectionError as NoConnectionError
from botocore.parsers import ResponseParserError

BUSY = frozenset({"SlowDown", "ServiceUnavailable", "Throttling", "ThrottlingException", "RequestLimitExceeded"})
PASSING = frozenset(
    {"InternalError", "RequestTimeout", "RequestTimeoutException", "OperationAborted", "IncompleteBody", "BadDigest"}
)
EXPIRED = frozenset({"ExpiredToken", "ExpiredTokenException", "RequestExpired", "TokenRefreshRequired"})
UNKNOWN_KEYS = frozenset({"InvalidAccessKeyId", "SignatureDoesNotMatch", "InvalidToken", "InvalidSecurity"})
ELSEWHERE = frozenset(
    {"PermanentRedirect", "301", "AuthorizationHeaderMalformed", "IllegalLocationConstraintException"}
)
BROKEN = (
    NoConnectionError,
    HTTPClientError,
    IncompleteReadError,
    ResponseStreamingError,
    ResponseParserError,
    aiohttp.ClientError,
    TimeoutError,
    ConnectionError,
    http.client.IncompleteRead,
)
RIGHTS = {
    "get_object": "s3:GetObject",
    "head_object": "s3:GetObject and s3:ListBucket",
    "list_objects_v2": "s3:ListBucket",
    "head_bucket": "s3:ListBucket",
    "delete_objects": "s3:DeleteObject",
    "list_multipart_uploads": "s3:ListBucketMultipartUploads",
    "abort_multipart_upload": "s3:AbortMultipartUpload",
}


@dataclass(frozen=True)
class Asked:
    """What a request that failed for good was about. `error.asked` of the exception that it ended with."""

    method: str
    bucket: str
    key: str
    code: str | None  # S3's word for it; None where there was no answer
    attempts: int
    seconds: float  # from the first failure to the last

    @property
    def place(self) -> str:
        return f"bucket '{self.bucket}'" + (f", key '{self.key}'" if self.key else "")


def remember(error: BaseException, method: str, kwargs: dict[str, Any], attempt: int = 0, seconds: float = 0.0) -> None:
    """Let an error say what it was about, where it becomes a message for the user."""
    key = kwargs.get("Key") or kwargs.get("Prefix") or ""
    asked = Asked(method, kwargs.get("Bucket", ""), key, code_of(error)[0], attempt + 1, seconds)
    error.asked = asked  # pyright: ignore[reportAttributeAccessIssue]


def code_of(error: BaseException) -> tuple[str | None, int | None]:
    """(S3's code, HTTP status) of an answer that is an error; (None, None) where there was no answer."""
    for one in (error, error.__cause__):
        if isinstance(one, ClientError):
            return one.response["Error"].get("Code", ""), one.response.get("ResponseMetadata", {}).get("HTTPStatusCode")
    return None, None


def passing(error: BaseException, code: str | None, status: int | None) -> str | None:
    """The name of what went wrong, where another attempt may help; None where none does."""
    if code is None:
        return type(error).__name__ if isinstance(error, BROKEN) and not isinstance(error, SSLError) else None
    if code in EXPIRED or code in BUSY or code in PASSING or status == 429:
        return code
    return code if status is not None and status >= 500 and status != 501 else None


def describe(uri: str, error: BaseException, expected: str) -> str:
    """Found, expected, remedy: for the exception that a request ended with."""
    asked: Asked = error.asked  # pyright: ignore[reportAttributeAccessIssue]
    code, name = asked.code, f"'{uri}' ({asked.place})"
    text = (str(error).strip().splitlines() or [""])[0][:200]
    why = f"{code}: {text}" if code and code not in text else text or type(error).__name__
    again = "the same command goes on from where it was"
    if code == "NoSuchBucket":
        remedy = "create the bucket, or correct its name, AWS_ENDPOINT_URL or the region"
        return f"there is no bucket for {name} ({why}); expected {expected}; {remedy}"
    if code in ("NoSuchKey", "404"):
        return f"nothing found at {name}; expected {expected}; check the spelling, and that the bucket is the right one"
    if code in EXPIRED:
        remedy = "renew them (a role or a credential_process is renewed by itself); " + again
        return f"the credentials for {name} have expired ({why}); expected ones that are valid; {remedy}"
    if code in UNKNOWN_KEYS:
        remedy = "check AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or the profile, and AWS_ENDPOINT_URL"
        return f"the credentials for {name} are not accepted ({why}); expected ones that this store knows; {remedy}"
    if code in ELSEWHERE:
        return f"{name} is in another region ({why}); expected that of the bucket; set AWS_DEFAULT_REGION to it"
    if code == "RequestTimeTooSkewed":
        return f"{name} refuses this machine's time ({why}); expected the right one; set the clock"
    if code in ("AccessDenied", "403", "AllAccessDisabled", "AccountProblem"):
        right = RIGHTS.get(asked.method, "s3:PutObject")
        remedy = "grant it, or use other credentials (`aws sts get-caller-identity` says whose these are)"
        return f"access to {name} was refused ({why}); expected credentials with the right {right}; {remedy}"
    tried = f"{asked.attempts} attempts in {asked.seconds:.0f} s"
    if code in BUSY:
        remedy = f"wait, or take fewer workers and tasks at a time; {again}"
        return f"{name} is too busy to answer ({why}; {tried}); expected {expected}; {remedy}"
    if code is None or (code or "").startswith("5") or code in PASSING:
        remedy = f"check the network, AWS_ENDPOINT_URL and the region; {again}"
        return f"{name} cannot be reached ({type(error).__name__}: {text}; {tried}); expected {expected}; {remedy}"
    return f"{name} cannot be used ({why}); expected {expected}; check the URI and the settings of the bucket"
