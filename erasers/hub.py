"""Where a reference to a patch leads (a file, a folder, the Hub), and how a patch is published."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from erasers.card import model_card
from erasers.patch_file import KEY, PatchError
from erasers.reading import at_home, parse_json
from erasers.report_folder import PICTURE, SUMMARY, read_picture, read_summary

if TYPE_CHECKING:
    from erasers.patch import Patch

PATCH_FILE = "patch.safetensors"
_REPOSITORY = re.compile(r"\w[\w.-]*/\w[\w.-]*", re.ASCII)
_REFERENCE = re.compile(
    r"(?P<repo>\w[\w.-]*/\w[\w.-]*)(?P<file>(/\w[^/@]*)+\.safetensors)?(@(?P<revision>[^@]+))?", re.ASCII
)
_OFFLINE = (
    *("OfflineModeIsEnabled", "LocalEntryNotFoundError", "TransportError", "ConnectError", "ConnectTimeout"),
    *("ConnectionError", "ReadTimeout", "gaierror"),
)
_UNKNOWN = ("RepositoryNotFoundError", "GatedRepoError", "RevisionNotFoundError", "HFValidationError")


def find_patch(reference: str | Path) -> Path:
    """The file of a patch.

    Args:
        reference: A file; a folder that holds `patch.safetensors` or one patch under any name; or, as text, a Hub id
            `user/repo` or `user/repo/file.safetensors`, with `@revision` behind it if need be.

    Raises:
        FileNotFoundError: Neither there nor on the Hub, or the Hub cannot be reached.
        PatchError: A folder that holds several patches.
    """
    path = at_home(reference)
    if path.is_file():
        return path
    if path.is_dir():
        return _in_folder(path)
    match = None if isinstance(reference, Path) else _REFERENCE.fullmatch(reference)
    if match is None or reference == match["repo"] and path.suffix == ".safetensors":
        raise FileNotFoundError(
            f"expected a patch file, a folder with one or a Hub id, got {reference}, which does not exist"
        )
    try:
        return _fetch(match["repo"], (match["file"] or "")[1:], match["revision"])
    except PatchError:
        raise
    except Exception as error:
        # The Hub client raises a dozen unrelated types.
        why = reason(
            error,
            unknown="no such file and no such public repository on the Hub; check the spelling, or log in if it is "
            "private",
            offline="no such file, and the Hub cannot be reached; connect, or give a file",
        )
        raise FileNotFoundError(f"cannot load the patch {reference!r}: {why}") from error


def push_patch(
    patch: Patch,
    repo_id: str,
    *,
    private: bool | None = None,
    token: str | None = None,
    report: str | Path | None = None,
    base_model: str | None = None,
    license: str | None = None,
) -> str:
    """See `Patch.push_to_hub`."""
    from huggingface_hub import HfApi

    if not _REPOSITORY.fullmatch(repo_id):
        raise ValueError(f"expected a repository as user/name, got {repo_id!r}")
    summary = None if report is None else read_report(patch, Path(report))
    picture = None if report is None else read_picture(Path(report))
    with TemporaryDirectory() as name:
        folder = Path(name)
        patch.save(folder / PATCH_FILE)
        if picture:
            # Written anew from its pixels: whatever else is in the file stays here.
            picture.save(folder / PICTURE)
        shown = PICTURE if picture else None
        card = model_card(
            patch, repo_id=repo_id, base_model=base_model, license=license, summary=summary, picture=shown
        )
        (folder / "README.md").write_text(card, encoding="utf-8")
        api = HfApi(token=token)
        try:
            url = api.create_repo(repo_id, private=private, exist_ok=True)
            api.upload_folder(repo_id=url.repo_id, folder_path=folder, commit_message="Add a patch and its card")
        except Exception as error:
            why = reason(
                error,
                unknown="no such repository, or no right to write to it; check the name, and log in with hf auth login",
                offline="the Hub cannot be reached; connect and try again",
            )
            raise OSError(f"cannot push to {repo_id!r}: {why}") from error
    return str(url)


def read_report(patch: Patch, folder: Path) -> dict[str, Any]:
    """The `summary.json` of a report on `patch`.

    Raises:
        FileNotFoundError: No such file.
        ValueError: It cannot be read, is a link, or is about another erasure.
    """
    summary, path = read_summary(folder), folder / SUMMARY
    names = {str(concept.get("name")) for concept in patch.meta["concepts"]}
    about = summary.get("method"), set(summary.get("concepts", {}))
    if about[0] != patch.meta["method"] or not about[1] <= names:
        raise ValueError(
            f"expected a report on {', '.join(sorted(names))} with {patch.meta['method']}, got {path} on "
            f"{', '.join(sorted(about[1])) or 'other concepts'} with {about[0]}; give the report of this patch"
        )
    if summary.get("patch_sha256", patch.digest) != patch.digest:
        raise ValueError(f"expected a report on this very patch, got {path} on another fit of it; report on this one")
    return summary


def reason(error: BaseException, *, unknown: str, offline: str) -> str:
    """One line on why the Hub did not give what was asked for: `unknown`, `offline`, or what the error says."""
    names = {cls.__name__ for cause in _causes(error) for cls in type(cause).__mro__}
    if names & set(_UNKNOWN):
        return unknown
    if names & set(_OFFLINE):
        return offline
    first = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
    return f"{first[:300]} ({type(error).__name__})"


def _in_folder(folder: Path) -> Path:
    if (folder / PATCH_FILE).is_file():
        return folder / PATCH_FILE
    found = [path for path in sorted(folder.glob("*.safetensors")) if _is_patch(path)]
    if len(found) > 1:
        names = ", ".join(path.name for path in found)
        raise PatchError(f"expected one patch in the folder {folder}, got {names}; name the file")
    if not found:
        hint = "; it is a model, give it as the base" if (folder / "model_index.json").is_file() else ""
        raise FileNotFoundError(f"expected a patch in the folder {folder}, got none{hint}")
    return found[0]


def _is_patch(path: Path) -> bool:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, "pt") as file:
            return "format" in parse_json((file.metadata() or {}).get(KEY, "{}"), str(path))
    except (SafetensorError, ValueError, TypeError):
        return False


def _fetch(repo: str, file: str, revision: str | None) -> Path:
    from huggingface_hub import HfApi, hf_hub_download
    from huggingface_hub.errors import RemoteEntryNotFoundError

    try:
        return Path(hf_hub_download(repo, file or PATCH_FILE, revision=revision))
    except RemoteEntryNotFoundError:
        if file:
            raise FileNotFoundError(f"the repository {repo} has no file {file}") from None
    names = [
        name for name in HfApi().list_repo_files(repo, revision=revision) if re.fullmatch(r"[^/]+\.safetensors", name)
    ]
    if len(names) != 1:
        got = ", ".join(names[:8]) or "none"
        raise PatchError(f"expected one safetensors file in the repository {repo}, got {got}; name it: {repo}/FILE")
    return Path(hf_hub_download(repo, names[0], revision=revision))


def _causes(error: BaseException) -> Iterator[BaseException]:
    current: BaseException | None = error
    seen: set[int] = set()
    while current is not None and id(current) not in seen:
        seen.add(id(current))
        yield current
        current = current.__cause__ or current.__context__
