"""Files of models: written whole or not at all, and if they are bad refused in one line, without running their code."""

import helpers
import pytest
import torch
from helpers import small_vae

import pyrovae as pv

X = torch.linspace(-2, 2, 8).view(4, 2)


def test_a_file_is_replaced_whole_or_not_at_all(tmp_path, monkeypatch):
    vae, path = small_vae(), tmp_path / "vae.pt"
    vae.save(path)
    before = path.read_bytes()
    small_vae(hidden=(9,)).save(path)
    assert pv.VAE.load(path).encoder.layers[0].out_features == 9
    path.write_bytes(before)

    def half(content, file):
        file.write(before[:100])
        raise RuntimeError("[enforce fail at inline_container.cc:659] . unexpected pos 64 vs 0\nand more")

    monkeypatch.setattr(torch, "save", half)
    assert helpers.refusal(vae.save, path).startswith(f"{path} cannot be written: [enforce fail")
    assert path.read_bytes() == before
    assert [file.name for file in tmp_path.iterdir()] == ["vae.pt"]


def test_places_that_cannot_be_written_to_are_refused(tmp_path):
    vae = small_vae()
    message = helpers.refusal(vae.save, tmp_path / "none" / "vae.pt")
    assert message == f"path must lie in a folder that exists, got {tmp_path / 'none' / 'vae.pt'}"
    assert helpers.refusal(vae.save, tmp_path) == f"path must be a file, got the folder {tmp_path}"


class Malicious:
    def __reduce__(self):
        return print, ("code of the file runs",)


def broken(path, how):
    vae = small_vae()
    vae.save(path)
    content = torch.load(path, weights_only=True)
    arguments = content["arguments"]
    torch.save(how(content, arguments), path) if callable(how) else path.write_bytes(how)


def changed(content, **new):
    return {**content, **new}


DAMAGED = "cannot be loaded: "
BAD_FILES = {
    "empty": (b"", "is not a file that save wrote (it holds no tensors that torch.save wrote)"),
    "text": (b"hello", "is not a file that save wrote ("),
    "code": (lambda c, a: Malicious(), "is not a file that save wrote (UnpicklingError)"),
    "a whole model": (lambda c, a: small_vae(), "is not a file that save wrote (UnpicklingError)"),
    "a state": (
        lambda c, a: small_vae().state_dict(),
        "is not a file that save wrote: load_state_dict takes a state",
    ),
    "a tensor": (lambda c, a: X, "is not a file that save wrote"),
    "another format": (lambda c, a: changed(c, format="pyrovae model 9"), "is not a file that save wrote"),
    "another model": (lambda c, a: changed(c, kind="vqvae.VQVAE"), f"{DAMAGED}it holds a VQVAE and not a VAE"),
    "a foreign class": (
        lambda c, a: changed(c, arguments={**a, "likelihood": {"kind": "os.system", "arguments": {"items": []}}}),
        f"{DAMAGED}a module must be one of pyrovae's, got 'os.system'",
    ),
    "a wrong argument": (
        lambda c, a: changed(c, arguments={**a, "latent_dim": 0}),
        f"{DAMAGED}latent_dim must be a whole number >= 1, got 0",
    ),
    "a model that is far larger": (
        lambda c, a: changed(c, arguments={**a, "hidden": (2**39,)}),
        f"{DAMAGED}it would need a tensor of 1,099,511,627,776 numbers, and holds 107",
    ),
    "an unknown argument": (
        lambda c, a: changed(c, arguments={**a, "colour": 1}),
        f"{DAMAGED}VAE takes no colour",
    ),
    "a lost weight": (
        lambda c, a: changed(c, state={n: v for n, v in c["state"].items() if n != "encoder.output.bias"}),
        f"{DAMAGED}its encoder.output.bias is not there, and that of the model (4,)",
    ),
    "a lost field": (lambda c, a: {n: v for n, v in c.items() if n != "plain"}, DAMAGED),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD_FILES)
def test_bad_files_are_one_line_and_run_no_code(name, tmp_path, capfd):
    path, (how, message) = tmp_path / "vae.pt", BAD_FILES[name]
    broken(path, how)
    found = helpers.refusal(pv.VAE.load, path)
    assert found.startswith(f"{path} {message}") if message.endswith((DAMAGED, "(")) else found == f"{path} {message}"
    assert capfd.readouterr().out == ""


def test_a_file_that_was_cut_off_is_refused(tmp_path):
    path = tmp_path / "vae.pt"
    small_vae().save(path)
    whole = path.read_bytes()
    for share in (0.2, 0.5, 0.99):
        path.write_bytes(whole[: int(share * len(whole))])
        assert helpers.refusal(pv.VAE.load, path).startswith(f"{path} is not a file that save wrote")
    assert (
        helpers.refusal(pv.VAE.load, tmp_path / "none.pt")
        == f"path must be a file that exists, got {path.parent / 'none.pt'}"
    )
