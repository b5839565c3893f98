"""What several of the unit tests need."""

import contextlib
import threading
import time
from collections import defaultdict
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import hypothesis
import numpy as np
import pytest

from lockstep.errors import UserError
from lockstep.files import sha256, write_json
from lockstep.pipeline.config import Dataset
from lockstep.pipeline.data.manifest import write_manifest
from lockstep.pipeline.record import VERSION, Arithmetic, Place, Segment, Training, write_training
from lockstep.pipeline.stages.prepare import prepare

# The same examples each time: what fails on one machine fails on all.
hypothesis.settings.register_profile("lockstep", deadline=None, derandomize=True, database=None)
hypothesis.settings.load_profile("lockstep")


@pytest.fixture
def repository():
    """The folder that the workflow lies in."""
    return Path(__file__).parents[2]


@pytest.fixture(scope="session")
def refused():
    """A context that must end in a UserError of one line, in which all the given words are."""

    @contextlib.contextmanager
    def context(*words):
        with pytest.raises(UserError) as caught:
            yield caught
        line = str(caught.value)
        assert "\n" not in line
        for word in words:
            assert str(word) in line

    return context


@pytest.fixture(scope="session")
def digits(tmp_path_factory):
    """The folder of the prepared digits."""
    folder = tmp_path_factory.mktemp("digits")
    prepare(Dataset(), folder)
    return folder


@pytest.fixture(scope="module")
def arithmetic_as_it_was():
    """What a run sets for its own process must not stay for other tests."""
    import torch

    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)
    torch.set_flush_denormal(False)
    torch.use_deterministic_algorithms(False)


@pytest.fixture(scope="session")
def write_part():
    """A function that writes one part of a prepared dataset, with empty images of 1 x 1 x 1, and
    its manifest."""

    def write(folder, labels):
        folder.mkdir(parents=True)
        np.save(folder / "images.npy", np.zeros((len(labels), 1, 1, 1), np.uint8))
        np.save(folder / "labels.npy", np.asarray(labels, np.int64))
        names = [str(label) for label in range(max(labels) + 1)]
        record = {
            "name": "little",
            "task": "classification",
            "shape": [1, 1, 1],
            "classes": names,
            "mean": [0],
            "std": [1],
        }
        files = (f"{folder.name}/{name}.npy" for name in ("images", "labels"))
        record["sha256"] = {file: sha256(folder.parent / file) for file in files}
        write_manifest(folder.parent, record)

    return write


@pytest.fixture(scope="session")
def write_records():
    """A function that writes what train and evaluate leave of a run, but for its models."""

    def write(folder, run, model="ab" * 32):
        folder.mkdir()
        for name in ("history.csv", "predictions.csv", "confusion.csv"):
            (folder / name).write_text(f"of {name}\n")
        digest = {name: sha256(folder / f"{name}.csv") for name in ("predictions", "confusion")}
        same = {"model_sha256": model, "snapshots_sha256": "cd" * 32}
        part = Segment(first_step=0, last_step=6, started="", bytes_sent=[3, 4])
        training = Training(
            version=VERSION,
            configuration=run,
            dataset="digits",
            task="classification",
            data_sha256={},
            classes=[],
            shape=[1, 28, 28],
            outputs=10,
            image=None,
            data="data",
            mean=[],
            std=[],
            partition_sha256="0" * 64,
            partition="shards.csv",
            partition_edited=False,
            initial_sha256="0" * 64,
            parameters=5,
            trained_parameters=5,
            bfloat16_distance=None,
            launcher="python",
            backend="gloo",
            ranks=[Place(processor="", device="cpu")],
            arithmetic=Arithmetic(libraries={}, caps={}),
            versions={},
            code={},
            git=None,
            best=None,
            stopped_early=False,
            parameters_sha256="0" * 64,
            buffers_sha256=None,
            optimizer_sha256="0" * 64,
            history_sha256="0" * 64,
            history_csv_sha256=sha256(folder / "history.csv"),
            snapshots={},
            steps=6,
            images_per_second=9.6,
            seconds=2.0,
            bytes_sent=[3, 4],
            peak_memory=5_000_000,
            checkpoint_pauses={},
            started="",
            segments=[part],
            **same,
        )
        shares = dict.fromkeys(("precision", "recall", "f1"), 0.5)
        shares_of_all = dict.fromkeys(("accuracy", "balanced_accuracy", "macro_f1"), 0.5)
        of_class = {"a": {"samples": 2, "correct": 1, **shares}}
        measured = {"correct": 1, "loss": 1.0, "per_class": of_class, **shares_of_all}
        measured["majority"] = 1.0
        metrics = {"last": measured, "averaged": measured, **same}
        metrics |= {f"{name}_sha256": value for name, value in digest.items()}
        averaged = {"snapshots": [], "snapshots_sha256": "cd" * 32, "model_sha256": "ef" * 32}
        write_training(folder, training)
        write_json(folder / "averaged.json", averaged)
        write_json(folder / "metrics.json", metrics | {"averaged_sha256": "ef" * 32})

    return write


@pytest.fixture(scope="session")
def litter():
    """A function that lists every file below a folder, of whatever name."""

    def find(folder):
        return sorted(
            path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()
        )

    return find


class Site:
    """A web site on this machine: what it answers to each path, and what it was asked for."""

    def __init__(self):
        # Of status, body, the length that the header says, and the seconds before each byte.
        self.answers = defaultdict(list)
        self.asked = []
        site = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self):
                site.asked.append(self.path)
                answers = site.answers[self.path]
                # The last answer stays.
                status, body, length, pause = answers.pop(0) if len(answers) > 1 else answers[0]
                self.send_response(status)
                self.send_header("Content-Length", str(length))
                self.end_headers()
                for start in range(len(body)) if pause else ():
                    time.sleep(pause)
                    try:
                        self.wfile.write(body[start : start + 1])
                    except OSError:  # nobody waits any more
                        return
                self.wfile.write(b"" if pause else body)

            def log_message(self, *args):
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_address[1]}"

    def answer(self, path, body, status=200, length=None, pause=0):
        """Say what comes next for `path`."""
        self.answers[path].append((status, body, len(body) if length is None else length, pause))


@pytest.fixture
def site(monkeypatch):
    """A running web site that no proxy stands before."""
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    here = Site()
    thread = threading.Thread(target=here.server.serve_forever, args=(0.01,))
    thread.start()
    yield here
    here.server.shutdown()
    thread.join()
    here.server.server_close()
