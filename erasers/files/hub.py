"""Why the Hub did not give what was asked for."""

from __future__ import annotations

from collections.abc import Iterator

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


def _causes(error: BaseException) -> Iterator[BaseException]:
    current: BaseException | None = error
    seen: set[int] = set()
    while current is not None and id(current) not in seen:
        seen.add(id(current))
        yield current
        current = current.__cause__ or current.__context__
