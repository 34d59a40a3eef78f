import numpy as np
import pytest
import torch

from distill.losses import depth_losses, match_loss, normal_loss, relation_loss, token_loss


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


def test_match_loss_is_small_only_at_the_true_cells():
    torch.manual_seed(0)
    view = torch.nn.functional.normalize(torch.randn(1, 16, 6, 6), dim=1)
    row, column = torch.meshgrid(torch.arange(6.0), torch.arange(6.0), indexing="ij")
    true = torch.stack([column, row], -1).reshape(1, 36, 2)
    exact = match_loss(view.flatten(2), view, true)
    assert exact < 0.1 < 1 < match_loss(view.flatten(2), view, true.flip(1))
    unseen = torch.full_like(true, float("nan"))
    assert match_loss(view.flatten(2), view, unseen) == 0
    half = true.clone()
    half[:, ::2] = float("nan")  # only what is seen counts
    assert match_loss(view.flatten(2)[..., 1::2], view, true[:, 1::2]) == pytest.approx(
        match_loss(view.flatten(2), view, half).item())


def test_processes_that_share_a_batch_have_its_losses():
    """Means of parts, weighted by their numbers of examples, whatever is known of each."""
    depth, truth = torch.rand(3, 8, 8) + 1, torch.rand(3, 8, 8) + 1
    truth[0, :5], truth[1, 0, 0] = 0, 0
    normals, facing = torch.randn(3, 3, 4, 4), torch.randn(3, 3, 4, 4)
    facing[2, :, 1:] = 0
    view = torch.nn.functional.normalize(torch.randn(3, 8, 5, 5), dim=1)
    targets = 4 * torch.rand(3, 25, 2)
    targets[1, 3:] = float("nan")

    def losses(part: slice) -> torch.Tensor:
        return torch.stack([*depth_losses(depth[part], depth[part] / 2, truth[part]).values(),
                            normal_loss(normals[part], facing[part]),
                            match_loss(view[part].flatten(2), view[part], targets[part])])

    shared = losses(slice(0, 1)) / 3 + losses(slice(1, 3)) * 2 / 3
    torch.testing.assert_close(losses(slice(0, 3)), shared)


def test_scale_moves_only_the_scale_loss_and_blur_the_gradient_loss():
    truth = torch.full((2, 16, 16), 2.0)
    truth[:, :, 8:] = 4.0
    truth[1, :4] = 0  # unknown
    sure = torch.full_like(truth, 0.999)
    exact = depth_losses(truth.clamp_min(1), sure, truth)
    assert exact["scale"] < 1e-6 and exact["gradient"] < 1e-6 and exact["relative"] < 2e-3
    assert exact["confidence"] < 0.01
    double = depth_losses(2 * truth.clamp_min(1), sure, truth)
    assert double["scale"] == pytest.approx(np.log(2), abs=1e-4)
    assert double["gradient"] < 1e-6 and double["relative"] < 2e-3 and double["confidence"] > 3
    blurred = truth.clone()
    blurred[:, :, 6:10] = torch.tensor([2.3, 2.8, 3.3, 3.7])
    edge = depth_losses(blurred.clamp_min(1), sure, truth)
    assert edge["gradient"] > 0.01 and edge["relative"] > 0.05


def test_unknown_pixels_and_frames_without_labels_cost_nothing():
    depth, p = torch.rand(2, 8, 8) + 1, torch.full((2, 8, 8), 0.5)
    truth = depth.clone()
    truth[0], truth[1, 0] = 0, 0
    depth[1, 0] = 9
    losses = depth_losses(depth.requires_grad_(), p, truth)
    sum(losses.values()).backward()
    assert losses["scale"] == 0 and losses["gradient"] == 0 and depth.grad.isfinite().all()
    assert depth.grad[0].abs().max() == 0 and depth.grad[1, 0].abs().max() == 0
    normals = torch.randn(2, 3, 4, 4)
    assert normal_loss(normals, torch.zeros(2, 3, 4, 4)) == 0
    half = normals.clone()
    half[:, :, :2] = 0
    assert normal_loss(normals, 127 * half) == pytest.approx(0, abs=1e-6)
