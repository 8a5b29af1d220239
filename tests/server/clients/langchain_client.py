"""langchain-openai against a server: answers, streams, structures, tools, token counts."""

from __future__ import annotations

import sys
from typing import Any

from langchain_core.tools import tool
from langchain_openai import ChatOpenAI, OpenAIEmbeddings
from pydantic import BaseModel


class Person(BaseModel):
    """A person."""

    name: str
    age: int


@tool
def get_weather(city: str) -> str:
    """Weather of a city"""
    return f"clear in {city}"


def main(url: str) -> None:
    options: dict[str, Any] = {"base_url": f"{url}/v1", "api_key": "none", "model": "tiny_chat", "temperature": 0}
    chat = ChatOpenAI(**options, max_tokens=40, stream_usage=True)
    answer = chat.invoke("What is 17 + 25?")
    assert answer.content == "17 + 25 = 42"
    assert answer.usage_metadata and answer.usage_metadata["input_token_details"]["cache_read"] >= 0
    chunks = list(chat.stream("What is 17 + 25?"))
    assert "".join(str(chunk.content) for chunk in chunks) == "17 + 25 = 42"
    assert any(chunk.usage_metadata for chunk in chunks)
    for method in ("json_schema", "function_calling"):
        person = chat.with_structured_output(Person, method=method).invoke("Give me Ada, who is 36.")
        assert isinstance(person, Person)
    forced = chat.bind_tools([get_weather], tool_choice="get_weather", parallel_tool_calls=False)
    (call,) = forced.invoke("What is the weather in Paris?").tool_calls
    assert call["name"] == "get_weather" and call["args"].keys() == {"city"}
    vectors = OpenAIEmbeddings(
        base_url=f"{url}/v1", api_key="none", model="tiny_chat", check_embedding_ctx_length=False
    ).embed_documents(["a fox", "a bear"])
    assert len(vectors) == 2 and len(vectors[0]) == 256
    print("langchain-openai: done")


if __name__ == "__main__":
    main(sys.argv[1])
