"""Web server of a review: it serves 127.0.0.1 behind a random token, by the standard library alone."""

from __future__ import annotations

import json
import secrets
import threading
import webbrowser
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

from cleantune.errors import UserError
from cleantune.review.session import ReviewSession, number_of

MAX_BODY = 10_000
"""Bytes of a request, at most."""
LOCAL_HOSTS = ("127.0.0.1", "localhost")
CONTENT_SECURITY_POLICY = (
    "default-src 'none'; img-src 'self'; connect-src 'self'; style-src 'nonce-{nonce}'; script-src 'nonce-{nonce}';"
    " base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)

Answer = tuple[int, str, bytes]
"""Status, content type and body."""
NOT_FOUND: Answer = (404, "text/plain", b"not found\n")


class ReviewServer(ThreadingHTTPServer):
    """Serve one session on 127.0.0.1 to clients with the token."""

    daemon_threads = True

    def __init__(self, session: ReviewSession, port: int = 0) -> None:
        """Bind the port without serving yet.

        Args:
            session: The review.
            port: Port; 0 takes a free one.

        Raises:
            UserError: The port is taken.
        """
        self.session, self.token, self.lock = session, secrets.token_urlsafe(24), threading.Lock()
        try:
            super().__init__(("127.0.0.1", port), _Handler)
        except OSError as error:
            raise UserError(f"--port {port}: {error.strerror}; choose another or leave it out") from None

    @property
    def address(self) -> str:
        """Return the URL of the page, with the token."""
        return f"http://127.0.0.1:{self.server_address[1]}/?token={self.token}"


class _Handler(BaseHTTPRequestHandler):
    """Answers requests that have the token and name this machine as the host."""

    server: ReviewServer

    def do_GET(self) -> None:
        """Answer with the page, suspects, progress or a picture."""
        self._answer(self._get)

    def do_POST(self) -> None:
        """Keep a decision, or take one back."""
        self._answer(self._post)

    def _answer(self, answer: Callable[[str, dict[str, str]], Answer]) -> None:
        url = urlsplit(self.path)
        query = {key: values[-1] for key, values in parse_qs(url.query).items()}
        token = self.headers.get("X-Token") or query.get("token") or ""
        host = (self.headers.get("Host") or "").rpartition(":")[0]
        if host not in LOCAL_HOSTS or not secrets.compare_digest(token.encode(), self.server.token.encode()):
            self._send(403, "text/plain; charset=utf-8", b"open the address that cleantune review printed\n")
            return
        try:
            with self.server.lock:
                status, content_type, body = answer(url.path, query)
        except (UserError, ValueError) as error:
            status, content_type, body = 400, "application/json", json.dumps({"error": str(error)}).encode()
        self._send(status, content_type, body)

    def _get(self, path: str, query: dict[str, str]) -> Answer:
        session = self.server.session
        if path == "/":
            return 200, "text/html; charset=utf-8", render_page(self.server.token)
        if path == "/picture":
            picture = session.picture(query.get("id", ""))
            return NOT_FOUND if picture is None else (200, "image/jpeg", picture)
        answers: dict[str, Callable[[], Any]] = {
            "/suspects": lambda: session.page(query),
            "/state": session.state,
            "/about": session.about,
            "/neighbors": lambda: session.neighbors(int(number_of(query, "row", -1))),
        }
        return (200, "application/json", json.dumps(answers[path]()).encode()) if path in answers else NOT_FOUND

    def _post(self, path: str, query: dict[str, str]) -> Answer:
        length = int(self.headers.get("Content-Length") or 0)
        if length > MAX_BODY or path not in ("/decide", "/undo"):
            return NOT_FOUND
        body, session = json.loads(self.rfile.read(length) or b"{}"), self.server.session
        state = session.undo() if path == "/undo" else session.decide(*map(body.get, ("row", "decision", "label")))
        return 200, "application/json", json.dumps(state).encode()

    def _send(self, status: int, content_type: str, body: bytes) -> None:
        self.send_response(status)
        headers = {
            "Content-Type": content_type,
            "Content-Length": str(len(body)),
            "Cache-Control": "no-store",
            "X-Content-Type-Options": "nosniff",
            "Referrer-Policy": "no-referrer",
        }
        if content_type.startswith("text/html"):
            headers["Content-Security-Policy"] = CONTENT_SECURITY_POLICY.format(nonce=_nonce(self.server.token))
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002
        """Log nothing."""


def _nonce(token: str) -> str:
    return token[::-1]


def render_page(token: str) -> bytes:
    """Return the page with its nonce."""
    text = (Path(__file__).parent / "review.html").read_text("utf-8")
    return text.replace("NONCE", _nonce(token)).encode()


def serve(
    run: Path,
    decisions: Path | None = None,
    port: int = 0,
    *,
    browser: bool = True,
    say: Callable[[str], Any] = print,
) -> None:
    """Serve the page of a review until Ctrl-C.

    Args:
        run: Folder of an audit or of a run.
        decisions: File of decisions; None takes `decisions.csv` in the folder.
        port: Port on 127.0.0.1; 0 takes a free one.
        browser: Open the page in the browser.
        say: Function that prints a line.

    Raises:
        UserError: The folder has no labels, or the port is taken.
    """
    session = ReviewSession(run, decisions)
    server = ReviewServer(session, port)
    say(f"review: {server.address}")
    say(f"decisions: {session.decisions.path}; Ctrl-C ends the review, every decision is saved")
    if browser:
        webbrowser.open(server.address)
    try:
        server.serve_forever()
    except KeyboardInterrupt:
        say("")
    finally:
        server.server_close()
    say("\n".join(f"{k}: {v}" for k, v in session.state().items() if v not in (None, "")))
