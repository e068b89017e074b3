import torch

from hf_tinybert.activations import QueryKey, token_mean


def test_token_mean_ignores_what_padding_holds():
    values = torch.tensor([[1.0, 3.0, float("nan")], [2.0, 4.0, 6.0]])
    assert token_mean(values, torch.tensor([[1, 1, 0], [1, 1, 1]])).tolist() == [2.0, 4.0]
    assert token_mean(values[1:], None).tolist() == [4.0]


def test_a_sequence_without_real_tokens_counts_as_zero():
    values, mask = torch.ones(2, 3), torch.tensor([[1, 1, 0], [0, 0, 0]])
    assert token_mean(values, mask).tolist() == [1.0, 0.0]


def test_scores_are_scaled_products_of_queries_and_keys_in_float32():
    query, key = torch.randn(2, 3, 4, 5).bfloat16(), torch.randn(2, 3, 4, 5).bfloat16()
    scores = QueryKey(query, key, 0.3).scores()
    assert scores.dtype == torch.float32
    torch.testing.assert_close(scores, torch.einsum("bhid,bhjd->bhij", query.float(), key.float()) * 0.3)


def test_vectors_include_the_values_if_there_are_any():
    query, key, value = torch.randn(3, 1, 2, 3, 4)
    assert [*map(id, QueryKey(query, key, 1.0).vectors)] == [id(query), id(key)]
    assert [*map(id, QueryKey(query, key, 1.0, value).vectors)] == [id(query), id(key), id(value)]
