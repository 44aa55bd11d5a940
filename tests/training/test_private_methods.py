"""What our trainers take from the inside of transformers' Trainer, which a release can change."""

import inspect

import pytest
from transformers import Trainer

from fer_pll import FerPllTrainer
from fer_pll.training.base_trainer import PRIVATE_METHODS, PRIVATE_METHODS_CALLED
from fer_pll.training.pretraining import FerPllPreTrainer


def own_classes() -> list[type]:
    classes = dict.fromkeys([*FerPllTrainer.__mro__, *FerPllPreTrainer.__mro__])
    return [each for each in classes if each.__module__.startswith("fer_pll.")]


@pytest.mark.parametrize("name", [*PRIVATE_METHODS, *PRIVATE_METHODS_CALLED])
def test_they_are_there_in_the_installed_version(name):
    assert inspect.isfunction(getattr(Trainer, name, None)), f"Trainer.{name} is gone: see where ours is used"


def test_the_list_is_what_the_code_overrides():
    overridden = {
        name
        for each in own_classes()
        for name, value in vars(each).items()
        if inspect.isfunction(value) and name.startswith("_") and not name.startswith("__") and hasattr(Trainer, name)
    }
    assert overridden == set(PRIVATE_METHODS)


@pytest.mark.parametrize("name", PRIVATE_METHODS)
def test_ours_take_the_arguments_of_trainer(name):
    """Positional ones in their places; what Trainer does not name goes through `*args` and `**kwargs`."""
    parameters = list(inspect.signature(getattr(Trainer, name)).parameters.values())
    for each in own_classes():
        if name in vars(each):
            signature = inspect.signature(vars(each)[name])
            signature.bind(*parameters)  # all of them by place
            named = {parameter.name: parameter for parameter in parameters[1:]}
            signature.bind(parameters[0], **named)
