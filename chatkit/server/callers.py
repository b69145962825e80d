"""Who calls: the owner whose sessions the caller uses, and what it may do. DESIGN §2.15."""

import re
from dataclasses import dataclass, replace

from chatkit.errors import Forbidden, InvalidRequest
from chatkit.types import Owner

CHAT, SESSIONS, DELEGATE, METRICS = SCOPES = ("chat", "sessions", "delegate", "metrics")
DEFAULT_SCOPES = frozenset({CHAT, SESSIONS})
# Characters of a name: two of them and a session's id, percent-encoded, fit a key of DynamoDB.
LONGEST_NAME = 64
# What the service calls owners that nobody has named, see `types.Owner` and `nameless`; nobody else gets these names.
_RESERVED = re.compile(r"anonymous|key(-[0-9a-f]{32})?")


@dataclass(frozen=True, slots=True)
class Caller:
    """The sender of one request.

    Attributes:
        owner: whose sessions are meant.
        scopes: those of SCOPES that the caller has.
        named: somebody has named the owner. Behind one that is not may stand any number of people, so each of its
            sessions is open to those who know its id alone, and all of them together to nobody.
    """

    owner: Owner
    scopes: frozenset[str]
    named: bool = False

    def require(self, scope: str) -> None:
        """Refuse a caller without a scope.

        Raises:
            Forbidden: naming it.
        """
        if scope not in self.scopes:
            raise Forbidden(f"this takes a key with the scope {scope!r}, which yours has not; ask the operator for one")

    def acting_for(self, user: str | None, field: str) -> "Caller":
        """Return the caller as it acts for a user of its tenant; as itself where it names none.

        Args:
            user: who is named.
            field: where that was said.

        Raises:
            Forbidden: this caller may name nobody.
            InvalidRequest: the name can be no user's.
        """
        if user is None:
            return self
        if DELEGATE not in self.scopes:
            raise Forbidden(f"{field} names a user, which takes a key with the scope {DELEGATE!r}; leave it out")
        wrong = problem_of(user)
        if wrong:
            raise InvalidRequest(f"{field} is {user[: LONGEST_NAME + 8]!r}, {wrong}")
        return replace(self, owner=Owner(self.owner.tenant, user), named=True)

    def require_name(self, what: str) -> None:
        """Refuse an owner that nobody has named.

        Raises:
            Forbidden: saying how to be a named one.
        """
        if self.named:
            return
        step = "say for whom with ?user=NAME" if DELEGATE in self.scopes else "ask the operator for a key with a user"
        raise Forbidden(f"{what} is for named users: others who share this access would be concerned too; {step}")


def nameless(tenant: str, digest: bytes) -> Owner:
    """Return the owner behind a key that no user is named for, by the SHA-256 of the key."""
    return Owner(tenant, f"key-{digest.hex()[:32]}")


def problem_of(name: str, *, reserved: bool = True) -> str:
    """Return what is wrong with a user's or a tenant's name, "" where nothing is.

    Args:
        reserved: names that the service gives itself are wrong.
    """
    if not (1 <= len(name) <= LONGEST_NAME and name.isprintable()):
        return f"expected 1 to {LONGEST_NAME} characters that print"
    if name != name.strip():
        return "expected no space around it"
    return "which the service calls owners without a name; choose another" if reserved and _is_reserved(name) else ""


def _is_reserved(name: str) -> bool:
    return _RESERVED.fullmatch(name) is not None
