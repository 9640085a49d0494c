#!/usr/bin/env python3
"""Speed of Ballast beside CTranslate2 (https://github.com/OpenNMT/CTranslate2) on OPT models of one shape with random
weights, in alternating runs.

usage: ctranslate2_opt.py BALLAST --shape 125m --bits 4 --group-size 128 --peer-type int8 [--work DIR]

Needs the PyPI packages ctranslate2, transformers, torch and safetensors in the interpreter that runs it. The folders (the float
model that CTranslate2 converts, Ballast's quantized one) stay in DIR, so that a second run begins at once. Prefill is one
forward pass over the prompt whose last logits are asked for; decoding is greedy, its prompt of one token not counted.
"""
import argparse
import pathlib
import shutil
import time

import common


def token_name(index):
    return ["<s>", "<pad>", "</s>", "<unk>"][index] if index < 4 else f"t{index}"


def prepare(options):
    """The converted folder."""
    shape, work = options.shape, pathlib.Path(options.work)
    float_folder, converted = work / f"opt-{shape}-float", work / f"opt-{shape}-ct2-{options.peer_type}"
    if not converted.is_dir():
        import ctranslate2
        import ctranslate2.converters.transformers
        if not float_folder.is_dir():
            common.run([options.ballast, "bench", "--quiet", "--random-model", shape, "--bits", 16, "--save", float_folder])
        # The tokenizer of a random model knows 260 ids, the converter wants a name for each row of the embedding.
        loader = ctranslate2.converters.transformers._MODEL_LOADERS["OPTConfig"]
        loader.get_vocabulary = lambda model, tokenizer: [token_name(index) for index in range(model.config.vocab_size)]
        partial = converted.with_suffix(".partial")
        shutil.rmtree(partial, ignore_errors=True)
        ctranslate2.converters.TransformersConverter(str(float_folder)).convert(
            str(partial), quantization=None if options.peer_type == "float32" else options.peer_type)
        partial.rename(converted)
    return converted


class Peer:
    def __init__(self, folder, options):
        import ctranslate2
        self.options = options
        self.generator = ctranslate2.Generator(str(folder), device="cpu", compute_type=options.peer_type, inter_threads=1,
                                               intra_threads=options.threads)
        self.tokens = [token_name(4 + index % 256) for index in range(options.prompt)]
        self.measure()

    def measure(self):
        prompt, generate = self.options.prompt, self.options.generate
        start = time.perf_counter()
        self.generator.score_batch([self.tokens + self.tokens[:1]]) if self.options.score else \
            self.generator.generate_batch([self.tokens], max_length=1, min_length=1, include_prompt_in_result=False)
        middle = time.perf_counter()
        result = self.generator.generate_batch([self.tokens[:1]], max_length=generate, min_length=generate, sampling_topk=1,
                                               include_prompt_in_result=False)
        end = time.perf_counter()
        made = len(result[0].sequences_ids[0])
        return {f"pp{prompt}": prompt / (middle - start), f"tg{generate}": made / (end - middle)}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("ballast")
    common.add_arguments(parser, list(common.SHAPES), "int8", choices=["int8", "float32"])
    parser.add_argument("--score", action="store_true", help="prefill through score_batch, which makes logits of all positions")
    options = parser.parse_args()
    peer = Peer(prepare(options), options)
    codes = common.ballast_model(options)
    extra = ["--activations", options.activations]
    ours = lambda: common.ballast_rates(options.ballast, codes, options.threads, options.prompt, options.generate, extra)[0]
    name = f"Ballast W{options.bits} g{options.group_size}, {options.activations}"
    peer_name = f"CTranslate2 {options.peer_type}"
    common.report(common.alternate(options.rounds, {name: ours, peer_name: peer.measure}), name, peer_name)


if __name__ == "__main__":
    main()
