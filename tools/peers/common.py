"""What the scripts beside this one share: running `ballast bench`, alternating with a peer, medians and ratios."""
import json
import pathlib
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


def add_arguments(parser, shapes, peer_type, **peer_choices):
    """What every comparison can be told; the peer's own arguments stand before or after."""
    parser.add_argument("--shape", default="125m", choices=shapes)
    parser.add_argument("--bits", type=int, default=4)
    parser.add_argument("--group-size", type=int, default=128)
    parser.add_argument("--activations", default="f32", choices=["f32", "int8"], help="Ballast's")
    parser.add_argument("--peer-type", default=peer_type, **peer_choices)
    parser.add_argument("--prompt", type=int, default=512)
    parser.add_argument("--generate", type=int, default=64)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--work", default="peers-work")


def ballast_model(options):
    """The folder of Ballast's random model, written if it is not there."""
    codes = pathlib.Path(options.work) / f"opt-{options.shape}-w{options.bits}g{options.group_size}"
    if not codes.is_dir():
        run([options.ballast, "bench", "--quiet", "--random-model", options.shape, "--bits", options.bits, "--group-size",
             options.group_size, "--save", codes])
    return codes


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
