// Markdown to elements, by text nodes alone: nothing a model writes can become markup of its own.
// Handled: paragraphs, headings, lists, quotes, fenced code, tables, rules; code, bold, italic, struck, links.

import { make } from "./dom.js";

const DEEPEST = 8; // quotes inside quotes

/** Shows a text in an element; parts that have not changed since the last call are left as they are. */
export function show(element, text, depth = 0) {
  const parts = split(text);
  const old = element.parts ?? [];
  let same = 0;
  while (same < parts.length && same < old.length && parts[same] === old[same]) same++;
  while (element.childNodes.length > same) element.lastChild.remove();
  for (const part of parts.slice(same)) element.append(block(part.split("\n"), depth));
  element.parts = parts;
}

const FENCE = /^ {0,3}(`{3,}|~{3,})\s*([\w+#.-]*)/;
const HEADING = /^ {0,3}(#{1,6})\s+(.*?)\s*#*$/;
const RULE = /^ {0,3}([-*_])( *\1){2,} *$/;
const QUOTE = /^ {0,3}> ?/;
const ITEM = /^( *)([-*+]|\d{1,9}[.)])\s+(.*)$/;
const DIVIDER = /^ *\|? *:?-+:? *(\| *:?-+:? *)*\|? *$/;

/** The source of each block. */
function split(text) {
  const parts = [];
  let part = [];
  let fence = null;
  const close = () => {
    if (part.length) parts.push(part.join("\n"));
    part = [];
  };
  for (const line of text.replaceAll("\r", "").split("\n")) {
    if (fence) {
      part.push(line);
      if (closes(line, fence)) {
        close();
        fence = null;
      }
      continue;
    }
    const opens = FENCE.exec(line);
    const isIndented = /^ {2,}\S/.test(line) && ITEM.test(part[0] ?? "");
    if (opens && !isIndented) {
      close();
      fence = opens[1];
      part.push(line);
    } else if (HEADING.test(line) || (RULE.test(line) && !part.length)) {
      close();
      part.push(line);
      close();
    } else if (!line.trim()) {
      close();
    } else {
      if (part.length && kind(line) !== kind(part[0]) && (kind(line) !== "p" || kind(part[0]) === "table")) close();
      part.push(line);
    }
  }
  close();
  return parts;
}

/** Whether a line ends a block of code: at least as many marks as began it, and nothing else. */
function closes(line, fence) {
  const words = line.trim();
  return words.startsWith(fence) && !words.replaceAll(fence[0], "");
}

function kind(line) {
  if (QUOTE.test(line)) return "quote";
  if (ITEM.test(line)) return "list";
  return /^ *\|.*\|/.test(line) ? "table" : "p";
}

function block(lines, depth) {
  const [first] = lines;
  const fence = FENCE.exec(first);
  if (fence) return code(lines, fence);
  const heading = HEADING.exec(first);
  if (heading) return fill(make(`h${Math.min(heading[1].length + 2, 6)}`), heading[2]);
  if (RULE.test(first)) return make("hr");
  if (QUOTE.test(first) && depth < DEEPEST) {
    const quote = make("blockquote");
    show(quote, lines.map((line) => line.replace(QUOTE, "")).join("\n"), depth + 1);
    return quote;
  }
  if (lines.length > 1 && first.includes("|") && DIVIDER.test(lines[1])) return table(lines);
  if (ITEM.test(first)) return list(lines);
  return fill(make("p"), lines.join("\n"));
}

function code(lines, [, fence, language]) {
  const isClosed = lines.length > 1 && closes(lines.at(-1), fence);
  const body = lines.slice(1, isClosed ? -1 : undefined).join("\n");
  return codeBlock(body, language);
}

/** A block of code; JSON is coloured. */
export function codeBlock(text, language = "") {
  const inside = make("code");
  if (language.toLowerCase() === "json") inside.append(...colours(text));
  else inside.textContent = text;
  const pre = make("pre", { tabIndex: 0 }, inside);
  if (language) pre.dataset.language = language;
  return pre;
}

const JSON_PARTS = /("(?:[^"\\]|\\.)*"?)(\s*:)?|\b(true|false|null)\b|-?\d+(?:\.\d+)?(?:[eE][+-]?\d+)?/g;

function* colours(text) {
  let from = 0;
  for (const found of text.matchAll(JSON_PARTS)) {
    yield text.slice(from, found.index);
    const [whole, string, colon, word] = found;
    const className = string ? (colon ? "name" : "string") : word ? "word" : "number";
    yield make("span", { className }, string ?? whole);
    yield colon ?? "";
    from = found.index + whole.length;
  }
  yield text.slice(from);
}

function list(lines) {
  const { 1: indent, 2: mark } = ITEM.exec(lines[0]);
  const isOrdered = /\d/.test(mark);
  const element = make(isOrdered ? "ol" : "ul");
  if (isOrdered) element.start = parseInt(mark, 10);
  let inner = [];
  const close = () => {
    if (inner.length) element.lastChild.append(...nested(inner));
    inner = [];
  };
  for (const line of lines) {
    const item = ITEM.exec(line);
    if (item && item[1].length < indent.length + 2) {
      close();
      element.append(fill(make("li"), item[3]));
    } else {
      inner.push(line);
    }
  }
  close();
  return element;
}

/** What stands under an item: lists of its own, or more of its text. */
function nested(lines) {
  const at = lines.findIndex((line) => ITEM.test(line));
  const words = (at < 0 ? lines : lines.slice(0, at)).map((line) => line.trim()).join("\n");
  const parts = words ? [document.createTextNode(" "), ...inline(words)] : [];
  return at < 0 ? parts : [...parts, list(lines.slice(at))];
}

function table(lines) {
  const cells = (line) => line.trim().replace(/^\||\|$/g, "").split(/(?<!\\)\|/).map((cell) => cell.trim().replaceAll("\\|", "|"));
  const aligned = cells(lines[1]).map((cell) => (/^:.*:$/.test(cell) ? "center" : cell.endsWith(":") ? "right" : ""));
  const row = (line, tag) =>
    make("tr", {}, ...cells(line).map((cell, i) => fill(make(tag, { className: aligned[i] ?? "" }), cell)));
  const head = make("thead", {}, row(lines[0], "th"));
  const body = make("tbody", {}, ...lines.slice(2).map((line) => row(line, "td")));
  return make("div", { className: "wide-table" }, make("table", {}, head, body));
}

const INLINE = [
  [/^(`{1,4})(?!`)([\s\S]*?[^`])\1(?!`)/, (m) => make("code", {}, m[2].trim())],
  [/^\*\*(?=\*?[^\s*])([\s\S]*?\S)\*\*(?!\*)/, (m) => fill(make("strong"), m[1])],
  [/^__(?=_?[^\s_])([\s\S]*?\S)__(?!\w)/, (m) => fill(make("strong"), m[1])],
  [/^\*(?=[^\s*])([^*]*?[^\s*])\*(?!\*)/, (m) => fill(make("em"), m[1])],
  [/^_(?=[^\s_])([^_]*?[^\s_])_(?!\w)/, (m) => fill(make("em"), m[1])],
  [/^~~(?=[^\s~])([\s\S]*?\S)~~/, (m) => fill(make("del"), m[1])],
  [/^!?\[([^\]\n]*)\]\(\s*((?:[^\s()]|\([^\s()]*\))+)(?:\s+"[^"]*")?\s*\)/, (m) => link(m[2], m[1], m[0])],
  [/^<?(https?:\/\/[^\s<>"')\]]*[^\s<>"')\].,;:!?])>?/, (m) => link(m[1], m[1], m[0])],
  [/^\\([\\`*_{}[\]()#+.!|~>-])/, (m) => document.createTextNode(m[1])],
  [/^ {2,}\n/, () => make("br")],
];

const MARKS = "*_~`";
const REACH = 2000; // characters in which what a mark begins must end

/** The nodes of a line's text. */
function inline(text) {
  const nodes = [];
  let plain = "";
  for (let at = 0; at < text.length; ) {
    const node = special(text, at);
    if (!node) {
      const begin = at++;
      while (MARKS.includes(text[at]) && text[at] === text[begin]) at++; // a run of marks is looked at once
      plain += text.slice(begin, at);
      continue;
    }
    if (plain) nodes.push(document.createTextNode(plain));
    plain = "";
    nodes.push(node.made);
    at += node.length;
  }
  if (plain) nodes.push(document.createTextNode(plain));
  return nodes;
}

function special(text, at) {
  if (!"`*_~![<h\\ ".includes(text[at])) return null;
  if ("_h".includes(text[at]) && /\w/.test(text[at - 1] ?? "")) return null;
  const rest = text.slice(at, at + REACH);
  for (const [pattern, build] of INLINE) {
    const found = pattern.exec(rest);
    if (found) return { made: build(found), length: found[0].length };
  }
  return null;
}

/** A link to the web or to a mailbox; any other address stays the text it was. */
function link(address, words, source) {
  if (!/^(https?:\/\/|mailto:)/i.test(address)) return document.createTextNode(source);
  const made = make("a", { href: address, target: "_blank", rel: "noopener noreferrer nofollow" });
  return words === address ? (made.append(words), made) : fill(made, words || address);
}

function fill(element, text) {
  element.append(...inline(text));
  return element;
}
