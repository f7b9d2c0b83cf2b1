"""Tables whose columns have families of their own."""

import math

import pytest
import torch
from families import LIKELIHOODS, data_of, table, table_data
from helpers import assert_within_standard_errors, doubles, refusal, small_vae, unit_quadrature

import pyrovae as pv


def by_hand(likelihood: pv.Columns, outputs: torch.Tensor) -> list[torch.distributions.Distribution]:
    """The distribution of each column alone, from its part of the outputs."""
    found, start = [], 0
    for size, family in zip(likelihood.sizes, likelihood.families, strict=True):
        num = math.prod(family.output_shape(()))
        for _ in range(size):
            own = outputs[..., start : start + num].reshape(*outputs.shape[:-1], *family.output_shape(()))
            found.append(family(own, event_dim=0))
            start += num
    assert start == outputs.shape[-1]
    return found


def test_a_row_is_the_product_of_its_columns_and_takes_any_leading_dimensions():
    likelihood, num = table().double(), len(LIKELIHOODS) + 3
    x = table_data(5, torch.float64)
    likelihood.check(x)
    outputs = 0.5 * doubles(4, 5, *likelihood.output_shape((num,)))
    p, alone = likelihood(outputs, event_dim=1), by_hand(likelihood, outputs)
    assert p.batch_shape == (4, 5)
    assert p.event_shape == (num,)
    expected = torch.stack([one.log_prob(x[:, j]) for j, one in enumerate(alone)], -1)
    torch.testing.assert_close(p.base_dist.log_prob(x), expected, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(p.log_prob(x), expected.sum(-1), rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(p.mean, torch.stack([one.mean for one in alone], -1), rtol=1e-12, atol=1e-12)
    assert p.support.check(x).all()
    wide = likelihood(outputs[:1], event_dim=1).expand((4, 5))
    torch.testing.assert_close(wide.log_prob(x), p.log_prob(x)[:1].expand(4, 5), rtol=1e-12, atol=1e-12)
    draws = wide.sample((7,))
    assert draws.shape == (7, 4, 5, num)
    assert (draws[:, 0] != draws[:, 1]).any()
    likelihood.check(draws.reshape(-1, num).clamp(max=1e6))


def test_draws_have_the_means_of_their_columns():
    likelihood, num = table().double(), 20_000
    outputs = 0.3 * doubles(*likelihood.output_shape((len(LIKELIHOODS) + 3,)))
    p = likelihood(outputs, event_dim=1)
    draws = p.sample((num,))
    exact = [j for j, name in enumerate(likelihood.names) if name != "discretized_logistic"]
    error = draws.std(0) / num**0.5
    assert_within_standard_errors(draws.mean(0)[exact], p.mean[exact], error[exact])


def test_a_mixed_row_has_a_total_mass_of_one():
    """Two discrete columns summed, and two continuous ones integrated, at once."""
    likelihood = pv.Columns(
        {"sex": pv.Bernoulli(), "part": pv.Beta(), "visits": pv.Poisson(), "town": pv.Categorical(3),
         "share": pv.ContinuousBernoulli()}
    ).double()  # fmt: skip
    outputs = 0.5 * doubles(*likelihood.output_shape((5,)))
    outputs[1:3] = outputs[1:3].abs() + 0.5
    unit, weight = unit_quadrature(panels=2, order=12)
    digits = [torch.arange(num, dtype=torch.float64) for num in (2, 20, 3)]
    rows = torch.cartesian_prod(digits[0], unit, *digits[1:], unit)
    weights = torch.cartesian_prod(digits[0] ** 0, weight, digits[1] ** 0, digits[2] ** 0, weight).prod(-1)
    mass = likelihood(outputs, event_dim=1).log_prob(rows).exp()
    assert (mass @ weights).item() == pytest.approx(1.0, abs=1e-3)


def test_columns_under_one_key_share_parameters_and_no_others_do():
    scale = pv.Gaussian(1.0, learn_scale=True)
    likelihood = pv.Columns({"a": scale, "b": scale, ("c", "d"): scale})
    assert likelihood.names == ("a", "b", "c", "d")
    assert len(list(likelihood.parameters())) == 3
    assert all(parameter is not scale.log_scale for parameter in likelihood.parameters())


def test_the_encoder_sees_each_column_as_its_family_says():
    likelihood = pv.Columns({"visits": pv.Poisson(), "town": pv.Categorical(3), "age": pv.Gaussian(1.0)})
    seen = likelihood.encoder_input(torch.tensor([[3.0, 1.0, -0.5], [0.0, 2.0, 4.0]]), event_dim=1)
    expected = torch.tensor([[math.log(4), 0, 1, 0, -0.5], [0, 0, 0, 1, 4.0]])
    torch.testing.assert_close(seen, expected)


def test_a_vae_starts_from_the_means_of_the_columns():
    num = len(LIKELIHOODS) + 3
    mean = torch.linspace(0.1, 0.9, num)
    vae = small_vae((num,), hidden=(), likelihood=table(), data_mean=mean)
    with torch.no_grad():
        vae.decoder.output.weight.zero_()
    torch.testing.assert_close(vae.sample(2, mean=True), mean.expand(2, num), rtol=0, atol=1e-5)


def test_names_may_be_any_texts_and_states_come_back():
    families = {"sq.ft": pv.Gaussian(2.0, learn_scale=True), "keys": pv.Poisson(), "a b (cm)": pv.Bernoulli()}
    vae, other = (small_vae((3,), seed=seed, likelihood=pv.Columns(families)) for seed in (1, 2))
    other.load_state_dict(vae.state_dict())
    x = torch.stack((torch.randn(6), data_of("poisson", 6), data_of("bernoulli", 6)), -1)
    assert torch.equal(other.reconstruct(x), vae.reconstruct(x))
    assert "likelihood.fillers" not in vae.state_dict()


def test_what_does_not_fit_is_refused_by_the_name_of_its_column():
    rule = "families must map the name of each column to a likelihood of single numbers"
    assert refusal(pv.Columns, {}) == f"{rule}, got {{}}"
    assert refusal(pv.Columns, {"a": torch.nn.ReLU()}) == f"{rule}, got ReLU for 'a'"
    twice = {"a": pv.Poisson(), ("b", "a"): pv.Poisson()}
    assert refusal(pv.Columns, twice) == "families must name each column once, got ('a', 'b', 'a')"
    assert refusal(pv.Columns, {3: pv.Poisson()}) == f"{rule}, got the names (3,)"
    assert refusal(pv.Columns, {(): pv.Poisson()}) == f"{rule}, got () for a name"
    nested = pv.Columns({"a": pv.Poisson()})
    assert refusal(pv.Columns, {"b": nested}) == f"{rule}, got Columns for 'b'"
    for columns, shape in ((nested, (2,)), (table(), (2,)), (nested, (1, 8, 8))):
        message = f"x must have {len(columns.names)} columns under Columns, got event shape {shape}"
        assert refusal(small_vae, shape, likelihood=columns) == message
        assert refusal(small_vae, shape, likelihood=columns, missing="mask") == message

    class Joint(pv.Likelihood):
        def output_shape(self, event_shape):
            return (*event_shape, 2)

        def forward(self, outputs, event_dim):
            return pv.Gaussian(1.0)(outputs, event_dim=1)

    joint = pv.Columns({"a": Joint()})
    message = "Joint must be a likelihood of single numbers in Columns, got events of shape (2,)"
    assert refusal(joint, torch.zeros(3, 2), event_dim=1) == message
    likelihood, x = table(), table_data(3)
    x[2, list(likelihood.names).index("log_normal")] = 0
    assert refusal(likelihood.check, x) == 'column "log_normal": x must be > 0 under LogNormal, got 0 at index (2,)'


def test_families_in_another_order_than_the_columns_of_the_data_are_refused(tmp_path):
    """Two columns of real numbers that have changed places would train without a word."""
    path = tmp_path / "two.csv"
    path.write_text("a,b\n" + "".join(f"{i}.5,{i % 7}.25\n" for i in range(30)))
    data = pv.load(path)
    families = {"b": pv.Gaussian(0.1), "a": pv.Gaussian(10.0)}
    vae = small_vae((2,), likelihood=pv.Columns(families))
    assert (
        refusal(pv.fit, vae, data, epochs=1)
        == "the likelihood must have its columns in the order of the data, a, b; got b, a"
    )
    vae = small_vae((2,), likelihood=pv.Columns({"a": families["a"], "b": families["b"]}))
    assert len(pv.fit(vae, data, epochs=1).loss) == 1


def test_one_family_of_ours_for_columns_of_several_kinds_is_warned_of(tmp_path):
    """The codes 0, 1, 2 of a category would train as numbers without a word; one's own may know them."""
    path = tmp_path / "people.csv"
    path.write_text("age,town\n" + "".join(f"{i}.5,{('Bonn', 'Oslo', 'Paris')[i % 3]}\n" for i in range(30)))
    data = pv.load(path, standardise=True)
    said = "likelihood must be Columns for mixed data, to have a family for each kind of column, got Gaussian for all"
    with pytest.warns(UserWarning, match=said):
        pv.fit(small_vae((2,)), data, epochs=1)
    own = type("Own", (pv.Gaussian,), {"__module__": "mine"})
    pv.fit(small_vae((2,), likelihood=own(1.0)), data, epochs=1)
    pv.fit(small_vae((2,)), data.train_x, epochs=1)  # which says nothing of its columns
