"""Many clients at once, slow ones, and ones that leave: nobody else notices, and nothing is left behind.

BALLAST_SOAK_REQUESTS: how many requests the long one makes."""
import asyncio
import json
import os
import random
import socket
import subprocess
import sys
import threading
import time
import unittest

from server_support import DEMO, SANITIZED, Server, request_bytes

REQUESTS = int(os.environ.get("BALLAST_SOAK_REQUESTS", "10000"))
STEADY = {"prompt": "steady", "max_tokens": 50, "seed": 4, "ignore_eos": True, "return_token_ids": True, "logprobs": 1}
# Asks /health all the while, in a process of its own so that nobody else's work counts; prints [[seconds, status], …].
WATCH = """
import http.client, json, select, sys, time
server, seen = http.client.HTTPConnection(sys.argv[1], int(sys.argv[2])), []
while not select.select([sys.stdin], [], [], 0.005)[0]:
    begun = time.perf_counter()
    server.request("GET", "/health")
    response = server.getresponse()
    response.read()
    seen.append((time.perf_counter() - begun, response.status))
print(json.dumps(seen))
"""


class Others:
    """A client that goes on asking the same, and every answer must be the same."""

    def __init__(self, server):
        self.server, self.ending, self.answers = server, False, []
        self.alone = server.complete(**STEADY)["choices"]
        self.thread = threading.Thread(target=self.work)

    def work(self):
        while not self.ending:
            self.answers.append(self.server.complete(**STEADY)["choices"])

    def __enter__(self):
        self.thread.start()
        return self

    def __exit__(self, *_):
        self.ending = True
        self.thread.join()

    def undisturbed(self):
        return len(self.answers) > 0 and all(answer == self.alone for answer in self.answers)


def step_until_closed(connections, step, pause):
    """Calls step(connection) in turns until the server has closed them all. What it sends is left unread."""
    left = list(connections)
    while left:
        still = []
        for connection in left:
            try:
                step(connection)
                still.append(connection)
            except (ConnectionError, BrokenPipeError):
                connection.close()
        left = still
        time.sleep(pause)


class Soak(unittest.TestCase):
    def serve(self, *arguments, **keywords):
        server = Server(*arguments, **keywords)
        self.addCleanup(server.close)
        return server

    def ended(self, server, descriptors):
        server.wait_idle()
        for name in ("requests_running", "requests_waiting", "kv_cache_usage_ratio"):
            self.assertEqual(server.metric(name), 0, name)
        for _ in range(1000):
            if server.metric("open_descriptors") <= descriptors + 2:
                break
            time.sleep(0.01)
        self.assertLessEqual(server.metric("open_descriptors"), descriptors + 2)
        self.assertEqual(server.stop(), 0, server.text())

    def test_500_clients_that_write_a_byte_at_a_time(self):
        server = self.serve("--read-timeout", 2)
        descriptors = server.metric("open_descriptors")
        head = b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Length: 60000\r\n"
        slow = [server.connect() for _ in range(500)]
        for i, connection in enumerate(slow):
            connection.send(head + b"\r\n" if i % 2 else head + b"X: ")
            connection.socket.setblocking(False)
        with Others(server) as others:
            step_until_closed(slow, lambda connection: connection.socket.send(b"x"), 0.02)
            self.assertEqual(server.call("GET", "/health").status, 200)
        self.assertTrue(others.undisturbed())
        self.assertEqual(server.metric("http_dropped_total"), 500)
        self.ended(server, descriptors)

    def test_500_clients_that_read_a_byte_at_a_time(self):
        server = self.serve("--stall-timeout", 1, "--max-logprobs", 200, "--slots", 8, "--queue", 1000)
        descriptors = server.metric("open_descriptors")
        large = request_bytes("POST", "/tokenize", {"content": "a" * 300000})
        stream = request_bytes("POST", "/v1/completions", {"prompt": "a", "n": 3, "max_tokens": 60, "stream": True, "ignore_eos": True,
                                                           "logprobs": 200})

        def read(connection):
            try:
                if connection.socket.recv(1) == b"":
                    raise ConnectionError
            except BlockingIOError:
                pass  # nothing yet

        slow = []
        with Others(server) as others:
            for i in range(500):
                connection = server.connect()
                connection.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
                connection.send(stream if i % 10 == 0 else large)
                connection.socket.setblocking(False)
                slow.append(connection)
            # A client sees that it was cut off when it has read what was on its way: the server's side tells sooner.
            for _ in range(5000):
                if server.metric("http_dropped_total") >= 500:
                    break
                for connection in slow:
                    read(connection)
            self.assertEqual(server.metric("http_dropped_total"), 500)
            for connection in slow:
                connection.close()
            self.assertEqual(server.call("GET", "/health").status, 200)
        self.assertTrue(others.undisturbed())
        self.ended(server, descriptors)

    def test_1000_connections_at_once(self):
        server = self.serve("--slots", 16, model=DEMO)
        fields = [{"prompt": "abcdefgh"[:1 + i % 8], "max_tokens": 5 + i % 40, "seed": i, "ignore_eos": True} for i in range(16)]
        expected = [server.complete(**field)["choices"][0]["text"] for field in fields]
        descriptors = server.metric("open_descriptors")
        everybody = asyncio.Event()

        async def exchange(reader, writer, data):
            writer.write(data)
            head = await reader.readuntil(b"\r\n\r\n")
            if b"chunked" not in head:
                length = int(head.lower().split(b"content-length: ")[1].split(b"\r\n")[0])
                return int(head.split()[1]), await reader.readexactly(length)
            body = b""
            while size := int(await reader.readuntil(b"\r\n"), 16):
                body += await reader.readexactly(size)
                await reader.readexactly(2)
            await reader.readexactly(2)
            return 200, body

        async def client(i):
            reader, writer = await asyncio.open_connection(*server.address)
            arrived.append(i)
            if len(arrived) == 1000:
                everybody.set()
            await everybody.wait()
            try:
                if i % 5 < 2:
                    return (await exchange(reader, writer, request_bytes("GET", "/health")))[0]
                stream = i % 2 == 0
                status, body = await exchange(reader, writer, request_bytes("POST", "/v1/completions", {**fields[i % 16], "stream": stream}))
                if status == 200:
                    chunks = [json.loads(line[6:]) for line in body.decode().split("\n") if line.startswith("data: {")] if stream else [json.loads(body)]
                    self.assertEqual("".join(c["text"] for chunk in chunks for c in chunk["choices"]), expected[i % 16])
                return status
            finally:
                writer.close()

        async def every():
            return await asyncio.gather(*(client(i) for i in range(1000)))

        arrived = []
        watcher = subprocess.Popen([sys.executable, "-c", WATCH, *map(str, server.address)], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        statuses = asyncio.run(every())
        health = json.loads(watcher.communicate(b"end")[0])
        self.assertEqual(set(statuses) - {200, 429}, set())
        self.assertEqual(len(statuses), 1000)
        self.assertGreaterEqual(statuses.count(200), 400 + 80)
        self.assertEqual({status for _, status in health}, {200})
        times = sorted(seconds for seconds, _ in health)
        print(f"1000 at once: {statuses.count(200)} answered, {statuses.count(429)} refused; /health meanwhile, {len(times)} times: "
              f"median {times[len(times) // 2] * 1e3:.1f} ms, 99th percentile {times[len(times) * 99 // 100] * 1e3:.1f} ms")
        for _ in range(3000):
            server.connect().close()
        self.ended(server, descriptors)

    def test_requests_that_are_cancelled_at_random_leave_nothing(self):
        server = self.serve("--slots", 8, "--queue", 10000)
        draw = random.Random(3)

        def one():
            prompt = "abcdefghij"[:1 + draw.randrange(10)]
            kind = draw.randrange(8)
            if kind == 0:
                data = request_bytes("POST", "/tokenize", {"content": prompt * 50, "with_pieces": True})
            elif kind == 1:
                data = request_bytes("POST", "/v1/completions", b'{"prompt": "a", ' + prompt.encode())
            else:
                data = request_bytes("POST", "/v1/completions", {
                    "prompt": prompt, "max_tokens": 1 + draw.randrange(50), "n": 1 + (kind == 2) * draw.randrange(6), "stream": kind % 2 == 0,
                    "echo": kind == 5, "logprobs": 2 if kind > 4 else None, "ignore_eos": True})
            with server.connect() as connection:
                ending = draw.randrange(6)
                if ending == 0:
                    return connection.send(data[:draw.randrange(len(data))])
                connection.send(data)
                if ending == 1:
                    return connection.reset()
                if ending == 2:
                    return time.sleep(draw.random() * 0.01)
                if ending == 3:
                    connection.more()
                    return connection.reset()
                if ending == 4:
                    connection.socket.shutdown(socket.SHUT_WR)
                    return connection.closed()
                connection.response()

        def run(count):
            def work():
                for _ in range(count // 8):
                    one()
            threads = [threading.Thread(target=work) for _ in range(8)]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
            server.wait_idle()

        def resident():
            with open(f"/proc/{server.process.pid}/status") as file:
                return int(next(line for line in file if line.startswith("VmRSS")).split()[1]) << 10

        run(REQUESTS // 5)
        descriptors, memory = server.metric("open_descriptors"), resident()
        run(REQUESTS)
        grown = resident() - memory
        print(f"{REQUESTS} requests: {grown / 2**20:.1f} MiB more of {memory / 2**20:.1f}")
        if not SANITIZED:  # whose own bookkeeping grows
            self.assertLess(grown, 8 << 20)
        self.ended(server, descriptors)


if __name__ == "__main__":
    unittest.main()
