"""The OpenAI-compatible routes, by the real SDK."""

import base64
import io

import pytest
from PIL import Image

openai = pytest.importorskip("openai")

from .conftest import FIRST, SlowPainter, make_studio, png  # noqa: E402


@pytest.fixture
def client(tmp_path, serve):
    served = serve(make_studio(tmp_path / "data", SlowPainter(0.1)))
    with openai.OpenAI(base_url=f"{served.url}/v1", api_key="none", max_retries=0, timeout=60) as client:
        yield client


def picture(text):
    image = Image.open(io.BytesIO(base64.b64decode(text)))
    image.load()
    return image


def test_models(client):
    assert [model.id for model in client.models.list()] == ["huaben-embedded"]


def test_a_picture_and_its_options(client):
    answer = client.images.generate(
        model="huaben-embedded", prompt="a red cat on the beach", n=2, size="64x96", extra_body={"seed": 5, "steps": 2}
    )
    assert [picture(one.b64_json).size for one in answer.data] == [(64, 96)] * 2
    assert answer.data[0].b64_json != answer.data[1].b64_json
    again = client.images.generate(
        model="x",
        prompt="a red cat on the beach",
        size="64x96",
        output_format="jpeg",
        extra_body={"seed": 5, "steps": 2},
    )
    assert picture(again.data[0].b64_json).format == "JPEG"
    linked = client.images.generate(model="x", prompt="一只红猫", response_format="url")
    assert linked.data[0].url.startswith("http://127.0.0.1")


def test_a_streamed_picture_has_partial_ones(client):
    kinds = []
    for event in client.images.generate(model="x", prompt="a red cat", stream=True, partial_images=2):
        kinds.append(event.type)
        picture(event.b64_json)
    assert kinds == ["image_generation.partial_image"] * 2 + ["image_generation.completed"]


def test_what_cannot_be_drawn_is_an_error_in_words(client):
    with pytest.raises(openai.BadRequestError) as caught:
        client.images.generate(model="x", prompt="what is the capital of France?")
    assert caught.value.body["message"]
    with pytest.raises(openai.UnprocessableEntityError):
        client.images.generate(model="x", prompt="a cat", size="big")


def test_edits_take_one_picture_or_several_and_refuse_masks(client):
    first = client.images.generate(model="x", prompt="a red cat on the beach").data[0].b64_json
    data = base64.b64decode(first)
    edited = client.images.edit(model="x", image=("cat.png", data), prompt="put it in the snow")
    assert picture(edited.data[0].b64_json).size == (64, 64)
    both = client.images.edit(model="x", image=[("a.png", data), ("b.png", data)], prompt="put it in the forest")
    assert len(both.data) == 1
    kinds = [e.type for e in client.images.edit(model="x", image=("a.png", data), prompt="make it snow", stream=True)]
    assert kinds[-1] == "image_edit.completed" or "error" in kinds[-1]
    with pytest.raises(openai.BadRequestError, match="repaint"):
        client.images.edit(model="x", image=("a.png", data), mask=("m.png", png()), prompt="a hat")
    url = f"data:image/png;base64,{first}"
    answer = client.post(
        "/images/edits", body={"prompt": "put it in the snow", "image": url}, cast_to=dict[str, object]
    )
    assert answer["data"]
    with pytest.raises(openai.BadRequestError, match="fetched"):
        client.post("/images/edits", body={"prompt": "x", "image": "http://127.0.0.1/x.png"}, cast_to=dict[str, object])


def test_a_chat_goes_on_where_it_was_and_branches_where_it_is_changed(client):
    messages = [{"role": "user", "content": FIRST}]
    first = client.chat.completions.create(model="x", messages=messages)
    assert "![" in first.choices[0].message.content
    assert first.choices[0].message.images[0]["image_url"]["url"].startswith("http")
    messages += [{"role": "assistant", "content": first.choices[0].message.content}]
    second = client.chat.completions.create(
        model="x", messages=[*messages, {"role": "user", "content": "把背景换成雪地"}]
    )
    assert "雪" in second.choices[0].message.content
    other = client.chat.completions.create(
        model="x", messages=[*messages, {"role": "user", "content": "make the dog green"}]
    )
    assert "green" in other.choices[0].message.content


def test_a_chat_never_seen_is_said_again_from_its_beginning(client):
    messages = [
        {"role": "user", "content": "draw a red cat on the beach"},
        {"role": "assistant", "content": "something another program said"},
        {"role": "user", "content": "make it blue"},
    ]
    answer = client.chat.completions.create(model="x", messages=messages)
    assert "blue" in answer.choices[0].message.content


def test_a_streamed_chat_gives_text_then_picture(client):
    text, images, finish = "", [], None
    for chunk in client.chat.completions.create(model="x", messages=[{"role": "user", "content": FIRST}], stream=True):
        delta = chunk.choices[0].delta
        text += delta.content or ""
        images += getattr(delta, "images", None) or []
        finish = chunk.choices[0].finish_reason
    assert text.startswith("Here")
    assert "![" in text
    assert len(images) == 1
    assert finish == "stop"


def test_responses_branch_by_their_id(client):
    first = client.responses.create(model="x", input=FIRST)
    assert [item.type for item in first.output] == ["image_generation_call", "message"]
    picture(first.output[0].result)
    snow = client.responses.create(model="x", input="put them in the snow", previous_response_id=first.id)
    night = client.responses.create(model="x", input="draw them at night", previous_response_id=first.id)
    assert snow.output[0].result != night.output[0].result
    assert first.output_text
    with pytest.raises(openai.NotFoundError):
        client.responses.create(model="x", input="hi", previous_response_id="resp_" + "0" * 32)


def test_a_streamed_response_has_its_events_in_order(client):
    kinds = [event.type for event in client.responses.create(model="x", input=FIRST, stream=True)]
    assert kinds[0] == "response.created"
    assert kinds[-1] == "response.completed"
    assert "response.image_generation_call.partial_image" in kinds
    assert "response.output_text.delta" in kinds
