"""Models in files: architecture and weights, as tensors and plain values alone."""

from collections.abc import Mapping
from itertools import chain
from pathlib import Path
from typing import Any, BinaryIO, Self

import torch
from torch import Tensor, nn

from pyrovae.common import (
    InputError,
    SizeLimit,
    first_line,
    fixed_generators,
    load_tensors,
    require,
    rules,
    shown,
    warn,
    write_atomically,
)
from pyrovae.models.construction import Recipe, decoded, encoded, is_ours, is_plain, kind_name, known_kinds, made
from pyrovae.models.networks.network import Network
from pyrovae.models.param_store import Module

FORMAT = "pyrovae model 1"
_PLAIN_TABLE = rules.table(rules.anything)
_CONTENT = rules.fields(
    {
        "kind": rules.text,
        "arguments": _PLAIN_TABLE,
        "own": rules.table(rules.text),
        "parts": rules.table(rules.text),
        "plain": rules.table(_PLAIN_TABLE),
        "training": rules.table(rules.flag),
        "frozen": rules.each(rules.text),
        "state": _PLAIN_TABLE,  # a part of the user's own may keep something else than tensors
        "buffers": rules.table(rules.dense),
    }
)


class SavedModel(Module):
    """Gives a model `save` and `load`."""

    def save(self, path: str | Path) -> None:
        """Writes the model to a file: what it was made with, and all of its parameters and buffers.

        The file holds tensors and plain values alone, and no code. A file that exists is replaced once the new one is
        whole. A part of your own (a network, a likelihood) has its weights in the file and not its code, which a
        warning says; `load` then takes that part.

        Args:
            path: The file, in a folder that exists.

        Raises:
            InputError: If the file cannot be written, or what it would hold cannot be loaded again, because a part was
                replaced after the model was made; the file is then as it was.

        Example:
            >>> vae = pv.VAE((2,), latent_dim=1, hidden=(8,), likelihood=pv.Gaussian(0.3))
            >>> vae.save("vae.pt")
            >>> same, x = pv.VAE.load("vae.pt"), torch.randn(5, 2)
            >>> torch.equal(same.reconstruct(x), vae.reconstruct(x))
            True
        """
        path = Path(path)
        require(path.parent.is_dir(), f"path must lie in a folder that exists, got {path}")
        require(not path.is_dir(), f"path must be a file, got the folder {path}")
        content = _content_of(self)

        def write(file: BinaryIO) -> None:
            torch.save(content, file)
            read = _read(path, file)
            if not content["own"]:
                _made_again(type(self), read, {})

        try:
            write_atomically(path, write)
        except Exception as error:  # pickling may raise anything, and torch's writer a RuntimeError for an OSError
            raise InputError(f"{path} cannot be written: {first_line(error)}") from error
        if content["own"]:
            warn(f"{path} holds no code of your own; to load it say {_call(type(self), path, content['own'])}")

    @classmethod
    def load(cls, path: str | Path, **own: Any) -> Self:
        """Returns the model that `save` wrote: on the CPU, with the same dtypes, modes and frozen parameters.

        Loading runs no code from the file, and makes classes of pyrovae alone.

        Args:
            path: The file.
            own: The parts of your own, by the names of the constructor's arguments: `encoder=MyEncoder()`. They get
                the weights in the file.

        Raises:
            InputError: If the file is not one that `save` wrote, holds another class of model, or if parts of your own
                are missing, too many, or have other parameters than those in the file.

        Example:
            >>> vae = pv.VAE((2,), latent_dim=1, hidden=(8,), likelihood=pv.Gaussian(0.3))
            >>> vae.save("vae.pt")
            >>> pv.VAE.load("vae.pt").event_shape
            (2,)
        """
        path = Path(path)
        content = _read(path)
        try:
            _CONTENT("", content)
            kind, missing = content["kind"], {n: what for n, what in content["own"].items() if n not in own}
            require(kind == kind_name(cls), f"it holds a {kind.rpartition('.')[2]} and not a {cls.__name__}")
            needed = ", ".join(f"{name} ({what})" for name, what in missing.items())
            require(not missing, f"it holds no code of {needed}: say {_call(cls, path, missing)}")
            for name in own:
                require(name in content["own"], f"{name} is in the file and cannot be given")
            return _made_again(cls, content, own)
        except Exception as error:  # a file that was changed, or that another version wrote, may raise anything
            raise InputError(f"{path} cannot be loaded: {first_line(error)}") from error


def _content_of(model: Module) -> dict[str, Any]:
    recipe = getattr(model, "made_with", None)  # which a model that another version pickled has not
    if recipe is None:
        raise InputError(f"{type(model).__name__} does not know what it was made with")
    arguments, own = {}, {}
    for name, value in recipe.arguments.items():
        unknown = recipe.unknown.get(name)
        made_with = getattr(model._modules.get(name), "made_with", None)  # a function may have made a part of ours
        if unknown and isinstance(made_with, Recipe) and is_ours(made_with.kind) and not made_with.unknown:
            value, unknown = made_with, None
        if unknown:
            own[name] = unknown
        else:
            arguments[name] = encoded(value)
    state, modules = model.state_dict(), dict(model.named_modules())
    return {
        "format": FORMAT,
        "kind": kind_name(type(model)),
        "arguments": arguments,
        "own": own,
        "parts": _parts(model),
        "plain": {name: _plain_attributes(part) for name, part in modules.items() if is_ours(type(part))},
        "training": {name: module.training for name, module in modules.items()},
        "frozen": [name for name, parameter in model.named_parameters() if not parameter.requires_grad],
        "state": state,
        "buffers": {name: buffer.detach() for name, buffer in model.named_buffers() if name not in state},
    }


def _made_again(cls: type, content: Mapping[str, Any], own: Mapping[str, Any]) -> Any:
    kinds = known_kinds(Module)
    held = (*content["state"].values(), *content["buffers"].values())
    # The initial parameters, which those of the file replace, are as large as those.
    with fixed_generators(0), SizeLimit("it", held):
        arguments = {name: decoded(value, kinds) for name, value in content["arguments"].items()}
        model = made(cls, {**arguments, **own})
    parts, saved_parts = _parts(model), content["parts"]
    for name in sorted(parts.keys() | saved_parts.keys()):
        was, now = (found.get(name, "module of your own").rpartition(".")[2] for found in (saved_parts, parts))
        require(was == now, f"its {name} is a {was}, and a model made with the same arguments has a {now}")
    modules = dict(model.named_modules())
    for name, attributes in content["plain"].items():
        require(name in modules, f"plain must be of the model's parts, and {shown(name)[:60]} is not one")
        for key, value in _plain_attributes(modules[name]).items():
            if key in attributes:
                place = ".".join(filter(None, ("plain", name, key)))
                setattr(modules[name], key, _changed_attribute(place, value, attributes[key]))
    _load_tensors(model, content["state"], content["buffers"])
    dtypes = {parameter.dtype for parameter in model.parameters()}
    require(bool(own) or len(dtypes) < 2, f"parameters must be of one dtype, got {', '.join(map(str, dtypes))}")
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name not in content["frozen"])
    for name, module in modules.items():
        module.training = content["training"].get(name, module.training)  # one of your own may have other modules
    return model


@torch.no_grad()
def _load_tensors(model: nn.Module, state: Mapping[str, Any], buffers: Mapping[str, Tensor]) -> None:
    """Gives the model the parameters and buffers of the file, with their dtypes."""
    saved = {name: value for name, value in chain(state.items(), buffers.items()) if isinstance(value, Tensor)}
    parameters, own_buffers = (
        model.named_parameters(remove_duplicate=False),
        model.named_buffers(remove_duplicate=False),
    )
    tensors = dict(chain(parameters, own_buffers))
    for name in sorted(saved.keys() | tensors.keys()):
        was, now = (tuple(found[name].shape) if name in found else "not there" for found in (saved, tensors))
        require(was == now, f"its {name[:60]} is {was}, and that of the model {now}")
        rules.dense(name, saved[name])
        same = saved[name].is_floating_point() == tensors[name].is_floating_point() and not saved[name].is_complex()
        require(same, f"{name} must be of {tensors[name].dtype}, got {saved[name].dtype}")
        tensors[name].data = tensors[name].data.to(saved[name].dtype)
    model.load_state_dict(state)
    for name, buffer in buffers.items():
        tensors[name].copy_(buffer)


def _changed_attribute(name: str, made: object, saved: Any) -> Any:
    """Returns an attribute as it was saved: a float or a truth value may have changed, and all others are as made."""
    if isinstance(made, bool):
        rules.flag(name, saved)
        return saved
    if isinstance(made, float):
        rules.number()(name, saved)
        require(made <= 0 or saved > 0, f"{name} must be > 0, got {shown(saved)}")
        return float(saved)
    rules.exactly(made)(name, saved)
    return made


def _parts(model: nn.Module) -> dict[str, str]:
    """Returns the classes of the parts that are of this package, and of the layers of its networks, by their places."""
    found = {name: kind_name(type(part)) for name, part in model.named_modules() if is_ours(type(part))}
    for place, part in model.named_modules():
        if isinstance(part, Network) and is_ours(type(part)):
            found |= {f"{place}.{name}": kind_name(type(layer)) for name, layer in part.named_modules() if name}
    return found


def _plain_attributes(module: nn.Module) -> dict[str, Any]:
    """Returns the public attributes that are plain values: a temperature may have changed in training."""
    found = {name: value for name, value in vars(module).items() if name != "training" and not name.startswith("_")}
    return {name: value for name, value in found.items() if is_plain(value)}


def _read(path: Path, opened: BinaryIO | None = None) -> dict[str, Any]:
    require(opened is not None or path.is_file(), f"path must be a file that exists, got {path}")
    try:
        content = load_tensors(opened or path)
    except Exception as error:  # torch.load has no error of its own: a damaged file may raise anything
        cause = error if isinstance(error, InputError) else type(error).__name__
        raise InputError(f"{path} is not a file that save wrote ({cause})") from error
    readable = isinstance(content, dict) and content.get("format") == FORMAT
    hint = ": load_state_dict takes a state" if isinstance(content, dict) and "format" not in content else ""
    require(readable, f"{path} is not a file that save wrote{hint}")
    return content


def _call(cls: type, path: Path, own: Mapping[str, str]) -> str:
    return f'{cls.__name__}.load("{path}", {", ".join(f"{name}=..." for name in own)})'
