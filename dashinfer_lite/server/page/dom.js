// Small helpers for elements and numbers. Nothing on this page is ever made from a string of HTML.

export const byId = (id) => document.getElementById(id);

/** An element with properties and children; a string as a child is text. */
export function make(tag, properties = {}, ...children) {
  const element = Object.assign(document.createElement(tag), properties);
  element.append(...children);
  return element;
}

const whole = new Intl.NumberFormat("en", { maximumFractionDigits: 0 });
const tenths = new Intl.NumberFormat("en", { minimumFractionDigits: 1, maximumFractionDigits: 1 });

export const count = (value) => whole.format(value);
export const rate = (value) => (value > 0 && value < 100 ? tenths : whole).format(value);
export const percent = (share) => `${(share > 0 && share < 0.1 ? tenths : whole).format(100 * share)} %`;
export const duration = (ms) => (ms < 1000 ? `${whole.format(ms)} ms` : `${(ms / 1000).toFixed(2)} s`);

/** Bytes as a person reads them. */
export function size(bytes) {
  const unit = bytes < 2 ** 30 ? ["MiB", 2 ** 20] : ["GiB", 2 ** 30];
  return `${(bytes / unit[1]).toFixed(bytes < 2 ** 30 ? 0 : 1)} ${unit[0]}`;
}

/** Runs `draw` with the next frame, once however often it is asked for. */
export function once(draw) {
  let isAsked = false;
  return () => {
    if (isAsked) return;
    isAsked = true;
    requestAnimationFrame(() => {
      isAsked = false;
      draw();
    });
  };
}

/** Puts a text on the clipboard and says so on the button. */
export async function copy(text, button) {
  const words = button.textContent;
  try {
    await navigator.clipboard.writeText(text);
    button.textContent = "Copied";
  } catch {
    button.textContent = "Not allowed";
  }
  setTimeout(() => (button.textContent = words), 1200);
}
