"""Answers that a program can read: a choice, JSON by a schema, and a tool call.

python examples/07_guided.py [model folder]
"""

from __future__ import annotations

import json
import sys

from dashinfer_lite import LLM, Guided, SamplingParams

CITY = {
    "type": "object",
    "properties": {"city": {"type": "string", "maxLength": 20}, "people": {"type": "integer", "minimum": 0}},
    "required": ["city", "people"],
    "additionalProperties": False,
}
WEATHER = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "Get the current weather in a city",
        "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
    },
}


def main(folder: str | None = None) -> None:
    """Each answer is valid by construction; whether it is true is up to the model."""
    with LLM(folder) as llm:
        question = [{"role": "user", "content": "Is Paris the capital of France?"}]
        reply = llm.chat(question, SamplingParams(temperature=0, guided=Guided(choice=["yes", "no"])))
        print(f"choice: {reply.text}")

        question = [{"role": "user", "content": "Tell me about Rome as JSON."}]
        reply = llm.chat(question, SamplingParams(temperature=0, max_tokens=60, guided=Guided(json_schema=CITY)))
        print(f"schema: {sorted(json.loads(reply.text))}")

        plan = llm.plan_tools([WEATHER], "required", parallel_tool_calls=False)
        question = [{"role": "user", "content": "What is the weather in Lima?"}]
        reply = llm.chat(question, plan.params(SamplingParams(temperature=0, max_tokens=80)), **plan.template)
        (call,) = plan.parse(reply.text).calls
        print(f"call:   {call.name}({call.arguments})")


if __name__ == "__main__":
    main(*sys.argv[1:2])
