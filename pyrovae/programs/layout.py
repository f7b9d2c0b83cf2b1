"""Finds the data plates of a pair, and with them which sites have a value for each datum and which are drawn once.

The data plate is the outermost plate that every observed site with local latents lies in. Its sites are local: they are
drawn for each particle, and a datum's term is the sum over all of their other dimensions. Sites outside are global. If
no plate holds the observed sites, the whole data set is one datum, and every site counts as local.
"""

from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import NamedTuple

from pyro.distributions import Delta, Unit
from pyro.poutine.indep_messenger import CondIndepStackFrame

from pyrovae.common import InputError, require, shown
from pyrovae.programs.enumerated_runs import is_marked
from pyrovae.programs.sites import base_of

PARTICLES = "num_particles"  # the name of the plate of the particles, to the left of all others


class Reading(NamedTuple):
    """States how a pair is to be read, where it can be read in more than one way.

    - `plate`: the name of the data plate; None finds it.
    - `joint`: the whole data set is one datum.
    - `vectorize_particles`: True runs all particles at once, False one after another, "auto" the latter only for
      programs that cannot take a dimension of particles. "only" is True for a caller that knows no other way.
    """

    plate: str | None = None
    joint: bool = False
    vectorize_particles: bool | str = "auto"


@dataclass(frozen=True)
class Layout:
    """Says where the data and the particles of a pair lie.

    - `plates`: the names of the data plates. Without any, the whole data set is one datum.
    - `nesting`: the number of dimensions that plates take. Particles lie to the left of them.
    - `has_globals`: a site lies outside the data plates.
    - `draws_locally`: the guide draws something for each datum; and `draws_globally`: something for all data together.
    - `sums`: discrete sites of the model alone are summed out.
    - `is_vectorized`: particles are a dimension, and not runs one after another.
    """

    plates: tuple[str, ...] = ()
    nesting: int = 1
    has_globals: bool = False
    draws_locally: bool = True
    draws_globally: bool = False
    sums: bool = False
    is_vectorized: bool = True

    @property
    def particle_dim(self) -> int | None:
        """The dimension of the particles, counted from the right, or None if there is none."""
        return -1 - self.nesting if self.is_vectorized else None

    @property
    def state_dim(self) -> int:
        """The first dimension to the left of all others, for the states of sites that are summed out."""
        return -1 - self.nesting - self.is_vectorized

    @property
    def is_simple(self) -> bool:
        """True if every site lies in the one data plate, and plates take one dimension."""
        return len(self.plates) == 1 and not self.has_globals and self.nesting == 1 and self.is_vectorized

    def fits(self, other: "Layout") -> bool:
        """Returns True if the particles of the other layout lie where they do in this one."""
        return (self.plates, self.particle_dim, self.sums) == (other.plates, other.particle_dim, other.sums)

    def takes(self, other: "Layout") -> bool:
        """Returns True if a run by this layout is one of a pair that has the other."""
        return (self.plates, self.sums) == (other.plates, other.sums) and self.nesting >= other.nesting

    def is_local(self, site: dict) -> bool:
        """Returns True if a site has a value for each datum."""
        return not self.plates or any(frame.name in self.plates for frame in site["cond_indep_stack"])


def frames_of(site: dict) -> list[CondIndepStackFrame]:
    """Returns the plates that a site lies in, the outermost first, without that of the particles."""
    return [frame for frame in site["cond_indep_stack"] if frame.name != PARTICLES]


def read_layout(model_sites: dict[str, dict], guide_sites: dict[str, dict], reading: Reading) -> Layout:
    """Returns the layout of a pair, read from the plates of its sites.

    Raises `InputError`, with the names of the candidates, if more than one plate may be meant.
    """
    sites = [*model_sites.values(), *guide_sites.values()]
    dims = [-frame.dim for site in sites for frame in frames_of(site) if frame.dim is not None]
    nesting = max([1, *dims])
    summed = [site for name, site in model_sites.items() if name not in guide_sites and is_marked(site)]
    joint = Layout(nesting=nesting, sums=bool(summed))
    if reading.joint:
        return joint
    plates = _data_plates(model_sites, guide_sites, reading.plate)
    layout = replace(joint, plates=plates)
    drawn = [site for site in guide_sites.values() if is_random(site)]
    if not all(map(layout.is_local, summed)):  # a sum over states for all data couples them
        return joint
    if _is_drawn_at_once(layout, model_sites, guide_sites):
        return replace(joint, draws_locally=False, draws_globally=True)
    return replace(
        layout,
        has_globals=not all(map(layout.is_local, sites)),
        draws_locally=any(map(layout.is_local, drawn)),
        draws_globally=not all(map(layout.is_local, drawn)),
    )


def is_random(site: dict) -> bool:
    """Returns True for a latent that is drawn, and is no point."""
    return not site["is_observed"] and not isinstance(base_of(site["fn"]), Delta | Unit)


def _is_drawn_at_once(layout: Layout, model_sites: dict[str, dict], guide_sites: dict[str, dict]) -> bool:
    """Returns True if one draw outside all plates gives the local latents, as in Pyro's `AutoMultivariateNormal`."""
    local = [site for name, site in guide_sites.items() if name in model_sites and layout.is_local(site)]
    points = [site for site in local if isinstance(base_of(site["fn"]), Delta)]
    alone = [site for name, site in guide_sites.items() if name not in model_sites and is_random(site)]
    return bool(points and alone) and not any(map(layout.is_local, alone))


# The choice of the plate ----------------------------------------------------------------------------------------------


def _data_plates(model_sites: dict[str, dict], guide_sites: dict[str, dict], plate: str | None) -> tuple[str, ...]:
    sites = [*model_sites.values(), *guide_sites.values()]
    of_observed = [_names(site) for site in model_sites.values() if site["is_observed"]]
    if plate is not None:
        known = sorted({name for names in of_observed for name in names})
        rule = f"plate must name a plate that observed sites lie in, {' or '.join(known) or 'of which there is none'}"
        require(plate in known, f"{rule}, got {shown(plate)}")
        return (plate,)
    latents = [site for site in model_sites.values() if not site["is_observed"]]
    latents += [site for site in guide_sites.values() if is_random(site)]
    with_latents = {name for site in latents for name in _names(site)}
    candidates = [[name for name in names if name in with_latents] for names in of_observed]
    if not any(candidates):  # all latents are global
        candidates = of_observed
    candidates = [names for names in candidates if names]
    if not candidates:
        return ()
    common = [name for name in candidates[0] if all(name in names for names in candidates)]
    chosen = {common[0]} if common else {names[0] for names in candidates}
    for names in candidates:
        own = [name for name in names if name in chosen]
        crossing = [name for name in names if name not in own and _crosses(name, own, sites)]
        if len(own) > 1 or crossing:
            found = " and ".join(f'"{name}"' for name in names)
            raise InputError(f"plate must say which is the data plate: observed sites lie in {found}, which cross")
    return tuple(dict.fromkeys(name for names in candidates for name in names if name in chosen))


def _crosses(name: str, chosen: list[str], sites: Iterable[dict]) -> bool:
    """Returns True if a site lies in the plate of this name and in none of the chosen ones."""
    return any(name in names and not any(one in names for one in chosen) for names in map(_names, sites))


def _names(site: dict) -> list[str]:
    return [frame.name for frame in frames_of(site)]
