"""Names on the Hub, and why it did not give what was asked for."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager

NAME = r"\w[\w.-]*/\w[\w.-]*"
REPOSITORY = re.compile(NAME, re.ASCII)
"""`user/name`, of what is asked for on the Hub."""
MODEL_NAME = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+")
"""`user/model`, of a model that a card names and nobody asks for: no path that begins with a dot or a slash."""


_OFFLINE = (
    *("OfflineModeIsEnabled", "LocalEntryNotFoundError", "TransportError", "ConnectError", "ConnectTimeout"),
    *("ConnectionError", "ReadTimeout", "gaierror"),
)
_UNKNOWN = ("RepositoryNotFoundError", "GatedRepoError", "RevisionNotFoundError", "HFValidationError")


def reason(error: BaseException, *, unknown: str, offline: str) -> str:
    """One line on why the Hub did not give what was asked for: `unknown`, `offline`, or what the error says."""
    names = {cls.__name__ for cause in _causes(error) for cls in type(cause).__mro__}
    if names & set(_UNKNOWN):
        return unknown
    if names & set(_OFFLINE):
        return offline
    first = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
    return f"{first[:300]} ({type(error).__name__})"


@contextmanager
def hub_errors(
    failed: str,
    *,
    unknown: str,
    offline: str,
    advice: str = "",
    kind: type[OSError] = FileNotFoundError,
    passing: tuple[type[Exception], ...] = (),
) -> Iterator[None]:
    """Inside, the dozen unrelated types of errors that the client of the Hub raises become one, with its reason.

    Args:
        failed: What could not be done, for the message.
        unknown: The reason where there is no such thing, or no right to it.
        offline: The reason where the Hub cannot be reached.
        advice: What to do next, where the reasons do not say.
        kind: What is raised.
        passing: Errors that are raised as they are.
    """
    try:
        yield
    except passing:
        raise
    except Exception as error:
        why = reason(error, unknown=unknown, offline=offline)
        raise kind("; ".join(filter(None, (f"{failed}: {why}", advice)))) from error


def _causes(error: BaseException) -> Iterator[BaseException]:
    current: BaseException | None = error
    seen: set[int] = set()
    while current is not None and id(current) not in seen:
        seen.add(id(current))
        yield current
        current = current.__cause__ or current.__context__
