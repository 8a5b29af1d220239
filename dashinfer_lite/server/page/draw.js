// What is drawn on canvases: curves, and the strokes of a lane. Colours are those of the element's style.

/** A canvas's context in CSS pixels, wiped; null where it is not shown. */
function surface(canvas) {
  const { clientWidth: width, clientHeight: height } = canvas;
  if (!width || !height) return null;
  const scale = devicePixelRatio || 1;
  const [w, h] = [Math.round(width * scale), Math.round(height * scale)];
  if (canvas.width !== w || canvas.height !== h) Object.assign(canvas, { width: w, height: h });
  const context = canvas.getContext("2d");
  context.setTransform(scale, 0, 0, scale, 0, 0);
  context.clearRect(0, 0, width, height);
  return { context, width, height, colour: getComputedStyle(canvas).color };
}

/** A curve over its own shade; the newest value is at the right edge. */
export function sparkline(canvas, values, slots = values.length) {
  const on = surface(canvas);
  if (!on || values.length < 2) return;
  const { context, width, height, colour } = on;
  const top = Math.max(...values, 1e-9);
  const step = width / Math.max(slots - 1, 1);
  const left = width - step * (values.length - 1);
  const y = (value) => height - 1.5 - (value / top) * (height - 5);
  context.beginPath();
  values.forEach((value, i) => context.lineTo(left + i * step, y(value)));
  context.strokeStyle = colour;
  context.lineWidth = 1.75;
  context.lineJoin = "round";
  context.stroke();
  context.lineTo(width, height);
  context.lineTo(left, height);
  context.globalAlpha = 0.14;
  context.fillStyle = colour;
  context.fill();
  context.globalAlpha = 1;
}

/** A lane of `span` ms: dots while it waits, a stroke a token (taller: surer), a bar where it ended. */
export function strokes(canvas, lane, span, now) {
  const on = surface(canvas);
  if (!on) return;
  const { context, width, height, colour } = on;
  const x = (ms) => (ms / span) * (width - 4) + 1;
  const begin = lane.times[0] ?? lane.end ?? now;
  context.fillStyle = colour;
  context.globalAlpha = 0.35;
  for (let at = 2; at < x(begin) - 3; at += 6) context.fillRect(at, height / 2 - 0.75, 2, 1.5);
  let left = -Infinity;
  lane.times.forEach((ms, i) => {
    const sure = lane.sureness[i];
    const tall = 3 + sure * (height - 5);
    const wide = Math.max(0.5, Math.min(2, 0.6 * (x(ms) - left)));
    left = x(ms);
    context.globalAlpha = 0.35 + 0.65 * sure;
    context.fillRect(left, (height - tall) / 2, wide, tall);
  });
  context.globalAlpha = 1;
  if (lane.end !== null) context.fillRect(x(lane.end) + 1, 1, 2, height - 2);
}
