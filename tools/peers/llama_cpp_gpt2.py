#!/usr/bin/env python3
"""Speed of Ballast beside llama.cpp (https://github.com/ggml-org/llama.cpp) on models of one shape with random weights, in
alternating runs.

usage: llama_cpp_gpt2.py BALLAST LLAMA_CPP --shape 125m --bits 4 --group-size 128 --peer-type Q4_0 [--work DIR]

LLAMA_CPP is a checkout of llama.cpp whose build/bin holds llama-bench and llama-quantize. llama.cpp has no OPT: GPT-2 has the
same matrix products, with GELU for ReLU, so a GPT-2 of the shape is written to GGUF with the checkout's own gguf-py. Needs
numpy. llama.cpp keeps the output matrix at Q6_K in most of its types.
"""
import argparse
import json
import pathlib
import sys

import common


def write_gguf(path, llama_cpp, shape):
    sys.path.insert(0, str(pathlib.Path(llama_cpp) / "gguf-py"))
    import gguf
    import numpy as np
    layers, heads, hidden = common.SHAPES[shape]
    vocab, positions = 50272, 2048
    random = np.random.default_rng(0)
    out = gguf.GGUFWriter(str(path), "gpt2")
    out.add_block_count(layers)
    out.add_context_length(positions)
    out.add_embedding_length(hidden)
    out.add_feed_forward_length(4 * hidden)
    out.add_head_count(heads)
    out.add_layer_norm_eps(1e-5)
    out.add_file_type(gguf.LlamaFileType.MOSTLY_F16)
    out.add_tokenizer_model("gpt2")
    out.add_tokenizer_pre("gpt-2")
    out.add_token_list([f"t{index}" for index in range(vocab)])
    out.add_token_types([gguf.TokenType.NORMAL] * vocab)
    out.add_token_merges(["t 0"])
    out.add_bos_token_id(0)
    out.add_eos_token_id(0)

    def matrix(name, rows, columns):
        out.add_tensor(name + ".weight", (random.standard_normal((rows, columns), np.float32) * columns**-0.5).astype(np.float16))

    def vector(name, size, value):
        out.add_tensor(name, np.full(size, value, np.float32))

    matrix("token_embd", vocab, hidden)
    matrix("position_embd", positions, hidden)
    vector("output_norm.weight", hidden, 1)
    vector("output_norm.bias", hidden, 0)
    for layer in range(layers):
        block = f"blk.{layer}."
        for norm in ("attn_norm", "ffn_norm"):
            vector(block + norm + ".weight", hidden, 1)
            vector(block + norm + ".bias", hidden, 0)
        for name, rows, columns in (("attn_qkv", 3 * hidden, hidden), ("attn_output", hidden, hidden),
                                    ("ffn_up", 4 * hidden, hidden), ("ffn_down", hidden, 4 * hidden)):
            matrix(block + name, rows, columns)
            vector(block + name + ".bias", rows, 0)
    matrix("output", vocab, hidden)
    out.write_header_to_file()
    out.write_kv_data_to_file()
    out.write_tensors_to_file()
    out.close()


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("ballast")
    parser.add_argument("llama_cpp")
    common.add_arguments(parser, [shape for shape in common.SHAPES if shape != "tiny"], "Q4_0",
                         help="F16 or what llama-quantize knows: Q4_0, Q4_K_M, Q3_K_M, Q2_K, …")
    options = parser.parse_args()
    programs, work = pathlib.Path(options.llama_cpp) / "build/bin", pathlib.Path(options.work)
    work.mkdir(exist_ok=True)
    halves = work / f"gpt2-{options.shape}-F16.gguf"
    peer_file = work / f"gpt2-{options.shape}-{options.peer_type}.gguf"
    if not halves.exists():
        write_gguf(halves, options.llama_cpp, options.shape)
    if not peer_file.exists():
        common.run([programs / "llama-quantize", halves, peer_file, options.peer_type, options.threads])
    codes = common.ballast_model(options)

    def peer():
        rows = json.loads(common.run([programs / "llama-bench", "-m", peer_file, "-t", options.threads, "-p", options.prompt,
                                      "-n", options.generate, "-r", 1, "-o", "json"]))
        return {f"pp{row['n_prompt']}" if row["n_prompt"] else f"tg{row['n_gen']}": row["avg_ts"] for row in rows}

    extra = ["--activations", options.activations]
    ours = lambda: common.ballast_rates(options.ballast, codes, options.threads, options.prompt, options.generate, extra)[0]
    name, peer_name = f"Ballast W{options.bits} g{options.group_size}, {options.activations}", f"llama.cpp {options.peer_type}"
    common.report(common.alternate(options.rounds, {name: ours, peer_name: peer}), name, peer_name)


if __name__ == "__main__":
    main()
