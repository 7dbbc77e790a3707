"""The pages of the docs: commands and snippets run, links lead somewhere, tables say what the code says."""

import ast
import re
import shlex
import subprocess
import sys
import tomllib
import types
import unicodedata
from collections.abc import Callable, Iterator
from importlib import import_module
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from conftest import ROOT, SHARED

pytest.importorskip("h5py")
pytest.importorskip("lightning")
pytest.importorskip("rasterio")

from geobench_files import write_set
from geotiff_scene import write as write_tiff

import multimae_eo
from multimae_eo import MODALITIES, MultiMAE, modalities, save, sized
from multimae_eo.cli import as_parsed, build_parser, main
from multimae_eo.data.layout import ADDRESSES, ARRAYS, SENTINEL2_CHANNELS
from multimae_eo.modalities import BANDS, IMAGE_KEYS, WORLDCOVER, Categorical, canonical_band
from multimae_eo.tasks import probe, task

DOCS = ROOT / "docs"
PAGES = {path.stem: path.read_text() for path in sorted(DOCS.glob("*.md"))}
# Pages whose blocks run in tests of their own, because they need other libraries or take longer.
OWN_TESTS = {
    "maps": "tests/test_docs_maps.py",
    "export": "tests/integrations/test_export.py",
    "terratorch": "tests/integrations/test_terratorch.py",
    "timm": "tests/integrations/test_timm.py",
    "torchgeo": "tests/integrations/test_torchgeo.py",
    "torchgeo_bench": "tests/integrations/test_torchgeo_bench.py",
}
MACHINE = "--trainer.accelerator cpu --trainer.progress false"
SHORT = {
    "pretrain": f"--model.size demo --optim.steps 2 --optim.batch_size 4 --optim.warmup_steps 1 --data.workers 0 "
    f"--data.val_tiles 4 {MACHINE} --trainer.devices 1 --trainer.panels 0 --trainer.precision 32-true "
    "--trainer.compile false",
    "finetune": f"--optim.steps 2 --optim.batch_size 4 --data.workers 0 {MACHINE}",
    "probe": f"--data.workers 0 {MACHINE}",
    "evaluate": "--trainer.progress false",
}


def blocks(page: str) -> list[tuple[str, str]]:
    """The fenced blocks of a page, with their languages."""
    return re.findall(r"^```(\w*)\n(.*?)^```", PAGES[page], re.DOTALL | re.MULTILINE)


def commands(text: str) -> Iterator[str]:
    """The commands of a block of shell, continued lines as one."""
    lines = text.replace("\\\n", " ").splitlines()
    yield from (line.strip() for line in lines if "multimae-eo " in line and not line.startswith("#"))


def quick(command: str) -> list[str]:
    """The words of a command, on small data and for a few steps."""
    command = re.sub(r"--tile-px \d+", "--tile-px 96", re.sub(r"--tiles \d+", "--tiles 20", command))
    words = shlex.split(command)[1:]
    if words[0] == "synthesize" and "--tiles" not in words:
        words += ["--tiles", "20"]
    return [*words, *SHORT.get(words[0], "").split()]


# --- what a page leaves to the reader: files, and the places of files


def with_world(folder: Path, request: pytest.FixtureRequest) -> dict[str, str]:
    (folder / "data").mkdir()
    (folder / "data" / "synthetic").symlink_to(request.getfixturevalue("world"))
    (folder / "data" / "labelled").symlink_to(request.getfixturevalue("labelled_world"))
    return {"DIR": "data/synthetic", "OUT": "packed", "CHECKPOINT": "runs/demo/checkpoint"}


def with_labels(folder: Path, request: pytest.FixtureRequest) -> dict[str, str]:
    quicker = "--data.drop_modality 0.2 --head linear_dense"
    return {**with_world(folder, request), "--data.drop_modality 0.2": quicker}


def with_tasks(folder: Path, _: pytest.FixtureRequest) -> dict[str, str]:
    """Two sets of GEO-Bench, and GeoTIFFs with values per pixel."""
    write_set(folder / "data", "m-eurosat", size=16)
    write_set(folder / "data", "m-cashew-plant", size=16)
    rows, rng = ["path,mask,split"], np.random.default_rng(0)
    for name, split in (("a", "train"), ("b", "train"), ("c", "valid"), ("d", "test")):
        write_tiff(folder / f"biomass/{name}.tif", rng.integers(200, 3000, (4, 16, 16)).astype(np.uint16))
        write_tiff(folder / f"biomass/{name}_values.tif", rng.uniform(0, 300, (1, 16, 16)).astype(np.float32))
        rows.append(f"{name}.tif,{name}_values.tif,{split}")
    (folder / "biomass" / "labels.csv").write_text("\n".join(rows) + "\n")
    return {"DIR": "data", "CHECKPOINT": "runs/demo/checkpoint"}


def with_weights(_: Path, __: pytest.FixtureRequest) -> dict[str, str]:
    if not SHARED.is_dir():
        pytest.skip(f"no shared data: {SHARED} does not exist (set MULTIMAE_EO_SHARED)")
    return {"CHECKPOINT.pth": str(SHARED / "golden" / "patch8_56x56" / "checkpoint-999.pth")}


def with_table(folder: Path, _: pytest.FixtureRequest) -> dict[str, str]:
    table = next(text for _, text in blocks("own_geotiffs") if text.startswith("path,"))
    for seed, row in enumerate(table.split()[1:]):
        values = np.random.default_rng(seed).integers(200, 3000, (5, 16, 16)).astype(np.uint16)
        write_tiff(folder / "fields" / row.split(",")[0], values)
    (folder / "fields" / "labels.csv").write_text(table)
    (text,) = (text for language, text in blocks("own_geotiffs") if language == "yaml")
    same = {name: value for name, value in yaml.safe_load(text).items() if name != "out"}
    (folder / "fields_probe.yaml").write_text(yaml.safe_dump({**same, "checkpoint": "runs/demo/checkpoint"}))
    return {"CHECKPOINT": "runs/demo/checkpoint"}


def with_places(folder: Path, _: pytest.FixtureRequest) -> dict[str, str]:
    for seed, place in enumerate(("north", "south")):
        rng = np.random.default_rng(seed)
        write_tiff(folder / f"scenes/S2/{place}.tif", rng.integers(100, 3000, (5, 80, 90)).astype(np.uint16))
        write_tiff(folder / f"scenes/DEM/{place}.tif", rng.uniform(300, 400, (1, 80, 90)).astype(np.float32))
        write_tiff(folder / f"scenes/LC/{place}.tif", rng.choice([0, 1, 2, 4], (1, 80, 90)).astype(np.uint8))
    return {}


def with_torchgeo(_: Path, request: pytest.FixtureRequest) -> dict[str, str]:
    """A data set in the place of the one that TorchGeo would download."""

    class EuroSAT(torch.utils.data.Dataset):
        all_band_names = tuple(b for b in modalities.BANDS if b.startswith("B"))
        classes = ("a", "b")

        def __init__(self, root, split, download):
            self.images = np.random.default_rng(len(split)).integers(200, 3000, (6, 13, 16, 16)).astype(np.float32)

        def __len__(self):
            return len(self.images)

        def __getitem__(self, index):
            return {"image": torch.from_numpy(self.images[index]), "label": index % 2}

    datasets = types.ModuleType("torchgeo.datasets")
    datasets.EuroSAT = EuroSAT
    patch = request.getfixturevalue("monkeypatch")
    patch.setitem(sys.modules, "torchgeo", types.ModuleType("torchgeo"))
    patch.setitem(sys.modules, "torchgeo.datasets", datasets)
    short = "optim=FinetuneOptim(steps=2))"
    return {
        'out=Path("runs/eurosat"))': f'out=Path("runs/eurosat"), {short}',
        "import EvaluateOptions,": "import EvaluateOptions, FinetuneOptim,",
        "CHECKPOINT": "runs/demo/checkpoint",
    }


RUN: dict[str, Callable[[Path, pytest.FixtureRequest], dict[str, str]]] = {
    "index": lambda *_: {},
    "quickstart": lambda *_: {"out: runs/states\n": "out: runs/states\nhead: linear_dense\n"},  # quicker
    "inputs": lambda *_: {"offset=1000)": "offset=1000.0)"},  # beartype, in tests only, takes no int for a float
    "missing": with_labels,
    "pretrain": with_world,
    "cluster": with_world,
    "finetune": with_tasks,
    "own_geotiffs": with_table,
    "torch_datasets": with_torchgeo,
    "import": with_places,
    "synthetic": lambda *_: {},
    "weights": with_weights,
}


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(task, "RESAMPLES", 10)
    monkeypatch.setattr(probe, "DENSE_STEPS", 5)
    monkeypatch.setattr(probe, "STRENGTHS", (0.1, 1.0))
    torch.manual_seed(0)
    save(MultiMAE(sized("demo")), "runs/demo/checkpoint")
    (tmp_path / "configs").symlink_to(ROOT / "configs")
    return tmp_path


LONG = dict.fromkeys(("quickstart", "synthetic", "cluster", "finetune", "missing"), pytest.mark.slow)


@pytest.mark.parametrize("page", [pytest.param(page, marks=LONG.get(page, ())) for page in RUN])
@pytest.mark.filterwarnings("ignore::multimae_eo.inputs.UnusedBandsWarning")
def test_the_blocks_of_a_page_run_one_after_the_other(page, folder, request):
    places, names = RUN[page](folder, request), {"__name__": page}
    for language, text in blocks(page):
        for place, path in places.items():
            word = place.isidentifier()  # DIR, but not DIR in DIRECTORY
            text = re.sub(rf"\b{place}\b(?!\.)", path, text) if word else text.replace(place, path)
        if language == "yaml" and (name := re.match(r"# (\S+\.yaml)\n", text)):
            Path(name[1]).write_text(text)
        elif language == "python":
            exec(compile(text, f"{page}.md", "exec"), names)
        elif language == "sh":
            for command in commands(text):
                main(quick(command))


def test_every_block_that_can_run_does():
    runnable = {page for page in PAGES if {"sh", "python"} & {language for language, _ in blocks(page)}}
    assert runnable == {*RUN, *OWN_TESTS}
    assert all((ROOT / path).is_file() for path in OWN_TESTS.values())


PARSED = [(page, c) for page in PAGES for language, text in blocks(page) if language == "bash" for c in commands(text)]


@pytest.mark.parametrize(("page", "command"), PARSED, ids=[f"{page}: {c[:60]}" for page, c in PARSED])
def test_commands_that_are_not_run_are_understood(page, command, monkeypatch):
    monkeypatch.chdir(ROOT)  # where the configs are
    words = shlex.split(command.split("multimae-eo ")[1].replace("atmosphere", "sar"))
    build_parser().parse_args(as_parsed(words))


def test_the_script_for_slurm_is_one():
    (script,) = (text for language, text in blocks("cluster") if text.startswith("#!/bin/bash"))
    subprocess.run(["bash", "-n"], input=script, text=True, check=True)
    given = dict(re.findall(r"--([\w.-]+)[= ](\d+)", script))
    assert given["nodes"] == given["trainer.nodes"]
    assert given["ntasks-per-node"] == given["gpus-per-node"] == given["trainer.devices"]
    assert int(given["data.workers"]) < int(given["cpus-per-task"])


# --- tables


def table(page: str, heading: str, number: int = 0) -> list[list[str]]:
    """The cells of a table below a heading, without its head."""
    part = re.split(r"^#+ ", PAGES[page], flags=re.MULTILINE)
    (section,) = (text for text in part if text.startswith(f"{heading}\n"))
    found = re.findall(r"((?:^\|.*\n)+)", section, re.MULTILINE)[number]
    rows = [[cell.strip().replace("\u00a0", " ") for cell in line[1:-1].split("|")] for line in found.splitlines()]
    return rows[2:]


def test_the_bands_of_the_contract():
    homes = {band: m for m in MODALITIES.values() for band in m.bands}
    rows = table("inputs", "Bands")
    assert {row[0] for row in rows} == {f"`{band}`" for band in BANDS}
    for name, modality, unit, usual, kind, missing, _ in rows:
        band = name.strip("`")
        spec = ARRAYS[next(iter(ADDRESSES[band].values())).array]
        assert kind == spec.dtype
        assert missing.split(",")[0].split(";")[0] in (f"{spec.missing:g}", "0")
        if band not in homes:
            assert (modality, unit, usual) == ("none", "reflectance x 10000", "")
            continue
        known = homes[band]
        assert modality == f"`{known.name}`"
        if isinstance(known, Categorical):
            continue
        assert unit == known.unit
        i = known.bands.index(band)
        means = [f"{p} {s.mean[i]:.0f} ± {s.std[i]:.0f}" for p, s in known.statistics.items()]
        assert usual == ", ".join(means)


def test_the_names_of_the_contract():
    written = {row[0].strip("`"): tuple(row[1].split(", ")) for row in table("inputs", "Names")}
    assert written == {band: names for band, names in modalities._ALIASES.items() if names}
    assert all(canonical_band(name) == band for band, names in written.items() for name in names)


def test_the_orders_and_keys_of_the_contract():
    orders = {row[0]: tuple(row[1].replace("*", "").split(",")[0].split()) for row in table("inputs", "Order")}
    assert orders["MMEarth, `sentinel2`"] == SENTINEL2_CHANNELS
    for product, key in (("L1C", "S2L1C"), ("L2A", "S2L2A")):
        assert orders[f"TerraMesh, TerraTorch, {product}"] == IMAGE_KEYS[key][0]
    for name in ("nir", "rgb"):
        assert orders[f"the model's `{name}`"] == MODALITIES[name].bands
    keys = [key for row in table("inputs", "Several images") for key in re.findall(r"`([A-Z0-9]+)`", row[0])]
    assert set(IMAGE_KEYS) <= set(keys)
    assert [(int(code), name) for code, name in table("inputs", "Land cover")] == [(c.code, c.name) for c in WORLDCOVER]


# --- what pages name


def test_every_public_name_is_in_the_reference():
    shown = re.findall(r"^::: (\S+)", PAGES["api"] + PAGES["options"], re.MULTILINE)
    assert len(set(shown)) == len(shown)
    for path in shown:
        module, _, name = path.rpartition(".")
        assert path == "multimae_eo.errors" or hasattr(import_module(module), name), path
    homes = {f"multimae_eo.{home}.{name}" for name, home in multimae_eo._HOMES.items()}
    assert homes <= {*shown, "multimae_eo.modalities.MODALITIES", "multimae_eo.errors.MultiMAEError"}


def test_extras_that_pages_name_exist():
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    for page, text in {**PAGES, "README": (ROOT / "README.md").read_text()}.items():
        for named in re.findall(r"multimae-eo\[([\w,]+)\]", text):
            assert set(named.split(",")) <= set(extras), (page, named)


def test_sections_that_the_code_cites_exist():
    for path in sorted((ROOT / "src").rglob("*.py")):
        for page, numbers in re.findall(r"docs/(\w+)\.md(?:, sections? ([\d and]+))?", path.read_text()):
            assert page in PAGES, f"{path.name} cites docs/{page}.md"
            for number in re.findall(r"\d", numbers):
                assert f"\n## {number}. " in PAGES[page], f"{path.name} cites section {number} of docs/{page}.md"
        for letters in re.findall(r"docs/design\.md, ([A-Z])\b", path.read_text()):
            assert f"\n- **{letters}. " in PAGES["design"]


def nav(entries: list) -> Iterator[str]:
    for entry in entries:
        for value in entry.values():
            yield from nav(value) if isinstance(value, list) else (value,)


def test_every_page_is_in_the_navigation():
    text = re.sub(r"!!\S+", "", (ROOT / "mkdocs.yml").read_text())
    listed = list(nav(yaml.safe_load(text)["nav"]))
    assert len(set(listed)) == len(listed)
    there = {path.relative_to(DOCS).as_posix() for path in DOCS.rglob("*.md")}
    assert set(listed) == there


def anchors(page: str) -> set[str]:
    """What a link may end with: ids of headings, given or made from their text, and names of the reference."""
    found = set(re.findall(r"\{#([\w-]+)\}", PAGES[page]))
    for heading in re.findall(r"^#+ (.+)$", PAGES[page], re.MULTILINE):
        plain = unicodedata.normalize("NFKD", heading).encode("ascii", "ignore").decode()
        found.add(re.sub(r"[-\s]+", "-", re.sub(r"[^\w\s-]", "", plain).strip().lower()))
    return found | set(re.findall(r"^::: (\S+)", PAGES[page], re.MULTILINE))


@pytest.mark.parametrize("page", PAGES)
def test_every_link_leads_somewhere(page):
    text = re.sub(r"^```.*?^```", "", PAGES[page], flags=re.DOTALL | re.MULTILINE)
    for link in re.findall(r"\]\((?!https?:)([^)\s]+)\)", text):
        path, _, anchor = link.partition("#")
        assert not path or (DOCS / path).is_file(), link
        assert not anchor or anchor in anchors(Path(path).stem if path else page), link


def test_pages_name_no_machine_and_no_page_is_a_stub():
    for page, text in PAGES.items():
        assert not re.search(r"/(home|root|work|tmp)/", text), page
        assert page in ("changelog", "security") or len(text.split()) > 100, page


def test_snippets_are_python():
    for page in PAGES:
        for language, text in blocks(page):
            if language == "python":
                ast.parse(text)


@pytest.mark.slow
def test_the_site_is_built_strictly_and_asks_for_nothing(tmp_path):
    pytest.importorskip("mkdocs")
    pytest.importorskip("mkdocstrings")
    build = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(tmp_path / "site")]
    done = subprocess.run(build, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    pages = sorted((tmp_path / "site").rglob("*.html"))
    assert len(pages) > len(PAGES)
    for page in pages:
        text = page.read_text()
        fetched = re.findall(r"<(?:script|link|img|iframe|source)\b[^>]*?(?:src|href)=[\"']?([^\"' >]+)", text)
        assert not [url for url in fetched if re.match(r"(https?:)?//", url)], page
    index = (tmp_path / "site" / "search" / "search_index.json").read_text()
    assert "is not stated: pass units=" in index
