"""The server answers its own page on this machine, and nothing else; and the requests that it is made for."""

import http.client
import json
import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from stunet.cli.view import main
from stunet.errors import DataError, UsageError
from stunet.files import write_json
from stunet.runs.viewing import ViewingRequest, open_viewer, write_page
from stunet.viewer.server import ViewServer
from tests.loops import for_each
from tests.viewer.files import image_of, intensities, labels, write


@pytest.fixture
def paths(tmp_path: Path) -> list[Path]:
    """Image, prediction and reference."""
    arrays = {"image": intensities(), "ours": labels(1), "theirs": labels()}
    return [write(image_of(array), tmp_path / f"{name}.nii.gz") for name, array in arrays.items()]


@pytest.fixture
def server(paths: list[Path]) -> Iterator[ViewServer]:
    """A server that answers."""
    with running(ViewingRequest(paths=paths[:2], reference=paths[2])) as made:
        yield made


class running:
    """`with running(request) as server:` serves what is asked for."""

    def __init__(self, request: ViewingRequest) -> None:
        self.server = open_viewer(request)

    def __enter__(self) -> ViewServer:
        self.thread = threading.Thread(target=self.server.serve_forever, kwargs={"poll_interval": 0.01})
        self.thread.start()
        return self.server

    def __exit__(self, *error: object) -> None:
        self.server.shutdown()
        self.thread.join()
        self.server.server_close()


def ask(
    server: ViewServer, path: str, method: str = "GET", token: str | None = None, **headers: str
) -> tuple[int, dict[str, str], bytes]:
    """Status, headers and content of the answer."""
    connection = http.client.HTTPConnection("127.0.0.1", server.server_address[1], timeout=20)
    start = server.token if token is None else token
    connection.request(method, f"/{start}/{path}" if start else path, headers=headers)
    answer = connection.getresponse()
    content = answer.read()
    connection.close()
    return answer.status, {key.lower(): value for key, value in answer.getheaders()}, content


def address_of_case(server: ViewServer) -> str:
    """Where the volumes of the first case are."""
    key = json.loads(ask(server, "cases.json")[2])[0]["id"]
    return f"case/{key}/{json.loads(ask(server, f'case/{key}/case.json')[2])['version']}"


def test_the_page_and_the_volumes_are_there_with_headers_that_keep_them_here(server: ViewServer) -> None:
    volume = f"{address_of_case(server)}/prediction.nii"
    for path, kind in (("", "text/html"), ("niivue.umd.js", "text/javascript"), ("cases.json", "application/json"),
                       ("view.css", "text/css"), (volume, "application/octet-stream")):  # fmt: skip
        status, headers, content = ask(server, path)
        assert (status, headers["content-type"].split(";")[0]) == (200, kind)
        assert len(content) == int(headers["content-length"]) > 0
        assert (headers["x-content-type-options"], headers["cache-control"]) == ("nosniff", "no-store")
        policy = headers["content-security-policy"]
        assert "default-src 'none'; script-src 'self';" in policy
        assert "http" not in policy
    status, headers, content = ask(server, volume, "HEAD")
    assert (status, content) == (200, b"")
    assert int(headers["content-length"]) > 352
    assert server.server_address[0] == "127.0.0.1"


def test_whoever_does_not_know_the_address_gets_nothing(server: ViewServer, paths: list[Path]) -> None:
    good = address_of_case(server)
    refused = [
        ask(server, "/", token=""), ask(server, "/niivue.umd.js", token=""), ask(server, "", token="x" * 22),
        ask(server, "", Host="evil.example"), ask(server, "", Host="evil.example:80"),
        ask(server, f"../{paths[0]}"), ask(server, str(paths[0])), ask(server, "assets/"), ask(server, "case/"),
        ask(server, f"{good}/../../../page.html"), ask(server, f"{good}/image1.nii"), ask(server, f"{good}/other.nii"),
        ask(server, "case/0123456789abcdef/case.json"), ask(server, "%2e%2e/%2e%2e/etc/passwd"),
    ]  # fmt: skip
    assert [status for status, _, _ in refused] == [404] * len(refused)
    assert not any(str(paths[0].parent).encode() in content for _, _, content in refused)
    assert ask(server, "cases.json", "POST")[0] == 501
    listed = ask(server, "cases.json")[2] + ask(server, f"{good.rpartition('/')[0]}/case.json")[2]
    assert str(paths[0].parent).encode() not in listed


@for_each(
    ("asked", "status", "part"),
    [
        ("bytes=0-9", 206, slice(0, 10)),
        ("bytes=352-", 206, slice(352, None)),
        ("bytes=-5", 206, slice(-5, None)),
        ("bytes=10-1000000", 206, slice(10, None)),
        ("bytes=1000000-", 416, slice(0)),
        ("bytes=9-3", 416, slice(0)),
        ("bytes=-", 200, slice(None)),
        ("bytes=0-1,4-5", 200, slice(None)),
        ("lines=1-2", 200, slice(None)),
    ],
)
def test_parts_of_volumes_can_be_asked_for(server: ViewServer, asked: str, status: int, part: slice) -> None:
    path = f"{address_of_case(server)}/image0.nii"
    whole = ask(server, path)[2]
    found, headers, content = ask(server, path, Range=asked)
    assert (found, content) == (status, whole[part])
    if status == 206:
        first = part.indices(len(whole))[0]
        assert headers["content-range"] == f"bytes {first}-{first + len(content) - 1}/{len(whole)}"


def test_what_has_changed_since_is_not_mixed_with_what_was(server: ViewServer, paths: list[Path]) -> None:
    place = address_of_case(server)
    case = f"{place.rpartition('/')[0]}/case.json"
    before = json.loads(ask(server, case)[2])
    write(image_of(labels()), paths[1])
    assert ask(server, f"{place}/prediction.nii")[0] == 409
    after = json.loads(ask(server, case)[2])
    assert before["dice"] < after["dice"] == 1
    assert ask(server, f"{place.rpartition('/')[0]}/{after['version']}/prediction.nii")[0] == 200
    paths[1].write_bytes(paths[1].read_bytes()[:-40])
    status, _, content = ask(server, case)
    assert status == 422
    assert "damaged or truncated" in json.loads(content)["error"]
    assert json.loads(ask(server, "cases.json")[2])[0]["state"] == "failed"


def test_cases_are_sorted_by_dice_the_lowest_first(tmp_path: Path) -> None:
    for name, shift in (("fine", 0), ("poor", 2), ("fair", 1)):
        write(image_of(labels()), tmp_path / "labels" / f"{name}.nii.gz")
        write(image_of(labels(shift)), tmp_path / "out" / f"{name}.nii.gz")
    write(image_of(labels()), tmp_path / "out" / "alone.nii.gz")
    (tmp_path / "out" / "broken.nii.gz").write_bytes(b"nothing")
    with running(ViewingRequest(paths=[tmp_path / "out"], reference=tmp_path / "labels")) as server:
        server.gallery.measure()
        listed = json.loads(ask(server, "cases.json")[2])
    assert [case["name"] for case in listed] == ["poor", "fair", "fine", "alone", "broken"]
    assert [case["state"] for case in listed] == ["measured"] * 4 + ["failed"]
    assert listed[2]["dice"] == 1
    assert listed[3]["dice"] is None


def test_a_port_in_use_is_one_error_with_a_way_out(paths: list[Path]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(DataError, match=f"port {port} cannot be used: Address already in use") as refused:
            open_viewer(ViewingRequest(paths=paths[:2], port=port))
    assert "--port" in refused.value.hint
    with running(ViewingRequest(paths=paths[:2], port=port)) as server:  # free again
        assert server.address.startswith(f"http://127.0.0.1:{port}/")


@for_each(
    ("request_", "error", "says"),
    [
        ({}, UsageError, "nothing to look at"),
        ({"paths": ["image", "ours", "gone"]}, DataError, "no file or folder"),
        ({"paths": ["image", "."]}, UsageError, "is a file, and"),
        ({"paths": [".", ".", "."]}, UsageError, "3 paths are given"),
        ({"paths": ["image", "ours"], "dataset": 3}, UsageError, "-d takes images from the dataset"),
        ({"paths": ["ours"], "port": 70000}, UsageError, "is not a port"),
        ({"paths": ["ours"], "html": "x.pdf"}, UsageError, "does not end with .html"),
        ({"paths": ["ours"], "case": "our"}, DataError, "no case 'our'; did you mean 'ours'"),
        ({"paths": ["."], "html": "x.html"}, UsageError, "a page shows one case, and there are 3"),
    ],
)
def test_what_does_not_make_sense_is_refused(paths: list[Path], request_: dict, error: type, says: str) -> None:
    folder = paths[0].parent

    def path(name: str) -> Path:
        return folder if name == "." else folder / (name if "." in name else f"{name}.nii.gz")

    values = {**request_, "paths": [path(name) for name in request_.get("paths", ())]}
    if "html" in values:
        values["html"] = path(values["html"])
    with pytest.raises(error, match=says):
        (write_page if "html" in values else open_viewer)(ViewingRequest(**values))


@pytest.mark.process
def test_ctrl_c_ends_the_command(paths: list[Path]) -> None:
    command = "import sys; from stunet.cli.view import main; sys.exit(main(sys.argv[1:]))"
    started = subprocess.Popen(
        [sys.executable, "-c", command, *map(str, paths[:2]), "--no_browser"],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert started.stdout is not None
    address = started.stdout.readline().strip()
    port, token = address.removeprefix("http://127.0.0.1:").rstrip("/").split("/")
    connection = http.client.HTTPConnection("127.0.0.1", int(port), timeout=20)
    connection.request("GET", f"/{token}/cases.json")
    assert json.loads(connection.getresponse().read())[0]["name"] == "ours"
    connection.close()
    started.send_signal(signal.SIGINT)
    _, said = started.communicate(timeout=60)
    assert started.returncode == 0
    assert said.splitlines()[-1] == "stopped"


def test_the_last_validation_is_shown_with_its_dataset(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("raw", "preprocessed", "results"):
        (tmp_path / name).mkdir()
        monkeypatch.setenv(f"nnUNet_{name}", str(tmp_path / name))
    assert main(["--last"]) == 3
    assert "no training is finished" in capsys.readouterr().err
    raw = tmp_path / "raw/Dataset007_X"
    fold = tmp_path / "results/Dataset007_X/STUNetTrainer__STUNetPlans_T__3d_fullres/fold_0"
    files = raw / "imagesTr/a_0000.nii.gz", raw / "labelsTr/a.nii.gz", fold / "validation/a.nii.gz"
    for path, array in zip(files, (intensities(), labels(), labels(1)), strict=True):
        path.parent.mkdir(parents=True)
        write(image_of(array), path)
    values = {"background": 0, "one": 1, "two": 2, "three": 3}
    description = {"channel_names": {"0": "CT"}, "labels": values, "numTraining": 1, "file_ending": ".nii.gz"}
    write_json(raw / "dataset.json", description)
    write_json(fold / "validation/summary.json", {"foreground_mean": {"Dice": 0.5}, "mean": {}})
    (fold / "checkpoint_final.pth").touch()
    assert main(["--last", "--html", str(tmp_path / "page.html")]) == 0
    assert f"the validation of Dataset007_X/{fold.parent.name}/fold_0" in capsys.readouterr().err
    assert "Dice" in (tmp_path / "page.html").read_text()
    assert main(["--last", "-d", "7"]) == 2
