"""Where a reference to a patch leads (a file, a folder, the Hub), and how a patch is published."""

from __future__ import annotations

import re
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from erasers.files.hub import reason
from erasers.files.report_folder import PICTURE, SUMMARY, read_picture, read_summary
from erasers.patch.card import model_card
from erasers.patch.find import PATCH_FILE

if TYPE_CHECKING:
    from erasers.patch.patch import Patch

_REPOSITORY = re.compile(r"\w[\w.-]*/\w[\w.-]*", re.ASCII)


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
