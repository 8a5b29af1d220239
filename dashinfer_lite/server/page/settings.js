// How answers are drawn: the fields of the form, kept in this browser. An empty field is left to the model.

import { byId } from "./dom.js";

const KEY = "dashinfer-settings";
const NUMBERS = ["temperature", "top_p", "max_tokens", "seed"];

const form = byId("settings");

/** Fill in what was kept, and keep what changes. */
export function setUpSettings() {
  let kept = {};
  try {
    kept = JSON.parse(localStorage.getItem(KEY)) ?? {};
  } catch {
    localStorage.removeItem(KEY);
  }
  for (const name of [...NUMBERS, "system"]) form.elements[name].value = kept[name] ?? "";
  const keep = () => localStorage.setItem(KEY, JSON.stringify(Object.fromEntries(new FormData(form))));
  form.addEventListener("input", keep);
  form.addEventListener("reset", () => setTimeout(keep));
  form.addEventListener("submit", (event) => event.preventDefault());
}

/** The request's sampling fields; null where one is out of its bounds, which is then shown. */
export function sampling() {
  if (!form.checkValidity()) {
    form.reportValidity();
    return null;
  }
  const given = NUMBERS.filter((name) => form.elements[name].value !== "");
  return Object.fromEntries(given.map((name) => [name, form.elements[name].valueAsNumber]));
}

/** The conversation with the system prompt before it. */
export function withSystem(messages) {
  const system = form.elements.system.value.trim();
  return system ? [{ role: "system", content: system }, ...messages] : messages;
}
