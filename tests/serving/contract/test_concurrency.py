"""Many clients at a time."""

from concurrent.futures import ThreadPoolExecutor

import numpy as np

from tests.serving.contract.api import Api, Refused, Target, names, opened
from tests.serving.contract.images import drawings

CLIENTS = 8
REQUESTS = 12


def test_every_client_gets_its_own_answers(api: Api) -> None:
    images = drawings(CLIENTS)
    expected = api.predict("embed", {"image": images})["embedding"]

    def ask(number: int) -> float:
        client = (number + 1) % CLIENTS
        order = (client + np.arange(1 + number % 5)) % CLIENTS
        answer = api.predict("embed", {"image": images[order]})["embedding"]
        return float(np.abs(answer - expected[order]).max())

    with ThreadPoolExecutor(CLIENTS) as pool:
        assert max(pool.map(ask, range(CLIENTS * REQUESTS))) < 1e-3


def test_signatures_and_failures_do_not_mix(api: Api) -> None:
    images = drawings(4)
    vectors = api.predict("embed", {"image": images})["embedding"].astype(np.float32)
    logits = api.predict("match", {"embedding_a": vectors, "embedding_b": vectors[::-1]})["logit"]

    def ask(number: int) -> str:
        if number % 3 == 0:
            try:
                api.predict("", {"image_a": images})
            except Refused as refused:
                return f"refused {refused.status}"
            return "not refused"
        if number % 3 == 1:
            inputs = {"embedding_a": vectors, "embedding_b": vectors[::-1]}
            answer = api.predict("match", inputs)
        else:
            answer = api.predict("", {"image_a": images, "image_b": images[::-1]})
        return str(np.allclose(answer["logit"], logits, rtol=1e-4, atol=1e-3))

    with ThreadPoolExecutor(CLIENTS) as pool:
        answers = list(pool.map(ask, range(CLIENTS * 6)))
    assert set(answers[0::3]) == {"refused 400"}
    assert set(answers[1::3]) == set(answers[2::3]) == {"True"}


def test_both_protocols_and_formats_give_the_same_numbers(target: Target) -> None:
    images = drawings(5)
    answers = []
    for name in names(target):
        client = opened(name, target)
        answers.append(client.predict("embed", {"image": images})["embedding"])
        client.close()
    for answer in answers[1:]:
        np.testing.assert_allclose(answer, answers[0], rtol=1e-4, atol=1e-4)
