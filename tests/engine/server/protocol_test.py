"""HTTP as clients get it wrong: every row of bad input has its answer, and nothing of it disturbs others."""
import json
import os
import signal
import socket
import tempfile
import threading
import time
import unittest

from server_support import Server, ServerTest, request_bytes

POST = {"Content-Type": "application/json"}


class Json(ServerTest):
    def post(self, body, path="/v1/completions"):
        return self.server.call("POST", path, body, POST)

    def test_malformed(self):
        good = b'{"prompt": "a", "max_tokens": 1}'
        self.assertEqual(self.post(good).status, 200)
        for bad in (b"", b"{", good[:-1], good + b"x", good + good, b"\xef\xbb\xbf" + good, b"[1]", b"3", b"null",
                    b'{"prompt": "a", "prompt": "b"}', b'{"prompt": 1e400}', b'{"prompt": "a", "seed": 1' + b"0" * 400 + b"}",
                    b'{"prompt": "\\ud800"}', b'{"prompt": "\xff"}', b'{"prompt": "a\x01"}', b"[" * 1000000,
                    b'{"a":' * 100000, b'{"prompt": NaN}', b"{'prompt': 1}", good[:-1] + b"\x00}", b'{"prompt": "a\x00"}'):
            with self.subTest(bad=bad[:40]):
                self.refused(400, self.post(bad))
        self.refused(400, self.post(b"{", "/tokenize"), code="invalid_json")

    def test_nul_and_controls_in_a_prompt_are_text(self):
        answer = self.post(b'{"prompt": "a\\u0000b\\u0007", "max_tokens": 0, "echo": true}').json()
        self.assertEqual(answer["choices"][0]["text"], "a\0b\x07")

    def test_large_arrays_are_refused(self):
        self.refused(400, self.post(json.dumps({"prompt": [1] * 65537}).encode()))
        self.refused(400, self.post(json.dumps({"prompt": "a" * 3000000}).encode()), "prompt", "context_length_exceeded")

    def test_tokenize_and_detokenize_in_both_dialects(self):
        vllm = self.post({"prompt": "aé"}, "/tokenize").json()
        llama = self.post({"content": "aé"}, "/tokenize").json()
        self.assertEqual(vllm["tokens"][1:], llama["tokens"])
        self.assertEqual(vllm["count"], 4)
        pieces = self.post({"content": "aé", "with_pieces": True}, "/tokenize").json()["tokens"]
        self.assertEqual(pieces[0], {"id": llama["tokens"][0], "piece": "a"})
        back = self.post({"tokens": llama["tokens"]}, "/detokenize").json()
        self.assertEqual(back, {"prompt": "aé", "content": "aé"})
        for bad in ({}, {"prompt": 3}, {"content": None}):
            self.refused(400, self.post(bad, "/tokenize"))
        for bad in ({}, {"tokens": 3}, {"tokens": [-1]}, {"tokens": [260]}, {"tokens": ["a"]}):
            self.refused(400, self.post(bad, "/detokenize"))


class Routes(ServerTest):
    def test_answers(self):
        for path in ("/health", "/v1/health", "/v1/models", "/v1/models/tiny", "/metrics", "/version", "/props", "/slots",
                     "/tokenizer_info", "/", "/index.html", "/health?x=1"):
            response = self.server.call("GET", path)
            self.assertEqual(response.status, 200, path)
            self.assertIn("x-request-id", response.headers)
            head = self.server.call("HEAD", path)
            self.assertEqual((head.status, head.body), (200, b""))
            self.assertGreater(int(head.headers["content-length"]), 0)
        model = self.server.call("GET", "/v1/models").json()["data"][0]
        self.assertEqual((model["id"], model["object"], model["max_model_len"]), ("tiny", "model", 64))
        self.assertAlmostEqual(model["meta"]["bits_per_weight"], 32)
        info = self.server.call("GET", "/tokenizer_info").json()
        self.assertEqual((info["bos_token"], info["eos_token_id"]), ("</s>", 2))
        page = self.server.call("GET", "/").body.decode()
        for outside in ("http://", "https://", "/*STYLE*/", "/*SCRIPT*/", "/*KIND*/"):
            self.assertNotIn(outside, page.replace("http://www.w3.org/2000/svg", ""))

    def test_wrong_ones(self):
        self.refused(404, self.server.call("GET", "/nothing"))
        self.refused(404, self.server.call("GET", "/../etc/passwd"))
        self.refused(404, self.server.call("GET", "/v1/models/other"), code="model_not_found")
        refused = self.server.call("GET", "/v1/completions")
        self.refused(405, refused)
        self.assertIn("POST", refused.headers["allow"])
        self.refused(405, self.server.call("POST", "/health", {}))
        self.refused(405, self.server.call("DELETE", "/v1/models"))
        self.refused(415, self.server.call("POST", "/v1/completions", b"a=1", {"Content-Type": "text/plain"}))

    def test_metrics_format(self):
        self.server.complete(prompt="a", max_tokens=3, ignore_eos=True)
        text = self.server.call("GET", "/metrics").body.decode()
        kinds = {}
        for line in text.splitlines():
            if line.startswith("# TYPE"):
                _, _, name, kind = line.split()
                kinds[name] = kind
            elif not line.startswith("#"):
                name = line.split("{")[0].split(" ")[0]
                base = name if name in kinds else name.rsplit("_", 1)[0]
                self.assertIn(base, kinds, line)
                float(line.rsplit(" ", 1)[1])
        for name in ("requests_running", "requests_waiting", "generated_tokens_total", "prompt_tokens_total",
                     "kv_cache_usage_ratio", "time_to_first_token_seconds", "inter_token_seconds", "request_seconds",
                     "queue_seconds", "requests_finished_total", "prefix_cache_queries_total", "prefix_cache_hits_total",
                     "preemptions_total"):
            self.assertIn("ballast_" + name, kinds)
        self.assertGreaterEqual(self.server.metric("inter_token_seconds_count"), 2)
        self.assertGreaterEqual(self.server.metric("requests_finished_total"), 1)


class Bytes(ServerTest):
    arguments = ("--max-body", 1)

    def raw(self, data, timeout=5):
        """Status of the first answer (None: closed without one), and whether the server then closed."""
        with self.server.connect(timeout) as connection:
            try:
                connection.send(data)
                status = connection.response().status
            except (ConnectionError, BrokenPipeError):
                return None, True
            return status, connection.closed()

    def test_malformed_requests_close_the_connection(self):
        body = b'{"prompt":"a","max_tokens":1}'
        post = b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
        length = b"Content-Length: %d\r\n" % len(body)
        table = {
            400: [b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03", b"GET  / HTTP/1.1\r\nHost: x\r\n\r\n", b"GET /\r\n\r\n",
                  b"GET / HTTP/1.1\nHost: x\n\n", b"GET / HTTP/1.1\r\nHost: x\r\nA: b\r\n c\r\n\r\n",
                  b"GET / HTTP/1.1\r\nHost: x\r\nA\x00: b\r\n\r\n", b"GET / HTTP/1.1\r\nHost: x\r\nA: b\rc\r\n\r\n",
                  b"GET / HTTP/1.1\r\nHost: x\r\nno colon\r\n\r\n", b"GET / HTTP/1.1\r\nHost: x\r\nA : b\r\n\r\n",
                  b"GET / HTTP/1.1\r\n\r\n", b"GET / HTTP/1.1\r\nHost: x\r\nHost: y\r\n\r\n",
                  b"GET nothing HTTP/1.1\r\nHost: x\r\n\r\n",
                  post + length + length + b"\r\n" + body,
                  post + length + b"Transfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
                  post + b"Transfer-Encoding: chunked\r\n" + length + b"\r\n0\r\n\r\n",
                  post + b"Content-Length: -5\r\n\r\n", post + b"Content-Length: 0x10\r\n\r\n",
                  post + b"Content-Length: +29\r\n\r\n" + body, post + b"Content-Length: 5, 5\r\n\r\nabcde",
                  post + b"Content-Length: 99999999999999999999999\r\n\r\n",
                  post + b"Transfer-Encoding: chunked\r\n\r\n-2\r\nab\r\n0\r\n\r\n",
                  post + b"Transfer-Encoding: chunked\r\n\r\nzz\r\n", post + b"Transfer-Encoding: chunked\r\n\r\n3\r\nabcdef\r\n",
                  post + b"Transfer-Encoding: chunked\r\n\r\nfffffffffffffffff\r\n",
                  post + b"Transfer-Encoding: chunked\r\n\r\n3;" + b"x" * 5000],
            413: [post + b"Content-Length: 1048577\r\n\r\n", post + b"Content-Length: 10000000000\r\n\r\n",
                  post + b"Transfer-Encoding: chunked\r\n\r\n100001\r\n"],
            414: [b"GET /" + b"a" * 9000 + b" HTTP/1.1\r\nHost: x\r\n\r\n"],
            417: [post + b"Expect: 200-ok\r\n" + length + b"\r\n"],
            431: [b"GET / HTTP/1.1\r\nHost: x\r\n" + b"A: b\r\n" * 100 + b"\r\n",
                  b"GET / HTTP/1.1\r\nHost: x\r\nA: " + b"b" * 17000 + b"\r\n\r\n"],
            501: [post + b"Transfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n", post + b"Transfer-Encoding: identity\r\n\r\n"],
            505: [b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", b"GET / HTTP/3.0\r\nHost: x\r\n\r\n"],
        }
        for status, requests in table.items():
            for data in requests:
                with self.subTest(status=status, data=data[:120]):
                    got, closed = self.raw(data)
                    self.assertEqual(got, status)
                    self.assertTrue(closed)
        self.assertEqual(self.raw(b"\r\nGET /health HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"), (200, True))

    def test_largest_body_passes(self):
        body = b'{"prompt":"a","max_tokens":1}'
        body += b" " * ((1 << 20) - len(body))
        self.assertEqual(self.server.call("POST", "/v1/completions", body, POST).status, 200)
        chunked = b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nTransfer-Encoding: chunked\r\n\r\n"
        for begin in range(0, len(body), 1 << 16):
            piece = body[begin:begin + (1 << 16)]
            chunked += b"%x\r\n" % len(piece) + piece + b"\r\n"
        with self.server.connect() as connection:
            connection.send(chunked + b"0\r\nTrailer: x\r\n\r\n")
            self.assertEqual(connection.response().status, 200)

    def test_expect_continue(self):
        data = request_bytes("POST", "/v1/completions", {"prompt": "a", "max_tokens": 1}, {"Expect": "100-continue"})
        head, body = data.split(b"\r\n\r\n", 1)
        with self.server.connect() as connection:
            connection.send(head + b"\r\n\r\n")
            self.assertEqual(connection.response().status, 100)
            connection.send(body)
            self.assertEqual(connection.response().status, 200)

    def test_byte_by_byte_and_many_in_a_row(self):
        data = request_bytes("POST", "/v1/completions", {"prompt": "a", "max_tokens": 1})
        with self.server.connect() as connection:
            for byte in data:
                connection.send(bytes([byte]))
            self.assertEqual(connection.response().status, 200)
            connection.send(data * 3 + request_bytes("GET", "/health"))
            self.assertEqual([connection.response().status for _ in range(4)], [200] * 4)


class Slow(ServerTest):
    arguments = ("--read-timeout", 0.5, "--idle-timeout", 1, "--stall-timeout", 1, "--keep-alive", 0.2)

    def test_slow_clients_are_dropped_and_others_are_not(self):
        slow = [self.server.connect() for _ in range(200)]
        try:
            for i, connection in enumerate(slow):
                connection.send((b"G", b"GET / HTTP/1.1\r\nHo", request_bytes("POST", "/v1/completions", b"{} ")[:-2], b"")[i % 4])
            self.assertEqual(self.server.call("GET", "/health").status, 200)
            self.assertTrue(all(connection.closed() for connection in slow))
        finally:
            for connection in slow:
                connection.close()
        self.assertGreaterEqual(self.server.metric("http_dropped_total"), 150)


class Leaving(ServerTest):
    arguments = ("--slots", 2, "--queue", 1000)

    def start(self, **fields):
        connection = self.server.connect()
        connection.send(request_bytes("POST", "/v1/completions", {"prompt": "abc", "ignore_eos": True, **fields}))
        return connection

    def test_whenever_a_client_leaves_its_slot_is_free_and_others_go_on(self):
        steady = {"prompt": "steady", "max_tokens": 50, "seed": 4, "ignore_eos": True, "return_token_ids": True}
        alone = self.server.complete(**steady)["choices"]
        together = []
        worker = threading.Thread(target=lambda: together.extend(self.server.complete(**steady)["choices"] for _ in range(10)))
        worker.start()
        for i in range(60):
            connection = self.server.connect()
            data = request_bytes("POST", "/v1/completions", {"prompt": "abc" * (i % 15), "max_tokens": 16, "n": 8,
                                                             "ignore_eos": True, "stream": i % 2 == 0})
            connection.send(data[:len(data) if i % 3 else i * 3])
            if i % 3 == 1 and i % 2 == 0:
                connection.more()
            if i % 4 == 0:
                connection.socket.shutdown(socket.SHUT_WR)
            connection.reset() if i % 5 == 0 else connection.close()
        worker.join()
        self.assertEqual(together, [alone] * 10)

    def test_half_close_ends_a_request(self):
        with self.start(max_tokens=60, n=100) as connection:
            while self.server.metric("requests_running") == 0:
                pass
            connection.socket.shutdown(socket.SHUT_WR)
            self.assertTrue(connection.closed())
        self.server.wait_idle()
        self.assertGreater(self.server.metric("requests_finished_total"), 0)


class Full(ServerTest):
    arguments = ("--slots", 1, "--queue", 10)

    def test_a_full_queue_answers_429(self):
        with self.server.connect() as connection:
            connection.send(request_bytes("POST", "/v1/completions", {"prompt": "a", "n": 11, "max_tokens": 60, "ignore_eos": True}))
            while self.server.metric("requests_waiting") == 0:
                pass
            response = self.server.call("POST", "/v1/completions", {"prompt": "a", "n": 11})
            self.refused(429, response)
            self.assertEqual((response.headers["retry-after"], response.error()["type"]), ("1", "overloaded_error"))
            self.assertEqual(self.server.call("GET", "/health").status, 200)
        self.server.wait_idle()
        self.assertEqual(self.server.complete(prompt="a", n=20)["object"], "text_completion", "more than the queue, but alone")


class Keys(unittest.TestCase):
    def test_keys(self):
        with tempfile.NamedTemporaryFile("w") as file:
            file.write("# keys\nsesame\n\n  other-key \n")
            file.flush()
            server = Server("--api-key-file", file.name, "--cors-origin", "http://page.example", "--strict-model",
                            "--name", "mine", "--no-metrics", "--no-slots")
            try:
                def ask(headers, path="/v1/models", method="GET"):
                    return server.call(method, path, None, headers)

                for good in ({"Authorization": "Bearer sesame"}, {"authorization": "bearer other-key"}, {"X-Api-Key": "sesame"}):
                    self.assertEqual(ask(good).status, 200)
                for bad in ({}, {"Authorization": "Bearer "}, {"Authorization": "sesame"}, {"Authorization": "Bearer sesam"},
                            {"Authorization": "Bearer sesame1"}, {"X-Api-Key": "x" * 9000}, {"X-Api-Key": "# keys"}):
                    response = ask(bad)
                    self.assertEqual((response.status, response.error()["type"], response.error()["code"]),
                                     (401, "authentication_error", "invalid_api_key"))
                self.assertEqual(ask({}, "/v1/models?key=sesame").status, 401)
                self.assertEqual(ask({}, "/health").status, 200)
                self.assertEqual(ask({}, "/").status, 200)
                key = {"X-Api-Key": "sesame"}
                self.assertEqual(ask(key, "/metrics").status, 501)
                self.assertEqual(ask(key, "/slots").status, 501)
                wrong = server.call("POST", "/v1/completions", {"prompt": "a", "model": "tiny"}, key)
                self.assertEqual((wrong.status, wrong.error()["code"]), (404, "model_not_found"))

                origin = {"Origin": "http://page.example"}
                preflight = ask({**origin, "Access-Control-Request-Method": "POST"}, "/v1/completions", "OPTIONS")
                self.assertEqual((preflight.status, preflight.headers["access-control-allow-origin"]),
                                 (200, "http://page.example"))
                self.assertIn("authorization", preflight.headers["access-control-allow-headers"])
                self.assertNotIn("access-control-allow-origin", ask({**key, "Origin": "http://evil.example"}).headers)

                file.seek(0)
                file.truncate()
                file.write("fresh\n")
                file.flush()
                server.process.send_signal(signal.SIGHUP)
                for _ in range(500):
                    if ask({"X-Api-Key": "fresh"}).status == 200:
                        break
                    time.sleep(0.01)
                self.assertEqual(ask({"X-Api-Key": "fresh"}).status, 200)
                self.assertEqual(ask(key).status, 401)
                self.assertNotIn("sesame", server.text())
                self.assertEqual(server.stop(), 0)
            finally:
                server.close()


if __name__ == "__main__":
    unittest.main()
