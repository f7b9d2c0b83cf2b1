"""One row of a comparison: the measurements of one estimator at one number of particles."""

from dataclasses import dataclass

from pyrovae.lab.gradient_moments import Gradient


@dataclass(frozen=True)
class Row:
    """Holds the measurements of one estimator at one number of particles.

    Attributes:
        objective: The name of the estimator.
        num_particles: K as it was given to `compare`. The row is found by it.
        num_draws: The draws of z per datum that were taken. They differ from K if the objective made from K takes
            another number (`lambda K: DReG(2 * K)`, the batches of MIWAE), and are 0 if the objective sums over all
            values of z.
        repeats: The number of independent gradients.
        bound: The mean of minus the loss, in nats per datum.
        bound_error: The Monte Carlo error of `bound`.
        gap: The estimate of log p(x) minus `bound`, in nats per datum. It is None if the objective is no bound on
            log p(x): under a beta, with free bits, for Renyi's bound with alpha < 0, for grey pixels, and for an
            objective of an unknown class.
        model: The gradient of the parameters that log p(x, z) at held z depends on; None if there are none.
        guide: The gradient of the parameters that the draws or log q(z|x) depend on; None if there are none.
        shared: The gradient of the parameters that both depend on; None if there are none.
        reference: The name of the class that the bias is measured against; None if there is no bias.
        seconds: The median time of the loss and the gradients of one eager step.
        compiled_seconds: The same of a compiled step; None if the step was not compiled.
        step_seconds: The compiled time if every row of the comparison has one, and the eager time otherwise.
        saved_bytes: The most memory that autograd keeps at any one time for the backward pass; None for an objective
            that runs its particles in chunks.
    """

    objective: str
    num_particles: int
    num_draws: int
    repeats: int
    bound: float
    bound_error: float
    gap: float | None
    model: Gradient | None
    guide: Gradient | None
    shared: Gradient | None
    reference: str | None
    seconds: float
    compiled_seconds: float | None
    step_seconds: float
    saved_bytes: int | None

    @property
    def variance_seconds(self) -> float | None:
        """Variance of the gradient of all that the guide trains (`guide` and `shared`), times `step_seconds`.

        This is the variance that is left after averaging for one second. Among estimators of the same gradient, the one
        with the lowest value is the best. None if the guide trains nothing.
        """
        trained = [gradient.variance for gradient in (self.guide, self.shared) if gradient is not None]
        return sum(trained) * self.step_seconds if trained else None
