"""The plain page: it needs nothing but this gateway, and leaks nothing."""

import re
from pathlib import Path

import httpx2

from shared.counters import Counted, count_apart
from shared.database import Database
from tests.api.rest.served import Served

STATIC = Path(__file__).parents[3] / "api" / "static"


def test_the_page_and_its_files_are_served_without_a_token(served: Served) -> None:
    client = served.client(None)
    for path, kind in (("/", "text/html"), ("/static/app.js", "text/javascript"), ("/static/style.css", "text/css")):
        response = client.get(path)
        assert response.status_code == 200
        assert response.headers["content-type"].startswith(kind)
        policy = response.headers["content-security-policy"]
        assert "default-src 'none'" in policy
        assert "unsafe" not in policy


def test_the_page_loads_nothing_from_elsewhere_and_has_no_inline_code() -> None:
    for path in STATIC.iterdir():
        assert not re.search(r"(src|href|url\(|import)\s*[=(]?\s*[\"']?(https?:)?//", path.read_text()), path
    page = (STATIC / "index.html").read_text()
    assert not re.search(r"<script(?![^>]*\bsrc=)|<style|\son\w+=|\sstyle=", page)


def test_every_element_that_the_script_uses_is_on_the_page() -> None:
    page, script = (STATIC / "index.html").read_text(), (STATIC / "app.js").read_text()
    used = set(re.findall(r"element\('([\w-]+)'\)", script))
    assert used
    assert used <= set(re.findall(r'\bid="([\w-]+)"', page))


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
