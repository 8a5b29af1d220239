// The engine's figures, read from /metrics once a second while somebody looks.

import { call } from "./api.js";
import { sparkline } from "./draw.js";
import { byId, count, percent, rate, size } from "./dom.js";

const EVERY_MS = 1000;
const HISTORY = 60;

let last = null; // when the tokens were counted last, and how many
const rates = [];

export function setUpGauges() {
  setInterval(() => document.hidden || look(), EVERY_MS);
  look();
}

async function look() {
  try {
    const text = await (await call("metrics")).text();
    showFigures(read(text));
    document.body.dataset.engine = "up";
  } catch {
    document.body.dataset.engine = "down";
  }
}

/** Prometheus' text format as values by name, without the prefix that a server chooses; labels of one name add up. */
export function read(text) {
  const found = {};
  for (const line of text.split("\n")) {
    const parts = /^(?:\w+:)?(\w+)(\{.*\})? (\S+)$/.exec(line);
    if (!parts) continue;
    const [, name, labels, value] = parts;
    found[name] = (found[name] ?? 0) + Number(value);
    if (name === "cache_config_info") found.blocks = Number(/num_gpu_blocks="(\d+)"/.exec(labels)?.[1]);
  }
  return found;
}

function showFigures(found) {
  const now = performance.now();
  const tokens = found.generation_tokens_total;
  rates.push(last ? (1000 * (tokens - last.tokens)) / (now - last.now) : 0);
  rates.splice(0, rates.length - HISTORY);
  last = { now, tokens };
  byId("rate").textContent = rate(rates.at(-1));
  sparkline(byId("rate-spark"), rates, HISTORY);
  byId("running").textContent = count(found.num_requests_running);
  byId("waiting").textContent = count(found.num_requests_waiting);
  byId("memory").textContent = found.process_resident_memory_bytes ? size(found.process_resident_memory_bytes) : "–";
  const { kv_cache_usage_perc: used, kv_cache_cached_perc: kept, blocks } = found;
  gauge("kv", { used, kept }, used, `${percent(used)} of ${count(blocks)} blocks`);
  byId("kv-used").textContent = `${count(used * blocks)} in use`;
  byId("kv-kept").textContent = `${count(kept * blocks)} kept for prefixes`;
  const { prefix_cache_queries_total: asked, prefix_cache_hits_total: hits } = found;
  const share = asked ? hits / asked : 0;
  gauge("prefix", { kept: share }, share, asked ? `${percent(share)} of ${count(asked)} tokens` : "not asked yet");
}

function gauge(name, shares, now, words) {
  const track = byId(name).querySelector(".track");
  for (const [part, share] of Object.entries(shares)) {
    const bar = track.querySelector(`.${part}`);
    bar.style.width = `${100 * share}%`;
    bar.classList.toggle("none", !share);
  }
  track.ariaValueNow = String(Math.round(100 * now));
  track.ariaValueText = words;
  byId(`${name}-words`).textContent = words;
}
