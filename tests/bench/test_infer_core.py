"""The core install: size without a fresh environment's own packages, starts as processes."""
import sys

import pytest

from bench.recipes.infer_core import installed_mb, measure, seconds, timed


def test_a_fresh_environment_s_own_packages_do_not_count(tmp_path):
    for name in ("numpy", "numpy/core", "pip", "setuptools", "pip-23.2.1.dist-info",
                 "vega3d_edge-0.1.0.dist-info"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "file.bin").write_bytes(bytes(1 << 20))
    (tmp_path / "one.py").write_bytes(bytes(1 << 20))
    assert installed_mb(tmp_path) == pytest.approx(4 * (1 << 20) / 1e6, rel=0.01)


def test_each_start_is_a_process_and_its_work_is_counted(tmp_path):
    work = f"open({str(tmp_path / 'starts')!r}, 'a').write('x'); sum(range(10**6))"
    took = seconds([sys.executable, "-c", work], starts=3)
    assert len(took) == 3 and (tmp_path / "starts").read_text() == "xxx"
    assert all(wall > 0 and worked > 0 for wall, worked in took)
    with pytest.raises(ValueError, match=r"exit code 1: .*no such thing"):
        seconds([sys.executable, "-c", "raise SystemExit('no such thing')"])


def test_a_row_holds_medians_and_the_first_start():
    row = timed([(1.9, 0.8), (1.0, 0.7), (1.2, 0.9)])
    assert (row["start_s"], row["worst_s"], row["first_s"], row["cpu_s"]) == (1.2, 1.9, 1.9, 0.8)
    assert row["max_start_s"] == 1.5 and row["starts"] == 3


FAKE = """#!{python}
import sys
from pathlib import Path
site, args = Path({site!r}), sys.argv[1:]
if args[0] == "infer":
    Path({starts!r}).open("a").write("x")
elif args[0] == "-c":
    print("3.10.13", site)
elif "list" in args:
    names = [path.name for path in site.iterdir()]
    print([{{"name": n, "version": "1"}} for n in names].__repr__().replace("'", '"'))
elif "uninstall" in args:
    for name in args[args.index("--yes") + 1:]:
        (site / name / "file.bin").unlink()
"""


def test_what_inference_does_not_import_is_measured_by_removing_it(tmp_path):
    site, starts = tmp_path / "site", tmp_path / "starts"
    for name in ("onnxruntime", "numpy", "pillow", "sympy", "mpmath"):
        (site / name).mkdir(parents=True)
        (site / name / "file.bin").write_bytes(bytes(1 << 20))
    for name in ("python", "vega3d"):
        (tmp_path / name).write_text(
            FAKE.format(python=sys.executable, site=str(site), starts=str(starts)))
        (tmp_path / name).chmod(0o755)
    row = measure(tmp_path / "python", tmp_path / "m.onnx", tmp_path / "p.jpg", tmp_path / "out")
    assert row["size_mb"] == pytest.approx(5 * (1 << 20) / 1e6, rel=0.01)
    assert row["without_sympy_mb"] == pytest.approx(3 * (1 << 20) / 1e6, rel=0.01)
    assert row["python"] == "3.10.13"
    assert starts.read_text() == 11 * "x"  # and once without them
