"""download: fetch a dataset's files, or look through the user's own, and write down what they are.

No file gets its final name before its SHA-256 held.
"""

import sys
from pathlib import Path
from typing import Any

import pooch
import requests

from lockstep.config import Dataset
from lockstep.data.folder import describe
from lockstep.data.sources import SOURCES, Source
from lockstep.errors import UserError, first_line
from lockstep.files import sha256, write_json


def download(dataset: Dataset, output: Path) -> dict[str, Any]:
    """Bring the dataset's files to `output`/raw and describe them in `output`/sources.json.

    A file that is there already with the right content is not fetched again. The user's own files
    stay where they are; a dataset that is embedded in a package has none.

    Raises:
        UserError: a file cannot be had whole from any mirror, or there is nothing at `path`.
    """
    if dataset.path is not None:
        record = _look_through(dataset, Path(dataset.path))
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
        fetcher = pooch.create(
            folder, base_url="", registry={name: known}, urls={name: url}, retry_if_failed=2
        )
        bar = sys.stderr.isatty()
        try:
            path = Path(
                fetcher.fetch(name, downloader=pooch.HTTPDownloader(progressbar=bar, timeout=30))
            )
        except (requests.RequestException, ValueError) as error:
            failures.append(f"{url}: {_reason(error)}")
            continue
        return {"url": url, "bytes": path.stat().st_size, "sha256": known}
    raise UserError(
        f"{dataset}: {name} cannot be had: {'; '.join(failures)}; check the network, or set "
        f"dataset.mirror to an address that has the original files"
    )


def _reason(error: Exception) -> str:
    if isinstance(error, requests.HTTPError) and error.response is not None:
        return f"the server answered {error.response.status_code} {error.response.reason}"
    if isinstance(error, requests.ConnectionError | requests.exceptions.ChunkedEncodingError):
        return "no connection, or it broke off"
    if type(error) is ValueError:  # those of requests are of kinds below it
        return "its SHA-256 is not the known one: the file is altered or cut short"
    return first_line(error)


def _look_through(dataset: Dataset, path: Path) -> dict[str, Any]:
    if dataset.name == "npz":
        if not path.is_file():
            raise UserError(f"dataset.path: {path} is not a file; expected an .npz of your own")
        return {path.name: {"bytes": path.stat().st_size, "sha256": sha256(path)}}
    if not path.is_dir():
        raise UserError(
            f"dataset.path: {path} is not a folder; expected one with a folder per class"
        )
    return {path.name: describe(path)}
