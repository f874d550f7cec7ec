"""What the tests of the methods share."""

import pytest
from tiny_models import Planted, make_planted


@pytest.fixture(scope="package")
def planted(tmp_path_factory: pytest.TempPathFactory) -> Planted:
    """A tokenized pool of two kinds of document; nothing writes to it."""
    return make_planted(tmp_path_factory.mktemp("planted"))
