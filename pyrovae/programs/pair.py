"""Holds one run of a (model, guide) pair, and the terms of its log importance weights for each datum.

log w_kn = log p(x_n|z_kn) + log p(z_kn) - log q(z_kn|x_n),    shape (num_particles, batch)
"""

import re
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

import torch
from pyro.distributions import Delta, Unit
from pyro.distributions.util import scale_and_mask
from pyro.infer.util import is_validation_enabled
from torch import Tensor

from pyrovae.common import InputError, first_line
from pyrovae.programs.data_plates import DataPlate, by_datum, in_columns, inner_scale
from pyrovae.programs.data_values import refuse_dtype
from pyrovae.programs.distribution_supports import log_density, support_of
from pyrovae.programs.enumerated_runs import is_summed
from pyrovae.programs.layout import PARTICLES, Layout, frames_of
from pyrovae.programs.sites import base_of, is_autoencoder, is_improper, is_masked, outside_support, seen, without_mask
from pyrovae.programs.summed_sites import summed_groups, summed_log_prob
from pyrovae.programs.supports import bounds, contains


class ProgramPair(Protocol):
    """Holds a model and a guide: two Pyro programs that take the same arguments. `pv.VAE` is one."""

    @property
    def model(self) -> Callable[..., object]:
        """Draws z ~ p(z) and observes x under p(x|z)."""

    @property
    def guide(self) -> Callable[..., object]:
        """Draws z ~ q(z|x)."""


@dataclass(frozen=True)
class PairTerms:
    """Holds log-densities of local sites at z ~ q(z|x), each `(num_particles, batch)`, in nats and at beta = 1."""

    log_likelihood: Tensor
    log_prior: Tensor
    log_posterior: Tensor

    @property
    def log_weights(self) -> Tensor:
        """log w = log p(x|z) + log p(z) - log q(z|x); E[w] = p(x), and E[log w] is the ELBO."""
        return self.log_likelihood + self.log_prior - self.log_posterior


@dataclass(frozen=True)
class Pair:
    """Holds the sample sites of one run of a pair, by name, after the checks of `run_pair`.

    `plates` are its data plates: the data of one after the other are the columns of every result. `parameters` are the
    messages of the parameters that the two programs registered. `is_repeatable` is False if a program draws from a
    generator of its own, which cannot be set back. `coupled` names a global site that depends on local draws, and
    `coupled_data` says which site of a datum depends on the latents of other data; `is_independent` is True if a run
    has shown that none does at its draws. `moved` names a latent that the guide makes from auxiliary sites by a map
    with parameters. `indices` are those of the subsamples that plates drew. `others` are the runs of the other
    particles, if particles are run one after another; the sites are then those of the first. `outline` is the object
    that `last_run` keeps, if there is one.
    """

    model_sites: dict[str, dict]
    guide_sites: dict[str, dict]
    num_particles: int
    layout: Layout
    plates: tuple[DataPlate, ...]
    parameters: tuple[Mapping[str, Any], ...] = ()
    is_repeatable: bool = True
    coupled: str | None = None
    coupled_data: str | None = None
    is_independent: bool = False
    moved: str | None = None
    indices: Mapping[str, Tensor] = field(default_factory=dict)
    others: tuple["Pair", ...] = ()
    outline: tuple | None = None

    @property
    def batch(self) -> int:
        """The number of data."""
        return sum(plate.size for plate in self.plates) if self.plates else 1

    @property
    def batch_shape(self) -> torch.Size:
        """The shape of terms: `(num_particles, batch)`."""
        return torch.Size((self.num_particles, self.batch))

    @property
    def runs(self) -> tuple["Pair", ...]:
        """The runs of the two programs: one, with all particles, or one for each particle."""
        return (self, *self.others) if self.others else (self,)

    @property
    def observed(self) -> dict[str, dict]:
        """The observed sites of the model."""
        return {name: site for name, site in self.model_sites.items() if site["is_observed"]}

    @property
    def latent(self) -> dict[str, dict]:
        """The latent sites of the model, without those that are summed out."""
        return {name: site for name, site in self.model_sites.items() if not (site["is_observed"] or is_summed(site))}

    @property
    def sums(self) -> list[dict[str, dict]]:
        """The groups of the model's sites that a sum over states couples."""
        return summed_groups(self.model_sites) if self.layout.sums else []

    @property
    def guide_only(self) -> dict[str, dict]:
        """The sites of the guide that the model does not have."""
        return {name: site for name, site in self.guide_sites.items() if name not in self.model_sites}

    @property
    def outputs(self) -> int:
        """The number of values in the largest parameter of a site, for one particle and one datum."""
        fns = [base_of(site["fn"]) for site in self.model_sites.values()]
        sizes = [value.numel() for fn in fns for value in vars(fn).values() if isinstance(value, Tensor)]
        return max(1, max(sizes, default=1) // self.batch_shape.numel())

    def is_local(self, site: dict) -> bool:
        """Returns True if a site has a value for each datum, and False if for all data together."""
        return not self.layout.has_globals or self.layout.is_local(site)

    @property
    def subsampled_plates(self) -> list[str]:
        """The names of the plates that hold a subsample of a datum's own terms."""
        data = {plate.name for plate in self.plates}
        local = [site for site in (*self.model_sites.values(), *self.guide_sites.values()) if self.is_local(site)]
        found = [f.name for site in local for f in frames_of(site) if f.full_size not in (None, -1, f.size)]
        return [name for name in dict.fromkeys(found) if name not in data]

    def draws(self) -> dict[str, Tensor]:
        """Returns the values of the guide's sites; those of local sites have all particles."""
        if self.layout.is_vectorized:
            return {name: site["value"] for name, site in self.guide_sites.items()}
        local = [name for name, site in self.guide_sites.items() if self.is_local(site)]
        stacked = {name: torch.stack([run.guide_sites[name]["value"] for run in self.runs]) for name in local}
        return {name: stacked.get(name, site["value"]) for name, site in self.guide_sites.items()}

    # Densities --------------------------------------------------------------------------------------------------------

    def terms(self) -> PairTerms:
        """Returns the log-densities of the local sites, each without its `poutine.scale`, and so at beta = 1.

        A subsampled data plate's N / B thereby stays out of the logsumexp over particles, where it would give no bound.
        What a sum over states couples to an observed site is in the log-likelihood, priors of latents included.
        """
        if self.others:
            parts = [replace(run, others=()).terms() for run in self.runs]
            each = zip(*((t.log_likelihood, t.log_prior, t.log_posterior) for t in parts), strict=True)
            return PairTerms(*(torch.cat(parts, -2) for parts in each))
        groups = self.sums
        if not groups:
            return PairTerms(self.total(self.observed), self.total(self.latent), self.total(self.guide_sites))
        inside = {name for group in groups for name in group}
        observed, latent = (
            self.total({name: site for name, site in sites.items() if name not in inside})
            for sites in (self.observed, self.latent)
        )
        for group in groups:
            if any(site["is_observed"] for site in group.values()):
                observed = observed + self._summed(group)
            else:
                latent = latent + self._summed(group)
        return PairTerms(observed, latent, self.total(self.guide_sites))

    def _summed(self, group: dict[str, dict]) -> Tensor:
        """Returns the log-density of a group with its states summed out, `(num_particles, batch)`, without scales."""
        first = next(iter(group.values()))
        kept = {PARTICLES: self.num_particles} if self.layout.is_vectorized else {}
        own = next((plate for plate in self.plates if plate.name in {f.name for f in frames_of(first)}), None)
        if own is not None:
            kept[own.name] = own.size
        total = inner_scale(first, self.plates) * summed_log_prob(group, kept, self._log_density)
        total = in_columns(total, own.name, self.plates) if own is not None else total.unsqueeze(-1)
        return total.expand(self.batch_shape)

    def total(self, sites: dict[str, dict]) -> Tensor:
        """Returns the log-densities of the local ones of the sites, summed for each datum: `(num_particles, batch)`."""
        total = None
        for name, site in sites.items():
            if not self.is_local(site):
                continue
            log_prob = self.log_density(name, site)
            scale = inner_scale(site, self.plates)
            own = by_datum(log_prob if scale == 1 else scale * log_prob, site, self.layout, self.plates)
            total = own if total is None else total + own
        total, shape = self._zero() if total is None else total, self.batch_shape
        return total if total.shape == shape else total.expand(shape)

    def _zero(self) -> Tensor:
        """Returns 0 on the device of the sites: once it is expanded, it is no number that any device takes."""
        site = next(iter((*self.model_sites.values(), *self.guide_sites.values())), None)
        return torch.zeros((), device=None if site is None else site["value"].device)

    def log_q_of_draws(self, names: Collection[str], masked: bool = True) -> Tensor:
        """Returns log q of local draws of the guide, summed for each datum, `(num_particles, batch)`.

        It is that of what was drawn: a subsample counts for itself alone, and the mask of an autoencoder does not hold.
        With `masked` False no mask does.
        """
        if self.others:
            return torch.cat([replace(run, others=()).log_q_of_draws(names, masked) for run in self.runs], -2)
        total = self._zero()
        for name in names:
            site = self.guide_sites[name]
            site = site if masked and not is_autoencoder(site) else without_mask(site)
            total = total + by_datum(self.log_density(name, site), site, self.layout, self.plates)
        return total.expand(self.batch_shape)

    def by_datum(self, values: Tensor, site: dict) -> Tensor:
        """Returns values of a local site's elements, summed for each datum: `(num_particles, batch)`."""
        return by_datum(values, site, self.layout, self.plates).expand(self.batch_shape)

    def global_terms(self, scaled: bool) -> tuple[Tensor, Tensor]:
        """Returns log p and log q of the global sites, each a 0-dim sum, with `poutine.scale` if `scaled`."""
        totals = []
        for sites in (self.model_sites, self.guide_sites):
            total = torch.zeros(())
            for name, site in sites.items():
                if not self.is_local(site):
                    log_prob = self.log_density(name, site).sum()
                    total = total + (site["scale"] * log_prob if scaled else log_prob)
            totals.append(total)
        return totals[0], totals[1]

    def global_score(self) -> Tensor | None:
        """Returns log q of the global draws that have no `rsample`, 0-dim, or None if all of them have one."""
        without = {
            name: site
            for name, site in self.guide_sites.items()
            if not self.is_local(site) and not site["fn"].has_rsample
        }
        if not without:
            return None
        return torch.stack([self.log_density(name, site).sum() for name, site in without.items()]).sum()

    def log_density(self, name: str, site: dict) -> Tensor:
        """Returns a site's log-densities under its mask, one for each of its elements."""
        try:
            log_prob = self._log_density(name, site)
        except InputError:
            raise
        except ValueError as error:  # Pyro's validation, which does not name the site
            raise ValueError(f'at site "{name}": {outside_support(site) or error}') from error
        except (KeyError, RuntimeError, TypeError) as error:
            refuse_dtype(name, site, error)
            if isinstance(error, KeyError | NotImplementedError):  # a distribution that cannot be scored here
                raise InputError(f'site "{name}" has no log-density at its value: {first_line(error)}') from error
            raise
        return log_prob if site["mask"] is None else scale_and_mask(log_prob, mask=site["mask"])

    def _log_density(self, name: str, site: dict) -> Tensor:
        """Returns the site's log-density; outside the support it is -inf and has no gradient."""
        fn, value = site["fn"], site["value"]
        if not self._may_lie_outside(name, site):
            return fn.log_prob(value, *site["args"], **site["kwargs"])
        # Only a run with particles shows that a support moves with the latents.
        has_particles = self.layout.is_vectorized
        if site["is_observed"] and is_validation_enabled() and has_particles and not self.has_moving_support(site):
            found = outside_support(site)
            if found:
                raise ValueError(found)
        return log_density(fn, value)

    def _may_lie_outside(self, name: str, site: dict) -> bool:
        """Returns True unless the value of a site is known to lie in its support."""
        try:
            support = support_of(site["fn"])
            if site["is_observed"]:
                return is_masked(site) or len(bounds(support)) > 0
            proposal = self.guide_sites.get(name)
            if proposal is None or proposal is site or isinstance(base_of(proposal["fn"]), Delta):
                return False
            return not contains(support, support_of(proposal["fn"]))
        except NotImplementedError:  # a distribution without a support
            return False

    def has_moving_support(self, site: dict) -> bool:
        """Returns True if an observed site's support differs between particles, as that of x ~ Uniform(0, z) does."""
        if self.layout.particle_dim is None:
            return False
        event_dim = site["fn"].event_dim
        for bound in bounds(support_of(site["fn"])):
            dim = bound.dim() - event_dim + self.layout.particle_dim
            if dim >= 0 and bound.shape[dim] > 1:
                first, *others = bound.unbind(dim)
                if any(not torch.equal(first, other) for other in others):
                    return True
        return False

    def _is_part_of_point(self, name: str) -> bool:
        """Returns True for a part of a site that Pyro's `SplitReparam` makes a point of, with the site's density."""
        whole = self.model_sites.get(re.sub(r"_split_\d+$", "", name))
        return whole is not None and isinstance(base_of(whole["fn"]), Delta)

    def _has_moving_mask(self, site: dict) -> bool:
        """Returns True if the mask of an observed site differs between particles."""
        mask = seen(site)
        if self.layout.particle_dim is None:
            return any(not torch.equal(mask, seen(run.model_sites[site["name"]])) for run in self.others)
        dim = mask.dim() - site["fn"].event_dim + self.layout.particle_dim
        return dim >= 0 and mask.dim() > 0 and not torch.equal(mask, mask.narrow(dim, 0, 1).expand_as(mask))

    # Checks -----------------------------------------------------------------------------------------------------------

    def check_densities(self, auxiliary: bool = False, normalised: bool = True) -> None:
        """Raises `InputError` if the weights are not those of a density: log p(x) and its bounds then do not exist.

        With `auxiliary`, sites that only the guide has may carry the density of latents that are points, as in Pyro's
        autoguides. Without `normalised` the model may have factors, which weights known up to a constant allow.
        """

        def refuse(name: str, why: str) -> None:
            raise InputError(f'log p(x) does not exist or cannot be had: site "{name}" {why}')

        for name, site in (*self.model_sites.items(), *self.guide_sites.items()):
            if normalised and isinstance(base_of(site["fn"]), Unit):
                refuse(name, "is a factor, and the joint is then not normalised")
            if normalised and is_improper(site["fn"]) and not self._is_part_of_point(name):
                refuse(name, "is improper, and the joint is then not normalised")
        for name, site in self.observed.items():
            found = outside_support(site)
            if found and not self.has_moving_support(site):
                refuse(name, f"has data outside its support, {found} (grey pixels under a Bernoulli: a cross-entropy)")
            if self._has_moving_mask(site):
                refuse(name, "has a mask that differs between draws of the latents, and the joint is not normalised")
        alone = self.guide_only
        if alone and not auxiliary:
            refuse(next(iter(alone)), "is in the guide alone (auxiliary), and the weights would lack its density")
        for name, site in self.guide_sites.items():
            if isinstance(base_of(site["fn"]), Delta) and not alone:
                refuse(name, "is a point (Delta) in the guide: it has no density to weigh by")
        for name, site in (*self.latent.items(), *self.guide_sites.items()):
            if is_autoencoder(site):
                refuse(name, "is latent and masked (the code of an autoencoder)")
