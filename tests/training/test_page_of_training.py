"""The code of docs/longer_training.md runs, in small, and does what the page says."""

import re
from pathlib import Path

PAGE = Path(__file__).parents[2] / "docs" / "longer_training.md"
SMALLER = {"num_train=500": "num_train=100", "epochs=20": "epochs=4", "steps_per_epoch=25": "steps_per_epoch=3"}


def test_the_code_of_the_page_runs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    text, scope = PAGE.read_text(), {}
    for shown, smaller in SMALLER.items():
        assert shown in text
        text = text.replace(shown, smaller)
    blocks = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    for block in blocks:
        exec(block, scope)
    assert {path.name for path in tmp_path.glob("*.png")} == {"training.png", "log_px.png", "snr.png"}
    assert scope["history"].epoch == [1, 2, 3, 4]
    assert scope["table"]["method"].tolist() == ["elbo", "iwae_10", "is_100"]
