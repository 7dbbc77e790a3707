"""Every bad input ends with exit code 2, a short message with culprit and remedy, no traceback and no file left."""

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
import torch

h5py = pytest.importorskip("h5py")
pytest.importorskip("lightning")

from bad_inputs import check_message, fails, files_below  # noqa: E402
from worlds import corrupt, edited, read_array, rewrite, write_world  # noqa: E402

from multimae_eo import cli  # noqa: E402

QUICK = [
    *("--model.size", "demo", "--optim.steps", "2", "--optim.batch_size", "4", "--data.workers", "0"),
    *("--data.retries", "0"),
    *("--trainer.accelerator", "cpu", "--trainer.devices", "1", "--trainer.progress", "false"),
    *("--trainer.panels", "0", "--trainer.loggers=[]", "--trainer.log_every", "1"),
]


class Case(NamedTuple):
    """An input that is broken in one way, and what the message must say of it.

    spoil: changes the data set in the folder it is given. says: parts of the message, in any order: the culprit, what
    was expected and got, and what to do. {root}, {out} and {here} are filled in.
    begun: the fault shows only when a tile is read, so that the run's options and metrics may stay.
    """

    name: str
    arguments: Sequence[str]
    says: Sequence[str]
    spoil: Callable[[Path], object] = lambda folder: None
    begun: bool = False


@pytest.fixture(scope="session")
def original(tmp_path_factory) -> Path:
    return write_world(tmp_path_factory.mktemp("original"), tiles=15)


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    """The steps of the demo model are too small to share among threads."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def run_case(case: Case, original: Path, tmp_path: Path, capfd) -> None:
    folder = shutil.copytree(original, tmp_path / "data" / "tiny")
    out = tmp_path / "out"
    case.spoil(folder)
    before = files_below(tmp_path)
    places = {"{root}": str(folder.parent), "{out}": str(out), "{here}": str(tmp_path)}

    def filled(text: str) -> str:
        return re.sub(r"{\w+}", lambda found: places[found.group()], text)

    fails([filled(a) for a in case.arguments], [filled(part) for part in case.says], capfd)
    left = files_below(tmp_path)
    may_stay = {"out/config.yaml", "out/metrics.csv"} if case.begun else set()
    assert set(left) - set(before) - may_stay == set()
    assert {p: left[p] for p in before} == before


def train(*extra: str) -> list[str]:
    return ["pretrain", *QUICK, "--data.root", "{root}", "--out", "{out}", *extra]


def unlink(kind: str) -> Callable[[Path], None]:
    return lambda folder: (folder / f"tiny{kind}").unlink()


def write_split(split: str, rows: object) -> Callable[[Path], None]:
    def spoil(folder: Path) -> None:
        with edited(folder, "splits") as table:
            table[split] = rows

    return spoil


def change(array: str, how: Callable[[np.ndarray], np.ndarray]) -> Callable[[Path], None]:
    return lambda folder: rewrite(folder, array, how(read_array(folder, array)))


def drop_statistics(folder: Path) -> None:
    with edited(folder, "band_stats") as table:
        del table["sentinel2_l2a"]


def spoil_statistics(key: str, number: str, channel: int, value: float) -> Callable[[Path], None]:
    def spoil(folder: Path) -> None:
        with edited(folder, "band_stats") as table:
            table[key][number][channel] = value

    return spoil


def shorten_statistics(folder: Path) -> None:
    with edited(folder, "band_stats") as table:
        table["aster"]["mean"] = []


def truncate(folder: Path) -> None:
    path = folder / "tiny.h5"
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def corrupt_training_tile(folder: Path) -> None:
    """Eight tiles to train on, which two steps of four all read, and one of them damaged."""
    write_split("train", list(range(8)))(folder)
    write_split("val", [12, 13])(folder)
    corrupt(folder, "sentinel2", 5)


def empty_tile(row: int, values: np.ndarray) -> np.ndarray:
    values[row] = 0
    return values


def nothing_measured(folder: Path) -> None:
    write_split("train", list(range(8)))(folder)
    write_split("val", [12, 13])(folder)
    change("sentinel2", lambda v: empty_tile(3, v))(folder)
    change("aster", lambda v: np.where(np.arange(15)[:, None, None, None] == 3, np.int16(-32768), v))(folder)
    change("esa_worldcover", lambda v: empty_tile(3, v))(folder)


def one_block(folder: Path) -> None:
    for name in ("lat", "lon"):
        rewrite(folder, name, np.repeat(read_array(folder, name)[:1], 15, axis=0))


def unknown_product(folder: Path) -> None:
    metadata = read_array(folder, "metadata")
    metadata["S2_type"] = b"l3x"
    rewrite(folder, "metadata", metadata)


def no_product_in_tile_info(folder: Path) -> None:
    rewrite(folder, "metadata", read_array(folder, "metadata")[["tile_id"]].astype([("tile_id", "S100")]))
    with edited(folder, "tile_info") as table:
        for facts in table.values():
            del facts["S2_type"]


DATA = [
    Case("no splits", train(), ["tiny_splits.json' is missing", "needs it beside"], unlink("_splits.json")),
    Case("root not set", ["pretrain", *QUICK, "--out", "{out}"], ["data.root is not set", "give the folder"]),
    Case(
        "no array",
        train(),
        ["tiny.h5' has no array 'aster'", "'elevation' needs", "Leave the modality out"],
        lambda folder: rewrite(folder, "aster", None),
    ),
    Case(
        "band count",
        train(),
        ["array 'sentinel2'", "expected uint16 [tiles, 13,", "got uint16 [15, 12, 64, 64]"],
        change("sentinel2", lambda v: v[:, :12]),
    ),
    Case(
        "type of numbers",
        train(),
        ["array 'sentinel2'", "expected uint16", "got float32 [15, 13, 64, 64]"],
        change("sentinel2", lambda v: v.astype("float32")),
    ),
    Case(
        "number of tiles",
        train(),
        ["arrays differ in tiles or size", "'aster': (14,", "(15,"],
        change("aster", lambda v: v[:14]),
    ),
    Case("small tiles", train("--model.image_size", "112"), ["tiles of 64 px", "model.image_size 112"]),
    Case(
        "h5 is text",
        train(),
        ["tiny.h5' cannot be read as HDF5"],
        lambda folder: (folder / "tiny.h5").write_text("<html>not found</html>"),
    ),
    Case("corrupt chunk", train(), ["tiny.h5', array 'sentinel2', row 5"], corrupt_training_tile, begun=True),
    Case(
        "corrupt chunk, worker",
        train("--data.workers", "1"),
        ["tiny.h5', array 'sentinel2', row 5"],
        corrupt_training_tile,
        begun=True,
    ),
    Case(
        "statistics lack a product",
        train(),
        ["tiny.h5', row ", "of product L2A", "L1C only", "Add sentinel2_l2a to the statistics"],
        drop_statistics,
        begun=True,
    ),
    Case(
        "statistics are not numbers",
        train(),
        ["tiny_band_stats.json': band B03 of 'rgb', product L1C", "mean nan", "must be finite", "Recompute"],
        spoil_statistics("sentinel2_l1c", "mean", 2, np.nan),
    ),
    Case(
        "no deviation",
        train(),
        ["tiny_band_stats.json': band dem of 'elevation'", "deviation 0.0", "positive", "Recompute"],
        spoil_statistics("aster", "std", 0, 0.0),
    ),
    Case(
        "short statistics",
        train(),
        ["tiny_band_stats.json': entry 'aster'", "band dem", "expected 2 numbers"],
        shorten_statistics,
    ),
    Case(
        "statistics are a list",
        train(),
        ["tiny_band_stats.json'", "expected"],
        lambda folder: (folder / "tiny_band_stats.json").write_text("[1]"),
    ),
    Case("rows are words", train(), ["tiny_splits.json'", "expected", "'train'"], write_split("train", ["a", "b"])),
    Case("rows are nothing", train(), ["tiny_splits.json'", "expected"], write_split("val", None)),
    Case("one block", train(), ["one block of 1.0 degrees", "Name a 'val' split"], one_block),
    Case("no places", train(), ["no array 'lat'", "split by blocks"], lambda folder: rewrite(folder, "lat", None)),
    Case("no metadata", train(), ["array 'metadata'"], lambda folder: rewrite(folder, "metadata", None)),
    Case("unknown product", train(), ["row ", "L3X", "L1C", "L2A"], unknown_product, begun=True),
    Case("no product", train(), ["tiny_tile_info.json'", "S2_type"], no_product_in_tile_info, begun=True),
    Case(
        "nothing measured",
        train(),
        ["tile 'tiny_0003' (row 3): 0 valid tokens, but 49", "mask.num_visible", "mask.short_samples=mask"],
        nothing_measured,
        begun=True,
    ),
    Case(
        "fewer tokens than the budget",
        train("--mask.num_visible", "294"),
        ["tile 'tiny_00", "287 valid tokens, but 294", "mask.num_visible"],
        change("aster", lambda v: np.where(np.arange(64) < 16, np.int16(-32768), v)),
        begun=True,
    ),
]


@pytest.mark.parametrize("case", DATA, ids=lambda case: case.name)
def test_a_bad_data_set(case, original, tmp_path, capfd):
    run_case(case, original, tmp_path, capfd)


def test_a_tile_without_any_value_trains_where_short_samples_are_masked(original, tmp_path, capfd):
    folder = shutil.copytree(original, tmp_path / "tiny")
    nothing_measured(folder)
    out = tmp_path / "out"
    cli.main(["pretrain", *QUICK, "--data.root", str(folder), "--out", str(out), "--mask.short_samples", "mask"])
    assert (out / "checkpoint" / "model.safetensors").is_file()


def test_a_run_that_failed_on_its_data_can_be_started_again(original, tmp_path, capfd):
    folder = shutil.copytree(original, tmp_path / "tiny")
    drop_statistics(folder)
    out = tmp_path / "out"
    command = ["pretrain", *QUICK, "--data.root", str(folder), "--out", str(out)]
    fails(command, ["Add sentinel2_l2a"], capfd)
    shutil.copy(original / "tiny_band_stats.json", folder)
    cli.main(command)
    assert (out / "checkpoint" / "model.safetensors").is_file()


def test_a_worker_of_a_process_of_its_own(original, tmp_path):
    folder = shutil.copytree(original, tmp_path / "tiny")
    corrupt_training_tile(folder)
    command = [sys.executable, "-m", "multimae_eo.cli", "pretrain", *QUICK, "--data.root", str(folder)]
    command += ["--out", str(tmp_path / "out"), "--data.workers", "1"]
    run = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"})
    check_message(run.returncode, run.stderr, ["tiny.h5', array 'sentinel2', row 5 cannot be read"])
    assert "Traceback" not in run.stdout
