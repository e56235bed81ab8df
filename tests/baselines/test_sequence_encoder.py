"""The transformer encoder of the baselines: what sees what, against another implementation."""

import pytest
import torch
from torch import nn

from lcrec.baselines.shared.transformer import Block, Encoder, Positions, allowed_keys, initialise
from lcrec.core.errors import InputError

REAL = torch.tensor([[True, True, True, True], [True, True, False, False]])


def encoder(**options):
    torch.manual_seed(0)
    return Encoder(2, 8, 2, 16, 0.0, 0.0, **options).eval()


def vectors(seed=0, length=4):
    return torch.randn(2, length, 8, generator=torch.Generator().manual_seed(seed))


def test_who_sees_whom():
    causal = allowed_keys(REAL, causal=True)
    assert causal.shape == (2, 1, 4, 4)
    assert causal[0, 0].int().tolist() == [[1, 0, 0, 0], [1, 1, 0, 0], [1, 1, 1, 0], [1, 1, 1, 1]]
    assert causal[1, 0].int().tolist() == [[1, 0, 0, 0], [1, 1, 0, 0], [1, 1, 1, 0], [1, 1, 0, 1]]
    both_ways = allowed_keys(REAL, causal=False)
    assert both_ways[0].all()
    assert both_ways[1, 0].int().tolist() == [
        [1, 1, 0, 0], [1, 1, 0, 0], [1, 1, 1, 0], [1, 1, 0, 1],
    ]  # fmt: skip


@torch.no_grad()
@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("side", ["front", "end"])
def test_padding_changes_nothing(causal, side):
    model, x = encoder(), vectors(length=3)
    noise = vectors(1, length=2)
    plain = model(x, torch.ones(2, 3, dtype=torch.bool), causal=causal)
    parts = (noise, x) if side == "front" else (x, noise)
    padded = torch.cat(parts, dim=1)
    real = torch.tensor([[False] * 2 + [True] * 3] * 2)
    real = real if side == "front" else real.flip(1)
    states = model(padded, real, causal=causal)
    assert not states.isnan().any()
    assert torch.allclose(states[real].view(2, 3, 8), plain, atol=1e-6)


@torch.no_grad()
@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("asked", [([0, 1], [3, 1]), ([0, 0, 1], [0, 2, 1])])
def test_places_asked_for_are_those_of_the_whole(causal, asked):
    model, x = encoder(), vectors()
    places = tuple(map(torch.tensor, asked))
    whole = model(x, REAL, causal=causal)
    states = model(x, REAL, causal=causal, asked=places)
    assert torch.allclose(states, whole[places], atol=1e-6)


def test_a_last_block_computes_nothing_but_the_one_place_that_is_asked():
    model, widths = encoder(), []
    model.blocks[-1].feed_forward.register_forward_pre_hook(
        lambda _, given: widths.append(given[0].shape[1])
    )
    for asked in [([0, 1], [3, 1]), ([0, 0, 1], [0, 2, 1])]:
        model(vectors(), REAL, causal=True, asked=tuple(map(torch.tensor, asked)))
    assert widths == [1, 4]


@torch.no_grad()
def test_a_block_is_torchs_own_post_norm_layer():
    block = Block(8, 2, 16, 0.0, 0.0).eval()
    for part in block.parameters():
        part.normal_(generator=torch.Generator().manual_seed(part.numel()))
    theirs = nn.TransformerEncoderLayer(
        8, 2, 16, 0.0, activation="gelu", batch_first=True, layer_norm_eps=1e-12
    ).eval()
    attention = block.attention
    projections = (attention.query, attention.key, attention.value)
    theirs.self_attn.in_proj_weight.copy_(torch.cat([part.weight for part in projections]))
    theirs.self_attn.in_proj_bias.copy_(torch.cat([part.bias for part in projections]))
    pairs = [
        (theirs.self_attn.out_proj, attention.out), (theirs.linear1, block.feed_forward[0]),
        (theirs.linear2, block.feed_forward[2]), (theirs.norm1, block.attention_norm),
        (theirs.norm2, block.feed_forward_norm),
    ]  # fmt: skip
    for other, ours in pairs:
        other.load_state_dict(ours.state_dict())
    x = vectors()
    ours = block(x, allowed_keys(REAL, causal=True))
    expected = theirs(x, src_mask=nn.Transformer.generate_square_subsequent_mask(4))
    assert torch.allclose(ours[0], expected[0], atol=1e-5)
    assert torch.allclose(ours[1, :2], expected[1, :2], atol=1e-5)


def test_a_scale_that_starts_at_nothing_and_is_learnt():
    model, x = encoder(residual_scale=1e-8), vectors()
    states = model(x, REAL, causal=False)
    norm = nn.LayerNorm(8, eps=1e-12)
    assert torch.allclose(states, norm(x), atol=1e-5)
    states.square().mul(torch.arange(8.0)).sum().backward()
    assert all(block.scales.grad.abs().min() > 0 for block in model.blocks)
    assert encoder().blocks[0].scales is None


@torch.no_grad()
def test_one_sequence_looks_at_another():
    torch.manual_seed(0)
    block = Block(8, 2, 16, 0.0, 0.0).eval()
    x, context = vectors(), vectors(1)
    allowed = allowed_keys(REAL, causal=True)
    states = block(x, allowed, context)
    assert torch.allclose(block(x, allowed), block(x, allowed, x))
    later = context.clone()
    later[:, 2:] += 1
    changed = block(x, allowed, later)
    assert torch.allclose(changed[:, :2], states[:, :2], atol=1e-6)
    assert not torch.allclose(changed[:, 2:], states[:, 2:], atol=1e-3)


def test_positions_first_weights_and_heads():
    torch.manual_seed(0)
    positions = Positions(5, 8, 0.0)
    x = torch.ones(1, 3, 8)
    states = positions(x)
    assert torch.allclose(states, positions.norm(x + positions.table.weight[:3]))
    model = nn.ModuleList([nn.Linear(100, 100), nn.Embedding(200, 100, padding_idx=7)])
    initialise(model)
    assert float(model[0].weight.detach().std()) == pytest.approx(0.02, rel=0.05)
    assert float(model[1].weight.detach().std()) == pytest.approx(0.02, rel=0.05)
    assert not model[0].bias.any()
    assert not model[1].weight[7].any()
    with pytest.raises(InputError, match="--dim 8 cannot be split among --heads 3"):
        Block(8, 3, 16, 0.0, 0.0)
