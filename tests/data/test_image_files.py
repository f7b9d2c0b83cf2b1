"""Image files: the folder that they are read from, the real MNIST, and downloads."""

import http.client
from pathlib import Path
from urllib.error import URLError

import pytest
import torch
import torchvision
from helpers import IMAGE_FILES, LABEL_FILES, NUM_TRAIN, grey_of, load_fake, refusal, tree, write_images

import pyrovae as pv


def test_images_come_from_the_folder_of_their_own_set(image_root):
    write_images(image_root, "FashionMNIST", seed=10)
    write_images(image_root, "KMNIST", seed=20)
    for name, seed in (("mnist", 0), ("fashion_mnist", 10), ("kmnist", 20)):
        data = pv.load(name, data_root=image_root, binarize="none", num_validation=10)
        assert data.name == name
        assert torch.equal(data.train_x, (grey_of(NUM_TRAIN, seed)[:30].double() / 255).float())


def test_the_data_root_is_the_argument_then_the_environment_then_data(tmp_path, monkeypatch):
    seeds = {"argument": 0, "environment": 10, "data": 20}
    for name, seed in seeds.items():
        write_images(tmp_path / name, seed=seed)

    def found(**kwargs) -> int:
        x = pv.load("mnist", binarize="none", num_validation=10, **kwargs).train_x
        (match,) = (s for s in seeds.values() if torch.equal(x, (grey_of(NUM_TRAIN, s)[:30].double() / 255).float()))
        return match

    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("PYROVAE_DATA", raising=False)
    assert found() == seeds["data"]
    monkeypatch.setenv("PYROVAE_DATA", str(tmp_path / "environment"))
    assert found() == seeds["environment"]
    assert found(data_root=str(tmp_path / "argument")) == seeds["argument"]
    assert found(data_root=tmp_path / "argument") == seeds["argument"]


def test_the_real_mnist_has_its_known_facts(mnist_root):
    data = pv.load("mnist", data_root=mnist_root, num_validation=0)
    assert (len(data.train_x), len(data.test_x), data.event_shape) == (60_000, 10_000, (1, 28, 28))
    assert data.train_y[:5].tolist() == [5, 0, 4, 1, 9]
    assert data.test_y[:5].tolist() == [7, 2, 1, 0, 4]
    counts = [5_923, 6_742, 5_958, 6_131, 5_842, 5_421, 5_918, 6_265, 5_851, 5_949]
    assert torch.bincount(data.train_y).tolist() == counts
    level = torch.arange(256, dtype=torch.float64) / 255
    share = torch.bincount(data.train_grey.flatten(), minlength=256) / data.train_grey.numel()
    mean = (share * level).sum()
    assert mean.item() == pytest.approx(0.1307, abs=5e-5)
    assert (share * (level - mean) ** 2).sum().sqrt().item() == pytest.approx(0.3081, abs=5e-5)
    assert data.train_mean.mean().item() == pytest.approx(mean.item(), abs=1e-6)
    usual = pv.load("mnist", data_root=mnist_root, binarize="none")
    assert [len(x) for x in (usual.train_x, usual.validation_x, usual.test_x)] == [55_000, 5_000, 10_000]
    assert torch.equal(usual.validation_y, data.train_y[-5_000:])
    assert torch.equal(usual.validation_x[-1], data.train_grey[-1] / 255)


DOWNLOAD_ERRORS = {
    "no network": lambda: URLError("[Errno -2] Name or service not known"),
    "torchvision's summary": lambda: RuntimeError("Error downloading a:\nTried https://b, got:\nc\n"),
    "connection lost": lambda: ConnectionResetError(104, "Connection reset by peer"),
    "disk full": lambda: OSError(28, "No space left on device"),
    # What urllib lets through where a proxy answers with something that is not HTTP, or breaks off in a chunk.
    "not HTTP": lambda: http.client.BadStatusLine("garbage"),
    "broken off": lambda: http.client.IncompleteRead(b"half"),
}


@pytest.mark.parametrize("error", DOWNLOAD_ERRORS)
@pytest.mark.parametrize("present", ["nothing", "an empty folder", "all but one file"])
def test_a_failed_download_names_the_missing_files_and_leaves_the_folder_as_it_was(
    tmp_path, monkeypatch, error, present
):
    def download(self):
        raw = Path(self.raw_folder)
        raw.mkdir(parents=True)
        (raw / IMAGE_FILES[0]).write_bytes(b"half of a file")
        raise DOWNLOAD_ERRORS[error]()

    monkeypatch.setattr(torchvision.datasets.MNIST, "download", download)
    root = tmp_path / "data"
    missing = {*IMAGE_FILES, *LABEL_FILES}
    if present == "an empty folder":
        root.mkdir()
    elif present == "all but one file":
        (write_images(root) / LABEL_FILES[1]).unlink()
        missing = {LABEL_FILES[1]}
    before = tree(tmp_path)
    message = refusal(load_fake, root)
    assert tree(tmp_path) == before
    assert str(root / "MNIST" / "raw") in message
    assert {file for file in (*IMAGE_FILES, *LABEL_FILES) if file in message} == missing
    assert "PYROVAE_DATA" in message


def test_missing_images_are_downloaded_once_without_the_archives(tmp_path, monkeypatch):
    calls = []

    def download(self):
        calls.append(self.raw_folder)
        raw = write_images(Path(self.root))
        (raw / f"{IMAGE_FILES[0]}.gz").write_bytes(b"archive")

    monkeypatch.setattr(torchvision.datasets.MNIST, "download", download)
    for _ in range(2):
        data = load_fake(tmp_path / "new" / "data", binarize="none")
        assert torch.equal(data.train_x, (grey_of(NUM_TRAIN)[:30].double() / 255).float())
    assert len(calls) == 1
    found = sorted(path.name for path in (tmp_path / "new" / "data" / "MNIST" / "raw").iterdir())
    assert found == sorted((*IMAGE_FILES, *LABEL_FILES))
