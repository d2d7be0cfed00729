"""The registries that the end-to-end tests share, as URLs; they stay up."""

from __future__ import annotations

import pytest

from tests.e2e.shells import REGISTRIES


@pytest.fixture(scope="module", params=REGISTRIES)
def registry(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> str:
    if request.param == "dir":
        return f"dir://{tmp_path_factory.mktemp('registry')}"
    url: str = request.getfixturevalue(request.param).url
    return url
