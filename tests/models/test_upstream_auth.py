"""Who asks: a key, or a token made of AWS credentials; and the settings that say which."""

import base64
import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import SimpleNamespace
from urllib.parse import parse_qs, urlsplit

import pytest

from chatkit.errors import ConfigError, EngineFailed
from chatkit.models import upstream_auth
from chatkit.settings import Settings, load_settings

pytestmark = pytest.mark.anyio
ENDPOINT = "https://runtime.sagemaker.eu-west-1.amazonaws.com/endpoints/chat/openai/v1"
CANARY = "canary-secret-key"


@pytest.fixture
def aws(monkeypatch, tmp_path):
    """Nothing of the developer's AWS settings, and credentials of the test's own."""
    for name in ("AWS_PROFILE", "AWS_REGION", "AWS_DEFAULT_REGION", "AWS_SESSION_TOKEN"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "config"))
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "credentials"))
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "AKIDCANARY")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", CANARY)
    return monkeypatch


def opened(token: str) -> tuple[str, dict[str, list[str]]]:
    """Return what the token says: its address, and the fields of its query."""
    assert token.startswith("sagemaker-api-key-")
    text = base64.b64decode(token.removeprefix("sagemaker-api-key-")).decode()
    assert text.endswith("&Version=1")
    parts = urlsplit(f"https://{text}")
    return parts.netloc + parts.path, parse_qs(parts.query)


async def test_the_token_is_a_short_lived_signature_for_the_endpoints_region_without_the_secret(aws) -> None:
    headers = await upstream_auth.SageMakerToken(ENDPOINT).headers()
    place, fields = opened(headers["authorization"].removeprefix("Bearer "))
    assert place == "sagemaker.amazonaws.com/"
    assert fields["Action"] == ["CallWithBearerToken"]
    assert fields["X-Amz-Algorithm"] == ["AWS4-HMAC-SHA256"]
    assert fields["X-Amz-Credential"][0].startswith("AKIDCANARY/")
    assert fields["X-Amz-Credential"][0].endswith("/eu-west-1/sagemaker/aws4_request")
    assert fields["X-Amz-Expires"] == ["900"]
    assert fields["X-Amz-SignedHeaders"] == ["host"]
    assert len(fields["X-Amz-Signature"][0]) == 64
    assert CANARY not in str(fields)


async def test_another_secret_or_region_signs_otherwise(aws) -> None:
    keys = [SimpleNamespace(access_key="A", secret_key=secret, token="T") for secret in ("one", "two")]
    made = [opened(upstream_auth.make_token(key, region)) for key in keys for region in ("eu-west-1", "us-east-1")]
    assert len({fields["X-Amz-Signature"][0] for _, fields in made}) == 4
    assert {fields["X-Amz-Security-Token"][0] for _, fields in made} == {"T"}


async def test_the_region_comes_from_the_aws_settings_where_the_address_has_none(aws) -> None:
    with pytest.raises(ConfigError, match=r"no AWS region is set and '127\.0\.0\.1' names none; set AWS_REGION"):
        upstream_auth.SageMakerToken("http://127.0.0.1:8000/v1")
    aws.setenv("AWS_DEFAULT_REGION", "ap-south-1")
    headers = await upstream_auth.SageMakerToken("http://127.0.0.1:8000/v1").headers()
    assert (
        "/ap-south-1/sagemaker/" in opened(headers["authorization"].removeprefix("Bearer "))[1]["X-Amz-Credential"][0]
    )


async def test_without_credentials_the_next_step_is_named(aws) -> None:
    aws.delenv("AWS_ACCESS_KEY_ID")
    aws.delenv("AWS_SECRET_ACCESS_KEY")
    with pytest.raises(ConfigError, match="there are no AWS credentials; set AWS_PROFILE"):
        upstream_auth.SageMakerToken(ENDPOINT)


@pytest.mark.parametrize("url", [ENDPOINT, "http://127.0.0.1:8000/v1"])
async def test_aws_settings_that_cannot_be_read_are_named_at_the_start(aws, tmp_path, url) -> None:
    aws.setenv("AWS_PROFILE", "nowhere")
    with pytest.raises(ConfigError, match=r"AWS settings cannot be used \(The config profile \(nowhere\) could not be"):
        upstream_auth.SageMakerToken(url)
    aws.delenv("AWS_PROFILE")
    (tmp_path / "config").write_text("[default\n")
    with pytest.raises(ConfigError, match=r"AWS settings cannot be used \(Unable to parse config file: .*config\)"):
        upstream_auth.SageMakerToken(url)


async def test_new_credentials_that_have_expired_already_fail_the_request_alone(aws, tmp_path, caplog) -> None:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        aws.delenv(name)
    made = {"Version": 1, "AccessKeyId": "A", "SecretAccessKey": CANARY, "Expiration": "2020-01-01T00:00:00Z"}
    (tmp_path / "made.json").write_text(json.dumps({**made, "SessionToken": "T"}))
    (tmp_path / "config").write_text(f"[default]\ncredential_process = cat {tmp_path}/made.json\n")
    token = upstream_auth.SageMakerToken(ENDPOINT)
    with pytest.raises(EngineFailed, match="cannot be used now; try again shortly"):
        await token.headers()
    assert "the AWS credentials cannot be refreshed: RuntimeError" in caplog.text
    assert CANARY not in caplog.text


class Denying(BaseHTTPRequestHandler):
    """AWS's token service, which lends nobody the role."""

    def do_POST(self) -> None:
        body = b"<ErrorResponse><Error><Code>AccessDenied</Code><Message>no</Message></Error></ErrorResponse>"
        self.rfile.read(int(self.headers["content-length"]))
        self.send_response(403)
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        pass


async def test_a_role_that_is_not_lent_fails_the_request_alone(aws, tmp_path, caplog) -> None:
    with ThreadingHTTPServer(("127.0.0.1", 0), Denying) as server:
        threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
        aws.setenv("AWS_ENDPOINT_URL_STS", f"http://127.0.0.1:{server.server_port}")
        for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
            aws.delenv(name)
        keys = f"aws_access_key_id = A\naws_secret_access_key = {CANARY}\n"
        (tmp_path / "credentials").write_text(f"[own]\n{keys}")
        role = "role_arn = arn:aws:iam::000000000000:role/chat\nsource_profile = own\nregion = eu-west-1\n"
        (tmp_path / "config").write_text(f"[profile lent]\n{role}")
        aws.setenv("AWS_PROFILE", "lent")
        token = upstream_auth.SageMakerToken(ENDPOINT)
        with pytest.raises(EngineFailed, match="cannot be used now; try again shortly"):
            await token.headers()
        server.shutdown()
    assert "the AWS credentials cannot be refreshed: ClientError" in caplog.text


async def test_a_key_is_sent_as_it_is_and_none_is_not(aws) -> None:
    assert await upstream_auth.Key("k").headers() == {"authorization": "Bearer k"}
    assert await upstream_auth.Key().headers() == {}


def test_the_key_comes_from_a_file_and_a_given_one_goes_before_it(tmp_path) -> None:
    file = tmp_path / "key"
    file.write_text("from-file\n")
    environ = {"CHATKIT_UPSTREAM_KEY_FILE": str(file)}
    assert load_settings(environ=environ).upstream_key == "from-file"
    assert load_settings(environ={**environ, "CHATKIT_UPSTREAM_KEY": "given"}).upstream_key == "given"
    assert "from-file" not in repr(load_settings(environ=environ))
    with pytest.raises(ConfigError, match=r"upstream_key_file is .*cannot be read.*or set CHATKIT_UPSTREAM_KEY"):
        load_settings(environ={"CHATKIT_UPSTREAM_KEY_FILE": str(tmp_path / "none")})


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"engine": "openai"}, "upstream_url is '', expected an address that starts http:// or https://"),
        ({"upstream_url": "ftp://h/v1"}, "upstream_url is 'ftp://h/v1', expected an address"),
        ({"upstream_url": "http://h/v1?x=1"}, "expected an address"),
        ({"upstream_url": "http://me:canary@h/v1"}, "upstream_url is 'an address with a name or key in it'"),
        ({"upstream_key": "two words"}, r"upstream_key is Secret\('\*\*\*'\), expected a key of ASCII characters"),
        ({"upstream_context": -1}, "upstream_context is -1, expected a number from 0"),
        (
            {"engine": "openai", "upstream_url": ENDPOINT, "upstream_auth": "sagemaker"},
            "upstream_context is 0, expected the model's context, since SageMaker does not tell it",
        ),
        ({"upstream_fields": "top_k,tools"}, "upstream_fields is 'top_k,tools', expected names among top_k, "),
        ({"upstream_session_header": "x y"}, "upstream_session_header is 'x y', expected names of headers"),
        ({"upstream_session_header": "X-A,Authorization"}, "expected names of headers of your own"),
        ({"upstream_timeout_s": 0}, "upstream_timeout_s is 0.0, expected a number above 0, at most 3600"),
    ],
)
def test_a_setting_that_cannot_be_meant_is_refused_with_what_was_expected(settings, message) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        load_settings(settings, environ={})
    assert "canary" not in str(caught.value)


def test_lists_in_settings_are_read_without_their_spaces() -> None:
    made = Settings(upstream_fields=" top_k , repetition_penalty,", upstream_session_header="X-A, X-B")
    assert made.upstream_field_names == ("top_k", "repetition_penalty")
    assert made.session_headers == ("X-A", "X-B")
