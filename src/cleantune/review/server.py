"""The page on which a person decides: a server on 127.0.0.1 behind a random token, from the standard library."""

from __future__ import annotations

import base64
import json
import secrets
import threading
import webbrowser
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import numpy as np

from cleantune.audit.tables import suspects
from cleantune.config.run import configure, read_config
from cleantune.data import Data, UnreadableImage
from cleantune.errors import UserError
from cleantune.review.decisions import DECISIONS, Decision, Decisions
from cleantune.storage.files import read_json
from cleantune.utils.console import Console

PAGE = 60
MOST = 200
BODY = 10_000
"""Bytes of a request."""


class ReviewSession:
    """One audit under review: its suspects, samples and decisions."""

    def __init__(self, run: Path, decisions: Path | None = None) -> None:
        """Open the folder of an audit.

        Raises:
            UserError: It is none, or its data cannot be read.
        """
        import pandas as pd

        if not (run / "labels.parquet").is_file():
            raise UserError(f"{run} holds no labels.parquet: name the folder of an audit or of a run")
        self.run = run
        self.summary = read_json(run / "summary.json")
        self.rows = suspects(pd.read_parquet(run / "labels.parquet")).reset_index(drop=True)
        for column in ("given_label", "suggested_label", "id", "split"):
            self.rows[column] = self.rows[column].astype(str)
        self.decisions = Decisions(decisions or run / "decisions.csv")
        self.classes = [str(name) for name in self.summary["class_names"]]
        self.data = _data(run)
        self.place: dict[str, tuple[str, int]] = {}
        if self.data is not None:
            for split in ("unlabeled", "test", "validation", "train"):
                if split in self.data.rows:
                    self.place |= {str(i): (split, k) for k, i in enumerate(self.data.rows[split].ids.tolist())}
        near = run / "artifacts" / "neighbors.parquet"
        self._near = (
            pd.read_parquet(near).assign(id=lambda t: t["id"].astype(str)).set_index("id") if near.is_file() else None
        )

    def page(self, asked: dict[str, str]) -> dict[str, Any]:
        """Some suspects by given, suggested, score (low, high) and open (undecided): limit many from offset."""
        rows, keep = self.rows, np.ones(len(self.rows), dtype=bool)
        for column in ("given", "suggested"):
            if asked.get(column):
                keep &= (rows[f"{column}_label"] == asked[column]).to_numpy()
        score = rows["label_score"].to_numpy()
        keep &= (score >= _number(asked, "low", 0.0)) & (score <= _number(asked, "high", 1.0))
        now = self.decisions.now
        if asked.get("open"):
            keep &= np.array([(s, i) not in now for s, i in zip(rows["split"], rows["id"], strict=True)], dtype=bool)
        chosen = np.flatnonzero(keep)
        offset = max(0, int(_number(asked, "offset", 0)))
        limit = min(MOST, max(1, int(_number(asked, "limit", PAGE))))
        shown = [self._card(int(k), now) for k in chosen[offset : offset + limit]]
        return {"total": len(chosen), "offset": offset, "rows": shown}

    def _card(self, k: int, now: dict[tuple[str, str], Decision]) -> dict[str, Any]:
        row = self.rows.iloc[k]
        decided = now.get((row["split"], row["id"]))
        return {
            "row": k, "id": row["id"], "split": row["split"], "given": row["given_label"],
            "suggested": row["suggested_label"], "score": float(row["label_score"]),
            "p_wrong": float(row["p_wrong"]) if "p_wrong" in row else None, "text": self.text(row["id"]),
            "image": self._shows_images, "decision": None if decided is None else decided.decision,
            "label": None if decided is None else decided.label,
        }  # fmt: skip

    @property
    def _shows_images(self) -> bool:
        return self.data is not None and self.data.kind == "image"

    def text(self, id: str) -> str | None:  # noqa: A002
        """The text of a sample, None where it has none."""
        if self.data is None or self.data.kind != "text" or id not in self.place:
            return None
        split, k = self.place[id]
        return str(self.data.rows[split].samples.read([k])[0])[:2000]

    def neighbors(self, k: int) -> list[dict[str, Any]]:
        """The nearest samples whose labels are trusted."""
        if not 0 <= k < len(self.rows):
            raise UserError(f"there is no row {k}")
        id_ = self.rows.iloc[k]["id"]
        if self._near is None or id_ not in self._near.index:
            return []
        near = self._near.loc[id_]
        return [
            {"id": other, "label": label, "text": self.text(other), "image": self._shows_images}
            for other, label in zip(near["neighbors"], near["labels"], strict=True)
        ]

    def picture(self, id: str) -> bytes | None:  # noqa: A002
        """A sample's thumbnail as JPEG, None where there is none."""
        from cleantune.pipeline.artifacts import thumbnail

        if not self._shows_images or id not in self.place:
            return None
        assert self.data is not None
        split, k = self.place[id]
        image = self.data.rows[split].samples.read([k])[0]
        return None if isinstance(image, UnreadableImage) else base64.b64decode(thumbnail(image).partition(",")[2])

    def decide(self, k: Any, decision: Any, label: Any) -> dict[str, Any]:
        """Keep a decision, and say how far the review is.

        Raises:
            UserError: An unknown row, decision or class.
        """
        if not isinstance(k, int) or not 0 <= k < len(self.rows):
            raise UserError(f"there is no row {k!r}")
        if decision not in DECISIONS[:-1]:
            raise UserError(f"{decision!r} is no decision; known: {', '.join(DECISIONS[:-1])}")
        row = self.rows.iloc[k]
        if decision == "relabel" and (label or row["suggested_label"]) not in self.classes:
            raise UserError(f"{label!r} is no class of this audit")
        new = str(label or row["suggested_label"]) if decision == "relabel" else ""
        self.decisions.add(Decision(row["id"], row["split"], row["given_label"], decision, new))
        return self.state()

    def undo(self) -> dict[str, Any]:
        """Take the last decision back."""
        last = self.decisions.undo()
        match: Any = (
            [] if last is None else np.flatnonzero((self.rows["id"] == last.id) & (self.rows["split"] == last.split))
        )
        return self.state() | {"row": int(match[0]) if len(match) else None}

    def state(self) -> dict[str, Any]:
        """Progress of the review."""
        return self.decisions.progress() | {"suspects": len(self.rows)}

    def about(self) -> dict[str, Any]:
        """What the page needs once."""
        pairs = self.rows.groupby(["given_label", "suggested_label"]).size().sort_values(ascending=False).head(200)
        return {
            "name": self.run.name, "classes": self.classes,
            "pairs": [{"given": g, "suggested": s, "count": int(n)} for (g, s), n in pairs.items()],
            "cannot_tell": self.summary.get("cannot_tell"), "file": str(self.decisions.path),
        }  # fmt: skip


def _data(run: Path) -> Data | None:
    """The data of the run, None where it was arrays."""
    from cleantune.pipeline.resolve import load_data

    table = read_config(run / "config.toml")
    if "data" not in table:
        return None
    return load_data(configure(table), Console(quiet=True))[0]


def _number(asked: dict[str, str], key: str, default: float) -> float:
    try:
        return float(asked.get(key) or default)
    except ValueError:
        raise UserError(f"{key} is {asked[key]!r}; it must be a number") from None


class ReviewServer(ThreadingHTTPServer):
    """Serves one session on 127.0.0.1 to whoever knows the token."""

    daemon_threads = True

    def __init__(self, session: ReviewSession, port: int = 0) -> None:
        """Bind the port, 0 a free one; nothing is served yet.

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
        """What opens the page."""
        return f"http://127.0.0.1:{self.server_address[1]}/?token={self.token}"


Answer = tuple[int, str, bytes]
_NOT_HERE: Answer = (404, "text/plain", b"not here\n")


class _Handler(BaseHTTPRequestHandler):
    """Answers this page alone: the token must be right, and the host must be this machine."""

    server: ReviewServer

    def do_GET(self) -> None:
        """Page, suspects, progress, pictures."""
        self._answer(self._get)

    def do_POST(self) -> None:
        """Decisions."""
        self._answer(self._post)

    def _answer(self, answer: Callable[[str, dict[str, str]], Answer]) -> None:
        where = urlsplit(self.path)
        asked = {key: values[-1] for key, values in parse_qs(where.query).items()}
        given = self.headers.get("X-Token") or asked.get("token") or ""
        host = (self.headers.get("Host") or "").rpartition(":")[0]
        known = secrets.compare_digest(given.encode(), self.server.token.encode())
        if host not in ("127.0.0.1", "localhost") or not known:
            self._send(403, "text/plain; charset=utf-8", b"open the address that cleantune review printed\n")
            return
        try:
            with self.server.lock:
                code, kind, body = answer(where.path, asked)
        except (UserError, ValueError) as error:
            code, kind, body = 400, "application/json", json.dumps({"error": str(error)}).encode()
        self._send(code, kind, body)

    def _get(self, path: str, asked: dict[str, str]) -> Answer:
        session = self.server.session
        if path == "/":
            return 200, "text/html; charset=utf-8", render_page(self.server.token)
        if path == "/picture":
            found = session.picture(asked.get("id", ""))
            return _NOT_HERE if found is None else (200, "image/jpeg", found)
        answers: dict[str, Callable[[], Any]] = {
            "/suspects": lambda: session.page(asked), "/state": session.state, "/about": session.about,
            "/neighbors": lambda: session.neighbors(int(_number(asked, "row", -1))),
        }  # fmt: skip
        return (200, "application/json", json.dumps(answers[path]()).encode()) if path in answers else _NOT_HERE

    def _post(self, path: str, asked: dict[str, str]) -> Answer:
        length = int(self.headers.get("Content-Length") or 0)
        if length > BODY or path not in ("/decide", "/undo"):
            return _NOT_HERE
        said, session = json.loads(self.rfile.read(length) or b"{}"), self.server.session
        done = session.undo() if path == "/undo" else session.decide(*map(said.get, ("row", "decision", "label")))
        return 200, "application/json", json.dumps(done).encode()

    def _send(self, code: int, kind: str, body: bytes) -> None:
        self.send_response(code)
        headers = {
            "Content-Type": kind, "Content-Length": str(len(body)), "Cache-Control": "no-store",
            "X-Content-Type-Options": "nosniff", "Referrer-Policy": "no-referrer",
        }  # fmt: skip
        if kind.startswith("text/html"):
            headers["Content-Security-Policy"] = _POLICY.format(nonce=_nonce(self.server.token))
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002
        """Say nothing."""


_POLICY = (
    "default-src 'none'; img-src 'self'; connect-src 'self'; style-src 'nonce-{nonce}'; script-src 'nonce-{nonce}';"
    " base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)


def _nonce(token: str) -> str:
    return token[::-1]


def render_page(token: str) -> bytes:
    """The page with its nonce."""
    text = (Path(__file__).parent / "review.html").read_text("utf-8")
    return text.replace("NONCE", _nonce(token)).encode()


def serve(
    run: Path, decisions: Path | None = None, port: int = 0, *, browser: bool = True, say: Callable[[str], Any] = print
) -> None:
    """Serve the page until Ctrl-C.

    Raises:
        UserError: The folder is no audit, or the port is taken.
    """
    session = ReviewSession(run, decisions)
    server = ReviewServer(session, port)
    say(f"review: {server.address}")
    say(f"decisions: {session.decisions.path}; Ctrl-C ends the review, nothing is lost")
    if browser:
        webbrowser.open(server.address)
    try:
        server.serve_forever()
    except KeyboardInterrupt:
        say("")
    finally:
        server.server_close()
    say("\n".join(f"{k}: {v}" for k, v in session.state().items() if v not in (None, "")))
