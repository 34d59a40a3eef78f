"""The page: whole or in part it renders, takes nothing from outside, says what is missing, and fits
a phone."""
import re
from dataclasses import replace
from html.parser import HTMLParser
from itertools import pairwise

import pytest
from markupsafe import escape

from bench.recipes.chromium import CHROMIUM, browser
from bench.report.axes import tick_labels
from bench.report.charts import Point, front
from bench.report.findings import findings, int8_finding
from bench.report.page import PAGE, write_report
from export.parity import THRESHOLDS
from records.results import Results
from tests.bench_rows import sample
from tests.colours import contrast


class Page(HTMLParser):
    """Tags with their attributes, and the visible text."""

    def __init__(self, markup: str):
        super().__init__()
        self.tags: list[tuple[str, dict]] = []
        self.words: list[str] = []
        self.open: list[str] = []
        self.feed(markup)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in ("meta", "link", "img", "br", "line", "rect", "circle", "path", "image"):
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self.open and self.open.pop() == tag, f"</{tag}> closes nothing"

    def handle_data(self, data):
        if self.open and self.open[-1] not in ("style", "title", "desc"):
            self.words.append(data)

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.words).split()).replace("\u00a0", " ").replace("\u2212", "-")

    def all(self, tag: str) -> list[dict]:
        return [attributes for name, attributes in self.tags if name == tag]


def page_of(results: Results, folder) -> Page:
    write_report(results, folder / "report.html")
    return Page((folder / "report.html").read_text())


def without(results: Results, *kinds: str) -> Results:
    return replace(results, rows=[row for row in results.rows if row["kind"] not in kinds])


def test_the_page_takes_nothing_from_outside(tmp_path):
    page = page_of(sample(tmp_path), tmp_path)
    assert page.all("img") and page.all("svg")
    for tag, attributes in page.tags:
        for name in ("src", "href", "data", "action", "srcset"):
            assert (attributes.get(name)
                    or "data:").startswith("data:"), f"<{tag} {name}={attributes[name][:60]}>"
    markup = (tmp_path / "report.html").read_text()
    assert not re.search(r"url\(|@import|<script|<iframe|<object", markup)
    assert set(re.findall(r"https?://[^\"' <]+", markup)) <= {"http://www.w3.org/2000/svg"}
    assert len(markup) < 5_000_000


def test_the_page_can_be_heard_as_well_as_seen(tmp_path):
    page = page_of(sample(tmp_path), tmp_path)
    assert page.all("html")[0]["lang"] == "en"
    assert all(image["alt"] for image in page.all("img"))
    assert all(chart["role"] == "img" and chart["aria-label"] for chart in page.all("svg"))
    assert len([1 for tag, _ in page.tags if tag == "h1"]) == 1
    assert len(page.all("caption")) == len(page.all("table")) == 3
    levels = [int(tag[1]) for tag, _ in page.tags if re.fullmatch(r"h[1-6]", tag)]
    assert all(after <= before + 1 for before, after in pairwise(levels)), levels


def test_the_page_is_made_for_phones_and_for_the_dark(tmp_path):
    write_report(sample(tmp_path), tmp_path / "report.html")
    markup = (tmp_path / "report.html").read_text()
    assert '<meta name="viewport" content="width=device-width, initial-scale=1">' in markup
    assert "@media (prefers-color-scheme: dark)" in markup


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_stands_out_from_what_is_behind_it(scheme):
    style = PAGE.with_name("style.html").read_text()
    block = style.split("@media (prefers-color-scheme: dark)")[scheme == "dark"]
    colours = dict(
        re.findall(r"--(\w+): (#\w{6});",
                   block.split("}")[0] if scheme == "dark" else block))
    assert {"ink", "muted", "page", "card", "soft", "teacher", "student", "int8"} <= colours.keys()
    for words in ("ink", "muted", "teacher", "student", "int8"):
        for behind in ("page", "card"):
            assert contrast(colours[words], colours[behind]) >= 4.5, f"{words} on {behind}"


def test_the_precision_map_is_drawn_for_files_of_mixed_precision_and_said_in_words(tmp_path):
    page = page_of(sample(tmp_path), tmp_path)
    said = [
        chart["aria-label"] for chart in page.all("svg")
        if "Precision of every layer" in chart["aria-label"]
    ]
    assert said == [
        "Precision of every layer. norm1: fp16 in 2; qkv: int8 in 2; attention: fp16 in 2; fc1: "
        "int8 in 2"
    ]
    cells = [a["class"] for a in page.all("rect") if "cell" in a.get("class", "")]
    assert sorted(cells) == ["cell half"] * 4 + ["cell int8"] * 4
    assert "model.fp16.onnx" not in page.text.split("What runs in which precision")[1].split(
        "Pictures")[0]
    assert "What runs in which" not in page_of(without(sample(tmp_path), "layer"), tmp_path).text


def test_lines_between_views_tell_right_from_wrong_and_the_count_is_of_all(tmp_path):
    page = page_of(sample(tmp_path), tmp_path)
    kinds = [a["class"] for a in page.all("line") if a.get("class", "").startswith("match")]
    # unknown truth is not called wrong
    assert sorted(kinds) == ["match right"] * 3 + ["match wrong"]
    assert "41 mutual matches; 20 of the 30 whose point both frames see are right" in page.text
    (tmp_path / "bench" / "strips" / "view_b.png").unlink()
    results = without(sample(tmp_path / "again"), "nothing")
    (tmp_path / "again" / "bench" / "strips" / "view_b.png").unlink()
    assert "other view" not in page_of(results, tmp_path).text


def test_the_front_holds_what_nothing_else_beats_in_both():
    points = [Point("", "", ms, score, 1.0, "")
              for ms, score in ((10, .7), (12, .69), (20, .8), (30, .8), (40, .9))]
    assert [(point.ms, point.score) for point in front(points)] == [(10, .7), (20, .8), (40, .9)]


def test_the_export_s_verdicts_stand_beside_the_bench_s(tmp_path):
    assert "INT8 1.91x of FP32 here" in page_of(sample(tmp_path), tmp_path).text


def test_every_figure_on_the_page_follows_its_row(tmp_path):
    before = page_of(sample(tmp_path), tmp_path).text
    results = sample(tmp_path)
    for row in results.rows:
        if row["kind"] == "latency" and row["artefact"] == "model.onnx":
            row |= {"latency_ms": 77.7, "frame_ms": 77.7}
        if row.get("features") == "zeros" and row["seed"] == 0:
            row["delta1_vs_semantic"] = 0.333
    after = page_of(results, tmp_path).text
    for old, new in (("24.4", "77.7"), ("-0.1", "+33.3")):
        assert old in before and new not in before
        assert new in after


def test_seeds_become_a_mean_and_a_spread_and_files_stay_single(tmp_path):
    words = page_of(sample(tmp_path), tmp_path).text
    assert "0.845 ± 0.007" in words        # teacher: .84 and .85
    assert "0.832" in words and "0.832 ±" not in words


def test_without_an_int8_file_the_page_says_which_command_makes_one(tmp_path):
    results = sample(tmp_path)
    rows = [row for row in results.rows if "int8" not in str(row.get("artefact"))]
    rows.append({"kind": "absent", "what": "model.int8.cpu.onnx", "why": "not exported yet",
                 "fix": "vega3d export onnx --run runs/1 --precision int8"})
    words = page_of(replace(results, rows=rows), tmp_path).text
    assert "No INT8 file was measured" in words
    assert "vega3d export onnx --run runs/1 --precision int8" in words


@pytest.mark.parametrize(("gone", "says"), [
    (("latency",), "vega3d bench latency"), (("accuracy", "picture"), "vega3d bench accuracy"),
    (("picture",), "No pictures: none were drawn"),
    (("latency", "accuracy", "picture", "absent", "run"), "vega3d bench"),
])
def test_a_part_that_was_not_measured_names_its_command(tmp_path, gone, says):
    page = page_of(without(sample(tmp_path), *gone), tmp_path)
    assert says in page.text
    assert page.open == [] or page.open == ["html"]


def test_pictures_that_are_gone_leave_a_page_without_them(tmp_path):
    results = sample(tmp_path)
    (tmp_path / "bench" / "strips" / "teacher_depth.png").unlink()
    page = page_of(results, tmp_path)
    assert "teacher_depth.png is gone" in page.text
    assert page.all("img") == []


def test_a_run_without_depth_is_shown_by_its_cosines(tmp_path):
    results = without(sample(tmp_path), "accuracy")
    plain = [{"kind": "accuracy", "features": name, "head": "none", "seed": 0, "cosine_mean": 0.91,
              "cosine_p1": 0.7, "artefact": file, "sha256": f"sha {file}"} for name, file in
             (("student_fp32", "student.safetensors"), ("student_onnx_fp32", "model.onnx"))]
    words = page_of(replace(results, rows=results.rows + plain), tmp_path).text
    assert "mean cosine to the teacher" in words and "0.910" in words
    assert "semantic only" not in words.split("What the numbers mean")[0].split("Pictures")[0]


def test_names_from_outside_stay_text(tmp_path):
    results = sample(tmp_path)
    hostile = '<script>alert("x")</script>'
    results.of("run")[0]["generator"] = hostile
    results.of("absent")[0]["why"] = hostile
    write_report(results, tmp_path / "report.html")
    markup = (tmp_path / "report.html").read_text()
    assert hostile not in markup and escape(hostile) in markup


def test_int8_is_advised_only_where_it_is_surely_faster_and_close():
    results = sample_rows()
    assert int8_finding(*results).sentence.endswith("use INT8 here.")
    slow = sample_rows(vs_fp32=1.2, vs_fp32_low=0.9)
    assert slow and int8_finding(
        *slow).sentence.endswith("use FP32 here: it is not clearly faster.")
    far = sample_rows(fp32_cosine_mean=0.97, delta1_vs_fp32=-0.03)
    assert int8_finding(
        *far).sentence.endswith("its features drift too far and it loses too much depth.")
    # the limit is the export gate's own
    below_gate = sample_rows(fp32_cosine_mean=THRESHOLDS["int8"].cosine_mean - 1e-4)
    assert int8_finding(
        *below_gate).sentence.endswith("use FP32 here: its features drift too far.")


def test_a_gain_that_may_be_zero_is_called_that_and_no_share_of_it_is_shown(tmp_path):
    results = sample(tmp_path)
    assert "recovery" in [a.get("data-label") for a in page_of(results, tmp_path).all("td")]
    for row in results.of("accuracy"):
        if row["features"] == "teacher":
            row["delta1_vs_semantic_low"] = -0.001
    assert "does not exclude zero" in findings(results)[0].sentence
    assert "recovery" not in [a.get("data-label") for a in page_of(results, tmp_path).all("td")]


READABLE = """(() => {
    const rgb = words => {
        const found = (words.match(/[\\d.]+/g) || []).map(Number);
        return words.startsWith("color(") ? found.map((v, i) => i < 3 ? 255 * v : v) : found; };
    const over = (top, under, share) =>
        top.slice(0, 3).map((c, i) => c * share + under[i] * (1 - share));
    const linear = v => (v /= 255) <= 0.03928 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4;
    const light = c => { const l = c.map(linear);
                         return 0.2126 * l[0] + 0.7152 * l[1] + 0.0722 * l[2]; };
    const behind = e => { for (let at = e; at; at = at.parentElement) {
                              const c = rgb(getComputedStyle(at).backgroundColor);
                              if (c.length === 3 || c[3] === 1) return c.slice(0, 3); }
                          return [255, 255, 255]; };
    const faint = [];
    for (const e of document.querySelectorAll("body *")) {
        const texts = [...e.childNodes].filter(n => n.nodeType === 3);
        const words = texts.map(n => n.data).join("").trim();
        if (!words || !e.getClientRects().length || e.closest(".hidden, thead")) continue;
        if (["title", "desc", "style"].includes(e.tagName)) continue;
        const style = getComputedStyle(e), drawn = e.tagName === "text";
        let back = behind(e);
        if (e.classList.contains("cellmark"))
            back = over(rgb(getComputedStyle(e.previousElementSibling).fill), back, 0.3);
        const ink = rgb(drawn ? style.fill : style.color).slice(0, 3);
        const [a, b] = [light(ink), light(back)].sort((x, y) => y - x);
        if ((a + 0.05) / (b + 0.05) < 4.5) faint.push(words + " " + ink + " on " + back);
    }
    return faint; })()"""


@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium here; the page is checked statically "
                                             "above")
def test_a_browser_shows_the_page_readably_in_both_themes_and_on_a_phone(tmp_path):
    write_report(sample(tmp_path), tmp_path / "report.html")
    with browser() as chromium:
        for dark in (False, True):
            for width in (1200, 360):
                chromium.set_viewport(width, 900, dark, phone=width < 500)
                chromium.open(f"file://{tmp_path / 'report.html'}")
                chromium.wait("document.readyState === 'complete' && location.protocol === 'file:'")
                assert chromium.evaluate("document.documentElement.scrollWidth") <= width
                assert chromium.evaluate("document.querySelectorAll('svg').length") == 7
                assert chromium.evaluate(
                    "[...document.images].every(i => i.complete && i.naturalWidth > 0)")
                assert chromium.evaluate(READABLE) == [], f"dark: {dark}, {width} px"
        assert chromium.errors == []
        chromium.evaluate("document.documentElement.style.setProperty('--muted', '#3d434b')")
        assert chromium.evaluate(READABLE)  # the check itself sees words that fade into the dark


def sample_rows(**changes) -> tuple[list[dict], list[dict]]:
    """The rows an INT8 verdict reads, with changes to those of the INT8 file."""
    from tests.bench_rows import file_row, latency_row

    fast = latency_row("student", "model.int8.cpu.onnx", 14.9, "int8", "ort-cpu", vs_fp32=1.64,
                       vs_fp32_low=1.6)
    kept = file_row("student_int8_cpu", "model.int8.cpu.onnx", 0.832, 0.9993)
    return ([{**kept, **changes}],
            [latency_row("student", "model.onnx", 24.4, backend="ort-cpu"), {**fast, **changes}])


def test_tick_labels_tell_neighbours_apart():
    assert tick_labels([53.2, 53.4, 53.6]) == ["53.2", "53.4", "53.6"]
    assert tick_labels([10.0, 20.0, 50.0]) == ["10", "20", "50"]
    assert tick_labels([0.5, 1.0]) == ["0.5", "1.0"]
