"""Image classifiers behind /v1/classify, and each kind of model on the other's routes."""
import json
import pathlib
import shutil
import struct
import subprocess
import tempfile
import threading
import unittest
import zlib

from server_support import BINARY, DEMO, SOURCE, Server, ServerTest, request_bytes

GOLDEN = SOURCE / "tests/golden"
JPEG, PNG = {"Content-Type": "image/jpeg"}, {"Content-Type": "image/png"}
CLASSES = 7


def write_classifier(folder):
    for name in ("config.json", "model.safetensors"):
        shutil.copy(GOLDEN / "vit/vit" / name, folder / name)
    (folder / "preprocessor_config.json").write_text('{"image_processor_type": "ViTImageProcessor", "size": 20}')


def image(name):
    return (GOLDEN / "image" / name).read_bytes()


def png(width, height, rows=b""):
    """A grey PNG that says it has this size, whatever it holds."""
    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
    return (b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0))
            + chunk(b"IDAT", zlib.compress(rows, 9)) + chunk(b"IEND", b""))


class ImagesTest(ServerTest):
    @classmethod
    def setUpClass(cls):
        cls.folder = pathlib.Path(tempfile.mkdtemp(prefix="ballast-vit-"))
        write_classifier(cls.folder)
        cls.server = Server(*cls.arguments, model=cls.folder)

    @classmethod
    def tearDownClass(cls):
        super().tearDownClass()
        shutil.rmtree(cls.folder)

    def classify(self, data, headers=JPEG, query=""):
        return self.server.call("POST", "/v1/classify" + query, data, headers)

    def predictions(self, data, headers=JPEG, query=""):
        response = self.classify(data, headers, query)
        self.assertEqual(response.status, 200, response.body)
        return response.json()["predictions"]


class Classify(ImagesTest):
    def test_answers_are_those_of_the_command_line(self):
        names = ["photo.jpg", "grey.png", "cmyk.jpg", "palette.png", "progressive.jpg", "rgba_16_bits.png", "orientation_6.jpg"]
        run = subprocess.run([BINARY, "classify", "-m", str(self.folder), "--json", "--quiet", "--top", "3",
                              *(str(GOLDEN / "image" / name) for name in names)], capture_output=True, check=True)
        for name, expected in zip(names, json.loads(run.stdout)["images"]):
            self.assertEqual(self.predictions(image(name), query="?top=3"), expected["predictions"], name)

    def test_shape(self):
        answer = self.classify(image("rgb.png"), PNG)
        self.assertIn("x-request-id", answer.headers)
        answer = answer.json()
        self.assertEqual((answer["object"], answer["model"]), ("image_classification", self.folder.name))
        self.assertEqual(len(answer["predictions"]), 5)
        values = [entry["probability"] for entry in answer["predictions"]]
        self.assertEqual(values, sorted(values, reverse=True))
        every = self.predictions(image("rgb.png"), PNG, "?a=b&top=7")
        self.assertAlmostEqual(sum(entry["probability"] for entry in every), 1)
        self.assertEqual({entry["label"] for entry in every}, {f"LABEL_{i}" for i in range(CLASSES)})
        # The content decides, not what its type claims, and no type is fine.
        self.assertEqual(self.predictions(image("rgb.png"), {"Content-Type": "Image/JPEG; q=1"}), answer["predictions"])
        self.assertEqual(self.predictions(image("rgb.png"), {}), answer["predictions"])

    def test_top(self):
        for bad in ("0", "8", "-1", "x", "5x", "99999999999999999999", "%35"):
            self.refused(400, self.classify(image("rgb.png"), PNG, "?top=" + bad), "top")
        self.assertEqual(len(self.predictions(image("rgb.png"), PNG, "?top=1")), 1)
        self.assertEqual(len(self.predictions(image("rgb.png"), PNG, "?top=")), 5)

    def test_what_is_no_image(self):
        photo, drawing = image("photo.jpg"), image("rgb.png")
        for bad in (b"", b"GIF89a", b"RIFF\0\0\0\0WEBP", b"<svg/>", b"\xff\xd8\xff", photo[:-40], photo[:200], drawing[:-20],
                    drawing[:40] + b"\0" + drawing[41:], drawing[:60] + bytes(len(drawing) - 60), b"\xff\xd8\xff" * 1000,
                    png(0, 5), png(2**31 - 1, 1), png(5, 5), b"{}"):
            with self.subTest(bad=bad[:20]):
                self.refused(400, self.classify(bad), code="invalid_image", part="image: ")
        self.assertEqual(len(self.predictions(photo)), 5)

    def test_pixel_bombs_are_refused_before_they_are_unpacked(self):
        before = self.server.metric("peak_memory_bytes")
        for width, height in ((60000, 60000), (50001, 1000), (65501, 1)):
            bomb = png(width, height, bytes((width + 1) * min(height, 2000)))
            self.refused(400, self.classify(bomb, PNG), code="invalid_image", part="at most")
        self.assertLess(self.server.metric("peak_memory_bytes"), before + (100 << 20))

    def test_other_content_types(self):
        for kind in ("application/json", "image/gif", "image/svg+xml", "text/plain", "application/x-www-form-urlencoded",
                     "multipart/form-data; boundary=x", "image/"):
            self.refused(415, self.classify(image("rgb.png"), {"Content-Type": kind}), part="image/jpeg or image/png")
        self.refused(405, self.server.call("GET", "/v1/classify"))

    def test_many_at_once_are_those_alone(self):
        names = ["photo.jpg", "grey.png", "cmyk.jpg", "palette.png", "progressive.jpg", "rgb.png", "ycck.jpg", "grey.jpg"]
        alone = [self.predictions(image(name)) for name in names]
        before, wrong = self.server.metric("images_classified_total"), []

        def client(begin):
            with self.server.connect() as connection:
                for i in range(begin, begin + 25):
                    data = image(names[i % 8]) if i % 5 else b"\xff\xd8\xff broken"
                    connection.send(request_bytes("POST", "/v1/classify", data, JPEG))
                    answer = connection.response()
                    if answer.json().get("predictions") != (alone[i % 8] if i % 5 else None):
                        wrong.append((i, answer.body))
        threads = [threading.Thread(target=client, args=(i,)) for i in range(16)]
        for thread in threads:
            thread.start()
        self.assertEqual(self.server.call("GET", "/health").status, 200)
        for thread in threads:
            thread.join()
        self.assertEqual(wrong, [])
        self.assertEqual(self.server.metric("images_classified_total"), before + 16 * 20)

    def test_clients_that_leave(self):
        data = request_bytes("POST", "/v1/classify", image("photo.jpg"), JPEG)
        for i in range(200):
            connection = self.server.connect()
            connection.send(data[:len(data) if i % 3 else i * len(data) // 200])
            connection.reset() if i % 2 else connection.close()
        self.assertEqual(len(self.predictions(image("photo.jpg"))), 5)

    def test_other_routes(self):
        model = self.server.call("GET", "/v1/models").json()["data"][0]
        self.assertEqual((model["id"], model["meta"]["architecture"], model["meta"]["vocab"]), (self.folder.name, "vit", CLASSES))
        self.assertEqual(model["meta"]["image"], {"height": 20, "width": 20})
        self.assertNotIn("max_model_len", model)
        props = self.server.call("GET", "/props").json()
        self.assertEqual((props["facts"]["image"]["width"], props["load"]["running"]), (20, 0))
        self.assertEqual(self.server.call("GET", "/health").json(), {"status": "ok"})
        self.assertIn('<body class="images">', self.server.call("GET", "/").body.decode())
        for path in ("/v1/completions", "/v1/chat/completions", "/completion", "/tokenize", "/detokenize"):
            response = self.server.call("POST", path, {"prompt": "a"})
            self.refused(501, response, code="not_supported", part="/v1/classify")
            self.assertEqual(response.headers["x-should-retry"], "false")
        for path in ("/tokenizer_info", "/slots"):
            self.refused(501, self.server.call("GET", path), part="/v1/classify")
        self.predictions(image("rgb.png"), PNG)
        self.assertGreaterEqual(self.server.metric("request_seconds_count"), 1)
        self.assertEqual(self.server.metric("queue_seconds_count"), self.server.metric("request_seconds_count"))


class Limits(ImagesTest):
    arguments = ("--max-body", 1, "--max-image", 2)

    def test_images_may_be_larger_than_json(self):
        photo = image("photo.jpg")
        self.assertEqual(len(self.predictions(photo + bytes((2 << 20) - len(photo)))), 5)
        for claimed in ((2 << 20) + 1, 10**10):
            with self.server.connect() as connection:
                connection.send(b"POST /v1/classify HTTP/1.1\r\nHost: x\r\nContent-Type: image/png\r\nContent-Length: %d\r\n\r\n" % claimed)
                self.refused(413, connection.response(), part=str(2 << 20))
                self.assertTrue(connection.closed())
        chunk = b"POST /v1/classify HTTP/1.1\r\nHost: x\r\n%sTransfer-Encoding: chunked\r\n\r\n%x\r\n"
        for kind, most in ((b"Content-Type: image/png\r\n", 2 << 20), (b"Content-Type: application/json\r\n", 1 << 20), (b"", 1 << 20)):
            with self.server.connect() as connection:
                connection.send(chunk % (kind, most + 1))
                self.refused(413, connection.response(), part=str(most))


class OfText(unittest.TestCase):
    def test_a_model_of_text_has_no_classes(self):
        server = Server()
        try:
            for headers in (JPEG, {"Content-Type": "application/json"}):
                response = server.call("POST", "/v1/classify", image("photo.jpg"), headers)
                self.assertEqual((response.status, response.error()["code"]), (501, "not_supported"))
                self.assertIn("/v1/completions", response.error()["message"])
            # The larger bodies of images are for classifiers only.
            large = server.call("POST", "/v1/completions", bytes((4 << 20) + 1), JPEG)
            self.assertEqual(large.status, 413)
            self.assertEqual(server.stop(), 0)
        finally:
            server.close()


class Arguments(unittest.TestCase):
    def refused(self, folder, part, *arguments):
        run = subprocess.run([BINARY, "serve", "--quiet", "--port", "0", "-m", str(folder), *arguments], capture_output=True,
                             text=True, timeout=60)
        self.assertEqual((run.returncode, run.stdout, run.stderr.count("\n")), (2, "", 1), run.stderr)
        self.assertIn(part, run.stderr)

    def test_wrong_ones_are_one_line(self):
        with tempfile.TemporaryDirectory() as name:
            folder = pathlib.Path(name)
            write_classifier(folder)
            (folder / "labels.txt").write_text("a\nb\n")
            (folder / "chat.json").write_text('{"user": "{content}"}')
            self.refused(folder, "2 lines", "--labels", str(folder / "labels.txt"))
            self.refused(folder, "models of text", "--chat-template", str(folder / "chat.json"))
            self.refused(DEMO, "image classifiers", "--labels", str(folder / "labels.txt"))
            (folder / "preprocessor_config.json").unlink()
            self.refused(folder, "preprocessor_config.json")


if __name__ == "__main__":
    unittest.main()
