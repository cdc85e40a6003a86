"""An OpenAI-compatible server on loopback that answers as a test says."""

import contextlib
import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


class Stub:
    """An OpenAI-compatible server on loopback that answers as a function says.

    `behave(path, body)` gives a status with a JSON value, bytes, or None to drop the connection;
    a third element holds more headers. A function is called with the handler and answers itself.
    """

    def __init__(self, behave, models=("tiny",)):
        self.seen: list[tuple[str, dict, dict]] = []
        self._behave, self._models = behave, models
        stub = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"
            wbufsize = -1  # one packet an answer; else loopback waits 40 ms for the second

            def do_GET(self):
                stub._answer(self, {})

            def do_POST(self):
                length = int(self.headers["Content-Length"])
                stub._answer(self, json.loads(self.rfile.read(length)))

            def log_message(self, *_):
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self._server.handle_error = lambda *_: None  # whoever asked has gone
        self.address = f"http://127.0.0.1:{self._server.server_port}/v1"
        threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True).start()

    def close(self):
        self._server.shutdown()
        self._server.server_close()

    def asked(self, path):
        return [body for seen, body, _ in self.seen if seen == path]

    def _answer(self, handler, body):
        path = handler.path.removeprefix("/v1")
        self.seen.append((path, body, dict(handler.headers)))
        answer = self._behave(path, body)
        if answer is None and path == "/models":
            answer = 200, {"data": [{"id": name} for name in self._models]}
        if answer is None:
            handler.close_connection = True
            return
        if callable(answer):
            handler.close_connection = True
            with contextlib.suppress(OSError):  # whoever asked has gone
                answer(handler)
            return
        status, value, *headers = answer
        data = value if isinstance(value, bytes) else json.dumps(value).encode()
        sent = {"Content-Length": str(len(data)), **(headers[0] if headers else {})}
        handler.send_response(status)
        for name, content in sent.items():
            handler.send_header(name, content)
        handler.end_headers()
        handler.wfile.write(data)


def said(*texts, finish_reason="stop"):
    return 200, {
        "choices": [
            {"index": index, "text": text, "finish_reason": finish_reason}
            for index, text in enumerate(texts)
        ]
    }


def refused(message):
    return 400, {"error": {"message": message, "type": "invalid_request_error"}}
