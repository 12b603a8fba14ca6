# SPDX-License-Identifier: Apache-2.0
"""A stand-in for the agent: real HTTP on a real unix socket, answers from a table."""

import json
import socketserver
import tempfile
import threading
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler
from pathlib import Path


class FakeAgent:
    """Answers by ``"METHOD path"`` without query: JSON, a (status, JSON) pair, or lines to stream."""

    def __init__(self, path):
        self.path = str(path)
        self.answers = {}
        self.requests = []

    def get(self, path, answer):
        """Answer ``GET /v1/<path>`` with *answer*."""
        self.answers[f"GET /v1/{path}"] = answer

    def maps(self, **rows):
        """Answer for each map its (key, value) *rows*."""
        for name, pairs in rows.items():
            self.get(f"map/{name}", [{"key": key, "value": value} for key, value in pairs])


class Lines(list):
    """Lines to be streamed in chunks."""


class _Server(socketserver.ThreadingMixIn, socketserver.UnixStreamServer):
    daemon_threads = True
    agent: FakeAgent

    def handle_error(self, *_):
        """A client that went away early is part of a test."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def _answer(self):
        agent = self.server.agent
        size = int(self.headers.get("Content-Length", 0))
        body = json.loads(self.rfile.read(size)) if size else None
        agent.requests.append((self.command, self.path, body))
        answer = agent.answers.get(
            f"{self.command} {self.path.partition('?')[0]}", (404, {"error": "no such thing"})
        )
        if isinstance(answer, Lines):
            self._stream(answer)
            return
        status, document = answer if isinstance(answer, tuple) else (200, answer)
        data = document if isinstance(document, bytes) else json.dumps(document).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def _stream(self, lines):
        self.send_response(200)
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        for line in lines:
            data = json.dumps(line).encode() + b"\n"
            self.wfile.write(f"{len(data):x}\r\n".encode() + data + b"\r\n")
        self.wfile.write(b"0\r\n\r\n")

    do_GET = do_POST = do_PUT = do_PATCH = do_DELETE = _answer  # noqa: N815 - the names http.server calls

    def address_string(self):
        """Unix clients have no address."""
        return "local"

    def log_message(self, *_):
        """Stay quiet."""


@contextmanager
def running_agent():
    """A fake agent that listens."""
    with tempfile.TemporaryDirectory(prefix="cli") as directory:
        agent = FakeAgent(Path(directory) / "agent.sock")
        server = _Server(agent.path, _Handler)
        server.agent = agent
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        try:
            yield agent
        finally:
            server.shutdown()
            thread.join()
            server.server_close()
