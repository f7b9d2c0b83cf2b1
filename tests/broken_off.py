"""Trainings that are broken off, which tests of checkpoints share."""

from functools import partial

import pyro
import pyro.distributions as dist
import torch
from helpers import ring, small_vae

import pyrovae as pv
from pyrovae.training.checkpoints import CURRENT, Checkpoints

ENDED = "is finished, so nothing was trained"


class Killed(BaseException):
    """Stands for a power cut, as far as one process can have it."""


def dies_after(num_steps, kind=torch.optim.Adam, **settings):
    """Returns a maker of optimisers, each of which takes so many steps and then kills the training."""

    class Mortal(kind):
        taken = 0

        @torch.no_grad()
        def step(self, *args):
            if self.taken == num_steps:
                raise Killed
            self.taken += 1
            return super().step(*args)

    Mortal.__name__ = kind.__name__  # a checkpoint tells kinds of optimisers apart by their names

    def make(parameters, lr):
        make.made = Mortal(parameters, lr=lr, **settings)
        return make.made

    make.lives_no_longer = lambda: make.made.taken == num_steps
    return make


class BeforeDeath(Checkpoints):
    """Checkpoints at the start, after the last step that the optimiser takes before it kills, and at the end.

    One after every step takes as long as the step.
    """

    def __init__(self, folder, optimizer):
        super().__init__(folder, minutes=100.0)
        self.optimizer = optimizer

    def is_due(self):
        return getattr(self.optimizer, "lives_no_longer", lambda: False)()


ring_data = partial(ring, num_train=50, num_validation=20, num_test=5)


def dynamic_images():
    """Returns images that are binarised anew at every batch, from the random numbers that noise and order use, too."""
    grey = torch.randint(0, 256, (23, 1, 4, 4), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    x, y = (grey > 128).float(), torch.zeros(23, dtype=torch.long)
    return pv.Dataset("images", "binary", x, y, x[:6], y[:6], x[:6], y[:6], train_grey=grey)


def image_vae():
    torch.manual_seed(3)
    return pv.VAE((1, 4, 4), latent_dim=2, hidden=(4,), likelihood=pv.Bernoulli(), network="mlp")


class WithParamsOfItsOwn:
    """A pair that is no module, with parameters in Pyro's store, one of them constrained."""

    def __init__(self):
        pyro.clear_param_store()

    def model(self, x):
        scale = pyro.param("scale", torch.tensor(0.7), constraint=dist.constraints.positive)
        weight = pyro.param("weight", torch.ones(2))
        with pyro.plate("data", len(x), dim=-1):
            z = pyro.sample("z", dist.Normal(torch.zeros(1), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(z * weight, scale).to_event(1), obs=x)

    def guide(self, x):
        loc = pyro.param("loc", torch.zeros(1))
        with pyro.plate("data", len(x), dim=-1):
            pyro.sample("z", dist.Normal(loc + 0.1 * x[:, :1], 0.5).to_event(1))


CASES = {
    "plain": (small_vae, ring_data, {}),
    "everything": (
        small_vae,
        ring_data,
        {"beta_schedule": "cyclical", "schedule": "cosine", "max_grad_norm": 0.5, "patience": 2, "lr": 0.05},
    ),
    "images that change": (image_vae, dynamic_images, {"objective": "iwae", "num_particles": 3}),
    "a tensor": (small_vae, lambda: ring_data().train_x, {"objective": "dreg", "num_particles": 3}),
    "a loader": (
        small_vae,
        lambda: torch.utils.data.DataLoader(ring_data().train_x, batch_size=30, shuffle=True),
        {},
    ),
    "parameters of pyro": (WithParamsOfItsOwn, ring_data, {}),
    "random numbers of the caller": (small_vae, ring_data, {"seed": None}),
    "sides": (
        small_vae,
        ring_data,
        {"guide_steps": 3, "lr": {"model": 0.01, "guide": 0.03}, "max_grad_norm": {"guide": 0.5}},
    ),
    "compiled": (small_vae, ring_data, {"compile": True, "objective": "sticking_the_landing"}),
    "another objective": (small_vae, ring_data, {"objective": {1: "elbo", 3: pv.objectives.DReG(3)}}),
}


def train(case, folder, optimizer=torch.optim.Adam, minutes=None, **more):
    """Trains with a checkpoint before the optimiser kills the training, or so many minutes after another.

    Returns the parameters, the optimiser's state and the history without its times.
    """
    make, data, settings = CASES[case] if isinstance(case, str) else case
    vae = make()
    torch.manual_seed(7)
    settings = {"epochs": 4, "batch_size": 16, "seed": 1, "progress": False, **settings, **more}
    kept = BeforeDeath(folder, optimizer) if minutes is None else Checkpoints(folder, minutes=minutes)
    history = pv.fit(vae, data(), optimizer=optimizer, checkpoints=kept, **settings)
    state = torch.load(folder / CURRENT, weights_only=True)
    return state["parameters"], state["optimizer"]["state"], without_times(history)


def without_times(history):
    return [{name: value for name, value in record.items() if name != "seconds"} for record in history.records()]


def assert_same(one, other):
    assert one[2] == other[2]
    assert one[0].keys() == other[0].keys()
    assert all(torch.equal(value, other[0][name]) for name, value in one[0].items())
    assert len(one[1]) == len(other[1]) > 0
    for key, state in one[1].items():
        assert all(torch.equal(torch.as_tensor(v), torch.as_tensor(other[1][key][n])) for n, v in state.items())
