"""The way from one datum to another through the latent space: its ends, its lines and arcs, and refusals."""

import math

import pytest
import torch
from helpers import conditional_vae, refusal, small_vae, suite_seed
from pyro.distributions import Delta

import pyrovae as pv
from pyrovae.models.latent_codes import codes_between


def two_codes(dim=3, num=5, dtype=torch.float64):
    generator = torch.Generator().manual_seed(suite_seed(1))
    return (torch.randn(num, dim, generator=generator, dtype=dtype) for _ in range(2))


@pytest.mark.parametrize("spherical", [False, True])
def test_the_codes_begin_and_end_at_those_given_to_the_bit(spherical):
    z1, z2 = two_codes(dtype=torch.float32)
    between = codes_between(z1, z2, 6, spherical)
    assert between.shape == (6, 5, 3)
    assert torch.equal(between[0], z1)
    assert torch.equal(between[-1], z2)


def test_a_linear_way_is_straight_with_equal_steps():
    z1, z2 = two_codes()
    steps = codes_between(z1, z2, 6, spherical=False).diff(dim=0)
    torch.testing.assert_close(steps, ((z2 - z1) / 5).expand_as(steps))


def test_a_spherical_way_turns_by_equal_angles_in_one_plane_while_its_length_changes_evenly():
    z1, z2 = two_codes()
    between = codes_between(z1, z2, 6, spherical=True)
    lengths = between.norm(dim=-1)
    steps = lengths.diff(dim=0)
    torch.testing.assert_close(steps, ((z2.norm(dim=-1) - z1.norm(dim=-1)) / 5).expand_as(steps))
    units = between / lengths[..., None]
    angle = torch.nn.functional.cosine_similarity(z1, z2, dim=-1).acos()
    turns = (units[1:] * units[:-1]).sum(-1).acos()
    torch.testing.assert_close(turns, (angle / 5).expand_as(turns))
    assert torch.linalg.svdvals(between.transpose(0, 1))[:, 2].max() < 1e-12  # of rank two: a plane through 0


def test_a_quarter_of_a_circle_is_the_one_drawn_by_hand():
    between = codes_between(torch.tensor([[2.0, 0.0]]), torch.tensor([[0.0, 4.0]]), 4, spherical=True)[:, 0]
    angles = [0, math.pi / 6, math.pi / 3, math.pi / 2]
    lengths = [2, 2 + 2 / 3, 2 + 4 / 3, 4]
    expected = [[r * math.cos(a), r * math.sin(a)] for r, a in zip(lengths, angles, strict=True)]
    torch.testing.assert_close(between, torch.tensor(expected))


@pytest.mark.parametrize("scale", [3.0, 1e-9])
def test_where_the_directions_agree_or_one_code_is_0_the_arc_is_the_line(scale):
    z = torch.tensor([[1.0, 2.0, -1.0]], dtype=torch.float64)
    for ends in ((z, scale * z), (z, 0 * z), (0 * z, z), (0 * z, 0 * z)):
        torch.testing.assert_close(codes_between(*ends, 5, spherical=True), codes_between(*ends, 5, spherical=False))


def test_opposite_codes_have_no_arc():
    z1 = torch.tensor([[1.0, 0.0], [1.0, 2.0]])
    z2 = torch.tensor([[0.0, 1.0], [-2.0, -4.0]])
    message = "^spherical needs codes that are not opposite, and those of x1 and x2 are at index 1$"
    with pytest.raises(pv.InputError, match=message):
        codes_between(z1, z2, 3, spherical=True)


@pytest.mark.parametrize("posterior", ["diagonal", "delta", "full_covariance"])
def test_a_vae_decodes_the_codes_between_with_a_row_for_each_pair(posterior):
    vae = small_vae((2, 3), latent_dim=3, posterior=posterior)
    x1, x2 = torch.randn(4, 2, 3), torch.randn(4, 2, 3)
    for spherical in (False, True):
        found = vae.interpolate(x1, x2, steps=5, spherical=spherical)
        assert found.shape == (4, 5, 2, 3)
        assert not found.requires_grad
        torch.testing.assert_close(found[:, 0], vae.reconstruct(x1))
        torch.testing.assert_close(found[:, -1], vae.reconstruct(x2))
        z = codes_between(vae.encode(x1).mean, vae.encode(x2).mean, 5, spherical)
        torch.testing.assert_close(found[2, 3], vae.decode(z[3, 2]).mean)


def test_one_vae_of_classes_and_one_with_a_missing_cell():
    vae = small_vae((4,), posterior=pv.posteriors.Categorical(2, 3))
    x1, x2 = torch.randn(3, 4), torch.randn(3, 4)
    torch.testing.assert_close(vae.interpolate(x1, x2, 3)[:, -1], vae.reconstruct(x2))
    with_gaps = small_vae((4,), missing="mask")
    x1[0, 1] = math.nan
    assert with_gaps.interpolate(x1, x2).isfinite().all()


@pytest.mark.parametrize("several", [False, True])
def test_conditions_hold_on_the_whole_way(several):
    kinds = (pv.OneHot(3), pv.Embedding()) if several else pv.OneHot(3)
    vae = conditional_vae(kinds)
    x1, x2 = torch.randn(4, 3), torch.randn(4, 3)
    y = torch.tensor([0, 2, 1, 1])
    given = (y, torch.randn(4, 1)) if several else (y,)
    found = vae.interpolate(x1, x2, steps=4, y=given if several else y)
    torch.testing.assert_close(found[:, 0], vae.reconstruct(x1, *given))
    torch.testing.assert_close(found[:, -1], vae.reconstruct(x2, *given))
    z = codes_between(vae.encode(x1, *given).mean, vae.encode(x2, *given).mean, 4, False)
    torch.testing.assert_close(found[:, 2], vae.decode(z[2], *given).mean)


def test_the_way_is_decoded_in_evaluation_mode_which_is_undone():
    layers = torch.nn.Sequential(torch.nn.Linear(2, 8), torch.nn.Dropout(0.5), torch.nn.Linear(8, 3))
    vae = pv.VAE((3,), latent_dim=2, encoder=torch.nn.Linear(3, 4), decoder=layers, likelihood=pv.Gaussian(0.5))
    x = torch.randn(4, 3)
    assert torch.equal(vae.interpolate(x, -x), vae.interpolate(x, -x))
    assert vae.training


def test_what_cannot_be_interpolated_is_refused_in_one_line():
    vae, x = small_vae(), torch.randn(4, 2)
    assert refusal(vae.interpolate, x, x, steps=1) == "steps must be a whole number >= 2, got 1"
    assert refusal(vae.interpolate, x, x[:3]) == "x1 and x2 must have as many data, got 4 and 3"
    assert "x2 must have shape (batch, 2)" in refusal(vae.interpolate, x, torch.randn(4, 3))
    assert "x1 must be finite, got nan at index (0, 0); if" in refusal(vae.interpolate, x * torch.nan, x)
    assert refusal(vae.interpolate, x, x + torch.inf) == "x2 must be finite, got inf at index (0, 0)"
    assert refusal(vae.interpolate, x, x, y=torch.zeros(4)) == "y must hold 0 conditions, got 1"
    one = small_vae(latent_dim=1)
    one.encode = lambda x: Delta(x[:, :1], event_dim=1)  # a line has two directions, and no arc between them
    assert "opposite" in refusal(one.interpolate, x, -x, spherical=True)
