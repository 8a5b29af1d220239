// Many answers at once: a lane for each, a stroke for each token, all on one axis of time.
//
// A browser opens few connections to one server, so all prompts travel in one request. They become token ids first,
// in the model's chat format; log probabilities come along, one a token: they count tokens and say how sure each was.

import { call, events } from "./api.js";
import { sparkline, strokes } from "./draw.js";
import { byId, count, make, rate } from "./dom.js";
import { sampling, withSystem } from "./settings.js";

const PROMPTS = [
  "Tell me a story about a fox.",
  "Write a short story about an owl and a key.",
  "What can you do?",
  "Tell me a story about a bear who found a lantern.",
];
const HUES = 5;
const FRAME_MS = 60; // drawing shares the processor with the engine
const WINDOW_MS = 1000; // of the rate that is shown
const LEAST_SPAN_MS = 1500;
const TAIL = 160; // characters of a lane that is closed

const [setup, score, board] = ["lanes-setup", "score", "scoreboard"].map(byId);
const [prompts, streams, tokens] = ["lanes-prompts", "lanes-count", "lanes-tokens"].map(byId);

let run = null;

export function setUpLanes() {
  prompts.value = PROMPTS.join("\n");
  const showCount = () => (byId("lanes-count-shown").value = streams.value);
  streams.addEventListener("input", showCount);
  showCount();
  setup.addEventListener("submit", (event) => {
    event.preventDefault();
    if (!run?.isRunning) start();
  });
  byId("lanes-stop").addEventListener("click", stopLanes);
  addEventListener("resize", () => run?.draw());
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => run?.draw());
  byId("theme").addEventListener("click", () => run?.draw());
}

/** End all lanes; false where none is running. */
export function stopLanes() {
  const wasRunning = Boolean(run?.isRunning);
  run?.stop();
  return wasRunning;
}

/** Draw again what was hidden. */
export const redrawLanes = () => run?.draw();

async function start() {
  const fields = sampling();
  const lines = prompts.value.split("\n").map((line) => line.trim()).filter(Boolean);
  if (!fields || !lines.length) return;
  byId("lanes-error").textContent = "";
  board.dataset.state = "running";
  setRunning(true);
  run = new Run(lines, streams.valueAsNumber);
  try {
    await run.go({ temperature: 0.8, ...fields, seed: undefined, max_tokens: tokens.valueAsNumber });
    board.dataset.state = "done";
    byId("status").textContent = `All streams are done: ${run.summary()}.`;
  } catch (error) {
    const isStopped = error.name === "AbortError";
    board.dataset.state = isStopped ? "stopped" : "failed";
    if (!isStopped) byId("lanes-error").textContent = error.message;
  }
  setRunning(false);
}

function setRunning(isRunning) {
  byId("lanes-start").hidden = isRunning;
  byId("lanes-stop").hidden = !isRunning;
}

/** One start of all lanes. */
class Run {
  isRunning = true;
  #abort = new AbortController();
  #began = performance.now();
  #now = 0;
  #total = 0; // tokens
  #recent = []; // [ms, tokens] of the newest events
  #rates = [];

  constructor(lines, amount) {
    this.lanes = Array.from({ length: amount }, (_, i) => new Lane(i, lines[i % lines.length], i % lines.length));
    score.replaceChildren(...this.lanes.map((lane) => lane.element));
  }

  stop() {
    this.#abort.abort();
  }

  async go(fields) {
    const { signal } = this.#abort;
    const timer = setInterval(() => this.#tick(), FRAME_MS);
    try {
      const prompt = await this.#tokenize(signal);
      this.#began = performance.now();
      this.#now = 0;
      const body = { ...fields, prompt, add_special_tokens: false, logprobs: 0, stream: true };
      for await (const { choices } of events("v1/completions", body, signal)) {
        for (const choice of choices) this.#add(choice);
      }
    } finally {
      clearInterval(timer);
      this.#tick();
      for (const lane of this.lanes) lane.close(this.#now);
      this.isRunning = false;
      this.draw();
    }
  }

  /** Tokens, seconds and the rate of the whole run, in words. */
  summary() {
    const total = this.#total;
    return `${count(total)} tokens in ${(this.#now / 1000).toFixed(1)} s, ${rate((1000 * total) / this.#now)} a second`;
  }

  async #tokenize(signal) {
    const texts = [...new Set(this.lanes.map((lane) => lane.prompt))];
    const ids = new Map();
    for (const text of texts) {
      const body = { messages: withSystem([{ role: "user", content: text }]), add_generation_prompt: true };
      ids.set(text, (await (await call("tokenize", { body, signal })).json()).tokens);
    }
    return this.lanes.map((lane) => ids.get(lane.prompt));
  }

  #add({ index, text, logprobs, finish_reason: reason }) {
    const drawn = logprobs?.token_logprobs ?? [];
    const now = this.#elapsed();
    this.lanes[index].add(now, text, drawn, reason);
    this.#total += drawn.length;
    this.#recent.push([now, drawn.length]);
  }

  #elapsed() {
    return performance.now() - this.#began;
  }

  #tick() {
    this.#now = this.#elapsed();
    for (const lane of this.lanes) lane.settle();
    this.#recent = this.#recent.filter(([ms]) => ms > this.#now - WINDOW_MS);
    const tokensNow = this.#recent.reduce((sum, [, amount]) => sum + amount, 0);
    this.#rates.push((1000 * tokensNow) / Math.min(WINDOW_MS, Math.max(this.#now, FRAME_MS)));
    this.draw();
  }

  draw() {
    const those = (state) => this.lanes.filter((lane) => lane.state === state).length;
    const mean = this.#now ? (1000 * this.#total) / this.#now : 0;
    const figures = {
      rate: rate(this.isRunning ? this.#rates.at(-1) ?? 0 : mean),
      waiting: count(those("waiting")),
      writing: count(those("writing")),
      done: count(those("done")),
      total: count(this.#total),
      time: (this.#now / 1000).toFixed(1),
    };
    for (const [name, value] of Object.entries(figures)) byId(`lanes-${name}`).textContent = value;
    sparkline(byId("lanes-spark"), this.#rates);
    const span = Math.max(LEAST_SPAN_MS, this.#now * (this.isRunning ? 1.06 : 1));
    for (const lane of this.lanes) lane.draw(span, this.#now);
  }
}

/** One answer. */
class Lane {
  times = [];
  sureness = []; // the probability of each token
  end = null;
  #text = "";
  #fresh = []; // what came since the last frame
  #came = 0; // when the newest of it did
  #hasEnded = false;

  constructor(index, prompt, hue) {
    this.prompt = prompt;
    this.canvas = make("canvas", { ariaHidden: "true" });
    this.words = make("span", {});
    this.tail = make("button", { type: "button", className: "tail", title: prompt, ariaExpanded: "false" }, this.words);
    this.tail.addEventListener("click", () => {
      this.tail.ariaExpanded = String(this.tail.ariaExpanded !== "true");
      this.#show();
    });
    this.amount = make("span", { className: "amount" });
    const number = make("span", { className: "number" }, String(index + 1));
    this.element = make("li", { className: `lane hue-${hue % HUES}` }, number, this.canvas, this.tail, this.amount);
  }

  add(ms, text, logprobs, reason) {
    this.#came = ms;
    this.#text += text;
    this.#fresh.push(...logprobs.map((logprob) => Math.exp(logprob ?? 0)));
    this.#hasEnded ||= Boolean(reason);
  }

  /** Give what came in a bunch, as browsers hand it over, even places since the last token before it. */
  settle() {
    let at = this.times.at(-1) ?? this.#came;
    const step = (this.#came - at) / Math.max(this.#fresh.length, 1);
    for (const sure of this.#fresh.splice(0)) {
      this.times.push((at += step));
      this.sureness.push(sure);
    }
    if (this.#hasEnded) this.end ??= this.#came;
  }

  /** Nothing more will come. */
  close(ms) {
    this.end ??= ms;
  }

  get state() {
    if (this.end !== null) return this.#hasEnded ? "done" : "stopped";
    return this.times.length ? "writing" : "waiting";
  }

  draw(span, now) {
    this.element.dataset.state = this.state;
    this.#show();
    this.amount.textContent = this.times.length ? count(this.times.length) : "";
    strokes(this.canvas, this, span, now);
  }

  #show() {
    const isOpen = this.tail.ariaExpanded === "true";
    const text = isOpen ? `${this.prompt}\n\n${this.#text.trim()}` : this.#text.replace(/\s+/g, " ").trim().slice(-TAIL);
    if (this.words.textContent !== text) this.words.textContent = text || this.prompt;
  }
}
