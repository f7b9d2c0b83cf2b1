"""Gradients of the hierarchy's bounds, by quadrature: of the loss, in every parameter, in the order of their names."""

from torch import Tensor, autograd, stack

from exact.expectations import hermite, log_mean_exp, over_two
from exact.hierarchical import OF_THETA, OF_Z, Hierarchy

FIRST = 0.025  # the point of the thermodynamic objective after 0


def in_every_parameter(hierarchy: Hierarchy, loss) -> dict[str, Tensor]:
    """Returns the gradient of `loss(hierarchy)` by name; the parameters that it does not have get 0."""
    leaves = {name: value.clone().requires_grad_() for name, value in sorted(hierarchy.tensors().items())}
    found = autograd.grad(loss(Hierarchy(leaves)), list(leaves.values()), allow_unused=True, materialize_grads=True)
    return dict(zip(leaves, found, strict=True))


def of_elbo(hierarchy: Hierarchy, x: Tensor) -> dict[str, Tensor]:
    return in_every_parameter(hierarchy, lambda at: -at.elbo(x))


def of_bound(hierarchy: Hierarchy, x: Tensor) -> dict[str, Tensor]:
    """Returns the gradient of the bound with two particles: that of IWAE, DReG and VIMCO."""

    def surrogate(log_p, log_q, log_p_held, log_q_held):
        return log_mean_exp(log_p - log_q)

    return with_densities_of_theta(hierarchy, expected(hierarchy, x, surrogate))


def expected(hierarchy: Hierarchy, x: Tensor, surrogate, num: int = 48, num_theta: int = 16) -> dict[str, Tensor]:
    """Returns the mean of the gradient of minus a sum over two particles and all data, without theta's own densities.

    The surrogate is given log p(x, z_k | theta) and log q(z_k | x, theta), through the draws and with the draws held,
    each `(2, nodes, nodes, theta, N)`.
    """

    def loss(at: Hierarchy) -> Tensor:
        (noise, p), (standard, p_theta) = hermite(num), hermite(num_theta)
        theta = at.theta_at(standard)[:, None]
        terms = [one for held in (False, True) for one in at.densities(noise.reshape(-1, 1, 1), theta, x, held)]
        terms = stack([term.expand(num, num_theta, len(x)) for term in terms], dim=-1)
        mean = over_two(lambda both: surrogate(*both.unbind(-1)), terms, p)
        return -(mean.sum(-1) * p_theta).sum()

    return in_every_parameter(hierarchy, loss)


def of_wake_phi(hierarchy: Hierarchy, x: Tensor) -> dict[str, Tensor]:
    """Returns reweighted wake-sleep's: E[sum_k w~_k d log q(z_k)] for q(z | x, theta), for the others the bound's."""

    def surrogate(log_p, log_q, log_p_held, log_q_held):
        return ((log_p - log_q).detach().softmax(0) * log_q_held).sum(0)

    wake = expected(hierarchy, x, surrogate)
    return {**of_bound(hierarchy, x), **{name: wake[name] for name in OF_Z}}


def of_wake_phi_for_theta(hierarchy: Hierarchy, x: Tensor) -> dict[str, Tensor]:
    """Returns what theta's guide gets if wake-phi is wrongly taken for theta in q(z | x, theta), too."""

    def surrogate(log_p, log_q, log_p_held, log_q_held):
        return ((log_p - log_q).detach().softmax(0) * (log_p_held + log_q_held)).sum(0)

    wrong = with_densities_of_theta(hierarchy, expected(hierarchy, x, surrogate))
    return {**of_wake_phi(hierarchy, x), **{name: wrong[name] for name in OF_THETA}}


def of_thermodynamic(hierarchy: Hierarchy, x: Tensor) -> dict[str, Tensor]:
    """Returns that of the left sum on the points 0, FIRST, 1 by the covariance estimator, with two particles.

    At t = 0 it is the exact gradient of the ELBO. At t = FIRST the weights w^t of two draws are normalised.
    """

    def surrogate(log_p, log_q, log_p_held, log_q_held):
        log_w = (log_p - log_q).detach()
        total = 0
        for t, width in ((0.0, FIRST), (FIRST, 1 - FIRST)):
            weights = (t * log_w).softmax(0)
            centred = weights * (log_w - (weights * log_w).sum(0)) * (2 if t == 0 else 1)
            inside = t * log_p_held + (1 - t) * log_q_held
            total = total + width * (weights * (log_p_held - log_q_held) + centred * inside).sum(0)
        return total

    return with_densities_of_theta(hierarchy, expected(hierarchy, x, surrogate))


def of_thermodynamic_sum(hierarchy: Hierarchy, x: Tensor) -> dict[str, Tensor]:
    """Returns the exact gradient of the left sum's mean over two draws."""

    def surrogate(log_p, log_q, log_p_held, log_q_held):
        log_w = log_p - log_q
        return FIRST * log_w.mean(0) + (1 - FIRST) * ((FIRST * log_w).softmax(0) * log_w).sum(0)

    return with_densities_of_theta(hierarchy, expected(hierarchy, x, surrogate))


def of_theta_as_leaf(hierarchy: Hierarchy, x: Tensor) -> dict[str, Tensor]:
    """Returns what DReG gives theta's guide if theta is wrongly taken for one of the draws: sum_k w~_k^2 d log w_k."""

    def surrogate(log_p, log_q, log_p_held, log_q_held):
        log_w = log_p - log_q
        return (log_w.detach().softmax(0).square() * log_w).sum(0)

    wrong = with_densities_of_theta(hierarchy, expected(hierarchy, x, surrogate))
    return {**of_bound(hierarchy, x), **{name: wrong[name] for name in OF_THETA}}


def with_densities_of_theta(hierarchy: Hierarchy, local: dict[str, Tensor]) -> dict[str, Tensor]:
    """Adds the gradient of minus E_q[log p(theta) - log q(theta)]."""
    outer = in_every_parameter(hierarchy, lambda at: -at.minus_kl())
    return {name: local[name] + outer[name] for name in local}
