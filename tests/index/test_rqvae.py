"""The quantised autoencoder: its pieces by hand, its start, its file."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from planted import identity_rqvae, toy_clusters
from safetensors.torch import save_file
from sklearn.cluster import KMeans
from torch.nn import functional as F

from lcrec.core.errors import InputError
from lcrec.index.rqvae import RQVAE, read_codebooks
from lcrec.index.rqvae_training import explained_variance


def make_model(input_dim=6, **settings):
    torch.manual_seed(0)
    defaults = {"hidden_dims": [8], "latent_dim": 4, "num_levels": 2, "num_codes": 4}
    return RQVAE(input_dim, **{**defaults, **settings})


def test_the_last_level_is_balanced_in_training_only():
    model = make_model(num_codes=4, sinkhorn_epsilons=[0, 0.003])
    latents = torch.randn(64, 4) * 0.01 + model.codebooks()[0, 0]
    nearest = model.nearest_codes(latents)
    assert nearest[:, 0].eq(0).all()

    model.eval()
    torch.testing.assert_close(model.quantizer(latents)[1], nearest)
    model.train()
    trained = model.quantizer(latents)[1]
    torch.testing.assert_close(trained[:, 0], nearest[:, 0])
    assert trained[:, 1].bincount(minlength=4).tolist() == pytest.approx([16] * 4, abs=2)

    plain = make_model(num_codes=4).train()
    latents = torch.randn(64, 4)
    torch.testing.assert_close(plain.quantizer(latents)[1], plain.nearest_codes(latents))


@given(seed=st.integers(0, 999), items=st.integers(1, 40))
@settings(deadline=None, max_examples=30)
def test_nearest_codes_equal_brute_force(seed, items):
    model = make_model(num_levels=3, num_codes=7)
    generator = torch.Generator().manual_seed(seed)
    for layer in model.quantizer.layers:
        layer._codebook.embed.data = torch.randn(1, 7, 4, generator=generator)
    latents = torch.randn(items, 4, generator=generator)
    codes = model.nearest_codes(latents)
    assert (codes.shape, codes.dtype) == ((items, 3), torch.int64)
    books = model.codebooks().double()
    for latent, row in zip(latents.double(), codes.tolist(), strict=True):
        residual = latent
        for book, code in zip(books, row, strict=True):
            distances = (residual - book).norm(dim=1)
            assert distances[code] <= distances.min() + 1e-4
            residual = residual - book[code]


def test_losses_by_hand():
    model = identity_rqvae([[0, 0], [4, 0]], [[0, 1], [1, 0]])
    # (5, 1) is 4,0 with (1, 1) left, then 0,1 with (1, 0) left.
    losses = model.losses(torch.tensor([[5.0, 1.0]]))
    assert losses.reconstruction.item() == pytest.approx(1 / 2)
    # Each level's mean squared error: (1 + 1) / 2 and (1 + 0) / 2, then their mean.
    assert losses.codebook.item() == pytest.approx((1 + 1 / 2) / 2)
    assert losses.commitment.item() == pytest.approx(losses.codebook.item())
    assert losses.total.item() == pytest.approx(0.5 + 0.75 + 0.25 * 0.75)


def test_some_items_are_reconstructed_from_a_prefix_in_training():
    vectors = torch.tensor([1.0, 10.0, 100.0])[:, None, None].expand(3, 12, 1)
    model = make_model(latent_dim=1, num_levels=3).train()
    whole = [111.0] * 4
    assert model._sums(vectors)[:, 0].tolist() == [1.0, *whole, 11.0, *whole, 1.0, 111.0]
    assert model.eval()._sums(vectors)[:, 0].tolist() == [111.0] * 12
    published = make_model(latent_dim=1, num_levels=3, parity=True).train()
    assert published._sums(vectors)[:, 0].tolist() == [111.0] * 12
    assert make_model(latent_dim=1, num_levels=1).train()._sums(vectors[:1]).eq(1).all()


def test_the_straight_through_gradient_reaches_the_encoder_once():
    embeddings = torch.randn(10, 6)
    model = make_model(num_levels=3).eval()
    weights = list(model.encoder.parameters())
    gradients = torch.autograd.grad(model.losses(embeddings).reconstruction, weights)

    latents = model.encode(embeddings)
    codes = model.quantizer.get_codes_from_indices(model.nearest_codes(latents))
    quantized = codes.sum(0).detach().requires_grad_()
    loss = F.mse_loss(model.decoder(quantized), embeddings)
    (upstream,) = torch.autograd.grad(loss, quantized)
    expected = torch.autograd.grad(latents, weights, upstream)
    assert max(gradient.abs().max() for gradient in gradients) > 1e-4
    for gradient, value in zip(gradients, expected, strict=True):
        torch.testing.assert_close(gradient, value)


def test_which_loss_moves_which_weights():
    model = make_model().eval()
    losses = model.losses(torch.randn(10, 6))
    books = [layer._codebook.embed for layer in model.quantizer.layers]
    encoder = list(model.encoder.parameters())

    def moved(loss, weights):
        gradients = torch.autograd.grad(loss, weights, retain_graph=True, allow_unused=True)
        return [gradient is not None and bool(gradient.any()) for gradient in gradients]

    assert moved(losses.codebook, books) == [True, True]
    assert not any(moved(losses.codebook, encoder))
    assert not any(moved(losses.commitment, books))
    assert all(moved(losses.commitment, [encoder[0]]))
    assert not any(moved(losses.reconstruction, books))


def test_the_codebook_gradient_is_the_papers():
    # Level 1's loss pulls a used code to the mean of its residuals with weight 2 / (levels x dim).
    model = make_model(latent_dim=2, num_codes=2, num_levels=1).eval()
    book = model.quantizer.layers[0]._codebook.embed
    book.data = torch.tensor([[[0.0, 0.0], [99.0, 99.0]]])
    embeddings = torch.randn(5, 6)
    latents = model.encode(embeddings)
    (gradient,) = torch.autograd.grad(model.losses(embeddings).total, book)
    torch.testing.assert_close(gradient[0, 0], -latents.mean(0).detach())
    assert gradient[0, 1].eq(0).all()


def residual_kmeans_variance(points, levels, codes):
    """Return the share of variance that plain residual k-means explains."""
    residual = points.numpy() - points.numpy().mean(0)
    total = (residual**2).sum()
    for level in range(levels):
        fitted = KMeans(codes, n_init=10, random_state=level).fit(residual)
        residual = residual - fitted.cluster_centers_[fitted.labels_]
    return 1 - (residual**2).sum() / total


@pytest.mark.parametrize("seed", range(5))
def test_training_starts_where_residual_kmeans_ends(seed):
    points = toy_clusters(seed)
    model = make_model(latent_dim=6)
    model.initialise(points, seed=seed)
    variance = explained_variance(model, points)
    assert variance[0] < variance[1]
    assert variance[1] >= residual_kmeans_variance(points, 2, 4) - 1e-3
    assert variance[1] > 0.99


def test_without_quantisation_the_start_is_pca():
    torch.manual_seed(0)
    points = torch.randn(50, 2) @ torch.randn(2, 6) + 3
    model = make_model(latent_dim=2)
    model.initialise(points, seed=0)
    # Two components carry everything there is.
    torch.testing.assert_close(model.decode(model.encode(points)), points, rtol=1e-3, atol=1e-3)


def test_dead_codes_move_to_badly_served_items_and_no_more_than_need_them():
    model = identity_rqvae([[0, 0], [1000, 0], [1000, 1000]])
    book = model.quantizer.layers[0]._codebook.embed
    latents = torch.tensor([[0.0, 0.0], [0.0, 0.0], [5.0, 0.0], [0.0, 7.0]])
    generator = torch.Generator().manual_seed(0)
    assert model.revive_dead_codes(latents, generator) == 2
    assert sorted(map(tuple, book[0].tolist())) == [(0, 0), (0, 7), (5, 0)]
    assert model.nearest_codes(latents).unique().numel() == 3
    before = book.clone()
    assert model.revive_dead_codes(latents, generator) == 0
    assert book.equal(before)
    model = identity_rqvae([[0, 0], [9, 9], [9, 8], [8, 9]])
    generator = torch.Generator().manual_seed(0)
    assert model.revive_dead_codes(torch.tensor([[0.0, 0.0], [1.0, 0.0]]), generator) == 1
    assert model.revive_dead_codes(torch.zeros(3, 2), generator) == 0
    model = identity_rqvae(*[[[0, 0], [1000, 0]]] * 2)
    first, second = (layer._codebook.embed for layer in model.quantizer.layers)
    latents = torch.tensor([[0.0, 0.0], [6.0, 0.0]])
    # The first level then serves both exactly, so the second needs nothing.
    assert model.revive_dead_codes(latents, torch.Generator()) == 1
    assert first[0].tolist() == [[0, 0], [6, 0]]
    assert second[0].tolist() == [[0, 0], [1000, 0]]


def test_a_model_is_read_back_as_it_was(tmp_path):
    model = make_model(hidden_dims=[], sinkhorn_epsilons=[0.0, 0.01], commitment_weight=0.5)
    model.initialise(toy_clusters(), seed=0)
    model.save(tmp_path / "rqvae.safetensors")
    read = RQVAE.load(tmp_path / "rqvae.safetensors")
    assert read.settings == model.settings
    assert not read.training
    points = toy_clusters(seed=1)
    assert torch.equal(read.encode(points), model.encode(points))
    assert torch.equal(read.decode(read.encode(points)), model.decode(model.encode(points)))
    assert torch.equal(read.codebooks(), model.codebooks())
    model = make_model(input_dim=6)
    with pytest.raises(InputError, match="embeddings are 5 wide, the RQ-VAE was trained on 6"):
        model.encode(torch.zeros(3, 5))


def test_a_file_that_is_no_model_is_refused(tmp_path):
    path = tmp_path / "rqvae.safetensors"
    with pytest.raises(InputError, match="not an RQ-VAE of this version"):
        RQVAE.load(path)
    path.write_text("no tensors")
    with pytest.raises(InputError, match="not an RQ-VAE of this version"):
        RQVAE.load(path)
    # Weights without the model's shape, as an earlier version wrote them: the codebooks are read.
    model = make_model()
    save_file(model.state_dict(), path)
    assert torch.equal(read_codebooks(path, (4, 4)), model.codebooks())
    assert torch.equal(read_codebooks(path, (4, 4, 9)), model.codebooks())  # the last one counts
    with pytest.raises(InputError, match=r"levels of \[4, 4\] codes, .* \[4, 4, 4, 4\]"):
        read_codebooks(path, (4, 4, 4, 4))
    with pytest.raises(InputError, match=r"rqvae.safetensors: .*python -m lcrec.quantize"):
        RQVAE.load(path)


def test_a_file_without_the_indexs_codebooks_is_refused(tmp_path):
    with pytest.raises(InputError, match="cannot be read"):
        read_codebooks(tmp_path / "rqvae.safetensors", (7, 7, 7))
    save_file({"weight": torch.zeros(2)}, tmp_path / "rqvae.safetensors")
    with pytest.raises(InputError, match="levels of \\[\\] codes"):
        read_codebooks(tmp_path / "rqvae.safetensors", (7, 7, 7))
