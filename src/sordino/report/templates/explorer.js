"use strict";
// Everything in a block of its own: the page's other script has names, too.
{
const ROWS = 25;
const byId = (id) => document.getElementById(id);
const data = JSON.parse(byId("data").textContent);

// The arrays. A neuron is its position: the sites' neurons one after the other.
const bytes = (text) => Uint8Array.from(atob(text), (c) => c.charCodeAt(0)).buffer;
const widened = (packed) =>
  packed && Float32Array.from(new Int16Array(bytes(packed.codes)), (c) => packed.rest + packed.step * c);
const auroc = new Float32Array(bytes(data.auroc));
const second = data.second && new Float32Array(bytes(data.second));
const factors = widened(data.factors);
const shifts = widened(data.shifts);
const count = auroc.length;
const starts = [];
data.sites.reduce((start, site) => (starts.push(start), start + site[3]), 0);

const siteOf = (neuron) => {
  let low = 0;
  let high = starts.length - 1;
  while (low < high) {
    const middle = (low + high + 1) >> 1;
    if (starts[middle] <= neuron) low = middle; else high = middle - 1;
  }
  return low;
};
const position = (path, index) => starts[data.sites.findIndex((site) => site[0] === path)] + index;
const shown = new Map(data.shown.map(([path, index], n) => [position(path, index), n + 1]));

// Ranks: from the highest AUROC down, ties in the model's order, those without one last. Keys are
// sorted as whole numbers of 64 bits, which is quick: above the bits of a positive float, which
// grow with it; below the neuron. Both halves are written and read by themselves, so no BigInt is
// made for each of millions of neurons.
const ranked = (values) => {
  const bits = new Uint32Array(values.buffer, values.byteOffset, values.length);
  const halves = new Uint32Array(2 * count);
  for (let n = 0; n < count; n++) {
    halves[2 * n] = ~n;
    halves[2 * n + 1] = Number.isNaN(values[n]) ? 0 : bits[n] + 1;
  }
  new BigUint64Array(halves.buffer).sort();
  return Uint32Array.from({ length: count }, (_, place) => ~halves[2 * (count - 1 - place)]);
};
const order = ranked(auroc);
const rank = new Uint32Array(count);
order.forEach((neuron, place) => { rank[neuron] = place + 1; });

const number = (value, digits) =>
  Number.isNaN(value) ? "none" : value.toFixed(digits).replace("-", "−");
const factorOf = (neuron) => (factors ? factors[neuron] : 1);

// Colours, from the theme.
const probe = document.createElement("span");
probe.hidden = true;
document.body.append(probe);
const themed = (name) => {
  probe.style.color = `var(--${name})`;
  return getComputedStyle(probe).color.match(/[\d.]+/g).slice(0, 3).map(Number);
};
const mixed = (from, to, share) => from.map((part, n) => part + share * (to[n] - part));

let widest = 0.01;
for (const value of auroc) if (Math.abs(value - 0.5) > widest) widest = Math.abs(value - 0.5);
if (second) for (const value of second) if (Math.abs(value - 0.5) > widest) widest = Math.abs(value - 0.5);

// What the map can show: each value lies around a middle, which looks like nothing. Up is where
// the accent is.
const modes = {
  auroc: { name: "AUROC", of: (n) => auroc[n], middle: 0.5, reach: widest, up: 1, digits: 3 },
};
if (second) {
  let apart = 0.01;
  for (let n = 0; n < count; n++) {
    const difference = Math.abs(auroc[n] - second[n]);
    if (difference > apart) apart = difference;
  }
  modes.second = { name: `AUROC, ${data.names[1]}`, of: (n) => second[n], middle: 0.5, reach: widest, up: 1, digits: 3 };
  modes.difference = { name: "Difference, first less second", of: (n) => auroc[n] - second[n], middle: 0, reach: apart, up: 1, digits: 3 };
}
if (factors) {
  let reach = 0.001;
  for (const value of factors) if (Math.abs(value - 1) > reach) reach = Math.abs(value - 1);
  modes.factor = { name: "Factor", of: (n) => factors[n], middle: 1, reach, up: -1, digits: 3 };
}
if (shifts) {
  let reach = 1e-6;
  for (const value of shifts) if (Math.abs(value) > reach) reach = Math.abs(value);
  modes.shift = { name: "Shift", of: (n) => shifts[n], middle: 0, reach, up: 1, digits: 3 };
}
let mode = modes.auroc;
// A value's place among 255 colours, 128 being the middle; 0 is kept for no neuron.
const codeOf = (value) => {
  if (Number.isNaN(value)) return 128;
  const apart = (mode.up * (value - mode.middle)) / mode.reach;
  return 128 + Math.round(127 * Math.sign(apart) * Math.min(1, Math.abs(apart)) ** 0.8);
};
let palette = new Uint8ClampedArray(256 * 4);
const paint = () => {
  const [paper, ink, accent, warm] = ["paper", "ink", "accent", "warm"].map(themed);
  const nothing = mixed(paper, ink, 0.05);
  palette = new Uint8ClampedArray(256 * 4);
  for (let code = 1; code < 256; code++) {
    const share = Math.abs(code - 128) / 127;
    palette.set([...mixed(nothing, code > 128 ? accent : warm, share), 255], 4 * code);
  }
};

// The map's plan, in cells: a block a layer and kind, all of one height.
const blocks = new Map();
data.sites.forEach(([, layer, kind], site) => {
  const key = `${layer} ${kind}`;
  if (!blocks.has(key)) blocks.set(key, { layer, kind, sites: [], neurons: 0 });
  const block = blocks.get(key);
  block.sites.push({ site, from: block.neurons });
  block.neurons += data.sites[site][3];
});
const layers = [...new Set(data.sites.map((site) => site[1]))].sort((a, b) => a - b);
const largest = data.kinds.map((_, kind) =>
  Math.max(...[...blocks.values()].filter((b) => b.kind === kind).map((b) => b.neurons)));
const GAP = 1;
const map = byId("map");
const EDGE = { left: 34, top: 24, right: 6, bottom: 6 };
const room = () => ({
  w: Math.max(1, map.clientWidth - EDGE.left - EDGE.right),
  h: Math.max(1, map.clientHeight - EDGE.top - EDGE.bottom),
});
// Blocks are as high as fills the map's place best.
const sized = (high) => [
  largest.reduce((sum, neurons) => sum + Math.ceil(neurons / high) + GAP, -GAP),
  layers.length * (high + GAP) - GAP,
];
const fit = (high) => {
  const { w, h } = room();
  const [wide, tall] = sized(high);
  return Math.min(w / wide, h / tall);
};
let high = 1;
while (fit(high + 1) > fit(high)) high++;
const [wide, tall] = sized(high);
const lefts = [];
largest.reduce((left, neurons) => (lefts.push(left), left + Math.ceil(neurons / high) + GAP), 0);
const row = new Map(layers.map((layer, n) => [layer, n]));
for (const block of blocks.values()) {
  block.left = lefts[block.kind];
  block.top = row.get(block.layer) * (high + GAP);
  block.wide = Math.ceil(block.neurons / high);
}
const blockOfSite = [];
for (const block of blocks.values()) for (const { site, from } of block.sites) blockOfSite[site] = { block, from };
const place = (neuron) => {
  const site = siteOf(neuron);
  const { block, from } = blockOfSite[site];
  const index = from + neuron - starts[site];
  return { x: block.left + (index % block.wide), y: block.top + Math.floor(index / block.wide), block };
};
const neuronAt = (x, y) => {
  const layer = layers[Math.floor(y / (high + GAP))];
  if (x < 0 || y < 0 || y % (high + GAP) >= high || layer === undefined) return -1;
  const kind = lefts.findLastIndex((left) => left <= x);
  const block = blocks.get(`${layer} ${kind}`);
  if (!block || x >= block.left + block.wide) return -1;
  const index = Math.floor(y - block.top) * block.wide + Math.floor(x - block.left);
  if (index >= block.neurons) return -1;
  const { site, from } = block.sites.findLast((part) => part.from <= index);
  return starts[site] + index - from;
};

// The map as images, one dot a neuron; each is half as large as the one before, and there a dot is
// the neuron of four that is furthest from the middle, so that rare ones do not drown.
let images = [];
const image = (codes, width, height) => {
  const canvas = document.createElement("canvas");
  canvas.width = width;
  canvas.height = height;
  const context = canvas.getContext("2d");
  const pixels = context.createImageData(width, height);
  const colours = new Uint32Array(palette.buffer);
  const into = new Uint32Array(pixels.data.buffer);
  for (let n = 0; n < codes.length; n++) into[n] = colours[codes[n]];
  context.putImageData(pixels, 0, 0);
  return { canvas, width, height };
};
const halved = (codes, width, height) => {
  const w = Math.ceil(width / 2);
  const h = Math.ceil(height / 2);
  const found = new Uint8Array(w * h);
  const far = (code) => (code ? Math.abs(code - 128) + 1 : 0);
  for (let y = 0; y < height; y++) {
    for (let x = 0; x < width; x++) {
      const to = (y >> 1) * w + (x >> 1);
      const code = codes[y * width + x];
      if (far(code) > far(found[to])) found[to] = code;
    }
  }
  return [found, w, h];
};
const redraw = () => {
  paint();
  let codes = new Uint8Array(wide * tall);
  let width = wide;
  let height = tall;
  for (const block of blocks.values()) {
    for (const { site, from } of block.sites) {
      for (let n = 0; n < data.sites[site][3]; n++) {
        const index = from + n;
        const at = (block.top + Math.floor(index / block.wide)) * wide + block.left + (index % block.wide);
        codes[at] = codeOf(mode.of(starts[site] + n));
      }
    }
  }
  images = [image(codes, width, height)];
  while (Math.max(width, height) > 400) {
    [codes, width, height] = halved(codes, width, height);
    images.push(image(codes, width, height));
  }
  key();
  draw();
};
const key = () => {
  const canvas = byId("scale");
  const context = canvas.getContext("2d");
  const ends = [Infinity, -Infinity];
  for (let n = 0; n < count; n++) {
    const value = mode.of(n);
    if (value < ends[0]) ends[0] = value;
    if (value > ends[1]) ends[1] = value;
  }
  ends.splice(0, 2, Math.min(ends[0], mode.middle), Math.max(ends[1], mode.middle));
  for (let x = 0; x < canvas.width; x++) {
    const code = codeOf(ends[0] + ((ends[1] - ends[0]) * x) / (canvas.width - 1));
    context.fillStyle = `rgb(${palette.slice(4 * code, 4 * code + 3).join(" ")})`;
    context.fillRect(x, 0, 1, canvas.height);
  }
  byId("scale-low").textContent = `${mode.name} ${number(ends[0], mode.digits)}`;
  byId("scale-high").textContent = number(ends[1], mode.digits);
};

// What is seen: `scale` CSS pixels a cell, and the cell at the plan's upper left corner.
const CLOSEST = 72;
const view = { scale: 0, x: 0, y: 0, whole: true };
const whole = () => {
  const { w, h } = room();
  return Math.min(w / wide, h / tall);
};
const kept = () => {
  const { w, h } = room();
  view.scale = Math.min(Math.max(view.whole ? 0 : view.scale, whole()), CLOSEST);
  view.whole = view.scale <= 1.001 * whole();
  const keep = (at, size, seen) => {
    const most = size - seen / view.scale;
    return most <= 0 ? most / 2 : Math.min(Math.max(at, 0), most);
  };
  view.x = keep(view.x, wide, w);
  view.y = keep(view.y, tall, h);
  map.style.touchAction = view.whole ? "pan-y" : "none";
};
const toPlan = (x, y) => [view.x + (x - EDGE.left) / view.scale, view.y + (y - EDGE.top) / view.scale];
const toScreen = (x, y) => [EDGE.left + (x - view.x) * view.scale, EDGE.top + (y - view.y) * view.scale];

let selected = -1;
let wanted = 0;
const draw = () => {
  if (!wanted) wanted = requestAnimationFrame(drawNow);
};
const drawNow = () => {
  wanted = 0;
  const ratio = devicePixelRatio || 1;
  const width = Math.round(map.clientWidth * ratio);
  const height = Math.round(map.clientHeight * ratio);
  if (map.width !== width || map.height !== height) Object.assign(map, { width, height });
  const context = map.getContext("2d");
  context.setTransform(ratio, 0, 0, ratio, 0, 0);
  context.clearRect(0, 0, map.clientWidth, map.clientHeight);
  const { w, h } = room();
  const level = Math.min(images.length - 1, Math.max(0, Math.ceil(Math.log2(1 / (view.scale * ratio)) - 0.01)));
  const drawn = images[level];
  context.save();
  context.beginPath();
  context.rect(EDGE.left, EDGE.top, w, h);
  context.clip();
  context.imageSmoothingEnabled = false;
  const [left, top] = toScreen(0, 0);
  const size = view.scale * 2 ** level;
  context.drawImage(drawn.canvas, left, top, drawn.width * size, drawn.height * size);
  gaps(context, left, top);
  if (view.scale > 9) grid(context);
  const accent = themed("ink");
  if (byId("map-marks")?.checked) {
    context.lineWidth = 1.5;
    context.strokeStyle = `rgb(${themed("series-2").join(" ")})`;
    for (const neuron of shown.keys()) ring(context, neuron, 4.5);
  }
  if (selected >= 0) {
    context.lineWidth = 2.5;
    context.strokeStyle = `rgb(${accent.join(" ")})`;
    ring(context, selected, 7);
  }
  context.restore();
  labels(context);
};
// Blocks stay apart, however many neurons a dot stands for.
const gaps = (context, left, top) => {
  const thick = Math.max(1, GAP * view.scale);
  context.fillStyle = `rgb(${themed("paper").join(" ")})`;
  for (let n = 1; n < layers.length; n++) {
    context.fillRect(left, top + (n * (high + GAP) - GAP) * view.scale, wide * view.scale, thick);
  }
  for (const at of lefts.slice(1)) {
    context.fillRect(left + (at - GAP) * view.scale, top, thick, tall * view.scale);
  }
};
// A frame round a neuron's cell, or a circle where the cell is too small to see.
const ring = (context, neuron, least) => {
  const { x, y } = place(neuron);
  const [left, top] = toScreen(x, y);
  context.beginPath();
  if (view.scale > 2 * least) context.rect(left - 1, top - 1, view.scale + 1, view.scale + 1);
  else context.arc(left + view.scale / 2, top + view.scale / 2, least, 0, 2 * Math.PI);
  context.stroke();
};
// Close up, cells are apart and say which neuron they are.
const grid = (context) => {
  const { w, h } = room();
  const [x0, y0] = toPlan(EDGE.left, EDGE.top).map(Math.floor);
  const [x1, y1] = [Math.ceil(x0 + w / view.scale) + 1, Math.ceil(y0 + h / view.scale) + 1];
  context.strokeStyle = `rgb(${themed("paper").join(" ")})`;
  context.lineWidth = 1;
  const ink = `rgb(${themed("ink").join(" ")})`;
  const paper = `rgb(${themed("paper").join(" ")})`;
  context.textAlign = "center";
  context.textBaseline = "middle";
  for (let y = Math.max(0, y0); y < Math.min(tall, y1); y++) {
    for (let x = Math.max(0, x0); x < Math.min(wide, x1); x++) {
      const neuron = neuronAt(x + 0.5, y + 0.5);
      if (neuron < 0) continue;
      const [left, top] = toScreen(x, y);
      context.strokeRect(left, top, view.scale, view.scale);
      if (view.scale < 40) continue;
      const value = mode.of(neuron);
      context.fillStyle = Math.abs(codeOf(value) - 128) > 80 ? paper : ink;
      const middle = left + view.scale / 2;
      context.font = "12px system-ui, sans-serif";
      context.fillText(String(neuron - starts[siteOf(neuron)]), middle, top + view.scale / 2 - 8);
      context.font = "11px system-ui, sans-serif";
      context.fillText(number(value, 3), middle, top + view.scale / 2 + 8);
    }
  }
};
const labels = (context) => {
  const { w, h } = room();
  context.fillStyle = `rgb(${themed("quiet").join(" ")})`;
  context.font = "12px system-ui, sans-serif";
  context.textBaseline = "middle";
  context.textAlign = "right";
  const step = high + GAP;
  const every = Math.max(1, Math.ceil(15 / (step * view.scale)));
  layers.forEach((layer, n) => {
    if (n % every) return;
    // The label stays in sight while any of its row is.
    const top = Math.max(toScreen(0, n * step)[1], EDGE.top);
    const bottom = Math.min(toScreen(0, n * step + high)[1], EDGE.top + h);
    if (bottom - top > 4) context.fillText(String(layer), EDGE.left - 6, (top + bottom) / 2);
  });
  context.textAlign = "center";
  data.kinds.forEach((kind, n) => {
    const left = Math.max(toScreen(lefts[n], 0)[0], EDGE.left);
    const right = Math.min(toScreen(lefts[n] + Math.ceil(largest[n] / high), 0)[0], EDGE.left + w);
    if (right - left < 24) return;
    context.save();
    context.beginPath();
    context.rect(left, 0, right - left, EDGE.top);
    context.clip();
    // The whole kind, or its last part, or as much of that as fits.
    const last = kind.split(".").pop();
    const cuts = Array.from(last, (_, cut) => `${last.slice(0, last.length - 1 - cut)}…`);
    const name = [kind, last, ...cuts].find((of) => context.measureText(of).width <= right - left - 3);
    context.fillText(name ?? "", (left + right) / 2, EDGE.top / 2 + 1);
    context.restore();
  });
};

// What is said of a neuron.
const readout = byId("map-readout");
const element = (name, text, attributes = {}) =>
  Object.assign(document.createElement(name), { textContent: text }, attributes);
const say = (neuron) => {
  const site = siteOf(neuron);
  const parts = [
    element("code", data.sites[site][0]), ` neuron ${neuron - starts[site]} · AUROC `,
    element("b", number(auroc[neuron], 4)),
  ];
  if (second) parts.push(` (${data.names[1]}: `, element("b", number(second[neuron], 4)), ")");
  parts.push(" · factor ", element("b", number(factorOf(neuron), 4)));
  if (shifts) parts.push(" · shift ", element("b", number(shifts[neuron], 4)));
  if (!Number.isNaN(auroc[neuron])) parts.push(` · rank ${rank[neuron].toLocaleString("en")} of ${count.toLocaleString("en")}`);
  if (shown.has(neuron)) parts.push(" · ", element("a", "details", { href: `#neuron-${shown.get(neuron)}` }));
  readout.replaceChildren(...parts);
};
const select = (neuron, { reveal = false } = {}) => {
  selected = neuron;
  if (neuron >= 0) {
    say(neuron);
    if (reveal) {
      const { x, y } = place(neuron);
      const { w, h } = room();
      view.scale = Math.max(view.scale, 24);
      view.whole = false;
      view.x = x + 0.5 - w / view.scale / 2;
      view.y = y + 0.5 - h / view.scale / 2;
      kept();
    } else keepInSight(neuron);
  }
  draw();
};
const keepInSight = (neuron) => {
  const { x, y } = place(neuron);
  const { w, h } = room();
  const [seenX, seenY] = [w / view.scale, h / view.scale];
  if (x < view.x) view.x = x;
  if (x + 1 > view.x + seenX) view.x = x + 1 - seenX;
  if (y < view.y) view.y = y;
  if (y + 1 > view.y + seenY) view.y = y + 1 - seenY;
  kept();
};
const zoom = (by, x = EDGE.left + room().w / 2, y = EDGE.top + room().h / 2) => {
  const [px, py] = toPlan(x, y);
  view.scale = Math.min(Math.max(view.scale * by, whole()), CLOSEST);
  view.whole = false;
  view.x = px - (x - EDGE.left) / view.scale;
  view.y = py - (y - EDGE.top) / view.scale;
  kept();
  draw();
};
const showWhole = () => {
  view.whole = true;
  kept();
  draw();
};
const closer = (n) => {
  const item = byId(`neuron-${n}`);
  item.querySelector("details").open = true;
  item.scrollIntoView();
  item.querySelector("summary").focus({ preventScroll: true });
};

// The mouse, fingers and keys.
const pointers = new Map();
let travelled = 0;
const local = (event) => {
  const box = map.getBoundingClientRect();
  return [event.clientX - box.left, event.clientY - box.top];
};
const spread = () => {
  const [one, other] = [...pointers.values()];
  return { at: [(one[0] + other[0]) / 2, (one[1] + other[1]) / 2], apart: Math.hypot(one[0] - other[0], one[1] - other[1]) };
};
map.addEventListener("pointerdown", (event) => {
  map.setPointerCapture(event.pointerId);
  pointers.set(event.pointerId, local(event));
  travelled = 0;
});
map.addEventListener("pointermove", (event) => {
  const now = local(event);
  const before = pointers.get(event.pointerId);
  if (!before) {
    const neuron = neuronAt(...toPlan(...now));
    if (neuron >= 0) say(neuron);
    return;
  }
  travelled += Math.hypot(now[0] - before[0], now[1] - before[1]);
  if (pointers.size === 2) {
    const was = spread();
    pointers.set(event.pointerId, now);
    const is = spread();
    zoom(is.apart / Math.max(1, was.apart), ...is.at);
    return;
  }
  pointers.set(event.pointerId, now);
  map.classList.toggle("moving", travelled > 4);
  view.x -= (now[0] - before[0]) / view.scale;
  view.y -= (now[1] - before[1]) / view.scale;
  kept();
  draw();
});
const lift = (event) => {
  const had = pointers.delete(event.pointerId);
  map.classList.remove("moving");
  if (!had || event.type !== "pointerup" || travelled > 4 || pointers.size) return;
  const neuron = neuronAt(...toPlan(...local(event)));
  if (neuron >= 0) select(neuron);
};
map.addEventListener("pointerup", lift);
map.addEventListener("pointercancel", lift);
map.addEventListener("pointerleave", () => { if (selected >= 0) say(selected); });
map.addEventListener("dblclick", (event) => zoom(3, ...local(event)));
map.addEventListener("wheel", (event) => {
  // Without the focus the page scrolls, as everywhere.
  if (!event.ctrlKey && document.activeElement !== map) return;
  event.preventDefault();
  zoom(Math.exp(-event.deltaY * (event.deltaMode ? 0.05 : 0.002)), ...local(event));
}, { passive: false });

// The next neuron that way: within a block by its rows, past its edge in the next block.
const step = (dx, dy) => {
  if (selected < 0) return order[0];
  let { x, y } = place(selected);
  for (let tries = 0; tries < Math.max(wide, tall); tries++) {
    x += dx;
    y += dy;
    if (x < 0 || y < 0 || x >= wide || y >= tall) return selected;
    const neuron = neuronAt(x + 0.5, y + 0.5);
    if (neuron >= 0) return neuron;
  }
  return selected;
};
const keys = {
  ArrowLeft: () => select(step(-1, 0)),
  ArrowRight: () => select(step(1, 0)),
  ArrowUp: () => select(step(0, -1)),
  ArrowDown: () => select(step(0, 1)),
  "+": () => (selected < 0 ? zoom(1.6) : zoomAtSelected(1.6)),
  "=": () => keys["+"](),
  "-": () => (selected < 0 ? zoom(1 / 1.6) : zoomAtSelected(1 / 1.6)),
  Home: showWhole,
  PageDown: () => select(order[Math.min(count - 1, selected < 0 ? 0 : rank[selected])]),
  PageUp: () => select(order[Math.max(0, selected < 0 ? 0 : rank[selected] - 2)]),
  Enter: () => { if (shown.has(selected)) location.hash = `neuron-${shown.get(selected)}`; },
};
const zoomAtSelected = (by) => {
  const { x, y } = place(selected);
  zoom(by, ...toScreen(x + 0.5, y + 0.5));
};
map.addEventListener("keydown", (event) => {
  const act = keys[event.key];
  if (!act || event.ctrlKey || event.metaKey || event.altKey) return;
  event.preventDefault();
  act();
});
byId("zoom-in").addEventListener("click", () => zoomAtCentre(2));
byId("zoom-out").addEventListener("click", () => zoomAtCentre(0.5));
const zoomAtCentre = (by) => (selected < 0 ? zoom(by) : zoomAtSelected(by));
byId("zoom-whole").addEventListener("click", showWhole);
byId("map-marks")?.addEventListener("change", draw);
for (const [name, of] of Object.entries(modes)) byId("map-mode").append(element("option", of.name, { value: name }));
byId("map-mode").addEventListener("change", (event) => {
  mode = modes[event.target.value];
  redraw();
});

// The search.
const form = byId("find");
for (const layer of layers) byId("find-layer").append(element("option", String(layer), { value: layer }));
data.kinds.forEach((kind, n) => byId("find-kind").append(element("option", kind, { value: n })));
const orders = { high: "highest AUROC", low: "lowest AUROC" };
if (factors) orders.factor = "smallest factor";
if (second) orders.second = `highest AUROC, ${data.names[1]}`;
for (const [value, name] of Object.entries(orders)) byId("find-order").append(element("option", name, { value }));
const ordered = { high: () => order, low: () => order.slice().reverse() };
if (factors) ordered.factor = () => order.slice().sort((a, b) => factors[a] - factors[b] || rank[a] - rank[b]);
if (second) ordered.second = () => ranked(second);
const made = {};
let found = order;
let first = 0;
const find = () => {
  const layer = byId("find-layer").value;
  const kind = byId("find-kind").value;
  const index = byId("find-index").value;
  const from = Number(byId("find-rank").value || 1);
  const by = byId("find-order").value;
  made[by] ??= ordered[by]();
  found = made[by];
  if (layer !== "" || kind !== "" || index !== "" || from > 1) {
    const fits = data.sites.map((site) => (layer === "" || site[1] === Number(layer)) && (kind === "" || site[2] === Number(kind)));
    found = found.filter((neuron) => {
      const site = siteOf(neuron);
      return fits[site] && rank[neuron] >= from && (index === "" || neuron - starts[site] === Number(index));
    });
  }
  first = 0;
  list();
};
const cell = (text, name = "td", style = "number") => element(name, text, { className: style });
const list = () => {
  const rows = [...found.subarray(first, first + ROWS)].map((neuron) => {
    const site = siteOf(neuron);
    const line = document.createElement("tr");
    const head = element("th", "", { scope: "row" });
    head.append(element("span", data.sites[site][0], { className: "code" }));
    const name = `${data.sites[site][0]} neuron ${neuron - starts[site]}`;
    const go = cell("", "td", "");
    const button = element("button", "map", { type: "button" });
    button.setAttribute("aria-label", `Show ${name} on the map`);
    button.addEventListener("click", () => toMap(neuron));
    if (shown.has(neuron)) {
      const link = element("a", "details", { href: `#neuron-${shown.get(neuron)}` });
      link.setAttribute("aria-label", `Details of ${name}`);
      go.append(link, " ");
    }
    go.append(button);
    line.append(cell(rank[neuron].toLocaleString("en")), head, cell(String(neuron - starts[site])), cell(number(auroc[neuron], 4)));
    if (second) line.append(cell(number(second[neuron], 4)));
    line.append(cell(number(factorOf(neuron), 4)), go);
    return line;
  });
  byId("results").tBodies[0].replaceChildren(...rows);
  const last = Math.min(first + ROWS, found.length);
  byId("find-count").textContent = found.length
    ? `${found.length.toLocaleString("en")} neurons; shown are ${(first + 1).toLocaleString("en")} to ${last.toLocaleString("en")}.`
    : "No neuron matches.";
  byId("find-back").disabled = first === 0;
  byId("find-on").disabled = last >= found.length;
};
const toMap = (neuron) => {
  byId("map-section").scrollIntoView();
  map.focus({ preventScroll: true });
  select(neuron, { reveal: true });
};
form.addEventListener("submit", (event) => event.preventDefault());
form.addEventListener("input", find);
form.addEventListener("reset", () => setTimeout(find));
byId("find-back").addEventListener("click", () => { first = Math.max(0, first - ROWS); list(); });
byId("find-on").addEventListener("click", () => { first += ROWS; list(); });
for (const button of document.querySelectorAll("button.to-map")) {
  button.addEventListener("click", () => {
    const [path, index] = data.shown[button.dataset.neuron - 1];
    toMap(position(path, index));
  });
}

// A link to a neuron opens it.
const follow = () => {
  const named = /^#neuron-(\d+)$/.exec(location.hash);
  if (named && byId(`neuron-${named[1]}`)) closer(named[1]);
};
addEventListener("hashchange", follow);
document.addEventListener("click", (event) => {
  const link = event.target.closest?.('a[href^="#neuron-"]');
  if (link && link.hash === location.hash) follow(); // the address does not change again
});

// The scatter of two expertises, as a density.
const scatter = byId("scatter");
const cross = scatter && (() => {
  const BINS = 160;
  const PAD = { left: 40, bottom: 28, top: 6, right: 6 };
  let low = 0.5;
  let top = 0.5;
  for (const of of [auroc, second]) for (const value of of) {
    if (value < low) low = value;
    if (value > top) top = value;
  }
  top += 1e-6;
  const bin = (value) => Math.min(BINS - 1, Math.floor((BINS * (value - low)) / (top - low)));
  const counts = new Uint32Array(BINS * BINS);
  const one = new Int32Array(BINS * BINS).fill(-1);
  for (const neuron of order) {
    if (Number.isNaN(auroc[neuron]) || Number.isNaN(second[neuron])) continue;
    const at = bin(second[neuron]) * BINS + bin(auroc[neuron]);
    counts[at]++;
    if (one[at] < 0) one[at] = neuron;
  }
  const most = Math.log1p(counts.reduce((a, b) => Math.max(a, b), 1));
  const side = () => ({
    w: scatter.clientWidth - PAD.left - PAD.right,
    h: scatter.clientHeight - PAD.top - PAD.bottom,
  });
  const at = (event) => {
    const box = scatter.getBoundingClientRect();
    const { w, h } = side();
    const x = Math.floor((BINS * (event.clientX - box.left - PAD.left)) / w);
    const y = BINS - 1 - Math.floor((BINS * (event.clientY - box.top - PAD.top)) / h);
    return x < 0 || y < 0 || x >= BINS || y >= BINS ? -1 : y * BINS + x;
  };
  const span = (n) => `${number(low + (n * (top - low)) / BINS, 3)} to ${number(low + ((n + 1) * (top - low)) / BINS, 3)}`;
  scatter.addEventListener("pointermove", (event) => {
    const place = at(event);
    if (place < 0) return;
    byId("scatter-readout").textContent =
      `${span(place % BINS)} across, ${span(Math.floor(place / BINS))} up: ${counts[place].toLocaleString("en")} neurons`;
  });
  scatter.addEventListener("click", (event) => {
    const place = at(event);
    if (place >= 0 && one[place] >= 0) toMap(one[place]);
  });
  return () => {
    const ratio = devicePixelRatio || 1;
    const [width, height] = [scatter.clientWidth, scatter.clientHeight];
    Object.assign(scatter, { width: Math.round(width * ratio), height: Math.round(height * ratio) });
    const context = scatter.getContext("2d");
    context.setTransform(ratio, 0, 0, ratio, 0, 0);
    const { w, h } = side();
    const pixels = new ImageData(BINS, BINS);
    const [accent, ink, quiet] = ["accent", "ink", "quiet"].map(themed);
    for (let y = 0; y < BINS; y++) {
      for (let x = 0; x < BINS; x++) {
        const here = counts[y * BINS + x];
        if (here) pixels.data.set([...accent, 60 + (195 * Math.log1p(here)) / most], 4 * ((BINS - 1 - y) * BINS + x));
      }
    }
    const dots = Object.assign(document.createElement("canvas"), { width: BINS, height: BINS });
    dots.getContext("2d").putImageData(pixels, 0, 0);
    context.imageSmoothingEnabled = false;
    context.drawImage(dots, PAD.left, PAD.top, w, h);
    const toX = (value) => PAD.left + (w * (value - low)) / (top - low);
    const toY = (value) => PAD.top + h - (h * (value - low)) / (top - low);
    context.strokeStyle = `rgb(${ink.join(" ")} / 0.45)`;
    context.setLineDash([3, 3]);
    context.beginPath();
    context.moveTo(toX(low), toY(low));
    context.lineTo(toX(top), toY(top));
    context.moveTo(toX(0.5), PAD.top);
    context.lineTo(toX(0.5), PAD.top + h);
    context.moveTo(PAD.left, toY(0.5));
    context.lineTo(PAD.left + w, toY(0.5));
    context.stroke();
    context.setLineDash([]);
    context.strokeStyle = `rgb(${quiet.join(" ")} / 0.6)`;
    context.strokeRect(PAD.left, PAD.top, w, h);
    context.fillStyle = `rgb(${quiet.join(" ")})`;
    context.font = "12px system-ui, sans-serif";
    for (let tick = Math.ceil(low * 10) / 10; tick < top; tick += 0.1) {
      context.textAlign = "center";
      context.textBaseline = "top";
      context.fillText(tick.toFixed(1), toX(tick), PAD.top + h + 7);
      context.textAlign = "right";
      context.textBaseline = "middle";
      context.fillText(tick.toFixed(1), PAD.left - 7, toY(tick));
    }
  };
})();

const again = () => { redraw(); cross?.(); };
new ResizeObserver(() => {
  kept();
  draw();
}).observe(map);
if (scatter) new ResizeObserver(cross).observe(scatter);
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", again);
new MutationObserver(again).observe(document.documentElement, { attributes: true, attributeFilter: ["data-theme"] });
kept();
redraw();
find();
follow();
}
