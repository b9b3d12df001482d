"""The pages that people open: they need nothing but this gateway, and leak nothing; and what Prometheus reads."""

import gzip
import re
from pathlib import Path

import httpx2
import pytest

from api.app import create_app
from api.page import PAGES
from shared.counters import Counted, count_apart
from shared.database import Database
from shared.settings import Settings
from tests.api.rest.served import Served, problem

ROUTER = Path(__file__).parents[3] / "dashboard" / "src" / "app" / "router.tsx"
SCRIPT = "console.log('an asset')" * 100


@pytest.fixture
def built(tmp_path: Path) -> Path:
    """What a build leaves: a document, a script with its compressed twin, a stylesheet."""
    (tmp_path / "assets").mkdir()
    (tmp_path / "index.html").write_text("<!doctype html><title>built</title>")
    (tmp_path / "assets" / "index-abc.js").write_text(SCRIPT)
    (tmp_path / "assets" / "index-abc.js.gz").write_bytes(gzip.compress(SCRIPT.encode()))
    (tmp_path / "assets" / "index-abc.css").write_text("body {}")
    (tmp_path / "secret.js").write_text("outside")
    return tmp_path


def served_from(static: Path, settings: Settings) -> Served:
    return Served(settings, create_app(settings, static=static))


def test_every_page_of_the_dashboard_is_the_one_document_without_a_token(
    built: Path, sqlite_settings: Settings
) -> None:
    with served_from(built, sqlite_settings) as served:
        client = served.client(None)
        for path in PAGES:
            response = client.get(path.replace("{number}", "7"))
            assert "<title>built" in response.text
            assert response.headers["cache-control"] == "no-cache"
            policy = response.headers["content-security-policy"]
            assert "default-src 'none'; script-src 'self'" in policy
            assert "unsafe" not in policy


def test_pages_are_those_that_the_dashboards_router_knows() -> None:
    names = {path.split("/")[1] for path in PAGES if path != "/"}
    assert names == set(re.findall(r"first === '(\w+)'", ROUTER.read_text()))


def test_an_address_that_is_no_page_shows_a_visitor_the_dashboard_and_a_program_the_problem(
    built: Path, sqlite_settings: Settings
) -> None:
    visit = {"Accept": "text/html,application/xhtml+xml,*/*;q=0.8"}
    with served_from(built, sqlite_settings) as served:
        client = served.client()
        for path in ("/nonsense", "/jobs/8/", "/jobs/8/log", "/.git/config"):
            response = client.get(path, headers=visit)
            assert response.status_code == 404, path
            assert "<title>built" in response.text
            assert response.headers["cache-control"] == "no-cache"
            problem(client.get(path), 404, "not_found")
            problem(client.post(path, headers=visit), 404, "not_found")
        for path in ("/api/v1/nonsense", "/api/v1/training-jobs/999", "/assets/gone-1.js"):
            problem(client.get(path, headers=visit), 404, "not_found")


def test_an_asset_is_kept_for_long_and_comes_compressed_where_that_is_taken(
    built: Path, sqlite_settings: Settings
) -> None:
    with served_from(built, sqlite_settings) as served:
        client = served.client(None)
        for encodings, sent in (("gzip", "gzip"), ("identity", None)):
            response = client.get("/assets/index-abc.js", headers={"Accept-Encoding": encodings})
            assert response.text == SCRIPT
            assert response.headers.get("content-encoding") == sent
            assert response.headers["content-type"].startswith("text/javascript")
            assert "immutable" in response.headers["cache-control"]
        assert client.get("/assets/index-abc.css").headers["content-type"].startswith("text/css")


def test_nothing_but_assets_is_given_away(built: Path, sqlite_settings: Settings) -> None:
    with served_from(built, sqlite_settings) as served:
        client = served.client(None)
        problem(client.get("/assets/gone-1.js"), 404, "not_found")
        for path in ("/assets/..%2fsecret.js", "/assets/%2e%2e/secret.js", "/assets/.hidden.js", "/secret.js"):
            response = client.get(path)
            assert response.status_code in (404, 422), path
            assert "outside" not in response.text


def test_without_a_build_the_page_says_how_to_make_one_and_calls_answer(
    tmp_path: Path, sqlite_settings: Settings
) -> None:
    with served_from(tmp_path, sqlite_settings) as served:
        response = served.client(None).get("/")
        assert response.status_code == 200
        assert "make setup" in response.text
        assert served.client().get("/api/v1/training-jobs").status_code == 200
        (tmp_path / "index.html").write_text("built later")
        assert served.client(None).get("/").text == "built later"


def test_metrics_count_requests_by_route_and_not_by_id(served: Served, alice: httpx2.Client) -> None:
    for job_id in (1, 2, 3):
        alice.get(f"/api/v1/training-jobs/{job_id}")
    alice.get("/api/v1/nothing/here")
    text = alice.get("/metrics").text
    assert 'route="/api/v1/training-jobs/{job_id}",status="404"} 3.0' in text
    assert 'route="none",status="404"} 1.0' in text
    assert 'epochcast_jobs{status="queued"} 0.0' in text
    assert "epochcast_ws_subscribers 0.0" in text


def test_metrics_show_what_the_whole_fleet_has_counted(served: Served, alice: httpx2.Client) -> None:
    assert "epochcast_reaped_total 0.0" in alice.get("/metrics").text
    elsewhere = Database(served.settings.database_url.get_secret_value())
    count_apart(elsewhere, Counted.REAPED)
    elsewhere.close()
    text = alice.get("/metrics").text
    assert "epochcast_reaped_total 1.0" in text
    for what in Counted:
        assert f"# TYPE epochcast_{what}_total counter" in text
