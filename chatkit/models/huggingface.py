"""The Hugging Face hub: LFS files with their SHA-256, the others with their git blob id."""

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

from chatkit.errors import Offline
from chatkit.models.transfer import HubFile, Listing, Transfer, usable_token

if TYPE_CHECKING:
    import httpx

ADDRESS = "https://huggingface.co"


@dataclass(frozen=True, slots=True)
class HuggingFace:
    """The hub, or the mirror of it that HF_ENDPOINT names."""

    endpoint: str
    token: str
    endpoint_variable: str = "HF_ENDPOINT"
    token_variable: str = "HF_TOKEN"
    datasets: bool = False

    @classmethod
    def of_user(cls, source: str, *, datasets: bool = False) -> "HuggingFace":
        """Read the variables and the token file of the hub's own tool; for data sets where not for models.

        Raises:
            Offline: HF_HUB_OFFLINE forbids the hub; the error names `source`.
        """
        if os.environ.get("HF_HUB_OFFLINE", "").upper() in ("1", "ON", "YES", "TRUE"):
            raise Offline(
                f"{source!r} is not here and HF_HUB_OFFLINE forbids to fetch it; unset it or use a local path"
            )
        return cls(os.environ.get("HF_ENDPOINT", "").rstrip("/") or ADDRESS, _token(), datasets=datasets)

    def credentials(self) -> Mapping[str, str]:
        """Return the token as a header."""
        return {"Authorization": f"Bearer {self.token}"} if self.token else {}

    def page(self, name: str) -> str:
        """Return the page of the model or data set."""
        return f"{self.endpoint}/{self._place}{name}"

    def address(self, name: str, commit: str, path: str) -> str:
        """Return where a file is downloaded from."""
        return f"{self.endpoint}/{self._place}{name}/resolve/{commit}/{quote(path)}"

    def status(self, answer: "httpx.Response") -> int:
        """Return the status as it was sent."""
        return answer.status_code

    def listing(self, transfer: Transfer, name: str, revision: str) -> Listing:
        """Return the commit, the licence and the files, all from one answer."""
        kind = "datasets" if self.datasets else "models"
        url = f"{self.endpoint}/api/{kind}/{name}/revision/{quote(revision, safe='')}"
        return _read(transfer.ask(url, blobs="true"))

    @property
    def _place(self) -> str:
        return "datasets/" if self.datasets else ""


def _token() -> str:
    """Return the hub token of this user, "" where there is none."""
    if token := usable_token(os.environ.get("HF_TOKEN", ""), "HF_TOKEN"):
        return token
    try:
        home = Path(os.environ.get("HF_HOME") or "~/.cache/huggingface").expanduser()
        path = Path(os.environ.get("HF_TOKEN_PATH") or home / "token").expanduser()
        held = path.read_text(encoding="utf-8", errors="replace")
    except (OSError, RuntimeError):  # nobody's home is RuntimeError
        return ""
    return usable_token(held, repr(str(path)))


def _read(table: dict[str, Any]) -> Listing:
    card = table.get("cardData") or {}
    tags = [tag.removeprefix("license:") for tag in table.get("tags", ()) if tag.startswith("license:")]
    licence = card.get("license") or ", ".join(tags)
    files = []
    for row in table["siblings"]:
        lfs = row.get("lfs") or {}
        blob = "" if lfs else row.get("blobId")
        files.append(HubFile.listed(row["rfilename"], row["size"], lfs.get("sha256"), blob))
    if not re.fullmatch("[0-9a-f]{40,64}", table["sha"]):
        raise ValueError(f"the commit is {table['sha'][:80]!r}")
    return Listing(table["sha"], licence if isinstance(licence, str) else ", ".join(licence), tuple(files))
