"""MNIST, downloaded for real from a mirror on the loopback address, where the files are at hand."""

import functools
import http.server
import threading

import pandas as pd
import pytest

from lockstep.pipeline.data.sources import SOURCES
from tests.conftest import REPOSITORY

FILES = REPOSITORY.parent / "shared" / "data" / "MNIST" / "raw"


@pytest.fixture
def mirror():
    if not all((FILES / name).is_file() for name in SOURCES["mnist"].files):
        pytest.skip(f"the four MNIST files are not in {FILES.relative_to(REPOSITORY.parent)}")
    handler = functools.partial(http.server.SimpleHTTPRequestHandler, directory=FILES)
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


@pytest.mark.thorough
@pytest.mark.parametrize(("name", "accuracy"), [("mnist", 0.985), ("fast-mnist", 0.99)])
def test_mnist_is_downloaded_and_learned_in_two_epochs(workspace, mirror, name, accuracy):
    text = (workspace.folder / f"config/{name}.yaml").read_text()
    assert "name: mnist\n" in text
    text = text.replace("name: mnist\n", f"name: mnist\n  mirror: {mirror}\n")
    done = workspace.snakemake("--configfile", workspace.write("config/mirror.yaml", text))
    assert done.returncode == 0, done.stdout + done.stderr
    summary = pd.read_csv(workspace.folder / "results/mirror/summary.csv")
    assert summary["accuracy_last"][0] >= accuracy
    assert summary["epochs"][0] == 2
