#!/usr/bin/env python3
"""Measures methods, widths and compensation on the bundled model: rows to bench/results.json, tables to RESULTS.md.

usage: results.py BALLAST MODEL SHARED [ONLY]      (make results calls it; about six hours on two idle cores)

SHARED holds `wikitext-2-raw/wiki.test.raw`, `ptb/ptb.test.txt`, `calibration/{c4,wiki}.utf8`; for the image tables
`deit-tiny-patch16-224/`, `imagenet-train-sample-100/labels.txt` and `imagenet-val-1300/dataset.txt`. ONLY, a regular expression, measures
the rows whose "table/name" it finds and keeps what is known of the others.
"""
import datetime
import json
import pathlib
import platform
import re
import resource
import statistics
import subprocess
import sys
import tempfile

IMAGE_MODEL = "deit-tiny-patch16-224"
KL_WINDOWS = 60
OTHER_WINDOWS = 100  # of PTB and C4
SAMPLES, LENGTH, SEED = 128, 512, 0
BARE = ["--compensate", "none"]
CHANNEL = ["--compensate", "channel", "--no-correct-drift"]
JOINT = ["--compensate", "joint", "--correct-drift"]
FORMS = {
    "RTN": ["--method", "rtn", *BARE],
    "RTN + channel": ["--method", "rtn", *CHANNEL],
    "GPTQ": ["--method", "gptq", *BARE],
    "GPTQ + channel": ["--method", "gptq", *CHANNEL],
    "GPTQ + position": ["--method", "gptq", "--compensate", "position", "--no-correct-drift"],
    "GPTQ + joint + drift": ["--method", "gptq", *JOINT],
    "GPTQ + 16 sweeps": ["--method", "gptq", "--sweeps", "16", *BARE],
    "COMQ": ["--method", "comq", *BARE],
    "COMQ + joint + drift": ["--method", "comq", *JOINT],
    "GPTAQ": ["--method", "gptq", "--gptaq", "1", *BARE],
    "GPTAQ, 0.25": ["--method", "gptq", "--gptaq", "0.25", *BARE],
    "OAC (GPTQ)": ["--method", "gptq", "--curvature", "output-adaptive", *BARE],
    "OAC (GPTQ), damping 0.1": ["--method", "gptq", "--curvature", "output-adaptive", "--damping", "0.1", *BARE],
    "OAC (GPTQ), damping 1": ["--method", "gptq", "--curvature", "output-adaptive", "--damping", "1", *BARE],
    "guided (GPTQ)": ["--method", "gptq", "--curvature", "guided", *BARE],
    "SpQR": ["--method", "spqr", *BARE],
    "SpQR + joint + drift": ["--method", "spqr", *JOINT],
    "OAC (SpQR)": ["--method", "spqr", "--curvature", "output-adaptive", *BARE],
    "OAC (SpQR), damping 0.1": ["--method", "spqr", "--curvature", "output-adaptive", "--damping", "0.1", *BARE],
    "guided (SpQR)": ["--method", "spqr", "--curvature", "guided", *BARE],
    "BiLLM": ["--method", "billm", *BARE],
    "BiLLM + joint + drift": ["--method", "billm", *JOINT],
    "OAC (BiLLM)": ["--method", "billm", "--curvature", "output-adaptive", *BARE],
    "OAC (BiLLM), damping 0.1": ["--method", "billm", "--curvature", "output-adaptive", "--damping", "0.1", *BARE],
    "guided (BiLLM)": ["--method", "billm", "--curvature", "guided", *BARE],
    "GPTQ, half zero points": ["--method", "gptq", "--zero-points", "half", *BARE],
    "fast": ["--recipe", "fast"],
    "balanced, whole zero points": ["--recipe", "balanced", "--zero-points", "whole"],
    "balanced (default)": ["--recipe", "balanced"],
    "best": ["--recipe", "best"],
}
RECIPES = ["fast", "balanced (default)", "best"]
COMMON = ["RTN", "RTN + channel", "GPTQ", "GPTQ + channel", "GPTQ + joint + drift", "COMQ", "COMQ + joint + drift", *RECIPES]
ZEROS = ["GPTQ, half zero points", "balanced, whole zero points"]
SPQR = ["SpQR", "SpQR + joint + drift"]
OAC = {method: [form for form in FORMS if form.startswith((f"OAC ({method})", f"guided ({method})"))] for method in ("GPTQ", "SpQR", "BiLLM")}
# Title, flags, forms; calibrated on the first half of C4 unless the title says otherwise.
TABLES = [
    ("3 bits, one group per row", ["--bits", "3"], COMMON + ZEROS + ["GPTQ + position", "GPTQ + 16 sweeps"]),
    ("2 bits, groups of 64", ["--bits", "2", "--group-size", "64"], COMMON + ZEROS + ["GPTQ + 16 sweeps", "GPTAQ", "GPTAQ, 0.25"] + OAC["GPTQ"]),
    ("4 bits, one group per row", ["--bits", "4"], COMMON),
    ("SpQR, 2 bits in groups of 16", ["--bits", "2"], SPQR),
    ("SpQR, 2 bits in groups of 16, few outliers", ["--bits", "2", "--outlier-threshold", "5"], SPQR + OAC["SpQR"]),
    ("SpQR, 3 bits in groups of 16", ["--bits", "3"], SPQR),
    ("BiLLM", [], ["BiLLM", "BiLLM + joint + drift"] + OAC["BiLLM"]),
    ("3 bits, groups of 64, the head included", ["--bits", "3", "--group-size", "64", "--head-bits", "3"], RECIPES),
    ("Widths chosen by layer: 3.297 bits on average, as many as with 3 bits everywhere", ["--target-bits", "3.297", "--group-size", "64"], RECIPES),
    ("Widths chosen by layer: 3 bits on average", ["--target-bits", "3", "--group-size", "64"], RECIPES),
    ("Widths chosen by layer: 2.5 bits on average", ["--target-bits", "2.5", "--group-size", "64"], RECIPES),
    ("3 bits, groups of 128", ["--bits", "3", "--group-size", "128"], ["GPTQ", *RECIPES]),
    ("2 bits, groups of 32", ["--bits", "2", "--group-size", "32"], ["GPTQ", *RECIPES]),
    ("2 bits, groups of 64, calibrated on Wikipedia", ["--bits", "2", "--group-size", "64"], ["GPTQ", *RECIPES]),
    ("2 bits, groups of 64, calibrated on the model's own text", ["--bits", "2", "--group-size", "64"], ["GPTQ", *RECIPES]),
]

# Of image classifiers: form -> flags; (title, flags, forms). Each with 32 and with 100 calibration images and three seeds.
PLAIN_SITES = ["--no-fold-ranges", "--no-logarithms"]
IMAGE_FORMS = {
    "RTN": ["--method", "rtn", *BARE],
    "GPTQ": ["--method", "gptq", *BARE],
    "GPTQ + joint + drift": ["--method", "gptq", *JOINT],
    "GPTQ, half zero points": ["--method", "gptq", "--zero-points", "half", *BARE],
    "balanced, whole zero points": ["--recipe", "balanced", "--zero-points", "whole"],
    "PTQ4ViT": ["--method", "rtn", *PLAIN_SITES, *BARE],
    "PTQ4ViT + channel": ["--method", "rtn", *PLAIN_SITES, *CHANNEL],
    "PTQ4ViT + channel, class token apart": ["--method", "rtn", *PLAIN_SITES, "--compensate", "token", "--no-correct-drift"],
    "balanced (default)": ["--recipe", "balanced"],
    "best": ["--recipe", "best"],
}
WEIGHT_ONLY = ["RTN", "GPTQ", "GPTQ + joint + drift", "balanced (default)", "best"]
ACTIVATIONS = ["PTQ4ViT", "PTQ4ViT + channel", "PTQ4ViT + channel, class token apart", "balanced (default)", "best"]
IMAGE_TABLES = [
    ("Images: W4, one group per row", ["--bits", "4"], WEIGHT_ONLY),
    ("Images: W3, one group per row", ["--bits", "3"], WEIGHT_ONLY + ZEROS),
    ("Images: W2, groups of 64", ["--bits", "2", "--group-size", "64"], WEIGHT_ONLY + ZEROS),
    ("Images: W8A8", ["--bits", "8", "--activation-bits", "8"], ACTIVATIONS),
    ("Images: W6A6", ["--bits", "6", "--activation-bits", "6"], ACTIVATIONS),
    ("Images: W4A4", ["--bits", "4", "--activation-bits", "4"], ACTIVATIONS),
]
IMAGE_COUNTS, IMAGE_SEEDS = (32, 100), (0, 1, 2)


def image_seeds(form, count):
    """One where nothing is drawn: all images, without views."""
    return IMAGE_SEEDS[:1] if count == IMAGE_COUNTS[-1] and "--recipe" not in IMAGE_FORMS[form] else IMAGE_SEEDS


def halves(path):
    """The two halves of a text, cut at a line end."""
    text = path.read_bytes()
    middle = text.index(b"\n", len(text) // 2) + 1
    return text[:middle], text[middle:]


def processor():
    for line in pathlib.Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
        if line.startswith("model name"):
            return line.split(":", 1)[1].strip()
    return platform.machine()


class Measurement:
    def __init__(self, ballast, model, shared, scratch):
        self.ballast, self.model, self.shared, self.scratch = ballast, model, shared, scratch
        first, second = halves(shared / "calibration/c4.utf8")
        (scratch / "c4-first.txt").write_bytes(first)
        (scratch / "c4-second.txt").write_bytes(second)
        self.calibration = {"C4": scratch / "c4-first.txt", "Wikipedia": shared / "calibration/wiki.utf8", "own": "self"}
        self.texts = {"wikitext2": [shared / "wikitext-2-raw/wiki.test.raw", "--dataset", "wikitext2"],
                      "ptb": [shared / "ptb/ptb.test.txt", "--dataset", "ptb", "--chunks", OTHER_WINDOWS],
                      "c4": [scratch / "c4-second.txt", "--chunks", OTHER_WINDOWS]}

    def run(self, *arguments):
        command = [self.ballast, *map(str, arguments), "--json", "--quiet"]
        return json.loads(subprocess.run(command, stdout=subprocess.PIPE, check=True).stdout)

    def perplexities(self, folder):
        return {name: self.run("perplexity", "-m", folder, "--text", *text)["perplexity"] for name, text in self.texts.items()}

    def row(self, title, flags, form):
        source = "Wikipedia" if "Wikipedia" in title else "own" if "own text" in title else "C4"
        folder = self.scratch / "model"
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        report = self.run("quantize", "-m", self.model, "-o", folder, *flags, *FORMS[form], "--calibration", self.calibration[source],
                          "--samples", SAMPLES, "--length", LENGTH, "--seed", SEED, "--force")
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        near = self.run("perplexity", "-m", folder, "--text", *self.texts["wikitext2"], "--reference", self.model, "--chunks", KL_WINDOWS)
        return {"bits_per_weight": report["bits_per_weight"], "seconds": report["seconds"],
                "cpu_seconds": after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime,
                "peak_memory_bytes": report["peak_memory_bytes"], "kl": near["kl_mean"], "kl_error": near["kl_standard_error"],
                "top1": 100 * near["top1_agreement"], "perplexity": self.perplexities(folder)}

    def evaluate(self, folder):
        done = self.run("evaluate", "-m", folder, "--images", self.shared / "imagenet-val-1300/dataset.txt")
        return {"top1": done["top1"], "nll": done["nll"]}

    def image_row(self, flags, form, count):
        folder, runs = self.scratch / "model", []
        for seed in image_seeds(form, count):
            report = self.run("quantize", "-m", self.shared / IMAGE_MODEL, "-o", folder, *flags, *IMAGE_FORMS[form], "--calibration",
                              self.shared / "imagenet-train-sample-100/labels.txt", "--samples", count, "--seed", seed, "--force")
            runs.append({"seed": seed, "seconds": report["seconds"], "bytes": report["output_bytes"], **self.evaluate(folder)})
        return {"bits_per_weight": report["bits_per_weight"], "runs": runs}


def image_line(form, count, row):
    def spread(what, digits):
        values = [run[what] for run in row["runs"]]
        mean = f"{statistics.mean(values):.{digits}f}"
        return mean if len(values) == 1 else f"{mean} ± {statistics.stdev(values):.{digits}f}"
    return (f"| {form} | {count} | {row['bits_per_weight']:.2f} | {spread('top1', 2)} | {spread('nll', 3)} | "
            f"{statistics.mean(run['bytes'] for run in row['runs']) / 2**20:.2f} |")


def table_line(name, row):
    ppl = row["perplexity"]
    return (f"| {name} | {row['bits_per_weight']:.2f} | {ppl['wikitext2']:.2f} | {ppl['ptb']:.2f} | {ppl['c4']:.2f} | "
            f"{row['kl']:.4f} ± {row['kl_error']:.4f} | {row['top1']:.1f} | {row['cpu_seconds']:.0f} | "
            f"{row['peak_memory_bytes'] / 2**20:.0f} |")


def document(results):
    ppl = results["float"]
    lines = ["# Results", "", f"Written by `make results`, last on {results['date']}; {results['version']}; {results['processor']}. The same rows "
             "are in `bench/results.json`; rows that are missing here were not measured yet.", "",
             "**Model:** the bundled one (4.3 M parameters, context 512), weights of all block layers quantized. **Calibration:** "
             f"{SAMPLES} × {LENGTH} tokens, seed {SEED}, of the first half of the C4 text. **Perplexity:** windows of 512 that do not "
             f"overlap: all of the WikiText-2 test set, the first {OTHER_WINDOWS} of the PTB test set, and as many of the second half of the "
             "C4 text, which is short: that column is not comparable with the papers' C4. **KL** (nats, ± standard error) and **top-1** agreement: against the float "
             f"model, the first {KL_WINDOWS} windows of WikiText-2. **Bits** count every stored byte of the quantized matrices: scales, "
             "zero points, outliers, bitmaps, position vectors. **CPU s** are seconds of all cores together for the whole "
             "`quantize` command, roughly: threads that wait count, too, and rows were measured with one thread or two, on different "
             "days; **MiB** is its peak memory.", "",
             f"Float: WikiText-2 {ppl['wikitext2']:.2f}, PTB {ppl['ptb']:.2f}, C4 {ppl['c4']:.2f}."]
    for title, flags, forms in TABLES:
        rows = [(form, results["rows"].get(f"{title}/{form}")) for form in forms]
        if not any(row for _, row in rows):
            continue
        lines += ["", f"## {title}", "", "`" + " ".join(flags) + "`" if flags else "`--method billm`", "",
                  "| method | bits | WikiText-2 | PTB | C4 | KL | top-1 % | CPU s | MiB |", "|---|---:|---:|---:|---:|---:|---:|---:|---:|"]
        lines += [table_line(form, row) for form, row in rows if row]
    if "float_images" not in results:
        return "\n".join(lines) + "\n"
    lines += ["", "# Image classifiers", "", "**Model:** DeiT-Tiny (Hugging Face `facebook/deit-tiny-patch16-224`). **Top-1** (%) and **NLL** (nats): mean ± "
              f"standard deviation over seeds {', '.join(map(str, IMAGE_SEEDS))}, 1300 labelled validation images; the seed chooses the calibration "
              "images out of 100 training images, and their views; with all 100 images the forms without views have nothing to draw and are one run. One top-1 has a standard error of 1.1 to 1.3 points. The recipes' constants were "
              "chosen on these validation images with seed 0. **MiB**: tensors of the whole checkpoint.", "",
              f"Float: top-1 {results['float_images']['top1']:.2f} %, NLL {results['float_images']['nll']:.3f}."]
    for title, flags, forms in IMAGE_TABLES:
        rows = [(form, count, results["rows"].get(f"{title}/{form}/{count}")) for form in forms for count in IMAGE_COUNTS]
        if not any(row for _, _, row in rows):
            continue
        lines += ["", f"## {title}", "", "`" + " ".join(flags) + "`", "", "| method | images | bits | top-1 % | NLL | MiB |",
                  "|---|---:|---:|---:|---:|---:|"]
        lines += [image_line(form, count, row) for form, count, row in rows if row]
    return "\n".join(lines) + "\n"


def main():
    if len(sys.argv) not in (4, 5):
        sys.exit(__doc__)
    ballast, model, shared = sys.argv[1], *map(pathlib.Path, sys.argv[2:4])
    only = re.compile(sys.argv[4] if len(sys.argv) == 5 else "")
    store = pathlib.Path("bench/results.json")
    store.parent.mkdir(exist_ok=True)
    known = json.loads(store.read_text(encoding="utf-8")) if only.pattern and store.exists() else {"rows": {}}
    version = subprocess.run([ballast, "--version"], stdout=subprocess.PIPE, text=True, check=True).stdout.splitlines()[0]
    jobs = [(f"{title}/{form}", lambda m, *job: m.row(*job), (title, flags, form), lambda row, *job: table_line(job[2], row))
            for title, flags, forms in TABLES for form in forms]
    jobs += [(f"{title}/{form}/{count}", lambda m, *job: m.image_row(*job), (flags, form, count), lambda row, *job: image_line(*job[1:], row))
             for title, flags, forms in IMAGE_TABLES for form in forms for count in IMAGE_COUNTS]
    names = {name for name, *_ in jobs}
    results = {"date": str(datetime.date.today()), "version": version, "processor": processor(),
               "rows": {name: row for name, row in known["rows"].items() if name in names}}
    with tempfile.TemporaryDirectory() as scratch:
        measurement = Measurement(ballast, model, shared, pathlib.Path(scratch))
        results["float"] = known.get("float") or measurement.perplexities(model)
        if (shared / IMAGE_MODEL).is_dir():
            results["float_images"] = known.get("float_images") or measurement.evaluate(shared / IMAGE_MODEL)
        for name, measure, job, line in jobs:
            if not only.search(name) or (name.startswith("Images") and "float_images" not in results):
                continue
            results["rows"][name] = measure(measurement, *job)
            print(name, line(results["rows"][name], *job), flush=True)
            store.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
            pathlib.Path("RESULTS.md").write_text(document(results), encoding="utf-8")


if __name__ == "__main__":
    main()
