#!/usr/bin/env python3
"""Opens exported folders with Hugging Face transformers and compares it with Ballast, number by number.

usage: check_interop.py BALLAST MODEL TEXT [--device DEVICE]

Needs torch, transformers and the readers under test: compressed-tensors, and gptqmodel with optimum. Quantizes MODEL in several
widths, calibrated on TEXT, exports each to every layout that can hold it, and prints a table: the mean negative log-likelihood of
WINDOWS x CONTEXT tokens of TEXT by both programs, the largest difference of a log-probability (the TOP likeliest tokens at every step
of a greedy generation), and whether the greedy tokens are the same. Compensation is inside the biases: all of this fails without it.
"""
import argparse
import importlib.metadata
import json
import pathlib
import subprocess
import sys
import tempfile

CONTEXT, WINDOWS, GENERATED, TOP = 256, 2, 128, 20
PROMPT = "The river"
WIDTHS = [
    ("W4 g128 symmetric", ["--bits", "4", "--group-size", "128", "--symmetric"]),
    ("W4 g64", ["--bits", "4", "--group-size", "64"]),
    ("W3 g128", ["--bits", "3", "--group-size", "128"]),
    ("W2 g64", ["--bits", "2", "--group-size", "64"]),
    ("W3 g128, whole zero points", ["--bits", "3", "--group-size", "128", "--zero-points", "whole"]),
    ("W2 g64, whole zero points", ["--bits", "2", "--group-size", "64", "--zero-points", "whole"]),
]
# How transformers is told to read a layout: None is its own choice.
GPTQ_READINGS = {"own choice": None, "gptq_torch": {"backend": "gptq_torch"}}
LAYOUTS = {
    "gptq": GPTQ_READINGS,
    "gptq_v2": GPTQ_READINGS,
    "compressed-tensors": {"own choice": None, "dequantized": {"dequantize": True}},
}
# Most readers round the decoded weights to binary16, which Ballast does not: a few thousandths on the bundled model. A wrong code,
# zero point or bias is worth tenths.
LARGEST_DIFFERENCE = 0.02
PACKAGES = ["torch", "transformers", "compressed-tensors", "gptqmodel", "optimum"]


def run(ballast, *arguments):
    command = [ballast, *map(str, arguments), "--json", "--quiet"]
    return json.loads(subprocess.run(command, stdout=subprocess.PIPE, check=True).stdout)


def ours(ballast, folder, text):
    score = run(ballast, "perplexity", "-m", folder, "--text", text, "--ctx", CONTEXT, "--chunks", WINDOWS)
    written = run(ballast, "generate", "-m", folder, "-p", PROMPT, "-n", GENERATED, "--temperature", "0", "--logprobs", TOP)
    return {"nll": score["window_nll"], "ids": written["token_ids"],
            "top": [[(entry["id"], entry["logprob"]) for entry in step["top"]] for step in written["logprobs"]]}


def theirs(folder, text, expected, device, options):
    """Runs in a process of its own: readers differ in what they do to the interpreter, and some crash."""
    import torch
    import transformers
    torch.manual_seed(0)
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    config = None
    if options and "backend" in options:
        bits = json.loads((pathlib.Path(folder) / "config.json").read_text(encoding="utf-8"))["quantization_config"]["bits"]
        config = transformers.GPTQConfig(bits=bits, **options)
    elif options:
        config = transformers.CompressedTensorsConfig(**options)
    model = transformers.AutoModelForCausalLM.from_pretrained(
        folder, dtype=torch.float32, device_map=device, **({"quantization_config": config} if config else {})).eval()
    ids = tokenizer(pathlib.Path(text).read_text(encoding="utf-8")).input_ids
    prompt = tokenizer(PROMPT).input_ids

    def log_probabilities(tokens):
        with torch.no_grad():
            return torch.log_softmax(model(torch.tensor([tokens], device=device)).logits[0].float(), -1).cpu()
    nll = []
    for window in range(WINDOWS):
        tokens = ids[window * CONTEXT:(window + 1) * CONTEXT]
        scores = log_probabilities(tokens)[:-1]
        nll.append(-scores.gather(1, torch.tensor(tokens[1:])[:, None]).mean().item())
    scores = log_probabilities(prompt + expected["ids"])[len(prompt) - 1:-1]
    difference = max(abs(scores[step, token].item() - value) for step, top in enumerate(expected["top"]) for token, value in top)
    kinds = sorted({type(module).__name__ for name, module in model.named_modules() if name.endswith(("fc1", "q_proj"))})
    return {"nll": nll, "difference": difference, "same": scores.argmax(-1).tolist() == expected["ids"], "kinds": kinds}


def read_apart(folder, text, expected, device, options):
    request = json.dumps([str(folder), str(text), device, options])
    child = subprocess.run([sys.executable, __file__, "--read", request], input=json.dumps(expected), stdout=subprocess.PIPE,
                           stderr=subprocess.PIPE, text=True)
    if child.returncode == 0:
        return json.loads(child.stdout.splitlines()[-1])
    lines = [line.strip() for line in child.stderr.splitlines() if line.strip()]
    mismatches = [line for line in lines if "MISMATCH" in line]
    return {"error": mismatches[0] if mismatches else lines[-1] if lines else f"status {child.returncode}"}


def compare(title, layout, folder, arguments):
    """Prints a row for each way of reading; true when one of them agrees."""
    expected = ours(arguments.ballast, folder, arguments.text)
    mean = sum(expected["nll"]) / WINDOWS
    agreed = False
    for reading, options in LAYOUTS[layout].items():
        got = read_apart(folder, arguments.text, expected, arguments.device, options)
        if "error" in got:
            print(f"| {title} | {layout} | {reading} | refused: {' '.join(got['error'].replace('|', ' ').split())[:160]} | {mean:.6f} | | | |",
                  flush=True)
            continue
        agreed = agreed or got["difference"] <= LARGEST_DIFFERENCE
        print(f"| {title} | {layout} | {reading} | {', '.join(got['kinds'])} | {mean:.6f} | {sum(got['nll']) / WINDOWS:.6f} | "
              f"{got['difference']:.1e} | {'yes' if got['same'] else 'no'} |", flush=True)
    return agreed


def version(package):
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "absent"


def main():
    if sys.argv[1:2] == ["--read"]:
        folder, text, device, options = json.loads(sys.argv[2])
        print(json.dumps(theirs(folder, text, json.load(sys.stdin), device, options)))
        return 0
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name in ("ballast", "model", "text"):
        parser.add_argument(name)
    parser.add_argument("--device", default="cpu", help="where transformers runs")
    arguments = parser.parse_args()
    print(", ".join(f"{package} {version(package)}" for package in PACKAGES) + "\n")
    print("| width | layout | read by | layers | NLL Ballast | NLL transformers | largest log-probability difference | same greedy tokens |")
    print("|---|---|---|---|---|---|---|---|")
    failed = False
    with tempfile.TemporaryDirectory() as scratch:
        own, out = pathlib.Path(scratch) / "own", pathlib.Path(scratch) / "out"
        for title, flags in WIDTHS:
            run(arguments.ballast, "quantize", "-m", arguments.model, "-o", own, *flags, "--calibration", arguments.text, "--samples", 16,
                "--length", 256, "--force")
            for layout in LAYOUTS:
                export = subprocess.run([arguments.ballast, "export", "-m", own, "-o", out, "--layout", layout, "--force"],
                                        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
                if export.returncode == 0:
                    failed = not compare(title, layout, out, arguments) or failed
                else:
                    print(f"| {title} | {layout} | not exported: {export.stderr.strip().split(': ', 2)[-1]} | | | | | |", flush=True)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
