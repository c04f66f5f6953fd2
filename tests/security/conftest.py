"""What several tests of confinement share."""

from __future__ import annotations

import pytest

from tests.security.hostile import KERNELS, Kernel


@pytest.fixture(params=[*KERNELS.values()], ids=[*KERNELS])
def kernel(request: pytest.FixtureRequest) -> Kernel:
    """A kernel that allows more or less, and the user whose run it is."""
    made: Kernel = request.param
    return made
