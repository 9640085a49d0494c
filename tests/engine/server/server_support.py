"""Starts the real binary on a tiny random model and speaks HTTP to it with sockets, so that nothing stands between a
test and the bytes. Standard library only."""
import array
import json
import os
import pathlib
import random
import re
import shutil
import signal
import socket
import struct
import subprocess
import tempfile
import time
import unittest

BINARY = os.environ["BALLAST_BINARY"]
SOURCE = pathlib.Path(os.environ["BALLAST_SOURCE_DIR"])
DEMO = SOURCE / "models/demo"
THREADS = os.environ.get("BALLAST_TEST_THREADS", "1")
SANITIZED = "BALLAST_SANITIZED" in os.environ  # the binary is instrumented
VOCAB, HIDDEN, FFN, LAYERS, POSITIONS, ROWS = 260, 32, 64, 2, 64, 264  # four rows of the embedding have no text
EOS = 2


def write_model(folder):
    """An OPT of a few kilobytes whose tokens are single bytes, so that its text is full of broken characters."""
    draw = random.Random(5)
    tensors = {}

    def add(name, shape, spread, middle=0.0):
        count = 1
        for size in shape:
            count *= size
        tensors["model.decoder." + name] = (shape, array.array("f", (draw.gauss(middle, spread) for _ in range(count))))

    def linear(name, rows, columns):
        add(name + ".weight", [rows, columns], 0.3)
        add(name + ".bias", [rows], 0.1)

    def norm(name):
        add(name + ".weight", [HIDDEN], 0.05, 1.0)
        add(name + ".bias", [HIDDEN], 0.05)

    add("embed_tokens.weight", [ROWS, HIDDEN], 0.6)
    add("embed_positions.weight", [POSITIONS + 2, HIDDEN], 0.4)
    for layer in range(LAYERS):
        name = f"layers.{layer}."
        for part in ("q_proj", "k_proj", "v_proj", "out_proj"):
            linear(name + "self_attn." + part, HIDDEN, HIDDEN)
        norm(name + "self_attn_layer_norm")
        linear(name + "fc1", FFN, HIDDEN)
        linear(name + "fc2", HIDDEN, FFN)
        norm(name + "final_layer_norm")
    norm("final_layer_norm")
    header, data = {"__metadata__": {"format": "pt"}}, b""
    for name, (shape, values) in tensors.items():
        raw = values.tobytes()
        header[name] = {"dtype": "F32", "shape": shape, "data_offsets": [len(data), len(data) + len(raw)]}
        data += raw
    text = json.dumps(header).encode()
    (folder / "model.safetensors").write_bytes(struct.pack("<Q", len(text)) + text + data)
    config = {"architectures": ["OPTForCausalLM"], "model_type": "opt", "vocab_size": ROWS, "hidden_size": HIDDEN,
              "word_embed_proj_dim": HIDDEN, "num_hidden_layers": LAYERS, "num_attention_heads": 2, "ffn_dim": FFN,
              "max_position_embeddings": POSITIONS, "activation_function": "relu", "do_layer_norm_before": True,
              "bos_token_id": EOS, "eos_token_id": EOS, "pad_token_id": 1, "torch_dtype": "float32"}
    (folder / "config.json").write_text(json.dumps(config))
    vocab = json.loads((DEMO / "vocab.json").read_text(encoding="utf-8"))
    (folder / "vocab.json").write_text(json.dumps({token: id for token, id in vocab.items() if id < VOCAB}))
    (folder / "merges.txt").write_text("#version: 0.2\n")
    for name in ("tokenizer_config.json", "special_tokens_map.json"):
        shutil.copy(DEMO / name, folder / name)


class Response:
    def __init__(self, status, headers, body):
        self.status, self.headers, self.body = status, headers, body

    def json(self):
        return json.loads(self.body)

    def error(self):
        return self.json()["error"]


class Connection:
    """One socket, with what was read too far."""

    def __init__(self, address, timeout=30):
        family = socket.AF_UNIX if isinstance(address, str) else socket.AF_INET
        self.socket = socket.socket(family, socket.SOCK_STREAM)
        self.socket.settimeout(timeout)
        self.socket.connect(address)
        self.rest = b""

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()

    def close(self):
        self.socket.close()

    def reset(self):
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.socket.close()

    def send(self, data):
        self.socket.sendall(data)

    def more(self):
        data = self.socket.recv(65536)
        self.rest += data
        return data

    def read_until(self, mark):
        while mark not in self.rest:
            if not self.more():
                raise ConnectionError(f"closed after {self.rest!r}")
        text, self.rest = self.rest.split(mark, 1)
        return text

    def read_exactly(self, count):
        while len(self.rest) < count:
            if not self.more():
                raise ConnectionError("closed within a body")
        data, self.rest = self.rest[:count], self.rest[count:]
        return data

    def head(self):
        lines = self.read_until(b"\r\n\r\n").decode("latin-1").split("\r\n")
        headers = {}
        for line in lines[1:]:
            name, value = line.split(":", 1)
            headers[name.strip().lower()] = value.strip()
        return int(lines[0].split()[1]), headers

    def chunks(self):
        while True:
            size = int(self.read_until(b"\r\n"), 16)
            data = self.read_exactly(size)
            assert self.read_exactly(2) == b"\r\n"
            if size == 0:
                return
            yield data

    def response(self, head_only=False):
        status, headers = self.head()
        if head_only or status == 100:
            return Response(status, headers, b"")
        if headers.get("transfer-encoding") == "chunked":
            return Response(status, headers, b"".join(self.chunks()))
        return Response(status, headers, self.read_exactly(int(headers["content-length"])))

    def closed(self):
        """True once the server has closed its side; what it still sent is dropped."""
        try:
            while self.more():
                pass
            return True
        except ConnectionResetError:
            return True
        except socket.timeout:
            return False


def request_bytes(method, path, body=None, headers=()):
    head = {"Host": "localhost", **dict(headers)}
    if body is not None and not isinstance(body, bytes):
        body = json.dumps(body).encode()
        head.setdefault("Content-Type", "application/json")
    if body is not None:
        head.setdefault("Content-Length", str(len(body)))
    lines = "".join(f"{name}: {value}\r\n" for name, value in head.items())
    return f"{method} {path} HTTP/1.1\r\n{lines}\r\n".encode() + (body or b"")


def events_of(text):
    """The data of server-sent events, comments left out."""
    for block in text.decode().split("\n\n"):
        lines = [line for line in block.split("\n") if line and not line.startswith(":")]
        assert all(line.startswith("data: ") for line in lines), block
        if lines:
            yield "\n".join(line[6:] for line in lines)


class Server:
    def __init__(self, *arguments, model=None, wait=True, environment=None):
        self.folder = pathlib.Path(tempfile.mkdtemp(prefix="ballast-serve-"))
        self.model = model or self.folder / "tiny"
        if model is None:
            self.model.mkdir()
            write_model(self.model)
        self.log = open(self.folder / "log", "w+b")
        port = [] if "--port" in arguments else ["--port", "0"]
        command = [BINARY, "serve", "-m", str(self.model), *port, "--threads", THREADS, *map(str, arguments)]
        self.process = subprocess.Popen(command, stdout=self.log, stderr=self.log,
                                        env={**os.environ, **(environment or {})})
        self.address = self.wait_for_address()
        if wait:
            self.wait_ready()

    def text(self):
        return (self.folder / "log").read_text(errors="replace")

    def wait_for_address(self):
        for _ in range(3000):
            match = re.search(r"listening on (?:http://([\d.]+):(\d+)|unix:(\S+)),", self.text())
            if match:
                return match[3] if match[3] else (match[1], int(match[2]))
            if self.process.poll() is not None:
                raise RuntimeError("the server ended: " + self.text())
            time.sleep(0.01)
        raise RuntimeError("no address: " + self.text())

    def wait_ready(self):
        for _ in range(6000):
            if self.call("GET", "/health").status == 200:
                return
            time.sleep(0.01)
        raise RuntimeError("never ready: " + self.text())

    def connect(self, timeout=30):
        return Connection(self.address, timeout)

    def call(self, method, path, body=None, headers=(), timeout=60):
        with self.connect(timeout) as connection:
            connection.send(request_bytes(method, path, body, headers))
            return connection.response(head_only=method == "HEAD")

    def complete(self, **fields):
        response = self.call("POST", "/v1/completions", fields)
        if response.status != 200:
            raise AssertionError(f"{response.status} {response.body!r}")
        return response.json()

    def stream(self, path="/v1/completions", **fields):
        """The chunks of a stream as JSON, `[DONE]` checked and taken off."""
        response = self.call("POST", path, {**fields, "stream": True})
        if response.status != 200:
            raise AssertionError(f"{response.status} {response.body!r}")
        assert response.headers["content-type"] == "text/event-stream"
        events = list(events_of(response.body))
        if path != "/completion":
            assert events.pop() == "[DONE]"
        return [json.loads(event) for event in events]

    def metric(self, name):
        text = self.call("GET", "/metrics").body.decode()
        return sum(float(line.rsplit(" ", 1)[1]) for line in text.splitlines()
                   if re.match(re.escape("ballast_" + name) + r"[ {]", line))

    def wait_idle(self):
        """Until nothing runs or waits; the caller asserts what is left."""
        for _ in range(3000):
            if self.metric("requests_running") + self.metric("requests_waiting") == 0 and self.metric("http_busy") <= 1:
                return
            time.sleep(0.01)

    def stop(self, signal_number=signal.SIGTERM):
        """Exit status."""
        if self.process.poll() is None:
            self.process.send_signal(signal_number)
        status = self.process.wait(60)
        return status

    def close(self):
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait()
        text = self.text()
        self.log.close()
        shutil.rmtree(self.folder, ignore_errors=True)
        if "Sanitizer: " in text or "runtime error: " in text:
            raise AssertionError(text)


class ServedTest(unittest.TestCase):
    """Ends with the class's server gone, and gone in peace."""

    @classmethod
    def tearDownClass(cls):
        try:
            status = cls.server.stop()
            if status != 0:
                raise AssertionError(f"exit status {status}: {cls.server.text()}")
        finally:
            cls.server.close()


class ServerTest(ServedTest):
    """One server for the tests of a class; each ends with nothing left in it."""
    arguments = ()

    @classmethod
    def setUpClass(cls):
        cls.server = Server(*cls.arguments)

    def tearDown(self):
        self.server.wait_idle()
        for name in ("requests_running", "requests_waiting", "kv_cache_usage_ratio"):
            self.assertEqual(self.server.metric(name), 0, name)

    def refused(self, status, response, param=None, code=None, part=""):
        self.assertEqual(response.status, status, response.body)
        self.assertTrue(response.headers["content-type"].endswith("json"))
        error = response.error()
        self.assertEqual(set(error) >= {"message", "type", "param", "code"}, True, error)
        if param is not None:
            self.assertEqual(error["param"], param)
        if code is not None:
            self.assertEqual(error["code"], code)
        self.assertIn(part, error["message"])
