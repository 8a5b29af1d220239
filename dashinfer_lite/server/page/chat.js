// The conversation: sends messages, shows answers as they come, and what they cost.

import { events } from "./api.js";
import { byId, copy, count, duration, make, once, rate } from "./dom.js";
import { codeBlock, show } from "./markdown.js";
import { sampling, withSystem } from "./settings.js";

const PERSON = `{
  "type": "object",
  "properties": {
    "name": { "type": "string" },
    "job": { "type": "string" },
    "city": { "type": "string" }
  },
  "required": ["name", "job", "city"]
}`;
const IDEAS = [
  { text: "Tell me a story about a fox." },
  { text: "What is 17 + 25?" },
  { text: "What is the capital of France?" },
  { text: "Joan Park works as a painter in Prague.\n\nWrite the name, job and city as a JSON object.", schema: PERSON },
];

const [log, turns, form, message] = ["log", "turns", "composer", "message"].map(byId);
const [json, schemaBox, schema, schemaError] = ["json", "schema-box", "schema", "schema-error"].map(byId);

let messages = [];
let running = null; // the AbortController of the answer that is being written

export function setUpChat() {
  schema.value = PERSON;
  byId("ideas").append(...IDEAS.map(idea));
  form.addEventListener("submit", (event) => {
    event.preventDefault();
    send();
  });
  message.addEventListener("keydown", (event) => {
    if (event.key !== "Enter" || event.shiftKey || event.isComposing) return;
    event.preventDefault();
    send();
  });
  message.addEventListener("input", grow);
  json.addEventListener("change", () => (schemaBox.hidden = !json.checked));
  schema.addEventListener("input", () => (schemaError.textContent = ""));
  byId("clear").addEventListener("click", clear);
  byId("stop").addEventListener("click", stopChat);
}

/** End the answer that is being written; false where there is none. */
export function stopChat() {
  running?.abort();
  return running !== null;
}

function idea({ text, schema: wanted }) {
  const words = text.split("\n\n");
  const button = make("button", { type: "button" }, ...words.map((part) => make("span", {}, part)));
  button.addEventListener("click", () => {
    json.checked = Boolean(wanted);
    schemaBox.hidden = !wanted;
    if (wanted) schema.value = wanted;
    message.value = text;
    send();
  });
  return make("li", {}, button);
}

function clear() {
  stopChat();
  messages = [];
  turns.replaceChildren();
  byId("welcome").hidden = false;
  message.focus();
}

function send() {
  const content = message.value.trim();
  const fields = content && !running ? request() : null;
  if (!fields) return;
  message.value = "";
  grow();
  byId("welcome").hidden = true;
  messages.push({ role: "user", content });
  turns.append(make("li", { className: "turn user" }, make("div", { className: "text" }, content)));
  answer(fields);
}

/** The fields beside the messages; null where the settings or the schema are wrong, which is then shown. */
function request() {
  const fields = sampling();
  if (!fields || !json.checked) return fields;
  const source = schema.value.trim();
  if (!source) return { ...fields, response_format: { type: "json_object" } };
  try {
    const described = { name: "answer", schema: JSON.parse(source), strict: true };
    return { ...fields, response_format: { type: "json_schema", json_schema: described } };
  } catch (error) {
    schemaError.textContent = `This is not JSON: ${error.message}`;
    schemaBox.hidden = false;
    schema.focus();
    return null;
  }
}

async function answer(fields) {
  const turn = new Turn(Boolean(fields.response_format), () => again(turn, fields));
  const asked = messages;
  turns.append(turn.element);
  toEnd();
  running = new AbortController();
  setRunning(true);
  try {
    const body = { ...fields, messages: withSystem(asked), stream: true, stream_options: { include_usage: true } };
    for await (const event of events("v1/chat/completions", body, running.signal)) {
      const isAtEnd = log.scrollHeight - log.scrollTop - log.clientHeight < 80;
      turn.add(event);
      if (isAtEnd) toEnd();
    }
    turn.finish("done");
  } catch (error) {
    turn.finish(error.name === "AbortError" ? "stopped" : "failed", error);
  }
  running = null;
  setRunning(false);
  if (asked !== messages) return; // a new chat was begun meanwhile
  if (turn.text) messages.push({ role: "assistant", content: turn.text });
  toEnd();
}

/** Answer the same message again, in place of this answer and whatever came after it. */
function again(turn, fields) {
  if (running) return;
  const place = [...turns.children].indexOf(turn.element);
  const before = [...turns.children].slice(0, place);
  messages = before.map((each) => ({
    role: each.classList.contains("user") ? "user" : "assistant",
    content: each.classList.contains("user") ? each.textContent : each.dataset.text,
  })).filter(({ content }) => content);
  turns.replaceChildren(...before);
  answer(fields);
}

function setRunning(isRunning) {
  byId("send").hidden = isRunning;
  byId("stop").hidden = !isRunning;
  log.ariaBusy = String(isRunning);
  if (isRunning) byId("status").textContent = "The model is answering.";
}

const toEnd = once(() => (log.scrollTop = log.scrollHeight));

function grow() {
  message.style.height = "auto";
  message.style.height = `${Math.min(message.scrollHeight, 240)}px`;
}

/** One answer, growing. */
class Turn {
  text = "";
  #thoughts = "";
  #usage = null;
  #pieces = 0;
  #began = performance.now();
  #first = null;
  #last = null;
  #isJson;

  constructor(isJson, retry) {
    this.#isJson = isJson;
    this.body = make("div", { className: "text" });
    this.figures = make("ul", { className: "figures" });
    const copyButton = make("button", { type: "button", className: "quiet" }, "Copy");
    copyButton.addEventListener("click", () => copy(this.text, copyButton));
    const retryButton = make("button", { type: "button", className: "quiet" }, "Try again");
    retryButton.addEventListener("click", retry);
    const actions = make("p", { className: "actions" }, copyButton, retryButton);
    const foot = make("div", { className: "foot" }, this.figures, actions);
    this.element = make("li", { className: "turn model" }, this.body, foot);
    this.element.dataset.state = "waiting";
    this.draw = once(() => this.#draw());
  }

  /** Take in an event of the stream. */
  add({ choices, usage }) {
    this.#usage = usage ?? this.#usage;
    const delta = choices[0]?.delta;
    if (!delta?.content && !delta?.reasoning_content) return;
    this.#last = performance.now();
    this.#first ??= this.#last;
    this.#pieces++;
    this.text += delta.content ?? "";
    this.#thoughts += delta.reasoning_content ?? "";
    this.element.dataset.state = "streaming";
    this.draw();
  }

  /** `state`: done, stopped or failed. */
  finish(state, error) {
    Object.assign(this.element.dataset, { state, text: this.text });
    this.#draw();
    if (state === "failed") this.body.append(make("p", { className: "error" }, error.message));
    const said = { done: this.text, stopped: "Stopped.", failed: error?.message }[state];
    byId("status").textContent = said;
  }

  #draw() {
    const { state } = this.element.dataset;
    if (this.#thoughts) this.#showThoughts();
    if (this.#isJson) this.#showJson(state === "done");
    else show((this.answer ??= this.body.appendChild(make("div", { className: "markdown" }))), this.text);
    this.figures.replaceChildren(...this.#figures().map(([value, words]) => make("li", {}, make("b", {}, value), ` ${words}`)));
  }

  #showThoughts() {
    if (!this.thoughts) {
      this.thoughts = make("div", { className: "markdown" });
      this.body.prepend(make("details", {}, make("summary", {}, "Thoughts"), this.thoughts));
    }
    show(this.thoughts, this.#thoughts);
  }

  #showJson(isWhole) {
    let text = this.text;
    try {
      if (isWhole) text = JSON.stringify(JSON.parse(text), null, 2);
    } catch {
      // an answer that the token limit cut short is shown as it came
    }
    const block = codeBlock(text, "json");
    if (this.answer) this.answer.replaceWith(block);
    else this.body.append(block);
    this.answer = block;
  }

  #figures() {
    if (this.#first === null) return [];
    const tokens = this.#usage?.completion_tokens ?? this.#pieces;
    const spent = this.#last - this.#first;
    const found = [];
    if (tokens > 1 && spent > 0) found.push([rate((1000 * (tokens - 1)) / spent), "tok/s"]);
    found.push([duration(this.#first - this.#began), "to the first token"]);
    found.push([count(tokens), tokens === 1 ? "token" : "tokens"]);
    if (this.#usage) {
      const { prompt_tokens: prompt, prompt_tokens_details: details } = this.#usage;
      found.push([`${count(details?.cached_tokens ?? 0)} of ${count(prompt)}`, "prompt tokens cached"]);
    }
    return found;
  }
}
