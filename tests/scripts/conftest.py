import pytest

import pyrovae as pv


@pytest.fixture(autouse=True)
def _few_images_validate(monkeypatch):
    """Scripts of papers validate on 40 images, where 5,000 are the usual number."""
    load = pv.load

    def with_few(name, *args, **settings):
        return load(name, *args, **({"num_validation": 40} if name == "mnist" else {}) | settings)

    monkeypatch.setattr(pv, "load", with_few)
