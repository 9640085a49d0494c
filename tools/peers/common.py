"""What the scripts beside this one share: running `ballast bench`, alternating with a peer, medians and ratios."""
import json
import statistics
import subprocess
import sys

SHAPES = {  # layers, heads, hidden
    "tiny": (2, 4, 64), "125m": (12, 12, 768), "1.3b": (24, 32, 2048), "2.7b": (32, 32, 2560), "6.7b": (32, 32, 4096),
}


def run(command, **options):
    done = subprocess.run([str(part) for part in command], stdout=subprocess.PIPE, text=True, check=False, **options)
    if done.returncode:
        sys.exit(f"{command[0]} ended with {done.returncode}: {' '.join(map(str, command))}")
    return done.stdout


def ballast_rates(binary, model, threads, prompt, generate, extra=()):
    """{test: tokens per second} of one run of each test, and the whole object."""
    result = json.loads(run([binary, "bench", "-m", model, "--threads", threads, "--prompt", prompt, "--generate",
                             generate, "--repeat", 1, "--json", "--quiet", *extra]))
    return {row["test"]: row["median"] for row in result["rows"]}, result


def alternate(rounds, contestants):
    """contestants: {name: function -> {test: rate}}, called in turn `rounds` times. Returns {name: {test: [rates]}}."""
    rates = {name: {} for name in contestants}
    for round_ in range(rounds):
        for name, measure in contestants.items():
            for test, rate in measure().items():
                rates[name].setdefault(test, []).append(rate)
            print(f"round {round_ + 1}: {name} " + ", ".join(f"{t} {r[-1]:.1f}" for t, r in rates[name].items()),
                  file=sys.stderr)
    return rates


def report(rates, ours, peer):
    """A Markdown table of medians (lowest, highest); the ratio is the median of the rounds' ratios."""
    print(f"| test | {ours} | {peer} | ratio |\n|---|---:|---:|---:|")
    for test, mine in rates[ours].items():
        theirs = rates[peer].get(test)
        if not theirs:
            continue
        ratio = statistics.median(a / b for a, b in zip(mine, theirs))
        cells = [f"{statistics.median(r):.1f} ({min(r):.1f}, {max(r):.1f})" for r in (mine, theirs)]
        print(f"| {test} | {cells[0]} | {cells[1]} | {ratio:.2f} |")
