"""instructor against a server, by tools and by JSON schemas."""

from __future__ import annotations

import sys

import instructor
import openai
from pydantic import BaseModel


class Person(BaseModel):
    """A person."""

    name: str
    age: int


def main(url: str) -> None:
    client = openai.OpenAI(base_url=f"{url}/v1", api_key="none")
    for mode in (instructor.Mode.TOOLS, instructor.Mode.JSON_SCHEMA):
        person = instructor.from_openai(client, mode=mode).chat.completions.create(
            model="tiny_chat",
            messages=[{"role": "user", "content": "Give me a JSON object with the name Ada and the age 36."}],
            response_model=Person,
            temperature=0,
        )
        assert isinstance(person, Person)
    print(f"instructor {instructor.__version__}: done")


if __name__ == "__main__":
    main(sys.argv[1])
