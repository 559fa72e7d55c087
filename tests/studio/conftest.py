"""A studio on the exact renderer, and a client of it."""

import io
import socket
import threading
import time
from dataclasses import dataclass

import numpy as np
import pytest

for _package in ("fastapi", "sqlalchemy", "alembic", "uvicorn", "httpx2"):
    pytest.importorskip(_package)

from PIL import Image

from huaben.stages.embedded.oracle import RendererPainter, RendererReader
from huaben.stations import Stations
from huaben.studio.app import make_app
from huaben.studio.service import Studio
from huaben.studio.store import open_store
from huaben.theater.performance import PerformanceConfig

CONFIG = PerformanceConfig(size=(64, 64), steps=4, attempts=2)
FIRST = "Draw a red cat wearing a hat on the left and a blue dog on the right, on the beach"


class SlowPainter:
    """The renderer, taking its time, with previews."""

    def __init__(self, seconds=0.0):
        self.inner, self.seconds = RendererPainter(), seconds
        self.running = self.most = 0

    def __getattr__(self, name):
        return getattr(self.inner, name)

    def paint(self, request, *, on_step=None, should_cancel=None):
        from huaben.errors import Cancelled
        from huaben.painting import Progress

        self.running += 1
        self.most = max(self.most, self.running)
        try:
            for step in range(1, request.steps + 1):
                if should_cancel is not None and should_cancel():
                    raise Cancelled("stopped")
                time.sleep(self.seconds / request.steps)
                if on_step is not None:
                    shown = np.full((32, 32, 3), step, np.uint8)
                    on_step(Progress(step=step, steps=request.steps, draw=lambda shown=shown: shown))
            return self.inner.paint(request)
        finally:
            self.running -= 1


def make_studio(folder, painter=None, **changes):
    painter = painter or RendererPainter()
    stations = Stations(
        make_painter=lambda: painter, make_reader=lambda: RendererReader(getattr(painter, "inner", painter))
    )
    store = changes.pop("store", None) or open_store(data=folder)
    return Studio(store, stations=stations, performance=CONFIG, **changes)


def wait(studio, jobs, timeout=60):
    studio.wait(None, [job["id"] for job in jobs], timeout)
    return [studio.job(None, job["id"]) for job in jobs]


def tell(studio, story, **order):
    """Say something and return its turn."""
    from huaben.studio.work import Order

    (job,) = wait(studio, studio.say(None, story, Order(**order)))
    assert job["status"] == "done", job
    return studio.turn(None, job["turn"])


def png(colour=(200, 30, 30), size=(64, 64), format="PNG"):
    buffer = io.BytesIO()
    Image.new("RGB", size, colour).save(buffer, format)
    return buffer.getvalue()


@pytest.fixture
def studio(tmp_path):
    made = make_studio(tmp_path / "data")
    made.start()
    yield made
    made.close()


@dataclass
class Served:
    studio: object
    url: str


@pytest.fixture
def serve():
    """Return a function that serves a studio on a free port."""
    import uvicorn

    servers = []

    def start(studio, **options):
        place = socket.socket()
        place.bind(("127.0.0.1", 0))
        app = make_app(studio, **options)
        server = uvicorn.Server(uvicorn.Config(app, log_level="error", timeout_graceful_shutdown=2))
        thread = threading.Thread(target=server.run, kwargs={"sockets": [place]}, daemon=True)
        thread.start()
        deadline = time.monotonic() + 30
        while not server.started and time.monotonic() < deadline:
            time.sleep(0.02)
        assert server.started
        servers.append((server, thread))
        return Served(studio, f"http://127.0.0.1:{place.getsockname()[1]}")

    yield start
    for server, thread in servers:
        server.should_exit = True
        thread.join(15)
