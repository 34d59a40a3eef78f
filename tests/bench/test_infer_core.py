"""The core install: size without a fresh environment's own packages, starts as processes."""
import sys

import pytest

from bench.recipes.infer_core import installed_mb, rows, seconds


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


def test_rows_hold_medians_against_the_bars():
    size, start, first, worked = rows(196.4, [(1.9, 0.8), (1.0, 0.7), (1.2, 0.9)])
    assert (size["value"], size["limit"]) == (196.4, 200)
    assert (start["value"], start["worst"], start["limit"]) == (1.2, 1.9, 1.5)
    assert first["value"] == 1.9 and worked["value"] == 0.8
