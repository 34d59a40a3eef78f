import pytest
import torch

from distill.losses import relation_loss, token_loss


def features(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def rotation(d):
    return torch.linalg.qr(features(d, d, seed=9))[0]


def test_losses_are_zero_for_equal_features_and_positive_otherwise():
    x, y = features(2, 8, 4, 4), features(2, 8, 4, 4, seed=1)
    for loss in (token_loss, relation_loss):
        assert loss(x, x).item() == pytest.approx(0, abs=1e-6)
        assert loss(x, y).item() > 0.05


def test_relation_loss_ignores_a_rotation_of_channels_and_token_loss_does_not():
    x = features(2, 8, 4, 4)
    rotated = torch.einsum("ij,bjhw->bihw", rotation(8), x)
    assert relation_loss(rotated, x).item() == pytest.approx(0, abs=1e-6)
    assert token_loss(rotated, x).item() > 0.3


def test_token_loss_sees_size_where_the_direction_is_right():
    x = features(2, 8, 4, 4)
    assert token_loss(2 * x, x, l1_weight=0).item() == pytest.approx(0, abs=1e-6)
    assert token_loss(2 * x, x, l1_weight=0.5).item() > 0.1


def test_student_and_teacher_widths_may_differ_only_for_the_relation_loss():
    assert relation_loss(features(2, 8, 4, 4), features(2, 32, 4, 4)).isfinite()
    with pytest.raises(ValueError,
                       match=r"got student \[2, 8, 4, 4\], expected the teacher's \[2, 32, 4, 4\]"):
        token_loss(features(2, 8, 4, 4), features(2, 32, 4, 4))


def test_wrong_grid_names_both_grids():
    with pytest.raises(ValueError, match=r"grid=\[4, 4\], expected B=2 grid=\[7, 7\]"):
        relation_loss(features(2, 8, 4, 4), features(2, 8, 7, 7))


def test_losses_stay_float32_under_autocast():
    x = features(1, 8, 4, 4)
    with torch.autocast("cpu", torch.bfloat16):
        assert token_loss(x.bfloat16(), x).dtype == torch.float32
        near = x + 1e-3 * features(1, 8, 4, 4, seed=2)
        assert relation_loss(x, near).dtype == torch.float32
        assert 0 < relation_loss(x, near).item() < 1e-5


def test_no_gradient_reaches_the_teacher():
    student = features(1, 8, 4, 4).requires_grad_()
    teacher = features(1, 8, 4, 4, seed=1).requires_grad_()
    (token_loss(student, teacher) + relation_loss(student, teacher)).backward()
    assert student.grad.abs().sum() > 0 and teacher.grad is None
