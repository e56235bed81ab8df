"""The engine that most tests of `lcrec.prepare` read with."""

import ibis
import pytest


@pytest.fixture(scope="session")
def con():
    return ibis.duckdb.connect()
