"""Arrays of named bands: every library's, any order and name; units and products stated, checked, never guessed."""

import dataclasses
import subprocess
import sys
import warnings

import numpy as np
import pytest
import torch
from batches import demo_config

import multimae_eo
from multimae_eo import MultiMAE, Predictor, Raster
from multimae_eo.config import TaskConfig
from multimae_eo.errors import BatchError, ConfigError, DataError, SizeError, UnknownNameError
from multimae_eo.inputs import UnusedBandsWarning, read_images
from multimae_eo.integrations.backbone import Backbone, Stated
from multimae_eo.modalities import IMAGE_KEYS, MODALITIES, Continuous, Statistics
from multimae_eo.raster import pad
from multimae_eo.units import looks_like

RGB = ["B04", "B03", "B02"]
CONFIG = demo_config()
L2A = {"units": "dn", "product": "L2A"}


@pytest.fixture(scope="module")
def encoder():
    torch.manual_seed(0)
    return MultiMAE(demo_config()).encoder.eval()


def images(bands=3, size=2, edge=16, seed=0):
    return np.random.default_rng(seed).integers(200, 3000, (size, bands, edge, edge)).astype(np.uint16)


def plain(values, product=1):
    """The raster that all other ways of giving these values must equal."""
    values = torch.from_numpy(values.astype(np.float32))
    return Raster(values, torch.ones_like(values, dtype=torch.bool), torch.full((len(values),), product))


def same(a, b):
    return a.keys() == b.keys() and all(torch.equal(x, y) for name in a for x, y in zip(a[name], b[name], strict=True))


def test_every_way_of_giving_three_bands_is_one_batch(encoder):
    xarray = pytest.importorskip("xarray")
    values = images()
    wanted = {"rgb": plain(values)}
    shuffled = values[:, [2, 0, 1]]
    in_order = xarray.DataArray(shuffled, dims=("time", "band", "y", "x"), coords={"band": ["blue", "RED", "b3"]})
    ways = {
        "numpy": (values, RGB),
        "another order": (shuffled, ["B02", "B04", "B03"]),
        "aliases": (shuffled, ["BLUE", "b4", "Green"]),
        "float64": (values.astype(np.float64), RGB),
        "big endian": (values.astype(">u2"), RGB),
        "tensor": (torch.from_numpy(values.astype(np.int32)), RGB),
        "list": (values.tolist(), RGB),
        "xarray": (in_order, None),
        "xarray, bands last": (in_order.transpose("time", "y", "x", "band"), None),
        "xarray data set": (in_order.to_dataset("band"), None),
        "by modality": ({"rgb": values}, None),
        "by band": ({"B02": values[:, 2], "green": values[:, 1], "B4": values[:, :1]}, None),
        "by key of the user's own": ({"mine": shuffled}, {"mine": ["B02", "B04", "B03"]}),
    }
    for way, (given, bands) in ways.items():
        assert same(encoder.read(given, bands=bands, **L2A), wanted), way
    tokens = encoder(values, bands=RGB, **L2A)
    assert torch.equal(tokens, encoder(wanted))
    reflectance = encoder(wanted["rgb"].values / 10_000, bands=RGB, units="reflectance", product="L2A")
    assert (reflectance - tokens).abs().max() < 1e-4


def test_one_image_without_samples_and_single_bands(encoder):
    values = images(size=1)
    wanted = {"rgb": plain(values)}
    assert same(encoder.read(values[0], bands=RGB, **L2A), wanted)
    assert same(encoder.read(dict(zip(RGB, values[0], strict=True)), **L2A), wanted)


def test_keys_of_terramesh():
    keys = {"S2L2A": images(12), "DEM": np.full((2, 1, 16, 16), 812, np.int16), "S1RTC": np.full((2, 2, 16, 16), -9.0)}
    with pytest.warns(UnusedBandsWarning, match="VV VH"):
        batch = read_images(keys | {"S1RTC": keys["S1RTC"]}, CONFIG, units="dn")
    assert tuple(batch) == ("rgb", "red_edge", "swir", "nir", "elevation")
    names = IMAGE_KEYS["S2L2A"][0]
    for name in ("rgb", "nir", "swir"):
        own = [names.index(band) for band in MODALITIES[name].bands]
        assert np.array_equal(batch[name].values.numpy(), keys["S2L2A"][:, own].astype(np.float32))
        assert batch[name].product.tolist() == [1, 1]  # the key says L2A
    some = read_images({"S2L2A": images(3)}, CONFIG, bands={"S2L2A": RGB}, units="dn")
    assert some["rgb"].product.tolist() == [1, 1]
    sar = demo_config(inputs=("sar",), targets=("sar",))
    with pytest.raises(ConfigError, match=r"product of sar is not stated.*descending"):
        read_images({"S1RTC": keys["S1RTC"]}, sar)
    assert read_images({"S1RTC": keys["S1RTC"]}, sar, product="ascending")["sar"].product.tolist() == [1, 1]


def test_classes_at_10_m_go_to_their_own_grid():
    codes = np.full((1, 16, 16), 10, np.uint8)
    codes[0, :4, :4] = 80
    batch = read_images({"rgb": images(size=1), "LULC": codes}, CONFIG, **L2A)
    assert batch["land_cover"].values.shape == (1, 1, 4, 4)
    assert batch["land_cover"].values[0, 0, 0, 0] == 80
    odd = read_images({"rgb": images(size=1, edge=50), "LULC": np.full((1, 50, 50), 10, np.uint8)}, CONFIG, **L2A)
    assert odd["land_cover"].values.shape == (1, 1, 13, 13)
    assert odd["land_cover"].valid.all()  # the last cells by the two rows and columns that they have
    own = read_images({"rgb": images(size=1), "land_cover": codes[:, ::4, ::4]}, CONFIG, **L2A)
    assert torch.equal(own["land_cover"].values, batch["land_cover"].values)
    with pytest.raises(DataError, match=r"expected class.*codes without a meaning here \(1, 2\).*Translate"):
        read_images({"LULC": codes // 40 + 1 - codes // 80}, CONFIG)


def test_what_is_not_measured():
    values = images().astype(np.float32)
    values[0, 0, 0, 0], values[0, 1, 0, 1] = np.nan, 0
    valid = read_images(values, CONFIG, bands=RGB, **L2A)["rgb"].valid
    assert (~valid).nonzero().tolist() == [[0, 0, 0, 0], [0, 1, 0, 1]]
    assert read_images(values, CONFIG, bands=RGB, **L2A, nodata=None)["rgb"].valid[0, 1, 0, 1]
    masked = np.ma.masked_equal(images(), images()[0, 0, 0, 0])
    for given in (masked, list(masked)):
        found = read_images(given, CONFIG, bands=RGB, **L2A)["rgb"].valid
        assert torch.equal(found, torch.from_numpy(~np.ma.getmaskarray(masked)))


def test_the_offset_of_the_processing_baseline_is_taken_off():
    values = images()
    batch = read_images(values + 1000, CONFIG, bands=RGB, **L2A, offset=1000)
    assert torch.equal(batch["rgb"].values, plain(values).values)
    values[0, 0, 0, 0] = 0
    assert not read_images(values, CONFIG, bands=RGB, **L2A, offset=1000)["rgb"].valid[0, 0, 0, 0]


def test_a_band_of_a_modality_that_is_missing_is_an_invalid_channel():
    batch = read_images(images(1), CONFIG, bands=["B08"], **L2A)
    assert tuple(batch) == ("nir",)
    assert batch["nir"].valid.float().mean(dim=(0, 2, 3)).tolist() == [0, 1]


def test_extra_bands_are_reported_and_nothing_else():
    with pytest.warns(UnusedBandsWarning, match="no input for B01 B09 B05; left out"):
        batch = read_images(images(6), CONFIG, bands=[*RGB, "B01", "B09", "B05"], **L2A)
    assert tuple(batch) == ("rgb",)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        read_images(images(5), CONFIG, bands=[*RGB, "-", "-"], **L2A)


WRONG = {
    "reflectance as dn": ((images() / 10_000), {"units": "dn"}, DataError, "looks like reflectance. Pass units='refl"),
    "dn as reflectance": (images(), {"units": "reflectance"}, DataError, r"looks like dn.*Pass units='dn'"),
    "8 bit": ((images() % 256).astype(np.uint8), {"units": "dn"}, DataError, "8-bit numbers. Take the image before"),
    "8 bit as reflectance": (images() % 256, {"units": "reflectance"}, DataError, "looks like dn|8-bit"),
    "saturated 8 bit": (np.minimum(images() // 5, 255), {"units": "dn"}, DataError, "8-bit numbers"),
    "standardised": (images() / 500 - 3.0, {"units": "dn"}, DataError, "standardised numbers.*itself"),
    "standardised as reflectance": (images() / 500 - 3.0, {"units": "reflectance"}, DataError, "standardised"),
    "no unit": (images(), {}, ConfigError, "not stated: pass units='dn' or 'reflectance'; they look like units='dn'"),
    "no unit, small": (images() / 10_000, {}, ConfigError, "they look like units='reflectance'"),
    "wrong unit": (images(), {"units": "DN"}, UnknownNameError, "unknown unit 'DN'. Did you mean 'dn'"),
    "no product": (images(), {"units": "dn", "product": None}, ConfigError, "product of rgb is not stated.*L1C, L2A"),
    "wrong product": (images(), {"units": "dn", "product": "l2a"}, UnknownNameError, "Did you mean 'L2A'"),
    "two products": (images(), {"units": "dn", "product": ["L1C", "L2A"]}, ConfigError, "L1C and L2A are both given"),
    "no bands": (images(), {"bands": None}, ConfigError, r'pass bands=\["B02"'),
    "unknown band": (images(), {"bands": ["B04", "B03", "B2O"]}, UnknownNameError, "'B2O'. Did you mean 'B"),
    "twice": (images(), {"bands": ["B04", "B03", "RED"]}, ConfigError, "'B04' and 'RED' are both B04"),
    "too few bands": (images(1), {"bands": ["B04"]}, BatchError, r"B04 feed no input.*rgb \(B04 B03 B02\)"),
    "wrong number": (images(4), {}, BatchError, r"shape \[2, 4, 16, 16\]; expected \[3, height"),
    "wrong dimensions": (images()[0, 0], {}, BatchError, r"shape \[16, 16\]"),
    "unknown key": ({"S2L2B": images(12)}, {}, UnknownNameError, "key of the images 'S2L2B'. Did you mean 'S2L2A'"),
    "wrong number for a key": ({"S2L2A": images(13)}, {}, BatchError, "'S2L2A' has 13 bands; expected 12: B01"),
    "wrong number of a modality": ({"swir": images(3)}, {}, BatchError, "'swir' has 3 bands; expected 2: B11 B12"),
    "given by two keys": ({"rgb": images(), "B02": images(1)}, {}, ConfigError, "'B02' gives B02, which another"),
    "bands in a list": (
        {"S2L2A": images(12)},
        {"bands": RGB},
        ConfigError,
        "are one list.*are S2L2A; pass one for each",
    ),
    "bands of no key": ({"s2l2a": images(12)}, {"bands": {"S2L2A": RGB}}, ConfigError, "for 'S2L2A', but.*is 's2l2a'"),
    "a band or a modality": ({"nir": images(2)[0]}, {}, ConfigError, "one image of B8A B08 or 2 of B08; pass"),
    "text": (np.full((2, 3, 4, 4), "a"), {}, DataError, "hold <U1; expected numbers"),
    "samples": ({"rgb": images(), "DEM": np.ones((3, 16, 16))}, {"units": "dn"}, BatchError, "different numbers"),
    "grids": ({"B04": images(1), "B03": images(1), "B02": images(1, edge=8)}, {}, SizeError, "rgb differ in shape"),
    "linear radar": ({"VV": np.ones((2, 16, 16)), "VH": np.ones((2, 16, 16))}, {}, DataError, "10 log10"),
    "heights": ({"DEM": np.full((2, 16, 16), -32768)}, {}, DataError, "expected m.*to NaN"),
}


@pytest.mark.parametrize("case", WRONG)
def test_bad_images(case):
    given, options, error, message = WRONG[case]
    defaults = {"bands": None if isinstance(given, dict) else RGB, "product": None}
    if not isinstance(given, dict) or "DEM" not in given:
        defaults["product"] = "L2A"
    config = demo_config(inputs=(*CONFIG.inputs, "sar")) if case == "linear radar" else CONFIG
    if case == "linear radar":
        defaults["product"] = "ascending"
    if case == "samples":
        defaults["product"] = "L2A"
    with pytest.raises(error, match=message):
        read_images(given, config, **{**defaults, **options})


def test_bands_of_images_that_are_missing():
    bands = {"optical": RGB, "DEM": ["dem"]}
    assert tuple(read_images({"DEM": np.ones((2, 16, 16))}, CONFIG, bands=bands)) == ("elevation",)
    assert tuple(read_images({"optical": images()}, CONFIG, bands=bands, **L2A)) == ("rgb",)


def test_a_key_that_is_a_band_and_a_modality_follows_the_others():
    colours = {"red": images(1)[:, 0], "green": images(1)[:, 0], "blue": images(1)[:, 0]}
    near = images(2, size=1)[0]
    batch = read_images({**colours, "nir": near}, CONFIG, **L2A)  # two dates of each
    assert torch.equal(batch["nir"].values[:, 1], torch.from_numpy(near.astype(np.float32)))
    assert not batch["nir"].valid[:, 0].any()
    batch = read_images({"rgb": images(size=1)[0], "nir": near}, CONFIG, **L2A)  # one image of each modality
    assert batch["nir"].values.shape == (1, 2, 16, 16)
    assert batch["nir"].valid.all()


SURE = {
    "a glint": (np.append(np.linspace(0, 0.3, 999), 2.1), "reflectance"),
    "a shadow and a fire": (np.append(np.linspace(0, 0.3, 998), [-0.004, 2.3]), "reflectance"),
    "whole numbers over water": (np.arange(-20, 46), None),
    "resampled over water": (np.linspace(-20.3, 45.2, 100), None),
    "standardised": (np.random.default_rng(0).normal(0, 1, 1000), "standardised numbers"),
    "from -1 to 1": (np.linspace(-1, 1, 100), "standardised numbers"),
}


@pytest.mark.parametrize("case", SURE)
def test_what_small_reflectances_look_like(case):
    values, guess = SURE[case]
    assert looks_like(MODALITIES["rgb"], values) == guess


def test_units_that_nothing_is_known_of():
    pressure = dataclasses.replace(MODALITIES["elevation"], unit="Pa")
    assert looks_like(pressure, np.array([101_325.0])) is None
    assert looks_like(MODALITIES["elevation"], np.array([101_325.0])) == "none of this unit"


def test_images_of_a_product_that_the_model_does_not_know():
    known = {name: m for name, m in MODALITIES.items() if name in ("rgb", "red_edge", "swir", "nir")}
    alone = {name: dataclasses.replace(m, statistics={"L2A": m.statistics["L2A"]}) for name, m in known.items()}
    config = demo_config(inputs=("rgb", "nir"), targets=("rgb",), modalities=alone)
    given = {"S2L1C": images(13)}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UnusedBandsWarning)
        with pytest.raises(ConfigError, match="are of L1C by their name, but the model knows rgb of L2A"):
            read_images(given, config, units="dn")
        assert read_images(given, config, units="dn", product="L2A")["rgb"].product.tolist() == [0, 0]
        assert read_images({"S2L2A": images(12)}, config, units="dn")["rgb"].product.tolist() == [0, 0]


def test_half_precision():
    batch = read_images(torch.from_numpy(images().astype(np.float32)).bfloat16(), CONFIG, bands=RGB, **L2A)
    assert batch["rgb"].values.dtype == torch.float32


def test_units_of_a_data_set_of_its_own_are_not_judged():
    from multimae_eo.config import with_statistics
    from multimae_eo.modalities import Statistics

    own = with_statistics(MODALITIES["rgb"], {**MODALITIES["rgb"].statistics, "mine": Statistics((90,) * 3, (40,) * 3)})
    config = demo_config(inputs=("rgb",), targets=("rgb",), modalities={"rgb": own})
    batch = read_images((images() % 256).astype(np.uint8), config, bands=RGB, product="mine")
    assert batch["rgb"].product.tolist() == [2, 2]


@pytest.mark.parametrize(("name", "folder"), [("S2L2A", "S2L2A"), ("S1RTC", "S1RTC")])
def test_units_of_real_scenes_are_not_mistaken(shared, name, folder):
    rasterio = pytest.importorskip("rasterio")
    for path in sorted((shared / "real" / "terramesh" / folder).glob("*.tif")):
        with rasterio.open(path) as file:
            values = file.read().astype(np.float32)
        config = demo_config(inputs=(*CONFIG.inputs, "sar"))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UnusedBandsWarning)
            assert read_images({name: values}, config, units="dn", product="ascending" if "S1" in name else None)
        for modality in MODALITIES.values():
            kept = [i for i, band in enumerate(IMAGE_KEYS[name][0]) if band in modality.bands]
            if kept:
                assert looks_like(modality, values[kept]) is None
                optical = modality.unit == MODALITIES["rgb"].unit
                assert not optical or looks_like(modality, values[kept] / 10_000) == "reflectance"


def test_load_gives_an_encoder_that_takes_arrays(tmp_path):
    torch.manual_seed(0)
    model = MultiMAE(demo_config()).eval()
    loaded = multimae_eo.load(multimae_eo.save(model, tmp_path / "model"))
    seen = loaded.see(images(), bands=RGB, **L2A)
    assert torch.equal(seen.tokens, model.encoder.see({"rgb": plain(images())}).tokens)
    assert seen.mean().shape == (2, 32)
    assert seen.places().shape == (2, 32, 2, 2)
    assert loaded.config.bands[:3] == ("B04", "B03", "B02")


def test_one_product_may_stand_for_every_subset():
    heights = {"DEM": np.full((1, 16, 16), 812.0)}
    assert tuple(read_images(heights, CONFIG, product="L2A")) == ("elevation",)


def test_images_of_two_resolutions_are_refused_by_all_that_pad(encoder):
    """10 m and 20 m bands, as they come in one file each."""
    given = {"S2L2A": images(12, edge=32), "DEM": 800 + images(1, edge=16)}
    with pytest.raises(SizeError, match=r"one size in pixels of 10 m, got .*rgb 32 x 32.*elevation 16 x 16"):
        Backbone(encoder, Stated(None, "dn", None)).see_after(given, [-1])
    task = TaskConfig("regression", "linear_dense", encoder.config.input_modalities)
    with pytest.raises(SizeError, match="Resample them first"):
        Predictor(encoder.config, task)(read_images(given, encoder.config, units="dn"))


def test_a_coarse_grid_reaches_over_the_edge_of_its_own_pixels_only():
    strides = {"rgb": 1, "nir": 1, "land_cover": 4}

    def frame(rgb: int, nir: int, cover: int):
        edges = {"rgb": rgb, "nir": nir, "land_cover": cover}
        blank = {n: (torch.zeros(1, 1, e, e), torch.ones(1, 1, e, e, dtype=torch.bool)) for n, e in edges.items()}
        return pad({n: Raster(*b, torch.zeros(1)) for n, b in blank.items()}, strides=strides, multiple=8)

    assert frame(61, 61, 16)["rgb"].values.shape[-1] == 64
    for wrong in ((64, 61, 16), (60, 60, 16), (65, 65, 16)):
        with pytest.raises(SizeError, match="one size"):
            frame(*wrong)


def test_radar_of_power_with_some_noise_below_zero():
    power = images(2).astype(np.float32) / 20_000
    assert looks_like(MODALITIES["sar"], power) == "linear power"
    power[0, 0, 0, 0] = -0.001
    assert looks_like(MODALITIES["sar"], power) == "linear power"
    assert looks_like(MODALITIES["sar"], 10 * np.log10(np.abs(power) + 1e-6)) is None
    assert looks_like(MODALITIES["sar"], power - 101) == "none of this unit"


def test_the_unit_of_each_key_is_judged(encoder):
    """Keys may be missing in a batch."""
    wrong = {"S2L2A": images(12).astype(np.float32) / 10_000}
    backbone = Backbone(encoder, Stated(None, "dn", None))
    backbone.see_after({"DEM": 800 + images(1)}, [-1])
    with pytest.raises(DataError, match="reflectance"):
        backbone.see_after(wrong, [-1])
    backbone.see_after({"S2L2A": images(12)}, [-1])
    backbone.see_after(wrong, [-1])  # once judged, a key is trusted: to look again would wait for the device


def test_no_modality_is_lost_side_by_side(encoder):
    backbone = Backbone(encoder, Stated({"optical": RGB}, "dn", "L2A"), merge="concat")
    seen = backbone.see_after({"optical": images(), "DEM": 800 + images(1)}, [-1])[0]
    with pytest.raises(BatchError, match="elevation is in the images, but bands only tell of rgb"):
        backbone.merged(seen)


def test_blocks_that_a_model_lacks(encoder):
    batch = read_images(images(), encoder.config, bands=RGB, **L2A)
    depth = encoder.config.depth
    assert len(encoder.see_after(batch, [-depth, depth - 1])) == (2 if depth > 1 else 1)
    for block in (depth, -depth - 1):
        with pytest.raises(ConfigError, match=f"there is no block {block}; expected -{depth} to {depth - 1}"):
            encoder.see_after(batch, [block])


@pytest.mark.slow
def test_images_go_through_a_compiled_encoder():
    code = """
import torch
from multimae_eo import Encoder, sized
encoder, images = Encoder(sized("demo")).eval(), torch.randint(200, 3000, (1, 3, 56, 56))
given = {"bands": ["B02", "B03", "B04"], "units": "dn", "product": "L2A"}
with torch.no_grad():
    assert torch.equal(encoder(images, **given), torch.compile(encoder, backend="eager")(images, **given))
"""
    subprocess.run([sys.executable, "-c", code], check=True, timeout=300)


@pytest.mark.parametrize("mark", [-9999, -32768, -3.4e38])
@pytest.mark.parametrize("units", ["dn", "reflectance"])
def test_marks_of_no_data_far_below_zero_are_named(encoder, units, mark):
    values = images().astype(np.float32) / (1 if units == "dn" else 10_000)
    values[:, :, :5] = mark
    with pytest.raises(DataError, match=r"none of this unit\. Set values without a meaning to NaN"):
        encoder.read(values, bands=RGB, units=units, product="L2A")
    assert encoder.read(values, bands=RGB, units=units, product="L2A", judge=False)


def test_whole_numbers_are_no_reflectance(encoder):
    dark = np.random.default_rng(0).integers(1, 3, (1, 3, 16, 16)).astype(np.uint16)  # clipped at 1 over water
    assert encoder.read(dark, bands=RGB, units="dn", product="L2A")["rgb"].valid.all()
    with pytest.raises(DataError, match="looks like reflectance"):
        encoder.read(dark / 9, bands=RGB, units="dn", product="L2A")


def test_dimensions_of_xarray_are_known_by_name(encoder):
    xarray = pytest.importorskip("xarray")
    values = images(size=1, edge=16)[0, :, :, :8]
    plain_array = xarray.DataArray(values, dims=("band", "y", "x"), coords={"band": RGB})
    wanted = encoder.read(plain_array, **L2A)
    for other in (plain_array.transpose("band", "x", "y"), plain_array.transpose("y", "x", "band")):
        assert same(encoder.read(other, **L2A), wanted)
    series = plain_array.expand_dims(time=2, axis=-1)  # [band, y, x, time]
    assert encoder.read(series, **L2A)["rgb"].values.shape == (2, 3, 16, 8)
    single = xarray.Dataset({name: plain_array.sel(band=name, drop=True).transpose("x", "y") for name in RGB})
    assert same(encoder.read(single, **L2A), wanted)


def test_a_model_with_modalities_of_its_own(tmp_path):
    soil = Continuous("soil", ("sm", "st"), "K", {"own": Statistics((1.0, 2.0), (1.0, 1.0))})
    config = dataclasses.replace(
        demo_config(), inputs=("rgb", "soil"), targets=("rgb",), modalities={**MODALITIES, "soil": soil}
    )
    multimae_eo.save(MultiMAE(config), tmp_path / "checkpoint")
    found = multimae_eo.load(tmp_path / "checkpoint")
    values = np.random.default_rng(0).random((1, 2, 16, 16), np.float32)
    assert found.see({"soil": values}).valid.any()
    assert same(found.read(values, bands=["sm", "st"]), found.read({"soil": values}))
    assert same(found.read({"sm": values[:, 0], "st": values[:, 1]}), found.read({"soil": values}))
    for wrong, says in (
        ({"stride": 3}, "do not hold in whole numbers"),
        ({"statistics": {"own": Statistics((1.0,), (1.0,))}}, "expected 2 means and deviations"),
        ({"statistics": {"own": Statistics((1.0, 2.0), (1.0, 0.0))}}, "deviations positive"),
    ):
        changed = {**MODALITIES, "soil": dataclasses.replace(soil, **wrong)}
        with pytest.raises(ConfigError, match=says):
            dataclasses.replace(config, modalities=changed)


def test_statistics_of_a_data_set_are_in_its_numbers():
    own = dataclasses.replace(MODALITIES["rgb"], statistics={"mine": Statistics((0.1,) * 3, (0.05,) * 3)})
    encoder = MultiMAE(dataclasses.replace(demo_config(), modalities={**MODALITIES, "rgb": own})).encoder
    values = images() / np.float32(10_000)
    batch = encoder.read(values, bands=RGB, product="mine")
    assert torch.equal(batch["rgb"].values, torch.from_numpy(values))
    for given in ({"units": "reflectance"}, {"offset": 1000}):
        with pytest.raises(ConfigError, match="in the numbers that it has"):
            encoder.read(values, bands=RGB, product="mine", **given)


def test_unsigned_tensors_are_as_good_as_arrays(encoder):
    codes = np.random.default_rng(0).choice([10, 20, 30], (1, 16, 16)).astype(np.uint16)
    given = {"land_cover": torch.from_numpy(codes), "rgb": torch.from_numpy(images(size=1))}
    arrays = {"land_cover": codes, "rgb": images(size=1)}
    assert same(encoder.read(given, **L2A), encoder.read(arrays, **L2A))
