"""A model without a guide: its log-densities at given values of its latents, for each datum or for all together."""

from collections.abc import Callable
from dataclasses import replace
from functools import cached_property
from typing import Any

import torch
from pyro import poutine
from torch import Tensor

from pyrovae.common import InputError, counted, device_of, first_line, is_out_of_memory, local_seed, require
from pyrovae.data import moved
from pyrovae.evaluation.arguments import check_args, home_of, tensors_in
from pyrovae.evaluation.chunks import DATA_PER_CHUNK, Data, Opened, pairs_in_memory
from pyrovae.evaluation.cuts import cut
from pyrovae.evaluation.rows import as_rows, data_dim_of, from_rows
from pyrovae.evaluation.subsamples import check_subsamples_of
from pyrovae.programs import (
    AS_IT_COMES,
    Layout,
    Pair,
    at_every_datum,
    drawn_sites,
    frames_of,
    gate,
    is_marked,
    is_masked,
    log_joint,
    pair_of_sites,
    particles,
    read_layout,
    run_pair,
    sample_sites,
    with_all_states,
    without_mask,
    without_masks_of_latents,
)

PARTS_CHECKED = 8  # of the data: all of them would take longer than many an integral


class ModelAlone:
    """Holds a model, its data, and its latent sites, each of one value for each datum, without those that are summed.

    If the data share latents, all data are one datum: log-densities are then those of all data together.

    Args:
        model: A Pyro program.
        args: What it takes.
        name: The function that wants it, which errors name.

    Raises:
        InputError: A latent lies in more plates than that of the data, or no density exists.
    """

    def __init__(self, model: Callable, args: tuple, name: str) -> None:
        check_args(model, args)
        self.home, self.name = home_of(args), name
        args = moved(args, device_of(model, tensors_in(args)))
        try:
            with local_seed(0):  # for names and shapes, and to validate the arguments once
                sites = drawn_sites(model, *args)
        except TypeError as error:
            if "argument" not in str(error):
                raise
            raise InputError(
                f"model must take the {counted(len(args), 'argument')} given: {first_line(error)}"
            ) from error
        latent = {name: site for name, site in sites.items() if not site["is_observed"]}
        require(len(latent) > 0, "model must have a latent site, and has none")
        layout = read_layout(sites, {}, AS_IT_COMES)
        if layout.has_globals:
            layout = Layout(nesting=layout.nesting, sums=layout.sums)
        plates = ", ".join(sorted(layout.plates))
        require(
            len(layout.plates) < 2,
            f"{name} needs data in one plate, or latents that all share, got the plates {plates}",
        )
        self.layout = layout
        self.latent = {name: site for name, site in latent.items() if not is_marked(site)}
        for site_name, site in self.latent.items():
            others = [frame.name for frame in frames_of(site) if frame.name not in layout.plates]
            rule = f"{name} needs latents with one value for each datum, or one for all"
            require(not others, f'{rule}, and site "{site_name}" lies in the plate "{others[0] if others else ""}"')
            sequential = layout.plates and data_dim_of(site, layout) is None
            require(not sequential, f'{rule}, and site "{site_name}" lies in a plate that is not vectorized')
        self.pair = self._pair_of_two(with_all_states(model, layout, self.latent), args)
        self.pair.check_densities()
        check_subsamples_of(name, (model,), self.pair, args)
        if any(map(is_masked, self.latent.values())):
            with local_seed(0):
                gate.check(model, self._prior_of(model), None, *args)
            model = without_masks_of_latents(model)
            self.latent = {name: without_mask(site) for name, site in self.latent.items()}
        self.model = model
        size = self.pair.batch
        self.data = Data(args, size, 0, size, device_of(model, tensors_in(args)), is_whole=not layout.plates)
        if layout.plates and self.latent:
            self._check_independence(args)

    def _pair_of_two(self, model: Callable, args: tuple) -> Pair:
        """Returns two particles, which show whether the support of the data moves with the latents."""
        try:
            with local_seed(0), particles(2, self.layout):
                sites = sample_sites(poutine.trace(model).get_trace(*args))
        except (IndexError, RuntimeError, TypeError) as error:
            if is_out_of_memory(error):
                raise
            rule = f"{self.name} gives latents many values at once, in a dimension left of the plates"
            cure = "index from the right (`z[..., i]`), and do not call `.item()`"
            raise InputError(f"{rule}, which the model does not take: {first_line(error)}; {cure}") from error
        return pair_of_sites(sites, {}, 2, self.layout)

    def _check_independence(self, args: tuple) -> None:
        """Raises `InputError` if a datum's terms depend on the latents of another, in rows that are spread over all."""
        prior = self._prior_of(self.model)
        last = max(0, self.data.size - DATA_PER_CHUNK)
        starts = sorted({round(last * place / (PARTS_CHECKED - 1)) for place in range(PARTS_CHECKED)})
        for start in starts:
            few = self.data.rows(start, start + DATA_PER_CHUNK).args
            with local_seed(0):
                try:
                    pair = run_pair(self.model, prior, *few, num_particles=2)
                except Exception:  # a program may fail in any way on some rows
                    few, pair = args, run_pair(self.model, prior, *args, num_particles=2)
                gate.require_independence(gate.with_coupled(pair, self.model, prior, few, {}))
            if few is args:
                return

    def _prior_of(self, model: Callable) -> Callable:
        """Returns the guide that draws from the model's prior."""

        def is_hidden(site: Any) -> bool:
            return site["type"] == "sample" and (site["is_observed"] or is_marked(site))

        return poutine.block(model, hide_fn=is_hidden)

    def cut(self, size: int) -> Data:
        """Returns the data, to be taken in chunks of `size`; or whole, with a warning, if they may not be cut."""
        pair = replace(self.pair, guide_sites=self.pair.latent)
        found = Opened(self.data, pair, size, AS_IT_COMES, pairs_in_memory(pair))
        return cut(self.model, self._prior_of(self.model), found, size)

    @cached_property
    def takes_rows(self) -> bool:
        """True if data in another order, some of them twice, have the log-densities that they have among all."""
        if self.data.is_whole:
            return False
        size = self.data.size
        index = torch.arange(size // 2, size).repeat(2)[:size].to(self.data.device)
        z = {}
        for name, site in self.pair.latent.items():
            value, data_dim = site["value"], data_dim_of(site, self.layout)
            rows = as_rows(value, value.dim() - site["fn"].event_dim, data_dim, self.layout)[:1]
            z[name] = rows.reshape(1, size, *site["fn"].event_shape)
        try:
            whole = self.log_joint(z, self.data.args, size)[0, index]
            own = self.log_joint({name: value[:, index] for name, value in z.items()}, self.data.at(index), size)[0]
        except Exception as error:  # a program may fail in any way on other data
            if is_out_of_memory(error):
                raise
            return False
        return torch.allclose(own, whole, rtol=100 * torch.finfo(own.dtype).eps, atol=1e-6, equal_nan=True)

    def log_joint(self, values: dict[str, Tensor], args: tuple, num_data: int) -> Tensor:
        """Returns log p(x, z), `(num, num_data)`, at values `(num, num_data, *event)`, or `(num, 1, *event)`."""

        def run(values: dict[str, Tensor]) -> Tensor:
            shaped = {name: self.shaped(value, name) for name, value in values.items()}
            return log_joint(self.model, shaped, *args, layout=self.layout)

        return at_every_datum(run, values, num_data)

    def shaped(self, value: Tensor, name: str) -> Tensor:
        """Returns values `(num, data, *event)` of a site as the model takes them."""
        data_dim = data_dim_of(self.latent[name], self.layout)
        ones = [1] * (self.layout.nesting - (data_dim is not None))
        return from_rows(value.reshape(*value.shape[:2], *ones, *value.shape[2:]), data_dim, self.layout)

    def log_prior(self, value: Tensor, name: str, rows: Tensor | None) -> Tensor:
        """Returns log p(z) of one site, `(num, data)`, at values `(num, data, *event)` of the data `rows`."""
        fn, data_dim = self.latent[name]["fn"], data_dim_of(self.latent[name], self.layout)
        if rows is not None and data_dim is not None and len(fn.batch_shape) >= -data_dim:
            fn = ModelAlone(self.model, self.data.at(rows), self.name).latent[name]["fn"]
        log_prob = fn.log_prob(self.shaped(value, name))
        found = as_rows(log_prob, log_prob.dim(), data_dim, self.layout)
        return found.reshape(*found.shape[:2])
