"""Places: where on Earth a tile lies, its climate, date and sun, as smooth functions of latitude and longitude."""

import math
from dataclasses import dataclass
from datetime import date, timedelta
from functools import lru_cache

import numpy as np

from multimae_eo.data.synthetic.fields import global_fields, stream

# Land (#) in cells of 10 degrees, from 80 N 180 W eastwards and southwards to 60 S. Coarse on purpose: it gives the
# world continents, coasts and interiors, not a map.
_LAND = np.array(
    [
        [c == "#" for c in row]
        for row in (
            "......#####.####.......#.#######....",
            "############.#..#..#################",
            ".....#######.....###############.#..",
            ".....#######.....################...",
            "......####.......##..###########....",
            ".......##.......##############......",
            "........###.....#######..#.##.#.....",
            "..........###....######.....##......",
            "..........#####....###......#####...",
            "..........####.....####.......###...",
            "...........###.....###.......#####..",
            "..........###.......#........#.##..#",
            "..........##....................#.##",
            "...........#........................",
        )
    ]
)
NUM_REGIONS = 200  # so that 1,000 tiles come as five to a region
BLOCK_DEGREES = 5  # of one split; wider than the 1 degree of a region, as neighbouring regions resemble each other
_LAPSE = 0.0065  # K per m, standard atmosphere
Block = tuple[int, int]
_MIN_SUN = math.radians(12)  # Sentinel-2 does not image land with the sun near the horizon
_L1C_SHARE = 0.4

# Worlds are numbered from here whose places, seasons and noise are not those of the others: to see what still holds.
SHIFTED = 2**40
_SHIFTED_LATITUDE = 50  # no place nearer to the equator: taiga, tundra and ice for most of what others are made of
_AUTUMN = (9, 10, 11)  # of the north: low sun, leaves falling, the first snow
_SHIFTED_NOISE = 3.0  # times the deviation of Sentinel-2's noise


@dataclass(frozen=True)
class Place:
    """What is known of a tile before its ground is drawn. Temperatures are degrees C at sea level."""

    lat: float
    lon: float
    day: date
    product: str
    region: int
    land_share: float  # of the surroundings, 0 to 1: coasts below 1
    mean_c: float
    swing_c: float  # half the range between the warmest and the coldest month
    now_c: float  # in the month of the image
    moisture: float  # 0 desert to 1 rain forest
    rain_now: float  # moisture of the season relative to the year, about 0.6 to 1.4
    base_m: float
    relief_m: float
    people: float  # 0 wilderness to 1 city
    redness: float  # of soils, 0 to 1
    sun_altitude: float  # radians
    sun_azimuth: float  # radians clockwise from north
    noise: float  # deviation of a sensor's noise, relative to the nominal one

    def celsius(self, height_m: np.ndarray, at: str = "mean") -> np.ndarray:
        """Temperature at heights: of the year ("mean"), of the warmest month ("warmest"), of the image ("now")."""
        level = {"mean": self.mean_c, "warmest": self.mean_c + self.swing_c, "now": self.now_c}[at]
        return level - _LAPSE * height_m

    @property
    def crs(self) -> str:
        zone = int((self.lon + 180) // 6) % 60 + 1
        return f"EPSG:{(32600 if self.lat >= 0 else 32700) + zone}"


@lru_cache(maxsize=8)
def regions(seed: int) -> np.ndarray:
    """South-west corners (lat, lon) of `NUM_REGIONS` regions of 1 degree, each in a block of its own; int [n, 2].

    Cells are drawn by their area.
    """
    rows, columns = np.nonzero(np.kron(_LAND, np.ones((2, 2), bool)))
    rng = stream(seed, 2**64 - 2)
    latitude = 77.5 - BLOCK_DEGREES * rows
    area = np.cos(np.radians(latitude))
    if seed >= SHIFTED:
        area *= np.abs(latitude) > _SHIFTED_LATITUDE
    chosen = rng.choice(len(rows), NUM_REGIONS, replace=False, p=area / area.sum())
    inside = rng.integers(0, BLOCK_DEGREES, (NUM_REGIONS, 2))
    corner = np.stack([75 - BLOCK_DEGREES * rows[chosen], BLOCK_DEGREES * columns[chosen] - 180], axis=1)
    return corner + inside


def block_of(lat: float, lon: float) -> Block:
    """Row and column of the block that decides a place's split."""
    return math.floor(lat / BLOCK_DEGREES), math.floor(lon / BLOCK_DEGREES)


def tile_block(seed: int, index: int) -> Block:
    """The block in which a tile lies: round robin over the world's regions, so that neighbours in number differ."""
    lat, lon = regions(seed)[index % NUM_REGIONS]
    return block_of(float(lat), float(lon))


def split_draw(seed: int, block: Block) -> float:
    """A uniform number of a block, by which it is held out; a function of the seed and the block only."""
    return float(stream(seed, 2**63 + 1000 * (block[0] + 100) + block[1] + 500).random())


def _land_share(lat: float, lon: float) -> float:
    """Bilinear in the map of cells, so that it is smooth and says how near the sea is."""
    row, column = (80 - lat) / 10 - 0.5, (lon + 180) / 10 - 0.5
    r, c = math.floor(row), math.floor(column)
    share = 0.0
    for i, wi in ((r, r + 1 - row), (r + 1, row - r)):
        for j, wj in ((c, c + 1 - column), (c + 1, column - c)):
            share += wi * wj * float(_LAND[min(max(i, 0), len(_LAND) - 1), j % 36])
    return share


def sun(lat: float, day_of_year: int) -> tuple[float, float]:
    """Altitude and azimuth (radians, clockwise from north) at 10:30 local solar time, the pass of Sentinel-2."""
    declination = math.radians(23.44) * math.sin(2 * math.pi * (284 + day_of_year) / 365)
    hour, phi = math.radians(-22.5), math.radians(lat)
    up = math.sin(phi) * math.sin(declination) + math.cos(phi) * math.cos(declination) * math.cos(hour)
    east = -math.cos(declination) * math.sin(hour)
    north = math.sin(declination) * math.cos(phi) - math.cos(declination) * math.cos(hour) * math.sin(phi)
    return math.asin(up), math.atan2(east, north) % (2 * math.pi)


def _zonal_moisture(lat: float) -> float:
    """Rain belts at the equator and at 52 degrees, deserts at 25 degrees and towards the poles."""
    a = abs(lat)
    return (
        0.36
        + 0.42 * math.exp(-((a / 11) ** 2))
        - 0.16 * math.exp(-(((a - 25) / 8) ** 2))
        + 0.26 * math.exp(-(((a - 52) / 15) ** 2))
    )


def _date(rng: np.random.Generator, lat: float, shifted: bool) -> date:
    """A day with enough light; in shifted worlds one of autumn."""
    start = date(2017, 1, 1)
    days = [start + timedelta(days=int(d)) for d in rng.integers(0, 1461, 24)]  # to the end of 2020
    lit = [d for d in days if sun(lat, d.timetuple().tm_yday)[0] > _MIN_SUN]
    if shifted:
        months = _AUTUMN if lat >= 0 else [m - 6 for m in _AUTUMN]
        return next((d for d in lit if d.month in months), date(days[0].year, months[0], 15))
    return next(iter(lit), date(days[0].year, 6, 21))


def draw_place(rng: np.random.Generator, seed: int, index: int) -> Place:
    """The place of a tile: round robin over the world's regions, anywhere inside, on a day with enough light."""
    region = index % NUM_REGIONS
    lat, lon = (float(v) for v in regions(seed)[region] + rng.uniform(0.02, 0.98, 2))
    height, relief, wet, people, soil, warmth = (float(v) for v in global_fields(seed, lat, lon))
    land = _land_share(lat, lon)
    day = _date(rng, lat, seed >= SHIFTED)
    altitude, azimuth = sun(lat, day.timetuple().tm_yday)
    # 27 C at the equator, 12 C at 45 and -11 C at 75 degrees; summers and winters grow with latitude and continent.
    mean = 27.0 - 43.0 * abs(math.sin(math.radians(lat))) ** 3 + 1.5 * warmth
    swing = 1.0 + abs(lat) * (0.08 + 0.20 * land)
    warm_day = 200 if lat >= 0 else 17
    season = math.cos(2 * math.pi * (day.timetuple().tm_yday - warm_day) / 365)
    # Rain falls in summer in the tropics, in winter around 36 degrees (Mediterranean climates), evenly beyond.
    summer_rain = 0.45 * math.exp(-(((abs(lat) - 14) / 10) ** 2)) - 0.40 * math.exp(-(((abs(lat) - 36) / 6) ** 2))
    local = rng.standard_normal(3).tolist()  # places of one region differ, less than regions do
    ruggedness = 1.1 * relief + 0.5 * height + 0.6 * local[0]
    return Place(
        lat=lat,
        lon=lon,
        day=day,
        product="L1C" if rng.random() < _L1C_SHARE else "L2A",
        region=region,
        land_share=land,
        mean_c=mean,
        swing_c=swing,
        now_c=mean + swing * season,
        moisture=min(max(_zonal_moisture(lat) + 0.14 * wet - 0.12 * (land - 0.6) + 0.03 * local[1], 0.02), 1.0),
        rain_now=1.0 + summer_rain * season,
        # Half of the land lies below 400 m, a tenth above 1,500 m (hypsometry); mountains stand high.
        base_m=min(380.0 * math.exp(1.0 * height + 0.30 * relief + 0.15 * local[0]), 5200.0),
        # Deviation of height within 640 m: 1 m on plains, 10 m in hills, and no more than hillsides of 40 degrees hold.
        relief_m=min(max(9.0 * math.exp(ruggedness), 0.6), 60.0),
        people=float(1 / (1 + math.exp(-(1.1 * people + 0.9 * local[2] - 0.4)))),
        redness=min(max(0.35 + 0.25 * soil + 0.02 * (mean - 12), 0.0), 1.0),
        sun_altitude=altitude,
        sun_azimuth=azimuth,
        noise=_SHIFTED_NOISE if seed >= SHIFTED else 1.0,
    )
