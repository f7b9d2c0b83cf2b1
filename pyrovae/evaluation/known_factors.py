"""What each latent dimension says about each known factor of the data, and the mutual information gap."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from pyrovae.common import evaluates, require, require_plain, require_sequence, require_size
from pyrovae.evaluation.arguments import arguments_of
from pyrovae.evaluation.diagnostics import DIMENSIONS_SHOWN
from pyrovae.models import VAE, Diagonal

PAIRS_AT_A_TIME = 2**20  # of a draw and a datum


@dataclass(frozen=True)
class FactorInformation:
    """Holds what each latent says about each factor, in nats, as `factor_information` returns it; prints as a table.

    Args:
        information: I_q(z_j; v_k), `(latent_dim, num_factors)`.
        standard_error: The Monte Carlo error of each, from the draws of z for these data.
        by_chance: What the same estimate gives with each factor's values dealt to the data at random, where the truth
            is 0. It is large if the posteriors are so narrow that the data are too few to fill the latent space; then
            `information` says little.
        entropy: H(v_k), `(num_factors,)`, the most that z_j can say.

    Example:
        >>> found = torch.tensor([[0.5, 0.0], [0.1, 0.2]])
        >>> two = pv.FactorInformation(found, 0 * found, 0 * found, torch.tensor([1.0, 2.0]))
        >>> two.gaps  # (0.5 - 0.1) / 1 and (0.2 - 0) / 2
        tensor([0.4000, 0.1000])
        >>> round(two.mig, 4)
        0.25
    """

    information: Tensor
    standard_error: Tensor
    by_chance: Tensor
    entropy: Tensor

    @property
    def gaps(self) -> Tensor:
        """(I_q(z_a; v_k) - I_q(z_b; v_k)) / H(v_k) of the two latents a, b that say most of factor k, `(num_factors,)`.

        It is 1 if one latent says all of a factor and no other says any of it. If there is one latent, b says nothing.
        """
        none = self.information.new_zeros(1, self.information.shape[1])
        first, second = torch.cat((self.information, none)).topk(2, dim=0).values
        return (first - second) / self.entropy

    @property
    def mig(self) -> float:
        """The mutual information gap, the mean of `gaps` over the factors."""
        return self.gaps.mean().item()

    def __repr__(self) -> str:
        num_factors = len(self.entropy)
        lines = [f"{'nats':10}" + "".join(f"{f'factor {k + 1}':>12}" for k in range(num_factors))]
        shown = self.information[:DIMENSIONS_SHOWN].tolist()
        for name, row in (
            *((f"z_{j + 1}", row) for j, row in enumerate(shown)),
            ("by chance", self.by_chance.max(0).values.tolist()),
            ("entropy", self.entropy.tolist()),
            ("gap", self.gaps.tolist()),
        ):
            lines.append(f"{name:10}" + "".join(f"{value:12.3f}" for value in row))
        return "\n".join((*lines, f"mutual information gap {self.mig:.3f}"))


@evaluates
@torch.no_grad()
def factor_information(vae: VAE, *args: Tensor, factors: Sequence[Tensor], num_draws: int = 4) -> FactorInformation:
    """Estimates the mutual information of each latent dimension and each known factor of the data.

        I_q(z_j; v_k) = 1/N sum_n E_{q(z_j|x_n)}[log q(z_j|v_k(x_n)) - log q(z_j)]
        q(z_j) = 1/N sum_n q(z_j|x_n),    q(z_j|v) = the mean of q(z_j|x_n) over the data with v_k(x_n) = v

    Both mixtures are summed exactly over all data given, so that the time grows with N^2 `num_draws` `latent_dim`. For
    these data the information is not biased; for the population it is too high, and `by_chance` shows by how much.

    Args:
        vae: A VAE with the posterior "diagonal".
        *args: The data `(num, *event_shape)`, and the conditions if it has any.
        factors: The factors, each a tensor of whole numbers, `(num,)`.
        num_draws: The number of draws of z for each datum, at least 2.

    Returns:
        A `FactorInformation`.

    Raises:
        InputError: If the posterior is another one, or a factor does not have a whole number for each datum or has only
            one value.

    Example:
        >>> data = pv.load("sprites", num_train=10, num_test=50)
        >>> vae = pv.VAE(data.event_shape, latent_dim=3, hidden=(8,), likelihood=pv.Bernoulli())
        >>> found = pv.factor_information(vae, data.test_x, factors=data.test_y)
        >>> found.information.shape
        torch.Size([3, 5])

    Source:
        Chen et al. 2018, "Isolating sources of disentanglement in VAEs", arXiv:1802.04942.
    """
    require_size("num_draws", num_draws, 2)
    args = arguments_of(vae, args)
    require(isinstance(vae.posterior_family, Diagonal), "the information of a dimension needs posterior diagonal")
    require_sequence("factors", factors, "tensors, one for each factor")
    require(len(factors) > 0, "factors must hold at least one, got none")
    q = vae.encode(*args).base_dist
    columns = [_column(factor, k, len(q.loc)) for k, factor in enumerate(factors, 1)]
    loc, scale = (part.double() for part in (q.loc, q.scale))
    z = loc + scale * torch.randn(num_draws, *loc.shape, dtype=loc.dtype, device=loc.device)
    # Each factor twice: as it is, and with its values dealt at random.
    dealt = [column[torch.randperm(len(column), device="cpu").to(column.device)] for column in columns]
    found = [_of_dimension(z[..., j], loc[:, j], scale[:, j], [*columns, *dealt]) for j in range(len(z[0, 0]))]
    mean, error = map(torch.stack, zip(*found, strict=True))
    shares = [column.bincount().double() / len(column) for column in columns]
    return FactorInformation(
        information=mean[:, : len(columns)],
        standard_error=error[:, : len(columns)],
        by_chance=mean[:, len(columns) :],
        entropy=torch.stack([-torch.xlogy(share, share).sum() for share in shares]),
    )


def _of_dimension(z: Tensor, loc: Tensor, scale: Tensor, columns: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    """Returns the information of one latent and each factor, and its standard error: `(num_factors,)` each.

    z is `(num_draws, N)`; loc, scale and each column are `(N,)`.
    """
    members = [torch.nn.functional.one_hot(column).to(z) for column in columns]
    means = torch.cat([torch.ones_like(loc)[:, None] / len(loc), *(one / one.sum(0) for one in members)], 1)
    widths = [one.shape[1] for one in members]
    flat, parts = z.flatten(), []
    rows = max(1, PAIRS_AT_A_TIME // len(loc))
    for start in range(0, len(flat), rows):
        log_density = -0.5 * ((flat[start : start + rows, None] - loc) / scale).square() - scale.log()
        density = (log_density - log_density.max(1, keepdim=True).values).exp()  # the factor taken off cancels below
        parts.append((density @ means).log())
    whole, *given = torch.cat(parts).split([1, *widths], 1)
    own = [log_q.gather(1, column.repeat(len(z))[:, None]) for log_q, column in zip(given, columns, strict=True)]
    terms = (torch.cat(own, 1) - whole).unflatten(0, z.shape)  # each of a draw of its own
    return terms.mean((0, 1)), (terms.var(0).sum(0) / len(z)).sqrt() / len(loc)


def _column(factor: Tensor, k: int, num: int) -> Tensor:
    """Returns the values of factor number k as numbers 0, 1, 2, ... of those that occur."""
    if isinstance(factor, Tensor):
        require_plain("factors", factor)
    is_whole = isinstance(factor, Tensor) and not (factor.is_floating_point() or factor.is_complex())
    rule = f"factors must be tensors of whole numbers, ({num},) as there are data"
    got = f"{factor.dtype} {tuple(factor.shape)}" if isinstance(factor, Tensor) else type(factor).__name__
    require(is_whole and factor.shape == (num,), f"{rule}, got {got}")
    values, column = factor.unique(return_inverse=True)
    require(len(values) > 1, f"each factor must take at least two values, and factor {k} takes one: {values[0].item()}")
    return column
