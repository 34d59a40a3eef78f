"""README and docs/: tables are what the files say, commands exist, links lead somewhere."""
import re
from pathlib import Path

import pytest

import vega3d
from bench.tables.fill import update

ROOT = Path(__file__).resolve().parents[1]
PAGES = sorted((ROOT / "docs").glob("*.md"))


def test_the_pages_are_there_and_short():
    assert {page.stem
            for page in PAGES} >= {
                "when-int8-does-not-help", "bring-your-own-video", "real-wan", "jetson",
                "what-the-numbers-mean"
            }
    short = [page for page in PAGES if page.stem != "results"]  # results.md holds every table
    assert all(len(page.read_text().splitlines()) < 150 for page in short)


def test_the_results_page_has_a_table_of_every_result_file():
    text = (ROOT / "docs" / "results.md").read_text()
    for path in (ROOT / "bench" / "results").glob("*.json"):
        assert f"bench/results/{path.name}</sub>" in text, path.name


def test_every_table_is_what_its_file_says():
    assert update([ROOT / "README.md", *PAGES], ROOT / "bench" / "results", check=True) == []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_every_command_and_option_on_the_page_exists(page, capsys):
    fences = re.findall(r"^ *```\n(.*?)^ *```", page.read_text(), re.DOTALL | re.MULTILINE)
    lines = "\n".join(fences).replace("\\\n", " ").splitlines()
    commands = [line.split(" #")[0].split() for line in lines if line.strip().startswith("vega3d ")]
    inline = [found.split() for found in re.findall(r"`(vega3d [^`]+)`", page.read_text())]
    assert commands or page.stem == "glossary"
    for command in commands + inline:
        helped = _help(command[1:], capsys)
        for option in [word for word in command if word.startswith("--")]:
            assert option in helped, f"{page.name}: {' '.join(command)}: no {option}"


@pytest.mark.parametrize("page", [ROOT / "README.md", *PAGES], ids=lambda page: page.stem)
def test_links_to_files_lead_somewhere(page):
    for link in re.findall(r"\]\(([^)#]+)", page.read_text()):
        assert link.startswith("https://") or (page.parent / link).exists(), f"{page.name}: {link}"


def _help(words: list[str], capsys) -> str:
    """The --help text of a command and its verb, which may be missing, as in `vega3d bench`."""
    verb = [
        word for word in words[:2]
        if not word.startswith("-") and "/" not in word and "." not in word
    ]
    with pytest.raises(SystemExit) as stop:
        vega3d.main([*verb, "--help"])
    assert stop.value.code == 0, verb
    return capsys.readouterr().out
