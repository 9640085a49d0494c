#!/usr/bin/env python3
"""Compares two files that `make bench` wrote.

usage: bench_compare.py [OLD] NEW      OLD: a file, or by default the last committed bench/cpu.json

Rates are compared as shares: decoding of the rate at which the machine read memory in the same run, prefill and single layers of its
fp32 multiply-adds, so that runs on different machines, or on the same one on a bad day, can be set side by side. Prints a table of new /
old; exit 1 when a share fell by more than a fifth, 2 when a file is not such a one. Where memory itself was faster or slower by more
than a quarter, decoding is limited by something else than before: such lines are marked "memory" and do not count.
"""
import json
import pathlib
import subprocess
import sys

LOWEST = 0.8
SAME_MEMORY = 1.25


def shares(result):
    """{name: (share of what the machine can do, GB/s at which it read memory where that is the measure)}"""
    out = {}
    for run in result["models"]:
        for row in run["rows"]:
            out[f"{run['label']}, {row['test']}"] = share_of(row, row["test"].startswith("tg"), run["model_read_gb_s"])
    for row in result["linear"]:
        name = f"{row['kernel']}, {row['bits']} bits, groups of {row['group_size']}, {row['tokens']} tokens"
        out[name] = share_of(row, row["tokens"] == 1, row["bandwidth_gb_s"] / row["share_of_read"])
    return out


def share_of(row, reads, read_gb_s):
    return (row["share_of_read"], row.get("read_gb_s", read_gb_s)) if reads else (row["share_of_fma_peak"], None)


def other_memory(before, after):
    return before is not None and not 1 / SAME_MEMORY < after / before < SAME_MEMORY


def committed():
    root = pathlib.Path(__file__).resolve().parent.parent
    done = subprocess.run(["git", "show", "HEAD:bench/cpu.json"], cwd=root, stdout=subprocess.PIPE, check=False)
    if done.returncode:
        refuse("no bench/cpu.json is committed")
    return done.stdout


def refuse(why):
    print(f"bench_compare: {why}", file=sys.stderr)
    sys.exit(2)


def text_of(name):
    try:
        return pathlib.Path(name).read_text()
    except (OSError, UnicodeDecodeError) as error:
        refuse(f"{name}: {error}")


def parsed(text, name):
    """What a file holds, and its shares"""
    try:
        result = json.loads(text)
        return result, shares(result)
    except (ValueError, KeyError, TypeError, ZeroDivisionError) as error:
        refuse(f"{name}: is not what bench_all.py writes ({type(error).__name__}: {error})")


def main():
    if len(sys.argv) not in (2, 3):
        sys.exit(__doc__)
    old, before = parsed(text_of(sys.argv[1]), sys.argv[1]) if len(sys.argv) == 3 else parsed(committed(), "HEAD:bench/cpu.json")
    new, after = parsed(text_of(sys.argv[-1]), sys.argv[-1])
    print(f"old: {old['build']}, {old['machine'].get('processor', '?')}, {old['machine']['date']}")
    print(f"new: {new['build']}, {new['machine'].get('processor', '?')}, {new['machine']['date']}\n")
    print("| what | old | new | new / old |\n|---|---:|---:|---:|")
    fell = 0
    for name, (share, read) in after.items():
        if name not in before:
            continue
        old_share, old_read = before[name]
        ratio = share / old_share
        memory = other_memory(old_read, read)
        worse = ratio < LOWEST and not memory
        fell += worse
        print(f"| {name} | {100 * old_share:.1f} % | {100 * share:.1f} % | {ratio:.2f}{' memory' if memory else ' !' if worse else ''} |")
    missing = sorted(set(before) - set(after))
    if missing:
        print(f"\nnot measured any more: {'; '.join(missing)}")
    sys.exit(1 if fell else 0)


if __name__ == "__main__":
    main()
