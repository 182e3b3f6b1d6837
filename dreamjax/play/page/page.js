"use strict";
// The page of dreamjax.play. It sends what is held and set, and draws each frame when it comes: see server.py.
// After each one it dispatches "drawn" on the document, whose detail is what was told with the frame.

const byId = (id) => document.getElementById(id);
const WORLDS = { real: "game", seen: "what the model sees", dream: "dream" };
const HISTORY = 240; // steps in the charts
const SMALL = 520; // pixels; a narrower page shows two pictures side by side, not three

let about = null; // what the page offers: see server.Offer
let told = null; // of the newest frame
const held = []; // keys, in the order in which they were pressed
const wished = {}; // settings that were sent, and that no frame has told yet
const setTo = {}; // what entries of the action are set to, by number
const history = []; // of steps: {real: {...}, dream: {...}, numbers: {...}}

const socket = new WebSocket(location.href.replace(/^http/, "ws").replace(/\/(\?|#|$)/, "/game$1").split("#")[0]);
socket.binaryType = "arraybuffer";
socket.onmessage = ({ data }) => (typeof data === "string" ? hear(JSON.parse(data)) : arrive(data));
socket.onclose = () => {
  document.body.dataset.state = "ended";
  byId("status").textContent = "the game is over";
  if (byId("note").hidden) note("The server has ended this game. Load the page again to begin another.");
};
const send = (message) => socket.readyState === WebSocket.OPEN && socket.send(JSON.stringify(message));
const set = (settings, event) => {
  for (const name of ["view", "actor", "paused"]) if (name in settings) wished[name] = settings[name];
  send({ set: settings, at: event.timeStamp });
};
const now = (name) => (name in wished ? wished[name] : told[name]); // so that keys count that follow fast

function hear(message) {
  if (message.refused) return note(message.refused);
  if (message.misunderstood) {
    for (const name of Object.keys(wished)) delete wished[name];
    return note(message.misunderstood);
  }
  about = message;
  byId("title").textContent = document.title = about.title;
  byId("value-row").hidden = !about.has_value;
  byId("real-surprise").title = about.surprise;
  for (const button of document.querySelectorAll("[data-view]")) button.disabled = !about.views.includes(button.dataset.view);
  byId("enter").disabled = about.views.length === 1;
  makePad();
  document.body.dataset.state = "playing";
}

function note(text) {
  byId("note").textContent = text;
  byId("note").hidden = !text;
}

// Frames

const parts = {}; // canvases of the size of a picture, by its name
let fps = 0, since = performance.now(), frames = 0, latest = 0, latency = null;

function arrive(data) {
  const length = new DataView(data).getUint32(0, true);
  told = JSON.parse(new TextDecoder().decode(new Uint8Array(data, 4, length)));
  for (const name of Object.keys(wished)) if (told[name] === wished[name]) delete wished[name];
  let at = 4 + length;
  const pictures = [];
  for (const [name, [height, width]] of Object.entries(told.pictures)) {
    pictures.push([name, picture(name, height, width, new Uint8Array(data, at, 3 * height * width))]);
    at += 3 * height * width;
  }
  drawWorlds(pictures);
  send({ drawn: told.frame });
  const time = performance.now();
  if (told.at > latest) [latest, latency] = [told.at, time - told.at];
  frames += 1;
  if (time - since > 1000) [fps, since, frames] = [(1000 * frames) / (time - since), time, 0];
  remember();
  write();
  document.dispatchEvent(new CustomEvent("drawn", { detail: told }));
}

function picture(name, height, width, rgb) {
  let part = parts[name];
  if (!part || part.canvas.width !== width || part.canvas.height !== height) {
    const canvas = Object.assign(document.createElement("canvas"), { width, height });
    const context = canvas.getContext("2d");
    part = parts[name] = { canvas, context, image: context.createImageData(width, height) };
    part.image.data.fill(255);
  }
  const rgba = part.image.data;
  for (let i = 0, j = 0; i < rgb.length; i += 3, j += 4) {
    rgba[j] = rgb[i]; rgba[j + 1] = rgb[i + 1]; rgba[j + 2] = rgb[i + 2];
  }
  part.context.putImageData(part.image, 0, 0);
  return part.canvas;
}

const style = getComputedStyle(document.documentElement);
const colour = (name) => style.getPropertyValue(`--${name}`).trim();

// Give a canvas the pixels of the screen for a size in those of the page; return its context and its width.
function fitted(canvas, height) {
  const scale = window.devicePixelRatio || 1, width = canvas.clientWidth || 600;
  const [w, h] = [Math.round(width * scale), Math.round(height * scale)];
  if (canvas.width !== w || canvas.height !== h) {
    Object.assign(canvas, { width: w, height: h });
    canvas.style.height = `${height}px`;
  }
  const context = canvas.getContext("2d");
  context.setTransform(scale, 0, 0, scale, 0, 0);
  context.clearRect(0, 0, width, height);
  return [context, width];
}

function drawWorlds(pictures) {
  const canvas = byId("view");
  canvas.hidden = !pictures.length && about.numbers.length > 0;
  if (!pictures.length) return;
  const gap = 10, label = 24, width = canvas.clientWidth || 600;
  const columns = Math.min(pictures.length, width < SMALL ? 2 : 3), rows = Math.ceil(pictures.length / columns);
  const tall = Math.max(...pictures.map(([, one]) => one.height / one.width));
  const side = Math.min((width - gap * (columns + 1)) / columns, Math.max(160, window.innerHeight * 0.52) / tall);
  const [context] = fitted(canvas, Math.round(rows * (side * tall + label) + gap));
  context.imageSmoothingEnabled = false;
  context.font = "600 13px system-ui, sans-serif";
  const left = (width - columns * side - (columns - 1) * gap) / 2;
  pictures.forEach(([name, one], i) => {
    const x = left + (i % columns) * (side + gap), y = Math.floor(i / columns) * (side * tall + label) + label;
    const high = (side * one.height) / one.width;
    const world = told[name === "seen" ? "real" : name];
    context.fillStyle = colour(name);
    context.fillText(WORLDS[name], x, y - 8);
    context.drawImage(one, x, y, side, high);
    if (name === "dream") context.setLineDash([6, 4]);
    context.lineWidth = 2;
    context.strokeStyle = colour(name);
    context.strokeRect(x + 1, y + 1, side - 2, high - 2);
    context.setLineDash([]);
    if (world && world.over && name !== "seen") {
      context.fillStyle = "rgba(0, 0, 0, .6)";
      context.fillRect(x, y + high / 2 - 16, side, 32);
      context.fillStyle = "#fff";
      context.textAlign = "center";
      context.fillText(world.over, x + side / 2, y + high / 2 + 5, side - 8);
      context.textAlign = "left";
    }
  });
}

// Numbers

function shown(value) {
  if (value === null || value === undefined) return "–";
  if (Number.isInteger(value)) return String(value);
  return Math.abs(value) >= 1000 ? value.toFixed(0) : Math.abs(value) >= 10 ? value.toFixed(1) : value.toFixed(3);
}

function write() {
  for (const name of ["real", "dream"]) {
    const world = told[name] || {};
    for (const field of ["total", "reward", "continues", "value", "surprise", "steps"]) {
      const cell = byId(`${name}-${field}`);
      if (cell) cell.textContent = shown(world[field]);
    }
    byId(`${name}-action`).textContent = (world.action || []).map(labelled).join(" ") || "–";
  }
  press("view", told.view);
  press("actor", told.actor);
  byId("pause").setAttribute("aria-pressed", told.paused);
  byId("record").setAttribute("aria-pressed", told.recording);
  byId("enter").disabled = about.views.length === 1 || !told.real;
  if (document.activeElement !== byId("seed")) byId("seed").value = told.number;
  follow("temperature", told.temperature, told.temperature.toFixed(2));
  follow("speed", Math.log2(told.speed), `${told.speed.toFixed(1)} ×`);
  note(told.note);
  if (told.film && byId("film").dataset.name !== told.film) {
    const address = (name) => ({ hidden: false, href: `films/${name}${location.search}` });
    Object.assign(byId("film"), address(told.film), { textContent: told.film });
    Object.assign(byId("gif"), address(told.film.replace(".mp4", ".gif")));
    byId("film").dataset.name = told.film;
  }
  const rate = `${fps.toFixed(0)} of ${(about.rate * told.speed).toFixed(0)} steps/s`;
  byId("status").textContent = told.paused ? "paused" : rate + (latency === null ? "" : `, ${latency.toFixed(0)} ms from key to picture`);
}

function labelled(value, i) {
  const entry = about.entries[i];
  return entry && entry.kind === "choice" ? entry.labels[value - entry.low] : value.toFixed(2);
}

function press(kind, chosen) {
  for (const button of document.querySelectorAll(`[data-${kind}]`))
    button.setAttribute("aria-pressed", button.dataset[kind] === chosen);
}

// Let a slider show what is set, unless somebody is just moving it.
const moving = new Set();
function follow(id, value, text) {
  byId(`${id}-shown`).textContent = text;
  if (!moving.has(id)) byId(id).value = value;
}

// Charts

const CHARTS = [["continues", "goes on", [0, 1]], ["surprise", "surprise"], ["value", "value"], ["reward", "reward"]];
let steps = "", charted = 0;

function remember() {
  const where = JSON.stringify([told.number, told.real && told.real.steps, told.dream && told.dream.steps]);
  if (where !== steps) {
    steps = where;
    history.push({ real: told.view !== "dream" && told.real, dream: told.view !== "real" && told.dream, numbers: told.numbers });
    if (history.length > HISTORY) history.shift();
  }
  if (performance.now() - charted < 100 && !told.paused) return; // ten times a second will do
  charted = performance.now();
  drawCharts();
  drawTraces();
}

function line(context, values, place, [low, high], name) {
  const [x, y, width, height] = place, span = high - low || 1;
  context.strokeStyle = colour(name);
  context.setLineDash(name === "dream" ? [4, 3] : []);
  context.beginPath();
  let open = false;
  values.forEach((value, i) => {
    if (value === null || value === undefined) return (open = false);
    const at = [x + (width * (i + HISTORY - values.length)) / (HISTORY - 1), y + height * (1 - (value - low) / span)];
    open ? context.lineTo(...at) : context.moveTo(...at);
    open = true;
  });
  context.stroke();
  context.setLineDash([]);
}

const range = (lists) => {
  const values = lists.flat().filter((value) => value !== null && value !== undefined);
  return values.length ? [Math.min(...values), Math.max(...values)] : [0, 1];
};

function drawCharts() {
  const listed = CHARTS.filter(([field]) => field !== "value" || about.has_value);
  const [context, width] = fitted(byId("charts"), 216), height = 216 / listed.length;
  context.lineWidth = 1.5;
  context.font = "12px system-ui, sans-serif";
  listed.forEach(([field, text, fixed], i) => {
    const lists = { real: history.map(({ real }) => (real ? real[field] : null)), dream: history.map(({ dream }) => (dream ? dream[field] : null)) };
    const bounds = fixed || range(Object.values(lists)), place = [8, i * height + 20, width - 16, height - 28];
    for (const [name, values] of Object.entries(lists)) line(context, values, place, bounds, name);
    context.fillStyle = colour("soft");
    context.fillText(`${text}   ${shown(bounds[0])} to ${shown(bounds[1])}`, 8, i * height + 14);
  });
}

function drawTraces() {
  const canvas = byId("traces"), names = about.numbers;
  canvas.hidden = !names.length;
  if (!names.length) return;
  const columns = (canvas.clientWidth || 600) < SMALL || names.length < 4 ? 1 : 2, rows = Math.ceil(names.length / columns);
  const height = rows <= 6 ? 56 : 34, [context, whole] = fitted(canvas, rows * height), width = whole / columns;
  context.lineWidth = 1.5;
  context.font = "11px system-ui, sans-serif";
  names.forEach((text, i) => {
    const lists = {};
    for (const name of Object.keys(WORLDS)) lists[name] = history.map(({ numbers }) => (numbers[name] ? numbers[name][i] : null));
    const [x, y] = [(i % columns) * width, Math.floor(i / columns) * height];
    const bounds = range(Object.values(lists)), place = [x + 4, y + 14, width - 12, height - 18];
    for (const name of ["seen", "real", "dream"]) line(context, lists[name], place, bounds, name);
    context.fillStyle = colour("soft");
    context.fillText(text, x + 4, y + 11);
  });
}

// Actions

function makePad() {
  const pad = byId("pad"), keys = [];
  pad.replaceChildren();
  about.entries.forEach((entry, i) => {
    if (entry.kind === "axis") {
      for (const [key, sign] of [[entry.less, "−"], [entry.more, "+"]]) {
        if (!key) continue;
        const text = about.entries.length === 1 ? (sign === "−" ? "left" : "right") : `${entry.name} ${sign}`;
        pad.append(holder(text, [key]));
        keys.push(`${text}: ${plain(key)}`);
      }
      pad.append(slider(entry, i));
    } else if (entry.keys.some((some) => some.length)) {
      entry.labels.forEach((text, choice) => {
        if (!entry.keys[choice].length) return;
        pad.append(holder(text, entry.keys[choice]));
        keys.push(`${text}: ${entry.keys[choice].map(plain).join(" and ")}`);
      });
    } else pad.append(picker(entry, i));
  });
  byId("action-keys").textContent = keys.join("   ");
}

const plain = (key) => key.replace(/^(Key|Digit)/, "").replace(/^Arrow(.*)/, (_, way) => ({ Left: "←", Right: "→", Up: "↑", Down: "↓" })[way]);

// A button that holds keys for as long as it is touched.
function holder(text, keys) {
  const button = document.createElement("button");
  button.append(`${text} `, Object.assign(document.createElement("kbd"), { textContent: keys.map(plain).join(" ") }));
  button.dataset.keys = keys.join(" ");
  button.onpointerdown = (event) => {
    button.setPointerCapture(event.pointerId);
    hold(keys, event);
  };
  button.onpointerup = button.onpointercancel = (event) => release(keys, event);
  button.oncontextmenu = (event) => event.preventDefault();
  return button;
}

function slider(entry, i) {
  const label = document.createElement("label");
  const input = Object.assign(document.createElement("input"), { type: "range", min: entry.low, max: entry.high, step: "any" });
  input.value = entry.neutral;
  input.oninput = (event) => choose(i, Number(input.value), event);
  label.append(entry.name, input);
  return label;
}

function picker(entry, i) {
  const label = document.createElement("label"), select = document.createElement("select");
  entry.labels.forEach((text, choice) => select.add(new Option(text, entry.low + choice)));
  select.value = entry.neutral;
  select.onchange = (event) => {
    choose(i, Number(select.value), event);
    select.blur();
  };
  label.append(entry.name, select);
  return label;
}

function choose(i, value, event) {
  setTo[i] = value;
  set({ entries: setTo, actor: "person" }, event);
}

function hold(keys, event) {
  for (const key of keys) if (!held.includes(key)) held.push(key);
  mark();
  set(told && now("actor") === "agent" ? { held, actor: "person" } : { held }, event);
}

function release(keys, event) {
  const before = held.length;
  for (const key of keys) if (held.includes(key)) held.splice(held.indexOf(key), 1);
  mark();
  if (held.length < before) set({ held }, event);
}

function mark() {
  for (const button of document.querySelectorAll("[data-keys]"))
    button.classList.toggle("held", button.dataset.keys.split(" ").every((key) => held.includes(key)));
}

// Everything else that a person does

const orders = {
  enter: () => send({ do: "enter" }),
  pause: (event) => set({ paused: !now("paused") }, event),
  step: (event) => {
    if (!now("paused")) set({ paused: true }, event);
    else send({ do: "step" });
  },
  reset: () => send(seedTyped()),
  record: () => send({ do: "record" }),
  view: (event) => set({ view: about.views[(about.views.indexOf(now("view")) + 1) % about.views.length] }, event),
  actor: (event) => set({ actor: now("actor") === "agent" ? "person" : "agent" }, event),
  warmer: (event) => nudge("temperature", 1, event),
  colder: (event) => nudge("temperature", -1, event),
  faster: (event) => nudge("speed", 25, event),
  slower: (event) => nudge("speed", -25, event),
};
const COMMANDS = {
  KeyT: "view", KeyE: "enter", KeyP: "actor", Space: "pause", Period: "step", KeyR: "reset", KeyX: "record",
  BracketLeft: "colder", BracketRight: "warmer", Minus: "slower", Equal: "faster",
};

// What was typed is the next episode; untouched, it is the one after this.
function seedTyped() {
  const typed = Number(byId("seed").value);
  return Number.isInteger(typed) && typed >= 0 && typed !== told.number ? { do: "reset", number: typed } : { do: "reset" };
}

function nudge(id, by, event) {
  const input = byId(id);
  input.value = Number(input.value) + by * Number(input.step);
  slid(id, event);
}

function slid(id, event) {
  const value = Number(byId(id).value);
  set({ [id]: id === "speed" ? Math.min(8, Math.max(0.1, 2 ** value)) : value }, event);
}

for (const name of ["enter", "pause", "step", "reset", "record"])
  byId(name).onclick = (event) => {
    if (told) orders[name](event);
    byId(name).blur(); // or the space bar would press it again
  };
for (const kind of ["view", "actor"])
  for (const button of document.querySelectorAll(`[data-${kind}]`))
    button.onclick = (event) => {
      set({ [kind]: button.dataset[kind] }, event);
      button.blur();
    };
for (const id of ["temperature", "speed"]) {
  byId(id).oninput = (event) => {
    moving.add(id);
    slid(id, event);
  };
  byId(id).onchange = () => {
    moving.delete(id);
    byId(id).blur();
  };
}
byId("seed").onkeydown = (event) => {
  if (event.code === "Enter") {
    orders.reset();
    byId("seed").blur();
  }
};

const acts = (code) => about && about.entries.some((entry) => (entry.kind === "axis" ? [entry.less, entry.more] : entry.keys.flat()).includes(code));
const isTyping = () => ["INPUT", "SELECT"].includes(document.activeElement.tagName) && document.activeElement.type !== "range";

document.addEventListener("keydown", (event) => {
  if (!told || event.ctrlKey || event.metaKey || event.altKey || isTyping()) return;
  const command = COMMANDS[event.code];
  if (!command && !acts(event.code)) return;
  event.preventDefault();
  if (event.repeat && !["warmer", "colder", "faster", "slower"].includes(command)) return;
  if (command) orders[command](event);
  else hold([event.code], event);
});
document.addEventListener("keyup", (event) => release([event.code], event));
window.addEventListener("blur", (event) => release([...held], event));
