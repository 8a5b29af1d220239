# Copyright 2025 The DashInfer Lite authors. SPDX-License-Identifier: Apache-2.0
"""Whether an answer to an item of eval/items.jsonl is right; needs no framework.

An item's "match" says how it is judged:
  exact      the answer is the expected text
  json       both parse to the same JSON value
  tool_call  the JSON between <tool_call> and </tool_call> is the same value
  story      every string of "contains" appears, and of all names in words.NAMES only those of "names"
             and one more, the friend, appear
"""
import json
import re

from words import NAMES


def parse(text, tool_call=False):
    if tool_call:
        m = re.fullmatch(r"<tool_call>\s*(.*?)\s*</tool_call>", text.strip(), re.S)
        text = m.group(1) if m else ""
    try:
        return json.loads(text)
    except ValueError:
        return None


def judge(item, text):
    if item["match"] == "exact":
        return text.strip() == item["expected"].strip()
    if item["match"] in ("json", "tool_call"):
        got = parse(text, item["match"] == "tool_call")
        return got is not None and got == parse(item["expected"], item["match"] == "tool_call")
    names = {w for w in re.findall(r"[A-Z][a-z]+", text) if w in NAMES}
    return all(c in text for c in item["contains"]) and len(names - set(item["names"])) <= 1
