"""Shared by all tests: one torch thread, and one data root for the session, shared by its workers."""

import os
from pathlib import Path

import pytest

pytest_plugins = ["browsing"]
os.environ.setdefault("OMP_NUM_THREADS", "1")


@pytest.fixture(autouse=True, scope="session")
def data_root(tmp_path_factory: pytest.TempPathFactory):
    """Stores are built once in a folder of this session, never in the reader's own data root."""
    base = tmp_path_factory.getbasetemp()
    root = (base.parent if os.environ.get("PYTEST_XDIST_WORKER") else base) / "data-root"
    before = os.environ.get("SIMMIM_DATA")
    os.environ["SIMMIM_DATA"] = str(root)
    yield Path(root)
    if before is None:
        del os.environ["SIMMIM_DATA"]
    else:
        os.environ["SIMMIM_DATA"] = before


@pytest.fixture(autouse=True, scope="session")
def one_thread():
    """The machine's cores go to test workers; torch is imported only by tests that use it."""
    import torch

    torch.set_num_threads(1)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Tests that need a browser are marked."""
    for item in items:
        if "browser" in getattr(item, "fixturenames", ()):
            item.add_marker(pytest.mark.browser)
