"""Weights by name: `hf://OWNER/REPOSITORY/PATH`, fetched through huggingface_hub, which is imported only when asked."""

import difflib
import logging
import re
from pathlib import Path

from ..errors import UserError
from ..processes import waiting

SCHEME = "hf://"
_NAME = re.compile(r"hf://([^/@\s]+/[^/@\s]+)(?:@([^/\s]+))?/(.+)")


def is_hub(name: object) -> bool:
    """Whether a text names a file of the hub."""
    return isinstance(name, str) and name.startswith(SCHEME)


def fetch(name: str) -> Path:
    """The local copy of `hf://OWNER/REPOSITORY[@REVISION]/PATH`, downloaded at the first time.

    It lies where huggingface_hub keeps its files (`HF_HOME`), and a copy that is there needs no network. `UserError`,
    one line, for a name that is none, a package, a network, a repository or a file that is missing.
    """
    found = _NAME.fullmatch(name)
    if not found:
        raise UserError(
            f"'{name}' names no file of the hub: give hf://OWNER/REPOSITORY/PATH, as in hf://zdaxie/SimMIM/…"
        )
    repository, revision, path = found.groups()
    try:
        import huggingface_hub
        from huggingface_hub import errors
    except ImportError as error:
        raise UserError(f"{name} needs the package huggingface_hub: pip install 'simmim-lite[hf]'") from error
    logging.getLogger("huggingface_hub").setLevel(logging.ERROR)  # its retries would come before our one line
    try:
        with waiting(f"asking the hub for {name}"):
            return Path(huggingface_hub.hf_hub_download(repository, path, revision=revision))
    except errors.LocalEntryNotFoundError as error:  # a kind of EntryNotFoundError, so it is asked for first
        why = "the hub cannot be reached, and there is no copy here; check the network, or download the file by hand"
        raise UserError(f"{name}: {why} and give its path") from error
    except errors.EntryNotFoundError as error:
        hint = _nearest(repository, revision, path)
        raise UserError(f"{name}: {repository} holds no such file{hint}; its files are listed on its page") from error
    except errors.RepositoryNotFoundError as error:
        raise UserError(
            f"{name}: the hub has no repository {repository} that is open to you; check the name"
        ) from error
    except Exception as error:  # the hub raises errors of many libraries
        text = (str(error).strip() or type(error).__name__).splitlines()[0][:200]
        raise UserError(f"{name}: cannot be fetched ({text}); check the name and the network") from error


def _nearest(repository: str, revision: str | None, path: str) -> str:
    """The name in a repository that is most like one that it does not hold; empty where nothing is or can be told."""
    import huggingface_hub

    try:
        held = huggingface_hub.list_repo_files(repository, revision=revision)
    except Exception:  # a hint is not worth a second error
        return ""
    near = difflib.get_close_matches(path, held, n=1, cutoff=0.4)
    return f": did you mean {SCHEME}{repository}/{near[0]}?" if near else ""
