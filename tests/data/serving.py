"""A web server on this machine, with and without ranges, that counts what it sends."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


@dataclass
class Served:
    """``files``: path -> content; ``failures``: how many requests to refuse with 503; ``sent``: bytes so far."""

    url: str = ""
    files: dict[str, bytes] = field(default_factory=dict)
    ranges: bool = True
    failures: int = 0
    sent: int = 0


@contextmanager
def web_server(files: dict[str, bytes], ranges: bool = True) -> Iterator[Served]:
    served = Served("", files, ranges)

    class Handler(BaseHTTPRequestHandler):
        def do_HEAD(self) -> None:
            self.answer(body=False)

        def do_GET(self) -> None:
            self.answer(body=True)

        def answer(self, body: bool) -> None:
            content = served.files.get(self.path.partition("?")[0])
            if served.failures:
                served.failures -= 1
                self.send_error(503)
                return
            if content is None:
                self.send_error(404)
                return
            wanted = self.headers.get("Range", "") if served.ranges else ""
            total = len(content)
            if wanted:
                start, _, stop = wanted.removeprefix("bytes=").partition("-")
                last = min(int(stop or total - 1), total - 1)
                content = content[int(start) : last + 1]
                self.send_response(206)
                self.send_header("Content-Range", f"bytes {start}-{last}/{total}")
            else:
                self.send_response(200)
            if served.ranges:
                self.send_header("Accept-Ranges", "bytes")
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            if body:
                served.sent += len(content)
                self.wfile.write(content)

        def log_message(self, *_: object) -> None:
            """Nothing is written to the terminal."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    served.url = f"http://127.0.0.1:{server.server_address[1]}"
    try:
        yield served
    finally:
        server.shutdown()
        server.server_close()
