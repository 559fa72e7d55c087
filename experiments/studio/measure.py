# ruff: noqa: S603, T201 - a program that prints
"""Measure the studio: ``python experiments/studio/measure.py kill|load|overhead|uploads|fuzz|page [--out FILE]``.

Each prints one JSON object and adds it to ``measured.json`` beside this file. Pictures are drawn by the embedded world's
renderer, so that the studio is measured and not the painter; ``overhead`` uses the embedded painter.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import platform
import random
import re
import resource
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

HERE = Path(__file__).parent
STORY = [
    "a red cat and a blue dog on the beach",
    "put them in the snow",
    "hello",
    "把背景换成森林",
    "make the dog green",
]


def stations():
    from huaben.stages.embedded.oracle import RendererPainter, RendererReader
    from huaben.stations import Stations

    painter = RendererPainter()
    return Stations(make_painter=lambda: painter, make_reader=lambda: RendererReader(painter))


def make_studio(folder, **changes):
    from huaben.studio.service import Studio
    from huaben.studio.store import open_store
    from huaben.theater.performance import PerformanceConfig

    config = PerformanceConfig(size=(64, 64), steps=4, attempts=1)
    return Studio(open_store(data=folder), **({"stations": stations(), "performance": config} | changes))


# ------------------------------------------------------------------------------------------------------------- kill -9


def _sqlite_child(folder, tell):
    """Make turns until killed, and say which are finished."""
    from huaben.studio.work import Order

    studio = make_studio(folder, threads=2)
    studio.start()
    stories = studio.stories(None)
    while len(stories) < 2:
        stories.append(studio.new_story(None))
    os.write(tell, b"ready\n")
    for number in range(10_000):
        story = stories[number % 2]["id"]
        (job,) = studio.wait(None, [studio.say(None, story, Order(text=STORY[number % 5]))[0]["id"]], 60)
        if job.turn_id:
            os.write(tell, f"{job.turn_id}\n".encode())


def _folder_child(folder, tell):
    from huaben.session import Session, run_turn
    from huaben.theater.performance import PerformanceConfig

    config = PerformanceConfig(size=(64, 64), steps=4, attempts=1)
    with Session.open(folder, config=config, stations=stations()) as session:
        os.write(tell, b"ready\n")
        for number in range(10_000):
            turn = run_turn(session, STORY[number % 5])
            os.write(tell, f"{turn.turn}\n".encode())


def kill(kills: int) -> dict[str, object]:
    """Kill a process that makes turns, again and again, and look for what was lost."""
    import alembic.command  # noqa: F401 - loaded before the forks, as what follows

    from huaben.session import Session, read_turns, run_turn
    from huaben.studio import app, service  # noqa: F401

    fork = multiprocessing.get_context("fork")
    with Session.open(tempfile.mkdtemp(), stations=stations()) as session:
        run_turn(session, STORY[0])
    dice, result = random.Random(7), {}
    for kind, child in (("sqlite", _sqlite_child), ("folder", _folder_child)):
        place = Path(tempfile.mkdtemp(prefix="huaben-kill-"))
        done: list[str] = []
        lost = unreadable = 0
        for _ in range(kills):
            read, write = os.pipe()
            process = fork.Process(target=child, args=(place, write), daemon=True)
            process.start()
            os.close(write)
            os.read(read, 6)  # it begins to make turns
            time.sleep(dice.uniform(0.0, 0.7))
            os.kill(process.pid, signal.SIGKILL)
            process.join()
            with os.fdopen(read) as pipe:
                done += pipe.read().split()
        if kind == "sqlite":
            import sqlite3

            studio = make_studio(place, threads=0)
            studio.start()
            for id in done:
                try:
                    turn = studio.turn(None, id)
                    for turn_row in studio.store.path(id):
                        json.loads(studio.store.state(turn_row.id))
                    if turn["image"]:
                        studio.store.pictures.get(turn["image"]["sha256"])
                except Exception:
                    lost += 1
            for story in studio.stories(None):
                try:
                    studio.story(None, story["id"])
                except Exception:
                    unreadable += 1
            studio.store.close()
            with sqlite3.connect(place / "studio.db") as rows:
                orphans = len(rows.execute("pragma foreign_key_check").fetchall())
                used = {row[0] for row in rows.execute("select sha256 from pictures")}
                intact = rows.execute("pragma integrity_check").fetchone()[0]
            files = {path.stem for path in (place / "pictures").rglob("*.png")}
            parts = len(list((place / "pictures").rglob("*.part")))
            result[kind] = {
                "kills": kills,
                "finished": len(done),
                "lost": lost,
                "unreadable_stories": unreadable,
                "orphaned_rows": orphans,
                "files_left_over": len(files - used) + parts,
                "integrity": intact,
            }
        else:
            try:
                turns = {str(turn["turn"]) for turn in read_turns(place)}
                lost = len(set(done) - turns)
            except Exception:
                unreadable = 1
            result[kind] = {
                "kills": kills,
                "finished": len(done),
                "lost": lost,
                "unreadable_stories": unreadable,
            }
    return result


# ------------------------------------------------------------------------------------------------------ served studios


def serve(studio, rate=10**9):
    """Serve on a free port in this process; return the address and how to stop it."""
    import uvicorn

    from huaben.studio.app import make_app

    place = socket.socket()
    place.bind(("127.0.0.1", 0))
    server = uvicorn.Server(uvicorn.Config(make_app(studio, rate=rate), log_level="error"))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [place]}, daemon=True)
    thread.start()
    while not server.started:
        time.sleep(0.02)

    def stop():
        server.should_exit = True
        thread.join(20)

    return f"http://127.0.0.1:{place.getsockname()[1]}", stop


def load(stories: int) -> dict[str, object]:
    """Many stories at once, two turns and a text turn each."""
    import httpx2

    studio = make_studio(Path(tempfile.mkdtemp(prefix="huaben-load-")))
    url, stop = serve(studio)
    animals = ["cat", "dog", "rabbit", "bear", "fox", "mouse", "pig", "frog"]
    places = ["beach", "forest", "snow", "desert"]
    wrong, errors, text_s, draw_s = [], [], [], []

    def say(client, story, text):
        start = time.perf_counter()
        answer = client.post(f"/api/v1/stories/{story}/turns", json={"text": text})
        job = answer.json()["jobs"][0]["id"]
        studio.wait(None, [job], 300)
        seconds = time.perf_counter() - start
        value = client.get(f"/api/v1/jobs/{job}").json()
        if value["status"] != "done":
            errors.append(value["error"])
        return seconds

    def work(number):
        animal, place = animals[number % 8], places[number % 4]
        with httpx2.Client(base_url=url, timeout=300) as client:
            story = client.post("/api/v1/stories", json={"seed": number}).json()["id"]
            draw_s.append(say(client, story, f"draw a red {animal}"))
            draw_s.append(say(client, story, f"change the background to {place}"))
            barrier.wait()
            time.sleep(number * 0.05)
            text_s.append(say(client, story, "hello"))
            turns = client.get(f"/api/v1/stories/{story}").json()["turns"]
            names = [c["name"] for c in turns[1]["page"]["characters"]]
            if names != [animal] or turns[1]["page"]["background"] != place or turns[1]["parent"] != turns[0]["id"]:
                wrong.append((number, names, turns[1]["page"]["background"]))

    barrier = threading.Barrier(stories)
    threads = [threading.Thread(target=work, args=(number,)) for number in range(stories)]
    start = time.perf_counter()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    seconds = time.perf_counter() - start
    stop()
    return {
        "stories": stories,
        "mixed_up": len(wrong),
        "errors": len(errors),
        "text_turn_p50_s": round(statistics.median(text_s), 3),
        "text_turn_p95_s": round(sorted(text_s)[int(0.95 * len(text_s))], 3),
        "drawn_turn_p95_s": round(sorted(draw_s)[int(0.95 * len(draw_s))], 3),
        "seconds": round(seconds, 1),
        "memory_mib": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024),
        "note": "clients and server in one process; text turns began 50 ms apart",
    }


def overhead(turns: int) -> dict[str, object]:
    """What the service adds to a drawn turn, beside the bare session on the same painter, taken by turns."""
    from huaben.session import Session, run_turn
    from huaben.stations import Stations
    from huaben.studio.service import Studio
    from huaben.studio.store import open_store
    from huaben.studio.work import Order
    from huaben.theater.performance import PerformanceConfig

    config = PerformanceConfig(attempts=1)
    shared = Stations()
    shared.painter, shared.reader, shared.screenwriter  # noqa: B018 - loaded before the clock
    studio = Studio(open_store(data=Path(tempfile.mkdtemp())), stations=shared, performance=config, threads=1)
    studio.start()
    story = studio.new_story(None, seed=3)["id"]
    bare, served = [], []
    texts = ["a red cat and a blue dog on the beach", "put them in the snow", "put them in the forest"]
    with Session.open(tempfile.mkdtemp(), seed=3, config=config, stations=shared) as session:
        for number in range(turns):
            text = texts[0] if number == 0 else texts[1 + number % 2]
            start = time.perf_counter()
            run_turn(session, text)
            bare.append(time.perf_counter() - start)
            start = time.perf_counter()
            studio.wait(None, [studio.say(None, story, Order(text=text))[0]["id"]], 300)
            served.append(time.perf_counter() - start)
    studio.close()
    pairs = [b - a for a, b in zip(bare[1:], served[1:], strict=True)]
    return {
        "turns": turns - 1,
        "bare_median_s": round(statistics.median(bare[1:]), 3),
        "served_median_s": round(statistics.median(served[1:]), 3),
        "added_median_s": round(statistics.median(pairs), 4),
        "added_percent": round(100 * statistics.median(pairs) / statistics.median(bare[1:]), 2),
    }


def uploads(count: int) -> dict[str, object]:
    """Malformed pictures, and what they did."""
    import io

    import httpx2
    from PIL import Image

    place = Path(tempfile.mkdtemp(prefix="huaben-uploads-"))
    studio = make_studio(place / "data")
    url, stop = serve(studio)
    dice = random.Random(3)
    good = []
    for kind in ("PNG", "JPEG", "WEBP"):
        buffer = io.BytesIO()
        Image.effect_noise((48, 48), 90).convert("RGB").save(buffer, kind)
        good.append(buffer.getvalue())
    codes: dict[int, int] = {}
    names = ["../../../x.png", "/etc/passwd", "a\x00b.png", "故事.png", "..\\..\\x.png", "x" * 3000 + ".png", ""]
    with httpx2.Client(base_url=url, timeout=60) as client:
        for number in range(count):
            data = bytearray(dice.choice(good))
            match number % 5:
                case 0:
                    data = data[: dice.randrange(len(data))]
                case 1:
                    for _ in range(dice.randrange(1, 30)):
                        data[dice.randrange(len(data))] = dice.randrange(256)
                case 2:
                    data = bytearray(dice.randbytes(dice.randrange(2000)))
                case 3:
                    data = bytearray(b"\x89PNG\r\n\x1a\n" + dice.randbytes(200))
                case 4:
                    data[16:24] = dice.randbytes(8)
            try:
                answer = client.post("/api/v1/uploads", files={"image": (dice.choice(names), bytes(data), "image/png")})
                codes[answer.status_code] = codes.get(answer.status_code, 0) + 1
            except httpx2.HTTPError:
                codes[0] = codes.get(0, 0) + 1
        alive = client.get("/healthz").status_code == 200
    stop()
    outside = [p for p in place.rglob("*") if p.is_file() and not p.is_relative_to(place / "data")]
    strange = [p.name for p in (place / "data" / "pictures").rglob("*") if p.is_file() and len(p.name) != 68]
    return {
        "uploads": count,
        "status": {str(code): number for code, number in sorted(codes.items())},
        "server_errors": sum(number for code, number in codes.items() if code >= 500 or code == 0),
        "alive": alive,
        "files_outside": len(outside) + len(strange),
    }


def fuzz(examples: int) -> dict[str, object]:
    """Schemathesis over every route of the schema."""
    studio = make_studio(Path(tempfile.mkdtemp(prefix="huaben-fuzz-")), timeout_s=20.0)
    url, stop = serve(studio)
    program = Path(sys.executable).with_name("schemathesis")
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "report.ndjson"
        done = subprocess.run(
            [
                program, "run", f"{url}/api/v1/openapi.json", "--checks", "not_a_server_error", "--max-examples", str(examples),
                "--phases", "fuzzing", "--exclude-path", "/api/v1/events", "--request-timeout", "30", "--seed", "1",
                "--continue-on-failure", "--report", "ndjson", "--report-ndjson-path", str(report), "--no-color",
            ],
            capture_output=True, text=True, cwd=folder,
        )  # fmt: skip
        output = done.stdout
    stop()
    found = re.findall(r"(\d[\d,]*) (?:test cases? )?generated", output) or re.findall(
        r"Test cases:\s*\n?\s*(\d+)", output
    )
    return {
        "max_examples": examples,
        "requests": int(found[0].replace(",", "")) if found else None,
        "status_500": len(re.findall(r"- Server error", output)),
        "rc": done.returncode,
    } | ({"output": output[-2500:]} if done.returncode or not found else {})


def page(_: int) -> dict[str, object]:
    """How soon the page is ready, what it asks for, and how soon the first picture is there (embedded painter)."""
    from playwright.sync_api import sync_playwright

    place = tempfile.mkdtemp(prefix="huaben-page-")
    process = subprocess.Popen([sys.executable, "-m", "huaben", "studio", "--port", "8697", "--data", place])
    try:
        import urllib.request

        for _attempt in range(300):
            try:
                urllib.request.urlopen("http://127.0.0.1:8697/healthz", timeout=2)
                break
            except OSError:
                time.sleep(0.2)
        time.sleep(20)  # models load in the background
        with sync_playwright() as p:
            browser = p.chromium.launch(executable_path="/usr/bin/chromium", args=["--no-sandbox"])
            context = browser.new_context()
            tab = context.new_page()
            asked, size = [], []
            tab.on("request", lambda request: asked.append(request.url))
            tab.on("requestfinished", lambda request: size.append(request.sizes()["responseBodySize"]))
            start = time.perf_counter()
            tab.goto("http://127.0.0.1:8697/")
            tab.wait_for_selector("html[data-ready]")
            ready = time.perf_counter() - start
            time.sleep(0.5)
            requests, kilobytes = len(asked), sum(size) / 1000
            tab.click(".examples button")
            tab.wait_for_selector("figure.picture .frame img[width]", timeout=120_000)
            first = time.perf_counter() - start
            browser.close()
        memory = int(re.search(r"VmHWM:\s+(\d+)", Path(f"/proc/{process.pid}/status").read_text())[1])
    finally:
        process.terminate()
        process.wait(20)
    return {
        "ready_s": round(ready, 2),
        "first_picture_s": round(first, 2),
        "requests": requests,
        "kilobytes": round(kilobytes, 1),
        "external_requests": sum("127.0.0.1" not in url and not url.startswith("data:") for url in asked),
        "memory_mib": round(memory / 1024),
    }


SIZES = {"kill": 300, "load": 64, "overhead": 9, "uploads": 1000, "fuzz": 300, "page": 0}


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("name", choices=SIZES)
    parser.add_argument("--count", type=int)
    parser.add_argument("--out", type=Path, default=HERE / "measured.json")
    options = parser.parse_args()
    start = time.perf_counter()
    values = globals()[options.name](options.count or SIZES[options.name])
    machine = {"python": platform.python_version(), "cpus": os.cpu_count(), "load": round(os.getloadavg()[0], 1)}
    found = json.loads(options.out.read_text()) if options.out.exists() else {}
    found[options.name] = {**values, "machine": machine, "wall_s": round(time.perf_counter() - start, 1)}
    options.out.write_text(json.dumps(found, indent=2, sort_keys=True, ensure_ascii=False) + "\n", encoding="utf-8")
    print(json.dumps(found[options.name], ensure_ascii=False))


if __name__ == "__main__":
    main()
