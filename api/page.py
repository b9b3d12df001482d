"""The dashboard: the built files of `dashboard/`, or one page that says how to build them."""

from pathlib import Path
from typing import Annotated

import fastapi
from fastapi import APIRouter, Request
from starlette.responses import FileResponse, HTMLResponse, Response

from api.problems import Problem

STATIC = Path(__file__).parent / "static"
# What the dashboard's router knows (dashboard/src/app/router.tsx): each is the same document.
PAGES = ("/", "/jobs", "/jobs/{number}", "/compare", "/submit", "/fleet", "/models", "/models/{number}")

_HEADERS = {
    # Nothing but our own files: no inline script, no other site, no frame around it.
    "Content-Security-Policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; "
        "connect-src 'self' ws: wss:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    ),
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
}
# The document names the files of its own build; their names have a hash of their content.
_DOCUMENT = {**_HEADERS, "Cache-Control": "no-cache"}
_ASSET = {**_HEADERS, "Cache-Control": "public, max-age=31536000, immutable", "Vary": "Accept-Encoding"}
_KINDS = {".js": "text/javascript", ".css": "text/css", ".svg": "image/svg+xml"}

AssetName = Annotated[str, fastapi.Path(pattern=r"^[A-Za-z0-9_-][A-Za-z0-9._-]*$", max_length=200)]


def document_of(static: Path, status: int = 200) -> Response:
    """The one document of all pages; the path is its router's business."""
    index = static / "index.html"
    if not index.is_file():
        return HTMLResponse(_NOT_BUILT, status, _DOCUMENT)
    return FileResponse(index, status, _DOCUMENT)


def is_visit(request: Request) -> bool:
    """Whether somebody has typed or followed an address that is no call of the API's."""
    return (
        request.method == "GET"
        and not request.url.path.startswith(("/api/", "/assets/"))
        and "text/html" in request.headers.get("accept", "")
    )


def router_for(static: Path) -> APIRouter:
    """Routes of the files in `static`, which may be built later: they are looked for at each request."""
    router = APIRouter(include_in_schema=False)

    async def document() -> Response:
        return document_of(static)

    for path in PAGES:
        router.add_api_route(path, document)

    @router.get("/assets/{name}")
    async def asset(request: Request, name: AssetName) -> Response:
        path = static / "assets" / name
        kind = _KINDS.get(path.suffix)
        if kind is None or not path.is_file():
            raise Problem(404, "not_found", f"the dashboard has no file {name}; load the page again")
        small = path.with_name(f"{name}.gz")
        if "gzip" in request.headers.get("accept-encoding", "") and small.is_file():
            return FileResponse(small, headers=_ASSET | {"Content-Encoding": "gzip"}, media_type=kind)
        return FileResponse(path, headers=_ASSET, media_type=kind)

    return router


_NOT_BUILT = """<!doctype html>
<html lang="en">
  <head>
    <meta charset="utf-8">
    <meta name="viewport" content="width=device-width, initial-scale=1">
    <title>epochcast: the dashboard is not built</title>
    <link rel="icon" href="data:,">
  </head>
  <body>
    <h1>The dashboard is not built</h1>
    <p>The gateway runs, and everything else works: the API under <code>/api/v1</code>, the command line
      (<code>epochcast list</code>, <code>epochcast watch 1</code>) and the Python client.</p>
    <p>To build the dashboard run <code>make setup</code> in the checkout while the npm registry can be reached, or
      <code>npm ci &amp;&amp; npm run build</code> in its folder <code>dashboard/</code> (Node 22.12 or newer).
      Then load this page again; the gateway need not be started anew.</p>
  </body>
</html>
"""
