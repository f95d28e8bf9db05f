"""A run of the example, and quiet."""

import pytest
import yaml

from tests.cli._run import EXAMPLE, run


@pytest.fixture(scope="package", autouse=True)
def _quiet():
    """Without jsonargparse's warnings of how Lightning calls it."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("JSONARGPARSE_DEPRECATION_WARNINGS", "off")
        yield


@pytest.fixture(scope="package")
def fitted(tmp_path_factory):
    """A folder with the example's file and a run of two epochs."""
    folder = tmp_path_factory.mktemp("fitted")
    config = yaml.safe_load(EXAMPLE)
    config["trainer"] |= {"enable_progress_bar": False, "max_epochs": 2}
    config["trainer"]["logger"]["init_args"]["save_dir"] = str(folder / "runs")
    (folder / "penguins.yaml").write_text(yaml.safe_dump(config, sort_keys=False))
    run("fit", "--config", folder / "penguins.yaml")
    return folder
