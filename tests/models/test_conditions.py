"""Conditional VAEs: p(x|y) with labels, values, images and several at once, and what of y is refused."""

import math
from functools import partial

import helpers
import pyro
import pytest
import torch
from helpers import HalfPrior, assert_within_standard_errors, parameters_of, refusal, suite_seed
from pyro import poutine
from pyro.infer import SVI, Trace_ELBO
from pyro.optim import Adam
from torch.utils.data import DataLoader, TensorDataset

import pyrovae as pv

BATCH = 5


# Name to (condition or conditions, a draw of so many y).
CONDITIONS = {
    "label": (lambda: pv.OneHot(3), lambda n: (torch.randint(3, (n,)),)),
    "value": (lambda: pv.Embedding(), lambda n: (torch.randn(n, 1),)),
    "vector": (lambda: pv.Embedding((4,), hidden=(), num_features=3), lambda n: (torch.randn(n, 4),)),
    "image": (lambda: pv.Embedding((1, 4, 6), activation="tanh"), lambda n: (torch.randn(n, 1, 4, 6),)),
    "label and value": (
        lambda: (pv.OneHot(3), pv.Embedding()),
        lambda n: (torch.randint(3, (n,)), torch.randn(n, 1)),
    ),
    "three": (
        lambda: [pv.Embedding((2,)), pv.OneHot(4), pv.OneHot(2)],
        lambda n: (torch.randn(n, 2), torch.randint(4, (n,)), torch.randint(2, (n,))),
    ),
}


def small_vae(condition, event_shape=(3,), **settings):
    defaults = {"latent_dim": 2, "hidden": (8,), "likelihood": pv.Gaussian(0.5)}
    return pv.VAE(event_shape, **{**defaults, **settings}, condition=condition)


@pytest.fixture(params=CONDITIONS)
def case(request):
    """A conditional VAE, x, and its y."""
    make, draw = CONDITIONS[request.param]
    return small_vae(make()), torch.randn(BATCH, 3), draw(BATCH)


# Features -----------------------------------------------------------------------------------------------------------


def test_a_label_becomes_a_one_hot_vector():
    expected = torch.tensor([[0.0, 0, 1, 0], [1, 0, 0, 0], [0, 0, 0, 1]])
    assert torch.equal(pv.OneHot(4)(torch.tensor([2, 0, 3])), expected)


def test_an_embedding_is_the_1_16_16_network_of_the_tutorials_unless_told_otherwise():
    shapes = [tuple(p.shape) for p in pv.Embedding().parameters()]
    assert shapes == [(16, 1), (16,), (16, 16), (16,)]
    assert pv.Embedding()(torch.randn(7, 1)).shape == (7, 16)
    assert pv.Embedding((1, 2, 3), (5, 4), num_features=6)(torch.randn(7, 1, 2, 3)).shape == (7, 6)


def test_several_conditions_stand_side_by_side_in_their_order():
    one, other = pv.OneHot(3), pv.Embedding((2,))
    features = pv.models.conditions.Features([one, other])
    label, value = torch.tensor([1, 2]), torch.randn(2, 2)
    assert features.num_features == 19
    assert torch.equal(features((label, value)), torch.cat((one(label), other(value)), 1))
    assert pv.models.conditions.Features([])(()) is None


def test_encoder_and_decoder_join_the_features_to_their_input(case):
    vae, x, y = case
    z = torch.randn(BATCH, 2)
    plain = {"encoder": (vae.encoder, vae.encoder_features, x), "decoder": (vae.decoder, vae.decoder_features, z)}
    for net, features, given in plain.values():
        joined = torch.cat((given, features(y)), -1)
        expected = net.output(net.layers(joined)).reshape(BATCH, *net.out_shape)
        torch.testing.assert_close(net(given, features(y)), expected)
    loc, log_variance = vae.encoder(x, vae.encoder_features(y)).unbind(-2)
    torch.testing.assert_close(vae.encode(x, *y).mean, loc)
    torch.testing.assert_close(vae.encode(x, *y).variance, log_variance.exp())
    torch.testing.assert_close(vae.decode(z, *y).mean, vae.decoder(z, vae.decoder_features(y)))


# The programs -------------------------------------------------------------------------------------------------------


def log_densities(vae, x, *y, z):
    """log p(x|z, y) and log q(z|x, y) at `z`, each `(batch,)`."""
    nodes = []
    for program in (vae.model, vae.guide):
        trace = poutine.trace(poutine.condition(program, {"z": z})).get_trace(x, *y)
        trace.compute_log_prob()
        nodes.append(trace.nodes)
    return nodes[0]["x"]["log_prob"], nodes[1]["z"]["log_prob"]


def test_model_and_guide_really_depend_on_every_condition(case):
    vae, x, y = case
    z = torch.randn(BATCH, 2)
    before = log_densities(vae, x, *y, z=z)
    for i, value in enumerate(y):
        other = value.clone()
        other[2] = (value[2] + 1) % 2 if value.dtype == torch.long else value[2] + 1
        after = log_densities(vae, x, *(other if i == j else v for j, v in enumerate(y)), z=z)
        for old, new in zip(before, after, strict=True):
            assert (old != new).tolist() == [False, False, True, False, False]


def test_the_prior_does_not_depend_on_the_condition(case):
    vae, x, y = case
    z = torch.randn(BATCH, 2)
    trace = poutine.trace(poutine.condition(vae.model, {"z": z})).get_trace(x, *y)
    trace.compute_log_prob()
    expected = (-0.5 * z**2 - 0.5 * math.log(2 * math.pi)).sum(-1)
    torch.testing.assert_close(trace.nodes["z"]["log_prob"], expected)


def test_encoder_and_decoder_have_conditions_with_parameters_of_their_own_and_all_of_them_train(case):
    vae, x, y = case
    pairs = list(zip(vae.encoder_features.parameters(), vae.decoder_features.parameters(), strict=True))
    for one, other in pairs:
        assert one.data_ptr() != other.data_ptr()
        assert not torch.equal(one, other)
    before = {name: p.detach().clone() for name, p in vae.named_parameters()}
    svi = SVI(vae.model, vae.guide, Adam({"lr": 0.01}), Trace_ELBO())
    for _ in range(3):
        svi.step(x, *y)
    still = [name for name, p in vae.named_parameters() if torch.equal(p, before[name])]
    assert not still
    assert all("features.conditions" in n for n in before if n.startswith(("encoder_f", "decoder_f")))


def test_a_condition_given_to_two_vaes_is_not_shared_and_stays_as_it_is():
    embedding = pv.Embedding()
    kept = [p.detach().clone() for p in embedding.parameters()]
    vae = small_vae(embedding)
    svi = SVI(vae.model, vae.guide, Adam({"lr": 0.01}), Trace_ELBO())
    svi.step(torch.randn(4, 3), torch.randn(4, 1))
    assert all(torch.equal(a, b) for a, b in zip(kept, embedding.parameters(), strict=True))
    assert not {p.data_ptr() for p in small_vae(embedding).parameters()} & {p.data_ptr() for p in vae.parameters()}


def test_a_conditional_pair_gives_each_particle_the_weights_it_has_alone(case):
    vae, x, y = case
    vae, y = vae.double(), tuple(v.double() if v.is_floating_point() else v for v in y)
    pair = pv.programs.pair.run_pair(vae.model, vae.guide, x.double(), *y, num_particles=4)
    terms, z = pair.terms(), pair.guide_sites["z"]["value"]
    for k in range(4):
        log_likelihood, log_posterior = log_densities(vae, x.double(), *y, z=z[k])
        torch.testing.assert_close(terms.log_likelihood[k], log_likelihood, rtol=1e-12, atol=1e-12)
        torch.testing.assert_close(terms.log_posterior[k], log_posterior, rtol=1e-12, atol=1e-12)


def test_without_a_condition_nothing_is_registered_for_it():
    vae = small_vae(())
    vae.model(torch.randn(2, 3))
    assert vae.num_conditions == 0
    assert not [name for name in pyro.get_param_store() if "features" in name]


# log p(x|y) ---------------------------------------------------------------------------------------------------------


def conditional_of_two_latents():
    """A random VAE in float64 whose decoder leans on y, with x and y."""
    vae = small_vae((pv.OneHot(3), pv.Embedding()), hidden=(6,), activation="tanh").double()
    with torch.no_grad():
        for parameter in vae.decoder.parameters():
            parameter.mul_(2)
    y = torch.tensor([0, 1, 2, 0, 1, 2]), torch.linspace(-1, 1, 6, dtype=torch.float64)[:, None]
    return vae, torch.randn(6, 3, dtype=torch.float64), y


def test_log_marginal_is_log_p_of_x_given_y_by_quadrature():
    vae, x, y = conditional_of_two_latents()
    truth, error = pv.quadrature_log_marginal(vae.model, x, *y, num_points=201)
    assert error.max() < 1e-3

    def guide(x, *y):
        with pyro.plate("data", len(x), dim=-1):
            pyro.sample("z", HalfPrior(vae.encode(x, *y), vae.prior))

    found = pv.log_marginal(vae.model, guide, x, *y, num_samples=20_000)
    assert_within_standard_errors(found.log_px, truth, found.standard_error + error, note=f"ESS {found.ess.min():.0f}")
    # Of other y it is another number, by many standard errors: the test above can fail.
    other, _ = pv.quadrature_log_marginal(vae.model, x, y[0].roll(1), y[1], num_points=201)
    assert ((other - truth).abs() > 20 * found.standard_error).any()


def test_log_p_of_x_given_y_by_quadrature_is_the_plain_vaes_whose_first_bias_y_has_moved():
    """Features of one label are a constant: they can be folded into the bias of the first layer."""
    vae, x, _ = conditional_of_two_latents()
    vae = small_vae(pv.OneHot(3), activation="tanh").double()
    plain = small_vae((), activation="tanh").double()
    with torch.no_grad():
        for ours, theirs in zip(vae.decoder.parameters(), plain.decoder.parameters(), strict=True):
            theirs.copy_(ours[:, :2] if ours.shape != theirs.shape else ours)
        plain.decoder.layers[0].bias.add_(vae.decoder.layers[0].weight[:, 2 + 1])
    found, _ = pv.quadrature_log_marginal(vae.model, x, torch.ones(6, dtype=torch.long), num_points=101)
    expected, _ = pv.quadrature_log_marginal(plain.model, x, num_points=101)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-10)


def test_importance_bound_and_elbo_terms_take_the_condition_too():
    vae, x, y = conditional_of_two_latents()
    bound = pv.importance_bound(vae.model, vae.guide, x, *y, num_particles=1, num_repeats=2_000)
    terms = pv.diagnostics.elbo_terms(vae.model, vae.guide, x, *y, num_particles=2_000)
    assert_within_standard_errors(terms["elbo"], bound.value, math.sqrt(2) * bound.standard_error)
    q = vae.encode(x, *y)
    kl = 0.5 * (q.variance + q.mean**2 - 1 - q.variance.log())
    torch.testing.assert_close(pv.diagnostics.kl_per_dimension(vae, x, *y), kl.detach())
    torch.testing.assert_close(pv.diagnostics.latent_use(vae, x, *y).variance, q.mean.detach().var(0))


# Samples and reconstructions -----------------------------------------------------------------------------------------


def test_samples_are_drawn_for_the_y_that_each_is_given():
    vae = small_vae(pv.OneHot(3), likelihood=pv.Gaussian(0.1))
    with torch.no_grad():
        vae.decoder.output.weight.zero_()
        vae.decoder.output.bias.zero_()
    y = torch.tensor([0, 1, 2]).repeat_interleave(2_000)

    def decoder(z, features):
        return 10 * features + 0 * z[..., :1]

    vae.decoder.forward = decoder
    means, draws = vae.sample(6_000, y, mean=True), vae.sample(6_000, y=y)
    assert torch.equal(means, 10 * torch.nn.functional.one_hot(y).float())
    noise = draws - means
    assert_within_standard_errors(noise.mean(0), 0.0, 0.1 / math.sqrt(6_000))
    assert_within_standard_errors(noise.square().mean(), 0.01, 0.01 * math.sqrt(2 / 18_000))


def test_samples_take_one_condition_as_a_tensor_and_several_as_a_sequence(case):
    vae, _, y = case
    states = []
    for given in (tuple(y), list(y), *((y[0],) if len(y) == 1 else ())):
        for mean in (False, True):
            torch.manual_seed(suite_seed(1))
            states.append(vae.sample(BATCH, given, mean=mean))
            assert states[-1].shape == (BATCH, 3)
            assert torch.equal(states[-1], states[int(mean)])
    torch.manual_seed(suite_seed(1))
    torch.testing.assert_close(states[1], vae.decode(vae.prior.sample((BATCH,)), *y).mean.detach())


def test_a_reconstruction_decodes_the_posterior_mean_under_the_same_y(case):
    vae, x, y = case
    loc = vae.encoder(x, vae.encoder_features(y))[:, 0]
    expected = vae.decoder(loc, vae.decoder_features(y)).detach()
    torch.testing.assert_close(vae.reconstruct(x, *y), expected)


# Refusals -----------------------------------------------------------------------------------------------------------


BAD_LABELS = {
    "too large": (torch.tensor([0, 1, 2, 0, 3]), "y must lie in 0 ... 2, got 3 at index 4"),
    "negative": (torch.tensor([0, -1, 2, 0, 7]), "y must lie in 0 ... 2, got -1 at index 1"),
    "float": (torch.zeros(BATCH), "y must be a tensor of integer labels, got torch.float32"),
    "bool": (torch.zeros(BATCH, dtype=torch.bool), "y must be a tensor of integer labels, got torch.bool"),
    "complex": (torch.zeros(BATCH, dtype=torch.cfloat), "y must be a tensor of integer labels, got torch.complex64"),
    "list": ([0, 1, 2, 0, 1], "y must be a tensor of integer labels, got list"),
    "none": (None, "y must be a tensor of integer labels, got NoneType"),
    "one": (torch.zeros(1, dtype=torch.long), "y must have shape (5,), a label per datum, got (1,)"),
    "scalar": (torch.tensor(1), "y must have shape (5,), a label per datum, got ()"),
    "too few": (torch.zeros(4, dtype=torch.long), "y must have shape (5,), a label per datum, got (4,)"),
    "column": (torch.zeros(BATCH, 1, dtype=torch.long), "y must have shape (5,), a label per datum, got (5, 1)"),
    "one-hot": (torch.zeros(BATCH, 3, dtype=torch.long), "y must have shape (5,), a label per datum, got (5, 3)"),
}
BAD_VALUES = {
    "flat": (torch.zeros(BATCH), "y must have shape (5, 1), a value per datum, got (5,)"),
    "wide": (torch.zeros(BATCH, 2), "y must have shape (5, 1), a value per datum, got (5, 2)"),
    "one": (torch.zeros(1, 1), "y must have shape (5, 1), a value per datum, got (1, 1)"),
    "too many": (torch.zeros(6, 1), "y must have shape (5, 1), a value per datum, got (6, 1)"),
    "labels": (torch.zeros(BATCH, 1, dtype=torch.long), "y must be a floating-point tensor, got torch.int64"),
    "float": (1.0, "y must be a floating-point tensor, got float"),
    "nan": (torch.tensor([[0.0], [math.nan], [0], [0], [0]]), "y must be finite, got nan at index (1, 0)"),
    "infinite": (torch.tensor([[0.0], [0], [0], [0], [math.inf]]), "y must be finite, got inf at index (4, 0)"),
}
BAD = {
    **{f"label, {name}": (partial(pv.OneHot, 3), *bad) for name, bad in BAD_LABELS.items()},
    **{f"value, {name}": (pv.Embedding, *bad) for name, bad in BAD_VALUES.items()},
}


@pytest.mark.parametrize("method", ["guide", "encode", "reconstruct", "check_data", "sample"])
@pytest.mark.parametrize("name", BAD)
def test_a_bad_condition_is_refused_in_one_line(name, method):
    make, y, message = BAD[name]
    vae, x = small_vae(make()), torch.zeros(BATCH, 3)
    args = (BATCH, [y]) if method == "sample" else (x, y)
    assert refusal(getattr(vae, method), *args) == message


@pytest.mark.parametrize("name", [name for name in BAD if "nan" not in name and "infinite" not in name])
def test_the_model_refuses_a_bad_condition_as_the_guide_does(name):
    """It is called by itself: by quadrature, by a predictive, by a guide of the caller's own."""
    make, y, message = BAD[name]
    assert refusal(small_vae(make()).model, torch.zeros(BATCH, 3), y) == message


FOR_EACH_DATUM = [n for n, (_, y, _) in BAD.items() if isinstance(y, torch.Tensor) and y.shape[:1] == (BATCH,)]
ESTIMATORS = {
    "importance_bound": lambda vae, *args: pv.importance_bound(vae.model, vae.guide, *args, num_particles=2),
    "quadrature_log_marginal": lambda vae, *args: pv.quadrature_log_marginal(vae.model, *args, num_points=11),
    "elbo_terms": lambda vae, *args: pv.diagnostics.elbo_terms(vae.model, vae.guide, *args),
    "kl_per_dimension": lambda vae, *args: pv.diagnostics.kl_per_dimension(vae, *args),
}


@pytest.mark.parametrize("estimator", ESTIMATORS)
@pytest.mark.parametrize("name", FOR_EACH_DATUM)
def test_a_bad_condition_is_refused_by_every_estimator(name, estimator):
    make, y, message = BAD[name]
    found = refusal(ESTIMATORS[estimator], small_vae(make()), torch.zeros(BATCH, 3), y)
    # What is not finite is found before the pair is run, as of any argument; quadrature tries the first datum alone,
    # and so speaks of another number of data.
    rule = message.partition("(")[0]
    assert found.startswith(rule) or "must be finite, got" in found


@pytest.mark.parametrize("estimator", ["importance_bound", "elbo_terms"])
def test_what_an_estimator_says_of_a_bad_condition_is_the_rule_and_the_value_and_no_more(estimator):
    """Not followed by the shapes of the trace, which Pyro appends to every error within a program."""
    make, y, message = BAD["label, too large"]
    assert refusal(ESTIMATORS[estimator], small_vae(make()), torch.zeros(BATCH, 3), y) == message


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int16, torch.int32])
def test_labels_may_be_integers_of_any_size(dtype):
    vae, x, y = small_vae(pv.OneHot(3)), torch.randn(3, 3), torch.tensor([2, 0, 1])
    torch.testing.assert_close(vae.reconstruct(x, y.to(dtype)), vae.reconstruct(x, y))


def test_too_few_and_too_many_conditions_are_refused_by_number():
    x, y = torch.zeros(BATCH, 3), torch.zeros(BATCH, dtype=torch.long)
    for num, condition in enumerate(((), pv.OneHot(3), (pv.OneHot(3), pv.OneHot(3)))):
        vae = small_vae(condition)
        for given in {0, 1, 2, 3} - {num}:
            message = f"y must hold {num} conditions, got {given}"
            for method in (vae.model, vae.guide, vae.encode, vae.reconstruct, vae.check_data):
                assert refusal(method, x, *[y] * given) == message
            assert refusal(vae.sample, BATCH, [y] * given) == message
            assert refusal(vae.decode, torch.zeros(BATCH, 2), *[y] * given) == message


@pytest.mark.parametrize("y", [2, None, "two"])
def test_a_y_to_sample_from_that_is_no_tensor_is_refused(y):
    message = refusal(small_vae(pv.OneHot(3)).sample, BATCH, y)
    assert message.startswith("y must ")


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: pv.OneHot(1), "num_classes must be a whole number >= 2, got 1"),
        (lambda: pv.OneHot(2.0), "num_classes must be a whole number >= 2, got 2.0"),
        (lambda: pv.Embedding((0,)), "shape must be a whole number >= 1, got 0"),
        (lambda: pv.Embedding(num_features=0), "num_features must be a whole number >= 1, got 0"),
        (lambda: pv.Embedding(hidden=(4, -1)), "hidden must be a whole number >= 1, got -1"),
        (lambda: pv.Embedding(activation="sine"), "activation must be one of"),
        (lambda: small_vae("label"), "condition must be pyrovae conditions, got 'l"),
        (lambda: small_vae([pv.OneHot(3), 3]), "condition must be pyrovae conditions, got 3"),
        (lambda: small_vae(pv.OneHot), "condition must be pyrovae conditions, got <class"),
        (lambda: small_vae(3), "condition must be pyrovae conditions, got 3"),
    ],
)
def test_bad_settings_of_a_condition_are_refused(make, message):
    assert refusal(make).startswith(message)


# Training -----------------------------------------------------------------------------------------------------------


ring = partial(helpers.ring, num_train=60, num_validation=20, num_test=10)


def labelled(seed=3, **settings):
    torch.manual_seed(suite_seed(seed))
    return small_vae(pv.OneHot(8), (2,), **settings)


def test_a_step_on_a_data_set_is_svi_s_step_on_x_and_its_labels():
    data, ours, theirs = ring(), labelled(), labelled()
    settings = {"epochs": 1, "batch_size": 60, "optimizer": torch.optim.SGD, "lr": 0.1, "seed": suite_seed(5)}
    pv.fit(ours, data, **settings)
    svi = SVI(theirs.model, theirs.guide, pyro.optim.SGD({"lr": 0.1 / 60}), Trace_ELBO(max_plate_nesting=1))
    torch.manual_seed(suite_seed(5))
    order = torch.randperm(60)
    svi.step(data.train_x[order], data.train_y[order])
    torch.testing.assert_close(parameters_of(ours), parameters_of(theirs), atol=1e-6, rtol=0)


def test_a_data_set_a_loader_and_batches_train_alike():
    x, y = ring().train_x, ring().train_y
    # A generator of its own: the loader draws a seed for its workers, here from no stream that training uses.
    loader = DataLoader(TensorDataset(x, y), batch_size=25, generator=torch.Generator())
    batches = list(zip(x.split(25), y.split(25), strict=True))
    extended = [(*batch, torch.zeros(len(batch[0]))) for batch in batches]  # more than the VAE is conditioned on
    found = []
    for data in (loader, batches, extended):
        vae = labelled()
        history = pv.fit(vae, data, epochs=2, seed=suite_seed(1), validation=[ring().arguments("validation")])
        found.append((parameters_of(vae), history.elbo))
    for parameters, elbo in found[1:]:
        assert torch.equal(parameters, found[0][0])
        assert elbo == found[0][1]


def test_validation_is_of_each_datum_under_its_own_label():
    data, vae = ring(), labelled()
    history = pv.fit(vae, data, epochs=1)
    with torch.random.fork_rng(), torch.no_grad():
        torch.manual_seed(pv.training.validation.VALIDATION_SEED)
        log_w = pv.log_weights(vae.model, vae.guide, *data.arguments("validation"), num_particles=1)
    assert history.elbo[-1] == pytest.approx(log_w.mean().item(), abs=1e-5)


@pytest.mark.parametrize(
    ("condition", "of_the_data"),
    [
        (pv.Embedding(), lambda x, y: x.norm(dim=-1, keepdim=True)),
        ((pv.OneHot(8), pv.Embedding()), lambda x, y: (y, x.norm(dim=-1, keepdim=True))),
        (pv.OneHot(2), lambda x, y: y % 2),
    ],
)
def test_what_with_conditions_makes_of_a_data_set_is_trained_on(condition, of_the_data):
    data = ring().with_conditions(of_the_data)
    made = of_the_data(ring().test_x, ring().test_y)
    for found, expected in zip(data.arguments("test")[1:], made if isinstance(made, tuple) else (made,), strict=True):
        assert torch.equal(found, expected)
    vae = small_vae(condition, (2,))
    before = {name: p.detach().clone() for name, p in vae.named_parameters()}
    history = pv.fit(vae, data, epochs=2, batch_size=25, seed=suite_seed(0))
    assert not [name for name, p in vae.named_parameters() if torch.equal(p, before[name])]
    assert len(history.elbo) == 2
    assert all(map(math.isfinite, history.elbo + history.loss))


def test_batches_keep_each_condition_with_its_datum():
    data = ring().with_conditions(lambda x, y: (x[:, :1] + 1, x[:, 1] - y))
    seen = 0
    for x, one, other in data.batches(25):
        assert torch.equal(one, x[:, :1] + 1)
        index = (data.train_x[None] == x[:, None]).all(-1).nonzero()[:, 1]
        assert torch.equal(other, data.train_y[1][index])
        seen += len(x)
    assert seen == 60


def test_training_moves_the_samples_of_a_label_to_its_mode():
    data = pv.load("ring", num_train=800, num_validation=0)
    centres = pv.data.dataset.TOY_DENSITIES["ring"][0].centres.float()
    vae, y = labelled(hidden=(32,), likelihood=pv.Gaussian(0.3)), torch.arange(8).repeat_interleave(50)

    def distance(vae):
        means = vae.sample(400, y, mean=True).reshape(8, 50, 2).mean(1)
        return (means - centres).norm(dim=-1)

    assert distance(vae).min() > 2
    pv.fit(vae, data, epochs=30, batch_size=100, lr=0.02, seed=suite_seed(0))
    assert distance(vae).max() < 0.4


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (lambda: ring().train_x, "y must hold 1 conditions, got 0"),
        (lambda: [ring().train_x], "y must hold 1 conditions, got 0"),
        (lambda: [(ring().train_x, ring().train_y[:5])], "y must have shape (60,), a label per datum, got (5,)"),
        (lambda: [(ring().train_x, ring().train_y + 1)], "y must lie in 0 ... 7, got 8 at index"),
        (
            lambda: ring().with_conditions(lambda x, y: x[:, :1]),
            "y must be a tensor of integer labels, got torch.float",
        ),
        (lambda: ring().with_conditions(lambda x, y: y - 1), "y must lie in 0 ... 7, got -1 at index"),
        (lambda: ring().with_conditions(lambda x, y: ()), "y must hold 1 conditions, got 0"),
    ],
)
def test_data_without_the_condition_are_refused_before_anything_is_trained(data, message):
    vae = labelled()
    before = parameters_of(vae)
    assert refusal(pv.fit, vae, data(), epochs=1).startswith(message)
    assert torch.equal(parameters_of(vae), before)


def test_a_bad_label_of_the_validation_data_is_refused():
    validation = [(torch.zeros(2, 2), torch.tensor([0, 8]))]
    message = refusal(pv.fit, labelled(), ring(), epochs=1, validation=validation)
    assert message == "y must lie in 0 ... 7, got 8 at index 1"
    bad = ring()
    bad.validation_y[3] = -1
    before = parameters_of(vae := labelled())
    assert refusal(pv.fit, vae, bad, epochs=1) == "y must lie in 0 ... 7, got -1 at index 3"
    assert torch.equal(parameters_of(vae), before)


def test_a_vae_without_a_condition_is_trained_on_a_data_set_with_labels():
    vae = small_vae((), (2,))
    assert len(pv.fit(vae, ring(), epochs=1).loss) == 1
