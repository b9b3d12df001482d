"""Who gets in: tokens of every shape, scopes, owners, Host and Origin."""

import base64
import io
import json
import logging
import time
from typing import Any

import httpx2
import jwt
import pytest

from shared.logs import redact
from shared.settings import Settings
from tests.api.rest.served import DIGITS, Served, problem, submit

JOBS = "/api/v1/training-jobs"


def claims(**changed: Any) -> dict[str, Any]:
    now = int(time.time())
    all_claims = {"sub": "alice", "iat": now, "exp": now + 3600, "scope": "jobs:read jobs:write"} | changed
    return {name: value for name, value in all_claims.items() if value is not None}


def encoded(part: object) -> str:
    return base64.urlsafe_b64encode(json.dumps(part).encode()).rstrip(b"=").decode()


def bad_tokens(secret: str) -> dict[str, tuple[str, str]]:
    """What is wrong: the token, and the code of the answer."""

    def signed(key: str = secret, algorithm: str = "HS256", **changed: Any) -> str:
        return jwt.encode(claims(**changed), key, algorithm)

    unsigned = f"{encoded({'alg': 'none', 'typ': 'JWT'})}.{encoded(claims())}."
    huge = f"{encoded({'alg': 'HS256', 'typ': 'JWT'})}.{encoded(claims(exp=10**30))}"
    now = int(time.time())
    return {
        "alg none": (unsigned, "invalid_token"),
        "alg None": (
            unsigned.replace(encoded({"alg": "none", "typ": "JWT"}), encoded({"alg": "None"})),
            "invalid_token",
        ),
        "wrong key": (signed("another secret that is long enough, really"), "invalid_token"),
        "another algorithm": (signed(algorithm="HS384"), "invalid_token"),
        "expired": (signed(exp=now - 1, iat=now - 60), "token_expired"),
        "expires in 10^30": (signed(exp=10**30), "invalid_token"),
        "unsigned and huge": (f"{huge}.x", "invalid_token"),
        "expires never": (signed(exp=None), "invalid_token"),
        "expiry is a word": (signed(scope="jobs:read", exp=None, iat="now"), "invalid_token"),
        "lives too long": (signed(exp=now + 31 * 86_400), "invalid_token"),
        "from the future": (signed(iat=now + 600), "invalid_token"),
        "not yet": (signed(nbf=now + 600), "invalid_token"),
        "nobody's": (signed(sub=None), "invalid_token"),
        "empty owner": (signed(sub=""), "invalid_token"),
        "no token at all": ("x", "invalid_token"),
        "two parts": ("a.b", "invalid_token"),
        "too long": ("a" * 9000, "invalid_token"),
    }


def test_every_bad_token_is_401_with_a_challenge_and_without_itself(served: Served) -> None:
    assert served.settings.secret is not None
    client = served.client(None)
    for what, (token, code) in bad_tokens(served.settings.secret.get_secret_value()).items():
        response = client.get(JOBS, headers={"Authorization": f"Bearer {token}"})
        assert response.status_code == 401, what
        problem(response, 401, code)
        assert response.headers["www-authenticate"].startswith("Bearer "), what
        assert len(token) < 10 or token not in response.text, what


def test_a_request_without_token_is_401(served: Served) -> None:
    response = served.client(None).get(JOBS)
    problem(response, 401, "authentication_required")
    assert response.headers["www-authenticate"] == 'Bearer realm="epochcast"'


def test_another_kind_of_authorization_is_401_even_with_a_good_query_token(served: Served) -> None:
    client = served.client(None)
    for header in ("Basic YTpi", "Bearer", "bearertoken"):
        response = client.get(f"{JOBS}?token={served.token()}", headers={"Authorization": header})
        problem(response, 401, "invalid_token")


def test_a_token_is_taken_from_header_and_query(served: Served) -> None:
    client = served.client(None)
    assert client.get(f"{JOBS}?token={served.token()}").status_code == 200
    assert client.get(JOBS, headers={"Authorization": f"bearer {served.token()}"}).status_code == 200


def test_each_scope_opens_its_routes_only(served: Served) -> None:
    reader, writer = served.client("alice", "jobs:read"), served.client("alice", "jobs:write")
    answer = problem(reader.post(JOBS, json=DIGITS), 403, "missing_scope")
    assert "jobs:write" in answer["detail"]
    problem(writer.get(JOBS), 403, "missing_scope")
    for path in ("drain", "resume"):
        problem(writer.post(f"/api/v1/hosts/h/{path}"), 403, "missing_scope")
        problem(served.client("alice", "hosts:admin").post(f"/api/v1/hosts/h/{path}"), 404, "not_found")
    assert submit(writer)["owner"] == "alice"


def test_a_job_of_another_owner_looks_missing(served: Served, alice: httpx2.Client, bob: httpx2.Client) -> None:
    job_id = submit(alice)["job_id"]
    missing = problem(bob.get(f"{JOBS}/{job_id + 1}"), 404, "not_found")
    # The second time the owner is remembered.
    for _ in range(2):
        for rest in ("", "/events", "/logs", "/metrics", "/attempts", "/artifacts", "/artifacts/1/file"):
            problem(bob.get(f"{JOBS}/{job_id}{rest}"), 404, "not_found")
    problem(bob.get(f"{JOBS}/metrics?job_id={job_id}"), 404, "not_found")
    problem(bob.post(f"{JOBS}/{job_id}/stop"), 404, "not_found")
    foreign = problem(bob.post(f"{JOBS}/{job_id}/restart"), 404, "not_found")
    assert foreign["detail"].replace(str(job_id), "N") == missing["detail"].replace(str(job_id + 1), "N")
    assert bob.get(JOBS).json()["items"] == []
    assert bob.get(JOBS, params={"owner": "alice"}).json()["items"] == []


def test_jobs_all_sees_every_owner(served: Served, alice: httpx2.Client) -> None:
    job_id = submit(alice)["job_id"]
    operator = served.client("operator", "jobs:read", "jobs:all")
    assert operator.get(f"{JOBS}/{job_id}").json()["owner"] == "alice"
    assert [job["job_id"] for job in operator.get(JOBS, params={"owner": "alice"}).json()["items"]] == [job_id]


def test_a_remembered_token_still_expires(served: Served) -> None:
    assert served.settings.secret is not None
    now = int(time.time())
    token = jwt.encode(claims(iat=now - 10, exp=now + 2), served.settings.secret.get_secret_value(), "HS256")
    client = served.client(None)
    headers = {"Authorization": f"Bearer {token}"}
    assert client.get(JOBS, headers=headers).status_code == 200
    authenticator = served.app.state.authenticator
    later = now + 3600.0
    authenticator._clock = lambda: later
    authenticator._verifier._clock = lambda: later
    problem(client.get(JOBS, headers=headers), 401, "token_expired")


# --- Host and Origin


def test_a_foreign_host_is_refused_but_probes_are_not(served: Served) -> None:
    client = served.client()
    for host in ("evil.example", "localhost.evil.example:8000", "127.0.0.1.evil.example", ""):
        problem(client.get(JOBS, headers={"Host": host}), 400, "foreign_host")
    for path in ("/healthz", "/readyz", "/metrics"):
        assert client.get(path, headers={"Host": "10.0.0.7:8000"}).status_code == 200
    assert client.get(JOBS, headers={"Host": "LOCALHOST:1"}).status_code == 200


@pytest.mark.parametrize("auth", ["token", "none"])
def test_a_foreign_origin_is_403_on_every_method(sqlite_settings: Settings, auth: str) -> None:
    settings = sqlite_settings.model_copy(update={"auth": auth, "allowed_origins": ("https://ok.example",)})
    with Served(settings) as served:
        client = served.client()
        port = served.url.rpartition(":")[2]
        foreign = (
            "https://evil.example",
            "null",
            "http://127.0.0.1:1",
            "http://localhost.evil.example",
            "https://ok.example.evil",
        )
        for origin in foreign:
            for method in ("GET", "POST", "OPTIONS"):
                problem(client.request(method, JOBS, headers={"Origin": origin}), 403, "foreign_origin")
        own = (served.url, f"http://localhost:{port}", f"http://[::1]:{port}", "https://ok.example")
        for origin in own:
            response = client.get(JOBS, headers={"Origin": origin})
            assert response.status_code == 200
            assert response.headers["access-control-allow-origin"] == origin


def test_a_preflight_of_an_allowed_origin_is_answered(sqlite_settings: Settings) -> None:
    settings = sqlite_settings.model_copy(update={"allowed_origins": ("https://ok.example",)})
    with Served(settings) as served:
        headers = {
            "Origin": "https://ok.example",
            "Access-Control-Request-Method": "POST",
            "Access-Control-Request-Headers": "authorization,content-type,idempotency-key",
        }
        response = served.client(None).options(JOBS, headers=headers)
    assert response.status_code == 200
    assert "POST" in response.headers["access-control-allow-methods"]
    assert "access-control-allow-credentials" not in response.headers


# --- logs


def test_no_token_reaches_a_log(served: Served) -> None:
    heard = io.StringIO()
    handler = logging.StreamHandler(heard)
    logger = logging.getLogger("uvicorn.access")
    before = logger.level, logger.propagate
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    token = served.token()
    try:
        served.client(None).get(f"{JOBS}?limit=1&token={token}")
    finally:
        logger.removeHandler(handler)
        logger.setLevel(before[0])
    assert "GET" in heard.getvalue()
    assert token not in redact(heard.getvalue())


@pytest.mark.parametrize(
    ("line", "shown"),
    [
        ("GET /x?token=abc.def&after=1-2 HTTP/1.1", "GET /x?token=[redacted]&after=1-2 HTTP/1.1"),
        ("GET /x?a=1&TOKEN=abc HTTP", "GET /x?a=1&TOKEN=[redacted] HTTP"),
        ("Authorization: Bearer abc", "Authorization: Bearer [redacted]"),
        ("Sec-WebSocket-Protocol: Bearer, abc", "Sec-WebSocket-Protocol: Bearer, [redacted]"),
        ("oops eyJhbGciOiJI.eyJzdWIi.c2ln end", "oops [redacted] end"),
        ("a tokenizer=fast and bearers of news", "a tokenizer=fast and bearers of news"),
    ],
)
def test_redaction(line: str, shown: str) -> None:
    assert redact(line) == shown
