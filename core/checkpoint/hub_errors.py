"""Turns errors of the hub's client into a `HubError` that names the repository, the endpoint and what to do.

The client is imported only by callers, so it is loaded already when a function here runs.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from core.checkpoint.source import HubId
from core.errors import CoreError, HubError

_LOG_IN = "log in with `hf auth login`, or set HF_TOKEN"


@contextmanager
def translated(hub: HubId) -> Iterator[None]:
    """Any error of the client inside this block is raised as `HubError`, with the original as its cause."""
    try:
        yield
    except CoreError:
        raise
    except Exception as exc:  # its own classes, its HTTP library's, the system's, and ValueErrors from parsing answers
        raise hub_error(exc, hub) from exc


def hub_error(exc: BaseException, hub: HubId) -> HubError:
    """The `HubError` for one exception of the client, chosen by the most specific exception in its chain of causes."""
    chain = [exc]
    while (cause := chain[-1].__cause__) is not None and cause not in chain:
        chain.append(cause)
    for link in chain:
        if (error := _known(link, hub)) is not None:
            return error
    text = str(exc).strip().splitlines()
    return HubError(
        "the hub's client failed",
        where=_where(hub),
        found=f"{type(exc).__name__}: {text[0][:200] if text else 'no message'}",
        hint=f"check that {_endpoint()} is a hub, and the network's proxy settings",
    )


def _known(exc: BaseException, hub: HubId) -> HubError | None:
    from huggingface_hub import errors

    where, endpoint = _where(hub), _endpoint()
    match exc:
        case errors.GatedRepoError():
            hint = f"ask for access at {endpoint}/{hub.repo}, then {_LOG_IN}"
            return HubError(f"access to this repository on {endpoint} is granted by its owner", where=where, hint=hint)
        case errors.RepositoryNotFoundError():
            hint = f"check the spelling, org/name; if it is private, {_LOG_IN}; a local model is passed as a directory"
            return HubError(f"there is no such repository on {endpoint}", where=where, hint=hint)
        case errors.RevisionNotFoundError():
            hint = f"its branches and commits are listed at {endpoint}/{hub.repo}/commits/main"
            return HubError(f"there is no such revision of this repository on {endpoint}", where=where, hint=hint)
        case errors.RemoteEntryNotFoundError():
            return HubError(f"a file of this repository is gone from {endpoint}", where=where, hint="try again")
        case errors.OfflineModeIsEnabled():
            hint = "unset HF_HUB_OFFLINE to download it, or pass a local directory"
            return HubError("HF_HUB_OFFLINE forbids requests to the hub", where=where, hint=hint)
        case errors.HfHubHTTPError():
            return _refused(exc, where, endpoint)
        case PermissionError():
            hint = "check its owner, or set HF_HOME to a directory of your own"
            return HubError("the download cache is not writable", where=where, found=exc.filename, hint=hint)
        case OSError() if exc.errno is not None and not isinstance(exc, ConnectionError | TimeoutError):
            hint = "free some space, or set HF_HOME to another disk; files that are complete are not downloaded again"
            return HubError(
                f"the download could not be stored: {exc.strerror}", where=where, found=exc.filename, hint=hint
            )
    # The client's HTTP library is not ours to import (and has changed): the base of its errors is found through this
    # class.
    if isinstance(exc, errors.HfHubHTTPError.__bases__[0]):
        hint = "check the network and HF_ENDPOINT; a repository that is cached, or a local directory, needs neither"
        found = f"{type(exc).__name__}: {str(exc)[:200]}".rstrip(": ")
        return HubError(f"the connection to {endpoint} failed", where=where, found=found, hint=hint)
    return None


def _refused(exc: BaseException, where: str, endpoint: str) -> HubError:
    """The error for an HTTP status that has no class of its own."""
    status = getattr(getattr(exc, "response", None), "status_code", None)
    hint = {
        401: _LOG_IN,
        403: f"{_LOG_IN}, with a token that may read this repository",
        429: f"wait a while; the limits are wider for those who {_LOG_IN}",
    }.get(status or 0, "try again later")
    message = getattr(exc, "server_message", None)
    found = f"HTTP {status}" + (f": {str(message).splitlines()[0][:200]}" if message else "")
    return HubError(f"{endpoint} refused", where=where, found=found, hint=hint)


def _where(hub: HubId) -> str:
    return f"hub:{hub.repo}" + (f"@{hub.revision}" if hub.revision else "")


def _endpoint() -> str:
    from huggingface_hub import constants

    return constants.ENDPOINT
