// Elements and text. Everything a corpus or a model wrote enters the page as a text node.

const $ = (id) => document.getElementById(id);

function el(tag, attributes, ...children) {
  const node = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes ?? {})) {
    if (name === "class") node.className = value;
    else if (value !== null && value !== false) node.setAttribute(name, value === true ? "" : value);
  }
  node.append(...children.filter((child) => child !== null && child !== undefined));
  return node;
}

function button(label, attributes, onClick) {
  const node = el("button", { type: "button", ...attributes }, label);
  node.addEventListener("click", onClick);
  return node;
}

// Invisible characters, and characters that reorder the text around them.
const UNSEEN =
  /[\u0000-\u001f\u007f-\u009f\u00a0\u00ad\u061c\u200b\u200e\u200f\u2028-\u202e\u2060-\u206f\ufeff\ufff9-\ufffb\ud800-\udfff]/u;
const SIGNS = { "\n": "↵", "\r": "␍", "\t": "⇥", " ": "·", "\u00a0": "⍽", "\u007f": "␡" };

function sign(character) {
  const code = character.codePointAt(0);
  if (SIGNS[character]) return SIGNS[character];
  if (code < 32) return String.fromCharCode(0x2400 + code);
  return `⟨U+${code.toString(16).toUpperCase().padStart(4, "0")}⟩`;
}

// Replace invisible characters with signs. With `flows` the text is part of running text: lines break
// and spaces between words stay. Otherwise its leading spaces become signs too.
function visible(text, flows) {
  const blank = /^\s+$/.test(text);
  let start = true;
  const parts = [];
  let plain = "";
  const flush = () => {
    if (plain) parts.push(plain);
    plain = "";
  };
  for (const character of text) {
    const counts = character === " " && (blank || (start && !flows));
    start &&= character === " ";
    if (!UNSEEN.test(character) && !counts) {
      plain += character;
      continue;
    }
    flush();
    parts.push(el("span", { class: "sign" }, sign(character)));
    if (flows && character === "\n") plain += "\n";
    if (flows && character === "\t") plain += "\t";
  }
  flush();
  return parts;
}

const LONGEST = 400;

function clipped(text, most = LONGEST) {
  const characters = [...text.slice(0, 2 * most + 2)];
  return characters.length > most ? characters.slice(0, most).join("") + "…" : text;
}

const integers = new Intl.NumberFormat("en");
const count = (n, one) => `${integers.format(n)} ${one}${n === 1 ? "" : "s"}`;
const minus = (text) => text.replace(/^-/, "−");
const nats = (x) => (x === null || x === undefined ? "–" : minus(x.toFixed(2)));

function percent(p) {
  if (p === 0) return "0 %";
  if (p < 0.0001) return "<0.01 %";
  return `${(100 * p).toFixed(p < 0.1 ? 2 : 1)} %`;
}

const signed = (x) => (Number.isNaN(x) ? "–" : `${x < 0 ? "−" : "+"}${Math.abs(x).toFixed(3)}`);

function small(x) {
  if (x === null || x === undefined || Number.isNaN(x)) return "–";
  if (Math.abs(x) >= 1) return minus(x.toFixed(2));
  return minus(Math.abs(x) >= 0.001 || x === 0 ? x.toFixed(4) : x.toExponential(1));
}

function bytes(n) {
  for (const unit of ["B", "KB", "MB", "GB"]) {
    if (n < 1000) return `${unit === "B" ? n : n.toFixed(1)} ${unit}`;
    n /= 1000;
  }
  return `${n.toFixed(1)} TB`;
}
