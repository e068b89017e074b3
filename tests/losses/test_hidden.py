import torch

from hf_tinybert.losses import hidden_state_mse


def test_equals_a_mean_over_real_tokens_in_float64():
    student, teacher = torch.randn(3, 7, 5), torch.randn(3, 7, 5)
    lengths = [7, 4, 1]
    mask = torch.tensor([[1] * n + [0] * (7 - n) for n in lengths])
    expected = [
        sum(float(((student[b, i].double() - teacher[b, i].double()) ** 2).sum()) for i in range(n)) / (n * 5)
        for b, n in enumerate(lengths)
    ]
    result = hidden_state_mse(student, teacher, mask).double()
    torch.testing.assert_close(result, torch.tensor(expected, dtype=torch.float64), rtol=1e-6, atol=0)


def test_without_a_mask_every_token_counts():
    student, teacher = torch.randn(2, 6, 4), torch.randn(2, 6, 4)
    expected = torch.stack([torch.nn.functional.mse_loss(s, t) for s, t in zip(student, teacher, strict=True)])
    torch.testing.assert_close(hidden_state_mse(student, teacher), expected)


def test_padding_may_hold_anything():
    student, teacher = torch.randn(1, 4, 3, requires_grad=True), torch.randn(1, 4, 3)
    teacher[0, 3] = float("nan")
    mask = torch.tensor([[1, 1, 1, 0]])
    value = hidden_state_mse(student, teacher, mask)
    value.sum().backward()
    torch.testing.assert_close(value, hidden_state_mse(student[:, :3], teacher[:, :3]))
    assert torch.isfinite(student.grad[0, :3]).all()
