"""YAML files of `vega3d distill run --config`, and their values on the command line."""
from collections.abc import Iterator
from pathlib import Path

from tests.hostile.case import Case

TEXTS = {
    "nested lists": "[" * 20_000,
    "nested mappings": "{a: " * 20_000,
    "nested lists, closed": "[" * 5000 + "]" * 5000,
    "nested under a key": "student: " + "[" * 3000 + "]" * 3000,
    "indented 3000 deep": "".join(" " * i + "a:\n" for i in range(3000)),
    "a key twice": "name: a\nname: b\n",
    "a nested key twice": "student: {lr: 0.1, lr: 0.2}\n",
    "a number of 5000 digits": "heads: {steps: " + "9" * 5000 + "}\n",
    "a hexadecimal number of 5000 digits": "heads: {steps: 0x" + "f" * 5000 + "}\n",
    "a number in base 60 of 5000 digits": "seeds: [1" + ":59" * 2000 + "]\n",
    "a number in base 60": "heads: {steps: 1:30}\n",
    "an octal number": "student: {epochs: 010}\n",
    "an impossible date": "name: !!timestamp 2026-13-45\n",
    "a date": "seeds: 2026-11-28\n",
    "an integer tag without digits": "heads: {steps: !!int ''}\n",
    "a bool that is none": "name: !!bool perhaps\n",
    "base64 that is none": "name: !!binary '***'\n",
    "a Python object": "name: !!python/object/apply:os.system [true]\n",
    "an unknown tag": "name: !new 3\n",
    "a list as key": "? [a, b]\n: 3\n",
    "an alias of itself": "&a [*a]\n",
    "an alias of itself in a mapping": "student: &s {model: *s}\n",
    "an alias of nothing": "name: *b\n",
    "a NUL": "name: \"a\\0b\"\n",
    "an escape": "name: \"\\e[2J\"\n",
    "a control character": "name: \x07\n",
    "a tab": "student:\n\tlr: 1\n",
    "two documents": "name: a\n---\nname: b\n",
    "a list": "- name\n",
    "a word": "hello\n",
    "false": "false\n",
    "zero": "0\n",
    "an empty list": "[]\n",
    "a merge of a number": "<<: 3\n",
    "a key that is a number": "3: 4\n",
    "a key of 100 kB": "k" * 100_000 + ": 1\n",
    "a value of 100 kB": "device: " + "v" * 100_000 + "\n",
    "a megabyte": "# " + "x" * 10**6 + "\n",
}


def bomb(levels: int) -> str:
    """An alias bomb: 10^levels values."""
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x, x]"]
    lines += [f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 10)}]" for i in range(1, levels)]
    return "\n".join(lines) + "\n"


def yaml_files() -> Iterator[Case]:
    texts = TEXTS | {f"an alias bomb of 10^{n}": bomb(n) for n in (5, 8, 30)}
    texts["an alias bomb as a value"] = "student: {lr: &a0 [x, x, x, x, x, x, x, x, x]}\n" + bomb(9)
    texts["a merge bomb"] = "a: &a {b: 1}\n" + "".join(
        f"m{i}: &m{i} {{<<: [{', '.join([f'*m{i - 1}' if i else '*a'] * 10)}]}}\n"
        for i in range(8))
    for name, text in texts.items():
        yield Case("yaml", name, _config(text.encode()), "hostile.yaml")
    for name, data in {"not UTF-8": b"name: \xff\xfe\n", "zeros": bytes(1000),
                       "UTF-16": "name: a\n".encode("utf-16")}.items():
        yield Case("yaml", name, _config(data), "hostile.yaml")


def _config(data: bytes):
    def make(folder: Path) -> list[str]:
        (folder / "hostile.yaml").write_bytes(data)
        return ["distill", "run", "--config", "hostile.yaml"]
    return make


CORPUS = (yaml_files,)
