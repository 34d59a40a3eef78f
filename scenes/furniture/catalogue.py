"""The libraries of the Debian package sweethome3d-furniture: each model's class and role."""
import re
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

CC0 = "CC0-1.0"
LICENCES = {"BlendSwap-CC-0": CC0, "BlendSwap-CC-BY": "CC-BY-3.0", "KatorLegaz": "CC-BY-3.0-US",
            "Reallusion": "CC-BY-3.0-US", "Scopia": "CC-BY-3.0"}

# (category/name, class, role); the first match wins, "" leaves a model out. Recipes place by role.
RULES = tuple((re.compile(pattern), category, role) for pattern, category, role in (
    (r"^(characters|people)/", "decor", "person"),
    (r"^(vehicles|staircases|doors and windows)/", "", ""),
    (r"^exterior/(cafe chair|rattan armchair|teck chair)", "chair", "chair"),
    (r"^exterior/cafe table", "table", "dining"), (r"^exterior/rattan sofa", "sofa", "sofa"),
    (r"^exterior/rattan table", "table", "coffee"),
    (r"^exterior/(flower box|plant box)", "plant", "floor"),
    (r"^exterior/|table tennis|pool table|football table|wheelchair|shipping|fence|railing|tatami|"
     r"fork lift|mower|chimney|pallet|cone$|furnace|socket|plug|switch|bill |dress$|jacket|"
     r"trousers|skirt|short$|glove|sleeping bag|air mattress|blind|shutter|screen door|"
     r"shower (door|curtain)|camping|flashlight|park light|street|lamppost|outdoor lamp|"
     r"porch light|trap|ring$|workbench|step ladder|flipper|abdominal|treadmill|fitness|"
     r"indoor bike|water heater|cutting pliers|grinder|saw$|shovel|rake|hammer|drill|screwdriver|"
     r"white board|surveillance|clothes horse|hanging clothes|suit$|coathanger|clothes hanger|"
     r"towel$|emergency|number lock|double vanity|ceiling fan|elevator|urinal|hospital|"
     r"opened convertible|kitchen tools|knife stand|cctv|smoke|potty|stapler|curtain|induction|"
     r"cooktop|kitchen/stove|kitchen/hood|iphone|mobile phone|basketball net|technical table|"
     r"ruler", "", ""),
    (r"xylophone|tablet|penbox", "decor", "top"), (r"island bath", "sanitary", "bath"),
    (r"kitchen/upper shelves", "storage", "upper"), (r"bedside table", "table", "bedside"),
    (r"dressing table", "table", "desk"), (r"baby bed|crib", "bed", "crib"),
    (r"couch|sofa", "sofa", "sofa"), (r"\bbed$|bedroom/futon", "bed", "bed"),
    (r"office/(armchair|chair)|class seat", "chair", "office"),
    (r"child(ren)? chair", "chair", "stool"),
    (r"baby high chair|bar stool|bar chair|kitchen/stool", "chair", "bar"),
    (r"stool|piano bench|living room/bench", "chair", "stool"),
    (r"armchair|ryokan|puff|leaf chair", "chair", "armchair"), (r"chair", "chair", "chair"),
    (r"changing table|television cabinet|tv stand", "storage", "low"),
    (r"table fan|rigged fan", "appliance", "top"),
    (r"coffee table|children table", "table", "coffee"), (r"bar table", "table", "dining"),
    (r"desk lamp", "lamp", "top"), (r"office/.*(desk|table)", "table", "desk"),
    (r"table", "table", "dining"),
    (r"wardrobe|cupboard|high cabinet|clothes rack|bookcase|shelves|contemporary living|"
     r"living room/box|office/box|doll house", "storage", "tall"),
    (r"upper|glass door cabinet", "storage", "upper"), (r"corner cabinet", "", ""),
    (r"sink cabinet|kitchen/sink", "storage", "sink"),
    (r"kitchen/.*cabinet|island", "storage", "counter"),
    (r"dresser|chest$|filing|safe$|locker", "storage", "low"),
    (r"fridge|refrigerator|freezer", "appliance", "fridge"),
    (r"washing machine|dryer machine", "appliance", "washer"),
    (r"large stove|propane", "appliance", "oven"), (r"small oven|microwave", "appliance", "top"),
    (r"oven", "appliance", "oven"), (r"range hood", "appliance", "hood"),
    (r"radiator|fireplace", "appliance", "radiator"), (r"air conditioning", "appliance", "wall"),
    (r"water cooler", "appliance", "floor"),
    (r"coffee (brewer|maker|machine)|mixer|blender|toaster|cooker|fryer|sandwich|boiler|kettle|"
     r"scale|squeezer|grill", "appliance", "top"),
    (r"corner bathtub|island bath|bathroom/bath$|shower stall", "sanitary", "bath"),
    (r"shower head", "", ""), (r"vanity|washbasin|lavatory", "sanitary", "basin"),
    (r"bathroom/basin", "", ""), (r"toilets unit|bidet", "sanitary", "toilet"),
    (r"towel rack|toilet paper", "decor", "wall"), (r"wall flat tv", "electronics", "wall"),
    (r"living room/tv( 16:9)?$", "electronics", "tv"),
    (r"laptop|imac|ibook", "electronics", "computer"),
    (r"phone|speaker|stereo|radio|dvd|playstation|printer|projector|mp3|amplifier|tablet|keyboard|"
     r"joystick|remote|camera", "electronics", "top"),
    (r"lights/(wall|japanese)", "lamp", "wall"),
    (r"lights/.*(hanging|chandelier|pendant|ceiling|track|fluorescent)", "lamp", "ceiling"),
    (r"lights/lamp$|lights/", "lamp", "top"),
    (r"plant|ficus|bonsai|cactus|orchid|bamboo|yucca|spathi|tulip|lily|flowers|christmas|"
     r"succulent", "plant", "top"),
    (r"rug$|carpet|mat$", "rug", "rug"), (r"intercom", "decor", "wall"),
    (r"^kitchen/(broom|bullet|shopping)|dustbin|recycling|extinguisher|umbrella|guitar|rocking|"
     r"crate|barrel|box$|trunck|suitcase|water|basket|backpack|brush$|briefcase|wood logs|punching|"
     r"vase5|screen$|piano|toy train|gift|aquarium", "decor", "floor"),
    (r"dart|cuckoo|wall hanger|thermometer", "decor", "wall"), (r"^kitchen/", "tableware", "top"),
    (r"", "decor", "top"),
))


@dataclass(frozen=True)
class Entry:
    """One catalogue entry. Sizes are metres: width, depth, height; the model's front faces -Y."""
    id: str
    name: str
    category: str                      # one of scenes.furniture.CLASSES
    role: str
    path: str                          # of the OBJ inside the library
    size: tuple[float, float, float]
    elevation: float                   # of its underside above the floor
    rotation: np.ndarray               # [3,3], turns the OBJ's axes before scaling
    creator: str
    licence: str


def read_catalogue(folder: Path,
                   licence: str = "all") -> Iterator[tuple[zipfile.ZipFile, list[Entry]]]:
    """Each library ("cc0": the public-domain one) with its entries; ValueError if there is none."""
    paths = [folder / f"{name}.sh3f" for name in LICENCES]
    found = [path for path in paths if path.is_file()]
    if not found:
        raise ValueError(
            f"{folder}: holds no .sh3f library; install the Debian package sweethome3d-furniture, "
            "or unpack it with dpkg -x and pass --library DIR/usr/share/sweethome3d/furniture")
    for path in found:
        if licence == "all" or LICENCES[path.stem] == CC0:
            with zipfile.ZipFile(path) as archive:
                yield archive, list(_entries(archive, path.stem))


def _entries(archive: zipfile.ZipFile, library: str) -> Iterator[Entry]:
    rows: dict[int, dict[str, str]] = {}
    for line in archive.read("PluginFurnitureCatalog.properties").decode("latin-1").splitlines():
        key, _, value = line.partition("=")
        name, _, number = key.strip().partition("#")
        if number.isdigit():
            rows.setdefault(int(number), {})[name] = value.strip()
    for row in rows.values():
        name = row["name"].encode().decode("unicode_escape").lower()
        width, depth, height = size = tuple(float(row[k]) / 100
                                            for k in ("width", "depth", "height"))
        elevation = float(row.get("elevation", 0)) / 100
        category, role = _classify(f"{row['category'].lower()}/{name}", width, depth, height,
                                   elevation)
        if not category or sorted(size)[1] < 0.045 or min(size) < 0.004:
            continue  # not furniture, or too small to be visible
        rotation = np.array(row.get("modelRotation", "1 0 0 0 1 0 0 0 1").split(), float)
        stem = row["model"].rsplit("/", 1)[-1].removesuffix(".obj")
        yield Entry(id=f"{library}/{stem}", name=name.replace("\\", ""), category=category,
                    role=role, path=row["model"].lstrip("/"), size=(width, depth, height),
                    elevation=elevation, rotation=rotation.reshape(3, 3),
                    creator=row.get("creator", library), licence=LICENCES[library])


def _classify(key: str, width: float, depth: float, height: float,
              elevation: float) -> tuple[str, str]:
    category, role = next((c, r) for pattern, c, r in RULES if pattern.search(key))
    side = max(width, depth)
    # the largest size, sideways and upwards, of what stands on furniture
    limits = {"lamp": (np.inf, 1.0), "plant": (0.5, 0.45), "decor": (0.75, 0.75),
              "electronics": (0.75, 0.75), "tableware": (0.75, 0.75)}.get(category)
    if role == "basin" and elevation == 0 and height < 0.6:
        return "", ""
    if role == "dining":
        role = "coffee" if height < 0.57 else "bedside" if side < 0.6 else role
    elif role == "tall" and height < 1.0:
        role = "low"
    elif role == "top" and limits and (side > limits[0] or height > limits[1]):
        role = "floor"
    elif role == "top" and category == "lamp" and elevation > 1.4:
        role = "ceiling"
    elif role == "floor" and category == "decor" and max(side, height) < 0.25:
        role = "top"
    return category, role
