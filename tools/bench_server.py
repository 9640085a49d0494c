#!/usr/bin/env python3
"""What the server costs beside the engine alone, and what it gains with many streams.

usage: bench_server.py BALLAST MODEL_DIR [--rounds N] [--streams N] [--tokens N]

In every round, one after the other so that a busy machine disturbs all alike: `ballast bench` of one sequence without a server,
then `ballast bench --serve` with one stream and with several. Prints medians: milliseconds a token alone and through the server,
the difference, and tokens/s of several streams over one. A model with random weights: `ballast bench --random-model 125m --save DIR`
"""
import argparse
import json
import os
import re
import statistics
import subprocess
import sys
import tempfile
import time


def run(*command):
    return json.loads(subprocess.run([str(part) for part in command], stdout=subprocess.PIPE, check=True).stdout)


class Server:
    def __init__(self, ballast, model):
        self.log = tempfile.NamedTemporaryFile("r")
        with open(self.log.name, "w") as log:
            self.process = subprocess.Popen([ballast, "serve", "-m", model, "--port", "0"], stderr=log)
        while not (ready := re.search(r"ready on (http://\S+) in", open(self.log.name).read())):
            if self.process.poll() is not None:
                sys.exit(open(self.log.name).read())
            time.sleep(0.05)
        self.url = ready[1]

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.process.terminate()
        self.process.wait()


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("ballast")
    parser.add_argument("model")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--streams", type=int, default=16)
    parser.add_argument("--tokens", type=int, default=64)
    arguments = parser.parse_args()
    rows = {"alone": [], "served": [], "one": [], "many": []}
    with Server(arguments.ballast, arguments.model) as server:
        bench = [arguments.ballast, "bench", "--json", "--quiet"]

        def serve(streams, requests):
            return run(*bench, "--serve", server.url, "--concurrency", streams, "--requests", requests,
                       "--serve-prompt", 1, "--serve-generate", arguments.tokens)
        serve(arguments.streams, arguments.streams)
        for _ in range(arguments.rounds):
            alone = run(*bench, "-m", arguments.model, "--prompt", 0, "--generate", arguments.tokens, "--repeat", 1)
            rate = next(row["tokens_per_second"] for row in alone["rows"] if row["test"].startswith("tg"))
            one, many = serve(1, 2), serve(arguments.streams, 2 * arguments.streams)
            rows["alone"].append(1e3 / rate)
            rows["served"].append(1e3 * one["inter_token"]["mean"])
            rows["one"].append(one["tokens_per_second"])
            rows["many"].append(many["tokens_per_second"])
            print("load {:.1f}: {}".format(os.getloadavg()[0], {key: round(values[-1], 3) for key, values in rows.items()}), file=sys.stderr)
    alone, served, one, many = (statistics.median(rows[key]) for key in ("alone", "served", "one", "many"))
    added = statistics.median(b - a for a, b in zip(rows["alone"], rows["served"]))
    gain = statistics.median(b / a for a, b in zip(rows["one"], rows["many"]))
    print(f"one sequence without a server   {alone:8.3f} ms a token")
    print(f"one stream of the server        {served:8.3f} ms a token, {added:+.3f} (median of the rounds' differences)")
    print(f"{arguments.streams} streams                      {many:8.1f} tokens/s, {gain:.2f} times one stream's {one:.1f}")


if __name__ == "__main__":
    main()
