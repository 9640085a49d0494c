#!/usr/bin/env python3
"""Speed on this machine: writes FOLDER/cpu.json and FOLDER/cpu.md.

usage: bench_all.py BALLAST FOLDER [--quick]      (make bench calls it)

Models of OPT's shapes with random weights at 4, 3 and 2 bits, with f32 and int8 activations, and single linear layers. --quick: the
smallest shape and few layers, to see that everything runs.
"""
import json
import pathlib
import subprocess
import sys


def bench(ballast, *arguments):
    print("bench:", *arguments, file=sys.stderr)
    done = subprocess.run([ballast, "bench", *map(str, arguments), "--json", "--quiet"], stdout=subprocess.PIPE, check=False)
    if done.returncode:
        sys.exit(f"bench_all: ballast bench {' '.join(map(str, arguments))} ended with {done.returncode}")
    return json.loads(done.stdout)


def model_runs(quick):
    """(label, arguments)"""
    shapes = ["tiny"] if quick else ["125m", "1.3b"]
    tests = ["--prompt", "16", "--generate", "4", "--repeat", "1"] if quick else None
    for shape in shapes:
        for bits in (4, 3, 2):
            for activations in ("f32", "int8"):
                group = 32 if quick else 128
                usual = ["--depth", "0,1024"] if shape == "125m" else ["--repeat", "3"]
                yield (f"{shape} W{bits} g{group} {activations}",
                       ["--random-model", shape, "--bits", bits, "--group-size", group, "--activations", activations,
                        *(tests or usual)])


def kernel_arguments(quick):
    if quick:
        return ["--kernels", "linear", "--kernel-shapes", "tiny", "--kernel-groups", 32, "--kernel-tokens", "1,16", "--repeat", 1]
    return ["--kernels", "linear", "--kernel-shapes", "125m,1.3b", "--kernel-tokens", "1,8,64,512", "--repeat", 3]


def markdown(result):
    machine = result["machine"]
    lines = ["# Speed of the CPU kernels", "",
             f"Written by `make bench` on {machine['date']}, build {result['build']}, {machine.get('processor', '')} "
             f"({', '.join(machine.get('flags', []))}), {result['device']}. Rates are medians; random weights.", "",
             "\"Of the ceiling\": decoding at the rate at which this machine reads a set of the model's size (a lean file's bytes: "
             "codes, scales, zero points, 16-bit vectors); \"of the fp32 peak\": multiply-adds of the linear layers against "
             "fused multiply-adds from register to register, which integer arithmetic may pass. Reads are measured before and after "
             "every run; where the two differ by more than a fifth, the run is made again.", "",
             "| model | test | tokens/s | MB per token | read GB/s | of the ceiling | of the fp32 peak |",
             "|---|---|---:|---:|---:|---:|---:|"]
    for run in result["models"]:
        for row in run["rows"]:
            mega = (row["bytes_per_token"] + row["cache_bytes_per_token"]) * 1e-6
            lines.append(f"| {run['label']} | {row['test']} | {row['median']:.1f} | {mega:.2f} | {row['read_gb_s']:.1f} | "
                         f"{100 * row['share_of_read']:.0f} % | {100 * row['share_of_fma_peak']:.0f} % |")
    lines += ["", "| layer | bits | tokens | µs | of the read rate | of the fp32 peak | of SGEMM | of u8s8 |",
              "|---|---:|---:|---:|---:|---:|---:|---:|"]
    for row in result["linear"]:
        shares = [row.get(key) for key in ("share_of_read", "share_of_fma_peak", "share_of_sgemm", "share_of_u8s8_gemm")]
        cells = ["" if share is None else f"{100 * share:.0f} %" for share in shares]
        lines.append(f"| {row['out_features']}x{row['in_features']} | {row['bits']} | {row['tokens']} | {row['microseconds']:.0f} | "
                     + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def main():
    if len(sys.argv) not in (3, 4) or (len(sys.argv) == 4 and sys.argv[3] != "--quick"):
        sys.exit(__doc__)
    ballast, folder, quick = sys.argv[1], pathlib.Path(sys.argv[2]), len(sys.argv) == 4
    kernels = bench(ballast, *kernel_arguments(quick))
    result = {key: kernels[key] for key in ("build", "device", "machine", "linear")}
    result["models"] = []
    for label, arguments in model_runs(quick):
        run = bench(ballast, *arguments)
        result["models"].append({"label": label, **{key: run[key] for key in (
            "memory_read_gb_s", "model_read_gb_s", "fma_peak_gflop_s", "weight_bytes", "load_seconds", "relu_zeros")},
                                 "rows": [{key: value for key, value in row.items() if key != "runs"} for row in run["rows"]]})
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "cpu.json").write_text(json.dumps(result, indent=1) + "\n")
    (folder / "cpu.md").write_text(markdown(result))


if __name__ == "__main__":
    main()
