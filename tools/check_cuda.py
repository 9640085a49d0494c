#!/usr/bin/env python3
"""Compiles the CUDA kernels for sm_80 and sm_90a, which needs no GPU, and reads what the compiler says of them: fails on
registers that spill to memory and, where cuobjdump is found, on kernels that outgrow their budget of instructions.

usage: check_cuda.py [--work DIR] [--jobs N]       exit 1 and one line per finding; 77 without nvcc

Objects and the compiler's words are kept in DIR and made again only when a source is newer. cuobjdump and nvdisasm come with
the CUDA toolkit, or as nvidia-cuda-cuobjdump and nvidia-cuda-nvdisasm from PyPI.
"""
import argparse
import collections
import concurrent.futures
import os
import pathlib
import re
import shutil
import subprocess
import sys
import tempfile

ROOT = pathlib.Path(__file__).resolve().parent.parent
ARCHITECTURES = ("80", "90a")
SKIPPED = 77
# Instructions for each weight in one stage of the kernel for up to eight tokens: all of them, and the integer and 16-bit float
# ones that turn codes into operands: LOP3, shifts and PRMT; HADD2 and HFMA2 (which conversions of scales are part of). At 4.3
# TB/s an H200 streams weights so fast that 4.0, 3.1 and 2.1 instructions fit beside one at 4, 3 and 2 bits, of which 2.0, 1.5
# and 1.04 may be integer ones.
DECODE = {"integer": ("LOP3", "SHF", "PRMT"), "half": ("HADD2", "HFMA2")}
BUDGET = {2: (1.6, 0.65, 0.1), 3: (2.2, 0.85, 0.6), 4: (2.0, 0.75, 0.6), 8: (2.0, 0.6, 0.6)}
WEIGHTS_OF_A_MULTIPLY = 8  # of one lane
MULTIPLIES_OF_A_STAGE = 16


def compile_one(nvcc, source, architecture, work):
    """The compiler's words on one source for one architecture."""
    made, words = work / f"{source.stem}.{architecture}.cubin", work / f"{source.stem}.{architecture}.txt"
    newest = max(path.stat().st_mtime for path in [source, *(ROOT / "kernels").rglob("*.h"), pathlib.Path(__file__)])
    if not (made.is_file() and words.is_file() and made.stat().st_mtime > newest):
        command = [nvcc, "-std=c++20", "-O3", f"-I{ROOT}", "-cubin", "-arch", f"sm_{architecture}", "-Xptxas", "-v",
                   "-o", str(made), str(source)]
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode != 0:
            made.unlink(missing_ok=True)
            raise RuntimeError(f"{source.name} does not compile for sm_{architecture}:\n{done.stderr}")
        words.write_text(done.stderr)
    return made, words.read_text()


def short_name(mangled):
    """LinearFragments<4, AffineMeta, F16, 1> out of the mangled name of an entry."""
    filt = shutil.which("c++filt")
    if not filt:
        return mangled
    name = subprocess.run([filt, mangled], capture_output=True, text=True).stdout.strip()
    match = re.search(r"kernel_entry<(.*?)>\((?!.*\)>\()", name)
    name = match.group(1) if match else name
    return re.sub(r"\w+::|\(anonymous namespace\)::", "", name).strip().removesuffix(" ")


def resources(words):
    """(entry, registers, spilled bytes) of every kernel."""
    pattern = (r"Compiling entry function '(\S+)'.*?(\d+) bytes spill stores, (\d+) bytes spill loads.*?"
               r"Used (\d+) registers")
    for entry, stores, loads, registers in re.findall(pattern, words, re.S):
        yield entry, int(registers), int(stores) + int(loads)


def longest_block(code):
    """Opcodes of the basic block of a kernel's SASS with the most matrix multiplications, counted."""
    listing = re.findall(r"/\*([0-9a-f]{4,})\*/\s+(?:@!?U?P\w+\s+)?([A-Z][A-Z0-9_.]*)([^;]*);", code)
    targets = {int(at, 16) for name, rest in (row[1:] for row in listing) if name in ("BRA", "BSSY")
               for at in re.findall(r"0x([0-9a-f]+)", rest)[-1:]}
    blocks, block = [], []
    for at, name, _ in listing:
        if int(at, 16) in targets:
            blocks.append(block)
            block = []
        block.append(name.split(".")[0])
        if name.split(".")[0] in ("BRA", "EXIT", "RET", "BRX"):
            blocks.append(block)
            block = []
    return collections.Counter(max(blocks + [block], key=lambda names: names.count("HMMA")))


def find_cuobjdump():
    tools = [shutil.which("cuobjdump")]
    for folder in map(pathlib.Path, sys.path):
        tools += sorted(folder.glob("nvidia/*/bin/cuobjdump"))
    for tool in filter(None, tools):
        folder = str(pathlib.Path(tool).parent)
        path = folder + os.pathsep + os.environ.get("PATH", "")
        if shutil.which("nvdisasm", path=path):
            return str(tool), dict(os.environ, PATH=path)
    return None, None


def stage_rows(cubin):
    """(bits, half, instructions, integer, half ops) a weight of the affine kernels for one token."""
    tool, environment = find_cuobjdump()
    text = subprocess.run([tool, "-sass", str(cubin)], capture_output=True, text=True, env=environment).stdout
    for part in text.split("Function : ")[1:]:
        kernel = re.search(r"LinearFragmentsILi(\d+)ENS0_10AffineMetaENS_3dev\d+(B?F16)ELi1E", part.split("\n")[0])
        counts = longest_block(part) if kernel else None
        if not counts or counts["HMMA"] < MULTIPLIES_OF_A_STAGE:
            continue
        weights = counts["HMMA"] * WEIGHTS_OF_A_MULTIPLY
        spent = [sum(counts[name] for name in names) / weights for names in DECODE.values()]
        yield int(kernel.group(1)), kernel.group(2), sum(counts.values()) / weights, *spent


def check(nvcc, work, jobs):
    sources = [path for path in sorted((ROOT / "kernels/cuda").glob("*.cu")) if path.name != "runtime.cu"]
    pairs = [(source, architecture) for source in sources for architecture in ARCHITECTURES]
    with concurrent.futures.ThreadPoolExecutor(jobs) as pool:
        made = list(pool.map(lambda pair: compile_one(nvcc, *pair, work), pairs))
    findings = []
    print("| kernel | sm | registers | spilled bytes |\n|---|---|---:|---:|")
    for (source, architecture), (_, words) in zip(pairs, made):
        for entry, registers, spilled in resources(words):
            print(f"| {short_name(entry)} | {architecture} | {registers} | {spilled} |")
            if spilled:
                findings.append(f"{source.name}: {short_name(entry)} spills {spilled} bytes on sm_{architecture}")
    if not find_cuobjdump()[0]:
        print("\ninstructions were not counted: no cuobjdump with nvdisasm")
        return findings
    print("\nOne stage of the affine kernels in groups of 128, sm_90a, up to eight tokens; instructions a weight.\n\n"
          "| bits | operands | all | integer decoding | 16-bit floats |\n|---|---|---:|---:|---:|")
    counted = 0
    for (source, architecture), (cubin, _) in zip(pairs, made):
        if architecture != "90a" or not source.stem.startswith("linear_affine_"):
            continue
        for bits, half, total, integer, floats in stage_rows(cubin):
            counted += 1
            print(f"| {bits} | {half} | {total:.2f} | {integer:.2f} | {floats:.2f} |")
            for spent, most, what in zip((total, integer, floats), BUDGET[bits], ("", " integer", " 16-bit float")):
                if half == "F16" and spent > most:
                    findings.append(f"{bits} bits: {spent:.2f}{what} instructions a weight, at most {most}")
    if counted != 2 * len(BUDGET):
        findings.append(f"the stages of {counted} of {2 * len(BUDGET)} kernels were found")
    return findings


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--work", type=pathlib.Path)
    parser.add_argument("--jobs", type=int, default=os.cpu_count())
    options = parser.parse_args()
    nvcc = shutil.which("nvcc") or shutil.which("nvcc", path="/usr/local/cuda/bin")
    if not nvcc:
        print("skipped: there is no nvcc here")
        sys.exit(SKIPPED)
    with tempfile.TemporaryDirectory() as temporary:
        work = options.work or pathlib.Path(temporary)
        work.mkdir(parents=True, exist_ok=True)
        try:
            found = check(nvcc, work, options.jobs)
        except RuntimeError as error:
            found = [str(error)]
    for line in found:
        print(line)
    print(f"CUDA kernels: {len(found)} finding(s)")
    sys.exit(1 if found else 0)


if __name__ == "__main__":
    main()
