"""What completions answer: fields at their boundaries, log-probabilities, stops, streams, and the same bits whatever
else runs."""
import json
import tempfile
import threading
import unittest

from server_support import EOS, POSITIONS, VOCAB, Server, ServerTest, events_of, request_bytes

GREEDY = {"temperature": 0}


def tokens_of(answer, index=0):
    return answer["choices"][index]["token_ids"]


class Completions(ServerTest):
    def ask(self, **fields):
        return self.server.complete(**{"prompt": "Hello", "max_tokens": 8, **GREEDY, **fields})

    def test_shape(self):
        answer = self.ask()
        self.assertEqual(answer["object"], "text_completion")
        self.assertTrue(answer["id"].startswith("cmpl-"))
        self.assertEqual(answer["model"], "tiny")
        self.assertEqual(answer["usage"]["prompt_tokens"], 6)
        self.assertEqual(answer["usage"]["total_tokens"], 6 + answer["usage"]["completion_tokens"])
        self.assertEqual(len(answer["choices"]), 1)
        self.assertIsNone(answer["choices"][0]["logprobs"])

    def test_prompt_forms_give_the_same(self):
        ids = self.server.call("POST", "/tokenize", {"prompt": "Hello"}).json()["tokens"]
        self.assertEqual(ids[0], EOS)
        text = self.ask()["choices"][0]["text"]
        for prompt in (["Hello"], ids, [ids]):
            self.assertEqual(self.ask(prompt=prompt)["choices"][0]["text"], text)
        # Token lists are taken verbatim: without the first token it is another prompt.
        bare = self.ask(prompt=ids[1:], echo=True, logprobs=1)["choices"][0]["logprobs"]
        self.assertEqual(len(bare["tokens"]) - 8, len(ids) - 1)

    def test_prompts_times_n_are_in_order(self):
        answer = self.ask(prompt=["one", "two"], n=2, temperature=1, seed=7, return_token_ids=True)
        self.assertEqual([choice["index"] for choice in answer["choices"]], [0, 1, 2, 3])
        self.assertNotEqual(tokens_of(answer, 0), tokens_of(answer, 1))
        alone = self.ask(prompt="two", n=2, temperature=1, seed=7, return_token_ids=True)
        self.assertEqual([tokens_of(answer, 2), tokens_of(answer, 3)], [tokens_of(alone, 0), tokens_of(alone, 1)])

    def test_seed_repeats(self):
        run = lambda seed: tokens_of(self.ask(temperature=1.5, seed=seed, max_tokens=20, return_token_ids=True))
        self.assertEqual(run(3), run(3))
        self.assertEqual(run(-3), run(-3))
        self.assertNotEqual(run(3), run(4))

    def test_null_is_absent(self):
        nulls = {key: None for key in ("stop", "suffix", "logprobs", "logit_bias", "seed", "n", "best_of", "stream",
                                       "echo", "top_p", "presence_penalty", "user", "stream_options", "model")}
        self.assertEqual(self.ask(**nulls)["choices"], self.ask()["choices"])

    def test_echo_with_logprobs_scores_every_token(self):
        ids = [EOS, 40, 41, 42, 43]
        answer = self.ask(prompt=ids, echo=True, logprobs=1, max_tokens=1)
        scores = answer["choices"][0]["logprobs"]
        for name in ("tokens", "token_logprobs", "top_logprobs", "text_offset"):
            self.assertEqual(len(scores[name]), len(ids) + 1, name)
        self.assertIsNone(scores["token_logprobs"][0])
        self.assertIsNone(scores["top_logprobs"][0])
        for value, top in zip(scores["token_logprobs"][1:], scores["top_logprobs"][1:]):
            self.assertLessEqual(value, max(top.values()))
            self.assertIn(value, top.values())
        # Greedy: the sampled token is the likeliest, and its two values are one float.
        self.assertEqual(scores["token_logprobs"][-1], max(scores["top_logprobs"][-1].values()))

    def test_scores_of_a_prompt_are_those_of_its_generation(self):
        made = self.ask(max_tokens=12, logprobs=0, return_token_ids=True, ignore_eos=True)["choices"][0]
        whole = made["prompt_token_ids"] + made["token_ids"]
        scored = self.ask(prompt=whole, echo=True, logprobs=0, max_tokens=0)["choices"][0]
        self.assertEqual(scored["logprobs"]["token_logprobs"][-12:], made["logprobs"]["token_logprobs"])
        self.assertEqual(scored["finish_reason"], "length")

    def test_a_sampled_end_has_an_entry(self):
        answer = self.ask(logit_bias={str(EOS): 100}, echo=True, logprobs=2, max_tokens=4)
        choice = answer["choices"][0]
        self.assertEqual(choice["finish_reason"], "stop")
        self.assertEqual(choice["text"], "Hello")
        self.assertEqual(len(choice["logprobs"]["tokens"]), 6 + 1)
        self.assertEqual(choice["logprobs"]["tokens"][-1], "</s>")

    def test_offsets_are_characters(self):
        prompt = "é€🙂a"
        scores = self.ask(prompt=prompt, echo=True, logprobs=0, max_tokens=0)["choices"][0]
        self.assertEqual(scores["text"], prompt)
        # The beginning, 2 bytes, 3 bytes, 4 bytes, 1 byte.
        self.assertEqual(scores["logprobs"]["text_offset"], [0, 0, 0, 1, 1, 1, 2, 2, 2, 2, 3])
        self.assertTrue(scores["logprobs"]["tokens"][1].startswith("bytes:\\x"))

    def test_echo_of_one_token_without_generation(self):
        scores = self.ask(prompt=[EOS], echo=True, logprobs=1, max_tokens=0)["choices"][0]["logprobs"]
        self.assertEqual(scores["token_logprobs"], [None])

    def test_best_of_keeps_the_likeliest(self):
        fields = {"temperature": 1, "seed": 11, "max_tokens": 6, "ignore_eos": True, "return_token_ids": True}
        every = self.ask(n=6, logprobs=0, **fields)["choices"]
        mean = lambda choice: sum(choice["logprobs"]["token_logprobs"]) / 6
        ranked = sorted(every, key=mean, reverse=True)
        best = self.ask(n=2, best_of=6, **fields)
        self.assertEqual([tokens_of(best, i) for i in range(2)], [choice["token_ids"] for choice in ranked[:2]])
        self.assertEqual(best["usage"]["completion_tokens"], 36)

    def test_logit_bias_bans_and_forces(self):
        forced = self.ask(logit_bias={"70": 100}, return_token_ids=True)
        self.assertEqual(set(tokens_of(forced)), {70})
        banned = self.ask(logit_bias={"70": -100, "71": 100}, return_token_ids=True)
        self.assertEqual(set(tokens_of(banned)), {71})

    def test_min_tokens_and_ignore_eos(self):
        ends = {"logit_bias": {str(EOS): 100}, "max_tokens": 5}
        self.assertEqual(self.ask(**ends)["usage"]["completion_tokens"], 1)
        self.assertEqual(self.ask(**ends, min_tokens=3)["usage"]["completion_tokens"], 4)
        self.assertEqual(self.ask(**ends, ignore_eos=True)["choices"][0]["finish_reason"], "length")

    def test_stop_token_ids(self):
        answer = self.ask(logit_bias={"70": 100}, stop_token_ids=[70], return_token_ids=True)
        self.assertEqual((tokens_of(answer), answer["choices"][0]["text"]), ([70], ""))
        self.assertEqual(answer["choices"][0]["finish_reason"], "stop")

    def test_exact_context(self):
        self.assertEqual(self.ask(prompt=[40] * (POSITIONS - 1), max_tokens=1)["usage"]["total_tokens"], POSITIONS)
        self.assertEqual(self.ask(prompt=[40] * POSITIONS, max_tokens=0, echo=True, logprobs=1)["usage"]["total_tokens"],
                         POSITIONS)
        for count, more in ((POSITIONS, 1), (POSITIONS - 1, 2), (POSITIONS + 1, 0), (3, 10**12)):
            response = self.server.call("POST", "/v1/completions",
                                        {"prompt": [40] * count, "max_tokens": more, "echo": True})
            if more > 10**9:  # the field's own limit, or the context's: refused either way
                self.assertEqual(response.status, 400)
                continue
            self.refused(400, response, "prompt", "context_length_exceeded")
            self.assertEqual(response.error()["n_prompt_tokens"], count)
            self.assertEqual(response.error()["n_ctx"], POSITIONS)
        # Without max_tokens: what is left.
        self.assertEqual(self.server.complete(prompt=[40] * (POSITIONS - 3), ignore_eos=True)["usage"]["completion_tokens"], 3)


class Stops(ServerTest):
    def text(self, **fields):
        return self.server.complete(prompt="Hello", max_tokens=40, seed=5, ignore_eos=True, **fields)["choices"][0]

    def test_a_stop_cuts_exactly(self):
        whole = self.text()["text"]
        for begin, length in ((4, 1), (3, 4), (0, 2)):
            stop = whole[begin:begin + length]
            choice = self.text(stop=stop)
            self.assertEqual(choice["text"], whole[:whole.index(stop)])
            self.assertEqual(choice["finish_reason"], "stop")
            self.assertEqual(self.text(stop=["\u4e00", stop])["text"], choice["text"])

    def test_a_stop_that_never_comes_changes_nothing(self):
        whole = self.text()
        almost = whole["text"][-3:] + "\u4e00"
        self.assertEqual(self.text(stop=almost), whole)

    def test_a_stop_equal_to_the_prompts_tail(self):
        self.assertEqual(self.text(stop="llo")["text"], self.text()["text"].split("llo")[0])

    def test_a_stop_whose_characters_are_split_between_tokens(self):
        found = 0
        for seed in range(60):
            fields = {"prompt": "Hello", "max_tokens": 40, "seed": seed, "ignore_eos": True, "temperature": 2, "top_p": 1}
            whole = self.server.complete(**fields)["choices"][0]["text"]
            for character in set(whole):
                if "\x7f" < character < "\ufffd":  # of several bytes, so of several tokens here
                    found += 1
                    at = whole.index(character)
                    for stop in (character, whole[max(0, at - 2):at + 2]):
                        self.assertEqual(self.server.complete(**fields, stop=stop)["choices"][0]["text"], whole[:whole.index(stop)])
        self.assertGreater(found, 5)

    def test_bounds(self):
        ask = lambda stop: self.server.call("POST", "/v1/completions", {"prompt": "a", "max_tokens": 1, "stop": stop})
        for good in ([], "x", ["x"] * 16, "y" * 256):
            self.assertEqual(ask(good).status, 200, good)
        for bad in ("", [""], ["x"] * 17, "y" * 257, 3, [3], {"a": 1}):
            self.refused(400, ask(bad), "stop")


class Streams(ServerTest):
    def both(self, path="/v1/completions", **fields):
        fields = {"prompt": "Stream", "max_tokens": 30, "seed": 2, **fields}
        response = self.server.call("POST", path, fields)
        self.assertEqual(response.status, 200, response.body)
        return response.json(), self.server.stream(path, **fields)

    def test_text_and_logprobs_are_those_without_stream(self):
        for fields in ({}, {"logprobs": 2}, {"echo": True, "logprobs": 1}, {"n": 3}, {"stop": ["a", "e", "i"]},
                       {"prompt": ["x", "y"], "max_tokens": 1}, {"echo": True, "max_tokens": 0, "logprobs": 0}):
            whole, chunks = self.both(**fields)
            self.assertEqual(len({chunk["id"] for chunk in chunks}), 1)
            for choice in whole["choices"]:
                mine = [c for chunk in chunks for c in chunk["choices"] if c["index"] == choice["index"]]
                self.assertEqual("".join(c["text"] for c in mine), choice["text"])
                self.assertEqual([c["finish_reason"] for c in mine[:-1]], [None] * (len(mine) - 1))
                self.assertEqual(mine[-1]["finish_reason"], choice["finish_reason"])
                if choice["logprobs"]:
                    for name, values in choice["logprobs"].items():
                        self.assertEqual([v for c in mine for v in c["logprobs"][name]], values, name)

    def test_usage_comes_last_and_only_when_asked_for(self):
        whole, chunks = self.both(stream_options={"include_usage": True})
        self.assertEqual(chunks[-1]["choices"], [])
        for name in ("prompt_tokens", "completion_tokens", "total_tokens"):
            self.assertEqual(chunks[-1]["usage"][name], whole["usage"][name])
        self.assertTrue(all(chunk["usage"] is None for chunk in chunks[:-1]))
        self.assertTrue(all("usage" not in chunk for chunk in self.both()[1]))

    def test_no_character_is_split(self):
        for seed in range(8):
            whole, chunks = self.both(seed=seed, temperature=2, ignore_eos=True, max_tokens=50)
            pieces = [c["text"] for chunk in chunks for c in chunk["choices"]]
            self.assertEqual("".join(pieces), whole["choices"][0]["text"])

    def test_llama_dialect(self):
        whole, chunks = self.both("/completion", n_predict=9, n_probs=2, ignore_eos=True)
        self.assertEqual("".join(chunk["content"] for chunk in chunks), whole["content"])
        self.assertEqual([chunk["stop"] for chunk in chunks], [False] * (len(chunks) - 1) + [True])
        self.assertEqual(whole["tokens_predicted"], 9)
        self.assertEqual(whole["stop_type"], "limit")
        self.assertEqual(len(whole["completion_probabilities"]), 9)

    def test_http_1_0_gets_no_chunks(self):
        body = json.dumps({"prompt": "Stream", "max_tokens": 5, "stream": True}).encode()
        with self.server.connect() as connection:
            connection.send(b"POST /v1/completions HTTP/1.0\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n"
                            % len(body) + body)
            status, headers = connection.head()
            self.assertEqual((status, headers.get("transfer-encoding"), headers["connection"]), (200, None, "close"))
            self.assertTrue(connection.more() or connection.rest)
            self.assertTrue(connection.closed())
            self.assertEqual(list(events_of(connection.rest))[-1], "[DONE]")


class Fields(ServerTest):
    def ask(self, **fields):
        return self.server.call("POST", "/v1/completions", {"prompt": "a", "max_tokens": 1, **fields})

    def test_boundaries(self):
        table = {
            "temperature": ([0, 2, 0.5], [-0.001, 2.001, 1e308, -1e308, "1", [], True]),
            "top_p": ([0, 1, 0.5], [-0.001, 1.001, "x"]),
            "min_p": ([0, 1], [-0.1, 1.1]),
            "top_k": ([-1, 0, 1, 10**6], [-2, 1.5, "3"]),
            "presence_penalty": ([-2, 2], [-2.001, 2.001]),
            "frequency_penalty": ([-2, 2], [-2.001, 2.001, {}]),
            "repetition_penalty": ([0.5, 1, 100], [0, -1, 101]),
            "n": ([1, 128], [0, -1, 129, 1.5, "2", True, 2**63]),
            "best_of": ([1, 20], [0, 21, "x"]),
            "logprobs": ([0, 5], [-1, 6, True, "1"]),
            "max_tokens": ([1, 50], [-1, 0, 1.5, "5", 2**64 - 1]),
            "min_tokens": ([0, 1], [-1, 2]),
            "seed": ([0, -1, 2**63 - 1, -2**63], [1.5, "7", 2**63]),
            "echo": ([True, False], [1, "true"]),
            "stream": ([False], [1, "true"]),
            "user": (["me"], [1, []]),
            "logit_bias": ([{}, {"5": 100}, {"5": -100}], [{"5": 101}, {"-1": 1}, {"": 1}, {"x": 1}, {str(VOCAB): 1}, 7]),
            "stop_token_ids": ([[], [5]], [[VOCAB], [-1], 5, ["a"]]),
            "stream_options": ([{}, {"include_usage": True}], [[], "x"]),
        }
        for field, (good, bad) in table.items():
            for value in good:
                self.assertEqual(self.ask(**{field: value}).status, 200, (field, value))
            for value in bad:
                with self.subTest(field=field, value=value):
                    self.refused(400, self.ask(**{field: value}))
                    if value != 2**64 - 1:
                        self.assertEqual(self.ask(**{field: value}).error()["param"], field)

    def test_prompts(self):
        for bad in ("", [], [[]], ["a", 1], [1, "a"], [[1], "a"], [-1], [VOCAB], [VOCAB + 2], [2**63], [1.5], 5, True,
                    {"a": 1}, [None], [[1], []], ["a"] * 129, None):
            with self.subTest(prompt=bad):
                if bad == "":  # the tokenizer's own first token is a prompt
                    self.assertEqual(self.ask(prompt=bad).status, 200)
                else:
                    self.refused(400, self.ask(prompt=bad), "prompt")
        self.assertEqual(self.ask(prompt=["a"] * 128).status, 200)
        self.refused(400, self.ask(prompt=["a"] * 65, n=2), "prompt")

    def test_what_is_not_supported(self):
        self.refused(400, self.ask(suffix="x"), "suffix", "unsupported_parameter")
        self.refused(400, self.ask(stream=True, best_of=2), "best_of")
        self.refused(400, self.ask(n=3, best_of=2), "best_of")
        self.assertEqual(self.ask(some_new_field={"a": [1]}).status, 200)
        self.assertEqual(self.ask(model="gpt-3.5-turbo-instruct").json()["model"], "tiny")
        chat = self.server.call("POST", "/v1/chat/completions", {"messages": [{"role": "user", "content": "x"}]})
        self.refused(400, chat, part="--chat-template")
        self.refused(501, self.server.call("POST", "/v1/classify", {}))


class Together(ServerTest):
    """A request's tokens and log-probabilities are the same bits alone, in company, and from a warm cache."""
    arguments = ("--slots", "32", "--cache-positions", "1024")

    def test_company_and_warm_prefixes_do_not_matter(self):
        long = list(range(30, 75))
        jobs = [{"prompt": long[:5 + i % 40], "max_tokens": 6 + i % 12, "seed": i, "logprobs": 3, "n": 1 + i % 2,
                 "temperature": (0, 1, 2)[i % 3], "return_token_ids": True} for i in range(32)]
        run = lambda job: [(c["token_ids"], c["logprobs"]) for c in self.server.complete(**job)["choices"]]
        alone = [run({**job, "cache_prompt": False}) for job in jobs]
        self.assertEqual(self.server.metric("prefix_cache_hits_total"), 0)
        for size in (2, 7, 32):
            results = [None] * size
            threads = [threading.Thread(target=lambda i=i: results.__setitem__(i, run(jobs[i]))) for i in range(size)]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
            self.assertEqual(results, alone[:size], size)
        self.assertEqual([run(job) for job in jobs], alone)
        self.assertGreater(self.server.metric("prefix_cache_hits_total"), 0)


class Chat(unittest.TestCase):
    def test_a_template_makes_a_prompt(self):
        template = {"system": "{content}|", "user": "U:{content}|", "assistant": "A:{content}|", "answer": "A:",
                    "stop": ["|"]}

        with tempfile.NamedTemporaryFile("w", suffix=".json") as file:
            json.dump(template, file)
            file.flush()
            server = Server("--chat-template", file.name)
        try:
            messages = [{"role": "system", "content": "s"}, {"role": "user", "content": [{"type": "text", "text": "q"}]}]
            fields = {"messages": messages, "seed": 1, "max_tokens": 20, "logprobs": True, "top_logprobs": 2}
            whole = server.call("POST", "/v1/chat/completions", fields).json()
            plain = server.complete(prompt="s|U:q|A:", seed=1, max_tokens=20, stop=["|"], logprobs=0)
            self.assertEqual(whole["choices"][0]["message"], {"role": "assistant", "content": plain["choices"][0]["text"]})
            self.assertEqual([entry["logprob"] for entry in whole["choices"][0]["logprobs"]["content"]],
                             plain["choices"][0]["logprobs"]["token_logprobs"])
            chunks = server.stream("/v1/chat/completions", **fields)
            self.assertEqual(chunks[0]["choices"][0]["delta"]["role"], "assistant")
            self.assertEqual("".join(c["delta"]["content"] for chunk in chunks for c in chunk["choices"]),
                             plain["choices"][0]["text"])
            for bad in (None, [], [1], [{"role": "nobody", "content": "x"}], [{"role": "user"}],
                        [{"role": "user", "content": [{"type": "image_url"}]}]):
                response = server.call("POST", "/v1/chat/completions", {"messages": bad})
                self.assertEqual((response.status, response.error()["param"]), (400, "messages"), bad)
            self.assertEqual(server.stop(), 0)
        finally:
            server.close()


if __name__ == "__main__":
    unittest.main()
