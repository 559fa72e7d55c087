"""Settings for every test: one torch thread, slow and gpu tests on request, shared data where present."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

DATA_VARIABLE = "HUABEN_TEST_DATA"


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--slow", action="store_true", help="run the tests marked slow, too")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    skips = {"network": pytest.mark.skip(reason="the suite runs offline")}
    if not config.getoption("--slow"):
        skips["slow"] = pytest.mark.skip(reason="slow; add --slow to run it")
    if any("gpu" in item.keywords for item in items):
        import torch

        if not torch.cuda.is_available():
            skips["gpu"] = pytest.mark.skip(reason="torch sees no GPU")
    for item in items:
        for marker, skip in skips.items():
            if item.get_closest_marker(marker) is not None:
                item.add_marker(skip)


@pytest.fixture(autouse=True, scope="session")
def _one_thread() -> None:
    import torch

    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def shared_data() -> Callable[[str], Path]:
    """Return a function from a name below the folder in ``HUABEN_TEST_DATA`` to its path; skips where it is absent."""

    def find(name: str) -> Path:
        root = os.environ.get(DATA_VARIABLE)
        if not root:
            pytest.skip(f"{DATA_VARIABLE} names no folder of test data")
        path = Path(root) / name
        if not path.exists():
            pytest.skip(f"no {name} in {DATA_VARIABLE}")
        return path

    return find
