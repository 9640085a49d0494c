#!/usr/bin/env python3
"""Speed of Ballast beside ONNX Runtime (https://github.com/microsoft/onnxruntime) in float32 on one image classifier, same
weights, same images, in alternating runs of the model alone: reading and preparing images is not counted.

usage: onnxruntime_vit.py BALLAST --model DIR --images LIST [--ours DIR…] [--isa avx2] [--count 128] [--rounds 5]

DIR is a float checkpoint with Hugging Face's ViT names; --ours are folders to run in Ballast, the float one first. The graph
is built here, opset 17, with erf GELU and fused nothing: ONNX Runtime fuses for itself at its highest level. Needs the PyPI
packages onnxruntime, onnx, numpy, safetensors and pillow in the interpreter that runs it.
"""
import argparse
import json
import os
import pathlib
import time

import common
import numpy
import onnx
import onnxruntime
from onnx import TensorProto, helper, numpy_helper
from PIL import Image
from safetensors.numpy import load_file


class Graph:
    def __init__(self, tensors):
        self.tensors, self.nodes, self.initializers, self.count = tensors, [], {}, 0

    def constant(self, value, name=None):
        name = name or f"c{len(self.initializers)}"
        self.initializers.setdefault(name, numpy_helper.from_array(numpy.array(value, order="C"), name))
        return name

    def op(self, kind, *inputs, **attributes):
        self.count += 1
        self.nodes.append(helper.make_node(kind, list(inputs), [f"t{self.count}"], **attributes))
        return f"t{self.count}"

    def linear(self, x, name):
        product = self.op("MatMul", x, self.constant(self.tensors[name + ".weight"].T, name + ".weight"))
        return self.op("Add", product, self.constant(self.tensors[name + ".bias"], name + ".bias"))

    def norm(self, x, name, epsilon):
        return self.op("LayerNormalization", x, self.constant(self.tensors[name + ".weight"], name + ".weight"),
                       self.constant(self.tensors[name + ".bias"], name + ".bias"), epsilon=epsilon, axis=-1)

    def heads(self, x, heads, order):
        shaped = self.op("Reshape", x, self.constant(numpy.array([0, 0, heads, -1], numpy.int64), f"heads{heads}"))
        return self.op("Transpose", shaped, perm=order)

    def gelu(self, x):
        half, one, root = (self.constant(numpy.float32(v), n) for v, n in ((0.5, "half"), (1, "one"), (2 ** 0.5, "root")))
        erf = self.op("Add", self.op("Erf", self.op("Div", x, root)), one)
        return self.op("Mul", self.op("Mul", x, erf), half)


def build(folder):
    config = json.loads((folder / "config.json").read_text())
    tensors = load_file(folder / "model.safetensors")
    prefix = "vit." if "vit.embeddings.cls_token" in tensors else "deit."
    heads, hidden, epsilon = config["num_attention_heads"], config["hidden_size"], config["layer_norm_eps"]
    g = Graph(tensors)
    embeddings = prefix + "embeddings."
    projection = embeddings + "patch_embeddings.projection"
    patches = g.op("Conv", "pixels", g.constant(tensors[projection + ".weight"]), g.constant(tensors[projection + ".bias"]),
                   strides=[config["patch_size"]] * 2)
    x = g.op("Transpose", g.op("Reshape", patches, g.constant(numpy.array([0, hidden, -1], numpy.int64))), perm=[0, 2, 1])
    batch = g.op("Slice", g.op("Shape", "pixels"), *(g.constant(numpy.array([v], numpy.int64)) for v in (0, 1)))
    shape = g.op("Concat", batch, g.constant(numpy.array([1, hidden], numpy.int64)), axis=0)
    token = g.op("Expand", g.constant(tensors[embeddings + "cls_token"]), shape)
    x = g.op("Add", g.op("Concat", token, x, axis=1), g.constant(tensors[embeddings + "position_embeddings"]))
    scale = g.constant(numpy.float32((hidden // heads) ** -0.5), "scale")
    for index in range(config["num_hidden_layers"]):
        block = f"{prefix}encoder.layer.{index}."
        attention = block + "attention.attention."
        y = g.norm(x, block + "layernorm_before", epsilon)
        q = g.heads(g.linear(y, attention + "query"), heads, [0, 2, 1, 3])
        k = g.heads(g.linear(y, attention + "key"), heads, [0, 2, 3, 1])
        v = g.heads(g.linear(y, attention + "value"), heads, [0, 2, 1, 3])
        p = g.op("Softmax", g.op("Mul", g.op("MatMul", q, k), scale), axis=-1)
        u = g.op("Reshape", g.op("Transpose", g.op("MatMul", p, v), perm=[0, 2, 1, 3]),
                 g.constant(numpy.array([0, 0, hidden], numpy.int64), "joined"))
        x = g.op("Add", x, g.linear(u, block + "attention.output.dense"))
        y = g.gelu(g.linear(g.norm(x, block + "layernorm_after", epsilon), block + "intermediate.dense"))
        x = g.op("Add", x, g.linear(y, block + "output.dense"))
    x = g.op("Gather", x, g.constant(numpy.int64(0)), axis=1)
    logits = g.linear(g.norm(x, prefix + "layernorm", epsilon), "classifier")
    g.nodes.append(helper.make_node("Identity", [logits], ["logits"]))
    size = config["image_size"]
    graph = helper.make_graph(g.nodes, "vit", [helper.make_tensor_value_info("pixels", TensorProto.FLOAT, ["n", 3, size, size])],
                              [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["n", config["num_labels"]
                                                             if "num_labels" in config else len(config["id2label"])])],
                              list(g.initializers.values()))
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)])
    model.ir_version = 8
    onnx.checker.check_model(model)
    return model


def pixels(folder, files):
    facts = json.loads((folder / "preprocessor_config.json").read_text())
    mean, deviation = (numpy.array(facts[key], numpy.float32) for key in ("image_mean", "image_std"))
    size = facts["size"]["shortest_edge"] if isinstance(facts["size"], dict) and "shortest_edge" in facts["size"] else 256
    crop = json.loads((folder / "config.json").read_text())["image_size"]
    out = []
    for file in files:
        image = Image.open(file).convert("RGB")
        width, height = image.size
        short = min(width, height)
        image = image.resize((int(size * width / short), int(size * height / short)), Image.BICUBIC)
        left, top = (image.size[0] - crop) // 2, (image.size[1] - crop) // 2
        values = numpy.asarray(image.crop((left, top, left + crop, top + crop)), numpy.float32) / 255
        out.append(((values - mean) / deviation).transpose(2, 0, 1))
    return numpy.stack(out)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("ballast")
    parser.add_argument("--model", type=pathlib.Path, required=True)
    parser.add_argument("--images", type=pathlib.Path, required=True)
    parser.add_argument("--ours", type=pathlib.Path, nargs="*", default=[])
    parser.add_argument("--isa", default="auto", help="Ballast's")
    parser.add_argument("--count", type=int, default=128)
    parser.add_argument("--batch", type=int, default=8, help="ONNX Runtime's; Ballast's is 8")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()

    lines = options.images.read_text().split("\n")
    listed = [line.replace(",", " ").split() for line in lines if line.strip()][:options.count]
    images = pixels(options.model, [options.images.parent / line[0] for line in listed])
    settings = onnxruntime.SessionOptions()
    settings.intra_op_num_threads = options.threads
    settings.inter_op_num_threads = 1
    settings.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_ALL
    session = onnxruntime.InferenceSession(build(options.model).SerializeToString(), settings, ["CPUExecutionProvider"])

    def peer():
        start, right = time.perf_counter(), 0
        for first in range(0, len(images), options.batch):
            logits, = session.run(None, {"pixels": images[first:first + options.batch]})
            right += sum(int(a == int(line[1])) for a, line in zip(logits.argmax(1), listed[first:]))
        peer.right = right
        return {"images/s": len(images) / (time.perf_counter() - start)}

    def ours(folder):
        def measure():
            result = json.loads(common.run([options.ballast, "evaluate", "-m", folder, "--images", options.images, "--limit",
                                            len(listed), "--threads", options.threads, "--json", "--quiet"],
                                           env={**os.environ, "BALLAST_ISA": options.isa}))
            measure.right = round(result["top1"] * result["images"] / 100)
            return {"images/s": result["images"] / result["model_seconds"]}
        return measure

    peer()
    contestants = {f"Ballast {folder.name} ({options.isa})": ours(folder) for folder in [options.model, *options.ours]}
    name = f"ONNX Runtime {onnxruntime.__version__} float32"
    rates = common.alternate(options.rounds, {**contestants, name: peer})
    for ours_name, measure in contestants.items():
        print(f"{ours_name}: {measure.right} of {len(listed)} right, {name}: {peer.right}")
        common.report(rates, ours_name, name)


if __name__ == "__main__":
    main()
