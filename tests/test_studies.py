"""The studies: their tables are those of their records, their intervals are right, and they run at a small size."""

import dataclasses
import json
import math
import re
import sys
from pathlib import Path

import lightning.pytorch as lightning
import numpy as np
import pytest
import torch

pytest.importorskip("h5py")
pytest.importorskip("lightning")
pytest.importorskip("sklearn")

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "benchmarks" / "study"))

import cost
import filling
import frozen
import law
import positions
import release
import subsets
import transfer
from faults import LONGER as FAULTS_LONGER
from faults import QUESTION as FAULTS
from faults import Bilinear, Resize, Unmasked, put_back
from filling import FILLING
from modalities import MORE
from positions import POSITIONS
from recipe import RECIPE
from roles import ROLES
from show import DOCS, Figures, Interval, Question, put, relative
from study import PAPER, STACKED, WIDTHS, Arm, Budget, Place, key_of, measured, model, options_of, read, times
from subsets import SUBSETS
from transfer import TRANSFER, settings_of

from multimae_eo.checkpoint import load_model
from multimae_eo.config import SIZES, sized
from multimae_eo.modalities import MODALITIES, RECIPE_INPUTS
from multimae_eo.options import demo_options
from multimae_eo.raster import Raster
from multimae_eo.tasks.examples import Prepare
from multimae_eo.tasks.pretrain import PretrainTask

QUESTIONS = (ROLES, TRANSFER, MORE, FAULTS, FAULTS_LONGER, SUBSETS, POSITIONS, FILLING, RECIPE)
TINY = Budget(tiles=100, steps=2, batch=8, labelled=200, shifted=200, mapped=60)


def answered() -> list[Question]:
    """Those whose table is in the docs."""
    page = (DOCS / "results.md").read_text()
    return [q for q in QUESTIONS if f"<!-- {q.name} -->" in page]


@pytest.mark.parametrize("question", answered(), ids=lambda q: q.name)
def test_the_table_in_the_docs_is_that_of_the_records(question, tmp_path, monkeypatch):
    if question is not ROLES:  # one picture is enough
        monkeypatch.setattr("show.forest", lambda *_, **__: None)
    text = question.show(Figures(read(Place(Path("work")).file(question.battery)), Budget()), tmp_path / "picture.png")
    assert f"<!-- {question.name} -->\n\n{text}\n\n<!-- end of {question.name} -->" in (DOCS / "results.md").read_text()
    assert (DOCS / f"study_{question.name}.png").is_file()
    assert (tmp_path / "picture.png").is_file() == (question is ROLES)


@pytest.mark.parametrize("question", QUESTIONS, ids=lambda q: q.name)
def test_arms_are_options_and_all_differ(question, monkeypatch):
    monkeypatch.setitem(MODALITIES, STACKED.name, STACKED)  # so that it is gone afterwards
    place = Place(Path("work"))
    keys = set()
    for arm in (question.base, *question.arms):
        keys.add(key_of(arm, Budget()))
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("study.world", lambda *_: Path("data"))
            changes = {
                name: value for name, value in arm.changes.items() if name not in ("init", "predictor", "finetune")
            }
            options_of(Arm("", changes), place, Budget(), 0).model.config()
    assert len(keys) == 1 + len(question.arms)
    assert set(question.confirmed) <= {arm.name for arm in question.arms}


def test_intervals():
    three = Interval.of([1.0, 2.0, 3.0])
    assert three.mean == 2
    assert three.high - 2 == pytest.approx(4.302653 / math.sqrt(3))  # Student's t with two degrees of freedom
    assert not three.decided
    assert Interval.of([1.0, 1.1, 1.2]).decided
    two = Interval.of([1.0, 1.2])  # which only screen
    assert (two.low, two.high, two.decided) == (1.0, 1.2, False)
    assert two.words(1, "+") == "+1.1 (+1.0 and +1.2)"
    assert Interval.of([-1.0, -1.1, -1.2]).words(1, "+", bold=True) == "**-1.1 (-1.3 to -0.9)**"
    assert Interval.of([-1.0, -1.1, -1.2]).words(1, "+") == "-1.1 (-1.3 to -0.9)"


def test_differences_are_taken_seed_by_seed(tmp_path):
    other = Arm("other", {"seed": 1})
    records = {}
    for arm, values in ((PAPER, (1.0, 5.0, 9.0)), (other, (2.0, 6.0, 10.0))):
        for seed, value in enumerate(values):
            records[key_of(arm, TINY), seed] = {"measured": {"x": value}}
    del records[key_of(other, TINY), 2]
    figures = Figures(records, TINY)
    assert figures.difference(other, PAPER, "x") == Interval(1.0, 1.0, 1.0, 2)
    assert figures.of(PAPER, "x") == Interval(9.0, 9.0, 9.0, 1)  # what confirms did not screen
    assert figures.seeds(PAPER, screening=True) == figures.seeds(PAPER, other) == [0, 1]
    assert figures.of(PAPER, "x & x", seeds=[0, 1]).mean == 3
    records[key_of(other, TINY), 0] = records[key_of(other, TINY), 1] = {"measured": {}}
    assert figures.difference(other, PAPER, "x").words(1, "+") == "-"
    # What came later is compared where all seeds have it, and else not at all.
    for arm, rows in (
        (PAPER, ({"x": 1.0}, {"x": 2.0, "y": 2.0})),
        (other, ({"x": 3.0, "y": 3.0}, {"x": 5.0, "y": 5.0})),
    ):
        for seed, row in enumerate(rows):
            records[key_of(arm, TINY), seed] = {"measured": row}
    assert figures.difference(other, PAPER, "x").mean == 2.5
    assert figures.difference(other, PAPER, "y").words(1, "+") == figures.of(PAPER, "y", seeds=[0, 1]).words(1) == "-"
    assert figures.of(other, "y", seeds=[0, 1]).mean == 4
    page = tmp_path / "page.md"
    page.write_text("before\n<!-- a -->\nold\n<!-- end of a -->\nafter\n")
    for text in ("first", "new"):
        put(page, "a", text)
    put(page, "b", "has no place")
    assert page.read_text() == "before\n<!-- a -->\n\nnew\n\n<!-- end of a -->\nafter\n"


def test_values_that_are_multiples():
    place, budget = Place(Path("work")), Budget(steps=60)
    changes = {"optim.steps": times(2), "optim.lr": times(0.5), "model.decoder_dim": times(2)}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("study.world", lambda *_: Path("data"))
        usual, other = (options_of(Arm("", changed), place, budget, 0) for changed in ({}, changes))
    assert (usual.optim.steps, usual.optim.warmup_steps, usual.trainer.val_every) == (60, 4, 60)
    assert (other.optim.steps, other.optim.warmup_steps, other.trainer.val_every) == (120, 8, 120)
    assert other.optim.lr == usual.optim.lr / 2
    assert other.model.config().decoder_dim == 2 * usual.model.config().decoder_dim


def test_operations_of_an_arm():
    arms = {arm.name: relative(arm, PAPER, Budget()) for arm in RECIPE.arms}
    assert arms["batch: twice, half the steps"] == arms["alpha: 4"] == "1.00"  # the same tiles, the same tokens
    assert arms["random weights"] == "-"
    assert float(arms["visible: 1/12"]) < 1 < float(arms["decoders: twice as wide"]) < float(arms["patch: 4 px"])
    assert relative(Arm("", {"optim.steps": times(4)}), PAPER, Budget()) == "4.00"


def test_what_a_rival_is_fed():
    assert settings_of(["rgb"]) == {"rgb-only": "rgb-only"}
    assert settings_of(["stacked"]) == {"multispectral": "all"}
    assert list(settings_of(["rgb", "red_edge", "swir", "nir", "elevation:sample"])) == ["rgb-only", "multispectral"]
    assert STACKED.channels == len(set(STACKED.bands)) == 10


def classes(codes: torch.Tensor) -> dict[str, Raster]:
    return {
        "land_cover": Raster(codes[None, None], torch.ones(1, 1, *codes.shape, dtype=torch.bool), torch.zeros(1).long())
    }


def test_bilinear_labels_invent_classes():
    config = sized("demo", inputs=("rgb",), targets=("land_cover",))
    codes = torch.full((8, 8), 10)
    codes[:, :6] = 100  # the first and the last of eleven classes; a border within a block
    reduced = Bilinear(config)(classes(codes))["land_cover"].values
    assert reduced.shape == (1, 1, 2, 2)
    assert reduced[0, 0, :, 0].tolist() == [100, 100]
    assert not set(reduced[0, 0, :, 1].tolist()) & {10, 100}
    assert Prepare(config).own_grids(classes(codes))["land_cover"].values.unique().tolist() == [10, 100]


def test_resized_and_unmasked_tiles():
    config = sized("demo", inputs=("rgb",), targets=("rgb",))
    values = torch.arange(64.0).expand(1, 3, 64, 64)
    valid = torch.ones(1, 3, 64, 64, dtype=torch.bool)
    valid[..., :32] = False
    values = values.where(valid, -32768)
    batch = {"rgb": Raster(values, valid, torch.zeros(1, dtype=torch.int64))}
    window = torch.tensor([[3, 5, 1, 0]])
    whole = Resize(config)(batch, window)["rgb"]
    assert whole.values.shape == (1, 3, 56, 56)
    assert whole.values[0, 0, 0, 0] > whole.values[0, 0, 0, -1]  # mirrored
    assert whole.values[0, 0, 0].max() > 62  # and nothing is cut off
    assert whole.values[whole.valid.expand_as(whole.values)].min() >= 32  # nor does the number for no data get in
    assert Unmasked(config, Prepare(config))(batch, window)["rgb"].valid.all()
    assert not Prepare(config)(batch, window)["rgb"].valid.all()


def test_one_statistics_for_all_products():
    lightning.seed_everything(demo_options().seed, verbose=False)
    right = PretrainTask(sized("demo"), demo_options())
    task = put_back(right, ["statistics"])
    for one, other in zip(task.parameters(), right.parameters(), strict=True):  # initialised alike
        assert torch.equal(one, other)
    for name in ("rgb", "swir"):
        found = task.model.config.modalities[name].statistics
        assert found["L1C"] == found["L2A"]
    assert task.model.config.modalities["elevation"].products == ("ASTER",)


@pytest.mark.slow
def test_what_is_on_record_is_not_done_again(tmp_path, monkeypatch):
    """In a process of its own, with a battery that takes no time."""
    (tmp_path / "stub.py").write_text(
        "KINDS = ()\n\ndef measure(arm, place, budget, seed):\n    return {'x': 6 / (arm.name != 'bad') - 1 + seed}\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    place, other = Place(tmp_path / "work", tmp_path / "records", jobs=1), Arm("other", {"seed": 1})
    file = place.file("stub")
    for arms, count in (((PAPER,), 2), ((PAPER, other), 4), ((PAPER, other), 4)):
        records = measured(arms, [0, 1], place, TINY, "stub")
        assert len(records) == len(file.read_text().splitlines()) == count
    assert Figures(records, TINY).values(PAPER, "x", [0, 1]) == [5.0, 6.0]
    assert json.loads(file.read_text().splitlines()[-1])["changes"] == {"seed": 1}
    # one that fails ends no other
    bad, good = Arm("bad", {"seed": 2}), Arm("good", {"seed": 3})
    with pytest.raises(SystemExit, match=r"1 of 2 failed; first: bad, seed 0: .*division by zero"):
        measured((bad, good), [0], place, TINY, "stub")
    assert json.loads(file.read_text().splitlines()[-1])["changes"] == {"seed": 3}


@pytest.mark.slow
def test_a_study_at_a_small_size(tmp_path, monkeypatch):
    monkeypatch.setattr("frozen.PARTITIONS", ("0.10x",))
    place, faulty = Place(tmp_path, tmp_path / "records"), FAULTS.arms[-1]
    found, other = (frozen.measure(arm, place, TINY, 0) for arm in (PAPER, faulty))
    assert 0 < found["class all linear 0.10x"] <= 1
    assert found["shifted land_cover"] > 0
    assert 0 < found["moved all linear 0.10x"] <= 1
    assert found != other
    assert frozen.measure(PAPER, place, TINY, 0) == found  # the model is there, and its features
    untrained = frozen.measure(Arm("random weights", {"init": "random"}), place, TINY, 0)
    assert untrained.keys() == {name for name in found if not name.startswith(("val", "shifted "))}
    assert any(untrained[name] != found[name] for name in untrained)


@pytest.mark.slow
def test_filling_at_a_small_size(tmp_path, monkeypatch):
    """Which world it is judged on matters, and what is simple to predict is predicted better by what is fitted."""
    monkeypatch.setattr(filling, "FITTED", 60)
    place, whole = Place(tmp_path, tmp_path / "records"), filling.targets_of
    directory, _ = model(PAPER, place, TINY, 0)
    names = list(whole(load_model(directory)))
    assert {f"{kind} {name}" for kind in filling.WORLDS for name in names} == FILLING.measures.keys()
    monkeypatch.setattr(filling, "targets_of", lambda mae: {n: whole(mae)[n] for n in ("red_edge", "land_cover")})
    found = {arm.name: filling.measure(arm, place, TINY, 0) for arm in (FILLING.base, *FILLING.arms)}
    for row in found.values():
        assert all(value > 0 for value in row.values())
        assert row["other red_edge"] != row["shifted red_edge"]
    for better, worse in (("linear per pixel", "mean of the training tiles"), ("boosted trees per pixel", "fill")):
        assert found[better]["other red_edge"] < found[worse]["other red_edge"]
        assert found[better]["other land_cover"] < found[worse]["other land_cover"]
    assert found["all tokens at once"] != found["fill"]


@pytest.mark.slow
def test_subsets_and_positions_at_a_small_size(tmp_path, monkeypatch):
    for battery in ("transfer", "subsets", "positions"):
        monkeypatch.setattr(f"{battery}.STEPS", dict.fromkeys(transfer.STEPS, 2))
    monkeypatch.setattr("multimae_eo.tasks.task.RESAMPLES", 10)
    monkeypatch.setattr(subsets, "NAMED", {name: subsets.NAMED[name] for name in ("RGB", "RGB and NIR")})
    monkeypatch.setattr("frozen.PARTITIONS", ("0.10x",))
    monkeypatch.setattr("study.LARGE", 72)
    place = Place(tmp_path, tmp_path / "records")
    general, specialists = (subsets.measure(arm, place, TINY, 0) for arm in (SUBSETS.base, SUBSETS.arms[-1]))
    assert len(general) == 63
    assert len(specialists) == 2
    assert general.keys() > specialists.keys()
    fixed = positions.measure(POSITIONS.arms[0], place, TINY, 0)
    assert fixed.keys() >= {"large-class linear 0.10x", "class finetune"}
    assert all(0 <= value <= 1 for row in (general, specialists, fixed) for value in row.values())


def test_a_law_is_found_again(tmp_path):
    budget, true = Budget(), np.array([math.log(2), math.log(0.3), 0.4, math.log(8), 0.6])
    known, noise = {}, np.random.default_rng(0)
    for (size, steps), arm in law.points_of(budget).items():
        seen = np.array([law.millions(size)]), np.array([steps * budget.batch / 1e3])
        for seed in (0, 1):
            loss = float(law.law(true, *seen)[0]) * math.exp(noise.normal(0, 1e-3))
            measured = {"loss": loss, **dict.fromkeys(law.ACCURACY.split(" & "), 0.7)}
            known[key_of(arm, budget), seed] = {"measured": measured}
    text = law.show(known, budget, tmp_path / "law.png")
    found = {row.split(" | ")[0].strip("| "): row.split(" | ")[1] for row in text.splitlines() if row.startswith("| ")}
    found = {name: value.split(" ")[0] for name, value in found.items()}
    assert float(found["b"]) == pytest.approx(0.6, abs=0.05)
    assert float(found["E"]) == pytest.approx(2, abs=0.15)
    value, low, high = map(float, re.search(r"\| E \| (\S+) \((\S+) to (\S+)\)", text).groups())
    assert low < value < high < low + 0.5
    assert float(found["largest deviation, %"]) < 1
    assert (tmp_path / "law.png").is_file()
    assert law.sizes_of(budget) == ["demo-48", "demo", "demo-192"]
    assert law.sizes_of(Budget(size="small")) == ["tiny", "small", "base"]


@pytest.mark.slow
def test_the_law_and_the_cost_at_a_small_size(tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(SIZES, "demo-48", WIDTHS["demo-48"])  # so that it is gone afterwards
    place = Place(tmp_path, tmp_path / "records")
    found = law.measure(PAPER, place, dataclasses.replace(TINY, size="demo-48"), 0)
    losses = [value for name, value in found.items() if name != "loss" and not name.startswith("class")]
    assert found["loss"] == pytest.approx(sum(losses))
    assert found.keys() >= set(law.ACCURACY.split(" & "))
    page = (DOCS / "results.md").read_text()
    cost.main("demo", 4, 2)
    assert (DOCS / "results.md").read_text() == page
    rows = [line.split(" | ") for line in capsys.readouterr().out.splitlines()]
    rates = next(row for row in rows if row[0].startswith("| samples/s"))
    assert [float(cell.strip(" |").replace(",", "")) for cell in rates[2:]] == pytest.approx(
        [4 * float(rates[1].replace(",", "")), 8 * float(rates[1].replace(",", ""))], rel=1e-3
    )


@pytest.mark.slow
def test_the_released_checkpoint_at_a_small_size(tmp_path, monkeypatch, capsys):
    small = [f"--{name}={getattr(TINY, name)}" for name in ("tiles", "steps", "batch", "labelled", "shifted", "mapped")]
    words = ["release.py", f"--work={tmp_path}", f"--records={tmp_path}", "--size=demo", *small]
    monkeypatch.setattr(sys, "argv", words)
    release.main()
    card = (tmp_path / "release" / "README.md").read_text()
    assert "| accuracy, % | these weights | random weights | band statistics | random convolutions |" in card
    assert card in capsys.readouterr().out
    assert load_model(tmp_path / "release").config.inputs == RECIPE_INPUTS["v2"]
    assert {path.name for path in (tmp_path / "release").iterdir()} >= {"config.json", "model_card.png"}


def test_values_on_another_grid():
    values, valid = torch.arange(16.0).view(1, 1, 4, 4), torch.ones(1, 1, 4, 4, dtype=torch.bool)
    valid[..., :2, :2] = False
    valid[..., 0, 2] = False
    coarse = filling.at(2, values, valid)
    assert float(coarse[0, 0, 0, 1]) == pytest.approx((3 + 6 + 7) / 3)
    assert coarse[0, 0, 0, 0].isnan()
    assert filling.at(4, coarse, ~coarse.isnan())[0, 0, 3].tolist() == [10.5, 10.5, 12.5, 12.5]


@pytest.mark.slow
def test_rivals_at_a_small_size(tmp_path, monkeypatch):
    """What each can be measured by: baselines have no tokens, one modality alone is no choice of inputs."""
    monkeypatch.setitem(MODALITIES, STACKED.name, STACKED)
    monkeypatch.setattr("transfer.STEPS", dict.fromkeys(transfer.STEPS, 2))
    monkeypatch.setattr("multimae_eo.tasks.probe.DENSE_STEPS", 2)
    monkeypatch.setattr("multimae_eo.tasks.task.RESAMPLES", 10)
    for battery in ("frozen", "transfer"):
        monkeypatch.setattr(f"{battery}.PARTITIONS", ("0.10x",))
    place = Place(tmp_path, tmp_path / "records")
    arms = [arm for arm in TRANSFER.arms if "quarter" in arm.name or arm.name == "band statistics"]
    found = {arm.name: transfer.measure(arm, place, TINY, 0) for arm in arms}
    assert found["a quarter of the steps"].keys() >= {
        name for name in TRANSFER.measures if "0.01x" not in name and "1.00x" not in name
    }
    assert not any("finetune" in name or "map" in name for name in found["band statistics"])
    assert {name.split()[1] for name in found["MAE of RGB, a quarter"]} == {"rgb-only"}
    assert {name.split()[1] for name in found["MAE of stacked bands, a quarter"]} == {"multispectral"}
    assert all(0 <= value <= 1 for row in found.values() for value in row.values())
