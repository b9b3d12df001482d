"""Tokens: what is accepted, and that everything else is refused with a clean error."""

import base64
import contextlib
import hmac
import json
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import jwt
import pytest
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from hypothesis import given
from hypothesis import strategies as st

from shared import tokens
from shared.settings import Settings
from shared.tokens import ExpiredToken, InvalidToken, KeysUnavailable, NoKeys, TokenError, Verifier

SECRET = "s" * 32
NOW = 1_800_000_000.0
DAY = 86_400
CHECKOUT = Path(__file__).parents[2]


def verifier(now: float = NOW, **settings: Any) -> Verifier:
    return Verifier(Settings.model_validate({"secret": SECRET, **settings}), clock=lambda: now)


def signed(key: Any = SECRET, algorithm: str | None = "HS256", **claims: Any) -> str:
    times = {"sub": "alice", "iat": int(NOW), "exp": int(NOW) + DAY, "scope": "jobs:read"}
    content = {name: value for name, value in {**times, **claims}.items() if value is not ...}
    return jwt.encode(content, key, algorithm=algorithm)


def with_raw_payload(payload: str) -> str:
    """Signed correctly over bytes that no JSON library would write."""
    return jwt.api_jws.encode(payload.encode(), SECRET, algorithm="HS256")


def test_created_token_names_owner_scopes_and_expiry() -> None:
    token = tokens.create("alice", ["jobs:read", "jobs:all"], days=2, secret=SECRET, clock=lambda: NOW)
    identity = verifier().verify(token)
    assert identity.owner == "alice"
    assert identity.scopes == {"jobs:read", "jobs:all"}
    assert identity.expires_at == NOW + 2 * DAY
    assert identity.sees_all_jobs


def test_token_is_good_until_its_last_second_and_expired_from_then_on() -> None:
    token = signed(exp=int(NOW) + 10)
    assert verifier(NOW + 9.9).verify(token).owner == "alice"
    with pytest.raises(ExpiredToken, match="expired"):
        verifier(NOW + 10).verify(token)


def test_scopes_that_do_not_exist_give_nothing() -> None:
    assert verifier().verify(signed(scope="jobs:read root *")).scopes == {"jobs:read"}
    assert verifier().verify(signed(scope=...)).scopes == frozenset()


@pytest.mark.parametrize(
    "token",
    [
        pytest.param("", id="empty"),
        pytest.param("a.b.c", id="not base64"),
        pytest.param("Bearer x", id="not a token"),
        pytest.param("é\udcff.x.y", id="not ASCII"),
        pytest.param("a" * 9000, id="huge"),
        pytest.param(signed("x" * 32), id="wrong key"),
        pytest.param(signed("", None), id="alg none"),
        pytest.param(signed("k" * 64, "HS512"), id="other algorithm"),
        pytest.param(signed(SECRET + "s" * 32, "HS512"), id="HS512 with our secret"),
        pytest.param(signed(exp=...), id="no exp"),
        pytest.param(signed(iat=...), id="no iat"),
        pytest.param(signed(sub=...), id="no sub"),
        pytest.param(signed(exp=10**30), id="exp 10^30"),
        pytest.param(signed(exp=10**400), id="exp 10^400"),
        pytest.param(with_raw_payload('{"sub":"a","iat":1,"exp":1e999}'), id="exp infinite"),
        pytest.param(with_raw_payload('{"sub":"a","iat":1,"exp":NaN}'), id="exp NaN"),
        pytest.param(signed(exp=True), id="exp a bool"),
        pytest.param(signed(exp="1900000000"), id="exp a string"),
        pytest.param(signed(exp=None), id="exp null"),
        pytest.param(signed(iat=-1), id="iat negative"),
        pytest.param(signed(iat=-(10**30)), id="iat minus 10^30"),
        pytest.param(signed(exp=int(NOW) + 31 * DAY), id="lives 31 days"),
        pytest.param(signed(iat=int(NOW) + 60), id="issued in the future"),
        pytest.param(signed(nbf=int(NOW) + 60), id="not valid yet"),
        pytest.param(signed(nbf=10**30), id="nbf 10^30"),
        pytest.param(signed(nbf="x"), id="nbf a string"),
        pytest.param(signed(sub=""), id="sub empty"),
        pytest.param(signed(sub=5), id="sub a number"),
        pytest.param(signed(sub="a" * 201), id="sub too long"),
        pytest.param(signed(sub="a\nb"), id="sub with a line break"),
        pytest.param(signed(sub="a\x00"), id="sub with NUL"),
        pytest.param(signed(sub="\ud800"), id="sub a lone surrogate"),
        pytest.param(signed(scope=7), id="scope a number"),
        pytest.param(signed(scope=["jobs:read", 3]), id="scope a mixed list"),
        pytest.param(with_raw_payload("[]"), id="payload a list"),
        pytest.param(with_raw_payload("[" * 6000), id="payload deeply nested"),
    ],
)
def test_wrong_token_is_refused_with_one_clean_error(token: str) -> None:
    with pytest.raises(InvalidToken) as refusal:
        verifier().verify(token)
    assert SECRET not in str(refusal.value)


@given(st.text(max_size=300))
def test_no_text_makes_verify_fail_otherwise(text: str) -> None:
    with pytest.raises(TokenError):
        verifier().verify(text)


@given(
    st.dictionaries(
        st.sampled_from(["sub", "exp", "iat", "nbf", "scope", "aud"]),
        st.from_type(type(None)) | st.integers() | st.text() | st.booleans() | st.floats() | st.lists(st.text()),
    )
)
def test_no_claims_make_verify_fail_otherwise(claims: dict[str, Any]) -> None:
    token = with_raw_payload(json.dumps(claims))
    with contextlib.suppress(TokenError):
        verifier().verify(token)


@pytest.mark.parametrize(
    ("sub", "scope", "days"),
    [("alice", "jobs:read", 31), ("alice", "jobs:read", 0), ("alice", "root", 1), ("", "jobs:read", 1)],
)
def test_token_that_would_be_refused_is_not_made(sub: str, scope: str, days: float) -> None:
    with pytest.raises(InvalidToken):
        tokens.create(sub, [scope], days=days, secret=SECRET)


def test_without_any_key_nothing_can_be_verified() -> None:
    with pytest.raises(NoKeys, match="EPOCHCAST_SECRET"):
        Verifier(Settings())
    with pytest.raises(NoKeys, match="EPOCHCAST_ISSUER"):
        Verifier(Settings(jwks_url="http://127.0.0.1:1/keys"))


# --- an identity provider's keys


class KeyServer:
    """Serves one RSA and one EC public key as a JWK set, on loopback."""

    def __init__(self) -> None:
        self.rsa = rsa.generate_private_key(public_exponent=65537, key_size=2048)
        self.ec = ec.generate_private_key(ec.SECP256R1())
        rsa_key = {**json.loads(jwt.algorithms.RSAAlgorithm.to_jwk(self.rsa.public_key())), "kid": "r", "use": "sig"}
        ec_key = {**json.loads(jwt.algorithms.ECAlgorithm.to_jwk(self.ec.public_key())), "kid": "e", "use": "sig"}
        body = json.dumps({"keys": [rsa_key, ec_key]}).encode()

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                self.send_response(200)
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, format: str, *args: object) -> None:
                pass

        self.server = HTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}/keys"


@pytest.fixture(scope="module")
def keys() -> Iterator[KeyServer]:
    served = KeyServer()
    thread = threading.Thread(target=served.server.serve_forever)
    thread.start()
    yield served
    served.server.shutdown()
    served.server.server_close()
    thread.join()


def provider_settings(keys: KeyServer) -> dict[str, Any]:
    return {"jwks_url": keys.url, "issuer": "https://issuer.example", "audience": "epochcast"}


def provider_token(key: Any, algorithm: str, kid: str, **claims: Any) -> str:
    content = {"sub": "bob", "iat": int(NOW), "exp": int(NOW) + DAY, "scope": "jobs:read"}
    content |= {"iss": "https://issuer.example", "aud": "epochcast"}
    return jwt.encode({**content, **claims}, key, algorithm=algorithm, headers={"kid": kid})


def test_tokens_of_the_identity_provider_are_accepted_beside_our_own(keys: KeyServer) -> None:
    both = verifier(**provider_settings(keys))
    assert both.verify(provider_token(keys.rsa, "RS256", "r")).owner == "bob"
    assert both.verify(provider_token(keys.ec, "ES256", "e")).owner == "bob"
    assert both.verify(signed()).owner == "alice"


def test_tokens_for_another_audience_issuer_or_key_are_refused(keys: KeyServer) -> None:
    both = verifier(**provider_settings(keys))
    other = rsa.generate_private_key(public_exponent=65537, key_size=2048)
    for token in (
        provider_token(keys.rsa, "RS256", "r", aud="somebody else"),
        provider_token(keys.rsa, "RS256", "r", iss="https://evil.example"),
        provider_token(other, "RS256", "r"),
        provider_token(keys.rsa, "RS256", "unknown"),
        provider_token(keys.rsa, "RS256", "r", exp=int(NOW) + 31 * DAY),
    ):
        with pytest.raises(InvalidToken):
            both.verify(token)


def test_public_key_is_no_hmac_secret(keys: KeyServer) -> None:
    public = jwt.algorithms.RSAAlgorithm.to_jwk(keys.rsa.public_key()).encode()
    claims = signed().split(".")[1].encode()
    signed_part = base64.urlsafe_b64encode(b'{"alg":"HS256","kid":"r"}').rstrip(b"=") + b"." + claims
    signature = base64.urlsafe_b64encode(hmac.digest(public, signed_part, "sha256")).rstrip(b"=")
    forged = f"{signed_part.decode()}.{signature.decode()}"
    with pytest.raises(InvalidToken):
        verifier(secret=None, **provider_settings(keys)).verify(forged)


def test_unreachable_identity_provider_refuses_instead_of_letting_in() -> None:
    away: dict[str, Any] = {"jwks_url": "http://127.0.0.1:9/keys", "issuer": "i", "audience": "a"}
    key = ec.generate_private_key(ec.SECP256R1())
    with pytest.raises(KeysUnavailable, match="can't be fetched"):
        verifier(**away).verify(provider_token(key, "ES256", "e"))


# --- the command


def command(*arguments: str, **environment: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [sys.executable, "-m", "shared.tokens", *arguments],
        cwd=CHECKOUT,
        env={"PATH": "/usr/bin:/bin", **environment},
        capture_output=True,
        text=True,
        timeout=60,
    )


def test_command_prints_a_token_that_verifies() -> None:
    made = command("create", "--sub", "alice", "--scope", "hosts:admin", "--days", "1", EPOCHCAST_SECRET=SECRET)
    assert made.returncode == 0, made.stderr
    assert verifier(time.time()).verify(made.stdout.strip()).scopes == {"hosts:admin"}


def test_command_uses_the_secret_of_a_local_platform(tmp_path: Path) -> None:
    (tmp_path / "secret").write_text(SECRET + "\n")
    made = command("create", "--sub", "alice", "--data-dir", str(tmp_path), "--json")
    assert verifier(time.time()).verify(json.loads(made.stdout)["token"]).owner == "alice"


@pytest.mark.parametrize(
    "arguments", [["--days", "40"], ["--days", "nan"], ["--scope", "root"], ["--data-dir", "/nowhere"]]
)
def test_command_refuses_in_one_line(arguments: list[str]) -> None:
    environment = {} if "--data-dir" in arguments else {"EPOCHCAST_SECRET": SECRET}
    refused = command("create", "--sub", "alice", *arguments, **environment)
    assert refused.returncode == 2
    assert refused.stderr.startswith("epochcast token: ")
    assert refused.stderr.count("\n") == 1
