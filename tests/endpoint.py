"""A chat endpoint for tests: an HTTP server on this machine that answers from a script."""

import json
import threading
import time
from collections import Counter
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

GOOD = json.dumps({key: f"some {key}" for key in ("wish", "traits")})
LIKES = json.dumps({key: f"some {key}" for key in ("overall", "long_term", "short_term")})


def completion(text, **more):
    """Return what an endpoint sends for one answer."""
    message = {"index": 0, "message": {"role": "assistant", "content": text}}
    usage = {"prompt_tokens": 100, "completion_tokens": 20, "total_tokens": 120}
    head = {"id": "1", "object": "chat.completion", "created": 1, "model": "m"}
    return json.dumps({**head, "choices": [message], "usage": usage, **more})


def well(question, turn):
    """Answer every question as it should be."""
    return 200, completion(GOOD if '"wish"' in question else LIKES)


@dataclass
class Endpoint:
    """What the server does and has seen.

    Attributes:
        reply: from the question and how often it was asked before to (status, body[, headers]);
            a number instead of a status is how many seconds to wait with a good answer, and None
            breaks the connection.
        questions: every question, in the order of arrival.
        bodies: the requests they came in.
        times: when they arrived.
        most_at_once: how many were under way at the same time at most.
    """

    reply: object = well
    url: str = ""
    questions: list = field(default_factory=list)
    bodies: list = field(default_factory=list)
    times: list = field(default_factory=list)
    under_way: int = 0
    most_at_once: int = 0
    lock: object = field(default_factory=threading.Lock)

    def counts(self):
        """Return how often each question was asked."""
        return Counter(self.questions)


def start():
    """Return a running endpoint and a function that stops it."""
    endpoint = Endpoint()

    class Handler(BaseHTTPRequestHandler):
        def log_message(self, *_):
            pass

        def send(self, status, body, headers):
            data = body.encode()
            self.send_response(status)
            for name, value in {"Content-Type": "application/json", **headers}.items():
                self.send_header(name, value)
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        def do_GET(self):
            self.send(200, json.dumps({"object": "list", "data": []}), {})

        def do_POST(self):
            request = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            question = request["messages"][-1]["content"]
            with endpoint.lock:
                turn = endpoint.questions.count(question)
                endpoint.questions.append(question)
                endpoint.bodies.append(request)
                endpoint.times.append(time.monotonic())
                endpoint.under_way += 1
                endpoint.most_at_once = max(endpoint.most_at_once, endpoint.under_way)
            try:
                status, body, *headers = endpoint.reply(question, turn)
                if isinstance(status, float):
                    time.sleep(status)
                    status = 200
                if status is None:
                    self.connection.close()
                    return
                self.send(status, body, headers[0] if headers else {})
            except OSError:
                pass  # whoever asked has gone
            finally:
                with endpoint.lock:
                    endpoint.under_way -= 1

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
    thread.start()
    endpoint.url = f"http://127.0.0.1:{server.server_address[1]}/v1"

    def stop():
        server.shutdown()
        server.server_close()
        thread.join()

    return endpoint, stop
