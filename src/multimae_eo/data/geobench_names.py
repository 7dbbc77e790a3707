"""The names of the classes of the GEO-Bench v1 sets and of the synthetic ones, in the order of their indices."""

from multimae_eo.modalities import MapClass

# The folders of EuroSAT in alphabetical order; the names that the set's own task_specs.pkl gives are in another order.
EUROSAT = (
    *("Annual crop", "Forest", "Herbaceous vegetation", "Highway", "Industrial buildings", "Pasture"),
    *("Permanent crop", "Residential buildings", "River", "Sea and lake"),
)

# Local climate zones 1 to 10 and A to G (Stewart and Oke, 2012).
LOCAL_CLIMATE_ZONES = (
    *("Compact high-rise", "Compact mid-rise", "Compact low-rise", "Open high-rise", "Open mid-rise", "Open low-rise"),
    *("Lightweight low-rise", "Large low-rise", "Sparsely built", "Heavy industry", "Dense trees", "Scattered trees"),
    *("Bush or scrub", "Low plants", "Bare rock or paved", "Bare soil or sand", "Water"),
)

# Level 3 of CORINE Land Cover 2018 in the order of its codes, without glaciers, which occur in no patch.
BIGEARTHNET = (
    "Continuous urban fabric",
    "Discontinuous urban fabric",
    "Industrial or commercial units",
    "Road and rail networks and associated land",
    "Port areas",
    "Airports",
    "Mineral extraction sites",
    "Dump sites",
    "Construction sites",
    "Green urban areas",
    "Sport and leisure facilities",
    "Non-irrigated arable land",
    "Permanently irrigated land",
    "Rice fields",
    "Vineyards",
    "Fruit trees and berry plantations",
    "Olive groves",
    "Pastures",
    "Annual crops associated with permanent crops",
    "Complex cultivation patterns",
    "Land principally occupied by agriculture, with significant areas of natural vegetation",
    "Agro-forestry areas",
    "Broad-leaved forest",
    "Coniferous forest",
    "Mixed forest",
    "Natural grassland",
    "Moors and heathland",
    "Sclerophyllous vegetation",
    "Transitional woodland/shrub",
    "Beaches, dunes, sands",
    "Bare rock",
    "Sparsely vegetated areas",
    "Burnt areas",
    "Inland marshes",
    "Peatbogs",
    "Salt marshes",
    "Salines",
    "Intertidal flats",
    "Water courses",
    "Water bodies",
    "Coastal lagoons",
    "Estuaries",
    "Sea and ocean",
)

FORESTNET = (
    *("Oil palm plantation", "Timber plantation", "Other large-scale plantations", "Grassland shrubland"),
    *("Small-scale agriculture", "Small-scale mixed plantation", "Small-scale oil palm plantation", "Mining"),
    *("Fish pond", "Logging", "Secondary forest", "Other"),
)

CASHEW = (
    *("No data", "Well-managed plantation", "Poorly-managed plantation", "Non-plantation", "Residential"),
    *("Background", "Uncertain"),
)

SOUTH_AFRICA = (
    *("No data", "Lucerne or medics", "Planted pastures (perennial)", "Fallow", "Wine grapes", "Weeds"),
    *("Small grain grazing", "Wheat", "Canola", "Rooibos"),
)

CHESAPEAKE = (
    *("No data", "Water", "Tree canopy and forest", "Low vegetation and field", "Barren land"),
    *("Impervious (other)", "Impervious (roads)"),
)

SYNTHETIC = (
    MapClass(0, "Open water", "#1f5fa8"),
    MapClass(1, "Snow and ice", "#dfeaf2"),
    MapClass(2, "Built-up", "#c0282d"),
    MapClass(3, "Bare ground", "#b49a7a"),
    MapClass(4, "Green grass or shrub", "#9bd770"),
    MapClass(5, "Dry grass or shrub", "#dcc95a"),
    MapClass(6, "Growing crops", "#e58ad6"),
    MapClass(7, "Bare or harvested field", "#8a5a3c"),
    MapClass(8, "Needle-leaved forest", "#0f4d2a"),
    MapClass(9, "Broad-leaved forest in leaf", "#2f9440"),
    MapClass(10, "Broad-leaved forest without leaves", "#7d6b8f"),
    MapClass(11, "Wetland or mangrove", "#1fa49a"),
)
