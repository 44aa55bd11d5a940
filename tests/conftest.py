"""Fixtures of tiny data and models, and the profile of hypothesis."""

import pytest
from datasets import Dataset
from hypothesis import settings

from fer_pll import FerPllConfig, FerPllImageProcessor
from tiny import make_dataset, tiny_config, tiny_processor

settings.register_profile("fer-pll", deadline=None)  # how long an example takes depends on what else the machine does
settings.load_profile("fer-pll")


@pytest.fixture(scope="session")
def toy_train() -> Dataset:
    return make_dataset(48, seed=0)


@pytest.fixture(scope="session")
def toy_validation() -> Dataset:
    return make_dataset(24, seed=1)


@pytest.fixture
def toy_config() -> FerPllConfig:
    return tiny_config()


@pytest.fixture
def toy_processor() -> FerPllImageProcessor:
    return tiny_processor()
