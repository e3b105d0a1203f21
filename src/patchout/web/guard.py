"""Access to the server: a secret token in the path, and requests from its own page alone."""

import secrets
from urllib.parse import urlsplit

from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import PlainTextResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

HOSTS = ("127.0.0.1", "localhost")
HEADERS = {
    "Content-Security-Policy": "default-src 'self'; img-src 'self' data: blob:; media-src 'self' blob:; "
    "style-src 'self' 'unsafe-inline'; frame-ancestors 'none'; base-uri 'none'; form-action 'none'",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
    "Cross-Origin-Resource-Policy": "same-origin",
}


class Guard:
    """ASGI middleware: /TOKEN/... reaches the application, everything else is refused.

    Another Host (DNS rebinding), another Origin, and requests that other sites make are refused too.
    """

    def __init__(self, app: ASGIApp, token: str) -> None:
        self.app, self.token = app, token

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return
        if reason := self._refusal(scope):
            response = PlainTextResponse(f"{reason}: open the address that `patchout web` printed", 403)
            await response(scope, receive, send)
            return
        _, _, path = scope["path"][1:].partition("/")

        async def with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                for name, value in HEADERS.items():
                    headers.setdefault(name, value)
                headers.setdefault("Cache-Control", "no-cache")
            await send(message)

        await self.app({**scope, "path": f"/{path}", "raw_path": None}, receive, with_headers)

    def _refusal(self, scope: Scope) -> str:
        """Why a request is not answered, "" for one that is."""
        headers = Headers(scope=scope)
        host, origin = headers.get("host", ""), headers.get("origin")
        if urlsplit(f"//{host}").hostname not in HOSTS:
            return f"no host {host!r} here"
        if origin is not None and origin != f"http://{host}":
            return f"no requests from {origin!r}"
        if headers.get("sec-fetch-site", "same-origin") not in ("same-origin", "none"):
            return "no requests from other sites"
        token, slash, _ = scope["path"][1:].partition("/")
        if not slash or not secrets.compare_digest(token.encode(), self.token.encode()):
            return "no or a wrong token"
        return ""
