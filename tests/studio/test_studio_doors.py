"""The other doors: MCP, characters as zips, the command line."""

import asyncio
import io
import json
import zipfile

import pytest

from huaben.cli.main import main
from huaben.errors import DataError
from huaben.studio.export import export_character, import_character

from .conftest import FIRST, tell


def kept(studio):
    story = studio.new_story(None, seed=3)["id"]
    return studio.keep_character(None, tell(studio, story, text=FIRST)["id"], "1", name="咪咪")


def test_a_character_goes_out_and_in_as_a_zip(studio):
    person = kept(studio)
    data, name = export_character(studio.store, None, person["id"])
    assert name == "咪咪.zip"
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        assert {"character.json", "embeddings.safetensors"} < set(archive.namelist())
    back = studio.store.person(None, import_character(studio.store, None, data).id)
    before = studio.store.person(None, person["id"])
    assert (back.name, back.prompt, back.attributes) == (before.name, before.prompt, before.attributes)
    assert [entry["embedding"] for entry in back.references] == [entry["embedding"] for entry in before.references]
    story = studio.new_story(None, seed=8)["id"]
    turn = tell(studio, story, page={"background": "snow", "characters": [{"library": back.id}]})
    assert [c["name"] for c in turn["page"]["characters"]] == ["咪咪"]


@pytest.mark.parametrize("bad", ["text", "empty", "no json", "many", "bomb", "no picture"])
def test_a_bad_zip_is_refused(studio, bad):
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        if bad == "no json":
            archive.writestr("../../character.json", "{}")
        elif bad == "many":
            for number in range(80):
                archive.writestr(f"{number}.png", b"")
        elif bad == "bomb":
            archive.writestr("character.json", b" " * (65 * 2**20))
        elif bad == "no picture":
            values = {"format": "huaben-character", "version": 1, "references": [{"file": "x.png"}]}
            archive.writestr("character.json", json.dumps(values))
            archive.writestr("embeddings.safetensors", b"\x02\0\0\0\0\0\0\0{}")
    data = b"not a zip" if bad == "text" else buffer.getvalue()
    with pytest.raises(DataError):
        import_character(studio.store, None, data)
    assert studio.characters(None) == []


def test_mcp_tools_draw_edit_and_show(studio):
    pytest.importorskip("mcp")
    from huaben.studio.mcp import make_server

    server = make_server(studio)

    async def play():
        names = {tool.name for tool in await server.list_tools()}
        drawn = await server.call_tool("draw", {"prompt": "a red cat on the beach", "seed": 4})
        story = studio.stories(None)[0]["id"]
        edited = await server.call_tool("edit", {"story": story, "message": "put it in the snow"})
        return names, drawn, edited, story

    names, drawn, edited, story = asyncio.run(play())
    assert names == {"draw", "edit", "stories", "story", "picture"}
    for result in (drawn, edited):
        kinds = [part.type for part in getattr(result, "content", result)]
        assert kinds == ["text", "image"]
    turns = studio.story(None, story)["turns"]
    assert [turn["page"]["background"] for turn in turns] == ["beach", "snow"]


def test_tokens_and_stories_by_the_command_line(tmp_path, capsys):
    place = ["--data", str(tmp_path / "data")]
    assert main(["studio", "token", "add", "ann", *place]) == 0
    assert capsys.readouterr().out.startswith("hb-")
    assert main(["studio", "token", "add", "ann", *place]) == 1
    assert main(["studio", "token", "list", "--json", *place]) == 0
    assert json.loads(capsys.readouterr().out) == {"accounts": ["ann"]}
    assert main(["studio", "import", str(tmp_path), *place]) == 2
    assert main(["studio", "import", str(tmp_path), "--account", "ann", *place]) == 1
    assert main(["studio", "token", "revoke", "ann", *place]) == 0
    assert main(["studio", "--host", "192.0.2.1", *place]) == 2
    assert "token add" in capsys.readouterr().err
    assert main(["studio", "worker", *place]) == 2


def test_what_to_install_is_said(monkeypatch, capsys):
    from huaben.cli import studio as verb
    from huaben.errors import MissingDependencyError

    def missing(name, *, extra):
        raise MissingDependencyError(f"package {name!r} is not installed", hint=f"pip install 'huaben[{extra}]'")

    monkeypatch.setattr(verb, "require", missing)
    assert main(["studio"]) == 1
    assert "huaben[studio]" in capsys.readouterr().err
