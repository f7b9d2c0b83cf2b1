"""What all our objectives share: from a pair's draws to a bound per datum and to the estimator of its gradient.

Every estimator here is a bound L(log w_1 ... log w_K) per datum, and three coefficients per particle, functions of the
log-weights alone, that say what its gradient is:

    sum_k  model_k  d/dtheta log p(x, z_k)         the model's parameters, z held
         + path_k   d log w_k / dz_k  dz_k/dphi    through the draw, the density's own parameters held
         + score_k  d/dphi log q(z_k|x)            through the density, z held

IWAE is (w~, w~, -w~) with the normalised weights w~, DReG (w~, w~^2, 0), reweighted wake-sleep (w~, 0, w~). The path
term is generic: with the draws as leaves, the pair is run again at them, autograd gives d log w / dz there, and its
product with the draw z(phi) of the first run has the wanted gradient, for any guide with `rsample` (modules, flows,
sites that depend on each other). A parameter that model and guide share gets the sum of its terms.

A draw of weight 0 (log w = -inf) has no part in the model's and the path's terms. Where all weights of a datum are 0
its bound is -inf, and its gradient is 0.
"""

import functools
import math
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from typing import ClassVar

import torch
from pyro.distributions import Delta
from pyro.infer import ELBO as PyroELBO
from pyro.infer.util import is_validation_enabled
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from pyrovae.common import InputError, generator_states, kept_generators, require, require_count
from pyrovae.programs import (
    Choices,
    Pair,
    Playback,
    base_of,
    check_masks,
    common_choices,
    gate,
    is_traced,
    outside_support,
    pair_at,
    random_mark,
    run_pair,
    set_states,
    states,
)


@dataclass(frozen=True)
class Coefficients:
    """What multiplies each gradient term of each particle, `(num_particles, batch)`, without gradient; None is 0.

    `is_total` says that they are those of plain autograd through sum_k model_k log w_k, so that one run will do.
    """

    model: Tensor
    path: Tensor | None = None
    score: Tensor | None = None
    is_total: bool = False

    @classmethod
    def total(cls, weights: Tensor, beta: Tensor | float) -> "Coefficients":
        """Of sum_k weights_k log w_k, differentiated through everything: what plain autograd gives."""
        return cls(weights, weights, -beta * weights, is_total=True)

    def finite(self) -> "Coefficients":
        """Those that are not numbers, where log-weights are -inf, as 0."""
        parts = (part if part is None else _zero_where_infinite(part) for part in (self.model, self.path, self.score))
        return Coefficients(*parts, is_total=self.is_total)

    def rows(self, start: int, stop: int) -> "Coefficients":
        """Those of some particles."""
        parts = (None if part is None else part[start:stop] for part in (self.model, self.path, self.score))
        return Coefficients(*parts, is_total=self.is_total)


@dataclass(frozen=True)
class WeightedTerms:
    """A pair's terms under its scales: log w = log_p - log_q with beta on the latents, the common scale taken out.

    `log_p`, `log_q` and `score` (log q without beta) are `(num_particles, batch)`; `scale` multiplies the whole
    objective, outside any logsumexp; `beta` is the one of all latents.
    """

    log_p: Tensor
    log_q: Tensor
    score: Tensor
    scale: Tensor
    beta: Tensor

    @property
    def log_weights(self) -> Tensor:
        return self.log_p - self.log_q


def weighted_terms(pair: Pair) -> WeightedTerms:
    """The terms of a pair under its `poutine.scale`s. Raises `InputError` where no common scale can be taken out."""
    scales = [torch.as_tensor(site["scale"]) for site in pair.observed.values()]
    scale = scales[0] if scales else torch.ones(())
    betas = [torch.as_tensor(site["scale"]) / scale for site in pair.latent.values()]
    beta = betas[0] if betas else torch.ones(())
    for sites, numbers in (("observed", scales), ("latent", betas)):
        if not _is_one_number(numbers):
            raise InputError(f"poutine.scale must be one number for all {sites} sites, got {numbers}")
    terms = pair.terms()
    return WeightedTerms(
        terms.log_likelihood + beta * terms.log_prior, beta * terms.log_posterior, terms.log_posterior, scale, beta
    )


def _is_one_number(scales: list[Tensor]) -> bool:
    """By value only where Pyro validates: a traced step cannot look at values, and was validated before."""
    scalars = all(s.dim() == 0 for s in scales)
    return scalars and (not is_validation_enabled() or all(bool(s == scales[0]) for s in scales[1:]))


class DifferentiableELBO(PyroELBO):
    """`pyro.infer.ELBO`'s interface from `_differentiable_loss`, a 0-dim tensor, and `check` alone."""

    def check(self, pair: Pair) -> None:
        """Raises `InputError` where training the pair through this would go to a wrong gradient or bound."""

    def differentiable_loss(self, model: Callable, guide: Callable, *args, **kwargs) -> Tensor:
        """A 0-dim tensor: its value is the loss, its gradient this estimator's, for every parameter of the pair.

        Raises `InputError` where the pair breaks the contract, or does not fit the objective.
        """
        return self._differentiable_loss(Program(model, guide, args, kwargs, self))

    def _differentiable_loss(self, program: "Program") -> Tensor:
        raise NotImplementedError

    def loss(self, model: Callable, guide: Callable, *args, **kwargs) -> float:
        with torch.no_grad():
            return self.differentiable_loss(model, guide, *args, **kwargs).item()

    def loss_and_grads(self, model: Callable, guide: Callable, *args, **kwargs) -> float:
        loss = self.differentiable_loss(model, guide, *args, **kwargs)
        if loss.requires_grad:
            loss.backward()
        return loss.item()

    def _get_trace(self, model, guide, args, kwargs):
        raise NotImplementedError("objectives of pyrovae run the pair by themselves")


@dataclass(frozen=True)
class Objective(DifferentiableELBO):
    """An estimator as a value: frozen, comparable, without state, one for any number of models.

    A subclass gives `bound`, which the loss is minus the sum of, and `coefficients`, its gradient's. The loss is that
    of `pyro.infer.ELBO`: summed over the data plate, times the scale common to all sites. Under a beta on the latents,
    log w_beta = log p(x|z) + beta (log p(z) - log q(z|x)) takes the place of log w, and the bound is none on log p(x).

    `chunk_size` particles are run at a time, where all of them do not fit; the gradient is the same.
    """

    num_particles: int = 1
    chunk_size: int | None = None

    min_particles = 1
    takes_beta = True
    reference: ClassVar[type[PyroELBO] | None] = None
    """Whose gradient, by plain differentiation of the same bound, has the same mean; None of the plain ones."""

    def __post_init__(self) -> None:
        require_count("num_particles", self.num_particles, self.min_particles)
        if self.chunk_size is not None:
            require_count("chunk_size", self.chunk_size)

    @property
    def num_draws(self) -> int:
        """Draws of z per datum."""
        return self.num_particles

    def bound(self, log_weights: Tensor) -> Tensor:
        """The estimate for each datum, `(batch,)`, from its log-weights `(num_draws, batch)`."""
        raise NotImplementedError

    def coefficients(self, log_weights: Tensor, beta: Tensor) -> Coefficients:
        """The gradient's, at these log-weights; called without gradients."""
        raise NotImplementedError

    def _differentiable_loss(self, program: "Program") -> Tensor:
        if self.chunk_size is None or self.chunk_size >= self.num_draws:
            return self._loss_of_one_chunk(program)
        return self._loss_in_chunks(program)

    def check(self, pair: Pair) -> None:
        """Raises `InputError` where this objective would train the pair to a wrong gradient."""
        name = type(self).__name__
        self._check_beta(weighted_terms(pair))
        check_masks(
            pair,
            self.takes_masked,
            f"objective {name} needs latents without a mask (an autoencoder needs objective elbo)",
        )
        auxiliary = any(name not in pair.model_sites for name in pair.guide_sites)
        for site_name, site in pair.guide_sites.items():
            if _probe(self).path is not None:
                require(
                    site["fn"].has_rsample,
                    f'{name} needs a reparameterised guide, and site "{site_name}" has no rsample: use '
                    f"score_function, vimco or reweighted_wake_sleep, or of few values elbo_enumerated",
                )
            if isinstance(base_of(site["fn"]), Delta) and not auxiliary:
                require(
                    self.takes_masked,
                    f'{name} needs a guide with a density, and site "{site_name}" is a point (Delta): use elbo, whose '
                    "optimum is then the maximum a posteriori",
                )
        if _probe(self).path is not None or not self.takes_zero_weights:
            self._check_weights_of_0(pair)
        gate.warn_of_never_drawn(pair)
        require(
            pair.is_repeatable or (_probe(self).is_total and self.chunk_size is None),
            f"{name} runs the pair again, which draws from a generator of its own that cannot be set back: use torch's",
        )

    def _check_weights_of_0(self, pair: Pair) -> None:
        """A weight that falls to 0 at an edge of the support has a derivative there that no draw's path shows."""
        gate.check_no_zero_weights(pair)
        for site_name, site in pair.observed.items():
            moves = pair.has_support_of_its_own(site) and outside_support(site)
            require(
                not moves,
                f'{type(self).__name__} goes through the draws, and at site "{site_name}" the data are outside the '
                "support of some of them: use vimco or reweighted_wake_sleep",
            )

    def _check_beta(self, terms: WeightedTerms) -> None:
        require(
            self.takes_beta or bool(terms.beta == 1),
            f"{type(self).__name__} is not defined for a beta on the latents, got {terms.beta.item():g}",
        )

    @property
    def takes_zero_weights(self) -> bool:
        """Whether the bound stays finite where one weight of a datum is 0."""
        log_weights = torch.zeros(self.num_draws, 1)
        log_weights[0] = -math.inf
        return bool(self.bound(log_weights).isfinite().all())

    takes_masked = False

    # The estimator --------------------------------------------------------------------------------------------------

    def _loss_of_one_chunk(self, program: "Program") -> Tensor:
        pair = program.run(self.num_draws, once=_probe(self).is_total)
        terms = weighted_terms(pair)
        if not self.takes_beta and not is_traced():
            self._check_beta(terms)
        log_weights = terms.log_weights
        value = -terms.scale * self.bound(log_weights.detach()).sum()
        if not self.takes_beta and is_traced():  # where no value can be looked at
            value = torch.where(terms.beta == 1, value, math.nan)
        if not torch.is_grad_enabled():
            return value
        with torch.no_grad():
            coefficients = self.coefficients(log_weights.detach(), terms.beta).finite()
        surrogate = -terms.scale * self._surrogate(program, pair, terms, coefficients)
        return value + surrogate - surrogate.detach()

    def _loss_in_chunks(self, program: "Program") -> Tensor:
        """Twice through the chunks, on the same draws: for the weights of all particles, then for the gradients.

        What a program draws for all particles at once is drawn once for all chunks, as in the one run of all particles.
        """
        sizes = [len(part) for part in torch.arange(self.num_draws).split(self.chunk_size)]
        starts, parts = [], []
        with torch.no_grad():
            program.find_choices()
            for index, size in enumerate(sizes):
                starts.append(program.start_of_chunk())
                with program.kept_statistics() if index else nullcontext():
                    terms = weighted_terms(program.run(size))
                parts.append(terms.log_weights)
            if not self.takes_beta:
                self._check_beta(terms)
            end = states()
            log_weights = torch.cat(parts)
            value = -terms.scale * self.bound(log_weights).sum()
            coefficients = self.coefficients(log_weights, terms.beta).finite()
        if not torch.is_grad_enabled():
            return value

        def chunk(start: tuple, size: int, coefficients: Coefficients) -> Tensor:
            with kept_generators(), program.kept_statistics():  # it is run again as gradients are taken
                set_states(start)
                pair = program.run(size)
                terms = weighted_terms(pair)
                return -terms.scale * self._surrogate(program, pair, terms, coefficients)

        first = 0
        for size, start in zip(sizes, starts, strict=True):
            own = coefficients.rows(first, first + size)
            surrogate = checkpoint(chunk, start, size, own, use_reentrant=False)
            value = value + surrogate - surrogate.detach()
            first += size
        set_states(end)
        return value

    def _surrogate(self, program: "Program", pair: Pair, terms: WeightedTerms, coefficients: Coefficients) -> Tensor:
        """A sum whose gradient is the three terms of the estimator."""
        model, path, score = coefficients.model, coefficients.path, coefficients.score
        if coefficients.is_total:
            return _product(model, terms.log_weights)  # the total derivative: the graph of the one run has it all
        draws = {name: site["value"] for name, site in pair.guide_sites.items()}
        leaves = {name: z.detach().requires_grad_(path is not None) for name, z in draws.items()}
        at = weighted_terms(program.at(leaves))
        surrogate = _product(model, at.log_p)
        if score is not None:
            surrogate = surrogate + _product(score, at.score)
        if path is not None:
            slopes = torch.autograd.grad(_product(path, at.log_weights), list(leaves.values()), retain_graph=True)
            for slope, z in zip(slopes, draws.values(), strict=True):
                surrogate = surrogate + (slope * z).sum()
        return surrogate


def _product(coefficients: Tensor, terms: Tensor) -> Tensor:
    """sum_kn c_kn t_kn, where terms of -inf have no part."""
    return torch.where(terms == -math.inf, 0.0, coefficients * terms).sum()


def _zero_where_infinite(coefficient: Tensor) -> Tensor:
    return torch.where(coefficient.isfinite(), coefficient, 0.0)


@functools.lru_cache(maxsize=64)
def _probe(objective: Objective) -> Coefficients:
    """The coefficients at equal weights: which terms the objective's gradient has."""
    return objective.coefficients(torch.zeros(objective.num_draws, 1), torch.ones(()))


@dataclass
class Program:
    """A pair, what it is called with, and the objective that it must fit."""

    model: Callable
    guide: Callable
    args: tuple
    kwargs: dict
    needs: DifferentiableELBO
    choices: Choices = field(init=False)
    tape: list | None = None
    """What the programs draw for all particles of all chunks, where they draw more than latents."""
    others: tuple | None = None
    """Python's and NumPy's generators at the start of every chunk."""

    def __post_init__(self) -> None:
        self.choices = Choices(self.model, self.guide)

    def run(self, num_particles: int, once: bool = False) -> Pair:
        """A run of the pair, which with `once` is the only one: `at` does not follow."""
        with nullcontext() if once else self.choices.first():
            pair = self._run(num_particles)
        gate.check_once(self.model, self.guide, self.needs, pair, self.args, self.kwargs)
        return pair

    def at(self, latents: dict[str, Tensor]) -> Pair:
        """The pair at given latents, with all other random choices those of the last run."""

        def run(redraw: bool) -> Pair:
            with self._repeated():
                return pair_at(self.model, self.guide, latents, *self.args, redraw=redraw, **self.kwargs)

        with self.kept_statistics():
            return self.choices.again(run)

    def _run(self, num_particles: int) -> Pair:
        with self._repeated():
            return run_pair(self.model, self.guide, *self.args, num_particles=num_particles, **self.kwargs)

    # Chunks of particles ----------------------------------------------------------------------------------------------

    def find_choices(self) -> None:
        """Draws once what the programs draw for all particles, if they draw more than latents."""
        with self.kept_statistics():
            with kept_generators():
                drawn = {name: site["value"] for name, site in self._run(1).guide_sites.items()}
                before = random_mark()
                pair_at(self.model, self.guide, drawn, *self.args, **self.kwargs)
                draws_more = self.choices.draws_more or random_mark() != before
            if draws_more:
                self.choices.remember()
                self.others = states()[1:]
                self.tape = common_choices(self._run)

    def start_of_chunk(self) -> tuple:
        """The states of the generators from which a chunk is run, and run again."""
        if self.others is not None:
            set_states((generator_states(), *self.others))
        return states()

    def _repeated(self) -> AbstractContextManager[object]:
        return nullcontext() if self.tape is None else Playback(self.tape)

    @contextmanager
    def kept_statistics(self) -> Iterator[None]:
        """Running statistics move once a step, in the first run: within the block it is copies that move."""
        places = gate.running_statistics(self.model, self.guide)
        own = [container[name] for container, name in places]
        for (container, name), tensor in zip(places, own, strict=True):
            container[name] = tensor.clone()
        try:
            yield
        finally:
            for (container, name), tensor in zip(places, own, strict=True):
                container[name] = tensor


def log_mean_exp(log_weights: Tensor) -> Tensor:
    """log 1/K sum_k w_k along the first dimension."""
    return log_weights.logsumexp(0) - math.log(len(log_weights))
