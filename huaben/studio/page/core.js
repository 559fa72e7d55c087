// The page's state, its way to the API, and small builders for elements.
import { STRINGS } from "./strings.js";

export const bus = new EventTarget();
export const state = {
  about: null, stories: [], search: "", story: null, head: null, jobs: new Map(), live: new Map(), library: [], upload: null,
  mode: "auto", variants: 1, seed: null, locked: false, size: null, steps: null,
  language: localStorage.getItem("hb-language") || ((navigator.language || "").startsWith("zh") ? "zh" : "en"),
};
export const tell = (name, detail) => bus.dispatchEvent(new CustomEvent(name, { detail }));
export const on = (name, fn) => bus.addEventListener(name, (event) => fn(event.detail));

export function t(key, values = {}) {
  const text = STRINGS[state.language][key] ?? key;
  return text.replace(/\{(\w+)\}/g, (_, name) => values[name] ?? "");
}

export function h(tag, props = {}, ...children) {
  const node = document.createElement(tag);
  for (const [name, value] of Object.entries(props || {})) {
    if (value === null || value === undefined || value === false) continue;
    if (name.startsWith("on")) node.addEventListener(name.slice(2), value);
    else if (name === "class") node.className = value;
    else if (name === "value" || name === "checked" || name === "disabled") node[name] = value;
    else node.setAttribute(name, value === true ? "" : value);
  }
  node.append(...children.flat(2).filter((child) => child !== null && child !== undefined && child !== false));
  return node;
}

const ICONS = {
  plus: "M12 5v14M5 12h14", menu: "M4 7h16M4 12h16M4 17h16", sliders: "M4 8h10M18 8h2M4 16h2M10 16h10M16 6v4M8 14v4", star: "M12 4l2.5 5.2 5.5.8-4 4 1 5.6-5-2.7-5 2.7 1-5.6-4-4 5.5-.8z",
  trash: "M5 7h14M10 7V4h4v3M7 7l1 13h8l1-13", pen: "M4 20l1-4L16 5l3 3L8 19z", grid: "M4 4h7v7H4zM13 4h7v7h-7zM4 13h7v7H4zM13 13h7v7h-7z", moon: "M20 14A8 8 0 1 1 10 4a6.5 6.5 0 0 0 10 10z",
  clip: "M20 11l-8.5 8.5a5 5 0 0 1-7-7L13 4a3.4 3.4 0 0 1 5 5l-8.5 8.5a1.7 1.7 0 0 1-2.4-2.4L15 7", send: "M5 12h14M13 6l6 6-6 6", stop: "M7 7h10v10H7z", again: "M19 12a7 7 0 1 1-2-5l2 2M19 4v5h-5", down: "M12 4v11M7 11l5 5 5-5M5 20h14",
  split: "M12 4v16M4 7h5v10H4zM15 7h5v10h-5z", dice: "M5 5h14v14H5zM9 9h.01M15 15h.01M12 12h.01", lock: "M6 11h12v9H6zM9 11V8a3 3 0 0 1 6 0v3", unlock: "M6 11h12v9H6zM9 11V8a3 3 0 0 1 5.8-1", x: "M6 6l12 12M18 6L6 18", branch: "M7 4v16M7 14c0-4 10-2 10-7M17 4v3", brush: "M4 20c3 0 5-1 5-4l2 2M10 15l9-10 1 1-9 10z", left: "M14 6l-6 6 6 6", right: "M10 6l6 6-6 6", out: "M12 15V4M8 8l4-4 4 4M5 14v6h14v-6", copies: "M8 8h12v12H8zM4 16V4h12",
};
export function icon(name) {
  const svg = document.createElementNS("http://www.w3.org/2000/svg", "svg");
  svg.setAttribute("viewBox", "0 0 24 24"); svg.setAttribute("class", "i"); svg.setAttribute("aria-hidden", "true");
  const path = document.createElementNS("http://www.w3.org/2000/svg", "path");
  path.setAttribute("d", ICONS[name]); svg.append(path);
  return svg;
}
export const iconButton = (name, label, onclick, more = {}) => h("button", { type: "button", class: "icon bare", title: label, "aria-label": label, onclick, ...more }, icon(name));

export class ApiError extends Error {
  constructor(status, error) { super(error.message); this.status = status; this.code = error.code; this.hint = error.hint; }
}
export async function api(method, path, body) {
  let response;
  const options = { method, headers: {} };
  if (body instanceof FormData) options.body = body;
  else if (body !== undefined) { options.body = JSON.stringify(body); options.headers["content-type"] = "application/json"; }
  try { response = await fetch(`/api/v1${path}`, options); } catch { throw new ApiError(0, { message: t("error_network"), code: "network" }); }
  if (response.status === 401 && path !== "/login") { tell("sign-in"); }
  if (!response.ok) {
    let error = { message: `${response.status}` };
    try { error = (await response.json()).error ?? error; } catch { /* the status says enough */ }
    if (response.status === 429) error.message = t("error_busy");
    throw new ApiError(response.status, error);
  }
  return response.status === 204 ? null : response.json();
}
export async function attempt(work) {
  try { return await work(); } catch (error) { if (!(error instanceof ApiError)) throw error; if (error.status !== 401) toast(error.message + (error.hint ? ` · ${error.hint}` : "")); return undefined; }
}
export function toast(text, action, onaction) {
  const note = h("div", { class: "toast" }, h("span", {}, text), action && h("button", { type: "button", onclick: () => { note.remove(); onaction(); } }, action));
  document.getElementById("toasts").append(note);
  setTimeout(() => note.remove(), action ? 8000 : 4500);
}

export const turnById = (id) => state.story?.turns.find((turn) => turn.id === id) ?? null;
export function pathTo(id) {
  const path = [];
  for (let turn = turnById(id); turn; turn = turnById(turn.parent)) path.unshift(turn);
  return path;
}
export const childrenOf = (id) => (state.story?.turns ?? []).filter((turn) => turn.parent === id);
export function newestBelow(turn) {
  for (let below = childrenOf(turn.id); below.length; below = childrenOf(turn.id)) turn = below[below.length - 1];
  return turn;
}

export async function loadStories() {
  const found = await attempt(() => api("GET", `/stories?search=${encodeURIComponent(state.search)}`));
  if (found) { state.stories = found; tell("stories"); }
}
export async function loadLibrary() { const found = await attempt(() => api("GET", "/characters")); if (found) { state.library = found; tell("library"); } }
export async function openStory(id, turn) {
  const story = await attempt(() => api("GET", `/stories/${id}`));
  if (!story) return;
  state.story = story; state.head = turn ?? story.head; state.jobs = new Map();
  for (const job of story.jobs) if (["queued", "running"].includes(job.status)) state.jobs.set(job.id, job);
  history.replaceState(null, "", `#${id}`);
  document.body.removeAttribute("data-pane");
  tell("story"); tell("head");
}
export async function newStory() {
  state.story = null; state.head = null; state.jobs = new Map(); history.replaceState(null, "", "#");
  document.body.removeAttribute("data-pane");
  tell("story"); tell("head"); document.getElementById("composer-text")?.focus();
}
export async function goTo(id, quiet) {
  state.head = id; tell("head");
  if (state.story) await attempt(() => api("PATCH", `/stories/${state.story.id}`, { head: id }));
  if (!quiet) toast(t("base_set", { n: turnById(id)?.number }));
}
export async function say(order) {
  return attempt(async () => {
    if (!state.story) {
      const story = await api("POST", "/stories", {});
      state.story = { ...story, turns: [], jobs: [] }; history.replaceState(null, "", `#${story.id}`);
    }
    const settings = {};
    if (state.size) settings.size = state.size;
    if (state.steps) settings.steps = state.steps;
    if (state.locked && state.seed !== null) settings.seed = state.seed;
    const body = { language: state.language, parent: order.parent === undefined ? state.head : order.parent, ...settings, ...order };
    const answer = await api("POST", `/stories/${state.story.id}/turns`, body);
    for (const job of answer.jobs) state.jobs.set(job.id, { ...job, shown: order.text ?? "", upload: order.shown_upload });
    tell("jobs"); loadStories();
    return answer.jobs;
  });
}

export function listen() {
  const source = new EventSource(`/api/v1/events?after=${state.about.last_event}`);
  const handle = (kind) => (event) => {
    const data = JSON.parse(event.data);
    if (kind === "job") jobChanged(data);
    else if (state.jobs.has(data.job)) { state.live.set(data.job, { ...state.live.get(data.job), ...data, kind }); tell("live", data.job); }
  };
  for (const kind of ["job", "understood", "step"]) source.addEventListener(kind, handle(kind));
}
function jobChanged(data) {
  tell("queue");
  if (data.story !== state.story?.id) { if (data.status === "done") loadStories(); return; }
  const job = state.jobs.get(data.job) ?? { id: data.job, story: data.story, text: "" };
  job.status = data.status; job.error = data.error ?? null;
  if (data.status === "done") {
    state.jobs.delete(data.job); state.live.delete(data.job);
    if (data.value && !turnById(data.value.id)) {
      state.story.turns.push(data.value);
      const waits = [...state.jobs.values()].some((other) => ["queued", "running"].includes(other.status));
      if (data.value.parent === state.head || !waits || turnById(state.head)?.parent === data.value.parent) state.head = data.value.id;
      state.fresh = data.value.id;
    }
    tell("head"); tell("jobs"); loadStories();
  } else {
    state.jobs.set(data.job, job); tell("jobs");
  }
}
