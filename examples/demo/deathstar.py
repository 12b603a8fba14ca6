# SPDX-License-Identifier: Apache-2.0
"""The deathstar: an HTTP server that lets ships land.  It knows nothing of policies."""

import http.server
import sys

ANSWERS = {
    ("POST", "/v1/request-landing"): "Ship landed\n",
    ("PUT", "/v1/exhaust-port"): "Panic: deathstar exploded\n",
}


class Deathstar(http.server.BaseHTTPRequestHandler):
    """One request, one line; connections stay open."""

    protocol_version = "HTTP/1.1"

    def _answer(self) -> None:
        text = ANSWERS.get((self.command, self.path), "").encode()
        self.send_response(200 if text else 404)
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        self.wfile.write(text)

    do_GET = do_POST = do_PUT = _answer  # noqa: N815 - names the base class looks for


if __name__ == "__main__":
    # Any address of the pod's own namespace.
    address = ("0.0.0.0", int(sys.argv[1]))  # noqa: S104
    http.server.ThreadingHTTPServer(address, Deathstar).serve_forever()
