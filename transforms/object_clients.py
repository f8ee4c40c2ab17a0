"""Connections to object stores, by the library obstore: who we are, how long we wait, how often we try, and what errors mean.

Nothing that the library or a service says goes into a message as it is: that may hold keys, tokens or signed addresses.
"""

import os
import re
import time
from collections.abc import Callable
from contextlib import suppress
from datetime import timedelta
from functools import lru_cache
from typing import TYPE_CHECKING, Any, Final, TypeVar

from scenemill.schemas.errors import ConfigError, TransientError

if TYPE_CHECKING:
    from obstore.store import ClientConfig, GCSStore, RetryConfig, S3Config, S3Store

SCHEMES: Final = ("s3", "gs")
TIMEOUT: Final = "SCENEMILL_OBJECT_TIMEOUT_S"
"""Environment variable: seconds that one request may take; 300 by default, as a shard is one request."""

_TRIES: Final = 5
_RETRIES: Final["RetryConfig"] = {
    "max_retries": 8,
    "backoff": {"init_backoff": timedelta(milliseconds=100), "max_backoff": timedelta(seconds=10), "base": 2},
    "retry_timeout": timedelta(minutes=3),
}
_CREDENTIALS: Final = {
    "s3": "AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, a profile (AWS_PROFILE), or a role; AWS_SKIP_SIGNATURE=true for a public bucket",
    "gs": "GOOGLE_APPLICATION_CREDENTIALS, gcloud's login, or the machine's account; GOOGLE_SKIP_SIGNATURE=true for a public bucket",
}
_GOOGLE: Final = (
    "GOOGLE_APPLICATION_CREDENTIALS",
    "GOOGLE_BASE_URL",
    "GOOGLE_SERVICE_ACCOUNT",
    "GOOGLE_SERVICE_ACCOUNT_KEY",
    "GOOGLE_SERVICE_ACCOUNT_PATH",
)
_REGION: Final = {"s3": "AWS_REGION and AWS_ENDPOINT_URL", "gs": "the name"}

_T = TypeVar("_T")
_connected: set[int] = set()  # the processes that have connected: this one, and those it was forked from


def client(scheme: str, bucket: str, prefix: str = "") -> "S3Store | GCSStore":
    """The connection to a bucket, or to what is below a prefix of it: one for each, shared by threads.

    Raises:
        ConfigError: obstore is not installed, there are no credentials, or this process was forked from one that had connected.
    """
    if _connected - {os.getpid()}:
        raise ConfigError(
            f"{scheme}://{bucket}: this process was forked from one that used an object store, and connections do not survive that; "
            'start it with "spawn" or "forkserver"'
        )
    _connected.add(os.getpid())
    return _connect(scheme, bucket, prefix)


@lru_cache(maxsize=16)
def _connect(scheme: str, bucket: str, prefix: str) -> "S3Store | GCSStore":
    try:
        from obstore.exceptions import BaseError  # an extra: say so before anything else fails
    except ModuleNotFoundError as error:
        raise ConfigError(f"{scheme}://{bucket}: object stores need an extra: pip install 'scenemill[cloud]'") from error
    with suppress(BaseError):
        return _connect_s3(bucket, prefix) if scheme == "s3" else _connect_gs(bucket, prefix)
    raise ConfigError(f"{scheme}://{bucket}: cannot be connected to; it knows us by {_CREDENTIALS[scheme]}")


def _connect_s3(bucket: str, prefix: str) -> "S3Store":
    from obstore.store import S3Store

    endpoint = _endpoint()
    config: S3Config = {"endpoint": endpoint} if endpoint else {}
    return S3Store(
        bucket,
        prefix=prefix or None,
        config=config,
        client_options=_client_options(endpoint),
        retry_config=_RETRIES,
        credential_provider=None if _is_own() else _credentials(bucket),
    )


def _endpoint() -> str:
    return next((os.environ[name] for name in ("AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL") if os.environ.get(name)), "")


def _is_own() -> bool:
    """Whether the environment holds what the libraries read themselves."""
    return bool(os.environ.get("AWS_ACCESS_KEY_ID")) or _is_true("AWS_SKIP_SIGNATURE")


def _credentials(bucket: str) -> Any:
    from obstore.auth.boto3 import Boto3CredentialProvider

    return Boto3CredentialProvider(_session(bucket))


def _session(bucket: str) -> Any:
    """Credentials by the chain of AWS's own library: profiles, single sign-on, roles, containers, the machine's account."""
    import boto3
    from botocore.exceptions import BotoCoreError

    try:
        session = boto3.Session()
        found = session.get_credentials()
    except BotoCoreError as error:
        raise ConfigError(f"s3://{bucket}: no credentials ({type(error).__name__}); give {_CREDENTIALS['s3']}") from None
    if found is None:
        raise ConfigError(f"s3://{bucket}: no credentials; give {_CREDENTIALS['s3']}")
    return session


def delta_options(scheme: str, bucket: str) -> dict[str, str]:
    """How deltalake connects to a bucket: as ``client`` does, and so that a commit never replaces another. Holds secrets.

    Raises:
        ConfigError: there are no credentials.
    """
    return _delta_options_s3(bucket) if scheme == "s3" else _delta_options_gs()


def _delta_options_s3(bucket: str) -> dict[str, str]:
    endpoint = _endpoint()
    options = _delta_patience(endpoint) | {"aws_conditional_put": "etag"}
    options |= {"aws_endpoint_url": endpoint} if endpoint else {}
    if _is_own():
        return options  # deltalake reads them itself
    from botocore.exceptions import BotoCoreError, ClientError

    session = _session(bucket)
    try:
        found = session.get_credentials().get_frozen_credentials()
    except (BotoCoreError, ClientError) as error:  # such as a single sign-on that is over
        raise ConfigError(f"s3://{bucket}: no credentials ({type(error).__name__}); give {_CREDENTIALS['s3']}") from None
    named = {
        "aws_access_key_id": found.access_key,
        "aws_secret_access_key": found.secret_key,
        "aws_session_token": found.token,
        "aws_region": session.region_name,
    }
    return options | {name: value for name, value in named.items() if value}


def _delta_options_gs() -> dict[str, str]:
    """Its commits have a condition without being told; what it is told here it would not read for the files of rows."""
    given = {name.lower(): os.environ[name] for name in _GOOGLE if os.environ.get(name)}
    return _delta_patience(os.environ.get("GOOGLE_BASE_URL", "")) | given


def _delta_patience(endpoint: str) -> dict[str, str]:
    options = {name: str(value).lower() for name, value in _client_options(endpoint).items()}
    return options | {"max_retries": "8", "retry_timeout": "180s"}


def _connect_gs(bucket: str, prefix: str) -> "GCSStore":
    from obstore.store import GCSStore

    options = _client_options(os.environ.get("GOOGLE_BASE_URL", ""))
    return GCSStore(bucket, prefix=prefix or None, client_options=options, retry_config=_RETRIES)


def _client_options(endpoint: str) -> "ClientConfig":
    given = os.environ.get(TIMEOUT, "300")
    if not re.fullmatch(r"[1-9]\d{0,4}", given):
        raise ConfigError(f"{TIMEOUT}={given!r}: give whole seconds")
    return {"timeout": f"{given}s", "connect_timeout": "5s", "allow_http": endpoint.startswith("http://")}


def _is_true(variable: str) -> bool:
    return os.environ.get(variable, "").lower() in ("1", "true", "yes")


def call(where: str, function: Callable[..., _T], *given: Any, **named: Any) -> _T:
    """Call the library, and raise what a caller can act on.

    What passes is waited for, and the call repeated: the library itself does so for most requests, but not for a write that may have
    arrived, nor for a listing that breaks off. All calls of ours may be repeated, as every write has a condition.

    Args:
        where: URI of the bucket and key, for messages.
        function: of obstore; given and named are its arguments.

    Raises:
        FileNotFoundError: no such object.
        FileExistsError: one exists, or has changed, against the condition of a write: perhaps by an earlier try of this very call.
        ConfigError: the service refuses: no such bucket, no right, no credentials, another region.
        TransientError: the service failed, or did not answer, also after trying again.
    """
    from obstore.exceptions import BaseError

    for tries_left in reversed(range(_TRIES)):
        try:
            return function(*given, **named)
        except (BaseError, OSError) as error:
            failure = meaning(where, error)
        if not tries_left or not isinstance(failure, TransientError):
            break
        time.sleep(0.1 * 2 ** (_TRIES - tries_left))
    raise failure  # out here, so that the library's own error, and what it holds, is not chained to it


def meaning(where: str, error: Exception) -> Exception:
    """An error of a library that speaks to a service, as one that a caller can act on; of its words nothing but the status is kept."""
    from obstore import exceptions

    scheme, told = where.partition(":")[0], re.sub(r"\x1b\[\d+m", "", str(error))  # deltalake colours its words
    if isinstance(error, exceptions.AlreadyExistsError | exceptions.PreconditionError):
        return FileExistsError(f"{where}: another writer was there first")
    if "<Code>NoSuchBucket</Code>" in told:
        return ConfigError(f"{where}: no such bucket; make it, or check {_REGION[scheme]}")
    if isinstance(error, FileNotFoundError | exceptions.NotFoundError):
        return FileNotFoundError(f"{where}: no such object")
    status = re.search(r"status(?: code)?(?::|\s+\W*)\s*(\d{3})\b", told)
    code = status[1] if status else ""
    if isinstance(error, exceptions.UnauthenticatedError | exceptions.PermissionDeniedError) or code in ("401", "403"):
        return ConfigError(f"{where}: the service refuses; it knows us by {_CREDENTIALS[scheme]}")
    if code.startswith("3"):
        return ConfigError(f"{where}: the bucket is elsewhere (status {code}); check {_REGION[scheme]}")
    if code.startswith("4") and code not in ("408", "409", "429"):
        return ConfigError(f"{where}: the service refuses the request (status {code})")
    return TransientError(f"{where}: {f'the service failed (status {code})' if code else 'no answer'}; try again")
