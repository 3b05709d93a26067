"""The named endpoints, as another program calls them."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import httpx
import pytest
import trimesh
from gradio_client import Client, handle_file
from gradio_client.exceptions import AppError

ROOT = Path(__file__).resolve().parents[2]
QUICK = {"texture_size": 512, "video_frames": 4, "video_size": 64}


@pytest.fixture(scope="module")
def client(server, tmp_path_factory) -> Client:
    return Client(server, download_files=tmp_path_factory.mktemp("downloads"), verbose=False)


def test_the_example_of_the_readme_runs(server, photos, tmp_path, monkeypatch, capsys):
    section = (ROOT / "README.md").read_text().split("## From another program")[1]
    example = re.search(r"```python\n(.*?)```", section, re.DOTALL).group(1)
    (tmp_path / "photos").mkdir()
    for number, file in enumerate(photos):
        Path(file).rename(tmp_path / "photos" / f"{number}.png")
    monkeypatch.chdir(tmp_path)
    exec(compile(example.replace("http://127.0.0.1:7860", server), "README.md", "exec"), {})
    assert len(trimesh.load(tmp_path / "chair.glb", force="mesh").faces) > 0
    assert "dB" in capsys.readouterr().out


def test_endpoints_are_named_and_typed(client):
    endpoints = client.view_api(return_format="dict")["named_endpoints"]
    assert set(endpoints) == {"/reconstruct", "/find_cameras", "/bake_again", "/refine"}
    names = [parameter["parameter_name"] for parameter in endpoints["/reconstruct"]["parameters"]]
    assert names == ["photos", "preset", "seed", "settings"]
    assert endpoints["/reconstruct"]["description"].startswith("Turn photos of one object")


def test_cameras_come_without_a_model_and_a_model_is_baked_again(client, photos):
    found = client.predict([handle_file(file) for file in photos], api_name="/find_cameras")
    assert len(found["cameras"]["frames"]) == len(found["views"]) == 4
    assert 0 <= found["views"][0]["trust"] <= 1
    files = [handle_file(file) for file in photos[:2]]
    model, splats, turntable, report = client.predict(files, "draft", 3, QUICK, api_name="/reconstruct")
    assert [Path(file).suffix for file in (model, splats, turntable)] == [".glb", ".ply", ".mp4"]
    assert report["seed"] == 3 and report["settings"]["video_frames"] == 4
    model, again = client.predict(report["run"], 0.95, 768, api_name="/bake_again")
    assert trimesh.load(model, force="mesh").visual.material.baseColorTexture.size == (768, 768)
    assert "structure" in again["cached"] and again["views"][1]["camera"] is None
    cameras = client.predict(files, api_name="/find_cameras")["cameras"]
    pose = cameras["frames"][1]["transform_matrix"]
    pose[0], pose[1] = pose[1], [-value for value in pose[0]]  # a quarter turn about the axis of depth
    _, edited = client.predict(report["run"], 0.95, 768, cameras, api_name="/bake_again")
    assert [bool(view["camera"]) for view in edited["views"]] == [False, True] and "structure" in edited["cached"]
    with pytest.raises(AppError, match="What was sent lists no cameras"):
        client.predict(report["run"], 0.95, 768, {"frames": 3}, api_name="/bake_again")


def test_what_cannot_be_is_answered_with_a_sentence(client, photos):
    with pytest.raises(AppError, match="There is no setting 'nonsense'"):
        client.predict([handle_file(photos[0])], "draft", 0, {"nonsense": 1}, api_name="/reconstruct")
    with pytest.raises(AppError, match="There is no such run"):
        client.predict("../../etc", 0.95, 1024, api_name="/bake_again")
    with pytest.raises(AppError, match="needs photographs"):
        client.predict(handle_file(_cube(photos)), [], None, 20, {}, api_name="/refine")


def test_no_file_of_the_server_can_be_named_as_an_upload(server, server_folder, client):
    secret = server_folder / "log"
    for path in (str(secret), "/etc/passwd", f"{ROOT}/README.md"):
        file = {"path": path, "meta": {"_type": "gradio.FileData"}}
        with pytest.raises((AppError, ValueError, httpx.HTTPError)):
            client.predict([file], api_name="/find_cameras")
        assert httpx.get(f"{server}/gradio_api/file={path}").status_code in (403, 404)
    for path in ("studio-files/x/run.json", "studio-files/../log", "studio-assets/..%2fstyle.css"):
        assert httpx.get(f"{server}/{path}").status_code == 404


def _cube(photos: list[str]) -> str:
    file = Path(photos[0]).with_name("cube.glb")
    trimesh.creation.box().export(file)
    return str(file)


def test_the_endpoints_are_tools_of_the_model_context_protocol(server, photos):
    pytest.importorskip("mcp", reason="gradio[mcp] is not installed")
    import anyio
    from mcp import ClientSession
    from mcp.client.streamable_http import streamablehttp_client

    def uploaded(photo: str) -> dict:
        answer = httpx.post(f"{server}/gradio_api/upload", files={"files": Path(photo).open("rb")})
        return as_file(answer.json()[0])

    async def use() -> None:
        address = f"{server}/gradio_api/mcp/"
        async with streamablehttp_client(address) as (read, write, _), ClientSession(read, write) as session:
            await session.initialize()
            tools = {tool.name: tool.description for tool in (await session.list_tools()).tools}
            assert set(tools) == {"reconstruct", "find_cameras", "bake_again", "refine"}
            assert tools["reconstruct"].startswith("Turn photos of one object")

            async def call(tool: str, **arguments) -> tuple[bool, str]:
                answer = await session.call_tool(tool, arguments)
                return not answer.isError, " ".join(part.text for part in answer.content)

            views = [uploaded(photo) for photo in photos[:2]]
            fine, found = await call("find_cameras", photos=views)
            assert fine and len(ast.literal_eval(found)["views"]) == 2
            fine, made = await call("reconstruct", photos=views, preset="draft", settings=QUICK)
            assert fine and "mesh.glb" in made and "turntable.mp4" in made
            assert "There is no such run" in (await call("bake_again", run="nobody"))[1]
            # Gradio's own client would read such files and hand them in.
            for path in ("/etc/passwd", "file:///etc/passwd", f"{views[0]['path']}/../../../log", "../log"):
                assert not (await call("find_cameras", photos=[as_file(path)]))[0]
            for settings in (as_file("/etc/passwd"), {"seed": as_file("/etc/passwd")}):
                fine, why = await call("reconstruct", photos=views, settings=settings)
                assert not fine and "Input validation error" in why

    anyio.run(use)


def as_file(path: str) -> dict:
    return {"path": path, "meta": {"_type": "gradio.FileData"}}
