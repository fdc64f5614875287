"""The web page: its routes. The page itself is the other files of this folder."""

from importlib.resources import files

from fastapi import FastAPI
from fastapi.responses import HTMLResponse, Response
from starlette.exceptions import HTTPException

_PARTS = {"js": "text/javascript", "css": "text/css"}
# The page brings its own script and style, and talks to this server only.
_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; "
    "img-src blob: data:; frame-ancestors 'none'"
)


def add_page(api: FastAPI) -> None:
    """Serve the page at `/` and its parts below `/page/`."""
    folder = files(__package__)

    @api.get("/", response_class=HTMLResponse, include_in_schema=False)
    async def page() -> Response:
        text = folder.joinpath("index.html").read_text()
        return HTMLResponse(text, headers={"Content-Security-Policy": _POLICY})

    @api.get("/page/{name}", include_in_schema=False)
    async def part(name: str) -> Response:
        kind = _PARTS.get(name.rpartition(".")[2])
        part = {part.name: part for part in folder.iterdir()}.get(name)
        if kind is None or part is None:
            raise HTTPException(404, "Not Found")
        return Response(part.read_text(), media_type=kind, headers={"Cache-Control": "no-cache"})
