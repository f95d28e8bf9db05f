import pytest

from tests import _wandb_reader
from tests.dashboards.report._runs import fit


@pytest.fixture(scope="session")
def fitted(tmp_path_factory):
    """The runs of one fit under three loggers, whole, and its monitor."""
    runs, monitor = fit(tmp_path_factory.mktemp("runs"))
    _wandb_reader.records(runs["cloud"])  # waits for the file
    return runs, monitor
