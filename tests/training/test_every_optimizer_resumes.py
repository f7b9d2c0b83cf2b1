"""Every optimiser and every schedule resumes to the bit, and so do checkpoints of older versions: none is refused."""

import warnings

import pyro
import pytest
import torch
from broken_off import ring_data
from helpers import parameters_of, small_vae
from kept_checkpoints import Kept, Resumed, checkpoint_of
from torch.optim import lr_scheduler

OPTIMIZERS = {
    **{
        kind.__name__: kind
        for kind in vars(torch.optim).values()
        if isinstance(kind, type) and kind.__name__ not in ("Optimizer", "LBFGS", "SparseAdam", "Muon")
    },
    "amsgrad": lambda p, lr: torch.optim.Adam(p, lr=lr, amsgrad=True, weight_decay=0.1),
    "momentum": lambda p, lr: torch.optim.SGD(p, lr=lr, momentum=0.9, nesterov=True),
    "a tensor": lambda p, lr: torch.optim.Adam(p, lr=torch.tensor(lr)),
    "two groups": lambda p, lr: torch.optim.Adam([{"params": p[:2], "lr": 0.1}, {"params": p[2:]}], lr=lr),
    "DCTAdam": pyro.optim.DCTAdam({"lr": 0.01}),
    "ClippedAdam": pyro.optim.ClippedAdam({"lr": 0.01, "lrd": 0.9}),
}
SCHEDULES = {
    "exponential": lambda o: lr_scheduler.ExponentialLR(o, 0.9),
    "steps": lambda o: lr_scheduler.MultiStepLR(o, [1]),
    "a function": lambda o: lr_scheduler.LambdaLR(o, lambda epoch: 0.9**epoch),
    "cycles with momentum": lambda o: lr_scheduler.CyclicLR(o, 0.01, 0.1),
    "one cycle": lambda o: lr_scheduler.OneCycleLR(o, 0.1, total_steps=10),
    "restarts": lambda o: lr_scheduler.CosineAnnealingWarmRestarts(o, 2),
    "several": lambda o: lr_scheduler.ChainedScheduler([lr_scheduler.ExponentialLR(o, 0.9)], optimizer=o),
    "plateau": lambda o: lr_scheduler.ReduceLROnPlateau(o, mode="max", threshold_mode="abs", patience=0),
    "cosine": "cosine",
}


def assert_resumes(change=lambda content: content, **settings):
    make = small_vae, ring_data, settings
    whole, content = checkpoint_of(*make, (2, 1))
    resumed = Resumed(*make, Kept())
    resumed.kept.content = change(content)
    with warnings.catch_warnings(action="ignore"):
        resumed.run()
    assert torch.equal(parameters_of(resumed.training.vae), parameters_of(whole.training.vae))


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_every_optimizer_resumes(name):
    optimizer = OPTIMIZERS[name]
    assert_resumes(optimizer=optimizer, **({"lr": None} if isinstance(optimizer, pyro.optim.PyroOptim) else {}))


@pytest.mark.parametrize("name", SCHEDULES)
def test_every_schedule_resumes(name):
    assert_resumes(optimizer=OPTIMIZERS["momentum"], schedule=SCHEDULES[name])


def test_a_checkpoint_of_an_older_version_resumes():
    def older(content):
        del content["identity"], content["versions"], content["best"]["last"], content["position"]["in_pass"]
        del content["position"]["reconstruction"], content["position"]["kl"]
        for record in content["history"]:
            del record["train_reconstruction"], record["train_kl"]
        del content["settings"]["steps_per_epoch"]
        return content

    assert_resumes(older, patience=2)
