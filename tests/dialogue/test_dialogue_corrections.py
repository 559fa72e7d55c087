"""Fillers, corrections, names by place and departures: what was understood happens, and nothing else."""

from huaben.dialogue import Conversation, Message, Reply
from huaben.stages.embedded import Screenwriter


def play(*texts: str) -> Reply:
    conversation = Conversation()
    for text in texts:
        message = Message(text=text)
        reply = Screenwriter().read(message, conversation)
        conversation = conversation.add(message, reply)
    return reply


def worn(reply: Reply) -> dict[str, str]:
    assert reply.page is not None
    return {c.category: c.attribute("accessory") for c in reply.page.characters}


def test_a_correction_moves_what_was_done_and_deletes_nobody() -> None:
    start = "draw a kitten and a puppy at the beach", "aww cute. put a hat on the kitten plz"
    assert worn(play(*start)) == {"cat": "hat", "dog": "none"}
    assert worn(play(*start, "no, I meant the other one")) == {"cat": "none", "dog": "hat"}
    reply = play("画一只猫和一只狗", "给狗戴上帽子", "不对，我说的是猫")
    assert worn(reply) == {"cat": "hat", "dog": "none"}


def test_a_place_names_who_is_there() -> None:
    reply = play("三只企鹅在雪地里", "最左边的戴个耳机，最右边的戴副眼镜")
    assert reply.page is not None
    order = sorted(reply.page.characters, key=lambda c: c.box[0])
    assert [c.attribute("accessory") for c in order] == ["headphones", "none", "glasses"]


def test_who_flies_away_is_gone_and_comes_to_no_harm_by_a_changed_mind() -> None:
    assert set(worn(play("draw an owl and a bear in the forest", "The owl flies away."))) == {"bear"}
    back = play("draw an owl and a bear in the forest", "The owl flies away.", "hmm no, undo that")
    assert back.action == "recall" and set(worn(back)) == {"owl", "bear"}
