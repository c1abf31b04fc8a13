"""How a patch is published on the Hub: its file, a card, and a picture out of a report."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from PIL import Image

from erasers.files.hub import REPOSITORY, hub_errors
from erasers.files.report_folder import PICTURE, SUMMARY, read_summary
from erasers.patch.find import PATCH_FILE


def check_repository(repo_id: str) -> None:
    """Refuse a name that is no Hub id.

    Raises:
        ValueError: It is none.
    """
    if not REPOSITORY.fullmatch(repo_id):
        raise ValueError(f"expected a repository as user/name, got {repo_id!r}")


def push(
    repo_id: str,
    save: Callable[[Path], None],
    card: str,
    picture: Image.Image | None,
    *,
    private: bool | None,
    token: str | None,
) -> str:
    """Publish the file that `save` writes, with its card and a picture.

    Returns:
        The address of the repository.

    Raises:
        OSError: No connection, or no right to write there.
    """
    from huggingface_hub import HfApi

    with TemporaryDirectory() as name:
        folder = Path(name)
        save(folder / PATCH_FILE)
        if picture:
            # Written anew from its pixels: whatever else is in the file stays here.
            picture.save(folder / PICTURE)
        (folder / "README.md").write_text(card, encoding="utf-8")
        api = HfApi(token=token)
        with hub_errors(
            f"cannot push to {repo_id!r}",
            unknown="no such repository, or no right to write to it; check the name, and log in with hf auth login",
            offline="the Hub cannot be reached; connect and try again",
            kind=OSError,
        ):
            url = api.create_repo(repo_id, private=private, exist_ok=True)
            api.upload_folder(repo_id=url.repo_id, folder_path=folder, commit_message="Add a patch and its card")
    return str(url)


def read_report(meta: Mapping[str, Any], digest: str, folder: Path) -> dict[str, Any]:
    """The `summary.json` of a report on the patch with this metadata and this digest.

    Raises:
        FileNotFoundError: No such file.
        ValueError: It cannot be read, is a link, or is about another erasure.
    """
    summary, path = read_summary(folder), folder / SUMMARY
    names = {str(concept.get("name")) for concept in meta["concepts"]}
    about = summary.get("method"), set(summary.get("concepts", {}))
    if about[0] != meta["method"] or not about[1] <= names:
        raise ValueError(
            f"expected a report on {', '.join(sorted(names))} with {meta['method']}, got {path} on "
            f"{', '.join(sorted(about[1])) or 'other concepts'} with {about[0]}; give the report of this patch"
        )
    if summary.get("patch_sha256", digest) != digest:
        raise ValueError(f"expected a report on this very patch, got {path} on another fit of it; report on this one")
    return summary
