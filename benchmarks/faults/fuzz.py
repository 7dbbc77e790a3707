"""Feeds damaged and hostile files to everything of the package that reads files: only its own errors may come out.

    python benchmarks/faults/fuzz.py --inputs 100000 --seed 0 --json runs/faults/fuzz.json

Inputs are structures drawn by hypothesis, valid files with bytes and numbers changed, and, where atheris is installed
(pip install "multimae-eo[fuzz]"), what its coverage-guided engine makes of valid files: half of all inputs. Each parser
works in a process of its own: a crash, a wait of more than SLOW_S, or more than MORE_MB of further memory for one input
is a finding, as is any exception that is not the package's own; findings are printed with their bytes in base64, and
the exit code is 1. The same seed and number of inputs give the same inputs, but for those of atheris, which depend on
its version.
"""

import argparse
import base64
import contextlib
import json
import mmap
import os
import random
import re
import resource
import signal
import struct
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path

try:
    import atheris
except ImportError:
    atheris = None

with atheris.instrument_imports(include=["multimae_eo"]) if atheris else contextlib.nullcontext():
    sys.path.insert(0, str(Path(__file__).parent))
    from fuzz_parsers import PARSERS, Parser

    from multimae_eo.errors import MultiMAEError

SLOW_S, HUNG_S, MORE_MB = 5, 30, 600
ROOM = 16 << 20  # for the input that is being read
DRAWN = 0.3  # of the inputs that atheris does not make: structures of hypothesis
SHOWN = 3  # findings of one parser after which it is left alone
_NUMBERS = (0, 1, 2, 127, 128, 255, 256, 32767, 65535, 2**31 - 1, 2**31, 2**32 - 1, 2**63 - 1, 2**64 - 1, 10**6)
_WORDS = (*map(str, _NUMBERS), "-1", "1e999", "NaN", "null", "true", "[]", "{}", '""', "9" * 400, "0.5", '"../../x"')


class TooSlow(BaseException):
    """One input takes too long."""


class Tally:
    """Counts that a parser's process shares with the one that watches it, and the input that is being read."""

    def __init__(self, folder: Path):
        self.memory = mmap.mmap(-1, 64 + ROOM)
        self.path = folder / "findings.jsonl"

    def get(self) -> tuple[int, int]:
        return struct.unpack_from("qq", self.memory)

    def add(self, accepted: bool) -> None:
        counts = self.get()
        struct.pack_into("qq", self.memory, 0, counts[0] + accepted, counts[1] + (not accepted))

    @property
    def current(self) -> bytes:
        (length,) = struct.unpack_from("q", self.memory, 16)
        return self.memory[64 : 64 + length]

    @current.setter
    def current(self, data: bytes) -> None:
        struct.pack_into("q", self.memory, 16, min(len(data), ROOM))
        self.memory[64 : 64 + min(len(data), ROOM)] = data[:ROOM]

    def find(self, what: str, data: bytes) -> None:
        with open(self.path, "a") as file:
            file.write(json.dumps({"what": what, "input": base64.b64encode(data).decode()}) + "\n")

    def findings(self) -> list[dict[str, str]]:
        return [json.loads(line) for line in self.path.read_text().splitlines()] if self.path.exists() else []


def peak_mb() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def judged(parser: Parser, tally: Tally) -> Callable[[bytes], None]:
    """Reads one input and counts what came of it."""

    def one(data: bytes) -> None:
        tally.current, before, began, accepted = data, peak_mb(), time.perf_counter(), True
        signal.setitimer(signal.ITIMER_REAL, SLOW_S)
        try:
            parser.read(data)
        except MultiMAEError:
            accepted = False
        except TooSlow:
            tally.find(f"slower than {SLOW_S} s", data)
        except BaseException:  # whatever else comes out is what is looked for
            tally.find(traceback.format_exc(limit=-12), data)
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)
        if peak_mb() - before > MORE_MB:
            tally.find(f"{peak_mb() - before:.0f} MB more memory after {time.perf_counter() - began:.1f} s", data)
        tally.add(accepted)

    return one


def changed(chance: random.Random, seeds: list[bytes]) -> bytes:
    """A valid file with a few places changed."""
    data = bytearray(chance.choice(seeds))
    for _ in range(chance.choice((1, 1, 1, 2, 3, 6))):
        place = chance.randrange(len(data) + 1) if chance.random() < 0.6 else chance.randrange(min(len(data), 512) + 1)
        kind = chance.randrange(8)
        if kind == 0:
            data[place : place + 1] = bytes([chance.randrange(256)])
        elif kind == 1 and place < len(data):
            data[place] ^= 1 << chance.randrange(8)
        elif kind == 2:
            del data[place:]
        elif kind == 3:
            del data[place : place + chance.choice((1, 2, 4, 8, 64))]
        elif kind == 4:
            other = chance.choice(seeds)
            start = chance.randrange(len(other) + 1)
            data[place:place] = other[start : start + chance.choice((1, 4, 16, 128))]
        elif kind == 5:
            width = chance.choice("HIQ")
            number = chance.choice(_NUMBERS) % 256 ** struct.calcsize(width)
            packed = struct.pack(chance.choice("<>") + width, number)
            data[place : place + len(packed)] = packed
        elif kind == 6 and (
            found := list(re.finditer(rb"-?\d+(\.\d+)?|\"[^\"]*\"|null|true|false", bytes(data[:65536])))
        ):
            at = chance.choice(found)
            data[at.start() : at.end()] = chance.choice(_WORDS).encode()
        elif kind == 7:
            data[place:place] = bytes(data[place : place + chance.choice((4, 32, 256))]) * chance.choice((1, 2, 50))
    return bytes(data[: ROOM // 4])


def by_changes(parser: Parser, one: Callable[[bytes], None], number: int, seed: int, done: int) -> None:
    for i in range(done, number):
        one(changed(random.Random(f"{seed}/{parser.name}/{i}"), parser.seeds))


def by_structures(parser: Parser, one: Callable[[bytes], None], number: int, seed: int, done: int) -> None:
    import hypothesis

    settings = hypothesis.settings(
        max_examples=number - done,
        database=None,
        deadline=None,
        phases=[hypothesis.Phase.generate],
        suppress_health_check=list(hypothesis.HealthCheck),
    )
    hypothesis.seed(seed + done)(settings(hypothesis.given(parser.structures)(one)))()


def by_atheris(parser: Parser, one: Callable[[bytes], None], number: int, seed: int, done: int) -> None:
    folder = Path(tempfile.mkdtemp())
    for i, data in enumerate(parser.seeds):
        (folder / str(i)).write_bytes(data)
    longest = max(map(len, parser.seeds)) + 4096
    options = [f"-runs={number - done}", f"-seed={seed + 1 + done}", f"-max_len={longest}", "-timeout=60"]
    atheris.Setup([sys.argv[0], *options, "-rss_limit_mb=8000", "-verbosity=0", str(folder)], one)
    atheris.Fuzz()


def watched(parser: Parser, how: Callable[..., None], number: int, seed: int) -> tuple[Tally, float]:
    """Inputs in a process of its own, and in another one after it crashed or hung."""
    tally, began = Tally(Path(tempfile.mkdtemp())), time.perf_counter()
    while sum(tally.get()) < number and len(tally.findings()) < SHOWN:
        done = sum(tally.get())
        child = os.fork()
        if not child:
            worked(parser, how, tally, number, seed, done)
        status, last, since = 0, done, time.perf_counter()
        while not (ended := os.waitpid(child, os.WNOHANG))[0]:
            time.sleep(0.02)
            if sum(tally.get()) != last:
                last, since = sum(tally.get()), time.perf_counter()
            if time.perf_counter() - since > HUNG_S or len(tally.findings()) >= SHOWN:
                os.kill(child, signal.SIGKILL)
        status = ended[1]
        if os.WIFSIGNALED(status) and len(tally.findings()) < SHOWN:
            what = "hung" if os.WTERMSIG(status) == signal.SIGKILL else f"crashed with signal {os.WTERMSIG(status)}"
            tally.find(f"the process {what}", tally.current)
            tally.add(False)
        elif how is not by_changes:
            break  # hypothesis may run out of structures, and atheris does not say why it ends
    return tally, time.perf_counter() - began


def worked(parser: Parser, how: Callable[..., None], tally: Tally, number: int, seed: int, done: int) -> None:
    """What the process of a parser does; does not return."""

    def late(*_: object) -> None:
        raise TooSlow

    signal.signal(signal.SIGALRM, late)
    sink = os.open(os.devnull, os.O_WRONLY)
    os.dup2(sink, 1)
    os.dup2(sink, 2)
    try:
        how(parser, judged(parser, tally), number, seed, done)
    except BaseException:  # of the fuzzer itself
        tally.find(traceback.format_exc(), b"")
    os._exit(0)


def shares(inputs: int, parsers: list[Parser]) -> Iterator[tuple[Parser, Callable[..., None], int]]:
    """How many inputs each parser is given, and from where."""
    total = sum(parser.weight for parser in parsers)
    for parser in parsers:
        number = max(10, round(inputs * parser.weight / total))
        guided = number // 2 if atheris else 0
        drawn = 0 if parser.structures is None else int((number - guided) * DRAWN)
        yield from ((parser, how, n) for how, n in ((by_atheris, guided), (by_structures, drawn)) if n)
        yield parser, by_changes, number - guided - drawn


NAMES = {by_atheris: "atheris", by_structures: "structures", by_changes: "changed bytes"}


def main() -> int:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--inputs", type=int, default=100_000)
    options.add_argument("--seed", type=int, default=0)
    options.add_argument("--only", nargs="*", choices=[p.name for p in PARSERS], help="some parsers")
    options.add_argument("--json", type=Path)
    chosen = options.parse_args()
    parsers = [p for p in PARSERS if not chosen.only or p.name in chosen.only]
    memory = Path("/dev/shm")
    with tempfile.TemporaryDirectory(prefix="fuzz", dir=memory if memory.is_dir() else None) as folder:
        tempfile.tempdir = folder  # of all that is written
        return fuzz(parsers, chosen)


def fuzz(parsers: list[Parser], chosen: argparse.Namespace) -> int:
    """Feed every parser its share; how many inputs brought out what is no error of ours, as an exit code."""
    rows, failed = [], 0
    print(f"{'parser':<24}{'how':<15}{'inputs':>8}{'accepted':>10}{'refused':>9}{'seconds':>9}", flush=True)
    for parser in parsers:
        parser.prepare()
    missing: dict[str, int] = {}
    for parser, how, number in shares(chosen.inputs, parsers):
        number += missing.pop(parser.name, 0)
        tally, seconds = watched(parser, how, number, chosen.seed)
        accepted, refused = tally.get()
        missing[parser.name] = number - accepted - refused  # what a source ran out of, the next one makes
        row = {"name": parser.name, "how": NAMES[how], "inputs": accepted + refused}
        rows.append({**row, "accepted": accepted, "refused": refused, "seconds": round(seconds, 1)})
        print(
            f"{parser.name:<24}{NAMES[how]:<15}{accepted + refused:>8}{accepted:>10}{refused:>9}{seconds:>9.1f}",
            flush=True,
        )
        for finding in tally.findings():
            failed += 1
            print(f"FINDING in {parser.name} ({NAMES[how]}): {finding['what']}\n{finding['input']}", flush=True)
    sums = [sum(row[key] for row in rows) for key in ("inputs", "accepted", "refused", "seconds")]
    print(f"{'all':<39}{sums[0]:>8}{sums[1]:>10}{sums[2]:>9}{sums[3]:>9.1f}\n{failed} findings")
    if chosen.json:
        chosen.json.parent.mkdir(parents=True, exist_ok=True)
        chosen.json.write_text(json.dumps(rows, indent=1) + "\n")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
