"""How a prompt is answered by a group of items: the best of the beam, or draws without repetition.

Both encode a prompt once for all its answers (`lcrec.generate.beams`), and both can answer with
nothing but real items. `gumbel` draws from the distribution of the constrained model: at each node
of the tree a softmax over its children, so that the probabilities of all items sum to 1. The G
draws are those of sampling without replacement, by stochastic beam search (Kool et al., arXiv
1903.06059): each leaf's log-probability plus its own Gumbel noise, of which the G largest are kept,
found top down because the largest of a subtree is itself Gumbel about its log-probability. A mean
over the distribution is a sum over the draws, each weighted by its probability over the chance that
it is above the largest noise left out.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from lcrec.generate.beams import Model, beam_search, open_children
from lcrec.generate.item_filter import LeafFilter
from lcrec.generate.trie import ItemTrie


@dataclass(frozen=True)
class Draws:
    """Items drawn for each prompt, the likeliest first and distinct.

    Attributes:
        items: int64 [batch, group], catalogue ids.
        log_probs: exact log-probabilities under the constrained distribution, float32 [batch,
            group].
        weights: the sum of them times any function of the items has that function's mean over the
            distribution as its expectation (Kool et al., section 4.2), float32 [batch, group].
    """

    items: Tensor
    log_probs: Tensor
    weights: Tensor


def draw_items(
    model: Model,
    input_ids: Tensor,
    attention_mask: Tensor,
    trie: ItemTrie,
    group: int,
    generator: torch.Generator,
    *,
    leaf_filter: LeafFilter | None = None,
) -> Draws:
    """Draw `group` items per prompt without repetition, in proportion to their probability.

    Args:
        model, input_ids, attention_mask, trie, leaf_filter: as for `lcrec.generate.search.search`.
        group: how many; no more than the filter leaves.
        generator: decides the draws, on the CPU.

    Returns:
        The draws; the distribution is that of what the filter allows.
    """
    walk = GumbelWalk(generator)
    size = min(group + 1, trie.num_items)  # one more shows where the others begin
    found = beam_search(
        model, input_ids, attention_mask, trie, size, leaf_filter=leaf_filter, advance=walk.advance
    )
    assert walk.scores is not None
    assert walk.perturbed is not None
    # In the order that the search returns items in.
    order = walk.scores.sort(dim=1, descending=True, stable=True).indices
    perturbed = walk.perturbed.gather(1, order)
    least = torch.full_like(perturbed[:, :1], -torch.inf)
    items, log_probs = found.items, found.scores
    if size > group:
        least, left_out = perturbed.min(dim=1, keepdim=True)
        kept = torch.arange(size, device=items.device) != left_out
        items, log_probs = items[kept].view(-1, group), log_probs[kept].view(-1, group)
    chance = -torch.expm1(-torch.exp(log_probs - least))
    return Draws(items, log_probs, log_probs.exp() / chance)


@dataclass
class GumbelWalk:
    """The steps of stochastic beam search, in place of the steps of beam search.

    Attributes:
        generator: decides the draws, on the CPU.
        perturbed: for every beam the largest perturbed log-probability below it, float32
            [batch, beam]; None before the first step.
        scores: the beams' log-probabilities, of the same shape.
    """

    generator: torch.Generator
    perturbed: Tensor | None = None
    scores: Tensor | None = None

    def advance(
        self,
        trie: ItemTrie,
        level: int,
        nodes: Tensor,
        scores: Tensor,
        logits: Tensor,
        num_beams: int,
        leaf_filter: LeafFilter | None,
        totals: list[Tensor],
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Go one level down; arguments and result as those of beam search's own step."""
        children, tokens, valid = open_children(trie, level, nodes, leaf_filter)
        own = logits.gather(2, tokens).float().masked_fill(~valid, -torch.inf)
        total = own.logsumexp(dim=2)
        # A beam that stands for nothing, where there are fewer nodes than beams, is no fault.
        alive = scores > -torch.inf
        totals.append(torch.where(alive, total, 0))
        log_probs = (scores + torch.where(alive, -total, 0))[..., None] + own
        log_probs = log_probs.masked_fill(~(valid & alive[..., None]), -torch.inf)
        if self.perturbed is None:
            self.perturbed = self._gumbel(scores)  # the largest of all items'
        noisy = self._perturb(log_probs, self.perturbed).flatten(1)
        best, chosen = noisy.topk(min(num_beams, trie.num_nodes(level + 1)), dim=1)
        self.perturbed = best
        self.scores = new = log_probs.flatten(1).gather(1, chosen)
        nodes, tokens = children.flatten(1).gather(1, chosen), tokens.flatten(1).gather(1, chosen)
        return nodes, new, tokens, chosen // trie.max_children(level)

    def _perturb(self, log_probs: Tensor, largest: Tensor) -> Tensor:
        """Add Gumbel noise to children's log-probabilities, given the largest of each parent.

        Kool et al., section 4.1 and appendix B.3, in the form that does not lose digits.

        Args:
            log_probs: float32 [batch, beam, width], -inf where there is no child.
            largest: float32 [batch, beam].
        """
        noisy = log_probs + self._gumbel(log_probs)
        most = noisy.amax(dim=2, keepdim=True)
        target = largest[..., None]
        gap = target - noisy + torch.log1p(-torch.exp((noisy - most).clamp(max=0)))
        found = target - gap.clamp(min=0) - torch.log1p(torch.exp(-gap.abs()))
        return torch.where(log_probs > -torch.inf, found, -torch.inf)

    def _gumbel(self, like: Tensor) -> Tensor:
        """Draw standard Gumbel noise of a tensor's shape, type and device."""
        uniform = torch.rand(like.shape, generator=self.generator, dtype=torch.float64)
        return -torch.log(-torch.log(uniform.clamp(1e-300, 1 - 1e-16))).to(like)
