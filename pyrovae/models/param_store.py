"""The base class of models and of their parts."""

from typing import Self

from pyrovae.common import RegisteredModule, register as register, unique_name as unique_name
from pyrovae.models.construction import Recipe, recipe_of


class Module(RegisteredModule):
    """An `nn.Module` that remembers what it was made with, and that can be pickled after Pyro has registered it.

    `made_with` is what `VAE.save` writes in place of code. A subclass has nothing to do for it.
    """

    made_with: Recipe | None

    def __new__(cls, *args: object, **kwargs: object) -> Self:
        module = super().__new__(cls)
        vars(module)["made_with"] = recipe_of(cls, args, kwargs)
        return module
