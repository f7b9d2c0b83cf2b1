"""Runs a model with every state of its marked sites, those that the guide does not draw, each along its own dimension.

A site is marked with `infer={"enumerate": "parallel"}`, or by `pyro.infer.config_enumerate`. Unlike Pyro's own
messenger this one takes vectors (`to_event`), and refuses marks that ask for something other than an exact sum.
"""

from collections.abc import Collection
from typing import Any, ClassVar

from pyro.distributions import TorchDistribution
from pyro.poutine.enum_messenger import EnumMessenger
from torch import Tensor

from pyrovae.common import InputError, require
from pyrovae.programs.enumeration import enumerated_states
from pyrovae.programs.sites import masks_of

MAX_DIMS = 64  # of a tensor of PyTorch's
_SUMMED = "_summed_out"  # the key in a site's `infer` by which it is known


class Enumerating(EnumMessenger):
    """Gives marked sites that are not given all of their values at once.

    It goes directly around the model, inside the plate of the particles and inside `poutine.replay`, and so knows the
    model's own `pyro.markov` at the sites that the guide draws.

    Args:
        first_available_dim: The first dimension to the left of all plates, that of the particles among them.
        given: Names of the sites that get their values from elsewhere: from the guide.
        recycles: Along `pyro.markov`, the dimension of a site that is out of reach is used again. A program that reads
            such a site nevertheless, its `history` being too short, gets wrong numbers without an error; with False it
            gets other ones, which tells. There are then dimensions for some sixty sites.

    Raises:
        InputError: A marked site has no finite number of states, is to be sampled (`num_samples`) or enumerated one
            state after another ("sequential"), its distribution is masked, or too many sites are marked.

    Example:
        >>> import pyro.distributions as dist
        >>> from pyro import poutine
        >>> from pyrovae.programs.enumerated_runs import Enumerating
        >>> def model():
        ...     return pyro.sample("c", dist.Categorical(torch.ones(3)), infer={"enumerate": "parallel"})
        >>> Enumerating(first_available_dim=-3)(model)().shape
        torch.Size([3, 1, 1])
    """

    def __init__(self, first_available_dim: int, given: Collection[str] = (), recycles: bool = True) -> None:
        super().__init__(first_available_dim)
        self.given, self.recycles = given, recycles

    def _pyro_sample(self, msg: Any) -> None:
        if not self.recycles:
            msg["infer"].pop("_markov_scope", None)
        mark = msg["infer"].get("enumerate")
        if mark is None or msg["done"] or msg["is_observed"]:
            super()._pyro_sample(msg)
            return
        if msg["name"] in self.given:  # the guide's mark takes the place of the model's
            msg["infer"] = {key: value for key, value in msg["infer"].items() if key != "enumerate"}
            super()._pyro_sample(msg)
            return
        fn = msg["fn"]
        _check_mark(msg)
        if not fn.has_enumerate_support:
            msg["fn"] = _Vectors(msg["name"], fn)
        try:
            super()._pyro_sample(msg)
        except NotImplementedError as error:
            rule = "a site that is summed out must have the same finitely many values everywhere"
            raise InputError(f'{rule}, got {fn} at site "{msg["name"]}"') from error
        finally:
            msg["fn"] = fn
        dim = msg["infer"]["_enumerate_dim"]
        require(
            len(fn.batch_shape) < -dim or fn.batch_shape[dim] == 1,
            f'site "{msg["name"]}" depends on a summed site that is out of reach: the history of pyro.markov is too '
            "short, or a plate is missing",
        )
        require(
            dim >= -MAX_DIMS,
            f'a tensor has at most {MAX_DIMS} dimensions, too few for the states of site "{msg["name"]}": put '
            "summed sites into a vectorized plate, or along pyro.markov",
        )
        msg["infer"][_SUMMED] = True

    def _pyro_post_sample(self, msg: Any) -> None:
        if msg["name"] in self.given and "_enumerate_dim" not in msg["infer"]:
            msg["infer"].pop("_dim_to_id", None)  # of an earlier run: replay hands on what belongs to the guide
        super()._pyro_post_sample(msg)


def is_marked(site: dict) -> bool:
    """Returns True for a site that is to be summed out, unless it is given a value from elsewhere."""
    return not site["is_observed"] and site["infer"].get("enumerate") == "parallel"


def is_summed(site: dict) -> bool:
    """Returns True for a site that had all of its values in a run under `Enumerating`."""
    return _SUMMED in site["infer"]


def _check_mark(msg: Any) -> None:
    name, mark, infer = msg["name"], msg["infer"]["enumerate"], msg["infer"]
    require(
        mark == "parallel",
        f'the guide does not draw site "{name}", where enumerate must then be "parallel", got "{mark}"',
    )
    samples = infer.get("num_samples")
    require(
        samples is None,
        f'the states of site "{name}", which the guide does not draw, are summed exactly: num_samples must be left '
        f"out, got {samples}",
    )
    require(
        not masks_of({"fn": msg["fn"], "mask": None}),
        f'the distribution of site "{name}", which is summed out, must not be masked: put poutine.mask around the site',
    )


class _Vectors(TorchDistribution):
    """Has the states of a vector (`to_event`) as its support: those of its elements in every combination."""

    arg_constraints: ClassVar = {}

    def __init__(self, name: str, fn: TorchDistribution) -> None:
        super().__init__(fn.batch_shape, fn.event_shape, validate_args=False)
        self.name, self.fn = name, fn

    def enumerate_support(self, expand: bool = False) -> Tensor:
        """Returns the states, `(num_states, 1 ... 1, *event)`."""
        states = enumerated_states({self.name: {"fn": self.fn}})[self.name]
        return states.reshape(len(states), *(1 for _ in self.batch_shape), *self.event_shape)
