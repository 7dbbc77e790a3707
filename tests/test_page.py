"""The page of a run: everything that the run left, in one file that asks for nothing else."""

import json
import re

import numpy as np
import pytest

rasterio = pytest.importorskip("rasterio")

from scenes import save_predictor, write_raster, write_scene  # noqa: E402

from multimae_eo.cli import main  # noqa: E402
from multimae_eo.maps.curves import chart, number, ticks  # noqa: E402
from multimae_eo.maps.preview import preview  # noqa: E402


def write_run(folder):
    folder.mkdir()
    rows = [
        "step,kind,train/loss,train/lr,val/loss,val/miou",
        "1,train,3.5,0.1,,",
        "2,train,nan,0.1,,",
        "2,val,,,2.5,0.4",
    ]
    (folder / "metrics.csv").write_text("\n".join(rows) + "\n")
    results = {"best": {"miou": [0.5, 0.4, 0.6]}, "last": {"miou": [None, None, None]}}
    results |= {"classes": ["a", "<b>", "c"], "confusion": [[8, 2, 0], [1, 9, 0], [0, 0, 0]]}
    (folder / "results.json").write_text(json.dumps(results))
    (folder / "subsets.csv").write_text(
        "inputs,dropped,miou,miou_low,miou_high\nrgb+nir,,0.5,0.4,0.6\nrgb,nir,0.3,0.2,\n"
    )
    (folder / "other.csv").write_text("a,b\n1,2\n")
    (folder / "config.yaml").write_text("seed: 0\n")
    return folder


def test_all_of_a_run_in_one_file(tmp_path):
    sources, run = write_scene(tmp_path), write_run(tmp_path / "run")
    given = [part for name, path in sources.items() for part in ("--source", f"{name}={path}")]
    task = str(save_predictor(tmp_path / "task"))
    main(["predict", task, *given, "--out", str(run / "map.tif"), "--tiles.progress", "false"])
    main(["report", str(run), "--before", sources["s2"]])
    page = (run / "report.html").read_text()
    assert re.findall(r"(?:src|href)=[\"'](?!data:)", page) == []
    assert page.count("<svg") == 3
    assert "nan" not in re.sub(r"base64,[^\"']*", "", "".join(re.findall(r"<svg.*?</svg>", page)))
    for text in ("0.500 (0.400 to 0.600)", "nan (nan to nan)", "&lt;b&gt;", "rgb, nir", "seed: 0", "150 x 130 pixels"):
        assert text in page, text
    assert "80" in page
    assert page.count("data:image/png") == 2


@pytest.mark.parametrize("task", ["segmentation", "regression"])
def test_a_preview_has_the_colours_of_the_map(tmp_path, task):
    sources = write_scene(tmp_path)
    given = [part for name, path in sources.items() for part in ("--source", f"{name}={path}")]
    checkpoint = str(save_predictor(tmp_path / "task", task))
    main(["predict", checkpoint, *given, "--out", str(tmp_path / "map.tif"), "--tiles.progress", "false"])
    shown = preview(tmp_path / "map.tif", tmp_path / "s2.tif")
    assert shown.after.shape == shown.before.shape == (130, 150, 4)
    assert (shown.after[:20, :30, 3] == 0).all()
    if task == "segmentation":
        with rasterio.open(tmp_path / "map.tif") as file:
            codes = file.read(1)
        assert (shown.after[codes == 1][:, :3] == (0, 255, 0)).all()
        assert set(shown.legend) <= {"a", "b", "c"}
    else:
        assert any("t/ha" in text for text in shown.legend)
    with rasterio.open(tmp_path / "s2.tif") as file:
        red = file.read(3)
    bright = red > np.percentile(red, 95)
    assert shown.before[bright][:, 0].mean() > shown.before[~bright][:, 0].mean() + 50


def test_shares_of_two_classes_are_no_codes(tmp_path):
    classes = {"CLASSES": json.dumps({"0": "a", "1": "b"})}
    shares = np.linspace(0, 250, 64).astype(np.uint8)[None, None].repeat(2, 0).repeat(64, 1)
    write_raster(tmp_path / "map.tif", shares, ["a", "b"], tags=classes, nodata=255)
    shown = preview(tmp_path / "map.tif", None)
    assert (shown.after[..., 3] == 255).all()
    assert len(np.unique(shown.after.reshape(-1, 4), axis=0)) > 20


def test_ticks_are_round_and_cover_a_range():
    assert ticks(0, 1) == [0, 0.5, 1.0]
    assert ticks(3, 3)[0] <= 3 <= ticks(3, 3)[-1]
    for low, high in ((-3.2, 7.9), (0.0013, 0.0021), (120, 98_000)):
        found = ticks(low, high)
        assert found[0] <= low < high <= found[-1]
        assert 3 <= len(found) <= 7
    assert [number(x) for x in (0, 0.5, 200, 12_000, 0.0002)] == ["0", "0.5", "200", "1e4", "2e-4"]
    assert "polyline" in chart({"validation": [(0, 1.0), (10, 2.0)]}, "loss")


def test_nothing_to_show(tmp_path, capfd):
    for folder, says in ((tmp_path / "none", "no folder"), (tmp_path, "is it the folder of a run")):
        with pytest.raises(SystemExit) as stopped:
            main(["report", str(folder)])
        assert stopped.value.code == 2
        assert says in capfd.readouterr().err
