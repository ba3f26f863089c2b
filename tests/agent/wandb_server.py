"""What W&B's server answers for one run, on loopback, so that the run can be looked at."""

from __future__ import annotations

import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


class WandbServer:
    """Knows one run, lab/arm/<any>; ``run`` is as it was left, ``changes`` are the inputs of all mutations. ``down``: refuses all.
    ``moved``: where it says that it is now.
    """

    def __init__(
        self, name: str, tags: list[str] | None, *, down: bool = False, exists: bool = True, moved: str = ""
    ) -> None:
        self.run: dict[str, Any] = {"id": "aWQ=", "displayName": name, "tags": tags}
        self.changes: list[dict[str, Any]] = []
        self.asked: list[dict[str, Any]] = []
        self.keys: set[str | None] = set()
        self.down = down
        self.exists = exists
        self.moved = moved
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), _handler(self))
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.02,))

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._server.server_address[1]}"

    def __enter__(self) -> WandbServer:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    def answer(self, query: str, variables: dict[str, Any]) -> dict[str, Any]:
        """What a GraphQL operation is answered with."""
        if self.down:
            return {"errors": [{"message": "out of order"}]}
        if "upsertBucket" in query:
            self.changes.append(variables)
            self.run.update({key: value for key, value in variables.items() if key != "id"})
            return {"data": {"upsertBucket": {"bucket": {"id": self.run["id"]}}}}
        if "viewer" in query:
            return {"data": {"viewer": {"entity": "lab"}}}
        self.asked.append(variables)
        return {"data": {"project": {"run": self.run if self.exists else None}}}


def _handler(server: WandbServer) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            server.keys.add(self.headers["Authorization"])
            answer = json.dumps(server.answer(asked["query"], asked["variables"])).encode()
            self.send_response(400 if server.down else 302 if server.moved else 200)
            if server.moved:
                self.send_header("Location", server.moved)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(answer)))
            self.end_headers()
            self.wfile.write(answer)

        def do_GET(self) -> None:  # what a POST becomes that is sent elsewhere
            server.keys.add(self.headers["Authorization"])
            self.send_error(404)

        def log_message(self, *_: object) -> None:
            return

    return Handler
