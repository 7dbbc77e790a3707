"""A small share of the scripts that inject faults (benchmarks/faults), and the page that their tables go to."""

import json
import os
import subprocess
import sys

import pytest
from conftest import ROOT

FAULTS = ROOT / "benchmarks" / "faults"
sys.path.insert(0, str(FAULTS))


def run(name, tmp_path, *arguments):
    path = tmp_path / f"{name}.json"
    command = [sys.executable, str(FAULTS / f"{name}.py"), "--json", str(path), *arguments]
    environment = {**os.environ, "MULTIMAE_EO_UNCHECKED": "1"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr[-3000:]
    return json.loads(path.read_text())


@pytest.mark.slow
def test_kills(tmp_path):
    found = run("kills", tmp_path, "--kills", "3")
    assert [(row["times"], row["equal"]) for row in found] == [(1, True), (2, True)]


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_soak(tmp_path):
    found = run("soak", tmp_path, "--minutes", "1")
    assert found["rounds"] >= 4
    assert all(row["flat"] for row in found["rows"])


def test_what_is_compared_differs_where_it_should():
    import torch
    from kills import equal
    from soak import compared

    state = {"a": torch.arange(3), "b": [1, (2.0, None)]}
    assert equal(state, {"a": torch.arange(3), "b": [1, (2.0, None)]})
    assert not equal(state, {"a": torch.arange(3) + 1, "b": [1, (2.0, None)]})
    assert not equal(state, {"a": torch.arange(3), "b": [1, (2.0, 3)]})
    flat = dict.fromkeys(("memory", "open files", "threads", "child processes", "temporary files"), 100.0)
    rows = [flat, flat, {**flat, "memory": 101.0, "threads": 101.0}]
    assert {row["name"]: row["flat"] for row in compared(rows)} == {name: name != "threads" for name in flat}


def test_a_tile_that_is_seen_twice_or_skipped_is_noticed(tmp_path):
    from kills import BATCH, seen_wrong

    train = list(range(10, 10 + 2 * BATCH + 1))
    (tmp_path / "w").mkdir()
    (tmp_path / "w" / "w_splits.json").write_text(json.dumps({"train": train}))
    steps = [train[:BATCH], train[BATCH : 2 * BATCH], train[1 : BATCH + 1], train[BATCH + 1 :]]

    def wrong(*batches):
        lines = [f"{i + 1},0,{' '.join(map(str, rows))}\n" for i, rows in enumerate(batches)]
        (tmp_path / "seen").write_text("1,0,10 11\n" + "".join(lines))  # the first was killed
        return seen_wrong(tmp_path / "seen", tmp_path / "w", len(batches))

    assert wrong(*steps) == []
    assert wrong(steps[0], steps[0], *steps[2:])
    assert wrong(steps[0], steps[1][:-1], *steps[2:])


def test_the_tables_go_to_the_page(tmp_path):
    from tables import main

    page = tmp_path / "page.md"
    page.write_text((ROOT / "docs" / "reliability.md").read_text())
    kill = {"fault": "SIGKILL, 1 process", "times": 7, "while a state was written": 2, "steps": 9, "seconds": 90}
    (tmp_path / "kills.json").write_text(json.dumps([{**kill, "equal": False, "differences": ["metrics.csv"]}]))
    main(tmp_path, page)
    main(tmp_path, page)
    assert page.read_text().count("| SIGKILL, 1 process | 7 | 2 | 9 | 2 min | metrics.csv |") == 1
