"""Masks: exact budgets, Dirichlet shares, validity, subsets, independence of batching."""

import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from multimae_eo.errors import BatchError
from multimae_eo.masking import draw_noise, mask_from_hidden, place_mask, sample_mask

M, N, K = 6, 49, 49


def shares(valid, noise, budget=K):
    mask = place_mask(valid, noise, budget)
    return torch.stack([(mask.visible // N == m).sum(1) for m in range(M)], dim=1).float() / budget


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 10**6),
    invalid=st.floats(0, 0.7),
    budget=st.integers(1, 60),
    alpha=st.floats(0.01, 10),
    subset=st.booleans(),
)
def test_the_budget_is_exact_and_nothing_invalid_is_visible(seed, invalid, budget, alpha, subset):
    generator = np.random.default_rng(seed)
    valid = torch.from_numpy(generator.random((4, M, N)) >= invalid)
    valid[0, 1:4] = False  # a sample that lacks modalities
    assume(valid.flatten(1).sum(1).min() >= budget)
    mask = sample_mask(valid, budget, generator=generator, alpha=alpha, random_subset=subset)
    assert mask.visible.shape == (4, budget)
    assert valid.flatten(1).gather(1, mask.visible).all()
    assert all(len(set(row.tolist())) == budget for row in mask.visible)
    assert mask.hidden(M, N).sum() == 4 * (M * N - budget)


def test_shares_are_distributed_as_the_dirichlet_asked_for():
    noise = draw_noise(np.random.default_rng(0), (40000, M, N))
    got = shares(torch.ones(40000, M, N, dtype=torch.bool), noise)
    torch.testing.assert_close(got.mean(0), torch.full((M,), 1 / M), atol=2e-3, rtol=0)
    # Var = (1/6)(5/6)/7 for a symmetric Dirichlet; apportionment to whole tokens changes it by less than 1 %.
    torch.testing.assert_close(got.var(0), torch.full((M,), 5 / 252), atol=5e-4, rtol=0)


def test_shares_of_partly_invalid_modalities_do_not_shrink():
    valid = torch.ones(20000, M, N, dtype=torch.bool)
    valid[:, 0, N // 2 :] = False
    half = shares(valid, draw_noise(np.random.default_rng(1), (20000, M, N)), budget=12)
    torch.testing.assert_close(half.mean(0), torch.full((M,), 1 / M), atol=4e-3, rtol=0)


def test_modalities_that_a_sample_lacks_get_no_share():
    valid = torch.ones(5000, M, N, dtype=torch.bool)
    valid[:, 2] = False
    got = shares(valid, draw_noise(np.random.default_rng(2), (5000, M, N)))
    assert not got[:, 2].any()
    torch.testing.assert_close(got[:, [0, 1, 3, 4, 5]].mean(0), torch.full((5,), 0.2), atol=6e-3, rtol=0)


def test_alpha_per_modality():
    alpha = [0.001, 1.0, 1.0, 1.0, 1.0, 4.0]
    got = shares(
        torch.ones(20000, M, N, dtype=torch.bool), draw_noise(np.random.default_rng(3), (20000, M, N), alpha=alpha)
    )
    expected = torch.tensor(alpha) / sum(alpha)
    torch.testing.assert_close(got.mean(0), expected, atol=5e-3, rtol=0)


def test_tokens_of_a_modality_are_visible_equally_often():
    valid = torch.ones(20000, M, N, dtype=torch.bool)
    mask = place_mask(valid, draw_noise(np.random.default_rng(4), valid.shape), K)
    often = (~mask.hidden(M, N)).float().mean(0)
    torch.testing.assert_close(often, torch.full((M, N), K / (M * N)), atol=0.015, rtol=0)


def test_random_subsets_fill_the_chosen_first():
    valid = torch.ones(3000, M, N, dtype=torch.bool)
    noise = draw_noise(np.random.default_rng(5), valid.shape, random_subset=True)
    got = shares(valid, noise)
    assert not got[~noise.chosen].any()
    counts = torch.bincount((noise.chosen * 2 ** torch.arange(M)).sum(1), minlength=64)
    assert counts[0] == 0
    assert (counts[1:] > 10).all()  # each of the 63 subsets is expected 48 times
    alone = noise._replace(chosen=torch.zeros_like(noise.chosen).index_fill(1, torch.tensor([0]), True))
    spilled = place_mask(valid, alone, 60)
    assert ((spilled.visible < N).sum(1) == N).all()


def test_too_few_valid_tokens():
    valid = torch.zeros(2, M, N, dtype=torch.bool)
    valid[0] = True
    valid[1, 0, :5] = True
    with pytest.raises(BatchError, match=r"sample 1 .* 5 valid tokens, but 9"):
        sample_mask(valid, 9, generator=np.random.default_rng(0))
    noise = draw_noise(np.random.default_rng(0), valid.shape)
    mask = place_mask(valid, noise, 9, keys=True)
    assert mask.real.sum(1).tolist() == [9, 5]
    assert (~mask.hidden(M, N)).sum((1, 2)).tolist() == [9, 5]


def test_a_sample_s_mask_does_not_depend_on_its_batch():
    valid = torch.rand(8, M, N, generator=torch.Generator().manual_seed(0)) < 0.6
    noise = draw_noise(np.random.default_rng(6), valid.shape)
    together = place_mask(valid, noise, 20).visible
    for i in range(8):
        alone = place_mask(valid[i : i + 1], type(noise)(*(part[i : i + 1] for part in noise)), 20).visible
        assert torch.equal(alone[0], together[i])


def test_explicit_masks():
    hidden = torch.ones(3, M, N, dtype=torch.bool)
    hidden.view(3, -1)[torch.arange(3)[:, None], torch.tensor([[1, 60], [2, 293], [0, 49]])] = False
    mask = mask_from_hidden(hidden)
    assert mask.visible.tolist() == [[1, 60], [2, 293], [0, 49]]
    assert torch.equal(mask.hidden(M, N), hidden)
    hidden[0, 0, 0] = False
    with pytest.raises(BatchError, match="same number"):
        mask_from_hidden(hidden)
