"use strict";
// Draws the points of a map into a canvas, pixel by pixel, and shows the image under the pointer.
(() => {
const by = id => document.getElementById(id);
const data = JSON.parse(by("data").textContent);
const rgb = text => [1, 3, 5].map(at => parseInt(text.slice(at, at + 2), 16));
const bytes = text => Uint8Array.from(atob(text), c => c.charCodeAt(0)).buffer;
const flat = new Float32Array(bytes(data.points));
const D = data.dimensions, N = data.count, ALL = flat.length / D;
const DISC = "disc", SHAPES = {
  disc: (x, y) => x * x + y * y <= 0.92,
  square: (x, y) => Math.max(Math.abs(x), Math.abs(y)) <= 0.8,
  triangle: (x, y) => y <= 0.75 && Math.abs(x) <= (y + 0.95) * 0.56,
  wedge: (x, y) => -y <= 0.75 && Math.abs(x) <= (0.95 - y) * 0.56,
  diamond: (x, y) => Math.abs(x) + Math.abs(y) <= 1.02,
  plus: (x, y) => Math.max(Math.abs(x), Math.abs(y)) <= 0.95 && Math.min(Math.abs(x), Math.abs(y)) <= 0.36,
  cross: (x, y) => SHAPES.plus((x + y) * 0.72, (x - y) * 0.72),
  pentagon: (x, y) => [0, 1, 2, 3, 4].every(k => x * Math.sin(k * 1.2566) + y * Math.cos(k * 1.2566) <= 0.8),
  star: (x, y) => {
    const turn = Math.PI / 5, around = Math.abs(((Math.atan2(x, -y) + 9 * turn) % (2 * turn)) - turn);
    return Math.hypot(x, y) <= 0.42 + 0.58 * Math.pow(1 - around / turn, 1.4);
  },
};

// On a dark background the dark end of the colours for numbers is made lighter, to be visible.
const dark = matchMedia("(prefers-color-scheme: dark)");
const lifted = data.ramp.map((colour, step) => {
  const share = 0.45 * (1 - step / (data.ramp.length - 1));
  return "#" + rgb(colour).map(c => Math.round(c + (255 - c) * share).toString(16).padStart(2, "0")).join("");
});
const ramp = () => dark.matches ? lifted : data.ramp;

// Colourings: the group of each point, and the colour, shape and visibility of each group.
const colourings = data.colourings.map(each => each.classes
  ? { ...each, codes: new Int32Array(bytes(each.codes)), member: new Int32Array(bytes(each.member)),
      shown: each.groups.map(() => true) }
  : { ...each, values: new Float64Array(bytes(each.values)) });
if (!colourings.length) {
  colourings.push({ title: "nothing", member: new Int32Array(N), shown: [true], classes: null,
    groups: [{ name: "images", colour: "#0072b2", shape: DISC, count: N, named: false }] });
}
for (const each of colourings) if (each.values) {
  const span = each.high > each.low ? each.high - each.low : 1, last = data.ramp.length - 1;
  each.missing = last + 1; // the group of points without a number
  each.groups = data.ramp.map((_, step) => ({ get colour() { return ramp()[step]; }, shape: DISC })).concat(each.groups);
  each.shown = each.groups.map(() => true);
  each.member = Int32Array.from(each.values, v => Number.isNaN(v) ? each.missing
    : Math.round(Math.max(0, Math.min(1, (v - each.low) / span)) * last));
}
let now = colourings[0];

// The view: middle and scale of the map, and in three dimensions its rotation.
const map = by("map"), canvas = by("points"), above = by("above"), tip = by("tip");
const brush = canvas.getContext("2d"), pen = above.getContext("2d");
const middle = new Float64Array(3);
let half = 0;
for (let d = 0; d < D; d++) {
  let low = Infinity, high = -Infinity;
  for (let i = d; i < flat.length; i += D) { low = Math.min(low, flat[i]); high = Math.max(high, flat[i]); }
  middle[d] = (low + high) / 2;
  half = Math.max(half, (high - low) / 2);
}
if (D === 3) { // all points are visible in every rotation
  for (let i = 0; i < flat.length; i += 3) {
    half = Math.max(half, Math.hypot(flat[i] - middle[0], flat[i + 1] - middle[1], flat[i + 2] - middle[2]));
  }
}
half = half || 1;
const start = { x: 0, y: 0, zoom: 1, yaw: -0.6, pitch: 0.45 };
let view = { ...start };
let wide = 0, high = 0, dense = 1, frame = null, pixels = null, paper = 0, waiting = false, under = -1;
const sx = new Float32Array(ALL), sy = new Float32Array(ALL), depth = new Float32Array(ALL);
let order = Uint32Array.from({ length: N }, (_, i) => i);
for (let i = N - 1, state = 12345; i > 0; i--) { // shuffle, so that no class covers another
  state = (Math.imul(state, 1664525) + 1013904223) >>> 0;
  const j = state % (i + 1), kept = order[i];
  order[i] = order[j]; order[j] = kept;
}
const shuffled = order;

const packed = ([r, g, b]) => (255 << 24 | b << 16 | g << 8 | r) >>> 0; // little-endian RGBA
const style = name => getComputedStyle(document.documentElement).getPropertyValue(name).trim();
const visible = i => i >= N || now.shown[now.member[i]];

function sprite(shape, radius) { // coverage of each pixel by the shape, 0 to 256
  const side = 2 * Math.ceil(radius) + 1, fine = 4, cover = new Uint16Array(side * side);
  for (let y = 0; y < side; y++) for (let x = 0; x < side; x++) {
    let inside = 0;
    for (let v = 0; v < fine; v++) for (let u = 0; u < fine; u++) {
      const px = x + (u + 0.5) / fine - side / 2, py = y + (v + 0.5) / fine - side / 2;
      if (SHAPES[shape](px / radius, py / radius)) inside++;
    }
    cover[y * side + x] = inside * 256 / (fine * fine);
  }
  return { side, cover };
}
const sprites = new Map();
function stamp(shape, radius) {
  const key = shape + radius;
  if (!sprites.has(key)) sprites.set(key, sprite(shape, radius));
  return sprites.get(key);
}

function place() { // computes the position of every point on the canvas
  const scale = Math.min(wide, high) / 2 * 0.94 / half * view.zoom;
  const left = wide / 2 + view.x, top = high / 2 + view.y;
  if (D === 2) {
    for (let i = 0, k = 0; i < ALL; i++, k += 2) {
      sx[i] = left + (flat[k] - middle[0]) * scale;
      sy[i] = top - (flat[k + 1] - middle[1]) * scale;
    }
    return;
  }
  const [cy, ny, cp, np] = [Math.cos(view.yaw), Math.sin(view.yaw), Math.cos(view.pitch), Math.sin(view.pitch)];
  for (let i = 0, k = 0; i < ALL; i++, k += 3) {
    const x = flat[k] - middle[0], y = flat[k + 1] - middle[1], z = flat[k + 2] - middle[2];
    const a = x * cy - y * ny, b = x * ny + y * cy;
    sx[i] = left + a * scale;
    sy[i] = top - (z * cp - b * np) * scale;
    depth[i] = b * cp + z * np; // larger is farther away
  }
}

function sortByDepth() { // far points first: a counting sort over 1,024 slices
  const slices = 1024, from = new Uint32Array(slices + 1), slice = new Uint16Array(N);
  for (let i = 0; i < N; i++) {
    slice[i] = Math.max(0, Math.min(slices - 1, (half - depth[i]) / (2 * half) * slices));
    from[slice[i] + 1]++;
  }
  for (let s = 0; s < slices; s++) from[s + 1] += from[s];
  order = new Uint32Array(N);
  for (let i = 0; i < N; i++) order[from[slice[i]]++] = i;
}

function put(i, mark, red, green, blue, opacity) {
  const side = mark.side, x0 = Math.round(sx[i] - side / 2), y0 = Math.round(sy[i] - side / 2);
  if (x0 < 0 || y0 < 0 || x0 + side > wide || y0 + side > high) return;
  for (let y = 0, at = 0, row = y0 * wide + x0; y < side; y++, row += wide) {
    for (let x = 0; x < side; x++, at++) {
      const share = mark.cover[at] * opacity >> 8;
      if (!share) continue;
      const old = pixels[row + x], rest = 256 - share;
      const r = (red * share + (old & 255) * rest) >> 8;
      const g = (green * share + (old >> 8 & 255) * rest) >> 8;
      const b = (blue * share + (old >> 16 & 255) * rest) >> 8;
      pixels[row + x] = 255 << 24 | b << 16 | g << 8 | r;
    }
  }
}

function radius() {
  const base = Math.max(1.3, Math.min(4.5, 160 / Math.sqrt(Math.max(N, 1))));
  return Math.round(Math.min(9, base * Math.pow(view.zoom, 0.3)) * dense * 4) / 4;
}

function draw() {
  waiting = false;
  place();
  if (D === 3) sortByDepth(); else order = shuffled;
  pixels.fill(paper);
  const size = radius(), opacity = N > 3000 ? 205 : 235;
  const looks = now.groups.map(group => [stamp(group.shape, size), ...rgb(group.colour)]);
  for (let k = 0; k < N; k++) {
    const i = order[k], group = now.member[i];
    if (!now.shown[group]) continue;
    const look = looks[group];
    put(i, look[0], look[1], look[2], look[3], opacity);
  }
  const ink = rgb(style("--ink")), star = stamp("star", 9 * dense);
  const edge = rgb(style("--paper")), wider = stamp("star", 11.5 * dense);
  for (let i = N; i < ALL; i++) { put(i, wider, ...edge, 256); put(i, star, ...ink, 256); }
  brush.putImageData(frame, 0, 0);
  drawAbove();
  canvas.dataset.frames = Number(canvas.dataset.frames || 0) + 1;
}

function drawAbove() { // draws pictures, names, and a ring around the point under the pointer
  pen.clearRect(0, 0, wide, high);
  if (by("pictures").checked) drawPictures();
  if (by("names").checked) drawNames();
  if (under >= 0) {
    pen.beginPath();
    pen.arc(sx[under], sy[under], radius() + 4 * dense, 0, 7);
    pen.lineWidth = 2.5 * dense;
    pen.strokeStyle = style("--ink");
    pen.stroke();
  }
}

function write(text, x, y, bold) {
  pen.font = `${bold ? "600 " : ""}${13 * dense}px system-ui, "DejaVu Sans", sans-serif`;
  pen.textAlign = "center";
  pen.textBaseline = "middle";
  pen.lineJoin = "round";
  pen.lineWidth = 4 * dense;
  pen.strokeStyle = style("--paper");
  pen.fillStyle = style("--ink");
  const shown = text.length > 34 ? text.slice(0, 33) + "…" : text;
  pen.strokeText(shown, x, y);
  pen.fillText(shown, x, y);
  return pen.measureText(shown).width;
}

const anchors = new Map(); // by colouring: for each group the point nearest to its median
function anchorsOf(colouring) {
  if (!anchors.has(colouring)) {
    const members = colouring.groups.map(() => []);
    for (let i = 0; i < N; i++) members[colouring.member[i]].push(i);
    anchors.set(colouring, members.map((points, g) => {
      if (!colouring.groups[g].named || !points.length) return -1;
      const at = [];
      for (let d = 0; d < D; d++) {
        const sorted = Float32Array.from(points, i => flat[i * D + d]).sort();
        at.push(sorted[sorted.length >> 1]);
      }
      let best = -1, least = Infinity;
      for (const i of points) {
        let off = 0;
        for (let d = 0; d < D; d++) off += (flat[i * D + d] - at[d]) ** 2;
        if (off < least) { least = off; best = i; }
      }
      return best;
    }));
  }
  return anchors.get(colouring);
}

function drawNames() {
  const taken = [];
  const free = (x, y, w) => {
    for (let step = 0; step < 12; step++) {
      const to = y + (step % 2 ? 1 : -1) * Math.ceil(step / 2) * 9 * dense;
      const clear = taken.every(t => Math.abs(t.x - x) > (t.w + w) / 2 || Math.abs(t.y - to) > 17 * dense);
      if (clear) { taken.push({ x, y: to, w }); return to; }
    }
    return null;
  };
  const named = (text, x, y, bold) => {
    if (x < 0 || y < 0 || x > wide || y > high) return;
    const to = free(x, y, Math.min(text.length, 34) * 7.5 * dense);
    if (to !== null) write(text, x, to, bold);
  };
  for (let i = N; i < Math.min(ALL, N + 30); i++) named(short(data.names[i]), sx[i], sy[i] + 20 * dense, false);
  if (now.classes && now.groups.length > 1) {
    anchorsOf(now).forEach((i, g) => { if (i >= 0 && now.shown[g]) named(now.groups[g].name, sx[i], sy[i] - radius() - 11 * dense, true); });
  }
}
const short = name => name.split("/").pop();

// Thumbnails: a sheet is decoded when its first thumbnail is needed.
const sheets = [];
const perSheet = data.columns * data.rows;
function sheet(number, then) {
  let image = sheets[number];
  if (!image) {
    image = sheets[number] = new Image();
    image.src = "data:image/jpeg;base64," + by("sheet-" + number).textContent;
  }
  if (image.complete && image.naturalWidth) return image;
  if (then) image.addEventListener("load", then, { once: true });
  return null;
}
const shotOf = [], cut = document.createElement("canvas");
function tile(i, then) { // [image, left, top, side] of a point's thumbnail; null until it is decoded
  if (i >= N) {
    if (!data.queries[i - N]) return undefined;
    let image = shotOf[i];
    if (!image) { image = shotOf[i] = new Image(); image.src = data.queries[i - N]; }
    if (image.complete && image.naturalWidth) return [image, 0, 0, image.naturalWidth];
    if (then) image.addEventListener("load", then, { once: true });
    return null;
  }
  if (!perSheet) return undefined;
  const image = sheet(Math.floor(i / perSheet), then), at = i % perSheet;
  return image && [image, at % data.columns * data.tile, Math.floor(at / data.columns) * data.tile, data.tile];
}

function drawPictures() {
  const side = 52 * dense, taken = new Set();
  const paint = i => {
    const x = sx[i], y = sy[i];
    if (x < 0 || y < 0 || x > wide || y > high) return;
    const column = Math.round(x / side), row = Math.round(y / side);
    for (let a = -1; a <= 1; a++) for (let b = -1; b <= 1; b++) {
      if (taken.has((column + a) * 4096 + row + b)) return;
    }
    const found = tile(i, request);
    taken.add(column * 4096 + row);
    if (!found) return;
    pen.drawImage(found[0], found[1], found[2], found[3], found[3], x - side / 2, y - side / 2, side, side);
    pen.lineWidth = 2.5 * dense;
    pen.strokeStyle = i < N ? now.groups[now.member[i]].colour : style("--ink");
    pen.strokeRect(x - side / 2, y - side / 2, side, side);
  };
  for (let i = N; i < ALL; i++) paint(i);
  for (let k = N - 1; k >= 0; k--) if (visible(order[k])) paint(order[k]); // nearest first
}

function request() {
  if (!waiting) { waiting = true; requestAnimationFrame(draw); }
}

function resize() {
  const box = map.getBoundingClientRect();
  dense = Math.min(window.devicePixelRatio || 1, Math.sqrt(4e6 / Math.max(1, box.width * box.height)));
  wide = Math.max(1, Math.round(box.width * dense));
  high = Math.max(1, Math.round(box.height * dense));
  for (const each of [canvas, above]) { each.width = wide; each.height = high; }
  frame = brush.createImageData(wide, high);
  pixels = new Uint32Array(frame.data.buffer);
  paper = packed(rgb(style("--paper")));
  request();
}

// Pointing
function nearest(x, y, reach) { // the point nearest to a position, at most `reach` pixels away
  let best = -1, least = (reach * dense) ** 2;
  for (let k = 0; k < ALL; k++) {
    const i = k < N ? order[k] : k, dx = sx[i] - x, dy = sy[i] - y, off = dx * dx + dy * dy;
    if (off <= least && visible(i)) { least = off; best = i; } // of equally near points the one drawn last
  }
  return best;
}

function fact(text) {
  const line = document.createElement("div");
  line.textContent = text;
  by("facts").append(line);
}

function number(v) { // whole numbers, such as years, in full
  return Number.isNaN(v) ? "none" : String(Number.isInteger(v) ? v : Number(v.toPrecision(6)));
}

function show(i) {
  under = i;
  tip.hidden = i < 0;
  drawAbove();
  if (i < 0) return;
  by("name").textContent = data.names[i];
  by("facts").textContent = "";
  if (i >= N) fact("query: not part of the map");
  else for (const each of colourings) {
    if (each.values) fact(`${each.title}: ${number(each.values[i])}`);
    else if (each.codes) fact(`${each.title}: ${each.codes[i] < 0 ? "none" : each.classes[each.codes[i]]}`);
  }
  const picture = by("picture"), found = tile(i, () => { if (under === i) show(i); });
  picture.hidden = found === undefined;
  if (found) {
    const side = picture.width = picture.height = Math.max(found[3], 192);
    // Cut the tile out before enlarging it, because otherwise its neighbours would show at its edges.
    cut.width = cut.height = found[3];
    cut.getContext("2d").drawImage(found[0], -found[1], -found[2]);
    const paint = picture.getContext("2d");
    paint.imageSmoothingQuality = "high";
    paint.drawImage(cut, 0, 0, side, side);
    picture.dataset.point = i;
  }
  const box = map.getBoundingClientRect(), x = sx[i] / dense, y = sy[i] / dense;
  const right = x + 18 + tip.offsetWidth < box.width;
  tip.style.left = Math.max(4, right ? x + 18 : x - 18 - tip.offsetWidth) + "px";
  tip.style.top = Math.max(4, Math.min(y - 30, box.height - tip.offsetHeight - 4)) + "px";
  tip.dataset.point = i;
}

const MOUSE = 14, FINGER = 24; // reach in pixels
const held = new Map(); // position of each finger or button that is down
let tapped = null; // where the only finger went down, until it is dragged
const at = event => {
  const box = map.getBoundingClientRect();
  return [(event.clientX - box.left) * dense, (event.clientY - box.top) * dense];
};
const reach = event => event.pointerType === "touch" ? FINGER : MOUSE;
map.addEventListener("pointerdown", event => {
  held.set(event.pointerId, at(event));
  tapped = held.size === 1 ? at(event) : null;
  map.setPointerCapture(event.pointerId);
  map.classList.add("dragged");
  show(-1);
});
map.addEventListener("pointermove", event => {
  const to = at(event), from = held.get(event.pointerId);
  if (!from) {
    const i = nearest(...to, reach(event));
    if (!held.size && i !== under) show(i);
    return;
  }
  if (tapped && Math.hypot(to[0] - tapped[0], to[1] - tapped[1]) < 5 * dense) return;
  tapped = null;
  held.set(event.pointerId, to);
  const [dx, dy] = [to[0] - from[0], to[1] - from[1]];
  if (held.size > 1) { // two fingers zoom and move; each contributes half of the movement
    const [x, y] = [...held].find(([id]) => id !== event.pointerId)[1];
    const apart = Math.hypot(from[0] - x, from[1] - y);
    view.x += dx / 2;
    view.y += dy / 2;
    zoom(Math.hypot(to[0] - x, to[1] - y) / Math.max(1, apart), (to[0] + x) / 2, (to[1] + y) / 2);
  } else if (D === 3 && !event.shiftKey) turn(dx, dy);
  else { view.x += dx; view.y += dy; }
  request();
});
function turn(dx, dy) {
  view.yaw += dx / dense / 180;
  view.pitch = Math.max(-1.57, Math.min(1.57, view.pitch + dy / dense / 180));
}
for (const kind of ["pointerup", "pointercancel"]) map.addEventListener(kind, event => {
  held.delete(event.pointerId);
  if (held.size) return;
  map.classList.remove("dragged");
  if (tapped && kind === "pointerup") show(nearest(...at(event), reach(event)));
  tapped = null;
});
map.addEventListener("pointerleave", event => {
  if (!held.size && event.pointerType !== "touch") show(-1); // lifting a finger also fires this event
});
function zoom(by, x, y) {
  const to = Math.max(0.2, Math.min(2000, view.zoom * by)), ratio = to / view.zoom;
  view.x = (view.x + wide / 2 - x) * ratio + x - wide / 2;
  view.y = (view.y + high / 2 - y) * ratio + y - high / 2;
  view.zoom = to;
  show(-1);
  request();
}
map.addEventListener("wheel", event => {
  event.preventDefault();
  const step = event.deltaMode === 1 ? event.deltaY * 30 : event.deltaY;
  zoom(Math.exp(-Math.max(-400, Math.min(400, step)) * 0.0025), ...at(event));
}, { passive: false });
map.addEventListener("dblclick", event => zoom(2, ...at(event)));
map.addEventListener("keydown", event => { // without a pointer, shows the image in the middle
  const step = 60 * dense, moves = {
    ArrowLeft: [step, 0], ArrowRight: [-step, 0], ArrowUp: [0, step], ArrowDown: [0, -step],
  };
  const move = moves[event.key];
  if (event.key === "+" || event.key === "=") zoom(1.4, wide / 2, high / 2);
  else if (event.key === "-") zoom(1 / 1.4, wide / 2, high / 2);
  else if (move && D === 3 && !event.shiftKey) turn(-move[0], -move[1]);
  else if (move) { view.x += move[0]; view.y += move[1]; }
  else if (event.key === "Escape") { show(-1); return; }
  else return;
  event.preventDefault();
  draw();
  show(nearest(wide / 2, high / 2, Math.max(wide, high)));
});

// Controls beside the map
function glyph(group) {
  const side = 15, image = document.createElement("canvas"), paint = image.getContext("2d");
  image.width = image.height = 2 * side;
  image.style.cssText = `width:${side}px;height:${side}px;flex:none`;
  const mark = sprite(group.shape, side - 1), cells = paint.createImageData(2 * side, 2 * side);
  const colour = rgb(group.colour);
  for (let y = 0; y < 2 * side; y++) for (let x = 0; x < 2 * side; x++) {
    const to = (y * 2 * side + x) * 4;
    cells.data.set([...colour, Math.min(255, mark.cover[y * mark.side + x] || 0)], to);
  }
  paint.putImageData(cells, 0, 0);
  return image;
}

function legend() {
  const box = by("legend");
  box.textContent = "";
  by("with-names").hidden = !(now.classes && now.groups.length > 1) && ALL === N;
  if (ALL > N) {
    const line = document.createElement("label"), name = document.createElement("span");
    name.className = "name";
    name.textContent = ALL - N > 1 ? "queries" : "query";
    const count = document.createElement("span");
    count.className = "count";
    count.textContent = ALL - N;
    line.append(glyph({ shape: "star", colour: style("--ink") }), name, count);
    box.append(line);
  }
  if (now.values) {
    const bar = document.createElement("div"), ends = document.createElement("div");
    bar.className = "bar";
    bar.style.background = `linear-gradient(to right, ${ramp().join(",")})`;
    ends.className = "ends";
    for (const value of now.ends) {
      const text = document.createElement("span");
      text.textContent = value;
      ends.append(text);
    }
    box.append(bar, ends);
    now.groups.slice(now.missing).forEach((group, g) => box.append(entry(group, now.missing + g)));
    return;
  }
  if (!now.classes) return;
  const all = document.createElement("div");
  all.className = "all";
  for (const [text, on] of [["all", true], ["none", false]]) {
    const button = document.createElement("button");
    button.type = "button";
    button.textContent = text;
    button.addEventListener("click", () => { now.shown.fill(on); legend(); show(-1); request(); });
    all.append(button);
  }
  box.append(all);
  now.groups.forEach((group, g) => box.append(entry(group, g)));
}

function entry(group, g) { // a line of the legend that switches the group on and off
  const line = document.createElement("label"), tick = document.createElement("input");
  tick.type = "checkbox";
  tick.checked = now.shown[g];
  tick.addEventListener("change", () => { now.shown[g] = tick.checked; show(-1); request(); });
  const name = document.createElement("span"), count = document.createElement("span");
  name.className = "name";
  name.textContent = group.name;
  count.className = "count";
  count.textContent = group.count.toLocaleString("en");
  line.append(tick, glyph(group), name, count);
  return line;
}

colourings.forEach((each, number) => by("colouring").append(new Option(each.title, number)));
by("by").hidden = !data.colourings.length;
by("colouring").addEventListener("change", event => {
  now = colourings[event.target.value];
  legend();
  show(-1);
  request();
});
by("with-pictures").hidden = !perSheet;
for (const id of ["names", "pictures"]) by(id).addEventListener("change", request);
by("reset").addEventListener("click", () => { view = { ...start }; show(-1); request(); });
dark.addEventListener("change", () => { legend(); resize(); });
new ResizeObserver(resize).observe(map);
legend();
})();
