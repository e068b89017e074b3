import pytest
import torch

from hf_tinybert.activations import Activations, QueryKey
from hf_tinybert.losses import AttentionLoss, attention_score_mse, score_matrix_mse

B, H = 3, 4


def reference(student_query, student_key, teacher_query, teacher_key, mask=None):
    """Equation 7 in float64 with the S×S scores in full, one sequence at a time."""
    values = []
    for b in range(len(student_query)):
        real = torch.ones(student_query.shape[2], dtype=torch.bool) if mask is None else mask[b].bool()
        student, teacher = (
            q[b][:, real].double() @ k[b][:, real].double().transpose(1, 2) / q.shape[-1] ** 0.5
            for q, k in ((student_query, student_key), (teacher_query, teacher_key))
        )
        values.append(((student - teacher) ** 2).mean())
    return torch.stack(values)


def inputs(length, student_dim, teacher_dim, difference=None, seed=0):
    """Random queries and keys; `difference` sets ‖scores difference‖ / ‖scores‖ (None: unrelated, order 1)."""
    generator = torch.Generator().manual_seed(seed)

    def normal(*size):
        return torch.randn(B, H, length, *size, generator=generator)

    teacher_query, teacher_key = normal(teacher_dim), normal(teacher_dim)
    if difference is None:
        return normal(student_dim), normal(student_dim), teacher_query, teacher_key
    # the teacher's factors in the student's head size: exact scores by zero-padding or by a low-rank teacher
    rank = min(student_dim, teacher_dim)
    teacher_query[..., rank:], teacher_key[..., rank:] = 0, 0
    scale = (student_dim / teacher_dim) ** 0.25  # the student divides by another √d
    student_query, student_key = torch.zeros(B, H, length, student_dim), torch.zeros(B, H, length, student_dim)
    student_query[..., :rank] = teacher_query[..., :rank] * scale
    student_key[..., :rank] = teacher_key[..., :rank] * scale
    student_query[..., :rank] *= 1 + difference * normal(rank)
    return student_query, student_key, teacher_query, teacher_key


def padding(length):
    lengths = torch.tensor([length, max(1, length // 2), max(1, length - 3)])
    return (torch.arange(length) < lengths[:, None]).long()


def value_and_gradients(loss, student_query, student_key, *rest):
    query, key = student_query.clone().requires_grad_(), student_key.clone().requires_grad_()
    value = loss(query, key, *rest)
    weights = torch.arange(1.0, B + 1, dtype=value.dtype)  # each sequence its own upstream gradient
    (value * weights).sum().backward()
    return value.detach(), query.grad, key.grad


def relative_errors(result, expected):
    """‖result − expected‖ / ‖expected‖ of each sequence."""
    result, expected = (values.double().reshape(B, -1) for values in (result, expected))
    return (result - expected).norm(dim=1) / expected.norm(dim=1)


def cancellation(student_query, student_key, teacher_query, teacher_key, mask=None):
    """r = ‖scores‖ / ‖difference of the scores‖ of each sequence, by which `attention_score_mse` bounds its error."""
    ratios = []
    for b in range(B):
        real = slice(None) if mask is None else mask[b].bool()
        student_scores, teacher_scores = (
            query[b][:, real].double() @ key[b][:, real].double().mT / query.shape[-1] ** 0.5
            for query, key in ((student_query, student_key), (teacher_query, teacher_key))
        )
        largest = max(student_scores.norm(), teacher_scores.norm())
        ratios.append(largest / (student_scores - teacher_scores).norm())
    return torch.stack(ratios)


# Up to S = 2·(d_s + d_t) the scores are computed, from there on the Gram matrices.
SIZES = [(1, 26, 64), (17, 64, 16), (128, 32, 32), (129, 32, 32), (180, 26, 64), (181, 26, 64), (512, 64, 16)]


@pytest.mark.parametrize(("length", "student_dim", "teacher_dim"), SIZES)
@pytest.mark.parametrize("difference", [None, 0.1, 1e-3])
def test_equals_the_float64_reference_up_to_the_documented_error(length, student_dim, teacher_dim, difference):
    tensors = inputs(length, student_dim, teacher_dim, difference)
    for mask in (None, padding(length)):
        ratios = cancellation(*tensors, mask)
        assert difference is None or ratios.min() > 0.2 / difference
        expected = value_and_gradients(reference, *tensors, mask)
        result = value_and_gradients(attention_score_mse, *tensors, mask)
        for values, expected_values in zip(result, expected, strict=True):
            assert (relative_errors(values, expected_values) < 1e-6 * ratios).all()


@pytest.mark.parametrize("difference", [1e-3, 1e-5])
def test_float64_is_the_remedy_where_scores_agree_more_closely(difference):
    """The value of the Gram form is off by r² roundings. The gradients are float32, as the student is."""
    tensors = inputs(512, 26, 64, difference)
    value, *gradients = value_and_gradients(lambda *args: attention_score_mse(*args, dtype=torch.float64), *tensors)
    expected, *expected_gradients = value_and_gradients(reference, *tensors)
    assert (relative_errors(value, expected) < 1e-14 * cancellation(*tensors) ** 2).all()
    for gradient, expected_gradient in zip(gradients, expected_gradients, strict=True):
        assert (relative_errors(gradient, expected_gradient) < 1e-7).all()


@pytest.mark.parametrize("length", [8, 128])
def test_other_scalings_and_half_precision_inputs(length):
    tensors = [tensor.bfloat16() for tensor in inputs(length, 16, 32)]
    result = attention_score_mse(*tensors, student_scaling=0.5, teacher_scaling=2.0)
    student_query, student_key, teacher_query, teacher_key = (tensor.double() for tensor in tensors)
    expected = (0.5 * student_query @ student_key.mT - 2.0 * teacher_query @ teacher_key.mT).square().mean((1, 2, 3))
    torch.testing.assert_close(result.double(), expected, rtol=1e-5, atol=0)


@pytest.mark.parametrize("length", [8, 256])
def test_autocast_changes_nothing(length):
    tensors = inputs(length, 26, 64)
    plain = value_and_gradients(attention_score_mse, *tensors)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        mixed = value_and_gradients(attention_score_mse, *tensors)
    assert all(torch.equal(values, plain_values) for values, plain_values in zip(mixed, plain, strict=True))


@pytest.mark.parametrize("setting", [torch.backends, torch.backends.cuda.matmul], ids=["global", "matmul"])
def test_tf32_stays_as_it_was_set_and_can_be_turned_off(setting):
    """`torch_compile` turns it on for all operations; afterwards `TrainingArguments(tf32=False)` turns it off."""
    setting.fp32_precision = "tf32"
    attention_score_mse(*torch.randn(4, 2, 2, 5, 8))
    assert torch.backends.cuda.matmul.fp32_precision == "tf32"
    setting.fp32_precision = "ieee"
    assert torch.backends.cuda.matmul.fp32_precision == "ieee"


def test_score_matrices_give_the_same_loss():
    student_query, student_key, teacher_query, teacher_key = inputs(40, 8, 8)
    mask = padding(40)
    scores = (query @ key.mT / 8**0.5 for query, key in ((student_query, student_key), (teacher_query, teacher_key)))
    expected = reference(student_query, student_key, teacher_query, teacher_key, mask)
    torch.testing.assert_close(score_matrix_mse(*scores, mask).double(), expected, rtol=1e-5, atol=0)


def saved_bytes(length, loss):
    sizes = []

    def pack(tensor):
        sizes.append(tensor.untyped_storage().nbytes())
        return tensor

    student_query, student_key, teacher_query, teacher_key = inputs(length, 26, 64)
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        loss(student_query.requires_grad_(), student_key.requires_grad_(), teacher_query, teacher_key, padding(length))
    return max(sizes), sum(sizes)


def of_fewer_heads(student_query, student_key, *rest):
    return mean_heads(student_query[:, :2], student_key[:, :2], *rest)


@pytest.mark.parametrize("loss", [attention_score_mse, of_fewer_heads])
def test_nothing_saved_for_backward_grows_faster_than_the_sequence(loss):
    (largest_short, total_short), (largest_long, total_long) = saved_bytes(512, loss), saved_bytes(2048, loss)
    assert largest_long <= 4 * largest_short
    assert total_long <= 4 * total_short
    assert largest_long < B * H * 2048 * 2048 * 4 / 10  # far from a score matrix


def test_differing_head_counts_are_refused():
    query = torch.randn(1, 4, 8, 16)
    with pytest.raises(ValueError, match="4 attention heads and the teacher 2"):
        attention_score_mse(query, query, query[:, :2], query[:, :2])


def mean_heads(student_query, student_key, teacher_query, teacher_key, mask=None, dense=False):
    """AttentionLoss(heads="mean") of one layer, with scalings 0.3 and 0.2, from factors or from scores."""
    pair = QueryKey(student_query, student_key, 0.3), QueryKey(teacher_query, teacher_key, 0.2)
    student, teacher = (Activations(mask, attentions=(x.scores() if dense else x,)) for x in pair)
    return AttentionLoss(heads="mean")(student, teacher, [(1, 1)])


def mean_heads_reference(student_query, student_key, teacher_query, teacher_key, mask):
    """In float64: scores in full, averaged over neighbouring heads of the model that has more, head by head."""
    values = []
    for b in range(B):
        n = int(mask[b].sum())
        student, teacher = (
            [query[b, h, :n].double() @ key[b, h, :n].double().T * scaling for h in range(query.shape[1])]
            for query, key, scaling in ((student_query, student_key, 0.3), (teacher_query, teacher_key, 0.2))
        )
        heads = min(len(student), len(teacher))
        student, teacher = (
            [sum(x[i : i + len(x) // heads]) / (len(x) // heads) for i in range(0, len(x), len(x) // heads)]
            for x in (student, teacher)
        )
        values.append(sum((s - t).square().mean() for s, t in zip(student, teacher, strict=True)) / heads)
    return torch.stack(values)


@pytest.mark.parametrize(("student_heads", "teacher_heads"), [(2, 4), (4, 1), (3, 3), (2, 6)])
@pytest.mark.parametrize(("length", "dense"), [(17, False), (400, False), (17, True)])
def test_mean_heads_equal_the_float64_reference(student_heads, teacher_heads, length, dense):
    generator = torch.Generator().manual_seed(0)
    shapes = [(student_heads, 16), (teacher_heads, 24)]
    tensors = [torch.randn(B, h, length, d, generator=generator) for h, d in shapes for _ in range(2)]
    mask = padding(length)
    expected = value_and_gradients(mean_heads_reference, *tensors, mask)
    result = value_and_gradients(mean_heads, *tensors, mask, dense)
    for values, expected_values in zip(result, expected, strict=True):
        assert (relative_errors(values, expected_values) < 1e-5).all()


def test_mean_heads_of_another_ratio_are_refused():
    query = torch.randn(1, 6, 8, 16)
    for mismatch in ((query, query, query[:, :4], query[:, :4]), (query[:, :4], query[:, :4], query, query)):
        with pytest.raises(ValueError, match=r"whole groups.*'relation' loss"):
            mean_heads(*mismatch)


@pytest.mark.parametrize(
    ("settings", "message"),
    [({"heads": "sum"}, r"heads='sum'.*equal, mean"), ({"dtype": "double?"}, r"dtype='double\?'")],
)
def test_unknown_settings_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        AttentionLoss(**settings)
