#!/usr/bin/env python3
"""Quantizes the bundled model in nine ways, compares each with the float model, and lets the 3-bit one write.

usage: demo.py BALLAST MODEL OUTPUT      (make demo calls it)

Every figure is measured here and now: KL divergence and top-1 agreement against the float model and perplexity over
MODEL/sample.txt (windows of the model's context), bits per weight over the quantized layers, decode speed over 128 tokens.
"""
import json
import pathlib
import shutil
import subprocess
import sys
import time

BITS = [(4, 0), (3, 0), (2, 64)]
METHODS = [
    ("RTN", ["--method", "rtn", "--compensate", "none"]),
    ("GPTQ", ["--method", "gptq", "--compensate", "none"]),
    ("balanced recipe", ["--recipe", "balanced"]),
]
CALIBRATION = ["--calibration", "self", "--samples", "32", "--length", "512"]


def run(ballast, *arguments):
    done = subprocess.run([ballast, *map(str, arguments), "--json", "--quiet"], stdout=subprocess.PIPE, check=False)
    if done.returncode:
        sys.exit(f"demo: ballast {' '.join(map(str, arguments))} ended with {done.returncode}")
    return json.loads(done.stdout)


def folder_bytes(folder):
    return sum(file.stat().st_size for file in folder.glob("*.safetensors"))


def measure(ballast, model, folder):
    text = run(ballast, "perplexity", "-m", folder, "--text", model / "sample.txt", "--reference", model)
    speed = run(ballast, "generate", "-m", folder, "-p", "The river", "-n", "128", "--ignore-eos", "--temperature", "0")
    return text, speed


def row(name, bits, size, text, speed):
    return (f"{name:<28}{bits:>8.2f}{size / 1e6:>9.2f}{text['kl_mean']:>10.4f}{100 * text['top1_agreement']:>9.1f}"
            f"{text['perplexity']:>12.2f}{speed['tokens_per_second']:>11.0f}")


def main():
    if len(sys.argv) != 4:
        sys.exit(__doc__)
    ballast, model, output = sys.argv[1], pathlib.Path(sys.argv[2]), pathlib.Path(sys.argv[3])
    start = time.monotonic()
    shutil.rmtree(output, ignore_errors=True)
    output.mkdir(parents=True)
    print(f"Quantizing {model} with {CALIBRATION[3]} x {CALIBRATION[5]} tokens of text sampled from the model itself.\n")
    print(f"{'':<28}{'bits/w':>8}{'MB':>9}{'KL':>10}{'top-1 %':>9}{'perplexity':>12}{'tokens/s':>11}", flush=True)
    text, speed = measure(ballast, model, model)
    print(row("float16", 16, folder_bytes(model), text, speed), flush=True)
    for bits, group in BITS:
        for name, method in METHODS:
            folder = output / f"w{bits}{f'g{group}' if group else ''}-{'-'.join(name.lower().replace('+', '').split())}"
            report = run(ballast, "quantize", "-m", model, "-o", folder, "--bits", bits, "--group-size", group, *method,
                         *CALIBRATION)
            text, speed = measure(ballast, model, folder)
            label = f"W{bits}{f' g{group}' if group else ''} {name}"
            print(row(label, report["bits_per_weight"], folder_bytes(folder), text, speed), flush=True)
    print("\nKL and top-1: against the float model, next-token distributions over models/demo/sample.txt."
          "\nThe embedding stays in float16 and is most of such a small model's size.\n")
    print("The 3-bit model (balanced recipe) continues a text:\n", flush=True)
    subprocess.run([ballast, "generate", "-m", output / "w3-balanced-recipe", "-p",
                    "The history of the city begins in the 12th century , when", "-n", "120", "--temperature", "0.8",
                    "--top-p", "0.95", "--seed", "7", "--echo", "--quiet"], check=True)
    print(f"\n\nDone in {time.monotonic() - start:.0f} s. The models are in {output}/.")


if __name__ == "__main__":
    main()
