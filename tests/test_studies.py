"""The studies: their tables are those of their records, their intervals are right, and they run at a small size."""

import json
import math
import sys
from pathlib import Path

import pytest
import torch

pytest.importorskip("h5py")
pytest.importorskip("lightning")
pytest.importorskip("sklearn")

STUDY = Path(__file__).resolve().parent.parent / "benchmarks" / "study"
sys.path.insert(0, str(STUDY))

from faults import QUESTION as FAULTS  # noqa: E402
from faults import Bilinear, Resize, Unmasked, put_back  # noqa: E402
from modalities import MODALITIES  # noqa: E402
from recipe import RECIPE  # noqa: E402
from roles import ROLES  # noqa: E402
from show import DOCS, Figures, Interval, Question, put  # noqa: E402
from study import PAPER, RECORDS, Arm, Budget, Place, key_of, measure, options_of, read, trained  # noqa: E402

from multimae_eo.config import sized  # noqa: E402
from multimae_eo.options import demo_options  # noqa: E402
from multimae_eo.raster import Raster  # noqa: E402
from multimae_eo.tasks.examples import Prepare  # noqa: E402
from multimae_eo.tasks.pretrain import PretrainTask  # noqa: E402

QUESTIONS = (ROLES, MODALITIES, FAULTS, RECIPE)
TINY = Budget(tiles=100, steps=2, batch=8, labelled=200, shifted=200)


def answered() -> list[Question]:
    """Those whose table is in the docs."""
    page = (DOCS / "results.md").read_text()
    return [q for q in QUESTIONS if f"<!-- {q.name} -->" in page]


@pytest.mark.parametrize("question", answered(), ids=lambda q: q.name)
def test_the_table_in_the_docs_is_that_of_the_records(question, tmp_path):
    text = question.show(Figures(read(RECORDS), Budget()), tmp_path / "picture.png")
    assert f"<!-- {question.name} -->\n\n{text}\n\n<!-- end of {question.name} -->" in (DOCS / "results.md").read_text()
    assert (DOCS / f"study_{question.name}.png").is_file()


@pytest.mark.parametrize("question", QUESTIONS, ids=lambda q: q.name)
def test_arms_are_options_and_all_differ(question):
    place = Place(Path("work"))
    keys = set()
    for arm in (question.base, *question.arms):
        keys.add(key_of(arm, Budget()))
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("study.world", lambda *_: Path("data"))
            options_of(arm, place, Budget(), 0).model.config()
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
    assert Interval.of([-1.0, -1.1, -1.2]).words(1, "+") == "**-1.1 (-1.3 to -0.9)**"


def test_differences_are_taken_seed_by_seed(tmp_path):
    other = Arm("other", {"seed": 1})
    records = {}
    for arm, values in ((PAPER, (1.0, 5.0, 9.0)), (other, (2.0, 6.0, 10.0))):
        for seed, value in enumerate(values):
            records[key_of(arm, TINY), seed] = {"measured": {"x": value}}
    del records[key_of(other, TINY), 2]
    figures = Figures(records, TINY)
    assert figures.difference(other, PAPER, "x") == Interval(1.0, 1.0, 1.0, 2)
    assert figures.of(PAPER, "x").count == 3
    page = tmp_path / "page.md"
    page.write_text("before\n<!-- a -->\nold\n<!-- end of a -->\nafter\n")
    for text in ("first", "new"):
        put(page, "a", text)
    assert page.read_text() == "before\n<!-- a -->\n\nnew\n\n<!-- end of a -->\nafter\n"


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
    batch = {"rgb": Raster(values, valid, torch.zeros(1, dtype=torch.int64))}
    window = torch.tensor([[3, 5, 1, 0]])
    whole = Resize(config)(batch, window)["rgb"]
    assert whole.values.shape == (1, 3, 56, 56)
    assert whole.values[0, 0, 0, 0] > whole.values[0, 0, 0, -1]  # mirrored
    assert whole.values[0, 0, 0].min() < 1  # and nothing is cut off
    assert whole.values[0, 0, 0].max() > 62
    assert Unmasked(Prepare(config))(batch, window)["rgb"].valid.all()
    assert not Prepare(config)(batch, window)["rgb"].valid.all()


def test_one_statistics_for_all_products():
    task = put_back(PretrainTask(sized("demo"), demo_options()), ["statistics"])
    for name in ("rgb", "swir"):
        found = task.model.config.modalities[name].statistics
        assert found["L1C"] == found["L2A"]
    assert task.model.config.modalities["elevation"].products == ("ASTER",)


@pytest.mark.slow
def test_a_study_at_a_small_size(tmp_path):
    place = Place(tmp_path, tmp_path / "records.jsonl", jobs=1)
    arms = (PAPER, FAULTS.arms[-1])
    records = trained(arms, [0], place, TINY)
    assert len(records) == 2
    found = records[key_of(PAPER, TINY), 0]["measured"]
    assert 0 < found["class all linear 0.10x"] <= 1
    assert found["shifted land_cover"] > 0
    assert found != records[key_of(arms[1], TINY), 0]["measured"]
    before = place.records.read_bytes()
    assert trained(arms, [0], place, TINY) == records  # nothing is done again
    assert place.records.read_bytes() == before
    again = measure(PAPER, place, TINY, 0)  # nor is the training, where the model is there
    assert {name: float(f"{value:.5g}") for name, value in again.items()} == found
    assert json.loads(before.splitlines()[0])["budget"]["tiles"] == 100
