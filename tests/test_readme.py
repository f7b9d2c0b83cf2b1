"""What the README shows is what the package does."""

import re
from pathlib import Path

import pyro

import pyrovae as pv

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()


def test_the_example_runs_as_it_stands_but_for_its_sizes():
    block, parts = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    small = block.replace("epochs=200", "epochs=1").replace("num_samples=5000", "num_samples=30")
    small = small.replace("num_particles=50", "num_particles=2")
    assert small.count("=1)") == 1
    scope = {}
    exec(small, scope)
    assert scope["result"].log_px.shape == scope["result"].pareto_k.shape == (2_000,)
    assert len(scope["history"].loss) == 1
    assert isinstance(scope["vae"], pv.VAE)
    assert pyro.get_param_store()
    exec(parts, scope)
    pv.fit(scope["vae"], scope["data"].train_x[:50], epochs=1, objective="dreg", num_particles=2)
    assert pv.log_marginal(scope["vae"].model, scope["vae"].guide, scope["data"].test_x[:5]).log_px.isfinite().all()


def test_every_objective_is_in_the_table_by_name_and_class():
    for name, kind in pv.objectives.OBJECTIVES.items():
        assert f"`{name}`" in README
        assert f"`{kind.__name__}`" in README


def test_every_file_and_link_that_the_documents_name_is_there():
    for document in (ROOT / "README.md", *(ROOT / "docs").glob("*.md"), ROOT / "CONTRIBUTING.md"):
        text = document.read_text()
        links = re.findall(r"\]\(([^)#]+)\)", text)
        local = [link for link in links if "://" not in link]
        named = re.findall(r"`((?:pyrovae|scripts|docs|notebooks|tests)/[\w./]+)`", text)
        for path in [document.parent / link for link in local] + [ROOT / name for name in named]:
            assert path.exists(), f"{document.name} names {path}"
        assert not re.search(r"[A-Z]+_TABLE|GAPS|SWEEP\b|POINTS\b|IMAGES\b", text)


def test_every_public_name_is_there_and_has_a_docstring():
    for name in pv.__all__:
        assert (getattr(pv, name).__doc__ or "").strip(), name
