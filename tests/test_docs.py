"""README and docs/: tables are what the files say, commands exist, links lead somewhere."""
import re
from pathlib import Path

import pytest

import vega3d
from bench.tables.fill import update

ROOT = Path(__file__).resolve().parents[1]
README = ROOT / "README.md"
RESULTS = ROOT / "docs" / "results.md"
PAGES = sorted((ROOT / "docs").glob("*.md"))
CARDS = sorted(ROOT.glob("*/weights/*/README.md"))
LINKING = {str(page.relative_to(ROOT)): page for page in [README, *PAGES, *CARDS]}


def test_the_pages_are_there_and_short():
    assert {page.stem for page in PAGES} >= {
        "when-int8-does-not-help", "bring-your-own-video", "real-wan", "jetson", "rooms",
        "language", "what-the-numbers-mean", "results"}
    assert all(len(page.read_text().splitlines()) <= 110 for page in PAGES if page != RESULTS)


def test_the_readme_is_short_and_mostly_prose():
    lines = README.read_text().splitlines()
    assert len(lines) <= 150
    assert sum(line.startswith("|") for line in lines) <= 0.15 * len(lines)


def test_result_tables_stand_on_the_results_page_alone():
    others = [page for page in PAGES if page != RESULTS]
    assert not [page.name for page in others if "<!-- results:" in page.read_text()]


def test_the_results_page_has_a_table_of_every_result_file():
    text = RESULTS.read_text()
    for path in (ROOT / "bench" / "results").glob("*.json"):
        assert f"bench/results/{path.name}</sub>" in text, path.name


def test_every_table_is_what_its_file_says():
    assert update([README, *PAGES], ROOT / "bench" / "results", check=True) == []


@pytest.mark.parametrize("page", LINKING.values(), ids=LINKING)
def test_every_command_and_option_on_the_page_exists(page, capsys):
    fences = re.findall(r"^ *```\n(.*?)^ *```", page.read_text(), re.DOTALL | re.MULTILINE)
    lines = "\n".join(fences).replace("\\\n", " ").splitlines()
    commands = [line.split(" #")[0].split() for line in lines if line.strip().startswith("vega3d ")]
    inline = [found.split() for found in re.findall(r"`(vega3d [^`]+)`", page.read_text())]
    assert commands
    for command in commands + inline:
        helped = _help(command[1:], capsys)
        for option in [word for word in command if word.startswith("--")]:
            assert option in helped, f"{page.name}: {' '.join(command)}: no {option}"


@pytest.mark.parametrize("page", LINKING.values(), ids=LINKING)
def test_links_lead_to_a_file_and_to_a_heading_of_it(page):
    for link, anchor in re.findall(r"\]\(([^)#]*)#?([^)]*)\)", page.read_text()):
        target = page.parent / link if link else page
        assert link.startswith("https://") or target.exists(), f"{page.name}: {link}"
        assert not anchor or anchor in _anchors(target), f"{page.name}: {link}#{anchor}"


def _anchors(page: Path) -> list[str]:
    """Of its headings, as GitHub makes them."""
    headings = re.findall(r"^#+ (.+)$", page.read_text(), re.MULTILINE)
    return [re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings]


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
