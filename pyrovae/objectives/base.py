"""The base classes of all objectives: Pyro's ELBO interface, and an estimator as a small frozen value."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

import torch
from pyro.distributions import Delta
from pyro.infer import ELBO as PyroELBO
from torch import Tensor

from pyrovae.common import require, require_count
from pyrovae.objectives.estimator import (
    Coefficients,
    coefficients_at_equal_weights,
    loss_in_chunks,
    loss_in_one_run,
)
from pyrovae.objectives.learning_signal import learning_signal
from pyrovae.objectives.pair_call import PairCall
from pyrovae.objectives.scales import weighted_terms
from pyrovae.objectives.surrogate import sites_without_rsample
from pyrovae.programs import (
    Pair,
    base_of,
    check_no_zero_weights,
    enumerated_states,
    is_marked,
    outside_support,
    warn_of_never_drawn,
)


class DifferentiableELBO(PyroELBO):
    """Provides the interface of `pyro.infer.ELBO` to subclasses that give `_differentiable_loss` and `check`.

    `_differentiable_loss` returns a 0-dim tensor.
    """

    def check(self, pair: Pair) -> None:
        """Raises `InputError` if training the pair through this would go to a wrong gradient or bound."""

    def differentiable_loss(self, model: Callable, guide: Callable, *args, **kwargs) -> Tensor:
        """Returns the loss as a 0-dim tensor with this estimator's gradient, for every parameter of the pair.

        Args:
            model: A Pyro program that observes the data.
            guide: A Pyro program that draws the model's latent sites.
            *args: What both programs take, the data `(batch, *event)` first.
            **kwargs: Further arguments of both programs.

        Returns:
            Minus the bound, summed over the data plate, in nats.

        Raises:
            InputError: The pair breaks the contract, or does not fit the objective.
        """
        return self._differentiable_loss(PairCall(model, guide, args, kwargs, self))

    def _differentiable_loss(self, call: PairCall) -> Tensor:
        raise NotImplementedError

    def loss(self, model: Callable, guide: Callable, *args, **kwargs) -> float:
        """Returns the value of `differentiable_loss`, without a gradient."""
        with torch.no_grad():
            return self.differentiable_loss(model, guide, *args, **kwargs).item()

    def loss_and_grads(self, model: Callable, guide: Callable, *args, **kwargs) -> float:
        """Returns the value of `differentiable_loss`, and adds its gradient to that of every parameter."""
        loss = self.differentiable_loss(model, guide, *args, **kwargs)
        if loss.requires_grad:
            loss.backward()
        return loss.item()

    def _get_trace(self, model, guide, args, kwargs):
        raise NotImplementedError("objectives of pyrovae run the pair by themselves")


@dataclass(frozen=True)
class Objective(DifferentiableELBO):
    """Represents an estimator as a value: frozen, comparable, without state, one for any number of models.

        loss = - scale sum_n bound(log w_1n ... log w_Kn)

    A subclass gives `bound` and, for the gradient, `coefficients`. As with `pyro.infer.ELBO` the loss is summed over
    the data plate, and multiplied by the scale common to all sites. Under a beta on the latents,
    log w_beta = log p(x|z) + beta (log p(z) - log q(z|x)) takes the place of log w, and the bound is none on log p(x).

    Args:
        num_particles: K, the draws of z per datum.
        chunk_size: How many particles are run at a time, if not all of them fit into memory; None runs all at once.
            The gradient is the same.

    Raises:
        InputError: A setting is not a whole number, or too small.

    Example:
        A bound of one's own, with the gradient of plain autograd:

        >>> from dataclasses import dataclass
        >>> @dataclass(frozen=True)
        ... class MyELBO(pv.objectives.Objective):
        ...     def bound(self, log_weights):
        ...         return log_weights.mean(0)
        ...
        ...     def coefficients(self, log_weights, beta):
        ...         return pv.objectives.Coefficients.total(torch.full_like(log_weights, 1 / len(log_weights)), beta)
        >>> vae = pv.VAE((2,), latent_dim=2, hidden=(8,), likelihood=pv.Gaussian(0.5))
        >>> loss = MyELBO(num_particles=4).differentiable_loss(vae.model, vae.guide, torch.zeros(8, 2))
        >>> loss.shape, loss.requires_grad
        (torch.Size([]), True)
    """

    num_particles: int = 1
    chunk_size: int | None = None

    min_particles = 1
    takes_beta = True
    takes_masked = False
    sums_over_marked: ClassVar[bool] = False
    """True if sites of the guide that are marked for enumeration are summed over."""
    reference: ClassVar[type[PyroELBO] | None] = None
    """The objective whose gradient, by plain differentiation, has the same mean; None for a gradient of that kind."""

    def __post_init__(self) -> None:
        require_count("num_particles", self.num_particles, self.min_particles)
        if self.chunk_size is not None:
            require_count("chunk_size", self.chunk_size)

    @property
    def num_draws(self) -> int:
        """Draws of z per datum."""
        return self.num_particles

    def bound(self, log_weights: Tensor) -> Tensor:
        """Returns the estimate for each datum, `(batch,)`, from its log-weights `(num_draws, batch)`."""
        raise NotImplementedError

    def coefficients(self, log_weights: Tensor, beta: Tensor) -> Coefficients:
        """Returns the coefficients of the gradient at these log-weights; called without gradients."""
        raise NotImplementedError

    def without_rsample(self, log_weights: Tensor, beta: Tensor) -> Tensor | None:
        """Returns the factor of d log q(c_k|upstream) for sites c of the guide without `rsample`; see `surrogate`.

        If the gradient is that of plain autograd, it is L - L_-k, or with one draw L (see `learning_signal`), and
        autograd adds the rest. A subclass with a path derivative of another kind says itself what it is, if there is
        such a factor.
        """
        if not coefficients_at_equal_weights(self).is_total:
            return None
        return self._learning_signal(self.bound, log_weights)

    @staticmethod
    def _learning_signal(bound: Callable[[Tensor], Tensor], log_weights: Tensor) -> Tensor:
        """Returns L - L_-k of a bound that is given `(num_draws, batch)` and nothing else."""
        return learning_signal(lambda some: bound(some.flatten(1)).reshape(some.shape[1:]), log_weights)

    def _differentiable_loss(self, call: PairCall) -> Tensor:
        if self.chunk_size is None or self.chunk_size >= self.num_draws:
            return loss_in_one_run(self, call)
        return loss_in_chunks(self, call)

    # Checks -----------------------------------------------------------------------------------------------------------

    def check(self, pair: Pair) -> None:
        """Raises `InputError` if this objective would train the pair to a wrong gradient."""
        name = type(self).__name__
        terms = weighted_terms(pair)
        if not self.takes_beta:
            terms.require_no_beta(self)
        pair.check_masks(
            self.takes_masked,
            f"objective {name} needs latents without a mask (an autoencoder needs objective elbo)",
        )
        terms_of_gradient = coefficients_at_equal_weights(self)
        self._check_enumeration(pair)
        for site_name in sites_without_rsample(pair) if terms_of_gradient.path is not None else ():
            require(
                self.without_rsample(torch.zeros(self.num_draws, 1), torch.ones(())) is not None,
                f'{name} needs a reparameterised guide, and site "{site_name}" has no rsample: use elbo, iwae, dreg, '
                "score_function, vimco or reweighted_wake_sleep, or of few values elbo_enumerated",
            )
        for site_name, site in pair.guide_sites.items():
            if isinstance(base_of(site["fn"]), Delta) and not pair.guide_only:
                require(
                    self.takes_masked,
                    f'{name} needs a guide with a density, and site "{site_name}" is a point (Delta): use elbo, whose '
                    "optimum is then the maximum a posteriori",
                )
        has_path = terms_of_gradient.path is not None and any(s["fn"].has_rsample for s in pair.guide_sites.values())
        if has_path or not self.takes_zero_weights:
            self._check_zero_weights(pair)
        warn_of_never_drawn(pair)
        require(
            pair.is_repeatable or (terms_of_gradient.is_total and self.chunk_size is None),
            f"{name} runs the pair again, which draws from a generator of its own that cannot be set back: use torch's",
        )

    def _check_enumeration(self, pair: Pair) -> None:
        """Raises `InputError` if a site of the guide is marked for enumeration, and this cannot sum over it."""
        marked = {name: site for name, site in pair.guide_sites.items() if is_marked(site)}
        for site_name, site in marked.items():
            require(
                self.sums_over_marked,
                f'{type(self).__name__} draws every site of the guide, and "{site_name}" is marked for enumeration: '
                "use elbo, which sums over it, or mark it in the model alone and leave it out of the guide",
            )
            how = site["infer"]["enumerate"]
            require(how == "parallel", f'the guide must mark site "{site_name}" as enumerate="parallel", got {how!r}')
        if marked:
            enumerated_states(marked)

    def _check_zero_weights(self, pair: Pair) -> None:
        """Raises `InputError` if a weight may be 0.

        A weight that falls to 0 at an edge of the support has a derivative there that no draw's path shows.
        """
        check_no_zero_weights(pair)
        for site_name, site in pair.observed.items():
            moves = pair.has_moving_support(site) and outside_support(site)
            require(
                not moves,
                f'{type(self).__name__} goes through the draws, and at site "{site_name}" the data are outside the '
                "support of some of them: use vimco or reweighted_wake_sleep",
            )

    @property
    def takes_zero_weights(self) -> bool:
        """True if the bound stays finite when one weight of a datum is 0."""
        log_weights = torch.zeros(self.num_draws, 1)
        log_weights[0] = -math.inf
        return bool(self.bound(log_weights).isfinite().all())
