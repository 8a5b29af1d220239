// A message and the answer to it, growing: text, thoughts, figures.

import { byId, copy, count, duration, make, once, rate } from "./dom.js";
import { codeBlock, show } from "./markdown.js";

export class Turn {
  #isJson;
  #text = "";
  #thoughts = "";
  #usage = null;
  #pieces = 0;
  #began = performance.now();
  #first = null; // when the first piece came, and the last one
  #last = null;
  #body = make("div", { className: "text" });
  #figures = make("ul", { className: "figures" });
  #answer = null;
  #thinking = null;
  #drawSoon = once(() => this.#draw());

  /** `again` is called with this turn when somebody wants another answer. */
  constructor(question, isJson, again) {
    this.question = question;
    this.#isJson = isJson;
    const copyButton = make("button", { type: "button", className: "quiet" }, "Copy");
    copyButton.addEventListener("click", () => copy(this.#text, copyButton));
    const againButton = make("button", { type: "button", className: "quiet" }, "Try again");
    againButton.addEventListener("click", () => again(this));
    const actions = make("p", { className: "actions" }, copyButton, againButton);
    const foot = make("div", { className: "foot" }, this.#figures, actions);
    const asked = make("li", { className: "turn user" }, make("div", { className: "text" }, question));
    this.element = make("li", { className: "turn model" }, this.#body, foot);
    this.element.dataset.state = "waiting";
    this.elements = [asked, this.element];
  }

  /** What a later answer is told of this one: nothing where there is no answer. */
  messages() {
    const { question, element } = this;
    if (!this.#text || element.dataset.state === "failed") return [];
    return [{ role: "user", content: question }, { role: "assistant", content: this.#text }];
  }

  remove() {
    for (const element of this.elements) element.remove();
  }

  /** Take in an event of the stream. */
  add({ choices, usage }) {
    this.#usage = usage ?? this.#usage;
    const delta = choices[0]?.delta;
    if (!delta?.content && !delta?.reasoning_content) return;
    this.#last = performance.now();
    this.#first ??= this.#last;
    this.#pieces++;
    this.#text += delta.content ?? "";
    this.#thoughts += delta.reasoning_content ?? "";
    this.element.dataset.state = "streaming";
    this.#drawSoon();
  }

  /** `state`: done, stopped or failed. */
  finish(state, error) {
    this.element.dataset.state = state;
    this.#draw();
    if (state === "failed") this.#body.append(make("p", { className: "error" }, error.message));
    byId("status").textContent = { done: this.#text, stopped: "Stopped.", failed: error?.message }[state];
  }

  #draw() {
    if (this.#thoughts) this.#showThoughts();
    if (this.#isJson) this.#showJson();
    else show((this.#answer ??= this.#body.appendChild(make("div", { className: "markdown" }))), this.#text);
    const figures = this.#measured().map(([value, words]) => make("li", {}, make("b", {}, value), ` ${words}`));
    this.#figures.replaceChildren(...figures);
  }

  #showThoughts() {
    if (!this.#thinking) {
      this.#thinking = make("div", { className: "markdown" });
      this.#body.prepend(make("details", {}, make("summary", {}, "Thoughts"), this.#thinking));
    }
    show(this.#thinking, this.#thoughts);
  }

  #showJson() {
    const block = codeBlock(indented(this.#text), "json");
    if (this.#answer) this.#answer.replaceWith(block);
    else this.#body.append(block);
    this.#answer = block;
  }

  /** Values and their words. While the answer grows a piece counts as a token; the server's count comes at the end. */
  #measured() {
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

/** JSON with indents; a document that is not whole, or was cut short, as it came. */
function indented(text) {
  try {
    return JSON.stringify(JSON.parse(text), null, 2);
  } catch {
    return text;
  }
}
