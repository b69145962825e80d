"""ModelScope's hub: every file with its SHA-256, answers in envelopes, and `master` where others have `main`."""

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

from chatkit.models.transfer import HubFile, Listing, Transfer, usable_token

if TYPE_CHECKING:
    import httpx

ADDRESS = "https://modelscope.cn"
# The hub cuts a listing off here without a word: REPO_FILES_TRUNCATION_LIMIT in its own client, modelscope-hub 0.5.1.
MOST_LISTED = 3000
# Codes of the envelope, and the status that each stands for: no such repository, no files at that revision, no access,
# a token that is wrong. They come with status 404 or 200.
_CODES = {10010205001: 404, 10990101004: 404, 10010200001: 403, 10010103009: 401}


@dataclass(frozen=True, slots=True)
class ModelScope:
    """The hub, or the one that MODELSCOPE_ENDPOINT names."""

    endpoint: str
    token: str
    endpoint_variable: str = "MODELSCOPE_ENDPOINT"
    token_variable: str = "MODELSCOPE_API_TOKEN"

    @classmethod
    def of_user(cls, source: str) -> "ModelScope":
        """Read the variables of the hub's own client; where that keeps a login is a pickle, which is never read."""
        endpoint = os.environ.get("MODELSCOPE_ENDPOINT", "").strip()
        if not endpoint and (domain := os.environ.get("MODELSCOPE_DOMAIN", "").strip()):
            endpoint = domain if "://" in domain else f"https://{domain}"
        token = usable_token(os.environ.get("MODELSCOPE_API_TOKEN", ""), "MODELSCOPE_API_TOKEN")
        return cls(endpoint.rstrip("/") or ADDRESS, token)

    def credentials(self) -> Mapping[str, str]:
        """Return the token twice, as the hub's own client sends it: older paths read the cookie, newer the header."""
        if not self.token:
            return {}
        return {"Authorization": f"Bearer {self.token}", "Cookie": f"m_session_id={self.token}"}

    def page(self, name: str) -> str:
        """Return the model's page."""
        return f"{self.endpoint}/models/{name}"

    def address(self, name: str, commit: str, path: str) -> str:
        """Return where a file is downloaded from."""
        return f"{self._repository(name)}/repo?Revision={commit}&FilePath={quote(path, safe='')}"

    def status(self, answer: "httpx.Response") -> int:
        """Return what the envelope says: failures come with status 404 for different reasons, or with 200."""
        try:
            table = answer.json()
        except (ValueError, RecursionError):
            return answer.status_code
        code = table.get("Code") if isinstance(table, dict) else None
        if not isinstance(code, int) or code == 200:
            return answer.status_code
        return _CODES.get(code, code if answer.status_code == 200 else answer.status_code)

    def listing(self, transfer: Transfer, name: str, revision: str) -> Listing:
        """Return the commit, the licence and the files, from an answer each."""
        url = self._repository(name)
        licence = transfer.ask(url)["Data"].get("License") or ""
        commit = self._commit(transfer, url, revision)
        rows = transfer.ask(f"{url}/repo/files", Revision=commit, Recursive="true")["Data"]["Files"]
        files = tuple(_file(row) for row in rows if row["Type"] != "tree")
        return Listing(commit, licence if isinstance(licence, str) else "", files, complete=len(rows) < MOST_LISTED)

    def _commit(self, transfer: Transfer, url: str, revision: str) -> str:
        if re.fullmatch("[0-9a-f]{40}", revision):
            return revision
        answer = transfer.ask(f"{url}/commits", Ref=revision, PageNumber="1", PageSize="1")
        newest = answer["Data"]["Commit"]
        if not newest:
            raise transfer.absent()
        commit = newest[0]["Id"]
        if not re.fullmatch("[0-9a-f]{40}", commit):
            raise ValueError(f"the commit is {commit[:80]!r}")
        return str(commit)

    def _repository(self, name: str) -> str:
        return f"{self.endpoint}/api/v1/models/{name}"


def _file(row: dict[str, Any]) -> HubFile:
    return HubFile.listed(row["Path"], row["Size"], row.get("Sha256"))
