"""OpenAI's own client against a server: `python tests/clients/openai_client.py http://127.0.0.1:5001 TIER`.

The tier is a causal LM with a chat template. Environment: `pip install openai jsonschema`, or the dev set.
Every answer is checked; the first that is wrong ends it with a status other than 0.
"""

import json
import sys

import jsonschema
from openai import OpenAI, UnprocessableEntityError

SCHEMA = {
    "type": "object",
    "properties": {"label": {"enum": ["good", "bad"]}, "score": {"type": "integer", "maximum": 9}},
    "required": ["label", "score"],
    "additionalProperties": False,
}
MESSAGES = [
    {"role": "user", "content": "How was the film?"},
    {"role": "assistant", "content": None},
    {"role": "user", "content": [{"type": "text", "text": "And the book?"}]},
]


def completions(client: OpenAI, model: str) -> None:
    """Whole and streamed, with log-probabilities, counts, and penalties."""
    asked = {"model": model, "prompt": "The film was", "max_tokens": 12, "temperature": 0}
    plain = client.completions.create(**asked)
    [choice] = plain.choices
    assert plain.usage.completion_tokens == 12, plain.usage
    scored = client.completions.create(**asked, logprobs=3, echo=True).choices[0]
    assert scored.text == "The film was" + choice.text
    assert "".join(scored.logprobs.tokens) == scored.text
    assert len(scored.logprobs.token_logprobs) == plain.usage.total_tokens
    greedy = list(zip(scored.logprobs.token_logprobs, scored.logprobs.top_logprobs, strict=True))[-12:]
    assert all(value == max(top.values()) for value, top in greedy), "a greedy token is the likeliest"
    parts = list(client.completions.create(**asked, stream=True, stream_options={"include_usage": True}))
    assert "".join(part.choices[0].text for part in parts if part.choices) == choice.text
    assert parts[-1].choices == []
    assert parts[-1].usage == plain.usage
    assert all(part.usage is None for part in parts[:-1])
    long = {**asked, "max_tokens": 60}
    penalties = {"frequency_penalty": 2.0, "presence_penalty": 2.0, "extra_body": {"repetition_penalty": 3.0}}
    changed = client.completions.create(**long, **penalties).choices[0].text
    assert changed != client.completions.create(**long).choices[0].text
    stop = choice.text[4:6]
    [stopped] = client.completions.create(**asked, stop=[stop]).choices
    assert stopped.text == choice.text[: choice.text.index(stop)]
    assert stopped.finish_reason == "stop"
    print(f"completions: {choice.text!r}; with penalties {changed[:40]!r}")


def chat(client: OpenAI, model: str) -> None:
    """A history with a message without content; log-probabilities; streams with counts."""
    asked = {"model": model, "messages": MESSAGES, "max_completion_tokens": 10, "temperature": 0}
    whole = client.chat.completions.create(**asked, logprobs=True, top_logprobs=2)
    content, [choice] = whole.choices[0].logprobs.content, whole.choices
    assert "".join(token.token for token in content) == choice.message.content
    whole_bytes = bytes(byte for token in content for byte in token.bytes or [])
    assert whole_bytes.decode(errors="replace") == choice.message.content
    assert all(token.logprob == token.top_logprobs[0].logprob for token in content)
    parts = list(client.chat.completions.create(**asked, stream=True, stream_options={"include_usage": True}))
    text = "".join(part.choices[0].delta.content or "" for part in parts if part.choices)
    assert text == choice.message.content
    assert parts[-1].usage == whole.usage
    print(f"chat: {text!r}, usage {whole.usage.total_tokens}")


def formats(client: OpenAI, model: str) -> None:
    """JSON by a schema, whatever the seed; a bad schema is refused."""
    form = {"type": "json_schema", "json_schema": {"name": "review", "schema": SCHEMA, "strict": True}}
    texts = set()
    for seed in range(10):
        answer = client.chat.completions.create(
            model=model, messages=MESSAGES, temperature=1.5, seed=seed, max_tokens=200, response_format=form
        )
        texts.add(answer.choices[0].message.content)
    for text in texts:
        jsonschema.validate(json.loads(text), SCHEMA)
    assert len(texts) > 1
    form["json_schema"]["schema"] = {"not": {"type": "string"}}
    for wrong in ({"response_format": form}, {"n": 2}, {"tools": [{"type": "function"}]}):
        try:
            client.chat.completions.create(model=model, messages=MESSAGES, **wrong)
        except UnprocessableEntityError as error:
            print(f"refused: {error.body['message']}")
        else:
            raise AssertionError(f"{wrong} was not refused")
    print(f"response_format: {len(texts)} texts, such as {min(texts)!r}")


def main(url: str, model: str) -> None:
    """Run all."""
    with OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0) as client:
        assert model in [one.id for one in client.models.list()]
        for check in (completions, chat, formats):
            check(client, model)


if __name__ == "__main__":
    main(*sys.argv[1:])
