"""Where a reference to a patch leads: a file, a folder, the Hub."""

from __future__ import annotations

import re
from pathlib import Path

from erasers.files.hub import NAME, hub_errors
from erasers.files.reading import at_home, parse_json
from erasers.files.tensors import KEY, PatchError

PATCH_FILE = "patch.safetensors"
_REFERENCE = re.compile(rf"(?P<repo>{NAME})(?P<file>(/\w[^/@]*)+\.safetensors)?(@(?P<revision>[^@]+))?", re.ASCII)


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
    with hub_errors(
        f"cannot load the patch {reference!r}",
        unknown="no such file and no such public repository on the Hub; check the spelling, or log in if it is private",
        offline="no such file, and the Hub cannot be reached; connect, or give a file",
        passing=(PatchError,),
    ):
        return _fetch(match["repo"], (match["file"] or "")[1:], match["revision"])


def _in_folder(folder: Path) -> Path:
    if (folder / PATCH_FILE).is_file():
        return folder / PATCH_FILE
    patches = [path for path in sorted(folder.glob("*.safetensors")) if _is_patch(path)]
    if len(patches) > 1:
        names = ", ".join(path.name for path in patches)
        raise PatchError(f"expected one patch in the folder {folder}, got {names}; name the file")
    if not patches:
        hint = "; it is a model, give it as the base" if (folder / "model_index.json").is_file() else ""
        raise FileNotFoundError(f"expected a patch in the folder {folder}, got none{hint}")
    return patches[0]


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
