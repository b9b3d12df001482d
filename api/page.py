"""The plain page at `/`, until there is a dashboard: it runs the document's JavaScript on a job."""

from pathlib import Path

from fastapi import APIRouter
from starlette.responses import FileResponse

router = APIRouter(include_in_schema=False)

_STATIC = Path(__file__).parent / "static"
_HEADERS = {
    # Nothing but our own files: no inline script, no other site, no frame around it.
    "Content-Security-Policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; "
        "connect-src 'self' ws: wss:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    ),
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-cache",
}


@router.get("/")
async def index() -> FileResponse:
    return FileResponse(_STATIC / "index.html", headers=_HEADERS)


@router.get("/static/app.js")
async def script() -> FileResponse:
    return FileResponse(_STATIC / "app.js", headers=_HEADERS, media_type="text/javascript")


@router.get("/static/style.css")
async def style() -> FileResponse:
    return FileResponse(_STATIC / "style.css", headers=_HEADERS)
