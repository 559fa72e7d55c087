"""The MCP door: draw, talk and look at stories from any assistant that speaks the Model Context Protocol."""

from __future__ import annotations

from typing import Any

from mcp.server.mcpserver import Image, MCPServer

from .. import __version__
from ..errors import DataError, HuabenError
from .service import Studio
from .work import Order

WAIT_S = 900.0


def make_server(studio: Studio, account: str | None = None) -> MCPServer:
    """Return the server of one account; its pictures come as results.

    Args:
        studio: a started service.
        account: whose stories.
    """
    server = MCPServer(
        "huaben",
        version=__version__,
        instructions="Draws picture stories by conversation, in English or Chinese, with the same characters on every page.",
    )

    def answer(story: str, order: Order) -> list[Any]:
        """Wait for a turn; return its words and its picture."""
        try:
            (job,) = studio.wait(account, [studio.say(account, story, order)[0]["id"]], WAIT_S)
            if job.turn_id is None:
                failure = job.error or {"message": f"the message was {job.status}"}
                raise DataError(failure["message"], hint=failure.get("hint", ""))
            turn = studio.turn(account, job.turn_id)
        except HuabenError as error:
            raise ValueError(str(error)) from error
        facts = [turn["reply"], *turn["warnings"], f"story {story}, turn {turn['id']}"]
        if turn["seed"] is not None:
            facts.append(f"seed {turn['seed']}")
        result: list[Any] = ["\n".join(facts)]
        if turn["image"]:
            result.append(Image(data=studio.store.pictures.get(turn["image"]["sha256"]), format="png"))
        return result

    @server.tool(structured_output=False)
    def draw(prompt: str, seed: int | None = None) -> list[Any]:
        """Draw a new picture from a description in English or Chinese; begins a story that can be gone on with."""
        story = studio.new_story(account, title=prompt[:80], origin="page")["id"]
        return answer(story, Order(text=prompt, mode="picture", seed=seed))

    @server.tool(structured_output=False)
    def edit(story: str, message: str, turn: str | None = None) -> list[Any]:
        """Change a story's picture by saying what to change ("put them in the snow"), from its last turn or ``turn``."""
        return answer(story, Order(text=message, parent=turn or "head"))

    @server.tool(structured_output=False)
    def stories(search: str = "") -> list[dict[str, Any]]:
        """List the stories: id, title and the turn each one stands at."""
        return [{key: one[key] for key in ("id", "title", "head")} for one in studio.stories(account, search=search)]

    @server.tool(structured_output=False)
    def story(id: str) -> list[dict[str, Any]]:
        """List a story's turns: id, parent, what was said and answered, and who is on the page."""
        try:
            turns = studio.story(account, id)["turns"]
        except HuabenError as error:
            raise ValueError(str(error)) from error
        return [{key: one[key] for key in ("id", "parent", "number", "message", "reply", "page")} for one in turns]

    @server.tool(structured_output=False)
    def picture(turn: str) -> list[Any]:
        """Show the picture of a turn again."""
        try:
            found = studio.turn(account, turn)
        except HuabenError as error:
            raise ValueError(str(error)) from error
        if not found["image"]:
            return ["this turn has no picture"]
        return [found["prompt"], Image(data=studio.store.pictures.get(found["image"]["sha256"]), format="png")]

    return server
