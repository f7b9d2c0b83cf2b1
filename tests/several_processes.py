"""Runs what test_workers.py has several processes do, under torchrun, or one alone; each writes what it found."""

import os
import signal
import sys
from pathlib import Path
from unittest.mock import patch

import pyro
import pyro.distributions as dist
import torch
from exact import conjugate, hierarchical
from helpers import FEW_FACTORS, draw, linear_gaussian, small_vae

import pyrovae as pv
from pyrovae.common.workers import Workers, process_group
from pyrovae.evaluation import annealed_chains, proposal_misfit, sampled_weights
from pyrovae.runs.run import train_run
from pyrovae.training.steps import Steps


class Planned(dist.Normal):
    """A normal distribution whose noise is given, so that it is the same whoever draws it."""

    def __init__(self, loc, scale, noise):
        self.noise = noise
        super().__init__(loc, scale)

    def expand(self, shape, _instance=None):
        return Planned(self.loc.expand(shape), self.scale.expand(shape), self.noise.expand(shape))

    def rsample(self, sample_shape=()):
        return self.loc + self.scale * self.noise


def train() -> dict[str, object]:
    """21 data in batches of 8: the last has 5, of which one process of two has 3."""
    vae = linear_gaussian(0)
    encode = vae.encode

    def planned(x):
        q = encode(x).base_dist
        return Planned(q.loc, q.scale, torch.sin(1e3 * x[:, :2])).to_event(1)

    vae.encode = planned
    torch.manual_seed(1)
    x, held_out = draw(vae, 21), draw(vae, 2_500)
    if Workers().rank > 0:  # what the first has is what counts
        with torch.no_grad():
            vae.bias.add_(1.0)
    settings = {"epochs": 4, "batch_size": 8, "lr": 0.05, "max_grad_norm": 2.0, "seed": 3, "patience": 3}
    settings["guide_steps"] = 2
    history = pv.fit(vae, x, validation=held_out, **settings)
    terms = [history.train_reconstruction, history.train_kl]
    return {"state": vae.state_dict(), "loss": history.loss, "elbo": history.elbo, "terms": terms}


@patch.object(sampled_weights, "DATA_PER_CHUNK", 12)
@patch.multiple(proposal_misfit, **FEW_FACTORS)  # on which no number here depends
def evaluate() -> dict[str, object]:
    """30 data are three runs of 12: two for one process and one for the other.

    Of 14 data, and of 15 with eight chains each, there is one run for each process.
    """
    vae = linear_gaussian(1)
    with torch.random.fork_rng():
        torch.manual_seed(2)
        x = draw(vae, 30)
    torch.manual_seed(4)
    found = pv.evaluate(vae.model, vae.guide, x, methods=("elbo", "iwae_5", "is_70"))
    chains = {"num_distributions": 3, "num_chains": 8, "num_leapfrog": 1, "chunk_size": 80}
    with patch.multiple(annealed_chains, PILOT_WARMUP=2, PILOT_TRANSITIONS=5):  # most of the time otherwise
        annealed = pv.annealed_log_marginal(vae.model, vae.guide, x[:15], **chains)
        gap = pv.bidirectional_gap(vae.model, vae.guide, x[:15], **chains)
    values = {one.method: one.estimate.value for one in found.measured}
    values |= {"bounds": found["is_70"].estimate.bounds, "annealed": annealed.log_weights, "x": gap.args[0]}
    nested = pv.log_marginal(hierarchical.Hierarchy(), hierarchical.data(6), num_samples=40)
    coin = pv.log_marginal(conjugate.coin, conjugate.coin_guide, conjugate.tosses(3, 2), num_samples=40)
    few = x[:14]
    post = pv.posterior(vae.model, vae.guide, few, num_samples=70)
    values |= {"posterior": post.mean("z").value, "quantiles": post.quantile("z", (0.1, 0.9)).value}
    values |= {"resampled": post.sample(3)["z"]}
    parts = small_vae((5,), missing="mask")
    cells = {"num_samples": 60, "num_draws": 2, "missing": torch.eye(14, 5).bool()}
    values |= {"imputed": pv.impute(parts, few.float(), **cells).draws}
    given = pv.conditional_log_marginal(parts, few.float(), given=torch.arange(5) < 2, num_samples=60)
    check = pv.predictive_check(vae, few, statistic=lambda x: x.sum(-1), num_samples=60, num_replicates=3)
    values |= {"conditional": given.value, "replicated": check.replicated, "p": check.p_values.value}
    with patch.multiple(annealed_chains, PILOT_WARMUP=2, PILOT_TRANSITIONS=5):
        values |= {"rate": pv.annealed_rate_distortion(vae.model, vae.guide, x[:15], **chains).rate}
        values |= {"ends": pv.annealed_posterior(vae.model, vae.guide, x[:15], **chains).mean("z").value}
    shared = pv.posterior(hierarchical.Hierarchy(), hierarchical.data(6), num_samples=40, num_particles=2)
    values |= {"shared": shared.mean("z").value}
    return values | {"upper": gap.upper.log_weights, "nested": nested.bounds, "coin": coin.bounds}


def survive(folder: Path, victim: int | None, restarted: bool) -> dict[str, object]:
    """A run, in which process number `victim` dies in its second epoch, once."""
    step, taken = Steps.take, []

    def mortal(self, index, batch):
        taken.append(index)
        if self.state.position.epoch == 2 and index == 2 and Workers().rank == victim and not restarted:
            os.kill(os.getpid(), signal.SIGKILL)
        return step(self, index, batch)

    Steps.take = mortal
    pyro.clear_param_store()
    config = pv.RunConfig(hidden=(8,), epochs=3, batch_size=500, schedule="cosine", beta_schedule="linear")
    run = train_run(config, folder, checkpoint_minutes=100.0 if victim is None else 1e-6)
    found = {"state": run.vae.state_dict(), "loss": run.history.loss, "elbo": run.history.elbo}
    return {**found, "again": restarted, "steps": len(taken)}


if __name__ == "__main__":
    out = Path(sys.argv[1])
    torch.set_num_threads(1)
    restarted = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0") != "0"
    with process_group() as workers:
        if not restarted:
            found = {"train": train(), "evaluate": evaluate(), "whole": survive(out / "whole", None, restarted)}
            torch.save(found, out / f"{workers.rank}.pt")
        torch.save(survive(out / "killed", 1, restarted), out / f"{workers.rank} again.pt")
    for number in range(3):
        with process_group() as workers:
            assert workers.gathered((workers.rank, number)) == [(0, number), (1, number)]
