"""`CompiledSVI`: steps of stochastic variational inference that run Pyro's handlers once and replay what they did."""

import math
from collections.abc import Callable
from weakref import WeakValueDictionary

import torch
from pyro.infer import ELBO as PyroELBO, TraceTailAdaptive_ELBO
from pyro.optim import PyroOptim
from torch import Tensor

from pyrovae.common import (
    InputError,
    first_line,
    is_validation_error,
    one_line,
    require,
    require_callable,
    require_flag,
    scale_hint,
    warn,
)
from pyrovae.objectives import ELBO
from pyrovae.training.compiled_loss import CompiledLoss
from pyrovae.training.fused_adam import FusedAdam
from pyrovae.training.one_optimizer import OneOptimizer

MOST_NAMED = 4


class CompiledSVI:
    """`pyro.infer.SVI` for a program that does the same at every step: traced once, compiled, replayed.

    It takes any loss that `SVI` takes and gives the same numbers: to rounding, and without machine code to the bit (but
    for a loss of the user's that computes with numbers from `item`, which are tensors here). There is one graph for
    each shape of the arguments. Buffers (a VAE's `beta`) are read at every step, and randomness is drawn afresh from
    torch's generators, in the order of the eager step. Each graph is compared with the eager program now and then, and
    traced again when the pair changes; a program that cannot be traced runs eagerly, with a warning that says why.

    Args:
        model, guide: a pair that does the same at every step: modules through `pyro.module`, a `PyroModule`, functions
            that call `pyro.param`, or autoguides.
        optim: a `pyro.optim` optimiser, whose parts for each parameter are stepped in one call where they have the same
            settings; or one of `torch.optim` over the pair's parameters, with a warning that names those that it does
            not hold. None is `torch.optim.Adam(..., lr=1e-3, fused=True)` over all of them.
        loss: an objective of `pv.objectives`; an ELBO of Pyro's or a subclass of one, of which the first step runs
            eagerly, and one that compiles itself (`JitTrace_ELBO`) runs as the one that it was made from; or a function
            of model, guide and the arguments. None is `ELBO()`.
        inductor: compiles the graph to machine code. False replays its operations one by one: for a machine without a
            C++ compiler, or to have the eager step's numbers to the bit.

    Raises:
        InputError: if `optim` or `loss` is not one that can be used here; at the first step, if the pair registers no
            parameter, or is one that `loss` would train to nonsense.

    Example:
        >>> x = torch.randn(20, 3)
        >>> vae = pv.VAE((3,), latent_dim=2, hidden=(8,), likelihood=pv.Gaussian(0.5))
        >>> svi = pv.CompiledSVI(vae.model, vae.guide, loss=pv.objectives.IWAE(5), inductor=False)
        >>> losses = [svi.step(x) for _ in range(3)]
        >>> len(set(losses)), svi.reason
        (3, None)
    """

    def __init__(
        self,
        model: Callable,
        guide: Callable,
        optim: PyroOptim | torch.optim.Optimizer | None = None,
        loss: PyroELBO | Callable | None = None,
        *,
        inductor: bool = True,
    ) -> None:
        require_callable("model", model)
        require_callable("guide", guide)
        require_flag("inductor", inductor)
        known = optim is None or isinstance(optim, PyroOptim | torch.optim.Optimizer)
        require(known, f"optim must be an optimiser of pyro.optim or torch.optim, got {type(optim).__name__}")
        require(not isinstance(optim, torch.optim.LBFGS), "optim must step without a closure, and LBFGS does not")
        self.optim = optim
        self.compiled = CompiledLoss(model, guide, ELBO() if loss is None else loss, inductor=inductor)
        self._joined: OneOptimizer | None = None
        self._stepped: FusedAdam | None = None
        self._trained: list[Tensor] | None = None
        self._complete: list[Tensor] | None = None  # the parameters of the last step, if all had a gradient
        self._own_optim = optim is None

    @property
    def model(self) -> Callable:
        """The model, which was traced and stays: another pair or loss is for another `CompiledSVI`."""
        return self.compiled.model

    @property
    def guide(self) -> Callable:
        """The guide, which stays."""
        return self.compiled.guide

    @property
    def loss(self) -> PyroELBO | Callable:
        """The loss, which stays; its attributes may be changed."""
        return self.compiled.loss

    @property
    def reason(self) -> str | None:
        """The reason why steps run eagerly, or None if they are replayed."""
        return self.compiled.reason

    def step(self, *args, **kwargs) -> float | tuple[float, ...]:
        """Takes one gradient step.

        Args:
            *args, **kwargs: the arguments of model and guide, usually a batch `x`.

        Returns:
            The loss before the step, summed over the data as in Pyro; a tuple if the loss is one of several.

        Raises:
            FloatingPointError: if the loss is not finite; it names the site. The parameters are then those before the
                step.
        """
        left = [(parameter, parameter.grad) for parameter in self.compiled.parameters if parameter.grad is not None]
        try:
            loss = _numbers(self.compiled.loss_and_grads(*args, **kwargs)[0])
        except ValueError as error:
            # In eager steps a distribution may refuse its parameters; other errors are the program's own.
            large = "" if isinstance(error, InputError) else scale_hint(self.model, error, *args)
            are_finite = all(bool(parameter.isfinite().all()) for parameter in self.compiled.parameters)
            if not is_validation_error(error) or (are_finite and not large):
                raise
            what = "" if are_finite else "a parameter is not finite: "
            raise FloatingPointError(f"{large}{what}{first_line(error)}") from error
        finite = all(map(math.isfinite, loss if isinstance(loss, tuple) else [loss]))
        if not (finite or isinstance(self.loss, TraceTailAdaptive_ELBO)):  # whose loss is always infinite
            for parameter in self.compiled.parameters:
                parameter.grad = None
            where = self.compiled.not_finite(*args, **kwargs)
            raise FloatingPointError(one_line(f"loss is not finite ({loss}): {where}"))
        for parameter, gradient in left:  # the user's own, to which `backward` would add
            parameter.grad = gradient if parameter.grad is None else gradient + parameter.grad
        parameters = self.compiled.parameters
        optim = self.optim
        if isinstance(optim, PyroOptim):
            fused = self.compiled.inductor and self.reason is None  # eager steps are to the bit those of `SVI`
            if self._joined is None or self._joined.optim is not optim or self._joined.fused != fused:
                self._joined = OneOptimizer(optim, fused)
            lacks = any(parameter.grad is None for parameter in parameters)
            if lacks or parameters is not self._complete:
                _keep_moving(parameters)
                self._complete = None if lacks else parameters
            self._joined.step(parameters)
        else:
            if optim is None or parameters is not self._trained:
                optim = self._train_these(parameters, optim)
            if self._stepped is None or self._stepped.optimizer is not optim:
                self._stepped = FusedAdam(optim)
            self._stepped.step()
        for parameter in parameters:
            parameter.grad = None
        for group in optim.param_groups if isinstance(optim, torch.optim.Optimizer) else []:
            for parameter in group["params"]:  # which may hold more
                parameter.grad = None
        return loss

    def evaluate_loss(self, *args, **kwargs) -> float | tuple[float, ...]:
        """Returns the loss, summed over the data as in Pyro, without a step."""
        return _numbers(self.compiled.evaluate(*args, **kwargs))

    def _train_these(self, parameters: list[Tensor], optim: torch.optim.Optimizer | None) -> torch.optim.Optimizer:
        """Returns the optimiser, with new parameters if it is the built-in one; one of the user's must hold them."""
        if optim is None:
            self.optim = optim = torch.optim.Adam(parameters, lr=1e-3, fused=True)
        known = {id(parameter) for group in optim.param_groups for parameter in group["params"]}
        new = [parameter for parameter in parameters if id(parameter) not in known]
        if new and self._own_optim:
            optim.add_param_group({"params": new})
        elif new and self._trained is not None:
            before = {id(parameter) for parameter in self._trained}
            late = [p for p in new if id(p) not in before]
            require(not late, f"{len(late)} parameters came after the first step, and optim does not have them")
        elif new:
            self._warn_of_untrained(new)
        self._trained = parameters
        return optim

    def _warn_of_untrained(self, parameters: list[Tensor]) -> None:
        """Warns of parameters that optim does not hold: one side alone may be trained on purpose, or one forgotten."""
        names = [self.compiled.names[id(p)] for p in parameters if p.grad is not None]
        if names:
            most = ", ".join(names[:MOST_NAMED]) + (f" and {len(names) - MOST_NAMED} more" * (len(names) > MOST_NAMED))
            warn(f"optim does not hold {most}: unless another optimiser does, they will not train")


_HAD_GRADIENTS: WeakValueDictionary[int, Tensor] = WeakValueDictionary()


def _keep_moving(parameters: list[Tensor]) -> None:
    """Gives parameters that lack a gradient at this step one of 0, if an earlier step, of any SVI, gave them one.

    `SVI` resets gradients to 0, under which Adam, say, goes on by its momentum, and not to None, which it would skip.
    """
    for parameter in parameters:
        if parameter.grad is not None:
            if not parameter.grad.is_sparse:  # whose optimisers have no momentum for what is 0
                _HAD_GRADIENTS[id(parameter)] = parameter
        elif _HAD_GRADIENTS.get(id(parameter)) is parameter:
            parameter.grad = torch.zeros_like(parameter, requires_grad=False)


def _numbers(loss: Tensor) -> float | tuple[float, ...]:
    return loss.item() if loss.dim() == 0 else tuple(loss.tolist())
