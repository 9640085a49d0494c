"""From binding to draining: ready, overloaded, out of descriptors, ended."""
import json
import os
import resource
import signal
import socket
import subprocess
import threading
import time
import unittest

from server_support import BINARY, DEMO, SANITIZED, Server, events_of, request_bytes


class Lifecycle(unittest.TestCase):
    def serve(self, *arguments, **keywords):
        server = Server(*arguments, **keywords)
        self.addCleanup(server.close)
        return server

    def test_sigterm_with_50_streams_loses_no_token(self):
        server = self.serve("--slots", 8)
        fields = {"prompt": "drain", "max_tokens": 50, "ignore_eos": True, "stream": True}
        expected = [server.complete(**{**fields, "stream": False, "seed": i})["choices"][0]["text"] for i in range(50)]
        streams = []
        for i in range(50):
            streams.append(server.connect())
            streams[-1].send(request_bytes("POST", "/v1/completions", {**fields, "seed": i}))
        # All of them are being answered before the signal comes; the question itself is one more.
        while server.metric("http_busy") - 1 + server.metric("requests_finished_total") - 50 < 50:
            pass
        server.process.send_signal(signal.SIGTERM)
        try:
            while server.call("GET", "/health").status == 200:
                pass
            health = server.call("GET", "/health")
            self.assertEqual((health.status, health.json()["status"]), (503, "draining"))
            late = server.call("POST", "/v1/completions", {"prompt": "late"})
            self.assertEqual(late.status, 503)
            self.assertIn("retry-after", late.headers)
        except ConnectionError:
            pass  # it was done by then
        texts = []
        for stream in streams:
            status, headers = stream.head()
            self.assertEqual(status, 200)
            events = list(events_of(b"".join(stream.chunks())))
            self.assertEqual(events[-1], "[DONE]")
            texts.append("".join(c["text"] for event in events[:-1] for c in json.loads(event)["choices"]))
            stream.close()
        self.assertEqual(texts, expected)
        self.assertEqual(server.process.wait(60), 0)

    def test_a_second_signal_ends_at_once(self):
        server = self.serve()
        with server.connect() as connection:
            connection.send(request_bytes("POST", "/v1/completions", {"prompt": "a", "n": 120, "max_tokens": 60, "ignore_eos": True}))
            while server.metric("requests_running") == 0:
                pass
            server.process.send_signal(signal.SIGTERM)
            while b"ending" not in server.text().encode():
                pass
            server.process.send_signal(signal.SIGTERM)
            self.assertIn(server.process.wait(60), (0, 130))

    def test_requests_beyond_the_drain_time_are_cut_off(self):
        server = self.serve("--drain", 0, model=DEMO)
        with server.connect() as connection:
            connection.send(request_bytes("POST", "/v1/completions", {"prompt": "a", "n": 100, "max_tokens": 500, "ignore_eos": True}))
            while server.metric("requests_running") == 0:
                pass
            self.assertEqual(server.stop(), 1)
        self.assertIn("cut off", server.text())

    def test_request_timeout_ends_with_what_there_is(self):
        server = self.serve("--request-timeout", 0.3, model=DEMO)
        answer = server.complete(prompt="a", n=64, max_tokens=500, ignore_eos=True)
        self.assertLess(answer["usage"]["completion_tokens"], 64 * 500)
        self.assertIn("length", {choice["finish_reason"] for choice in answer["choices"]})
        self.assertEqual(server.stop(), 0)

    def test_a_busy_port_is_one_line_and_a_killed_servers_port_is_free(self):
        server = self.serve()
        port = str(server.address[1])
        command = [BINARY, "serve", "-m", str(server.model), "--port", port]
        run = subprocess.run(command, capture_output=True, text=True, timeout=60)
        self.assertEqual((run.returncode, run.stdout), (1, ""))
        self.assertEqual(run.stderr.count("\n"), 1, run.stderr)
        self.assertIn(f"cannot listen on 127.0.0.1:{port}", run.stderr)
        with server.connect() as connection:
            connection.send(request_bytes("GET", "/health"))
            connection.response()
            server.process.kill()
            server.process.wait()
        again = self.serve("--port", port, model=server.model)
        self.assertEqual(str(again.address[1]), port)
        self.assertEqual(again.stop(), 0)

    def test_wrong_arguments_are_one_line(self):
        server_model = str(DEMO)
        for arguments, status in ((["-m", "/nonexistent"], 2), (["-m", server_model, "--ctx", "99999"], 2),
                                  (["-m", server_model, "--api-key-file", "/nonexistent"], 2),
                                  (["-m", server_model, "--chat-template", "/nonexistent"], 2),
                                  (["-m", server_model, "--port", "70000"], 2),
                                  (["-m", server_model, "--host", "300.1.1.1"], 1)):
            run = subprocess.run([BINARY, "serve", "--quiet", "--port", "0", *arguments], capture_output=True, text=True, timeout=60)
            self.assertEqual((run.returncode, run.stdout), (status, ""), run.stderr)
            self.assertEqual(run.stderr.count("\n"), 1, run.stderr)

    def test_unix_socket(self):
        path = f"/tmp/ballast-test-{os.getpid()}.sock"
        server = self.serve("--unix-socket", path)
        self.assertEqual(server.complete(prompt="a", max_tokens=1)["object"], "text_completion")
        run = subprocess.run([BINARY, "serve", "-m", str(server.model), "--unix-socket", path], capture_output=True, timeout=60)
        self.assertEqual(run.returncode, 1)
        server.process.kill()  # leaves the file behind, which must not be in the way
        server.process.wait()
        again = self.serve("--unix-socket", path)
        self.assertEqual(again.stop(), 0)
        self.assertFalse(os.path.exists(path))

    @unittest.skipIf(SANITIZED, "a sanitizer opens a pipe to see whether memory can be read, and reports a fault without one")
    def test_a_flood_of_connections_and_no_descriptors_left(self):
        server = self.serve()
        resource.prlimit(server.process.pid, resource.RLIMIT_NOFILE, (60, 60))
        idle = [server.connect() for _ in range(200)]  # many of them wait in the kernel's queue
        try:
            for connection in idle[:10]:
                connection.send(request_bytes("GET", "/health"))
                self.assertEqual(connection.response().status, 200)
        finally:
            for connection in idle:
                connection.close()
        self.assertEqual(server.call("GET", "/health").status, 200)
        self.assertGreater(server.metric("http_accepted_total"), 150)
        self.assertEqual(server.stop(), 0)

    def test_cancelled_requests_leave_nothing_behind(self):
        server = self.serve("--slots", 4)
        def burst(count):
            for i in range(count):
                with server.connect() as connection:
                    connection.send(request_bytes("POST", "/v1/completions", {
                        "prompt": "abcdefgh"[:1 + i % 8], "max_tokens": 40, "stream": i % 2 == 0, "ignore_eos": True}))
                    if i % 3 == 0:
                        connection.more()
            server.wait_idle()
        burst(30)
        descriptors = server.metric("open_descriptors")
        burst(300)
        self.assertLessEqual(server.metric("open_descriptors"), descriptors + 2)
        for name in ("requests_running", "requests_waiting", "kv_cache_usage_ratio"):
            self.assertEqual(server.metric(name), 0)
        self.assertEqual(server.metric("http_connections"), 1)
        self.assertNotIn("abcdefgh", server.text())
        self.assertEqual(server.stop(), 0)

    def test_a_client_that_does_not_read_is_cut_off(self):
        server = self.serve("--stall-timeout", 0.5, "--max-logprobs", 200, model=DEMO)
        with server.connect() as connection:
            connection.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            connection.send(request_bytes("POST", "/v1/completions", {"prompt": "a", "n": 16, "max_tokens": 500, "stream": True,
                                                                      "ignore_eos": True, "logprobs": 200}))
            while server.metric("requests_running") == 0:
                pass
            server.wait_idle()
            self.assertEqual(server.metric("requests_running"), 0)
            self.assertGreaterEqual(server.metric("http_dropped_total"), 1)
        self.assertEqual(server.stop(), 0)

    def test_long_waits_get_comments(self):
        server = self.serve("--keep-alive", 0.05, "--slots", 1, model=DEMO)
        with server.connect() as connection:
            connection.send(request_bytes("POST", "/v1/completions", {"prompt": list(range(100, 500)), "max_tokens": 1,
                                                                      "stream": True, "echo": True, "logprobs": 5}))
            connection.head()
            text = b"".join(connection.chunks())
        self.assertEqual(list(events_of(text))[-1], "[DONE]")
        self.assertEqual(server.stop(), 0)


if __name__ == "__main__":
    unittest.main()
