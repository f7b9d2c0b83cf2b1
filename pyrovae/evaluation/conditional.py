"""log p of a part of each datum given another part of it, by importance sampling from two guides."""

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from pyrovae.common import InputError, device_of, evaluates, require, require_compile, require_plain, require_size
from pyrovae.data import moved
from pyrovae.evaluation.arguments import check_args, tensors_in
from pyrovae.evaluation.estimate import Estimate, MarginalLikelihood
from pyrovae.evaluation.expectation import smallest_ess_in_words
from pyrovae.evaluation.importance_sampling import log_marginal
from pyrovae.evaluation.remedy_words import FOR_CELLS, advice
from pyrovae.evaluation.weights_verdict import are_few, largest_k, verdict_of
from pyrovae.programs import check_guide_sees_parts, check_model_sees_parts, observing_parts, takes_pair


@dataclass(frozen=True, repr=False)
class ConditionalLikelihood(Estimate):
    """Holds log p(x_a | x_b) of each datum, as `conditional_log_marginal` returns it, in nats.

    For data that share latents it is one value, of all data together.

    Args:
        value: log p(x_a | x_b), `(batch,)`: of each datum, the log-density of its other cells given the given ones.
        standard_error: Its standard error, from those of both terms, whose draws are independent.
        whole: log p(x_a, x_b), as `log_marginal` returns it.
        part: log p(x_b), as `log_marginal` returns it; exactly 0 where nothing is given.
        is_asked: True for each datum of which a cell is asked for, `(batch,)`. Without one its value is exactly 0.

    Example:
        >>> vae = pv.VAE((3,), latent_dim=1, hidden=(8,), likelihood=pv.Gaussian(0.5), missing="mask")
        >>> given = torch.tensor([True, False, False])
        >>> found = pv.conditional_log_marginal(vae, torch.zeros(4, 3), given=given, num_samples=500)
        >>> torch.equal(found.value, found.whole.log_px - found.part.log_px)
        True
    """

    whole: MarginalLikelihood
    part: MarginalLikelihood
    is_asked: Tensor

    @property
    def jackknife(self) -> Tensor:
        """log p(x_a | x_b) from the jackknife estimates of both terms, `(batch,)`, in nats: with less bias."""
        return torch.where(self.is_asked, self.whole.jackknife - self.part.jackknife, 0.0)

    @property
    def ess(self) -> Tensor:
        """The smaller effective sample size of the two terms, `(batch,)`; all draws where nothing is asked."""
        return torch.where(self.is_asked, torch.minimum(self.whole.ess, self.part.ess), self.whole.num_samples)

    @property
    def pareto_k(self) -> Tensor:
        """The larger Pareto k of the two terms, `(batch,)`; nan where one is unknown and the other is not above 0.7.

        It is -inf where nothing is asked.
        """
        return torch.where(self.is_asked, largest_k(self.whole.pareto_k, self.part.pareto_k), -torch.inf)

    @property
    def is_unreliable(self) -> Tensor:
        """True for each datum with a Pareto k above 0.7 in either term, `(batch,)`."""
        return self.is_asked & (self.whole.is_unreliable | self.part.is_unreliable)

    @property
    def verdict(self) -> str:
        """A conclusion about how far to believe the values, and in which direction they may be off."""
        num, signs = self.whole.num_samples, []
        for name, term, way in (("log p(x_a, x_b)", self.whole, "low"), ("log p(x_b)", self.part, "high")):
            bad = int((self.is_asked & term.is_unreliable).sum())
            if not are_few(bad, len(self.value)):  # a datum alone with a large k is off on either side
                signs.append(f"too {way} where {name} is bad ({bad:,})")
        remedies = dict.fromkeys((*self.whole.remedies, *self.part.remedies))
        take, good = advice(remedies, num, FOR_CELLS), smallest_ess_in_words(self.ess, num)
        bad_words, particles = ("not to be relied on", "off by an unknown amount"), self.whole.num_particles
        found = verdict_of(self.pareto_k, num, take, good, bad_words, num_particles=particles)
        return f"{found}; values may be {', '.join(signs)}" if signs else found

    def __repr__(self) -> str:
        return f"log p(x_a | x_b) of {len(self.value):,} data: mean {self.mean_in_words}\n{self.verdict}"


@takes_pair
@evaluates
def conditional_log_marginal(
    model: Callable,
    guide: Callable,
    x: Tensor,
    *y: object,
    given: Tensor,
    num_samples: int = 5_000,
    plate: str | None = None,
    chunk_size: int | None = None,
    compile: bool | str = "auto",
    progress: bool | None = None,
) -> ConditionalLikelihood:
    """Estimates log p of some cells of each datum given others, at beta = 1.

        log p(x_a | x_b) = log p(x_a, x_b) - log p(x_b)

    x_b are the cells of x that `given` says, x_a the others. Cells of x that are NaN are in neither. Each term comes
    from `log_marginal` with the guide at what that term is of: draws of q(z|x_a, x_b) for the first and of q(z|x_b) for
    the second. (Draws of q(z|x_a, x_b) for both would need no other guide, and fail: with one cell given, nine asked
    and the exact posterior as guide, the second term's weights have no variance.) The draws are independent, so that

        standard_error^2 = standard_error(log p(x_a, x_b))^2 + standard_error(log p(x_b))^2

    Both terms are lower bounds in expectation, so that the difference is biased in neither direction for sure: too low
    where the first term is bad, too high where the second is. `pareto_k` is the larger of theirs. Where nothing is
    asked the value is exactly 0, and where nothing is given the second term is.

    Model and guide must take a part of the data. A VAE with `missing="mask"` does. Of any other model each observed
    value that is a cell of x is left out where the cell is; distributions of several elements without densities of
    their own (`MultivariateNormal`) must be observed whole or not at all. The guide needs an argument `mask`: it gets x
    with 0 in the cells left out, and a mask that is True where x is observed. A guide without it gets NaN there. One
    that fails at NaN or draws the same with or without cells, as an autoguide does, is refused.

    Everything else that the model observes (labels) is given in both terms. If the data share latents, the terms are
    joint evidences: with whole rows given, it is log p of the other rows given those.

    Args:
        model: The generative program p(x, z) of any pair.
        guide: The guide q(z|x), for any part of x.
        x: The data, `(batch, ...)`, floating-point, NaN where a cell is missing.
        *y: What model and guide take besides.
        given: True for each cell that is given, `(batch, ...)` as x, or `(...)`, the same for each datum.
        num_samples: As in `log_marginal`, for each of the two terms.
        plate: As in `log_marginal`.
        chunk_size: As in `log_marginal`.
        compile: As in `log_marginal`.
        progress: True shows a progress bar, False none, None one on a terminal.

    Returns:
        A `ConditionalLikelihood` with the estimates, their errors and both terms.

    Raises:
        InputError: If the pair is refused, or cannot take a part of x; if no observed cell is given, or none is left.

    Example:
        >>> vae = pv.LinearGaussianVAE(torch.ones(3, 2), torch.zeros(3), 0.5, torch.zeros(2))
        >>> def guide(x, mask):  # a wide one
        ...     loc = (torch.where(mask, x, 0.0).sum(-1) / (mask.sum(-1) + 0.3))[:, None] / 2
        ...     with pyro.plate("data", len(x)):
        ...         pyro.sample("z", pyro.distributions.Normal(loc.expand(-1, 2), 1.0).to_event(1))
        >>> given = torch.tensor([True, False, False])
        >>> found = pv.conditional_log_marginal(vae.model, guide, torch.zeros(4, 3), given=given)
        >>> one, rest = torch.tensor([[1.0]]), torch.ones(3, 3) * 2 + torch.eye(3) / 4  # the covariance of x
        >>> normal = torch.distributions.MultivariateNormal
        >>> exact = normal(torch.zeros(3), rest).log_prob(torch.zeros(3))
        >>> exact = exact - normal(torch.zeros(1), rest[:1, :1]).log_prob(torch.zeros(1))
        >>> bool(((found.value - exact).abs() < 5 * found.standard_error).all())
        True

    Source:
        Wu, Burda, Salakhutdinov and Grosse 2017, arXiv:1611.04273 (log p(x) by sampling); Mattei and Frellsen 2019,
        arXiv:1812.02633 (the guide at the observed cells).
    """
    require_size("num_samples", num_samples)
    require_compile(compile)
    hidden = _hidden(x, given)
    part = torch.where(hidden, torch.nan, x)
    programs, device = observing_parts(model, guide), device_of(model, tensors_in((x, *y)))
    check_args(programs[0], (x, *y))
    check_guide_sees_parts(guide, *(moved((one, *y), device) for one in (part, x)))
    check_model_sees_parts(model, guide, moved((part, *y), device))
    settings = {"num_samples": num_samples, "plate": plate, "chunk_size": chunk_size, "compile": compile}
    terms = [log_marginal(*programs, one, *y, **settings, progress=progress) for one in (x, part)]  # type: ignore[arg-type]
    whole, of_given = terms
    asked = torch.ones_like(whole.value, dtype=torch.bool)
    if len(asked) == len(x):
        given_some = (~part.isnan()).flatten(1).any(1).to(asked.device)
        asked = hidden.flatten(1).any(1).to(asked.device)
        of_given = _known_to_be_0(of_given, ~given_some)
    value = torch.where(asked, whole.value - of_given.value, 0.0)
    error = (whole.standard_error.square() + of_given.standard_error.square()).sqrt()
    moved_by = _influences(whole, of_given)
    return ConditionalLikelihood(
        value,
        torch.where(asked, error, 0.0),
        whole,
        of_given,
        asked,
        influences=None if moved_by is None else torch.where(asked, moved_by, 0.0),
    )


def _known_to_be_0(term: MarginalLikelihood, at: Tensor) -> MarginalLikelihood:
    """Returns log p(x_b) with the 0 that it is, without an error, for data of which nothing is given."""
    moved_by = term.influences
    return replace(
        term,
        value=torch.where(at, 0.0, term.value),
        standard_error=torch.where(at, 0.0, term.standard_error),
        influences=None if moved_by is None else torch.where(at, 0.0, moved_by),
        jackknife=torch.where(at, 0.0, term.jackknife),
        smoothed=torch.where(at, 0.0, term.smoothed),
        bounds=torch.where(at, 0.0, term.bounds),
        bounds_error=torch.where(at, 0.0, term.bounds_error),
        ess=torch.where(at, term.num_samples, term.ess),
        pareto_k=torch.where(at, -torch.inf, term.pareto_k),
    )


def _influences(whole: MarginalLikelihood, part: MarginalLikelihood) -> Tensor | None:
    """Returns how groups of draws of both terms move their difference, where it is known."""
    one, other = whole.influences, part.influences
    return None if one is None or other is None or one.shape != other.shape else one - other


def _hidden(x: Tensor, given: Tensor) -> Tensor:
    """Returns which observed cells of x are asked for, `(batch, ...)`, after checks of x and of what is given."""
    require_plain("x", x)
    kind = x.dtype
    require(x.is_floating_point(), f"x must be a floating-point tensor, in which NaN can stand for a cell, got {kind}")
    require_plain("given", given)
    rule = f"given must be a tensor of True and False, of shape {tuple(x.shape)} or {tuple(x.shape[1:])}"
    found = given.dtype if given.dtype != torch.bool else tuple(given.shape)
    fits = given.dtype == torch.bool and x.dim() > 0 and given.shape in (x.shape, x.shape[1:])
    require(fits, f"{rule}, got {found}")
    there = ~x.isnan()
    hidden = there & ~given.to(x.device)
    if not bool(hidden.any()):
        raise InputError("given must leave some observed cell of x to ask for, and leaves none")
    require(bool((there & given.to(x.device)).any()), "given must hold some observed cell of x, and holds none")
    return hidden
