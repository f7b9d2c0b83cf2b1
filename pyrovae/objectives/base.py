"""The base classes of all objectives: Pyro's ELBO interface, and an estimator as a small frozen value."""

import math
from collections.abc import Callable
from dataclasses import dataclass, field, fields
from typing import Any

import torch
from pyro.distributions import Delta
from pyro.infer import ELBO as PyroELBO
from torch import Tensor

from pyrovae.common import if_given, require, require_count, require_flag, require_size, require_text, shown
from pyrovae.objectives.estimator import (
    Coefficients,
    coefficients_at_equal_weights,
    loss_in_chunks,
    loss_in_one_run,
)
from pyrovae.objectives.guide_checks import check_guide, require_held_densities
from pyrovae.objectives.learning_signal import learning_signal
from pyrovae.objectives.pair_call import PairCall
from pyrovae.objectives.scales import weighted_terms
from pyrovae.programs import (
    AS_IT_COMES,
    Pair,
    Reading,
    base_of,
    check_no_zero_weights,
    outside_support,
    require_no_autoencoder,
    warn_of_never_drawn,
)


class DifferentiableELBO(PyroELBO):
    """Provides the interface of `pyro.infer.ELBO` to subclasses that give `_differentiable_loss` and `check`.

    `_differentiable_loss` returns a 0-dim tensor.
    """

    @property
    def reading(self) -> Reading:
        """How the pair is read."""
        return AS_IT_COMES

    sums_marked = False
    """True if sites of the guide that are marked for enumeration are summed over, and not drawn."""

    def check(self, pair: Pair) -> None:
        """Raises `InputError` if training the pair through this would go to a wrong gradient or bound."""

    def runs_again(self, pair: Pair) -> bool:
        """Returns True if the draws of a step are those of several runs of the pair."""
        return getattr(self, "num_particles", 1) > 1 and not pair.layout.is_vectorized

    def differentiable_loss(self, model: Callable, guide: Callable, *args, **kwargs) -> Tensor:
        """Returns the loss as a 0-dim tensor with this estimator's gradient, for every parameter of the pair.

        Args:
            model: A Pyro program that observes the data.
            guide: A Pyro program that draws the model's latent sites.
            *args: What both programs take, of any number and type.
            **kwargs: Further arguments of both programs.

        Returns:
            Minus the bound, summed over the data, in nats; see `Objective`.

        Raises:
            InputError: The pair has no log-weights, or does not fit the objective.
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

        loss = - (log p(theta) - log q(theta) + scale sum_n bound(log w_1n ... log w_Kn))
        w_kn = p(x_n, z_kn|theta) / q(z_kn|x_n, theta),    theta ~ q(theta),  z_kn ~ q(z_n|x_n, theta)

    The data n are those of the data plate, the outermost one around the observed sites with latents of their own. Sites
    in it are local: z_n is drawn K times for each datum. Sites outside are global: theta is drawn once, whatever K and
    the bound are, and its guide gets the gradient of the whole. Without global sites log p(theta) - log q(theta) is 0.
    As with `pyro.infer.ELBO` the loss is summed over the data, and `scale` is what is common to all local sites, such
    as N/B of a subsample. Under a beta on the latents, log w_beta = log p(x|z) + beta (log p(z) - log q(z|x)) takes the
    place of log w, and the bound is none on log p(x). docs/your_own_program.md says how programs are read.

    A subclass gives `bound` and, for the gradient, `coefficients`.

    Args:
        num_particles: K, the draws of z per datum.
        chunk_size: How many particles are run at a time, if not all of them fit into memory; None runs all at once.
            The gradient is the same.
        joint: Puts everything under one bound, as if the whole data set were one datum: the K draws are then of theta
            and all z_n together. For few data, and for guides that draw the latents of all data at once.
        plate: The name of the data plate, where the observed sites lie in plates that cross.
        vectorize_particles: True runs all particles at once, False one after another; "auto" the latter only for
            programs that do not take a dimension of particles, or that compute across it.

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
    joint: bool = field(default=False, kw_only=True)
    plate: str | None = field(default=None, kw_only=True)
    vectorize_particles: bool | str = field(default="auto", kw_only=True)

    min_particles = 1
    takes_subsampled = False
    takes_points = False
    """True if the guide may give points without a density: the codes of an autoencoder, or a maximum a posteriori."""

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        if "__repr__" not in vars(cls):
            cls.__repr__ = Objective.__repr__  # type: ignore[method-assign]  # else the decorator writes one

    def __repr__(self) -> str:
        """Returns the call that makes this objective, without how pairs are read where that is as usual."""
        said = [f for f in fields(self) if not (f.kw_only and getattr(self, f.name) == f.default)]
        return f"{type(self).__name__}({', '.join(f'{f.name}={getattr(self, f.name)!r}' for f in said)})"

    def __post_init__(self) -> None:
        require_size("num_particles", self.num_particles, self.min_particles)
        if_given(require_count, "chunk_size", self.chunk_size)
        require_flag("joint", self.joint)
        if_given(require_text, "plate", self.plate, "the name of one")
        both = self.joint and self.plate is not None
        require(not both, f"plate must not be given with joint, where all data are one datum; got {shown(self.plate)}")
        require_flag("vectorize_particles", self.vectorize_particles, "auto")

    @property
    def num_draws(self) -> int:
        """Draws of z per datum."""
        return self.num_particles

    # A subclass says these in a line, `reference = IWAE`, or as properties where they depend on its settings.

    @property
    def reference(self) -> type[PyroELBO] | None:
        """The objective whose plain gradient, by autograd, has the same mean; None if there is none but this one."""
        return None

    @property
    def takes_beta(self) -> bool:
        """True if the gradient is right under a beta on the latents."""
        return True

    def bound(self, log_weights: Tensor) -> Tensor:
        """Returns the estimate for each datum, `(batch,)`, from its log-weights `(num_draws, batch)`."""
        raise NotImplementedError

    def coefficients(self, log_weights: Tensor, beta: Tensor) -> Coefficients:
        """Returns the coefficients of the gradient at these log-weights; called without gradients."""
        raise NotImplementedError

    def outer_score(self, log_weights: Tensor) -> Tensor | None:
        """Returns the bound's own factor of d log q(z_k|x, theta) / dtheta, for global draws theta.

        None stands for that of `coefficients`.
        """
        return None

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

    @property
    def reading(self) -> Reading:
        """How the pair is read."""
        return Reading(self.plate, self.joint, self.vectorize_particles)

    def _differentiable_loss(self, call: PairCall) -> Tensor:
        if self.chunk_size is None or self.chunk_size >= self.num_draws:
            return loss_in_one_run(self, call)
        return loss_in_chunks(self, call)

    # Checks -----------------------------------------------------------------------------------------------------------

    def runs_again(self, pair: Pair) -> bool:
        """Returns True if the draws of a step are those of several runs of the pair."""
        in_chunks = self.chunk_size is not None and self.chunk_size < self.num_draws
        return self.num_draws > 1 and (in_chunks or not pair.layout.is_vectorized)

    def check(self, pair: Pair) -> None:
        """Raises `InputError` if this objective would train the pair to a wrong gradient."""
        name = type(self).__name__
        terms = weighted_terms(pair)
        if not self.takes_beta:
            terms.require_no_beta(self)
        if not self.takes_points:
            said = f"objective {name} needs latents without a mask (an autoencoder needs objective elbo)"
            require_no_autoencoder(pair, said)
        terms_of_gradient = coefficients_at_equal_weights(self)
        check_guide(self, pair)
        require(
            terms_of_gradient.is_total or pair.moved is None,
            f'{name} differentiates densities at held draws, and site "{pair.moved}" is a map with parameters of other '
            "draws: use elbo, iwae, renyi, miwae or ciwae",
        )
        require_held_densities(self, pair)
        for site_name, site in pair.guide_sites.items():
            if isinstance(base_of(site["fn"]), Delta) and not pair.guide_only:
                require(
                    self.takes_points,
                    f'{name} needs a guide with a density, and site "{site_name}" is a point (Delta): use elbo, whose '
                    "optimum is then the maximum a posteriori",
                )
        self._check_draws(pair)
        has_path = terms_of_gradient.path is not None and any(s["fn"].has_rsample for s in pair.guide_sites.values())
        if has_path or not self.takes_zero_weights:
            self._check_zero_weights(pair)
        warn_of_never_drawn(pair)
        require(
            pair.is_repeatable or (terms_of_gradient.is_total and self.chunk_size is None),
            f"{name} runs the pair again, which draws from a generator of its own: use torch's, which can be set back",
        )

    def _check_draws(self, pair: Pair) -> None:
        """Raises `InputError` if several particles would be one, or if a bound would take a part of a datum's terms."""
        name, layout = type(self).__name__, pair.layout
        # The mean over particles is the ELBO of one draw as well, and the logarithm of a mean is another bound.
        if self.num_draws > 1 and not (self.joint or self.takes_subsampled or layout.draws_locally):
            require(
                not layout.draws_globally,
                f"{name} with {self.num_draws} particles needs latents that the guide draws for each datum, and this "
                "guide draws all of them for all data at once: use joint=True",
            )
        self._check_independence(pair)
        subsampled = pair.subsampled_plates
        if subsampled:
            require(
                self.takes_subsampled,
                f'{name} needs all terms of a datum, and the plate "{subsampled[0]}" subsamples them: use elbo, which '
                "alone is then unbiased",
            )

    def _check_independence(self, pair: Pair) -> None:
        """Raises `InputError` if a site depends on latents that it would be weighed without, or not learn from."""
        name = type(self).__name__
        has_scores = coefficients_at_equal_weights(self).path is None or not all(
            site["fn"].has_rsample for site in pair.guide_sites.values() if pair.is_local(site)
        )
        one = self.num_draws == 1 and not has_scores
        require(
            pair.coupled is None or self.joint or one,
            f'site "{pair.coupled}" lies outside the data plate and depends on latents inside it, and {name} cannot '
            "give it to a datum: put it into the plate, or use joint=True",
        )
        require(
            pair.coupled_data is None or one or (self.takes_subsampled and not has_scores),
            f"{name} weighs each datum alone, and {pair.coupled_data} depends on the latents of other data: use "
            "joint=True, or elbo with a reparameterised guide",
        )

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
