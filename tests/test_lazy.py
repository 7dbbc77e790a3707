"""Predictions over xarray and Dask: nothing is computed before it is asked for, and the same in any process."""

import numpy as np
import pytest

rasterio = pytest.importorskip("rasterio")
xarray = pytest.importorskip("xarray")
pytest.importorskip("odc.geo.xr")
dask = pytest.importorskip("dask")

import torch  # noqa: E402
from scenes import BANDS, save_predictor, write_scene  # noqa: E402

from multimae_eo.errors import MultiMAEError  # noqa: E402
from multimae_eo.maps import predict_dataarray, predict_map  # noqa: E402
from multimae_eo.maps.options import PredictOptions, TileOptions  # noqa: E402


@pytest.fixture(autouse=True)
def one_thread():
    number = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(number)


def dataset(folder):
    """A scene as xarray holds it, and its sources."""
    sources = write_scene(folder)
    with rasterio.open(sources["s2"]) as s2, rasterio.open(sources["dem"]) as dem:
        t, (height, width), crs = s2.transform, s2.shape, s2.crs.to_wkt()
        coords = {"y": t.f + (np.arange(height) + 0.5) * t.e, "x": t.c + (np.arange(width) + 0.5) * t.a}
        arrays = dict(zip(BANDS, s2.read(), strict=True)) | {"dem": dem.read(1)}
    data = xarray.Dataset({n: (("y", "x"), a) for n, a in arrays.items()}, coords)
    data = data.assign({n: data[n].where(data[n] > 0) for n in BANDS})  # not a number where nothing was measured
    return data.odc.assign_crs(crs), sources


def test_lazy_in_lazy_out_and_the_same_map(tmp_path):
    data, sources = dataset(tmp_path)
    checkpoint = save_predictor(tmp_path / "task")
    out = predict_map(PredictOptions(checkpoint, sources, out=tmp_path / "map.tif", tiles=TileOptions(progress=False)))
    with rasterio.open(out) as file:
        expected = file.read(1)
    with dask.config.set(scheduler=lambda *_, **__: pytest.fail("something was computed")):
        lazy = predict_dataarray(checkpoint, data.chunk({"y": 60, "x": 80}))
        shares = predict_dataarray(checkpoint, data.chunk({"y": 64, "x": -1}), probabilities=True)
    assert (lazy.dims, lazy.shape, lazy.dtype) == (("y", "x"), expected.shape, expected.dtype)
    assert np.array_equal(lazy.x, data.x)
    found = lazy.compute(scheduler="threads").values
    assert (found != expected).mean() < 1e-3
    assert lazy.attrs["nodata"] == 255
    assert lazy.attrs["flag_meanings"] == "a b c"
    values = shares.compute(scheduler="synchronous").values.astype(int)
    best = np.where((values == 255).all(axis=0), 255, values.argmax(axis=0))
    sure = np.sort(values, axis=0)[-1] > np.sort(values, axis=0)[-2] + 1
    assert np.array_equal(best[sure], expected[sure])
    shares.to_netcdf(tmp_path / "shares.nc", engine="h5netcdf")
    with xarray.open_dataset(tmp_path / "shares.nc", engine="h5netcdf") as file:
        assert np.array_equal(file.prediction.isnull(), values == 255)
        assert np.allclose(file.prediction.sum("band", skipna=False).values[values[0] != 255], 1, atol=0.01)
    eager = predict_dataarray(checkpoint, data.to_array("band"))
    assert (eager.values != expected).mean() < 1e-3


@pytest.mark.slow
def test_two_processes_give_the_same_bits(tmp_path):
    distributed = pytest.importorskip("distributed")
    data, _ = dataset(tmp_path)
    lazy = predict_dataarray(save_predictor(tmp_path / "task"), data.chunk({"y": 60, "x": 80}), probabilities=True)
    alone = lazy.compute(scheduler="synchronous")
    with (
        distributed.LocalCluster(n_workers=2, threads_per_worker=1, dashboard_address=None) as cluster,
        distributed.Client(cluster) as client,
    ):
        client.run(torch.set_num_threads, 1)
        together = lazy.compute()
    assert np.array_equal(alone.values, together.values)


def test_marks_of_no_data_are_those_of_each_band(tmp_path):
    data, _ = dataset(tmp_path)
    checkpoint = save_predictor(tmp_path / "task")
    whole = data.fillna(0).astype("int32")
    whole["dem"] = (whole.dem * 0).assign_attrs(nodata=-9999)  # sea level is no missing height
    for given in (whole, whole.to_array("band").assign_attrs(nodata=0)):
        found = predict_dataarray(checkpoint, given).values
        assert (found[:20, :30] == 255).all()
        assert (found[20:128] != 255).all()
    whole["dem"] = (whole.dem * 0 - 9999).assign_attrs(nodata=-9999)
    without = predict_dataarray(checkpoint, whole).values
    assert (without != found).any()


def test_impossible_data(tmp_path):
    data, _ = dataset(tmp_path)
    checkpoint = save_predictor(tmp_path / "task")
    without = predict_dataarray(checkpoint, data.drop_vars("dem"), allow_missing=True)
    assert without.shape == (130, 150)
    for given, says in (
        (data.drop_vars("dem"), "lacks elevation"),
        (data.assign_coords(x=data.x * 3), "steps of 10 m along x, got 30"),
        (data.sortby("y"), "steps of -10 m along y"),
        (data.odc.assign_crs("EPSG:3857"), "in a UTM zone, got EPSG:3857"),
        (data.rename(B02="a", B03="b", B04="c")[["a", "b", "c"]], "no variable with the name of a band"),
        (data.to_array("variable"), "no coordinate 'band'"),
        (data[["B11"]], "too few bands"),
        (data.assign(B04_std=data.B04), "have B04 more than once: 'B04', 'B04_std'"),
        (xarray.concat([data, data], "time"), "choose one time"),
    ):
        with pytest.raises(MultiMAEError, match=says):
            predict_dataarray(checkpoint, given)
