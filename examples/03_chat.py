"""A conversation, and what the prefix cache saves.

python examples/03_chat.py [model folder]
"""

from __future__ import annotations

import sys

from dashinfer_lite import LLM, SamplingParams

QUESTIONS = ("Hi! Who are you?", "What is 17 + 25?", "How many days are in a week?")


def main(folder: str | None = None) -> None:
    """Ask in turn; each prompt is the whole conversation, but only its new part is computed."""
    messages: list[dict[str, str]] = [{"role": "system", "content": "You are a helpful assistant."}]
    params = SamplingParams(temperature=0, max_tokens=200)
    with LLM(folder) as llm:
        for question in QUESTIONS:
            messages.append({"role": "user", "content": question})
            reply = llm.chat(messages, params)
            messages.append({"role": "assistant", "content": reply.outputs[0].text})
            usage = reply.usage
            print(f"user:  {question}\nmodel: {reply.outputs[0].text}")
            print(f"       [{usage.cached_tokens} of {usage.prompt_tokens} prompt tokens came from the cache]")

        # A list of conversations is a batch.
        replies = llm.chat([[{"role": "user", "content": f"What is {n} + {n}?"}] for n in (3, 14, 159)], params)
        print([reply.outputs[0].text for reply in replies])


if __name__ == "__main__":
    main(*sys.argv[1:2])
