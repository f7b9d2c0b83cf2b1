"""A history as it is seen: a table, a data frame, a figure."""

import math
import re
import sys

import pandas
import pytest
import torch
from helpers import refusal, small_vae

import pyrovae as pv

NAMES = ["epoch", "loss", "train_reconstruction", "train_kl", "elbo", "reconstruction", "kl", "lr", "seconds"]


def history_of(num, validated=True):
    history = pv.History()
    for epoch in range(1, num + 1):
        terms = {"elbo": -1.0 - (epoch - 7.0) ** 2, "reconstruction": -((epoch - 7.0) ** 2), "kl": 1.0}
        terms = terms if validated else dict.fromkeys(terms)
        terms |= {"train_reconstruction": -float(epoch), "train_kl": 2.0 * epoch}
        history.append({"epoch": epoch, "loss": math.pi, **terms, "lr": 1e-3, "skipped": None, "seconds": 0.5})
    return history


def test_it_prints_as_a_table_of_at_most_ten_epochs_with_the_last_and_the_best():
    text = repr(history_of(25))
    assert str(history_of(25)) == text
    header, _, *rows, last = text.splitlines()
    assert header.split() == NAMES
    assert [int(row.split()[0]) for row in rows] == [1, 4, 7, 10, 13, 16, 19, 22, 25]
    assert last == "25 epochs in 12.5 s; best validation ELBO -1.000 nats per datum, after epoch 7"
    assert repr(history_of(2, validated=False)).splitlines()[-1] == "2 epochs in 1.0 s"
    assert repr(pv.History()) == pv.History()._repr_html_() == "no epochs yet"
    html = history_of(25)._repr_html_()
    assert html.startswith("<table>")
    assert "after epoch 7</p>" in html


@pytest.mark.parametrize(("objective", "name"), [("iwae", "IWAE loss"), ("elbo", "loss"), ({1: "elbo"}, "loss")])
def test_the_loss_of_another_bound_than_the_elbo_is_named_beside_it(objective, name, tmp_path):
    """An IWAE run showed a loss of 2.5 beside an ELBO of -14."""
    settings = {"num_particles": 2} if objective == "iwae" else {}
    for epochs in (1, 2):  # the second of which is resumed
        how = {"epochs": epochs, "objective": objective, "progress": False, "checkpoints": pv.Checkpoints(tmp_path)}
        history = pv.fit(small_vae(event_shape=(3,)), torch.ones(6, 3), **how, **settings)
        assert re.split(r" {2,}", history.table().splitlines()[0].strip())[1] == name
    assert "loss_of" not in history.records()[0]


def test_skipped_steps_are_in_the_table_where_they_are_counted():
    history = history_of(1)
    history.skipped = [3]
    assert "skipped" in history.table()
    assert re.search(r"\b3\b", history.table().splitlines()[-1])


def test_a_data_frame_has_a_row_for_each_epoch():
    history = history_of(3)
    frame = history.to_pandas()
    assert isinstance(frame, pandas.DataFrame)
    assert list(frame.columns) == list(history.records()[0])
    assert frame["elbo"].tolist() == history.elbo
    assert frame["epoch"].tolist() == [1, 2, 3]


def test_without_pandas_one_line_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "pandas", None)
    assert refusal(history_of(1).to_pandas) == "to_pandas needs pandas: pip install 'pyrovae[tables]'"


def test_it_draws_loss_and_validation_terms_at_their_epochs():
    history = history_of(4)
    figure = history.plot()
    drawn = [[list(line.get_ydata()) for line in axes.lines] for axes in figure.axes]
    minus_elbo = [-elbo for elbo in history.elbo]
    terms = [history.train_reconstruction, history.reconstruction], [history.train_kl, history.kl]
    assert drawn == [[history.loss, minus_elbo], *terms]
    assert all(list(line.get_xdata()) == [1, 2, 3, 4] for axes in figure.axes for line in axes.lines)
    plain = history_of(4, validated=False).plot().axes
    assert [len(axes.lines) for axes in plain] == [1, 1, 1]
    assert plain[1].get_ylabel() == "training reconstruction, nats"
    assert refusal(pv.History().plot) == "the history must have an epoch, and has none"


@pytest.mark.parametrize("epochs", [1, 2])
def test_the_history_of_a_training_is_drawn(epochs):
    data = pv.load("ring", num_train=20, num_validation=10, num_test=5)
    pv.fit(small_vae(), data, epochs=epochs).plot().draw_without_rendering()
