"""What every request of the page passes: who may ask, and what the page may load.

`Guard` is ASGI middleware. It asks for the token, by which a browser asks for a password; refuses
requests that another site's page makes in the reader's browser; and sends a content security policy
that leaves the browser nothing to fetch from elsewhere.
"""

import base64
import binascii
import hmac
from collections.abc import Collection
from urllib.parse import urlsplit

from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import PlainTextResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

# Gradio's page evaluates expressions and writes styles of its own; all of it comes with the page.
POLICY = (
    "default-src 'self' 'unsafe-inline' 'unsafe-eval' data: blob:; connect-src 'self'; "
    "form-action 'self'; frame-ancestors 'none'; base-uri 'self'"
)


class Guard:
    """ASGI middleware around the whole page.

    Args:
        app: what it stands before.
        token: the password of the page (any user name will do), or a bearer token; None for none.
        hosts: the names that the page may be asked for by; None for any. Without a token it keeps
            out a site whose name was made to point here.
    """

    def __init__(
        self, app: ASGIApp, *, token: str | None, hosts: Collection[str] | None = None
    ) -> None:
        self.app = app
        self.token = None if token is None else token.encode()
        self.hosts = hosts

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request, or refuse it."""
        if scope["type"] == "lifespan":
            await self.app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        refusal = self._refusal(headers)
        if refusal is not None:
            await refusal(scope, receive, send)
            return

        async def send_with_policy(message: Message) -> None:
            if message["type"] == "http.response.start":
                out = MutableHeaders(scope=message)
                out["Content-Security-Policy"] = POLICY
                out["X-Content-Type-Options"] = "nosniff"
                out["Referrer-Policy"] = "no-referrer"
            await send(message)

        await self.app(scope, receive, send_with_policy)

    def _refusal(self, headers: Headers) -> PlainTextResponse | None:
        host, origin = headers.get("host", ""), headers.get("origin")
        try:
            named, asking = urlsplit(f"//{host}").hostname, urlsplit(origin or "").netloc
        except ValueError:
            return PlainTextResponse("The header Host or Origin cannot be read.\n", 400)
        if self.hosts is not None and named not in self.hosts:
            return PlainTextResponse(f"This page is not served as {host[:80]!a}.\n", 421)
        if origin is not None and asking != host:
            return PlainTextResponse("Another site's page may not use this one.\n", 403)
        if self.token is not None and not self._knows(headers.get("authorization", "")):
            return PlainTextResponse(
                "The token is needed: give it as the password.\n",
                401,
                {"WWW-Authenticate": 'Basic realm="lcrec studio", charset="UTF-8"'},
            )
        return None

    def _knows(self, authorization: str) -> bool:
        """Tell whether a header carries the token."""
        scheme, _, value = authorization.partition(" ")
        given = value.strip().encode()
        if scheme.lower() == "basic":
            try:
                given = base64.b64decode(given, validate=True).partition(b":")[2]
            except binascii.Error:
                return False
        elif scheme.lower() != "bearer":
            return False
        assert self.token is not None
        return hmac.compare_digest(given, self.token)
