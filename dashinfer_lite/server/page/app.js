// Puts the page together: the model's name, the two views, the panel, the keyboard, the question for a key.

import { call, onKeyNeeded } from "./api.js";
import { setUpChat, stopChat } from "./chat.js";
import { byId, copy, count } from "./dom.js";
import { setUpGauges } from "./gauges.js";
import { redrawLanes, setUpLanes, stopLanes } from "./lanes.js";
import { setUpSettings } from "./settings.js";

const VIEWS = ["chat", "lanes"];
const RETRY_MS = 1000;

onKeyNeeded(askForKey);
setUpSettings();
setUpChat();
setUpLanes();
setUpTabs();
setUpPanel();
setUpUrl();
addEventListener("keydown", (event) => {
  if (event.key !== "Escape" || event.defaultPrevented || document.querySelector("dialog[open]")) return;
  if (!(byId("chat").hidden ? stopLanes() : stopChat())) openPanel(false);
});
findModel();

/** Shows the model as soon as it is there: a server that is still loading says 503. */
async function findModel() {
  try {
    const { data } = await (await call("v1/models")).json();
    byId("model").textContent = data[0].id;
    byId("model").title = `${data[0].id}: prompt and answer have at most ${count(data[0].max_model_len)} tokens`;
    byId("lanes-tokens").max = data[0].max_model_len;
    document.title = `${data[0].id} · DashInfer Lite`;
    setUpGauges();
    if (!matchMedia("(pointer: coarse)").matches) byId("message").focus();
  } catch (error) {
    byId("model").textContent = error.status === 503 ? "loading…" : error.status === 401 ? "no key" : "not reachable";
    if (error.status !== 401) setTimeout(findModel, RETRY_MS);
  }
}

function askForKey(isWrong) {
  const dialog = byId("key-dialog");
  if (isWrong) byId("key-words").textContent = "The server does not know this key. Try another one.";
  byId("key").value = "";
  dialog.returnValue = "";
  dialog.showModal();
  return new Promise((resolve) => {
    dialog.addEventListener("close", () => resolve(byId("key").value.trim() || null), { once: true });
  });
}

function setUpTabs() {
  const tabs = VIEWS.map((view) => byId(`tab-${view}`));
  const choose = (view) => {
    for (const each of VIEWS) {
      byId(each).hidden = each !== view;
      byId(`tab-${each}`).ariaSelected = String(each === view);
      byId(`tab-${each}`).tabIndex = each === view ? 0 : -1;
    }
    history.replaceState(null, "", view === "chat" ? location.pathname : `#${view}`);
    redrawLanes();
  };
  tabs.forEach((tab, i) => {
    tab.addEventListener("click", () => choose(VIEWS[i]));
    tab.addEventListener("keydown", (event) => {
      if (event.key !== "ArrowLeft" && event.key !== "ArrowRight") return;
      const next = (i + 1) % VIEWS.length;
      choose(VIEWS[next]);
      tabs[next].focus();
    });
  });
  const wanted = location.hash.slice(1);
  if (VIEWS.includes(wanted)) choose(wanted);
}

function setUpPanel() {
  const toggle = byId("panel-toggle");
  toggle.addEventListener("click", () => openPanel(toggle.ariaExpanded !== "true"));
  byId("chat").addEventListener("pointerdown", () => openPanel(false));
  byId("lanes").addEventListener("pointerdown", () => openPanel(false));
}

/** Only narrow screens hide the panel. */
function openPanel(isOpen) {
  const toggle = byId("panel-toggle");
  if (toggle.ariaExpanded === String(isOpen)) return;
  toggle.ariaExpanded = String(isOpen);
  document.body.classList.toggle("panel-open", isOpen);
  if (isOpen) byId("panel").querySelector("input").focus({ preventScroll: true });
  else if (byId("panel").contains(document.activeElement)) toggle.focus();
}

function setUpUrl() {
  const url = new URL("v1", document.baseURI).href;
  byId("base-url").textContent = url;
  byId("copy-url").addEventListener("click", () => copy(url, byId("copy-url")));
}
