"""The OpenAI-compatible routes."""

from __future__ import annotations

from fastapi import APIRouter

from .service import Studio


def openai_routes(studio: Studio) -> APIRouter:
    """Return the routes."""
    routes = APIRouter(prefix="/v1")

    @routes.get("/models", tags=["openai"])
    def models() -> dict[str, object]:
        """List what can be asked for."""
        return {
            "object": "list",
            "data": [{"id": f"huaben-{studio.stage}", "object": "model", "created": 0, "owned_by": "huaben"}],
        }

    return routes
