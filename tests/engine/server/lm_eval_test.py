"""lm-evaluation-harness through the server gives what a computation in this process gives, sample by sample: a forward
pass in numpy, and where torch is installed the harness's own Hugging Face model. Needs lm_eval[api]; the second part
torch, transformers and accelerate."""
import json
import logging
import os
import struct
import unittest
from importlib.util import find_spec

from server_support import DEMO, SOURCE, Server

CONTEXT = 512
# Sums of some hundred log-probabilities, each off by the rounding of float32 sums in another order.
TOLERANCE = 2e-3
TASKS = ["ballast_choices", "ballast_text"]


class Opt:
    """The bundled model by its equations, in float64."""

    def __init__(self, folder):
        import numpy as np
        raw = (folder / "model.safetensors").read_bytes()
        size = struct.unpack("<Q", raw[:8])[0]
        self.np, self.tensors = np, {}
        for name, entry in json.loads(raw[8:8 + size]).items():
            if name != "__metadata__":
                begin, end = (8 + size + offset for offset in entry["data_offsets"])
                kind = {"F16": np.float16, "F32": np.float32}[entry["dtype"]]
                self.tensors[name.removeprefix("model.").removeprefix("decoder.")] = (
                    np.frombuffer(raw[begin:end], kind).reshape(entry["shape"]).astype(np.float64))
        self.config = json.loads((folder / "config.json").read_text())

    def linear(self, name, x):
        return x @ self.tensors[name + ".weight"].T + self.tensors[name + ".bias"]

    def norm(self, name, x):
        centred = x - x.mean(-1, keepdims=True)
        scaled = centred / self.np.sqrt((centred ** 2).mean(-1, keepdims=True) + 1e-5)
        return scaled * self.tensors[name + ".weight"] + self.tensors[name + ".bias"]

    def attention(self, name, x):
        np, heads = self.np, self.config["num_attention_heads"]
        q, k, v = (self.linear(f"{name}.{part}_proj", x).reshape(len(x), heads, -1).swapaxes(0, 1) for part in "qkv")
        scores = q @ k.swapaxes(1, 2) / np.sqrt(q.shape[-1])
        scores = np.where(np.tri(len(x), dtype=bool), scores, -np.inf)
        weights = np.exp(scores - scores.max(-1, keepdims=True))
        weights /= weights.sum(-1, keepdims=True)
        return self.linear(name + ".out_proj", (weights @ v).swapaxes(0, 1).reshape(len(x), -1))

    def logprobs(self, ids):
        np = self.np
        x = self.tensors["embed_tokens.weight"][ids] + self.tensors["embed_positions.weight"][np.arange(len(ids)) + 2]
        for layer in range(self.config["num_hidden_layers"]):
            name = f"layers.{layer}."
            x = x + self.attention(name + "self_attn", self.norm(name + "self_attn_layer_norm", x))
            hidden = np.maximum(self.linear(name + "fc1", self.norm(name + "final_layer_norm", x)), 0)
            x = x + self.linear(name + "fc2", hidden)
        logits = self.norm("final_layer_norm", x) @ self.tensors["embed_tokens.weight"].T
        top = logits.max(-1, keepdims=True)
        return logits - top - np.log(np.exp(logits - top).sum(-1, keepdims=True))


@unittest.skipUnless(find_spec("lm_eval"), "lm_eval is not installed (pip install 'lm_eval[api]')")
class LmEval(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        os.environ.update(HF_HUB_OFFLINE="1", HF_DATASETS_OFFLINE="1", TOKENIZERS_PARALLELISM="false", TQDM_DISABLE="1")
        cls.server = Server("--slots", 8, model=DEMO)
        cls.home = os.getcwd()
        os.chdir(SOURCE)

    @classmethod
    def tearDownClass(cls):
        os.chdir(cls.home)
        cls.server.close()

    def evaluate(self, kind, tasks=TASKS, **arguments):
        import lm_eval
        from lm_eval.tasks import TaskManager
        logging.disable(logging.WARNING)
        try:
            return lm_eval.simple_evaluate(model=kind, model_args=arguments, tasks=tasks, bootstrap_iters=0,
                                           task_manager=TaskManager(include_path=str(SOURCE / "tests/engine/server/lm_eval"),
                                                                    include_defaults=False))
        finally:
            logging.disable(logging.NOTSET)

    def through_server(self, tasks=TASKS, **arguments):
        host, port = self.server.address
        return self.evaluate("local-completions", tasks, model="demo", base_url=f"http://{host}:{port}/v1/completions",
                             max_length=CONTEXT, **arguments)

    @staticmethod
    def values(results, task):
        """[(log-likelihood, is greedy)] of every sample's requests, in their order."""
        samples = sorted(results["samples"][task], key=lambda sample: sample["doc_id"])
        return [response for sample in samples for response in sample["filtered_resps"]]

    def tokens(self, text):
        return self.server.call("POST", "/tokenize", {"prompt": text, "add_special_tokens": False}).json()["tokens"]

    def test_every_choice_is_scored_as_by_the_equations(self):
        results = self.through_server(batch_size=4)
        model, checked = Opt(DEMO), 0
        for sample in results["samples"]["ballast_choices"]:
            for choice, (value, greedy) in zip(sample["doc"]["choices"], sample["filtered_resps"]):
                context, whole = self.tokens(sample["doc"]["text"]), self.tokens(sample["doc"]["text"] + " " + choice)
                logprobs = model.logprobs(whole)[len(context) - 1:-1]
                expected = [logprobs[i, id] for i, id in enumerate(whole[len(context):])]
                self.assertAlmostEqual(value, sum(expected), delta=1e-4)
                self.assertEqual(greedy, all(logprobs[i].argmax() == id for i, id in enumerate(whole[len(context):])))
                checked += 1
        self.assertEqual(checked, 60)
        self.assertGreater(results["results"]["ballast_choices"]["acc,none"], 0.5)

    def test_a_text_is_scored_in_full_windows(self):
        """The harness takes windows of max_length - 2 tokens, each behind one more; the last is as long, but scores only what
        is left."""
        results = self.through_server(tasks=["ballast_text"])
        ids, model, most = self.tokens((DEMO / "sample.txt").read_text()), Opt(DEMO), CONTEXT - 2
        self.assertGreater(len(ids), 4 * CONTEXT)
        total, begin = 0.0, 0
        while begin < len(ids):
            end = min(begin + most, len(ids))
            first = 2 if begin == 0 else ids[begin - 1]
            window = [first] + ids[begin:end]
            if end - begin < most and begin > 0:
                window = ids[end - most - 1:end]
            count = end - begin
            logprobs = model.logprobs(window[:-1])[-count:]
            total += sum(logprobs[i, id] for i, id in enumerate(window[-count:]))
            begin = end
        self.assertAlmostEqual(self.values(results, "ballast_text")[0], total, delta=TOLERANCE)

    def test_batches_and_concurrency_change_nothing(self):
        alone = self.through_server()
        for arguments in ({"batch_size": 16}, {"num_concurrent": 8}, {"tokenizer_backend": "remote", "num_concurrent": 4, "batch_size": 3}):
            together = self.through_server(**arguments)
            for task in TASKS:
                self.assertEqual(self.values(together, task), self.values(alone, task), arguments)

    @unittest.skipUnless(find_spec("torch") and find_spec("accelerate"), "torch or accelerate is not installed")
    def test_the_harness_own_model_says_the_same(self):
        tasks = [*TASKS, "ballast_ending"]
        # Its windows are two tokens shorter through an API, which has to generate one.
        theirs = self.evaluate("hf", tasks, pretrained=str(DEMO), dtype="float32", device="cpu", max_length=CONTEXT - 2,
                               batch_size=1, add_bos_token=False)
        ours = self.through_server(tasks, batch_size=4)
        for task in TASKS:
            for mine, other in zip(self.values(ours, task), self.values(theirs, task), strict=True):
                if isinstance(mine, (tuple, list)):
                    self.assertEqual(mine[1], other[1])
                    mine, other = mine[0], other[0]
                self.assertAlmostEqual(mine, other, delta=TOLERANCE)
        self.assertEqual(self.values(ours, "ballast_ending"), self.values(theirs, "ballast_ending"))


if __name__ == "__main__":
    unittest.main()
