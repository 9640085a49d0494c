"""The official OpenAI client against the server: what it calls, what it raises, what it tries again. Needs openai."""
import asyncio
import json
import tempfile
import time
import unittest
from importlib.util import find_spec

from server_support import DEMO, ServedTest, Server

GREEDY = {"model": "any", "temperature": 0, "max_tokens": 12}
TEMPLATE = {"user": "Question: {content}\n", "assistant": "Answer: {content}\n", "answer": "Answer:", "stop": ["\n"]}


@unittest.skipUnless(find_spec("openai"), "openai is not installed (pip install openai)")
class OpenAi(ServedTest):
    @classmethod
    def setUpClass(cls):
        import openai
        cls.openai = openai
        with tempfile.NamedTemporaryFile("w", suffix=".json") as file:
            json.dump(TEMPLATE, file)
            file.flush()
            cls.server = Server("--slots", 8, "--queue", 60, "--chat-template", file.name, model=DEMO)

    def setUp(self):
        self.client = self.openai.OpenAI(**self.settings())
        self.addCleanup(self.client.close)

    def settings(self, server=None):
        host, port = (server or self.server).address
        return {"base_url": f"http://{host}:{port}/v1", "api_key": "none"}

    def create(self, **fields):
        return self.client.completions.create(**{"prompt": "The river", **GREEDY, **fields})

    def test_a_completion(self):
        answer = self.create()
        self.assertEqual((answer.object, answer.model, len(answer.choices)), ("text_completion", "demo", 1))
        self.assertEqual(answer.choices[0].finish_reason, "length")
        self.assertEqual(answer.usage.completion_tokens, 12)
        self.assertTrue(answer._request_id.startswith("req-"))
        self.assertEqual(self.create().choices[0].text, answer.choices[0].text)
        raw = self.client.completions.with_raw_response.create(prompt="The river", **GREEDY)
        self.assertEqual(raw.headers["x-request-id"], raw.parse()._request_id)

    def test_models(self):
        names = [model.id for model in self.client.models.list()]
        self.assertEqual(names, ["demo"])
        self.assertEqual(self.client.models.retrieve("demo").id, "demo")
        with self.assertRaises(self.openai.NotFoundError):
            self.client.models.retrieve("other")

    def test_streams(self):
        whole = self.create()
        chunks = list(self.create(stream=True, stream_options={"include_usage": True}))
        self.assertEqual("".join(c.text for chunk in chunks for c in chunk.choices), whole.choices[0].text)
        self.assertEqual(chunks[-1].usage.total_tokens, whole.usage.total_tokens)
        self.assertEqual([c.finish_reason for chunk in chunks for c in chunk.choices][-1], "length")
        self.assertGreater(len(chunks), 3)

    def test_logprobs_and_echo(self):
        scores = self.create(prompt=["The river", "A"], echo=True, logprobs=2, max_tokens=1)
        for choice in scores.choices:
            logprobs = choice.logprobs
            self.assertIsNone(logprobs.token_logprobs[0])
            self.assertEqual(len({len(logprobs.tokens), len(logprobs.token_logprobs), len(logprobs.text_offset)}), 1)
            for value, top in zip(logprobs.token_logprobs[1:], logprobs.top_logprobs[1:]):
                self.assertIn(value, top.values())
        self.assertTrue(scores.choices[0].text.startswith("The river"))
        self.assertEqual(self.create(echo=True, max_tokens=0, logprobs=0).choices[0].text, "The river")

    def test_n_stop_seed_and_bias(self):
        several = self.create(n=3, temperature=1, seed=5)
        self.assertEqual([choice.index for choice in several.choices], [0, 1, 2])
        self.assertGreater(len({choice.text for choice in several.choices}), 1)
        self.assertEqual([c.text for c in self.create(n=3, temperature=1, seed=5).choices], [c.text for c in several.choices])
        text = self.create(max_tokens=30).choices[0].text
        stopped = self.create(max_tokens=30, stop=[text[5:8], "never"]).choices[0]
        self.assertEqual((stopped.text, stopped.finish_reason), (text[:text.index(text[5:8])], "stop"))
        self.assertEqual(self.create(best_of=3, n=2, temperature=1).usage.completion_tokens, 36)
        forced = self.create(logit_bias={"100": 100}, logprobs=0).choices[0].logprobs.tokens
        self.assertEqual(len(set(forced)), 1)
        self.assertEqual(self.create(extra_body={"top_k": 1, "min_p": 0.1, "return_token_ids": True}, temperature=1).choices[0].text,
                         self.create().choices[0].text)

    def test_chat(self):
        messages = [{"role": "user", "content": "Where does the river flow?"}]
        answer = self.client.chat.completions.create(messages=messages, logprobs=True, top_logprobs=2, **GREEDY)
        self.assertEqual(answer.choices[0].message.role, "assistant")
        self.assertEqual(len(answer.choices[0].logprobs.content), answer.usage.completion_tokens)
        chunks = list(self.client.chat.completions.create(messages=messages, stream=True, **GREEDY))
        self.assertEqual("".join(c.delta.content or "" for chunk in chunks for c in chunk.choices), answer.choices[0].message.content)

    def test_errors(self):
        for fields, param in (({"temperature": 3}, "temperature"), ({"prompt": []}, "prompt"), ({"max_tokens": -1}, "max_tokens"),
                              ({"suffix": "x"}, "suffix"), ({"prompt": "word " * 2000}, "prompt")):
            with self.assertRaises(self.openai.BadRequestError) as caught:
                self.create(**fields)
            self.assertEqual((caught.exception.param, caught.exception.type), (param, "invalid_request_error"))
            self.assertTrue(caught.exception.message)
        with self.assertRaises(self.openai.BadRequestError) as caught:
            self.create(prompt="word " * 2000)
        self.assertEqual(caught.exception.code, "context_length_exceeded")
        with self.assertRaises(self.openai.BadRequestError):
            list(self.create(stream=True, logprobs=99))

    def test_what_cannot_work_is_not_tried_again(self):
        before = self.server.metric("http_responses_total")
        with self.assertRaises(self.openai.InternalServerError) as caught:
            self.client.post("/classify", cast_to=object, body={})
        self.assertEqual(caught.exception.status_code, 501)
        self.assertEqual(self.server.metric("http_responses_total") - before, 2)  # that one, and the question before

    def test_keys(self):
        with tempfile.NamedTemporaryFile("w") as file:
            file.write("sesame\n")
            file.flush()
            server = Server("--api-key-file", file.name, model=DEMO)
            try:
                with self.openai.OpenAI(**{**self.settings(server), "api_key": "sesame"}) as good:
                    self.assertEqual(good.completions.create(prompt="a", **GREEDY).object, "text_completion")
                with self.openai.OpenAI(**self.settings(server)) as bad, self.assertRaises(self.openai.AuthenticationError) as caught:
                    bad.completions.create(prompt="a", **GREEDY)
                self.assertEqual(caught.exception.code, "invalid_api_key")
            finally:
                server.close()

    def test_a_full_server_is_tried_again(self):
        server = Server("--slots", 1, "--queue", 4, model=DEMO)
        try:
            blocker = server.connect()
            self.addCleanup(blocker.close)
            body = json.dumps({"prompt": "a", "n": 5, "max_tokens": 400, "ignore_eos": True, "seed": 1}).encode()
            blocker.send(b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n" % len(body) + body)
            while server.metric("requests_waiting") == 0:
                time.sleep(0.001)
            with self.openai.OpenAI(**self.settings(server), max_retries=0) as impatient:
                with self.assertRaises(self.openai.RateLimitError):
                    impatient.completions.create(prompt="a", **GREEDY)
            with self.openai.OpenAI(**self.settings(server), max_retries=60) as patient:
                self.assertEqual(patient.completions.create(prompt="a", **GREEDY).object, "text_completion")
            self.assertGreaterEqual(server.metric("requests_rejected_total"), 2)
        finally:
            server.close()

    def test_closing_a_stream_stops_its_generation(self):
        stream = self.create(stream=True, max_tokens=400, extra_body={"ignore_eos": True})
        next(iter(stream))
        stream.close()
        self.server.wait_idle()
        self.assertEqual(self.server.metric("requests_running"), 0)

    def test_50_streams_at_once(self):
        async def one(client, index):
            text = ""
            async for chunk in await client.completions.create(prompt=f"Number {index}", **GREEDY, stream=True):
                text += "".join(choice.text for choice in chunk.choices)
            return text

        async def every():
            async with self.openai.AsyncOpenAI(**self.settings()) as client:
                return await asyncio.gather(*(one(client, index) for index in range(50)))

        together = asyncio.run(every())
        self.assertEqual(together, [self.create(prompt=f"Number {index}").choices[0].text for index in range(50)])


if __name__ == "__main__":
    unittest.main()
