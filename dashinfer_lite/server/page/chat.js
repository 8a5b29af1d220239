// The conversation: what is sent, and the answers to it.

import { events } from "./api.js";
import { byId, make, once } from "./dom.js";
import { sampling, withSystem } from "./settings.js";
import { Turn } from "./turn.js";

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
const NEAR_END_PX = 80; // who has scrolled further up than this reads, and is left there

const [log, list, form, message] = ["log", "turns", "composer", "message"].map(byId);
const [json, schemaBox, schema, schemaError] = ["json", "schema-box", "schema", "schema-error"].map(byId);

let turns = [];
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
  const button = make("button", { type: "button" }, ...text.split("\n\n").map((part) => make("span", {}, part)));
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
  turns = [];
  list.replaceChildren();
  byId("welcome").hidden = false;
  message.focus();
}

function send() {
  const question = message.value.trim();
  const fields = question && !running ? request() : null;
  if (!fields) return;
  message.value = "";
  grow();
  answer(question, fields);
}

/** Answer a message again, in place of its answer and of whatever came after it. */
function again(turn) {
  const fields = running ? null : request();
  if (!fields) return;
  for (const gone of turns.splice(turns.indexOf(turn))) gone.remove();
  answer(turn.question, fields);
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
    schema.focus();
    return null;
  }
}

async function answer(question, fields) {
  const before = turns.flatMap((turn) => turn.messages());
  const turn = new Turn(question, Boolean(fields.response_format), again);
  turns.push(turn);
  byId("welcome").hidden = true;
  list.append(...turn.elements);
  toEnd();
  const stop = new AbortController();
  setRunning(stop);
  try {
    const messages = withSystem([...before, { role: "user", content: question }]);
    const body = { ...fields, messages, stream: true, stream_options: { include_usage: true } };
    for await (const event of events("v1/chat/completions", body, stop.signal)) {
      turn.add(event);
      if (log.scrollHeight - log.scrollTop - log.clientHeight < NEAR_END_PX) toEnd();
    }
    turn.finish("done");
  } catch (error) {
    turn.finish(stop.signal.aborted ? "stopped" : "failed", error);
  }
  if (running === stop) setRunning(null);
  if (turns.at(-1) === turn) toEnd();
}

function setRunning(stop) {
  running = stop;
  byId("send").hidden = Boolean(stop);
  byId("stop").hidden = !stop;
  log.ariaBusy = String(Boolean(stop));
  if (stop) byId("status").textContent = "The model is answering.";
}

const toEnd = once(() => (log.scrollTop = log.scrollHeight));

function grow() {
  message.style.height = "auto";
  message.style.height = `${Math.min(message.scrollHeight, 240)}px`;
}
