"""The numbers of a race: paired differences, their intervals, the verdict and the table."""

import json
import math

import pytest
import torch
from small_races import run

import pyrovae as pv


def race_of(log_px, budget="epochs", share_unreliable=None):
    """Returns a `Race` with the log p(x) of each objective, `(seeds, data)`."""
    share = share_unreliable or {}
    runs = [
        pv.RaceRun(
            name, seed, 5, pv.Estimate(value, torch.full_like(value, 0.1)), share.get(name, 0.05), 2, 10.0, (), None
        )
        for name, values in log_px.items()
        for seed, value in enumerate(torch.as_tensor(values, dtype=torch.float64))
    ]
    return pv.Race(tuple(runs), budget)


def test_differences_are_paired_and_their_interval_is_from_students_t():
    base = torch.tensor([[-10.0, 0.0, -20.0, 6.0], [-11.0, 1.0, -19.0, 9.0], [-9.0, 2.0, -18.0, 5.0]])
    gain = torch.tensor([[1.0, 2.0, 1.0, 2.0], [2.0, 1.0, 2.0, 1.0], [1.5, 1.5, 1.0, 2.0]])
    race = race_of({"a": base, "b": base + gain, "c": base - 0.01 * (gain - 1.5)})
    found = race.difference("b")
    by_seed, by_datum = gain.mean(1), gain.mean(0)
    assert found["value"] == pytest.approx(1.5)
    assert found["seed_error"] == pytest.approx(by_seed.std().item() / math.sqrt(3))
    assert found["data_error"] == pytest.approx(by_datum.std().item() / 2)
    reach = math.hypot(4.302653 * found["seed_error"], 1.959964 * found["data_error"])  # t of two degrees of freedom
    assert found["low"] == pytest.approx(1.5 - reach, rel=1e-5)
    assert found["high"] == pytest.approx(1.5 + reach, rel=1e-5)
    assert race.difference("a", "b")["value"] == pytest.approx(-1.5)
    assert race.verdict == "against a, 3 seeds, equal epochs: b is better; not resolved: c"
    assert race_of({"a": base, "b": base - gain}).verdict.endswith("b is worse")
    assert race_of({"a": base[:1], "b": base[:1] + 1}).verdict == "one seed cannot tell a difference from chance"
    row = race.rows()[1]
    assert row["log_px"] == pytest.approx((base + gain).mean().item())
    assert row["log_px_error"] == pytest.approx((base + gain).mean(1).std().item() / math.sqrt(3))
    assert f"1.500 ({found['seed_error']:.2g})" in race.table()


def test_the_verdict_says_where_log_px_is_only_a_bound():
    base = torch.linspace(-2, 2, 12, dtype=torch.float64).reshape(3, 4)
    log_px, resolved = {"a": base, "b": base + 1}, "against a, 3 seeds, equal epochs: b is better"
    assert race_of(log_px).verdict == resolved
    assert race_of(log_px, share_unreliable={"a": math.nan, "b": math.nan}).verdict == resolved
    doubt = race_of(log_px, share_unreliable={"a": 0.92, "b": math.nan}).verdict.removeprefix(resolved)
    assert doubt.startswith("; Pareto k > 0.7 at 92% of the data under a: log p(x) is a lower bound there")
    assert race_of(
        {name: value[:1] for name, value in log_px.items()}, share_unreliable={"b": 0.92}
    ).verdict.startswith("one seed cannot tell a difference from chance; Pareto k > 0.7 at 92% of the data under b")
    unresolved = race_of({"a": base, "b": base + (base - base.mean()) / 9}, share_unreliable={"b": 0.06}).verdict
    assert "no difference is resolved; Pareto k > 0.7 at 6% of the data under b" in unresolved


def test_the_table_and_json_have_the_numbers(finished_race):
    race, _ = finished_race
    flat = json.loads(json.dumps(race.to_dict(), allow_nan=False))
    assert [row["objective"] for row in flat["rows"]] == ["ELBO", "IWAE"]
    assert len(flat["runs"]) == 4
    for text in (str(race), race.to_markdown(), race._repr_html_()):
        for row in race.rows():
            assert f"{row['log_px']:.3f} ({row['log_px_error']:.2g})" in text


def test_pareto_k_is_unknown_if_the_draws_are_too_few():
    race = run(num_samples=5, seeds=(0,), objectives=["elbo"], epochs=1)
    assert race.rows()[0]["share_pareto_k_above_0.7"] is None
    assert "unknown" in str(race)
    json.dumps(race.to_dict(), allow_nan=False)


def test_a_race_prints_its_table_is_a_data_frame_of_runs_and_draws_its_curves(finished_race):
    finished_race, _ = finished_race
    assert repr(finished_race) == f"{finished_race.table()}\n{finished_race.verdict}"
    assert finished_race._repr_html_().endswith(f"{finished_race.verdict}</p>")
    frame = finished_race.to_pandas()
    assert frame["seed"].tolist() == [run.seed for run in finished_race.runs]
    assert frame["log_px"].tolist() == [run.log_px.mean for run in finished_race.runs]
    means = frame.groupby("objective")["log_px"].mean()
    assert all(means[row["objective"]] == pytest.approx(row["log_px"]) for row in finished_race.rows())
    for axes, against in zip(finished_race.plot().axes, ("epochs", "seconds"), strict=True):
        assert axes.get_xlabel() == against
        drawn = {line.get_label(): line.get_ydata() for line in axes.lines}
        for name, (_, values) in finished_race.curves(against).items():
            assert drawn[name] == pytest.approx(values.mean(0).numpy())
