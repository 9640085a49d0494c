#!/usr/bin/env python3
"""Measures every form of compensation on the bundled model and writes RESULTS.md.

usage: results.py BALLAST MODEL SHARED OUTPUT      (make results calls it; about 20 minutes on two cores)

SHARED holds `wikitext-2-raw/wiki.test.raw` and `calibration/{c4,wiki}.utf8`. Perplexity: GPTQ's protocol, windows of the model's
context over the whole WikiText-2 test set. KL divergence and top-1 agreement: against the float model over the first KL_WINDOWS.
"""
import datetime
import json
import pathlib
import platform
import subprocess
import sys
import tempfile

KL_WINDOWS = 120
SAMPLES, LENGTH, SEED = 128, 512, 0
FORMS = {
    "RTN": ["--method", "rtn", "--compensate", "none"],
    "RTN + channel": ["--method", "rtn", "--compensate", "channel", "--no-correct-drift"],
    "RTN + channel + drift": ["--method", "rtn", "--compensate", "channel", "--correct-drift"],
    "GPTQ": ["--method", "gptq", "--compensate", "none"],
    "GPTQ + channel": ["--method", "gptq", "--compensate", "channel", "--no-correct-drift"],
    "GPTQ + channel + drift": ["--method", "gptq", "--compensate", "channel", "--correct-drift"],
    "GPTQ + position": ["--method", "gptq", "--compensate", "position", "--no-correct-drift"],
    "GPTQ + joint": ["--method", "gptq", "--compensate", "joint", "--no-correct-drift"],
    "GPTQ + joint + drift": ["--method", "gptq", "--compensate", "joint", "--correct-drift"],
    "fast": ["--recipe", "fast"],
    "balanced (default)": ["--recipe", "balanced"],
    "best": ["--recipe", "best"],
}
ALL = [name for name in FORMS if name not in ("RTN + channel + drift", "GPTQ + channel + drift")]
SHORT = ["GPTQ", "GPTQ + joint", "GPTQ + joint + drift"]
# Title, flags, and the forms measured with each calibration text. C4 rows get the whole test set as well.
TABLES = [
    ("W3 per row", ["--bits", "3"], {"C4": ALL, "Wikipedia": SHORT, "self": SHORT}),
    ("W2 g64", ["--bits", "2", "--group-size", "64"],
     {"C4": [name for name in ALL if name != "GPTQ + position"], "Wikipedia": SHORT, "self": SHORT}),
]


def run(ballast, *arguments):
    command = [ballast, *map(str, arguments), "--json", "--quiet"]
    return json.loads(subprocess.run(command, stdout=subprocess.PIPE, check=True).stdout)


def perplexity(ballast, folder, text, *more):
    return run(ballast, "perplexity", "-m", folder, "--text", text, "--dataset", "wikitext2", *more)


def processor():
    for line in pathlib.Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
        if line.startswith("model name"):
            return line.split(":", 1)[1].strip()
    return platform.machine()


def measure(ballast, model, text, folder, source, path, name, flags):
    report = run(ballast, "quantize", "-m", model, "-o", folder, *flags, *FORMS[name], "--calibration", path, "--samples", SAMPLES,
                 "--length", LENGTH, "--seed", SEED, "--force")
    whole = f"{perplexity(ballast, folder, text)['perplexity']:.2f}" if source == "C4" else "–"
    near = perplexity(ballast, folder, text, "--reference", model, "--chunks", KL_WINDOWS)
    layers = report["layers"]
    before, after = (100 * sum(layer[key] for layer in layers) / len(layers) for key in ("error_before", "error_after"))
    return (f"| {name} | {source} | {report['bits_per_weight']:.2f} | {whole} | {near['kl_mean']:.4f} ± "
            f"{near['kl_standard_error']:.4f} | {100 * near['top1_agreement']:.1f} | {before:.2f} | {after:.2f} | "
            f"{report['seconds']:.0f} |")


def main():
    if len(sys.argv) != 5:
        sys.exit(__doc__)
    ballast, model, shared, output = sys.argv[1], *map(pathlib.Path, sys.argv[2:])
    text = shared / "wikitext-2-raw/wiki.test.raw"
    sources = {"C4": shared / "calibration/c4.utf8", "Wikipedia": shared / "calibration/wiki.utf8", "self": "self"}
    version = subprocess.run([ballast, "--version"], stdout=subprocess.PIPE, text=True, check=True).stdout.splitlines()[0]
    reference = perplexity(ballast, model, text)
    lines = ["# Results", "",
             f"Written by `make results` on {datetime.date.today()}; {version}; {processor()}.", "",
             f"Bundled model (4.3 M parameters), weights of all block layers quantized, calibration {SAMPLES} × {LENGTH} tokens, seed "
             f"{SEED}. Perplexity: WikiText-2 test, GPTQ's protocol, {reference['windows']} windows of {reference['context']}; float "
             f"{reference['perplexity']:.2f}. KL divergence (nats, ± standard error) and top-1 agreement with the float model: the first "
             f"{KL_WINDOWS} windows. Errors are the mean over layers of E‖(W − Q)x − c‖² / E‖Wx‖² on the calibration inputs, in per "
             "cent, without and with the compensation c."]
    with tempfile.TemporaryDirectory() as scratch:
        for title, flags, forms in TABLES:
            lines += ["", f"## {title}", "",
                      "| method | calibration | bits/weight | perplexity | KL | top-1 % | error | compensated | seconds |",
                      "|---|---|---|---|---|---|---|---|---|"]
            for source, names in forms.items():
                for name in names:
                    lines.append(measure(ballast, model, text, pathlib.Path(scratch) / "model", source, sources[source], name, flags))
                    print(lines[-1], flush=True)
                    output.write_text("\n".join(lines) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
