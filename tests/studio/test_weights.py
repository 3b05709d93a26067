"""Fetching the published networks, from a stand-in for the hub on the loopback that serves tiny random networks."""

from __future__ import annotations

import hashlib
import http.server
import json
import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from tiny_checkpoint import write_tiny_checkpoint

from studio import weights
from trellis.errors import InputError

ROOT = Path(__file__).resolve().parents[2]
COMMIT = "0123456789abcdef0123456789abcdef01234567"
DINO = "dinov2_vitl14_reg4_pretrain.pth"


class Hub:
    """Serves {repository: {name: content}} the way the hub does: listing, metadata, ranges, checksums, tokens."""

    def __init__(self) -> None:
        self.repositories: dict[str, dict[str, bytes]] = {}
        self.plain: dict[str, bytes] = {}
        self.commit = COMMIT
        self.token: str | None = None
        self.cut: set[str] = set()  # names whose next answer ends half way
        self.lie: set[str] = set()  # names that arrive altered
        self.ranges: list[tuple[str, str]] = []
        self.served: list[str] = []
        hub = self

        class Handler(http.server.BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_HEAD(self):
                hub.answer(self, body=False)

            def do_GET(self):
                hub.answer(self, body=True)

            def log_message(self, *args):
                pass

        self.server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}"
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    def answer(self, request, body: bool) -> None:
        path = request.path.partition("?")[0]
        if self.token and path.startswith(("/api", "/Stable-X")):
            if request.headers.get("Authorization") != f"Bearer {self.token}":
                return self.send(request, 401, b"", {})
        if path.startswith("/api/models/"):
            repository = "/".join(path.split("/")[3:5])
            asked = path.partition("/revision/")[2]
            commit = asked if len(asked) == 40 else self.commit
            files = self.repositories[repository]
            siblings = [
                {"rfilename": name, "size": len(data), **({"lfs": self.lfs(data)} if _is_large(name) else {})}
                for name, data in files.items()
            ]
            listing = {"id": repository, "modelId": repository, "sha": commit, "siblings": siblings, "tags": [],
                       "downloads": 0, "likes": 0, "private": False}  # fmt: skip
            return self.send(request, 200, json.dumps(listing).encode(), {"Content-Type": "application/json"})
        if path.lstrip("/") in self.plain:
            name, data, headers = path.lstrip("/"), self.plain[path.lstrip("/")], {}
        else:
            owner, repository, _, _, name = path.lstrip("/").split("/", 4)
            data = self.repositories[f"{owner}/{repository}"][name]
            headers = {"X-Repo-Commit": self.commit, "ETag": f'"{hashlib.sha256(data).hexdigest()}"'}
        if name in self.lie:
            data = data[:-1] + bytes([data[-1] ^ 1])
        wanted = request.headers.get("Range")
        status = 200
        if wanted and body:
            self.ranges.append((name, wanted))
            start = int(wanted.removeprefix("bytes=").split("-")[0])
            headers["Content-Range"] = f"bytes {start}-{len(data) - 1}/{len(data)}"
            data, status = data[start:], 206
        if body:
            self.served.append(name)
        self.send(request, status, data, {**headers, "Accept-Ranges": "bytes"}, body, cut=body and name in self.cut)

    def send(self, request, status, data, headers, body=True, cut=False) -> None:
        request.send_response(status)
        for key, value in {**headers, "Content-Length": str(len(data))}.items():
            request.send_header(key, value)
        request.end_headers()
        if cut:
            request.wfile.write(data[: len(data) // 2])
            request.wfile.flush()
            request.close_connection = True
        elif body:
            request.wfile.write(data)

    @staticmethod
    def lfs(data: bytes) -> dict:
        return {"sha256": hashlib.sha256(data).hexdigest(), "size": len(data), "pointerSize": 130}


def _is_large(name: str) -> bool:
    return name.endswith(".safetensors")


@pytest.fixture(scope="module")
def contents(tmp_path_factory):
    """The three sources, cut out of the tiny checkpoint in the published layout."""
    folder = write_tiny_checkpoint(tmp_path_factory.mktemp("published"))
    settings = json.loads((folder / "pipeline.json").read_text())
    args = settings["args"]
    vggt = args.pop("vggt_model")
    args["models"]["slat_decoder_rf"] = "ckpts/not_fetched"
    config = json.loads((folder / f"{vggt}.json").read_text())["args"]
    stems = [stem for key, stem in args["models"].items() if key != "slat_decoder_rf"]
    # Published pipelines name DINOv2's torch-hub entry, which is too large for a test: here it is a stem as well.
    files = [f"{stem}.{suffix}" for stem in [*stems, args["image_cond_model"]] for suffix in ("json", "safetensors")]
    pipeline = {name: (folder / name).read_bytes() for name in files}
    torch.save(load_file(folder / f"{args['image_cond_model']}.safetensors"), folder / DINO)
    vggt_weights = (folder / f"{vggt}.safetensors").read_bytes()
    return (
        {**pipeline, "pipeline.json": json.dumps(settings).encode(), "README.md": b"not fetched"},
        {"config.json": json.dumps(config).encode(), "model.safetensors": vggt_weights},
        (folder / DINO).read_bytes(),
    )


@pytest.fixture
def hub(contents):
    hub = Hub()
    hub.repositories = {weights.PIPELINE: dict(contents[0]), weights.VGGT: dict(contents[1])}
    hub.plain = {DINO: contents[2]}
    yield hub
    hub.server.shutdown()
    hub.server.server_close()


def studio_weights(hub: Hub, *args: str, home: Path, token: str | None = None) -> subprocess.CompletedProcess:
    """The command in a process of its own, because the hub client reads its environment when it is imported."""
    environment = {k: v for k, v in os.environ.items() if not k.startswith("HF_")}
    environment |= {"HF_ENDPOINT": hub.url, "HF_HOME": str(home / "hf"), "HF_HUB_DISABLE_TELEMETRY": "1"}
    environment |= {"HF_TOKEN": token} if token else {}
    command = [sys.executable, "-m", "studio", "weights", *args, "--json"]
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=120)


def fetch(hub: Hub, home: Path, *args: str, token: str | None = None) -> subprocess.CompletedProcess:
    url = f"{hub.url}/{DINO}"
    return studio_weights(hub, "fetch", "--to", str(home / "w"), "--dinov2-url", url, *args, home=home, token=token)


def last_line(result: subprocess.CompletedProcess) -> dict:
    return json.loads(result.stdout.splitlines()[-1])


def test_a_fetched_folder_is_a_complete_checkpoint(hub, tmp_path):
    hub.token = "a-token"
    refused = fetch(hub, tmp_path)
    assert refused.returncode == 2 and "HF_TOKEN" in refused.stdout
    result = fetch(hub, tmp_path, token="a-token")
    assert result.returncode == 0, result.stdout + result.stderr
    assert last_line(result)["commits"] == {weights.PIPELINE: COMMIT, weights.VGGT: COMMIT}

    from trellis.pipelines import TrellisVGGTTo3DPipeline

    folder = tmp_path / "w"
    assert not (folder / "README.md").exists() and not list(folder.glob("ckpts/not_fetched*"))
    pipeline = TrellisVGGTTo3DPipeline.from_pretrained(folder)
    assert pipeline.report.complete
    assert studio_weights(hub, "check", "--to", str(folder), home=tmp_path).returncode == 0

    hub.served.clear()
    hub.commit = "f" * 40  # the repositories have moved on, and the folder keeps to its commits
    again = fetch(hub, tmp_path, token="a-token")
    assert last_line(again)["commits"] == {weights.PIPELINE: COMMIT, weights.VGGT: COMMIT}
    assert hub.served == []  # nothing is fetched twice

    weight = folder / "ckpts/slat_flow_model.safetensors"
    weight.write_bytes(weight.read_bytes()[:-1] + b"x")
    damaged = studio_weights(hub, "check", "--to", str(folder), home=tmp_path)
    assert damaged.returncode == 3 and list(last_line(damaged)["damaged"]) == ["ckpts/slat_flow_model.safetensors"]


def test_an_interrupted_fetch_goes_on_where_it_stopped(hub, tmp_path):
    hub.cut = {DINO}
    result = fetch(hub, tmp_path)
    assert result.returncode == 2 and "go on where it stopped" in result.stdout
    half = (tmp_path / "w" / f"{DINO}.part").stat().st_size
    assert 0 < half < len(hub.plain[DINO])
    hub.cut, served = set(), len(hub.served)
    assert fetch(hub, tmp_path).returncode == 0
    assert hub.served[served:] == [DINO] and hub.ranges[-1] == (DINO, f"bytes={half}-")
    assert (tmp_path / "w" / DINO).read_bytes() == hub.plain[DINO]


def test_a_file_that_arrives_altered_is_removed(hub, tmp_path):
    hub.lie = {"model.safetensors"}
    result = fetch(hub, tmp_path)
    assert result.returncode == 2 and "arrived damaged" in result.stdout
    assert not (tmp_path / "w/vggt-object-v0-1/model.safetensors").exists()


def test_download_takes_a_finished_part(hub, tmp_path):
    (tmp_path / "file.part").write_bytes(hub.plain[DINO])
    weights.download(f"{hub.url}/{DINO}", tmp_path / "file")
    assert (tmp_path / "file").read_bytes() == hub.plain[DINO]


def test_bad_arguments_are_refused(tmp_path, hub):
    with pytest.raises(InputError, match="no repository 'other/one'"):
        weights.fetch(tmp_path, {"other/one": "main"})
    with pytest.raises(InputError, match="No networks were fetched"):
        list(weights.check(tmp_path))
    (tmp_path / weights.LOCK).write_text("[")
    with pytest.raises(InputError, match="damaged"):
        list(weights.check(tmp_path))
    result = studio_weights(hub, "fetch", "--to", str(tmp_path), "--revision", "nonsense", home=tmp_path)
    assert result.returncode == 2 and "REPOSITORY=COMMIT" in result.stdout
