"""The DynamoDB table: how it is made, what is missing and who is told, and the permissions that the store needs."""

import asyncio
import json
import re
import sys
from collections import Counter

import pytest

from chatkit import wiring
from chatkit.errors import ConfigError, MissingExtra, StoreFailed
from chatkit.protocols import Outcome
from chatkit.sessions.dynamodb import DynamoDBStore
from chatkit.sessions.key_shelves import DynamoDBKeys
from chatkit.sessions.session_keys import WrappedKey
from chatkit.sessions.table import Table
from chatkit.settings import load_settings
from chatkit.types import Owner
from tests.faults.proxy import refusal
from tests.serving import ROOT
from tests.sessions.dynamodb.parts import DONE, OWNER, new

pytestmark = pytest.mark.anyio
POLICIES = ROOT / "docs" / "policies"


async def test_a_table_that_is_not_there_is_named_with_the_command_that_makes_it_to_the_operator_alone(
    dynamodb, table, store, caplog
) -> None:
    with pytest.raises(ConfigError) as caught:
        DynamoDBStore("no-such-table", endpoint=dynamodb)
    command = f"chatkit sessions create-table --dynamodb-table no-such-table --dynamodb-endpoint {dynamodb}"
    assert str(caught.value) == f"the DynamoDB table 'no-such-table' does not exist; run: {command}"
    store._table.client.delete_table(TableName=table)
    caplog.clear()
    with pytest.raises(StoreFailed) as failed:
        await store.accept(new())
    assert str(failed.value) == "the session store is not set up; the operator's log says why"
    (record,) = caplog.records
    assert record.getMessage() == str(caught.value).replace("no-such-table", table)


async def test_a_table_is_made_once_by_however_many_and_has_the_keys_it_needs(dynamodb) -> None:
    tables = [Table("raced-for", endpoint=dynamodb) for _ in range(4)]
    try:
        created = await asyncio.gather(*(asyncio.to_thread(table.create) for table in tables))
        assert sorted(created) == [False, False, False, True]
        made = tables[0].client.describe_table(TableName="raced-for")["Table"]
        assert made["BillingModeSummary"]["BillingMode"] == "PAY_PER_REQUEST"
        assert [key["AttributeName"] for key in made["KeySchema"]] == ["pk", "sk"]
        (index,) = made["GlobalSecondaryIndexes"]
        assert (index["IndexName"], index["Projection"]) == ("by-owner", {"ProjectionType": "KEYS_ONLY"})
    finally:
        for table in tables:
            table.close()


async def test_a_table_with_other_keys_is_refused(dynamodb) -> None:
    other = Table("other-keys", endpoint=dynamodb)
    try:
        other.client.create_table(
            TableName="other-keys",
            AttributeDefinitions=[{"AttributeName": "SessionId", "AttributeType": "S"}],
            KeySchema=[{"AttributeName": "SessionId", "KeyType": "HASH"}],
            BillingMode="PAY_PER_REQUEST",
        )
        for refused in (other.create, other.check):
            with pytest.raises(ConfigError, match="'other-keys' has other keys than sessions need"):
                refused()
    finally:
        other.close()


async def test_what_is_missing_of_the_aws_settings_is_said_in_one_line(dynamodb, table, monkeypatch) -> None:
    settings = load_settings({"store": "dynamodb", "dynamodb_table": table, "dynamodb_endpoint": dynamodb})
    with monkeypatch.context() as patch:
        patch.delenv("AWS_DEFAULT_REGION")
        with pytest.raises(ConfigError, match=r"no AWS region is set .* set CHATKIT_DYNAMODB_REGION"):
            wiring.open_store(settings)
        patch.setenv("AWS_REGION", "eu-central-1")
        wiring.open_store(settings).close()
    with monkeypatch.context() as patch:
        patch.delenv("AWS_ACCESS_KEY_ID")
        patch.delenv("AWS_SECRET_ACCESS_KEY")
        with pytest.raises(ConfigError, match=r"no AWS credentials were found .* set AWS_PROFILE, or"):
            wiring.open_store(settings)
    with monkeypatch.context() as patch:
        patch.setenv("AWS_PROFILE", "nobody")
        with pytest.raises(ConfigError, match="ProfileNotFound"):
            wiring.open_store(settings)
    with monkeypatch.context() as patch:
        patch.setitem(sys.modules, "boto3", None)
        with pytest.raises(MissingExtra, match=r"pip install 'chatkit\[aws\]'"):
            wiring.open_store(settings)


async def test_a_refused_permission_and_a_dead_server_are_named_when_the_store_is_opened(
    proxy, table, dynamodb
) -> None:
    proxy.meddle = lambda *_: refusal("AccessDeniedException")
    with pytest.raises(ConfigError, match=r"AWS refused .*AccessDeniedException.*docs/sessions\.md"):
        DynamoDBStore(table, endpoint=proxy.address)
    with pytest.raises(StoreFailed, match=r"at http://127\.0\.0\.1:9 is out of reach: .*check dynamodb_region"):
        DynamoDBStore(table, endpoint="http://127.0.0.1:9")
    with pytest.raises(StoreFailed, match=r"at http://127\.0\.0\.1:9 is out of reach: .*check dynamodb_region"):
        wiring.create_table(load_settings({"dynamodb_endpoint": "http://127.0.0.1:9"}))


def expiry_of(table: Table) -> dict:
    return table.client.describe_time_to_live(TableName=table.name)["TimeToLiveDescription"]


@pytest.fixture
def bare(dynamodb, table):
    """A table that nothing expires in yet."""
    made = Table(table, endpoint=dynamodb)
    yield made
    made.close()


async def test_creating_the_table_lets_what_has_expired_be_removed_and_doing_it_again_changes_nothing(
    dynamodb, bare
) -> None:
    settings = load_settings({"dynamodb_table": bare.name, "dynamodb_endpoint": dynamodb})
    assert expiry_of(bare)["TimeToLiveStatus"] == "DISABLED"
    assert wiring.create_table(settings) is False
    assert expiry_of(bare) == {"TimeToLiveStatus": "ENABLED", "AttributeName": "expires_at"}
    sent = Counter()
    bare.client.meta.events.register("before-call.dynamodb.*", lambda model, **_: sent.update([model.name]))
    assert bare.expire() is False
    assert sent == {"DescribeTimeToLive": 1}


async def test_expiry_that_somebody_else_switched_on_a_moment_ago_is_no_error(proxy, bare) -> None:
    raced = Table(bare.name, endpoint=proxy.address)

    def first(operation, forward):
        if operation != "UpdateTimeToLive":
            return forward()
        bare.expire()
        return refusal("ValidationException")  # as AWS answers: TimeToLive is already enabled

    proxy.meddle = first
    try:
        assert raced.expire() is False
        proxy.meddle = lambda operation, forward: forward()
        assert raced.expire() is False
    finally:
        raced.close()
    assert expiry_of(bare)["TimeToLiveStatus"] == "ENABLED"


async def test_expiry_that_cannot_be_switched_on_is_an_error_and_one_by_another_attribute_names_it(proxy, bare) -> None:
    late = Table(bare.name, endpoint=proxy.address)
    proxy.meddle = lambda operation, forward: refusal("ValidationException") if "Update" in operation else forward()
    try:
        with pytest.raises(StoreFailed, match="is out of reach"):
            late.expire()
    finally:
        late.close()
    other = {"Enabled": True, "AttributeName": "ttl"}
    bare.client.update_time_to_live(TableName=bare.name, TimeToLiveSpecification=other)
    with pytest.raises(ConfigError, match="removes items by their 'ttl', expected 'expires_at'"):
        bare.expire()


async def test_a_store_creates_its_table_when_a_setting_says_so_and_several_at_once_share_it(dynamodb) -> None:
    place = {"store": "dynamodb", "dynamodb_table": "made-on-demand", "dynamodb_endpoint": dynamodb}
    with pytest.raises(ConfigError, match="does not exist; run: chatkit sessions create-table"):
        wiring.open_store(load_settings(place))
    settings = load_settings(place | {"dynamodb_create_table": True})
    stores = await asyncio.gather(*(asyncio.to_thread(wiring.open_store, settings) for _ in range(4)))
    try:
        assert (await stores[0].accept(new())).ticket.seq == 1
        assert len(await stores[3].load(OWNER, "my-session", limit=9)) == 1
    finally:
        for store in stores:
            store.close()


def allowed(name: str) -> set[tuple[str, str]]:
    """Return the operations that a policy of the docs allows, each with the last part of what it is allowed on."""
    policy = json.loads((POLICIES / name).read_text())
    statements = [(row["Action"], row["Resource"], row["Effect"]) for row in policy["Statement"]]
    assert {effect for _, _, effect in statements} == {"Allow"}
    return {
        (action.removeprefix("dynamodb:"), resource.rpartition("/")[2])
        for actions, resources, _ in statements
        for resource in ([resources] if isinstance(resources, str) else resources)
        for action in ([actions] if isinstance(actions, str) else actions)
    }


def used(store_or_table, name: str = "chatkit") -> set[tuple[str, str]]:
    """Return the set that the operations of a client are added to from now on, as a policy names them."""
    asked: set[tuple[str, str]] = set()

    def note(model, params, **_) -> None:
        body = json.loads(params["body"])
        place = body.get("IndexName", name)
        if model.name == "TransactWriteItems":
            names = {"Put": "PutItem", "Update": "UpdateItem", "Delete": "DeleteItem", "ConditionCheck": None}
            kinds = [kind for action in body["TransactItems"] for kind in action]
            asked.update((names[kind] or "ConditionCheckItem", place) for kind in kinds)
        else:
            asked.add((model.name, place))

    table = getattr(store_or_table, "_table", store_or_table)
    table.client.meta.events.register("before-call.dynamodb.*", note)
    return asked


async def test_the_policy_of_the_service_allows_what_the_store_calls_and_nothing_else(store, clock) -> None:
    asked = used(store)
    store._table.check()
    for number in (1, 2, 3):
        ticket = (await store.accept(new(number, after=number - 1))).ticket
        await store.renew(ticket)
        await store.finish(ticket, DONE)
    await store.load(OWNER, "my-session", limit=9)
    assert (await store.accept(new(2, after=3))).repeat.seq == 2
    aborted = (await store.accept(new(4, after=3))).ticket
    await store.finish(aborted, Outcome("aborted", "aborted", "H"))
    assert (await store.accept(new(4, after=4))).ticket.attempt == 2
    turns = await store.page(OWNER, "my-session", limit=3)
    assert len((await store.sessions(OWNER, limit=9)).sessions) == 1
    await store.restore(Owner(user="heir"), "my-session", turns, expires_at=None)
    await store.delete(OWNER, "my-session")
    assert await store.purge(Owner(user="heir")) == 1
    await store.purge(OWNER, closed_s=0)
    assert asked == allowed("chatkit-runtime.json")


async def test_the_policy_for_creating_the_tables_allows_what_that_calls_and_nothing_else(dynamodb) -> None:
    asked = set()
    for name in ("chatkit", "chatkit-keys"):
        table = Table(f"{name}-by-policy", endpoint=dynamodb)
        calls = used(table, name)
        try:
            assert (table.create(), table.expire()) == (True, True)
        finally:
            table.close()
        asked |= calls
    assert asked == allowed("chatkit-create-table.json")


def test_the_policy_of_the_keys_allows_what_keeping_them_calls_and_nothing_else(dynamodb, table) -> None:
    keys = DynamoDBKeys(table, endpoint=dynamodb)
    asked = used(keys, "chatkit-keys")
    try:
        keys._table.check()
        first, second = WrappedKey(b"first"), WrappedKey(b"second")
        keys.swap("owner", "session", None, first)
        assert keys.get("owner", "session") == first
        keys.swap("owner", "session", first, second)
        keys.swap("owner", "session", second, None)
        keys.put("owner", "session", first)
        keys.clear("owner")
        assert keys.get("owner", "session") is None
    finally:
        keys.close()
    assert asked == allowed("chatkit-keys-runtime.json")
    section = (POLICIES.parent / "encryption.md").read_text().split("on the `-keys` table")[1].split("\n## ")[0]
    assert set(re.findall(r"`dynamodb:(\w+)`", section)) == {action for action, _ in asked}
    assert "policies/chatkit-keys-runtime.json" in section


def test_the_page_lists_the_permissions_of_both_policies() -> None:
    section = (POLICIES.parent / "sessions.md").read_text().split("### Permissions")[1].split("\n## ")[0]
    service, _, creating = section.partition("`create-table`")
    for name, text in (("chatkit-runtime.json", service), ("chatkit-create-table.json", creating)):
        assert f"policies/{name}" in section
        assert set(re.findall(r"`dynamodb:(\w+)`", text)) == {action for action, _ in allowed(name)}
