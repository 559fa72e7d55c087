// The page as it stands: boxes on the picture, characters as chips, prompt, seed and settings.
import { h, icon, iconButton, on, pathTo, say, state, t, turnById } from "./core.js";

const clamp = (value, low, high) => Math.min(Math.max(value, low), high);
const round = (value) => Math.round(value * 1e4) / 1e4;

class Sheet extends HTMLElement {
  connectedCallback() {
    for (const name of ["head", "story"]) on(name, () => this.reset());
    on("language", () => this.render()); on("use-character", (person) => this.use(person)); on("restore", (settings) => this.restore(settings));
    this.reset();
  }
  reset() {
    this.turn = turnById(state.head);
    const page = this.turn?.page ?? { background: "", style: "", negative: "", characters: [] };
    this.page = structuredClone(page); this.was = structuredClone(page); this.prompt = null;
    if (!state.locked) state.seed = this.turn?.seed ?? null;
    this.render();
  }
  restore(settings) {
    if (settings.seed !== null) { state.seed = settings.seed; state.locked = true; }
    if (settings.size) state.size = settings.size;
    if (settings.steps) state.steps = settings.steps;
    if (settings.prompt) this.prompt = settings.prompt;
    this.render();
  }
  use(person) { this.page.characters.push({ library: person.id, name: person.name, prompt: person.prompt, box: null }); this.render(); }
  dirty() { return this.prompt !== null || JSON.stringify(this.page) !== JSON.stringify(this.was); }
  touched() { const dirty = this.dirty(); this.apply.disabled = !dirty; this.undo.hidden = !dirty; }
  render() {
    const image = pathTo(state.head).reverse().find((turn) => turn.image)?.image;
    this.stage = h("div", { class: "stage" }, image ? h("img", { src: image.url, alt: "", draggable: "false" }) : h("div", { class: "none" }, t("no_picture")));
    if (image) this.page.characters.forEach((character) => { if (character.box && !character.gone) this.stage.append(this.box(character)); });
    const text = (label, key) => h("label", { class: "field" }, h("span", {}, label), h("input", { type: "text", maxlength: 400, value: this.page[key] ?? "", oninput: (event) => { this.page[key] = event.target.value; this.touched(); } }));
    const add = h("input", { type: "text", maxlength: 400, placeholder: t("add_character"), "aria-label": t("add_character"), onkeydown: (event) => { if (event.key === "Enter") { event.preventDefault(); put(); } } });
    const put = () => { if (add.value.trim()) { this.page.characters.push({ prompt: add.value.trim(), name: "", box: null }); this.render(); this.querySelector(".add input")?.focus(); } };
    this.apply = h("button", { class: "main", type: "button", onclick: () => this.draw() }, icon("brush"), t("apply"));
    this.undo = h("button", { type: "button", onclick: () => this.reset() }, t("reset"));
    const sizes = state.about?.sizes ?? [[128, 128]], size = state.size ?? state.story?.size ?? state.about?.defaults.size ?? [128, 128];
    const known = sizes.some((one) => String(one) === String(size)) ? sizes : [...sizes, size];
    const steps = state.steps ?? state.story?.steps ?? state.about?.defaults.steps ?? 20, shown = h("output", {}, `${steps}`);
    this.replaceChildren(
      h("h2", {}, t("page")), this.stage,
      h("h2", {}, t("characters")), h("div", { class: "chips" }, ...this.page.characters.map((character) => this.chip(character)), h("div", { class: "with-button add" }, add, iconButton("plus", t("add"), put, { class: "icon" }))),
      h("div", { class: "two" }, text(t("background"), "background"), text(t("style"), "style")), text(t("negative"), "negative"),
      h("label", { class: "field" }, h("span", {}, t("prompt")), h("textarea", { rows: 3, maxlength: 2000, value: this.prompt ?? this.turn?.prompt ?? "", oninput: (event) => { this.prompt = event.target.value; this.touched(); } })),
      h("div", { class: "field" }, h("span", {}, `${t("seed")} · ${state.locked ? t("locked") : t("rolled")}`), h("div", { class: "with-button" },
        h("input", { type: "number", min: 0, max: 2 ** 53 - 1, "aria-label": t("seed"), value: state.seed ?? "", onchange: (event) => { state.seed = event.target.value === "" ? null : clamp(Math.floor(+event.target.value), 0, 2 ** 53 - 1); state.locked = state.seed !== null; this.render(); } }),
        iconButton(state.locked ? "lock" : "unlock", t("lock"), () => { state.locked = !state.locked && state.seed !== null; this.render(); }, { class: "icon", "aria-pressed": String(state.locked) }),
        iconButton("dice", t("roll"), () => { state.seed = Math.floor(Math.random() * 2 ** 31); state.locked = true; this.render(); }, { class: "icon" }))),
      h("div", { class: "two" },
        h("label", { class: "field" }, h("span", {}, t("size")), h("select", { onchange: (event) => { state.size = JSON.parse(event.target.value); } }, ...known.map((one) => h("option", { value: JSON.stringify(one), selected: String(one) === String(size) }, t("width_height", { w: one[1], h: one[0] }))))),
        h("label", { class: "field" }, h("span", {}, t("variants")), h("select", { onchange: (event) => { state.variants = +event.target.value; } }, ...[1, 2, 3, 4].map((n) => h("option", { value: n, selected: n === state.variants }, `${n}`))))),
      h("label", { class: "field" }, h("span", {}, t("steps"), " ", shown), h("input", { type: "range", min: 2, max: 60, value: steps, oninput: (event) => { state.steps = +event.target.value; shown.textContent = event.target.value; } })),
      h("div", { class: "sheet-actions" }, this.apply, this.undo));
    this.touched();
  }
  chip(character) {
    const change = (key) => (event) => { character[key] = event.target.value; this.touched(); const label = this.stage.querySelector(`[data-id="${character.id}"] b`); if (label && key === "name") label.textContent = event.target.value; };
    return h("div", { class: "chip", "data-gone": character.gone },
      h("input", { type: "text", class: "name", maxlength: 80, "aria-label": t("name"), placeholder: t("name"), value: character.name, oninput: change("name"), disabled: character.gone }),
      h("span", { class: "tools" }, iconButton(character.gone ? "again" : "x", character.gone ? t("undo") : t("removed"), () => { if (!character.id) this.page.characters = this.page.characters.filter((other) => other !== character); else if (character.gone) delete character.gone; else character.gone = true; this.render(); })),
      h("input", { type: "text", maxlength: 400, "aria-label": t("prompt"), value: character.prompt, oninput: change("prompt"), disabled: character.gone || Boolean(character.library) }));
  }
  box(character) {
    const tip = t("box_tip", { name: character.name });
    const node = h("div", { class: "box", tabindex: "0", role: "button", "aria-label": tip, title: tip, "data-id": character.id }, h("b", {}, character.name), h("i"));
    const place = () => { const [x0, y0, x1, y1] = character.box; Object.assign(node.style, { left: `${x0 * 100}%`, top: `${y0 * 100}%`, width: `${(x1 - x0) * 100}%`, height: `${(y1 - y0) * 100}%` }); };
    const move = ([x0, y0, x1, y1], dx, dy) => { dx = clamp(dx, -x0, 1 - x1); dy = clamp(dy, -y0, 1 - y1); return [x0 + dx, y0 + dy, x1 + dx, y1 + dy].map(round); };
    const grow = ([x0, y0, x1, y1], dx, dy) => [x0, y0, clamp(x1 + dx, x0 + 0.08, 1), clamp(y1 + dy, y0 + 0.08, 1)].map(round);
    node.addEventListener("pointerdown", (event) => {
      event.preventDefault(); node.focus(); node.setPointerCapture(event.pointerId);
      const start = [event.clientX, event.clientY], first = [...character.box], change = event.target.tagName === "I" ? grow : move, area = this.stage.getBoundingClientRect();
      const drag = (moved) => { character.box = change(first, (moved.clientX - start[0]) / area.width, (moved.clientY - start[1]) / area.height); place(); this.touched(); };
      node.addEventListener("pointermove", drag);
      for (const end of ["pointerup", "pointercancel"]) node.addEventListener(end, () => node.removeEventListener("pointermove", drag), { once: true });
    });
    node.addEventListener("keydown", (event) => {
      const way = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] }[event.key];
      if (!way) return;
      event.preventDefault(); character.box = (event.shiftKey ? grow : move)(character.box, way[0] * 0.02, way[1] * 0.02); place(); this.touched();
    });
    place();
    return node;
  }
  async draw() {
    const characters = this.page.characters.filter((character) => !character.gone).map((character) => {
      const before = this.was.characters.find((other) => other.id === character.id);
      const entry = character.id ? { id: character.id } : {};
      if (character.library) return { library: character.library, ...(character.box ? { box: character.box } : {}) };
      if (!before || before.prompt !== character.prompt) entry.prompt = character.prompt;
      if (character.name && before && before.name !== character.name) entry.name = character.name;
      if (character.box && String(character.box) !== String(before?.box)) entry.box = character.box;
      return entry;
    });
    const page = { characters };
    for (const key of ["background", "style", "negative"]) if (this.page[key] !== this.was[key]) page[key] = this.page[key];
    const order = { page, variants: state.variants };
    if (this.prompt !== null && this.prompt.trim()) order.prompt = this.prompt.trim();
    this.apply.disabled = true; document.body.removeAttribute("data-pane");
    await say(order);
  }
}
customElements.define("hb-sheet", Sheet);
