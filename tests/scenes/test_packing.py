"""From a furniture library to a pack: reading OBJ, reducing triangles, finding what can carry
things, splits."""
import io
import zipfile

import numpy as np
import pytest
from PIL import Image

from scenes.furniture.catalogue import RULES, read_catalogue
from scenes.furniture.obj import Mesh, read_obj
from scenes.furniture.pack import CC0_PACK, CLASSES, Pack
from scenes.furniture.packing import assign_splits, pack_library, simplify

# a table, Y up, front at +Z, in centimetres twice too large: a top of 2 quads, one leg, a red panel
# in front
TABLE_OBJ = """mtllib table.mtl
v -100 140 -50
v 100 140 -50
v 100 140 50
v -100 140 50
v -100 130 -50
v 100 130 -50
v 100 130 50
v -100 130 50
v -5 0 -5
v 5 0 -5
v 5 0 5
v -5 0 5
v -5 130 -5
v 5 130 -5
v 5 130 5
v -5 130 5
v -100 0 50
v 100 0 50
v 100 20 50
v -100 20 50
vt 0 0
vt 1 0
vt 1 1
vt 0 1
usemtl wood
f 4/1 3/2 2/3 1/4
f 5/1 6/2 7/3 8/4
usemtl plain
f 9 10 14 13
f 10 11 15 14
f 11 12 16 15
f -17 -20 -16 -13
usemtl front
f 17 18 19 20
"""
TABLE_MTL = """newmtl wood
map_Kd wood.png
newmtl plain
Kd 0.2 0.4 0.6
newmtl front
Kd 1 0 0
Ks 1 1 1
"""


@pytest.fixture
def library(tmp_path):
    folder = tmp_path / "library"
    folder.mkdir()
    wood = io.BytesIO()
    Image.new("RGB", (300, 200), (180, 120, 60)).save(wood, "PNG")
    rows = []
    for i, (category, name) in enumerate([("Living room", "Table"), ("Living room", "Table"),
                                          ("Vehicles", "Bus"), ("Bedroom", "Bedside table"),
                                          ("Bedroom", "Bed")], 1):
        rows += [
            f"name#{i}={name}", f"category#{i}={category}", f"model#{i}=/m/{i}/thing{i}.obj",
            f"width#{i}=100", f"depth#{i}=60", f"height#{i}=70", f"creator#{i}=Somebody"
        ]
    with zipfile.ZipFile(folder / "BlendSwap-CC-0.sh3f", "w") as archive:
        archive.writestr("PluginFurnitureCatalog.properties", "\n".join(rows))
        for i in range(1, 6):
            leg = "v 5 0 5" if i <= 2 else f"v 5 0 {4 + i}"  # 1 and 2 are the same shape
            changed = TABLE_OBJ.replace("v 5 0 5", leg)
            archive.writestr(f"m/{i}/thing{i}.obj", changed)
            archive.writestr(f"m/{i}/table.mtl", TABLE_MTL)
            archive.writestr(f"m/{i}/wood.png", wood.getvalue())
    return folder


def test_obj_polygons_materials_and_negative_indices_are_read(library):
    with zipfile.ZipFile(library / "BlendSwap-CC-0.sh3f") as archive:
        mesh = read_obj(archive, "m/1/thing1.obj")
    assert len(mesh.triangles) == 14
    assert [m.colour for m in mesh.materials[2:]] == [(0.2, 0.4, 0.6), (1.0, 0.0, 0.0)]
    assert mesh.materials[1].texture == "m/1/wood.png"
    assert np.allclose(np.linalg.norm(mesh.normals, axis=1), 1, atol=1e-5)


def test_a_packed_model_is_metric_upright_and_faces_minus_y(library, tmp_path):
    assert pack_library(library, tmp_path / "p.zip", "cc0") == 4
    pack = Pack.load(tmp_path / "p.zip")
    table = next(m for m in pack.models if m.id.endswith("thing1"))
    mesh = pack.mesh(table.id)
    assert table.size == (1.0, 0.6, 0.7) and (table.category, table.role) == ("table", "dining")
    assert np.allclose(mesh.positions.min(0), [-0.5, -0.3, 0], atol=1e-4)
    assert np.allclose(mesh.positions.max(0), [0.5, 0.3, 0.7], atol=1e-4)
    red = (mesh.colours[:, :3] == [255, 0, 0]).all(1)
    assert red.any() and np.allclose(mesh.positions[red, 1], -0.3, atol=1e-4)
    wooden = mesh.texture == 0
    assert mesh.textures[0].shape == (128, 128, 3)
    assert np.allclose(mesh.textures[0].mean((0, 1)), [180, 120, 60], atol=4)
    assert wooden.any() and (mesh.positions[wooden, 2] > 0.6).all()


def test_a_table_top_carries_things_and_its_height_is_exact(library, tmp_path):
    pack_library(library, tmp_path / "p.zip", "cc0")
    table = next(m for m in Pack.load(tmp_path / "p.zip").models if m.id.endswith("thing1"))
    assert table.support == pytest.approx(0.7, abs=2e-3) and table.top.mean() > 0.9


def test_packing_twice_gives_the_same_bytes(library, tmp_path):
    for name in ("a.zip", "b.zip"):
        pack_library(library, tmp_path / name, "cc0")
    assert (tmp_path / "a.zip").read_bytes() == (tmp_path / "b.zip").read_bytes()
    assert "Somebody" in zipfile.ZipFile(tmp_path / "a.zip").read("NOTICE").decode()


def test_recolours_of_one_shape_share_a_split(library):
    splits = assign_splits(library)
    assert splits["BlendSwap-CC-0/thing1"] == splits["BlendSwap-CC-0/thing2"]
    assert "BlendSwap-CC-0/thing3" not in splits  # the bus


def test_a_bedside_table_is_no_bed(library):
    (_, entries), = ((a, e) for a, e in read_catalogue(library))
    assert {e.name: (e.category, e.role) for e in entries}["bedside table"] == ("table", "bedside")


def test_every_rule_names_a_known_class():
    assert {category for _, category, _ in RULES} - {""} <= set(CLASSES)


def test_the_shipped_pack_keeps_its_frozen_splits_and_size():
    import json

    from scenes.furniture.packing import SPLITS_FILE

    frozen = {i: split for split, ids in json.loads(SPLITS_FILE.read_text()).items() for i in ids}
    pack = Pack.load()
    assert CC0_PACK.stat().st_size <= 5.5e6
    assert all(m.split == frozen[m.id] for m in pack.models)


@pytest.mark.parametrize("bumps", [0.1, 0.0])  # flat: an open sheet must not vanish
def test_simplify_keeps_the_shape_and_reaches_the_budget(bumps):
    n = 60  # a sheet of 2 n^2 triangles
    x, y = np.meshgrid(np.linspace(0, 1, n + 1), np.linspace(0, 1, n + 1))
    height = bumps * np.sin(6 * x) * np.cos(6 * y)
    points = np.stack([x, y, height], -1).reshape(-1, 3).astype(np.float32)
    i = (np.arange(n)[:, None] * (n + 1) + np.arange(n)).reshape(-1)
    faces = np.concatenate(
        [np.stack([i, i + 1, i + n + 2], 1),
         np.stack([i, i + n + 2, i + n + 1], 1)])
    parts = (points[faces].mean(1)[:, 0] > 0.5).astype(int)
    small = simplify(Mesh(points, np.zeros_like(points), points[:, :2], faces, parts, []), 500)
    assert len(small.triangles) <= 550
    p = small.positions
    assert np.abs(p[:, 2] - bumps * np.sin(6 * p[:, 0]) * np.cos(6 * p[:, 1])).max() < 0.01
    a, b, c = (p[small.triangles[:, k]] for k in range(3))
    area = np.abs(np.cross(b - a, c - a)[:, 2]) / 2
    assert area.sum() == pytest.approx(1.0, abs=0.01)  # no hole, no fold, the border stays
    assert area[small.parts == 1].sum() == pytest.approx(0.5, abs=0.01)  # nor moves the material


def test_few_triangles_are_left_alone():
    mesh = Mesh(np.eye(3, dtype=np.float32), np.eye(3, dtype=np.float32),
                np.zeros((3, 2), np.float32), np.array([[0, 1, 2]]), np.zeros(1, int), [])
    assert simplify(mesh, 10) is mesh
