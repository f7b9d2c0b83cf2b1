"""Posterior expectations of the latents of each datum, by importance sampling from the guide."""

from collections.abc import Callable
from functools import partial

from pyrovae.common import counted, evaluates, require_compile, require_flag, require_size
from pyrovae.evaluation.chunks import opened
from pyrovae.evaluation.joint_evidence import as_one_datum
from pyrovae.evaluation.remedies import remedies_of
from pyrovae.evaluation.subsamples import check_subsamples
from pyrovae.evaluation.weighted_draws import WeightedDraws
from pyrovae.programs import Reading, gate, takes_pair


@takes_pair
@evaluates
def posterior(
    model: Callable,
    guide: Callable,
    *args: object,
    num_samples: int = 5_000,
    smoothed: bool = False,
    plate: str | None = None,
    chunk_size: int | None = None,
    compile: bool | str = "auto",
    progress: bool | None = None,
) -> WeightedDraws:
    """Draws the latents from the guide and weighs them, so that questions about p(z|x) are answered, at beta = 1.

        E[f(z) | x] ~ sum_s w_s f(z_s) / sum_s w_s,    w_s = p(x, z_s) / q(z_s|x),    z_s ~ q(z|x)

    What is trained is q(z|x), and an average over its draws is an expectation under the guide. The weights make it one
    under the posterior of the model. With W_s = w_s / sum_r w_r and mu for the estimate,

        standard_error = sqrt(S / (S - 1) sum_s W_s^2 (f(z_s) - mu)^2)    (the delta method)
        bias           = - sum_s W_s^2 (f(z_s) - mu)

    An estimate with weights that are normalised by their own sum is biased, by order 1/S, which is little beside a
    standard error of order 1/sqrt(S); `bias` is that order. Both rest on the variance of w f, which `pareto_k` judges.

    Draws are kept as long as they and their weights are fewer than 2^25 numbers (256 MB). Of more, none is: every
    question then takes the time of another pass over the data and draws the same once more, from the same seeds, so
    that 50,000 draws for each of 10,000 data fit into the same memory, and the answers are the same. A pair that has
    been trained on in the meantime is refused.

    If the data share latents theta, all data are one datum: theta and the latents of every datum are drawn together and
    have one weight, and the first dimension of every result is 1. The weights then vary as much as those of all data
    together (`log_marginal` can nest them, as no f is asked there), so that this is for few data or a good guide;
    `ess` and `pareto_k` tell. Their draws are held at once, S times the latents of all data.

    Args:
        model: The generative program p(x, z) of any pair; docs/your_own_program.md says how it is read.
        guide: The proposal q(z|x): the trained guide, or another one made by `pv.proposals`.
        *args: What model and guide take, of any number and type, as in `log_marginal`.
        num_samples: The number of draws S for each datum.
        smoothed: True replaces the largest weights by quantiles of a fitted Pareto distribution, as `smoothed` of
            `log_marginal` does: answers vary less, and lie nearer to the guide's where k is above 0.5. k and
            `log_marginal` are those of the weights as they are.
        plate: The name of the data plate, where the observed sites lie in plates that cross.
        chunk_size: As in `log_marginal`.
        compile: As in `log_marginal`.
        progress: True shows a progress bar, False none, None one on a terminal.

    Returns:
        A `WeightedDraws`: ask it for `mean`, `expectation`, `quantile` and `sample`.

    Raises:
        InputError: As `log_marginal` does; if the guide draws no latent; if the data lie in several plates or along a
            sequential one.

    Example:
        >>> vae = pv.LinearGaussianVAE(torch.ones(3, 2), torch.zeros(3), 0.5, torch.zeros(2))
        >>> x = torch.randn(4, 3)
        >>> post = pv.posterior(vae, x, num_samples=2_000)
        >>> mean = post.mean("z")
        >>> bool(((mean.value - vae.posterior(x).mean).abs() < 5 * mean.standard_error).all())
        True
        >>> post.expectation(lambda site: site["z"].norm(dim=-1) < 1).value.shape  # a probability for each datum
        torch.Size([4])

    Source:
        Owen 2013, Monte Carlo theory, methods and examples, chapter 9; Vehtari, Simpson, Gelman, Yao and Gabry 2024,
        arXiv:1507.02646 (Pareto k of w and of w |f|).
    """
    require_size("num_samples", num_samples)
    require_compile(compile)
    require_flag("smoothed", smoothed)
    needs, found = gate.Weights(), opened(model, guide, args, chunk_size, Reading(plate))
    check_subsamples("posterior", model, guide, found)
    remedies = partial(remedies_of, model, guide, found)
    joint = None if found.pair.layout.plates else f"{counted(num_samples, 'draw')} of all latents"
    if found.pair.layout.has_globals:
        joint = f"{counted(num_samples, 'draw')} of all latents of {found.data.size:,} data that share some"
        found = as_one_datum(model, guide, found, needs)
    return WeightedDraws(model, guide, args, found, num_samples, compile, progress, joint, remedies, smoothed)
