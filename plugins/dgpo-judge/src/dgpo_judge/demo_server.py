"""A server without a model, to try judges and templates: `python -m dgpo_judge.demo_server`.

It speaks the part of the API that the judges use, and answers by how red a picture is, exactly: with m the mean of its
red channel in [0, 1], P(Yes) = m; the digits of a rating have the expected value low + (high - low) m; an aspect of a
rubric has the value low + (high - low) m; of two pictures, P(1) = m1 / (m1 + m2); a list is ranked by m.
"""

from __future__ import annotations

import base64
import io
import json
import math
import re
import sys
import threading
from collections.abc import Mapping, Sequence
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import numpy as np
from PIL import Image

__all__ = ["MODEL", "Server", "answer_to", "completion", "redness"]

MODEL = "demo-judge"
LEAST = -9999.0
"""The log-probability that OpenAI's API gives to what is practically impossible."""
LARGEST = 2**28
"""Most bytes of a request."""


def redness(url: str) -> float:
    """Return the mean of the red channel, in [0, 1], of a PNG in a data URL."""
    data = base64.b64decode(url.removeprefix("data:image/png;base64,"), validate=True)
    with Image.open(io.BytesIO(data)) as image:
        pixels = np.asarray(image.convert("RGB"), dtype=np.float64)
    return float(pixels[..., 0].mean() / 255)


def answer_to(request: Mapping[str, Any]) -> dict[str, Any]:
    """Return the chat completion for a request."""
    parts = request["messages"][-1]["content"]
    measured = [redness(part["image_url"]["url"]) for part in parts if part["type"] == "image_url"]
    text = " ".join(part["text"] for part in parts if part["type"] == "text")
    m = sum(measured) / len(measured)
    if "response_format" in request:
        content = json.dumps(_structured(request["response_format"]["json_schema"]["schema"], measured, m))
        return completion(request, content)
    if not request.get("logprobs"):
        return completion(request, _lines(text, m))
    if re.search(r"\b1 or 2\b", text):
        half = len(measured) // 2
        first, second = sum(measured[:half]), sum(measured[half:])
        share = first / (first + second) if first + second else 0.5
        return completion(request, *_tokens({"1": share, "2": 1 - share}))
    if scale := re.search(r"\bdigit from ([0-9]) to ([0-9])", text):
        low, high = int(scale[1]), int(scale[2])
        below = min(high - 1, math.floor(low + (high - low) * m))
        share = low + (high - low) * m - below
        return completion(request, *_tokens({str(below): 1 - share, str(below + 1): share}))
    return completion(request, *_tokens({"Yes": m / 2, " Yes": m / 2, "No": 1 - m}))


def completion(
    request: Mapping[str, Any], content: str, logprobs: Mapping[str, Any] | None = None, finish: str = "stop"
) -> dict[str, Any]:
    """Return a chat completion with one choice, in the form of the API."""
    return {
        "id": "chatcmpl-demo",
        "object": "chat.completion",
        "model": request.get("model", MODEL),
        "choices": [
            {
                "index": 0,
                "message": {"role": "assistant", "content": content, "refusal": None},
                "logprobs": logprobs,
                "finish_reason": finish,
            }
        ],
        "usage": {"prompt_tokens": 100, "completion_tokens": 1, "total_tokens": 101},
    }


def _tokens(probabilities: Mapping[str, float]) -> tuple[str, dict[str, Any]]:
    """Return the most probable token, and the log-probabilities of all."""
    top = [
        {"token": token, "logprob": math.log(p) if p > 0 else LEAST, "bytes": list(token.encode())}
        for token, p in sorted(probabilities.items(), key=lambda item: -item[1])
    ]
    return str(top[0]["token"]), {"content": [{**top[0], "top_logprobs": top}]}


def _structured(schema: Mapping[str, Any], measured: Sequence[float], m: float) -> dict[str, Any]:
    """Return the JSON that a schema asks for: a ranking of letters, or numbers in ranges."""
    properties = schema["properties"]
    if "ranking" in properties:
        letters = properties["ranking"]["items"]["enum"]
        frames = len(measured) // len(letters)
        means = {letter: sum(measured[i * frames : (i + 1) * frames]) for i, letter in enumerate(letters)}
        return {"ranking": sorted(letters, key=lambda letter: (-means[letter], letter))}
    ranges = {name: found["anyOf"][0] for name, found in properties.items()}
    return {name: r["minimum"] + (r["maximum"] - r["minimum"]) * m for name, r in ranges.items()}


def _lines(text: str, m: float) -> str:
    """Return a line for each `- name (low to high)` of a rubric."""
    found = re.findall(r"^- ([\w-]+) \((-?[\d.]+) to (-?[\d.]+)\)", text, re.MULTILINE)
    return "\n".join(f"{name}: {float(low) + (float(high) - float(low)) * m:.6f}" for name, low, high in found)


class Server:
    """The server in threads of this process, until `close`. `url` is its address."""

    def __init__(self, port: int = 0, host: str = "127.0.0.1") -> None:
        server = self

        class Handler(_Handler):
            owner = server

        self.http = _Threads((host, port), Handler)
        self.url = f"http://{host}:{self.http.server_address[1]}"
        threading.Thread(target=self.http.serve_forever, args=(0.05,), daemon=True).start()

    def respond(self, handler: BaseHTTPRequestHandler, request: Mapping[str, Any]) -> None:
        """Answer a request for a completion. Tests override it to misbehave."""
        send(handler, 200, json.dumps(answer_to(request)).encode())

    def close(self) -> None:
        """Stop."""
        self.http.shutdown()
        self.http.server_close()


def send(handler: BaseHTTPRequestHandler, status: int, body: bytes, **headers: str) -> None:
    """Send a response with a JSON body."""
    handler.send_response(status)
    for name, value in ({"Content-Type": "application/json", "Content-Length": str(len(body))} | headers).items():
        handler.send_header(name, value)
    handler.end_headers()
    handler.wfile.write(body)


class _Threads(ThreadingHTTPServer):
    daemon_threads = True
    block_on_close = False
    request_queue_size = 256

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Say nothing: a client that leaves is no error."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    wbufsize = 2**16  # else headers and body travel apart, and the second waits for the first
    owner: Server

    def do_GET(self) -> None:
        """Answer GET /v1/models."""
        if self.path == "/v1/models":
            entry = {"id": MODEL, "object": "model", "owned_by": "dgpo-judge", "root": MODEL}
            send(self, 200, json.dumps({"object": "list", "data": [entry]}).encode())
        else:
            send(self, 404, b'{"error": {"message": "not found"}}')

    def do_POST(self) -> None:
        """Answer POST /v1/chat/completions."""
        length = int(self.headers.get("Content-Length", 0))
        if self.path != "/v1/chat/completions" or length > LARGEST:
            self.close_connection = True
            return send(self, 404, b'{"error": {"message": "not found"}}')
        data = self.rfile.read(length)
        try:
            request = json.loads(data)
            self.owner.respond(self, request)
        except (ValueError, KeyError, TypeError, IndexError, ZeroDivisionError, OSError) as error:
            send(self, 400, json.dumps({"error": {"message": f"{type(error).__name__}: {error}"}}).encode())
        return None

    def log_message(self, format: str, *arguments: Any) -> None:
        """Log nothing."""


def main(arguments: Sequence[str]) -> int:
    """Serve until Ctrl-C. The only argument is the port, 8000 by default."""
    if len(arguments) > 1 or not all(argument.isdecimal() for argument in arguments):
        sys.stderr.write("usage: python -m dgpo_judge.demo_server [PORT]\n")
        return 2
    port = int(arguments[0]) if arguments else 8000
    try:
        server = Server(port)
    except (OSError, OverflowError) as error:
        sys.stderr.write(f"port {port} cannot be used: {getattr(error, 'strerror', None) or error}; give another one\n")
        return 2
    sys.stdout.write(f"{MODEL} is served at {server.url}; Ctrl-C ends it\n")
    sys.stdout.flush()
    try:
        threading.Event().wait()
    except KeyboardInterrupt:
        server.close()
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
