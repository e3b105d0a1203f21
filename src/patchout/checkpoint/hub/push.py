"""Upload of a folder to the hub by huggingface_hub, in one commit."""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from patchout.checkpoint.download import hub_errors, is_offline, unreachable
from patchout.checkpoint.hub.folder import FILES

NAME = re.compile(r"[\w-][\w.-]*/[\w-][\w.-]*")


class PushError(OSError):
    """A push that the hub refuses or that does not reach it; the message says what to do."""


def check_name(repo_id: str) -> None:
    """Refuse what is no name of a repository."""
    if not NAME.fullmatch(repo_id) or len(repo_id) > 96:
        allowed = "letters, digits and - _ . in OWNER/NAME, e.g. ada/barks"
        raise ValueError(f"{repo_id!r} is no name of a hub repository: {allowed}")


def check_destination(repo_id: str, *, overwrite: bool) -> None:
    """Refuse before any work: no network, no token, or a repository that exists without `overwrite`."""
    from huggingface_hub import HfApi, constants, get_token

    reason = "HF_HUB_OFFLINE is set" if is_offline() else unreachable(constants.ENDPOINT)
    if reason:
        raise PushError(
            f"{repo_id}: cannot be pushed, {reason}: --dry-run DIR writes the folder without network"
        )
    if not get_token():
        todo = "make one with write access at https://huggingface.co/settings/tokens"
        raise PushError(f"no token for the hub: {todo}, then `hf auth login`, or set HF_TOKEN")
    with _explained(repo_id):
        exists = HfApi(endpoint=constants.ENDPOINT).repo_exists(repo_id)
    if exists and not overwrite:
        raise PushError(
            f"{repo_id} exists on the hub: --overwrite adds a revision with these files, others stay"
        )


def upload(folder: Path, repo_id: str, *, private: bool, overwrite: bool) -> str:
    """Make the repository where it is not there, and commit the folder's files; returns owner/name@revision.

    Files of an earlier push that this one has not are deleted; earlier revisions stay. Raises PushError.
    """
    from huggingface_hub import HfApi, constants

    api = HfApi(endpoint=constants.ENDPOINT, library_name="patchout")
    former: list[Any] = [name for name in FILES if not (folder / name).exists()] if overwrite else []
    with _explained(repo_id):
        api.create_repo(repo_id, private=private, exist_ok=overwrite)
        commit = api.upload_folder(
            repo_id=repo_id,
            folder_path=folder,
            delete_patterns=former or None,
            commit_message="Push by patchout",
        )
    return f"{repo_id}@{commit.oid}"


@contextmanager
def _explained(repo_id: str) -> Iterator[None]:
    """Turn what the hub's client raises into a PushError that says what to do."""
    from huggingface_hub.errors import HfHubHTTPError

    try:
        try:
            yield
        except RuntimeError as error:  # that of a single file; its cause is what happened
            if isinstance(error.__cause__, hub_errors()):
                raise error.__cause__ from None
            raise
    except HfHubHTTPError as error:
        status = error.response.status_code if error.response is not None else 0
        owner = repo_id.partition("/")[0]
        reasons = {
            401: "the hub does not accept the token: `hf auth login`, or set HF_TOKEN",
            403: f"the token may not write as {owner}: take one with write access, or another OWNER",
            404: f"the hub has no {owner} that this token may write to: check OWNER",
            409: "exists on the hub: --overwrite adds a revision with these files, others stay",
        }
        reason = reasons.get(status) or f"HTTP {status}: {str(error).strip().splitlines()[-1]}"
        raise PushError(f"{repo_id}: not pushed, {reason}") from error
    except hub_errors() as error:
        todo = "the same command with --overwrite begins anew"
        raise PushError(f"{repo_id}: not pushed, the connection failed ({error}): {todo}") from error
