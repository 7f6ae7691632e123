"""Name of a model -> its folder, checked to be whole, before anything is loaded.

Needs neither torch nor ray, because `topd check` judges folders of other machines too.
"""

from pathlib import Path

from topd_ray.errors import UserError
from topd_ray.models.files import CONFIG, read_config
from topd_ray.models.headers import tensor_facts

ADAPTER = "adapter_config.json"
HUB_PATTERNS = [
    "*.safetensors",
    "*.json",
    "*.jinja",
    "tokenizer*",
    "merges.txt",
    "vocab.*",
]
"""Files that are taken from the hub: no pickles, no code, no other frameworks."""


def resolve_model(name: str, revision: str | None = None) -> Path:
    """Return a model's folder, and download the model where it is not on this machine.

    Args:
        name: a folder, or a name on the hub such as Qwen/Qwen3-4B.
        revision: commit, branch or tag of the hub's repository; None: its main branch.

    Raises:
        UserError: the name is neither, the hub cannot be reached, or a revision is
            given for a folder.
    """
    folder = _folder_without_revision(name, revision)
    return folder if folder is not None else _download(name, revision)


def find_model(name: str, revision: str | None = None) -> Path | None:
    """Return a model's folder if it is on this machine, else None; no network.

    Raises UserError where a revision is given for a folder.
    """
    from huggingface_hub.errors import HFValidationError, LocalEntryNotFoundError

    folder = _folder_without_revision(name, revision)
    if folder is not None:
        return folder
    try:
        return _snapshot(name, revision, local_files_only=True)
    except (LocalEntryNotFoundError, HFValidationError):
        return None


def local_folder(name: str) -> Path | None:
    """Return the folder `name` if there is one, with `~` for the user's home."""
    try:
        folder = Path(name).expanduser()
        return folder if name and folder.is_dir() else None
    except (OSError, RuntimeError):  # a name too long for a path; an unknown ~user
        return None


def check_folder(folder: Path, *, role: str) -> None:
    """Raise UserError unless a folder is a whole safetensors model with a tokenizer."""
    try:
        if not folder.is_dir():
            raise UserError(f"{folder}: no such folder")
        if (folder / ADAPTER).is_file():
            raise UserError(
                f"{folder / ADAPTER}: an adapter, which engines and learner would not"
                " read alike; merge it into the model's weights, and give that folder"
            )
        # Refused by name: transformers would ask for trust_remote_code, which is no way
        # out here.
        if "auto_map" in read_config(folder):
            raise UserError(
                f"{folder / CONFIG}: `auto_map` asks for code that came with the"
                " model; it is never run (trust_remote_code is off); use a model that"
                " transformers knows"
            )
        tensor_facts(folder)
        if not (folder / "tokenizer.json").is_file():
            raise UserError(
                f"{folder}: no tokenizer.json; save the model's tokenizer beside it"
            )
    except UserError as error:
        raise UserError(f"{role}: {error}") from None


def _folder_without_revision(name: str, revision: str | None) -> Path | None:
    folder = local_folder(name)
    if folder is not None and revision is not None:
        raise UserError(
            f"{name}: revision={revision} has no effect on a folder of this machine;"
            " leave it out, or give the model's name on the hub"
        )
    return folder


def _download(name: str, revision: str | None) -> Path:
    from httpx import HTTPError
    from huggingface_hub.errors import (
        GatedRepoError,
        HFValidationError,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    try:
        return _snapshot(name, revision, local_files_only=False)
    except HFValidationError:
        raise UserError(
            f"{name}: no such folder, and no name the hub could have"
        ) from None
    # A GatedRepoError is a RepositoryNotFoundError too, and both are OSErrors: the
    # order decides which message the user reads.
    except GatedRepoError:
        raise UserError(
            f"{name}: the hub wants its terms accepted first; do so on the model's"
            " page, then `hf auth login`"
        ) from None
    except RepositoryNotFoundError:
        raise UserError(
            f"{name}: no such folder, and the hub knows no such model; check the"
            " spelling, or log in with `hf auth login` if it is private"
        ) from None
    except RevisionNotFoundError:
        raise UserError(
            f"{name}: the hub knows the model, but not its revision={revision}; give a"
            " commit, branch or tag of its page, or leave it out"
        ) from None
    except (HTTPError, OSError) as error:
        at = f" at revision={revision}" if revision is not None else ""
        raise UserError(
            f"{name}: no such folder, not in the local hub cache{at}, and the hub"
            f" cannot be reached ({type(error).__name__}); go online, or give the path"
            " of a folder"
        ) from None


def _snapshot(name: str, revision: str | None, *, local_files_only: bool) -> Path:
    from huggingface_hub import snapshot_download

    folder = snapshot_download(
        name,
        revision=revision,
        allow_patterns=HUB_PATTERNS,
        local_files_only=local_files_only,
    )
    return Path(folder)


__all__ = ["check_folder", "find_model", "local_folder", "resolve_model"]
