"""download: fetch a dataset's files, or look through the user's own, and write down what they are.

No file gets its final name before its SHA-256 held.
"""

import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import pooch
import requests
import urllib3
from tqdm import tqdm

from lockstep.errors import UserError, first_line, say
from lockstep.files import atomic, sha256, sweep, write_json
from lockstep.pipeline.config import Dataset
from lockstep.pipeline.data.folder import describe
from lockstep.pipeline.data.sources import SOURCES, Source
from lockstep.pipeline.data.table import describe_images

T = TypeVar("T")

# Seconds that a server may send nothing, and over which it sends at least SLOWEST bytes a second.
PATIENCE = 30.0
SLOWEST = 1024
# Bytes; the largest file that is known has 170 million.
LARGEST = 1 << 30
# How often a server is asked that is busy, or sends something else, and the seconds in between.
ATTEMPTS = 3
PAUSE = 1.0

BROKEN = (
    requests.ConnectionError,
    requests.exceptions.ChunkedEncodingError,
    urllib3.exceptions.ProtocolError,
)


def download(dataset: Dataset, output: Path) -> dict[str, Any]:
    """Bring the dataset's files to `output`/raw and describe them in `output`/sources.json.

    A file that is there already with the right content is not fetched again. The user's own files
    stay where they are; a dataset that is embedded in a package has none.

    Raises:
        UserError: a file cannot be had whole from any mirror, or there is nothing at `path`.
    """
    sweep(output / "sources.json")
    for left in (output / "raw").glob("tmp*"):  # what pooch has left where it was killed
        left.unlink()
    if dataset.path is not None:
        path = Path(dataset.path)
        record = _look_through(dataset, path)
        if dataset.name == "table":
            record[path.name]["images"] = describe_images(path)
    else:
        source = SOURCES[dataset.name]
        mirrors = (dataset.mirror,) if dataset.mirror else source.mirrors
        record = {
            name: _fetch(dataset.name, name, source, mirrors, output / "raw")
            for name in source.files
        }
    described = {"dataset": dataset.name, "files": record}
    write_json(output / "sources.json", described)
    return described


def _fetch(
    dataset: str, name: str, source: Source, mirrors: tuple[str, ...], folder: Path
) -> dict[str, Any]:
    known = source.files[name]
    failures = []
    for mirror in mirrors:
        url = f"{mirror.rstrip('/')}/{name}"
        fetcher = pooch.create(folder, base_url="", registry={name: known}, urls={name: url})
        try:
            path = _patiently(url, partial(fetcher.fetch, name, downloader=_get))
            return {"url": url, "bytes": Path(path).stat().st_size, "sha256": known}
        except UserError as error:
            failures.append(str(error))
        if mirror != mirrors[-1]:
            say(f"{failures[-1]}; asking the next mirror")
    raise UserError(
        f"{dataset}: {name} cannot be had: {'; '.join(failures)}; check the network, or set "
        f"dataset.mirror to an address that has the original files"
    )


def fetch_weights(model: str, weights: str, mirror: str | None, output: Path) -> None:
    """Fetch weights of torchvision's, whose file's name says how its SHA-256 begins.

    Args:
        model: the name of one of torchvision's classifiers.
        weights: the name of some of its weights, such as IMAGENET1K_V1.
        mirror: an address that has the file under its own name, in place of PyTorch's.
        output: the file to write.

    Raises:
        UserError: there are no such weights, or they cannot be had whole.
    """
    from torchvision import models

    try:
        url = models.get_model_weights(model)[weights].url
    except ValueError:
        raise UserError(
            f"model: torchvision has no {model!r}; its weights are of its own"
        ) from None
    except KeyError:
        known = ", ".join(one.name for one in models.get_model_weights(model))
        raise UserError(f"weights: {model} has no {weights!r}; it has {known}") from None
    name = url.rpartition("/")[2]
    begins = name.rpartition("-")[2].partition(".")[0]
    url = f"{mirror.rstrip('/')}/{name}" if mirror else url
    sweep(output)

    def fetch() -> None:
        with atomic(output) as draft:
            _get(url, str(draft), None)
            if not sha256(draft).startswith(begins):
                raise ValueError

    try:
        _patiently(url, fetch)
    except UserError as error:
        raise UserError(
            f"weights: {error}; check the network, set dataset.mirror to an address that has "
            f"{name}, or set weights to the file"
        ) from None


def _patiently(url: str, fetch: Callable[[], T]) -> T:
    """Return what `fetch` returns, and call it again while what goes wrong may pass.

    Raises:
        UserError: says why not, and of what address.
    """
    for attempt in range(1, ATTEMPTS + 1):
        try:
            return fetch()
        except (requests.RequestException, urllib3.exceptions.HTTPError, ValueError) as error:
            why = _reason(error)
            if attempt == ATTEMPTS or not _may_pass(error):
                break
            say(f"{url}: {why}; trying again ({attempt + 1} of {ATTEMPTS})")
            time.sleep(attempt * PAUSE)
    raise UserError(f"{url}: {why}")


class _TooSlow(requests.RequestException):
    pass


def _get(url: str, path: str, _: pooch.Pooch | None) -> None:
    """Write what is at `url` to `path`.

    Raises:
        requests.RequestException, urllib3's HTTPError: it is not to be had, or comes too slowly.
    """
    with (
        requests.get(url, stream=True, timeout=PATIENCE) as response,
        Path(path).open("wb") as file,
    ):
        response.raise_for_status()
        length = response.headers.get("Content-Length", "")
        bar = tqdm(
            total=int(length) if length.isdecimal() else None,
            unit="B",
            unit_scale=True,
            disable=not sys.stderr.isatty(),
        )
        size = came = 0
        since = time.monotonic()
        # What there is, at most so much: to wait for a whole block would be to wait for ever.
        while some := response.raw.read1(1 << 16, decode_content=True):
            file.write(some)
            bar.update(len(some))
            size, came = size + len(some), came + len(some)
            spent = time.monotonic() - since
            if size > LARGEST:
                raise _TooSlow(f"it does not end after {size:,} bytes")
            if spent > PATIENCE:
                if came < SLOWEST * spent:
                    raise _TooSlow(f"it sent {came:,} bytes in {spent:.0f} s, which is too slow")
                since, came = time.monotonic(), 0
        bar.close()


def _may_pass(error: Exception) -> bool:
    """Return whether an error may be gone in a second: who let us wait is not asked again."""
    if isinstance(error, requests.HTTPError) and error.response is not None:
        return error.response.status_code >= 500 or error.response.status_code in (408, 429)
    if isinstance(error, requests.Timeout | urllib3.exceptions.TimeoutError):
        return False
    return type(error) is ValueError or isinstance(error, BROKEN)


def _reason(error: Exception) -> str:
    if isinstance(error, requests.HTTPError) and error.response is not None:
        return f"the server answered {error.response.status_code} {error.response.reason}"
    if isinstance(error, requests.Timeout | urllib3.exceptions.TimeoutError):
        return f"nothing came for {PATIENCE:g} s"
    if isinstance(error, BROKEN):
        return "no connection, or it broke off"
    if type(error) is ValueError:  # those of requests are of kinds below it
        return "its SHA-256 is not the known one: the file is altered or cut short"
    return first_line(error)


def _look_through(dataset: Dataset, path: Path) -> dict[str, Any]:
    if dataset.name == "function":  # its code is the stages' affair
        return {}
    if dataset.name == "npz" or (dataset.name == "table" and not path.is_dir()):
        if not path.is_file():
            what = "an .npz of your own"
            if dataset.name == "table":
                what = "a .csv or .parquet, or a folder of .parquet files"
            raise UserError(f"dataset.path: {path} is not a file; expected {what}")
        return {path.name: {"bytes": path.stat().st_size, "sha256": sha256(path)}}
    if not path.is_dir():
        raise UserError(
            f"dataset.path: {path} is not a folder; expected one with a folder per class"
        )
    return {path.name: describe(path)}
