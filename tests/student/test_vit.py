import pytest
import torch

from student.config import SHIPPED_BY_SIZE, StudentConfig
from student.heads import heads_scores, load_heads
from student.vit import Student, load_student, save_student
from teacher.towers.efficientnet import SemanticEncoder


def test_the_lite0_stem_starts_as_the_semantic_encoder_and_survives_a_save(tmp_path):
    student = Student(StudentConfig(depth=1, out_dim=8, stem="lite0")).eval()
    frames = torch.rand(2, 3, 224, 224)
    with torch.no_grad():
        tokens = student.stem((frames - student.pixel_mean) / student.pixel_std)
        torch.testing.assert_close(tokens, SemanticEncoder()(frames))
        save_student(student, tmp_path)
        again = load_student(tmp_path)
        torch.testing.assert_close(again(frames), student(frames))
    assert student(frames).shape == (2, 8, 14, 14)


def test_the_lite0_stem_is_trained_but_its_batch_norms_keep_their_statistics():
    student = Student(StudentConfig(depth=1, out_dim=8, stem="lite0")).train()
    before = student.stem.norm.running_mean.clone()
    student(torch.rand(2, 3, 224, 224)).sum().backward()
    assert torch.equal(student.stem.norm.running_mean, before)
    assert student.stem.stem.weight.grad.abs().sum() > 0


@pytest.mark.parametrize("size", SHIPPED_BY_SIZE)
def test_a_shipped_student_is_what_its_card_says(size):
    folder = SHIPPED_BY_SIZE[size]
    student, card = load_student(folder), (folder / "README.md").read_text()
    count = sum(p.numel() for p in student.parameters()) / 1e6
    heads = sum(p.numel() for p in load_heads(folder).parameters()) / 1e6
    assert f"{count:.2f} M parameters and {heads:.2f} M of heads" in card
    assert student.config.size == size and f"`[{student.config.out_dim},14,14]`" in card
    scores = heads_scores(folder)
    for name in ("delta1", "delta1_median", "cosine_mean"):
        assert f"{scores[name]:.3f}" in card, name
