"""Arrays, folders of images, functions and image sets of torchvision made into data sets."""

import pickle
import sys

import numpy as np
import pytest
import scipy.io
import torch
import torchvision
from helpers import NUM_TRAIN, grey_of, refusal
from PIL import Image

import pyrovae as pv
from pyrovae.data import arrays as arrays_module

RNG = np.random.default_rng(0)
X, Y = RNG.normal(size=(20, 3)).astype(np.float32), np.arange(20) % 4
ALL = {"shares": (1, 0, 0)}
SPLITS = ("train", "validation", "test")


def sizes(data: pv.Dataset) -> list[int]:
    return [len(getattr(data, f"{split}_x")) for split in SPLITS]


# Arrays ---------------------------------------------------------------------------------------------------------------


def in_files(folder) -> dict:
    """The arrays X and Y in every form that `load` takes."""
    np.savez(folder / "mine.npz", x=X, y=Y)
    torch.save({"x": torch.from_numpy(X), "y": torch.from_numpy(Y)}, folder / "mine.pt")
    return {
        "npz": folder / "mine.npz",
        "pt": str(folder / "mine.pt"),
        "tuple": (X, Y),
        "tensors": (torch.from_numpy(X), torch.from_numpy(Y)),
        "dict": {"x": X, "y": Y},
        "float64": (X.astype(np.float64), Y.astype(np.uint8)),
        "big-endian": (X.astype(">f4"), Y.astype(">i8")),
        "texts": (X, np.array(list("abcd"))[Y]),
        "objects": (X, np.array(list("abcd"))[Y].astype(object)),
        "backwards": (X[::-1].copy()[::-1], Y),
    }


@pytest.mark.parametrize("form", ["npz", "pt", "tuple", "tensors", "dict", "float64", "big-endian", "texts", "objects"])
def test_arrays_and_labels_come_in_many_forms(tmp_path, form):
    data = pv.load(in_files(tmp_path)[form], **ALL)
    assert torch.equal(data.train_x, torch.from_numpy(X))
    assert data.train_y.tolist() == Y.tolist()
    assert data.classes == (tuple("abcd") if form in ("texts", "objects") else ("0", "1", "2", "3"))
    assert [(one.name, one.kind) for one in data.columns] == [(f"x{j}", "continuous") for j in (1, 2, 3)]
    assert (data.kind, sizes(data)) == ("real", [20, 0, 0])


def test_one_array_is_x(tmp_path):
    np.save(tmp_path / "mine.npy", X)
    np.savez(tmp_path / "one.npz", anything=X)
    torch.save(torch.from_numpy(X), tmp_path / "mine.pt")
    for source in (tmp_path / "mine.npy", tmp_path / "one.npz", tmp_path / "mine.pt", X, torch.from_numpy(X)):
        data = pv.load(source, **ALL)
        assert (torch.equal(data.train_x, torch.from_numpy(X)), data.train_y) == (True, ())
    assert sizes(pv.load(X)) == [16, 2, 2]


@pytest.mark.parametrize("names", ["{split}_{value}", "{value}_{split}"])
def test_arrays_of_each_split_stay_in_their_split(tmp_path, names):
    parts = {"train": slice(0, 12), "test": slice(15, 20)}
    found = {names.format(split=s, value=v): a[at] for s, at in parts.items() for v, a in (("x", X), ("y", Y))}
    np.savez(tmp_path / "mine.npz", **found)
    data = pv.load(tmp_path / "mine.npz")
    assert sizes(data) == [12, 0, 5]
    assert torch.equal(data.test_x, torch.from_numpy(X[15:]))
    assert data.test_y.tolist() == Y[15:].tolist()


def test_short_floats_are_taken_exactly(tmp_path):
    x = torch.from_numpy(X).bfloat16()
    torch.save(x, tmp_path / "mine.pt")
    for source in (tmp_path / "mine.pt", x, (x.half(), x), {"train_x": x}):
        data = pv.load(source) if isinstance(source, dict) else pv.load(source, **ALL)
        assert torch.equal(data.train_x, x.float())


def test_conditions_are_real_numbers():
    data = pv.load((X, X[:, :1].astype(np.float64)), **ALL)
    assert (data.train_y.dtype, data.train_y.shape, data.classes) == (torch.float32, (20, 1), ())


def test_arrays_of_more_dimensions_keep_their_shape_and_have_a_kind():
    for values, kind in ((X[:, :, None], "real"), (X[:, :, None] > 0, "binary"), (Y.reshape(5, 2, 2), "count")):
        data = pv.load(values, **ALL)
        assert (data.kind, data.event_shape, data.columns) == (kind, values.shape[1:], ())
        assert torch.equal(data.train_x, torch.from_numpy(values).float())


@pytest.mark.parametrize(
    ("shape", "event_shape"), [((6, 5, 4), (1, 5, 4)), ((6, 3, 5, 4), (3, 5, 4)), ((6, 5, 4, 3), (3, 5, 4))]
)
def test_bytes_are_images(shape, event_shape):
    levels = RNG.integers(0, 256, shape).astype(np.uint8)
    data = pv.load((levels, np.arange(6) % 2), **ALL)
    assert (data.kind, data.event_shape, data.train_y.tolist()) == ("grey", event_shape, [0, 1] * 3)
    moved = levels[:, None] if len(shape) == 3 else levels if shape[1] == 3 else np.moveaxis(levels, 3, 1)
    assert torch.equal(data.train_x, torch.from_numpy(moved.copy()).float() / 255)
    assert pv.load(levels, binarize="dequantise", **ALL).train_grey.shape == (6, *event_shape)


def test_a_large_array_stays_on_the_disk_and_trains(tmp_path, monkeypatch):
    monkeypatch.setattr(arrays_module, "MAPPED_BYTES", X.nbytes)
    monkeypatch.setattr(arrays_module, "CHECKED_BYTES", X[:7].nbytes)
    np.save(tmp_path / "large.npy", X)
    data = pv.load(tmp_path / "large.npy")
    assert torch.equal(torch.cat((data.train_x, data.validation_x, data.test_x)), torch.from_numpy(X))
    assert (data.kind, sizes(data)) == ("real", [16, 2, 2])
    assert data.train_x.untyped_storage().data_ptr() == data.test_x.untyped_storage().data_ptr()  # nothing was copied
    vae = pv.VAE((3,), latent_dim=1, hidden=(4,), likelihood=pv.Gaussian(0.5))
    assert len(pv.fit(vae, data, epochs=1, batch_size=5).loss) == 1
    for kind, last in (("binary", 1.0), ("count", 7.0), ("real", 0.5)):  # one number in the last chunk decides
        whole = np.zeros_like(X)
        whole[-1, -1] = last
        np.save(tmp_path / "large.npy", whole)
        assert pv.load(tmp_path / "large.npy").kind == kind
    bad = X.copy()
    bad[13, 2] = np.inf
    np.save(tmp_path / "large.npy", bad)
    assert "must be finite, got inf at index (13, 2)" in refusal(pv.load, tmp_path / "large.npy")
    assert "standardise is for tables, and" in refusal(pv.load, tmp_path / "large.npy", standardise=True)


# Folders of images ----------------------------------------------------------------------------------------------------


def save(path, levels: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(levels).save(path)


def levels_of(number: int, size=(4, 6), channels: tuple = ()) -> np.ndarray:
    return np.random.default_rng(number).integers(0, 256, (*size, *channels)).astype(np.uint8)


def test_a_folder_of_loose_images_is_grey_or_in_colour(tmp_path):
    for number in range(3):
        save(tmp_path / "photos" / f"{number}.png", levels_of(number))
    (tmp_path / "photos" / "notes.txt").write_text("no image")
    data = pv.load(tmp_path / "photos", **ALL)
    expected = torch.from_numpy(np.stack([levels_of(number)[None] for number in range(3)])).float() / 255
    assert torch.equal(data.train_x, expected)
    assert (data.name, data.kind, data.train_y) == ("photos", "grey", ())
    save(tmp_path / "photos" / "9.png", levels_of(9, channels=(3,)))
    colour = pv.load(tmp_path / "photos", **ALL)
    assert colour.event_shape == (3, 4, 6)
    assert torch.equal(colour.train_x[:3], expected.expand(3, 3, 4, 6))
    assert torch.equal(colour.train_x[3], torch.from_numpy(levels_of(9, channels=(3,))).permute(2, 0, 1) / 255)


def test_folders_of_classes_give_labels(tmp_path):
    for number in range(6):
        save(tmp_path / "photos" / ("cat", "ape")[number % 2] / f"{number}.png", levels_of(number))
    data = pv.load(tmp_path / "photos", **ALL)
    assert (data.classes, data.train_y.tolist()) == (("ape", "cat"), [0, 0, 0, 1, 1, 1])
    assert torch.equal(data.train_x[0, 0], torch.from_numpy(levels_of(1)) / 255)


def test_folders_of_splits_are_the_splits(tmp_path):
    for split, number in (("train", 5), ("val", 2), ("test", 3)):
        for index in range(number):
            save(tmp_path / "photos" / split / "ab"[index % 2] / f"{index}.png", levels_of(index))
    save(tmp_path / "photos" / "__MACOSX" / "train" / "._0.png", levels_of(0))  # what zip files of Macs leave behind
    data = pv.load(tmp_path / "photos", binarize="dynamic")
    assert (sizes(data), data.kind, data.classes) == ([5, 2, 3], "binary", ("a", "b"))
    assert "shares must not be given where the folders" in refusal(pv.load, tmp_path / "photos", **ALL)


def test_images_of_several_sizes_are_scaled_and_cut_to_squares(tmp_path):
    save(tmp_path / "photos" / "0.png", np.full((8, 16), 77, np.uint8))
    save(tmp_path / "photos" / "1.png", np.pad(np.full((6, 2), 9, np.uint8), ((0, 0), (2, 2))))
    data = pv.load(tmp_path / "photos", image_size=4, **ALL)
    assert data.event_shape == (1, 4, 4)
    assert (data.train_x[0] == 77 / 255).all()
    assert data.train_x[1, 0, :, 0].max() < data.train_x[1, 0, :, 1].min()  # bright in the middle


# Functions ------------------------------------------------------------------------------------------------------------


def test_a_function_in_the_working_folder_returns_the_data_set(tmp_path, monkeypatch):
    (tmp_path / "our_data.py").write_text(
        "import pyrovae as pv\ndef make():\n    return pv.load('ring', num_train=7)\n"
    )
    (tmp_path / "needs.py").write_text("import a_module_that_is_not_there\n")
    monkeypatch.chdir(tmp_path)
    before = list(sys.path)
    assert len(pv.load("our_data:make").train_x) == 7
    assert sys.path == before
    assert "the module our_data has no function nope" in refusal(pv.load, "our_data:nope")
    with pytest.raises(ModuleNotFoundError, match="a_module_that_is_not_there"):
        pv.load("needs:make")


# Sets by name ---------------------------------------------------------------------------------------------------------


def test_cifar10_is_read_as_torchvision_lays_it_out(tmp_path, monkeypatch):
    folder = tmp_path / "cifar-10-batches-py"
    folder.mkdir()
    levels, labels = levels_of(0, (12,), (3, 32, 32)), [*range(10), 3, 4]
    for index, (name, _) in enumerate(
        (*torchvision.datasets.CIFAR10.train_list, *torchvision.datasets.CIFAR10.test_list)
    ):
        part = slice(2 * index, 2 * index + 2)
        (folder / name).write_bytes(pickle.dumps({"data": levels[part].reshape(2, -1), "labels": labels[part]}))
    (folder / "batches.meta").write_bytes(pickle.dumps({"label_names": list("abcdefghij")}))
    monkeypatch.setattr(torchvision.datasets.CIFAR10, "_check_integrity", lambda self: True)
    monkeypatch.setattr(
        torchvision.datasets.CIFAR10, "_load_meta", lambda self: setattr(self, "classes", list("abcdefghij"))
    )
    data = pv.load("cifar10", data_root=tmp_path, num_validation=3)
    assert (sizes(data), data.kind, data.event_shape, data.classes[2]) == ([7, 3, 2], "grey", (3, 32, 32), "c")
    found = torch.cat((data.train_x, data.validation_x, data.test_x))
    assert torch.equal(found, torch.from_numpy(levels).float() / 255)
    assert data.test_y.tolist() == [3, 4]


def test_svhn_and_omniglot_are_read_as_torchvision_lays_them_out(tmp_path, monkeypatch):
    for kind in (torchvision.datasets.SVHN, torchvision.datasets.Omniglot):
        monkeypatch.setattr(kind, "_check_integrity", lambda self: True)
    for split, num in (("train", 5), ("test", 3)):
        content = {"X": levels_of(num, (32, 32), (3, num)), "y": np.arange(1, num + 1)[:, None] + 7}
        scipy.io.savemat(tmp_path / f"{split}_32x32.mat", content)
    svhn = pv.load("svhn", data_root=tmp_path, num_validation=1)
    assert (sizes(svhn), svhn.train_y.tolist()) == ([4, 1, 3], [8, 9, 0, 11])
    assert torch.equal(svhn.test_x[1], torch.from_numpy(levels_of(3, (32, 32), (3, 3))[..., 1]).permute(2, 0, 1) / 255)
    ink = np.full((105, 105), 255, np.uint8)
    ink[:, :50] = 0
    for part, alphabet in (("images_background", "A"), ("images_evaluation", "B")):
        for character in ("one", "two"):
            save(tmp_path / "omniglot-py" / part / alphabet / character / "1.png", ink)
    omniglot = pv.load("omniglot", data_root=tmp_path, num_validation=0, binarize="none")
    assert (omniglot.event_shape, omniglot.train_y.tolist(), omniglot.test_y.tolist()) == ((1, 28, 28), [0, 1], [2, 3])
    assert (omniglot.train_x[..., :12].min(), omniglot.train_x[..., 15:].max()) == (1, 0)


def test_a_set_that_is_not_there_is_refused_in_one_line(tmp_path, monkeypatch):
    def download(self):
        raise OSError("no network")

    for name, kind in (("cifar10", "CIFAR10"), ("svhn", "SVHN"), ("omniglot", "Omniglot")):
        monkeypatch.setattr(getattr(torchvision.datasets, kind), "download", download)
        said = refusal(pv.load, name, data_root=tmp_path)
        assert f"{name} is not in {tmp_path}" in said
        assert "could not be downloaded" in said
    assert list(tmp_path.iterdir()) == []


def test_digits_are_whole_numbers_or_refused_in_one_line():
    try:
        import sklearn  # noqa: F401
    except ImportError:
        assert refusal(pv.load, "digits") == "digits needs scikit-learn: pip install 'pyrovae[digits]'"
        return
    data = pv.load("digits")
    assert (sizes(data), data.kind, data.event_shape) == ([1_257, 180, 360], "count", (1, 8, 8))
    assert sorted(data.train_x.unique().tolist()) == list(range(17))
    assert torch.equal(
        torch.cat([data.train_y, data.validation_y, data.test_y]).bincount(),
        torch.tensor([178, 182, 177, 183, 181, 182, 181, 179, 174, 180]),
    )


def test_names_of_the_labels_are_known(image_root):
    assert pv.load("ring").classes == tuple("01234567")
    data = pv.load("mnist", data_root=image_root, num_validation=0, binarize="none")
    assert data.classes == tuple("0123456789")
    assert torch.equal(data.train_x, (grey_of(NUM_TRAIN).double() / 255).float())
