"""The everyday noun a question uses for each of the names that furniture models come with."""
import re

_PATTERNS = (
    (r"milk", "milk bottle"), (r"butter", "butter dish"), (r"bread", "loaf of bread"),
    (r"bootie", "baby shoe"), (r"scissors", "pair of scissors"), (r"slippers", "pair of slippers"),
    (r"headphones", "pair of headphones"), (r"radiator|heater", "radiator"),
    (r"extinguisher", "fire extinguisher"), (r"dustbin|trash can|bin", "trash bin"),
    (r"range hood|hood", "range hood"), (r"towel rack", "towel rack"),
    (r"toilet paper dispenser", "paper dispenser"), (r"toilet brush", "toilet brush"),
    (r"plant box|flower box|.*plants?|ficus|bonsai|cactus|orchids?|bamboo|yucca|"
     r"tulips?|lily|flowers?|succulent", "plant"),
    (r"armchair", "armchair"), (r"stool", "stool"), (r"bench", "bench"),
    (r"rocking horse", "rocking horse"), (r"chair|seat", "chair"), (r"sofa|couch", "sofa"),
    (r"bedside table|nightstand", "nightstand"), (r"coffee table", "coffee table"),
    (r"side table", "side table"), (r"desk lamp|floor lamp", "lamp"), (r"desk", "desk"),
    (r"table fan|fan", "fan"), (r"table", "table"), (r"baby bed|crib", "crib"), (r"bed", "bed"),
    (r"wall shelf", "wall shelf"), (r"bookcase|(?<!upper )shelves|shelf", "bookshelf"),
    (r"upper.*cabinet|upper shelves", "wall cabinet"), (r"glass door cabinet", "wall cabinet"),
    (r"television cabinet|tv stand", "tv stand"), (r"sink", "sink"),
    (r"wardrobe|cupboard|high cabinet", "wardrobe"),
    (r"cabinet|island extension|drawers|chest", "cabinet"), (r"locker", "locker"),
    (r"fridge|refrigerator", "refrigerator"), (r"coffee brewer|coffee maker", "coffee maker"),
    (r"oven", "oven"), (r"washing machine", "washing machine"), (r"toilets unit|toilet", "toilet"),
    (r"washbasin|vanity|lavatory", "washbasin"), (r"shower", "shower"),
    (r"bathtub|bath", "bathtub"),
    (r"ceiling light|chandelier|hanging lamp|pendant", "ceiling light"),
    (r"wall light|lantern", "wall light"), (r"lamp|light", "lamp"), (r"tv|television", "tv"),
    (r"speakers?", "speaker"), (r"computer|laptop|imac", "computer"), (r"piano", "piano"),
    (r"guitar", "guitar"), (r"clock", "clock"), (r"rug|carpet|mat", "rug"))
# the first match wins; a name without a match stays as it is
_RULES = tuple((re.compile(rf"\b({pattern})\b"), noun) for pattern, noun in _PATTERNS)


def noun_of(name: str, bottom: float = 0.0) -> str:
    """The noun of an object, its underside `bottom` m up: a lamp above 1.7 m is a ceiling light."""
    name = re.sub(r"\s*\d+$", "", name.lower()).strip()
    noun = next((noun for rule, noun in _RULES if rule.search(name.split(" with ")[0])), name)
    return "ceiling light" if noun == "lamp" and bottom > 1.7 else noun


def with_article(noun: str) -> str:
    return f"{'an' if noun[0] in 'aeiou' else 'a'} {noun}"


def plural(noun: str) -> str:
    if noun.endswith(("shelf", "knife")):
        return f"{noun.removesuffix('e')[:-1]}ves"
    return f"{noun}es" if noun.endswith(("s", "x", "ch", "sh")) else f"{noun}s"
