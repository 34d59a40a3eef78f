"""YAML files: plain values only, of bounded size and depth, without a key given twice."""
import re
from pathlib import Path
from typing import Any

import yaml

from records.files import MAX_DEPTH, read_text, unique_keys

MAX_BYTES = 2**18   # a complete run's configuration has 2**11
MAX_VALUES = 10_000  # with every alias written out

_FLOAT = re.compile(r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)[eE][-+]?[0-9]+$")


def write_yaml(content: Any) -> str:
    """Dicts, lists, text, numbers and None as YAML that `read_yaml` reads back."""
    return yaml.dump(content, Dumper=_Dumper, sort_keys=False)


def read_yaml(path: Path, remedy: str) -> Any:
    """Dicts, lists, text (dates too), numbers, None. ValueError with `remedy` for the rest."""
    text = read_text(path, MAX_BYTES)
    try:
        return yaml.load(text, _Loader)
    except yaml.MarkedYAMLError as error:
        mark, reason = error.problem_mark, error.problem or error.context
        where = f"line {mark.line + 1}, column {mark.column + 1}: " if mark else ""
        raise ValueError(f"{path}: not YAML ({where}{reason}); {remedy}") from error
    # of values that PyYAML takes for a number, a date or base64, and are none
    except (yaml.YAMLError, ValueError, LookupError, TypeError, AttributeError) as error:
        reason = " ".join(str(error).split())
        raise ValueError(f"{path}: not YAML ({reason}); {remedy}") from error


class _Loader(yaml.SafeLoader):
    """SafeLoader with limits; aliases count as what they stand for."""
    yaml_implicit_resolvers = {  # noqa: RUF012 (as PyYAML declares it)
        first: [(tag, pattern) for tag, pattern in resolvers if not tag.endswith(":timestamp")]
        for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }

    def __init__(self, text: str):
        super().__init__(text)
        self._depth = self._values = 0
        self._sizes: dict[int, int] = {}  # of complete nodes, by id

    def compose_node(self, parent: Any, index: Any) -> Any:
        alias, before = self.check_event(yaml.AliasEvent), self._values
        self._depth += 1
        if self._depth > MAX_DEPTH:
            raise ValueError(f"nested deeper than {MAX_DEPTH} levels")
        node = super().compose_node(parent, index)
        self._depth -= 1
        if alias and id(node) not in self._sizes:
            raise ValueError("an alias stands inside what it refers to")
        self._values += self._sizes[id(node)] if alias else 1
        self._sizes.setdefault(id(node), self._values - before)
        if self._values > MAX_VALUES:
            raise ValueError(f"more than {MAX_VALUES} values, with every alias written out")
        return node

    def construct_mapping(self, node: Any, deep: bool = False) -> dict[Any, Any]:
        keys = [(self.construct_object(key, deep=True), None) for key, _ in node.value
                if key.tag != "tag:yaml.org,2002:merge"]
        unique_keys(keys)
        return super().construct_mapping(node, deep)

    def construct_yaml_int(self, node: Any) -> int:
        if re.match(r"[-+]?0[0-9_]|.*:", node.value):
            raise ValueError(f"{node.value[:20]} is a number of base 8 or 60; write it in decimal")
        value = super().construct_yaml_int(node)
        if not -2**63 <= value < 2**64:
            raise ValueError(f"the number {node.value[:20]}… has {len(node.value)} digits")
        return value


class _Dumper(yaml.SafeDumper):
    """Quotes text that _Loader would read as a number."""


_Loader.add_constructor("tag:yaml.org,2002:int", _Loader.construct_yaml_int)
for _each in (_Loader, _Dumper):  # YAML 1.2's floats: 1.1 takes 1e-4 and 1e3 for text
    _each.add_implicit_resolver("tag:yaml.org,2002:float", _FLOAT, list("-+.0123456789"))
