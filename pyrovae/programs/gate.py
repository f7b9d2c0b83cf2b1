"""One gate for every entrance: checks that a pair can give what is asked of it, in training or in measuring.

An objective's loss, `fit`, `CompiledSVI`, `compare`, `race` and all estimates of log p(x) come through here. A check
takes several runs of the pair. What it finds is so of its data and of the parameters as they are: a coupling of the
data may begin at 0, or in later rows. An estimate therefore checks all data that it is of, whatever was found before. A
step of plain SVI is checked if it is the first of its structure: the pair's programs, the kinds of its sites, which of
them are unmasked where a latent is masked, and what is asked. It is again if its number is a power of two, from 16 on,
or if it has twice the data that were checked.
"""

import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from typing import Protocol

import pyro
import torch

from pyrovae.common import (
    InputError,
    evaluation_mode,
    fixed_generators,
    is_validation_error,
    kept_generators,
    require,
)
from pyrovae.programs import checked_structures
from pyrovae.programs.auxiliary_sites import check_auxiliary, moved_point
from pyrovae.programs.data_values import check_data_values, check_finite_data
from pyrovae.programs.independence_checks import coupled
from pyrovae.programs.layout import Reading
from pyrovae.programs.mask_checks import check_masks
from pyrovae.programs.one_way_transforms import one_way_site
from pyrovae.programs.pair import Pair
from pyrovae.programs.particle_checks import check_pair
from pyrovae.programs.random_choices import is_traced
from pyrovae.programs.repeated_draws import REMEDY, repeated_site
from pyrovae.programs.running import AS_IT_COMES, does_not_run, run_pair
from pyrovae.programs.stored_parameters import check_parameters
from pyrovae.programs.sum_checks import check_sums
from pyrovae.programs.support_checks import (
    NEVER_DRAWN,
    DrawsOutside,
    check_no_zero_weights,
    families_drawn_outside,
    never_drawn,
)

RUNS_TO_GET_OUTSIDE = 20  # of the pair, where the guide may draw what the prior cannot give, as one draw may not show


class Needs(Protocol):
    """States what is asked of a pair, and how it is read: an objective does, and an estimate of log p(x)."""

    @property
    def reading(self) -> Reading: ...

    def check(self, pair: Pair) -> None:
        """Raises `InputError` if the pair does not give it."""

    def runs_again(self, pair: Pair) -> bool:
        """Returns True if draws of several runs of the pair are taken for so many draws."""


@dataclass(frozen=True)
class Weights:
    """Asks for importance weights of a density, for an estimate of log p(x) or of a bound on it.

    - `densities`: the data have a density (no grey pixels under a Bernoulli).
    - `everywhere`: the guide draws wherever the prior can, or the estimate converges too low. A bound with finitely
      many particles stays valid.
    - `zeros`: a weight may be 0, as it may be in a mean of weights and not in a mean of their logarithms.
    - `alone`: each datum has weights of its own, as it needs for a mean of weights, and not for a mean of their
      logarithms.
    - `normalised`: the model has no factors, with which weights are known up to a constant.
    - `in_runs`: the draws are those of several runs, each of which must draw anew.
    """

    densities: bool = True
    everywhere: bool = True
    zeros: bool = True
    alone: bool = True
    normalised: bool = True
    in_runs: bool = False
    reading: Reading = AS_IT_COMES

    def check(self, pair: Pair) -> None:
        """Raises `InputError` if the pair does not give such weights."""
        require_independence(pair, self.alone)
        if self.densities:
            pair.check_densities(auxiliary=True, normalised=self.normalised)
        if not self.zeros:
            check_no_zero_weights(pair)
        if self.everywhere:
            missing = never_drawn(pair)
            require(missing is None, f"{missing}: log p(x) would be too low; {_cure_of_never_drawn(pair)}")

    def runs_again(self, pair: Pair) -> bool:
        """Returns True if draws are those of several runs, as they are where particles run one after another."""
        return self.in_runs or not pair.layout.is_vectorized


def require_independence(pair: Pair, alone: bool = True) -> None:
    """Raises `InputError` if something of a pair depends on latents that its plates say it does not."""
    require(
        pair.coupled is None, f'site "{pair.coupled}" must lie in the data plate, as it depends on latents inside it'
    )
    require(
        pair.coupled_data is None or not alone,
        f"a datum has a log p(x) of its own only if it has its own latents, and {pair.coupled_data} depends on the "
        "latents of other data",
    )


def with_coupled(pair: Pair, model: Callable, guide: Callable, args: tuple, kwargs: dict) -> Pair:
    """Returns a run of the two programs with what in it depends on the latents of others."""
    found = coupled(pair, model, guide, args, kwargs)
    return replace(pair, coupled=pair.coupled or found.outside, coupled_data=found.inside)


def _cure_of_never_drawn(pair: Pair) -> str:
    if len(pair.latent) == 1 and one_way_site(pair.guide_sites) is None:  # what `defensive` takes
        return "use proposals.defensive"
    return "the guide must draw wherever the prior can"


def check(model: Callable, guide: Callable, needs: Needs | None, *args, **kwargs) -> Pair:
    """Returns two particles of the pair, run in evaluation mode, after a check that it gives what `needs` asks for.

    With None the pair must only have log-weights. Raises `InputError` otherwise, in one line that says why.
    """
    reading = AS_IT_COMES if needs is None else needs.reading
    with evaluation_mode(model, guide), kept_generators(), pyro.validation_enabled(True):
        try:
            pair = _two_particles(model, guide, reading, args, kwargs)
        except DrawsOutside:
            check_finite_data(model, args)
            raise
        except InputError as error:
            check_data_values(model, args, error)
            raise
        if bool(pair.terms().log_weights.isnan().any()):
            check_finite_data(model, args)
        check_parameters(pair.parameters, model, guide, args, kwargs)
        check_auxiliary(pair, guide, args, kwargs)
        _check_draws_outside(pair, model, guide, reading, args, kwargs)
        check_masks(pair, model, guide, args, kwargs)
        check_sums(pair, model, guide, args, kwargs)
        checked_structures.remember(model, guide, None, pair)
        if needs is not None:
            moved = moved_point(pair, guide, args, kwargs)
            pair = replace(with_coupled(pair, model, guide, args, kwargs), moved=moved)
            _ask(pair, model, guide, needs, args, kwargs)
            checked_structures.remember(model, guide, needs, pair)
    return pair


def check_again(pair: Pair, model: Callable, guide: Callable, needs: Needs, *args, **kwargs) -> Pair:
    """Checks that a pair gives what `needs` asks for, where `check` returned `pair` for other needs of that reading.

    Returns the pair, and raises `InputError` as `check` does, without another run of it unless draws of several runs
    are asked for. `args` are those of the run that `pair` is of.
    """
    with evaluation_mode(model, guide), kept_generators(), pyro.validation_enabled(True):
        _ask(pair, model, guide, needs, args, kwargs)
    checked_structures.remember(model, guide, needs, pair)
    return pair


def check_new_draws(pair: Pair, model: Callable, guide: Callable, *args, **kwargs) -> None:
    """Raises `InputError` if the guide draws the same latents in every run; `pair` is a run of the two programs."""
    found = repeated_site(pair, model, guide, args, kwargs)
    require(found is None, f'the guide must draw anew in every run, and draws the same at site "{found}": {REMEDY}')


def _ask(pair: Pair, model: Callable, guide: Callable, needs: Needs, args: tuple, kwargs: dict) -> None:
    needs.check(pair)
    if needs.runs_again(pair):
        check_new_draws(pair, model, guide, *args, **kwargs)


def _two_particles(model: Callable, guide: Callable, reading: Reading, args: tuple, kwargs: dict) -> Pair:
    """Returns what `check_pair` does; what the caller has drawn does not decide whether the pair is refused.

    The caller's random numbers come first, as parameters may be drawn from them at their first use.
    """
    try:
        return check_pair(model, guide, reading, args, kwargs)
    except InputError:
        with fixed_generators(0):
            return check_pair(model, guide, reading, args, kwargs)


def _check_draws_outside(
    pair: Pair, model: Callable, guide: Callable, reading: Reading, args: tuple, kwargs: dict
) -> None:
    """Raises `InputError` if the model does not run at draws of the guide that the prior cannot give.

    Later runs are not validated, and would give nan. Each family of sites is checked once: another length of a sequence
    is nothing new, and in the middle of a training its parameters may be others than where the training began.
    """
    families, known = families_drawn_outside(pair), checked_structures.drawn_outside(model, guide)
    with fixed_generators(1):
        for _ in range(RUNS_TO_GET_OUTSIDE if families - known else 0):
            try:
                run_pair(model, guide, *args, num_particles=2, reading=reading, **kwargs)
            except InputError:
                raise
            except ValueError as error:
                raise InputError(does_not_run(error)) from error
    known |= families


def check_once(
    model: Callable,
    guide: Callable,
    needs: Needs | None,
    pair: Pair,
    args: tuple,
    kwargs: dict,
    is_new_step: bool = True,
) -> bool:
    """Calls `check` at the steps of a training that are to be checked; `pair` is a run of it as it is now.

    Returns False if the check found that particles must be run one after another, which those of `pair` were not. With
    `is_new_step` False it is another run of the step before.
    """
    if is_traced():  # while a graph is traced, the eager step was checked
        return True
    is_estimate = isinstance(needs, Weights | None)
    is_due = is_new_step and checked_structures.is_due(model, guide, needs)
    is_due |= is_new_step and is_estimate and not torch.is_grad_enabled()
    if not is_due and checked_structures.is_last(model, guide, needs, pair):
        return True
    is_known = checked_structures.is_known(model, guide, needs, pair)
    if is_due or not is_known:
        try:
            with _without_what_was_said() if is_known else nullcontext():
                checked = check(model, guide, needs, *args, **kwargs)
        except DrawsOutside:
            # A training that has passed goes on at another length, as it would if that had come before: a resumed one
            # meets again what the one before it has passed, at other parameters.
            if is_estimate or not families_drawn_outside(pair) <= checked_structures.drawn_outside(model, guide):
                raise
            return True
        except InputError as error:
            if is_known and is_validation_error(error):  # a training that diverges says so by itself
                return True
            raise
        checked_structures.remember(model, guide, needs, pair)
        alone = is_known and pair.num_particles == 1  # is the same either way
        if pair.layout.is_vectorized and not (checked.layout.is_vectorized or alone):
            return False
    checked_structures.remember_last(model, guide, needs, pair)
    return True


def checked_run(
    run: Callable[[], Pair], model: Callable, guide: Callable, needs: Needs | None, args: tuple, kwargs: dict
) -> Pair:
    """Returns what `run` does, a run of the pair that `check_once` has taken, if need be one particle after another."""
    pair = run()
    return pair if check_once(model, guide, needs, pair, args, kwargs) else run()


@contextmanager
def _without_what_was_said() -> Iterator[None]:
    """Drops the warning that a training gets when its structure is checked for the first time."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", NEVER_DRAWN)
        yield
