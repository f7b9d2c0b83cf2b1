"""The code of docs/longer_training.md runs, and does what the page says."""

import re
from pathlib import Path

PAGE = Path(__file__).parents[2] / "docs" / "longer_training.md"


def test_the_code_of_the_page_runs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    blocks, scope = re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.DOTALL), {}
    for block in blocks:
        exec(block, scope)
    assert {path.name for path in tmp_path.glob("*.png")} == {"training.png", "log_px.png", "snr.png"}
    assert scope["history"].epoch == [1, 2, 3, 4]
    assert scope["table"]["method"].tolist() == ["elbo", "iwae_10", "is_100"]
