"""LangChain against a server: `python tests/clients/langchain_client.py http://127.0.0.1:5001 TIER`.

The tier is a causal LM with a chat template. Environment of its own: `pip install langchain-openai pydantic`.
Every answer is checked; the first that is wrong ends it with a status other than 0.
"""

import sys
from typing import Literal

import httpx
from langchain_core.messages import AIMessage, HumanMessage, SystemMessage
from langchain_openai import ChatOpenAI, OpenAI
from pydantic import BaseModel, ConfigDict, Field


class Review(BaseModel):
    """A review of a film."""

    model_config = ConfigDict(extra="forbid")

    label: Literal["good", "bad"]
    stars: int = Field(ge=0, le=5)


def main(url: str, model: str) -> None:
    """Run all."""
    shared = {"base_url": f"{url}/v1", "api_key": "none", "model": model, "temperature": 0, "max_retries": 0}
    messages = [
        SystemMessage("Be kind."),
        HumanMessage("How was it?"),
        AIMessage(""),
        HumanMessage("And the book?"),
    ]
    chat = ChatOpenAI(**shared, max_tokens=10, stream_usage=True)
    raw = [
        {"role": role, "content": message.content}
        for role, message in zip(("system", "user", "assistant", "user"), messages, strict=True)
    ]
    body = {"model": model, "messages": raw, "temperature": 0, "max_tokens": 10}
    expected = httpx.post(f"{url}/v1/chat/completions", json=body, timeout=60).json()
    text = expected["choices"][0]["message"]["content"]
    answer = chat.invoke(messages)
    assert answer.content == text
    assert answer.usage_metadata["total_tokens"] == expected["usage"]["total_tokens"]
    parts = list(chat.stream(messages))
    assert "".join(part.content for part in parts) == text
    usage = next(part.usage_metadata for part in reversed(parts) if part.usage_metadata)
    assert usage["output_tokens"] == expected["usage"]["completion_tokens"]
    print(f"chat, whole and streamed: {text!r}, {usage['total_tokens']} tokens")

    scored = chat.bind(logprobs=True, top_logprobs=2).invoke(messages)
    tokens = scored.response_metadata["logprobs"]["content"]
    assert "".join(token["token"] for token in tokens) == text
    print(f"logprobs: {tokens[0]['token']!r} {tokens[0]['logprob']:.4f}, {len(tokens)} tokens")

    for seed in range(5):
        warm = ChatOpenAI(**{**shared, "temperature": 1.5}, seed=seed, max_tokens=200)
        review = warm.with_structured_output(Review, method="json_schema").invoke(messages)
        assert isinstance(review, Review)
    print(f"structured output: {review!r}")

    completion = OpenAI(**shared, max_tokens=8).invoke("The film was")
    body = {"model": model, "prompt": "The film was", "temperature": 0, "max_tokens": 8}
    same = httpx.post(f"{url}/v1/completions", json=body, timeout=60).json()["choices"][0]["text"]
    assert completion == same
    print(f"completion: {completion!r}")


if __name__ == "__main__":
    main(*sys.argv[1:])
