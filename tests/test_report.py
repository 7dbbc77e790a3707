"""The report: every cell, who is beside whom, and that every published number is valid and only where it belongs."""

import csv
import html
import json
import math
from html.parser import HTMLParser

import pytest

from multimae_eo.data.geobench_sets import SETS
from multimae_eo.errors import DataError
from multimae_eo.tasks.report import RANGES, normalised, read_peers, read_results, write_report

METRICS = ("accuracy", "accuracy_macro", "f1_micro", "f1_macro", "map_micro", "miou", "r2")
NAMES = (
    *("dataset", "task", "protocol", "setting", "inputs", "bands", "absent_bands", "statistics", "partition", "init"),
    *("checkpoint", "seed", "head", "settings", "metric", "value", "low", "high", "last_value", "normalised"),
    *(name + end for name in METRICS for end in ("", "_low", "_high")),
    *("train_samples", "valid_samples", "test_samples", "notes", "warnings", "seconds", "version", "torch"),
)


def result(dataset="m-eurosat", value=0.95, *, metric="accuracy", width=0.01, **columns):
    interval = {"": value, "_low": value - width, "_high": value + width}
    row = {
        **{"dataset": dataset, "task": "classification", "protocol": "knn-5", "setting": "all", "inputs": "a+b"},
        **{"bands": "B02 B03", "absent_bands": "", "statistics": "model", "partition": "default", "init": "pretrained"},
        **{"checkpoint": "c0ffee", "seed": 0, "head": "", "settings": "{}", "metric": metric, "version": "0.1.0"},
        **{"value": repr(value), "low": repr(value - width), "high": repr(value + width)},
        **{metric + end: repr(number) for end, number in interval.items()},
        **{"train_samples": 2000, "valid_samples": 1000, "test_samples": 1000, "torch": "2.13"},
    }
    return dict.fromkeys(NAMES, "") | row | columns


def store(path, rows):
    with open(path, "w", newline="") as file:
        writer = csv.DictWriter(file, NAMES)
        writer.writeheader()
        writer.writerows(rows)
    return path


class Page(HTMLParser):
    """{title of a section: {label of a line: [(text, what stands below, bold)]}}, the head under None."""

    def __init__(self, text):
        super().__init__()
        self.sections, self.open, self.lines = {}, [], []
        self.feed(text)
        assert not self.open, "every tag is closed"

    def handle_starttag(self, tag, attributes):
        if tag == "meta":
            return
        assert tag not in ("script", "link", "img", "iframe")
        self.open.append(tag)
        if tag == "tr":
            self.lines.append([])
        elif tag in ("th", "td"):
            self.lines[-1].append(["", "", False])

    def handle_endtag(self, tag):
        assert self.open.pop() == tag
        if tag == "table":
            head, *lines = [[tuple(cell) for cell in line] for line in self.lines]
            self.sections[self.title] = {None: head[1:]} | {line[0][0]: line[1:] for line in lines}
            self.lines = []

    def handle_data(self, data):
        if self.open and self.open[-1] == "h2":
            self.title = data
        elif {"th", "td"} & set(self.open):
            cell = self.lines[-1][-1]
            cell[1 if self.open[-1] == "small" else 0] += data
            cell[2] |= "b" in self.open


def report(tmp_path, rows):
    """The sections of the page, the page's own text, and the Markdown."""
    paths = write_report(store(tmp_path / "results.csv", rows), tmp_path / "out")
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["report.html", "report.md"]
    page, markdown = (path.read_text(encoding="utf-8") for path in paths)
    assert not [text for text in ("http", "url(", "@import") if text in page]
    return Page(page).sections, page, markdown


KNN = "5 nearest neighbours, frozen features (knn-5), partition default"


def test_cells_intervals_bold_and_markdown_agree(tmp_path):
    rows = [
        result("m-so2sat", 0.5),
        result("m-eurosat", 0.912),
        result("m-eurosat", 0.95, init="random_convolutions", checkpoint=""),
        result("m-so2sat", 0.3, init="random", checkpoint="", width=0.03),
    ]
    sections, _, markdown = report(tmp_path, rows)
    table = sections[KNN]
    assert [cell[:2] for cell in table[None]] == [
        *(("m-eurosat", "accuracy"), ("m-so2sat", "accuracy"), ("normalised mean", "of 2 sets")),
    ]
    # (0.912 - 0.907) / 0.078 = 0.0641 and (0.5 - 0.449) / 0.161 = 0.3168: a mean of 0.1904
    assert table["pre-trained, all"] == [
        *(("91.2", "90.2 to 92.2", False), ("50.0", "49.0 to 51.0", True), ("0.19", "", True)),
    ]
    # (0.95 - 0.907) / 0.078 = 0.5513, over fewer sets, so not the best
    assert table["random convolutions, all"] == [
        ("95.0", "94.0 to 96.0", True),
        ("", "", False),
        ("0.55", "1 of 2 sets", False),
    ]
    assert table["random weights, all"][:2] == [("", "", False), ("30.0", "27.0 to 33.0", False)]
    assert list(table)[1:5] == [
        *("pre-trained, all", "random weights, all", "random convolutions, all", "published by others"),
    ]
    assert "| pre-trained, all | 91.2 (90.2 to 92.2) | **50.0** (49.0 to 51.0) | **0.19** |" in markdown
    assert "| model | m-eurosat (accuracy) | m-so2sat (accuracy) | normalised mean (of 2 sets) |" in markdown
    columns = {line.count("|") for line in markdown.splitlines() if line.startswith("|")}
    assert columns == {5}


def test_published_numbers_stand_below_the_rule_and_are_never_bold(tmp_path):
    table = report(tmp_path, [result("m-eurosat", 0.4), result("m-so2sat", 0.1)])[0][KNN]
    labels = list(table)
    assert labels.index("published by others") == 2
    assert table["OlmoEarth v1-Base (1)"] == [("94.6", "", False), ("57.7", "", False), ("0.65", "", False)]
    assert not any(best for label in labels[3:] for _, _, best in table[label])
    assert "OlmoEarth v1-Tiny (1)" not in labels  # published linear results only


def test_published_numbers_only_under_the_same_protocol_and_partition(tmp_path):
    rows = [
        result(protocol="knn-20"),
        result(protocol="finetune"),
        result(partition="0.01x"),
        result(partition="1.00x"),
    ]
    sections, page, _ = report(tmp_path, rows)
    assert [title.split("(")[1] for title in sections] == [
        *(
            "knn-5), partition 0.01x",
            "knn-5), partition 1.00x",
            "knn-20), partition default",
            "finetune), partition default",
        )
    ]
    few, every, twenty, tuned = sections.values()
    assert len(few) == len(tuned) == 2
    assert every["TerraMind-L (1)"][0][0] == "91.7"
    assert twenty["TerraFM-L (1)"][0][0] == "95.1"
    assert "TerraFM-L (1)" not in every
    assert page.count("No published numbers under the same protocol, partition and metric to set beside these.") == 2


def test_the_metric_of_several_labels_follows_the_protocol(tmp_path):
    both = {"map_micro": 0.61, "map_micro_low": 0.6, "map_micro_high": 0.62}
    rows = [
        result(
            "m-bigearthnet", 0.654, metric="f1_micro", protocol=protocol, **both, settings='{"refit_on_valid": true}'
        )
        for protocol in ("knn-5", "knn-20", "linear", "finetune")
    ]
    five, twenty, linear, tuned = report(tmp_path, rows)[0].values()
    # (0.654 - 0.602) / 0.104 = 0.5: the range is one of F1, whatever is shown
    for table, metric, value in [
        (five, "map_micro", "61.0"),
        (linear, "map_micro", "61.0"),
        (tuned, "f1_micro", "65.4"),
    ]:
        assert table[None][0][1] == metric
        assert [cell[0] for cell in table["pre-trained, all"]] == [value, "0.50"]
    assert [cell[0] for cell in five["Panopticon-B (1)"]] == ["65.2", ""]
    assert [cell[0] for cell in linear["OlmoEarth v1-Nano (1)"]] == ["66.7", ""]
    assert twenty[None][0][1] == "f1_micro"
    # (0.694 - 0.602) / 0.104 = 0.8846
    assert [cell[0] for cell in twenty["TerraFM-L (1)"]] == ["69.4", "0.88"]
    assert len(tuned) == 2


def test_another_metric_than_the_published_one_has_no_peers(tmp_path):
    table = report(tmp_path, [result("m-bigearthnet", 0.6, metric="f1_micro")])[0][KNN]
    assert table[None][0] == ("m-bigearthnet", "f1_micro", False)
    assert len(table) == 2


@pytest.mark.parametrize("settings", ['{"refit_on_valid": false}', "{}", "", "not json", "[1]"])
def test_linear_results_have_peers_only_where_they_were_refit(tmp_path, settings):
    refit = json.dumps({"refit_on_valid": True, "c": 0.1})
    rows = [
        result("m-eurosat", protocol="linear", settings=refit),
        result("m-so2sat", protocol="linear", settings=settings),
    ]
    sections, page, _ = report(tmp_path, rows)
    (table,) = sections.values()
    assert [cell[0] for cell in table["Clay v1.5-B (1)"]][:2] == ["96.7", ""]
    assert "so none are shown for m-so2sat." in page
    sections, page, _ = report(tmp_path, rows[1:])
    assert [len(table) for table in sections.values()] == [2]
    assert "No published numbers" not in page


def test_several_seeds(tmp_path):
    rows = [result(value=value, seed=seed) for seed, value in enumerate((0.90, 0.92, 0.94))]
    sections, page, markdown = report(tmp_path, [*rows, result(value=0.93, init="random", checkpoint="", seed=7)])
    table = sections[KNN]
    assert table[None][1] == ("m-eurosat ±", "standard deviation over seeds", False)
    assert [cell[:2] for cell in table["pre-trained, all"]] == [
        ("92.0", "91.0 to 93.0"),
        ("2.0 (3 seeds)", ""),
        ("0.17", ""),
    ]
    assert table["random weights, all"][:2] == [("93.0", "92.0 to 94.0", True), ("", "", False)]
    assert len(table["DOFA-L (1)"]) == 3
    assert "<li>seeds 0, 1, 2 [pre-trained, all]</li>" in page
    assert "- seed 7 \\[random weights, all\\]" in markdown


def test_what_differs_in_more_than_the_seed_is_not_averaged(tmp_path):
    rows = [
        *(result(value=0.9), result(value=0.7, checkpoint="decade"), result(value=0.8, seed=1)),
        *(result("m-so2sat", 0.5, statistics="dataset"), result("m-so2sat", 0.4, setting="few")),
        *(result("m-so2sat", 0.3, setting="few", settings='{"k": 5}'), result("m-so2sat", 0.2, setting="few")),
    ]
    table = report(tmp_path, rows)[0][KNN]
    found = {label: [cell[0] for cell in line][:3] for label, line in table.items() if label and "," in label}
    assert found == {
        "pre-trained, all, checkpoint c0ffee": ["85.0", "7.1 (2 seeds)", "50.0"],
        "pre-trained, all, checkpoint decade": ["70.0", "", ""],
        "pre-trained, few, settings {}": ["", "", "20.0"],  # the later of two equal runs
        'pre-trained, few, settings {"k": 5}': ["", "", "30.0"],
    }


def test_notes_and_hostile_text_are_escaped(tmp_path):
    hostile = "<script>alert('x')</script> & \"a|b\" *c*\n`d`"
    rows = [
        result(hostile, notes=hostile, setting=hostile, absent_bands="B10"),
        result(hostile, 0.2, init=hostile, partition=hostile, protocol=hostile),
    ]
    sections, page, markdown = report(tmp_path, rows)
    assert page.count("<script") == 0
    assert f"notes: {html.escape(hostile)}" in page
    assert {hostile in str(title) for title in sections} == {False, True}
    assert f"pre-trained, {hostile}" in sections[KNN]
    assert not [text for text in ("<script", "a|b") if text in markdown]
    assert 'a\\|b" \\*c\\* \\`d\\`' in markdown
    assert "<li>absent bands: B10</li>" in page
    assert "checkpoint c0ffee, multimae-eo 0.1.0, torch 2.13</p>" in page
    assert "<li>samples: 2000 train, 1000 valid, 1000 test</li>" in page


def test_notes_name_the_models_they_do_not_hold_for_all(tmp_path):
    rows = [
        result(warnings="w", last_value="0.9"),
        result(init="random", checkpoint="", last_value="0.8", statistics="own"),
    ]
    page = report(tmp_path, rows)[1]
    for line in (
        *("bands: B02 B03", "warnings: w [pre-trained, all]", "statistics: own [random weights, all]", "seed 0"),
        "accuracy of the last checkpoint: 80.0 [random weights, all]",
    ):
        assert f"<li>{line}</li>" in page


def test_a_value_that_is_not_a_number_is_shown_as_none(tmp_path):
    rows = [
        *(result("m-eurosat", math.nan), result("m-so2sat", 0.5), result("m-so2sat", math.inf, seed=1)),
        result("m-eurosat", 0.9, init="random", accuracy_low="nan"),
    ]
    table = report(tmp_path, rows)[0][KNN]
    assert table["pre-trained, all"] == [
        *(("no value", "", False), ("no value", "", False), ("no value (2 seeds)", "", False), ("", "", False)),
    ]
    assert table["random weights, all"][0] == ("90.0", "", True)


def test_an_unknown_set_has_no_score_and_no_peers(tmp_path):
    sections, page, _ = report(tmp_path, [result("my-fields", 0.31, metric="r2", protocol="linear")])
    (table,) = sections.values()
    assert table == {None: [("my-fields", "r2", False)], "pre-trained, all": [("31.0", "30.0 to 32.0", True)]}
    assert "No published numbers" in page


def test_a_last_line_that_was_cut_off_is_dropped(tmp_path):
    path = store(tmp_path / "results.csv", [result(value=0.9), result("m-so2sat", 0.5, notes='a, "quoted" note')])
    whole = path.read_bytes()
    start = whole.index(b"m-so2sat")
    for cut in (start + 3, start + 60, whole.index(b"quoted")):
        path.write_bytes(whole[:cut])
        assert [row["dataset"] for row in read_results(path)] == ["m-eurosat"]
    path.write_bytes(whole[: start + 60] + b"\n" + whole[start:])
    with pytest.raises(DataError, match="result 2 "):
        read_results(path)
    path.write_bytes(whole.rstrip())
    assert len(read_results(path)) == 2


def test_bad_results_are_refused_with_their_reason(tmp_path):
    with pytest.raises(DataError, match=r"none\.csv: cannot read"):
        read_results(tmp_path / "none.csv")
    (tmp_path / "other.csv").write_text("dataset,step\nm-eurosat,1\n")
    with pytest.raises(DataError, match="lacks protocol, partition"):
        read_results(tmp_path / "other.csv")
    with pytest.raises(DataError, match="accuracy of m-eurosat is no number: 'many'"):
        report(tmp_path, [result(accuracy="many")])


def test_no_results_make_a_report_that_says_so(tmp_path):
    sections, page, markdown = report(tmp_path, [])
    assert sections == {}
    assert all("There are no results yet." in text for text in (page, markdown))


def test_normalised_by_hand():
    assert normalised("m-eurosat", 0.946) == pytest.approx(0.5)
    assert normalised("m-SA-crop-type", 0.311) == pytest.approx(1)
    assert normalised("m-pv4ger-seg", 0.919) == pytest.approx(-1)
    assert normalised("synthetic-class", 0.9) is None
    assert set(RANGES) == {name for name in SETS if name.startswith("m-")}
    assert all(0 < low < high < 1 for low, high in RANGES.values())


def test_every_published_number_is_valid():
    peers = read_peers()
    assert len(peers) == 258
    keys = [(peer["dataset"], peer["protocol"], peer["model"]) for peer in peers]
    assert len(set(keys)) == len(keys)
    for peer in peers:
        assert list(peer) == ["dataset", "protocol", "metric", "model", "value", "source", "note"]
        assert SETS[peer["dataset"]].task in ("classification", "multilabel")
        assert 0 < float(peer["value"]) < 1
        several = "f1_micro" if peer["protocol"] == "knn-20" else "map_micro"
        assert peer["metric"] == (several if peer["dataset"] == "m-bigearthnet" else "accuracy")
        source = "TerraFM README" if peer["protocol"] == "knn-20" else "torchgeo-bench results, seed 0"
        assert peer["source"].startswith(source)
        assert peer["note"]
    assert {peer["protocol"] for peer in peers} == {"knn-5", "knn-20", "linear"}


SPOTS = (
    *(("knn-5", "OlmoEarth v1.1-Base", "m-so2sat", 60.6), ("linear", "OlmoEarth v1.1-Base", "m-bigearthnet", 77.1)),
    *(("linear", "OlmoEarth v1-Tiny", "m-forestnet", 55.7), ("linear", "OlmoEarth v1-Nano", "m-pv4ger", 92.4)),
    *(("knn-5", "DOFA-L", "m-brick-kiln", 96.9), ("knn-5", "DOFA-B", "m-brick-kiln", 96.5)),
    *(("linear", "DINOv3-sat ViT-L", "m-forestnet", 58.2), ("linear", "CROMA-L", "m-forestnet", 47.1)),
    *(
        ("knn-5", "random convolutional features (RCF)", "m-eurosat", 76.3),
        ("linear", "UniverSat-base", "m-so2sat", 60.5),
    ),
    *(("knn-5", "per-band image statistics", "m-so2sat", 25.9), ("knn-20", "MMEarth Atto", "m-bigearthnet", 58.3)),
    *(("knn-20", "Copernicus-FM-B", "m-eurosat", 76.0), ("knn-20", "Copernicus-FM-B", "m-brick-kiln", 93.0)),
    *(("knn-20", "SatMAE++-L", "m-so2sat", 34.7), ("knn-20", "TerraFM-B", "m-brick-kiln", 94.5)),
)


@pytest.mark.parametrize(("protocol", "model", "dataset", "percent"), SPOTS)
def test_published_numbers_by_hand(protocol, model, dataset, percent):
    wanted = (protocol, model, dataset)
    found = [p["value"] for p in read_peers() if (p["protocol"], p["model"], p["dataset"]) == wanted]
    assert [float(value) for value in found] == [pytest.approx(percent / 100)]
