"""The Hugging Face hub, by its own library: files to a repository and back; what goes wrong is one line."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TypeVar

from adatad_ds.errors import ConfigError
from adatad_ds.weights.files import first_line, is_hub_name

PREFIX = "hub:"
_Done = TypeVar("_Done")


def name_on_hub(place: str) -> str | None:
    """The `USER/NAME` of `hub:USER/NAME`; None for a path.

    Raises:
        ConfigError: what follows `hub:` is no such name.
    """
    if not place.startswith(PREFIX):
        return None
    name = place.removeprefix(PREFIX)
    if not is_hub_name(name):
        raise ConfigError(f"{place} is not a name on the Hugging Face hub; these have the form {PREFIX}USER/NAME")
    return name


def upload(files: Mapping[str, Path | bytes], name: str, *, private: bool, replace: bool) -> str:
    """Create a repository and send files to it, as one commit.

    Args:
        files: their paths here, or their contents, by their names there.
        name: `USER/NAME`.
        private: not public; False: as the hub or the organisation decides. An existing one must be so already.
        replace: it may exist; its history keeps what is replaced.

    Returns:
        Its address.

    Raises:
        ConfigError: it exists, or is public against `private`; there is no token or not a right one; or the hub
            cannot be reached.
    """
    from huggingface_hub import CommitOperationAdd, HfApi, get_token

    if get_token() is None:
        raise ConfigError(
            f"{PREFIX}{name}: there is no token of the Hugging Face hub here; log in with `hf auth login`, or set "
            "HF_TOKEN to a token with write access"
        )
    hub = HfApi()
    address = _explained(name, lambda: hub.create_repo(name, private=private or None, exist_ok=replace))
    if private and replace and not _explained(name, lambda: hub.model_info(name)).private:
        raise ConfigError(
            f"{PREFIX}{name} is public, so nothing was sent; make it private in its settings on the hub, or leave "
            "--private out"
        )
    operations = [CommitOperationAdd(path_in_repo=path, path_or_fileobj=content) for path, content in files.items()]
    try:
        _explained(name, lambda: hub.create_commit(name, operations, commit_message="Trained with adatad_ds"))
    except ConfigError as error:
        raise ConfigError(
            f"{error}. The repository was created, but without its files: push again with --replace"
        ) from error
    return str(address)


def download(name: str, files: Sequence[str]) -> Path:
    """Bring files of a repository into the hub's cache.

    Args:
        name: `USER/NAME`.
        files: their names; those that are not there are left out.

    Returns:
        The folder in the cache.

    Raises:
        ConfigError: there is no such repository, a token is needed, or the hub cannot be reached.
    """
    from huggingface_hub import snapshot_download

    return Path(_explained(name, lambda: snapshot_download(name, allow_patterns=list(files))))


def _explained(name: str, ask: Callable[[], _Done]) -> _Done:
    """What the hub answers.

    Raises:
        ConfigError: an error of the hub, or of the libraries below its own, which are many.
    """
    try:
        return ask()
    except Exception as error:
        status = getattr(getattr(error, "response", None), "status_code", 0)
        known = {
            401: "there is no such repository on the hub, or it requires another token (`hf auth login`, or HF_TOKEN)",
            403: f"the token given may not do this; it needs the right to write to {name.partition('/')[0]}'s models",
            404: "the hub has no such repository; if it is private, log in with `hf auth login`",
            409: "this repository exists already; choose another name, or add a commit to it with --replace",
        }
        reason = known.get(status, f"the Hugging Face hub cannot be reached, or refuses: {first_line(error)}")
        raise ConfigError(f"{PREFIX}{name}: {reason}") from error
