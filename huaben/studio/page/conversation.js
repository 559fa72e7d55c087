// The conversation: messages, pictures as they are drawn, and the place to write.
import { api, attempt, childrenOf, goTo, h, icon, iconButton, loadLibrary, newestBelow, on, pathTo, say, state, t, tell, toast, turnById } from "./core.js";
import { compare } from "./dialogs.js";

const percent = (value) => Math.round(Math.max(0, value) * 100);
const fileName = (turn, kind = "png") => `${(state.story?.title || "huaben").replace(/[\\/:*?"<>|]/g, " ").slice(0, 60).trim()} ${turn.number}.${kind}`;

class Conversation extends HTMLElement {
  connectedCallback() {
    on("head", () => this.render(true)); on("jobs", () => this.render(true)); on("story", () => this.render(true)); on("language", () => this.render()); on("live", (id) => this.live(id));
    this.render();
  }
  render(scroll) {
    const path = pathTo(state.head), waiting = [...state.jobs.values()];
    if (!path.length && !waiting.length) { this.replaceChildren(this.welcome()); return; }
    this.log ??= h("div", { class: "log", role: "log", "aria-live": "polite" });
    const known = new Map([...this.log.children].map((node) => [node.dataset.key, node]));
    const nodes = path.map((turn) => {
      const siblings = childrenOf(turn.parent), key = `${turn.id}:${siblings.length}:${state.language}:${turn.id === state.head}`;
      const node = known.get(key) ?? this.turn(turn, siblings);
      node.dataset.key = key; return node;
    });
    for (const job of waiting) { const node = this.job(job); node.dataset.key = `job:${job.id}`; nodes.push(node); }
    this.log.replaceChildren(...nodes);
    if (this.firstChild !== this.log) this.replaceChildren(this.log);
    if (scroll) for (const wait of [0, 60, 250]) setTimeout(() => { this.scrollTop = this.scrollHeight; }, wait);
  }
  welcome() {
    return h("div", { class: "welcome" }, h("img", { src: "/page/icon.svg", alt: "" }), h("h2", {}, t("welcome")), h("p", { class: "quiet" }, t("welcome_more")),
      h("div", { class: "examples" }, ...(state.about?.examples ?? []).map((example) => h("button", { type: "button", onclick: () => say({ text: example[state.language] }) }, example[state.language]))));
  }
  turn(turn, siblings) {
    const index = siblings.indexOf(turn);
    const edit = iconButton("pen", t("edit"), () => tell("edit-message", turn), { class: "icon bare edit small" });
    const variants = siblings.length > 1 && siblings.every((other) => other.message === turn.message && other.image);
    const place = siblings.length > 1 && h("span", { class: "siblings" },
      iconButton("left", t("previous"), () => goTo(newestBelow(siblings[index - 1]).id, true), { disabled: index === 0 }), `${index + 1}/${siblings.length}`,
      iconButton("right", t("next"), () => goTo(newestBelow(siblings[index + 1]).id, true), { disabled: index === siblings.length - 1 }));
    return h("article", { class: "turn", "aria-label": t("turn", { n: turn.number }) },
      h("div", { class: "said-row" }, edit, h("div", { class: "said" }, turn.upload && h("img", { src: turn.upload.url, alt: "" }), turn.message)),
      h("div", { class: "answer-head" }, t("turn", { n: turn.number }), place),
      h("p", { class: "answer" }, turn.reply),
      turn.image && (variants && turn.id === state.head ? this.variants(turn, siblings) : null),
      turn.image && this.figure(turn),
      ...(turn.warnings ?? []).map((warning) => h("p", { class: "note" }, warning)));
  }
  variants(turn, siblings) {
    return h("div", { class: "variants", role: "group", "aria-label": t("choose_variant") }, ...siblings.map((other, index) => h("button", { type: "button", "aria-pressed": String(other === turn), "aria-label": `${t("choose_variant")} ${index + 1}`, onclick: () => goTo(other.id, true) }, h("img", { src: other.image.url, alt: "" }))));
  }
  figure(turn) {
    const drawn = turn.action === "draw", before = pathTo(turn.parent).reverse().find((other) => other.image && other.image.sha256 !== turn.image.sha256);
    const link = (label, more, name) => h("a", { class: "button bare small", href: `${turn.image.url}&name=${encodeURIComponent(fileName(turn))}${more}`, download: fileName(turn), title: label, "aria-label": label }, icon(name));
    const tool = (name, label, tip, onclick, more = {}) => h("button", { type: "button", class: "bare small", title: tip, onclick, ...more }, icon(name), label);
    const names = new Map((turn.page?.characters ?? []).map((character) => [character.id, character.name]));
    return h("figure", { class: "picture" },
      h("div", { class: "frame" }, h("img", { src: turn.image.url, width: turn.image.width, height: turn.image.height, alt: t("alt", { n: turn.number, prompt: turn.prompt || turn.reply }) })),
      h("figcaption", {},
        drawn && tool("again", t("again"), t("again_tip"), () => say({ text: turn.message, parent: turn.parent, upload: turn.upload?.sha256, seed: roll() })),
        drawn && tool("copies", t("vary"), t("vary_tip"), () => say({ redraw: true, parent: turn.id, variants: 3, seed: roll() })),
        turn.id !== state.head && tool("branch", t("as_base"), t("as_base"), () => goTo(turn.id)),
        before && tool("split", t("compare"), t("compare_with"), () => compare(before, turn)),
        tool("brush", t("repaint"), state.about.mask ? t("repaint") : t("no_mask"), null, { disabled: !state.about.mask }),
        link(t("download"), "", "down"), link(t("download_plain"), "&metadata=false", "out")),
      turn.checks.length > 0 && h("div", { class: "checks", title: t("checks_tip") }, ...turn.checks.filter((check) => names.has(check.id)).map((check) => {
        const right = check.found && check.species && check.colour;
        const how = !check.found ? t("not_found") : check.similarity === null ? "" : t("consistency", { n: percent(check.similarity) });
        return h("span", { class: `tag ${right ? "good" : "bad"}` }, h("span", { "aria-hidden": "true" }, right ? "✓" : "!"), h("b", {}, names.get(check.id)), how && h("span", {}, how), iconButton("star", `${t("keep")}: ${names.get(check.id)}`, () => this.keep(turn, check.id, names.get(check.id)), { class: "icon bare small" }));
      })),
      drawn && h("details", { class: "more" }, h("summary", {}, t("details")), h("dl", {},
        h("dt", {}, t("prompt")), h("dd", {}, turn.prompt), h("dt", {}, t("seed")), h("dd", {}, `${turn.seed}`), h("dt", {}, t("seconds")), h("dd", {}, `${turn.seconds}`), h("dt", {}, t("size")), h("dd", {}, t("width_height", { w: turn.image.width, h: turn.image.height })))));
  }
  async keep(turn, id, name) {
    if (await attempt(() => api("POST", "/characters", { turn: turn.id, id, name }))) { toast(t("kept", { name })); loadLibrary(); }
  }
  job(job) {
    const ended = ["failed", "cancelled", "interrupted"].includes(job.status), live = state.live.get(job.id) ?? {};
    const again = h("button", { type: "button", class: "small", onclick: async () => { state.jobs.delete(job.id); state.live.delete(job.id); const next = await attempt(() => api("POST", `/jobs/${job.id}/repeat`)); if (next) state.jobs.set(next.id, next); tell("jobs"); } }, icon("again"), t("retry"));
    const gone = iconButton("x", t("close"), () => { state.jobs.delete(job.id); state.live.delete(job.id); tell("jobs"); });
    const node = h("article", { class: "turn", "data-job": job.id, "aria-busy": String(!ended) },
      (job.shown || job.text) && h("div", { class: "said-row" }, h("div", { class: "said" }, job.upload && h("img", { src: job.upload, alt: "" }), job.shown || job.text)));
    node.reply = h("p", { class: "answer" }, live.reply ?? "");
    node.picture = h("img", { alt: "", hidden: !(live.preview ?? job.preview), src: live.preview ?? job.preview ?? null });
    node.status = h("p", { class: "quiet", role: "status" }, ended ? "" : job.status === "queued" ? t("queued", { n: job.place ?? 1, s: Math.ceil(job.wait_s ?? 1) }) : t("wait"));
    node.bar = h("i"); node.bars = h("div", { class: "progress unknown", hidden: ended }, node.bar);
    node.figure = h("figure", { class: "picture", hidden: !(live.preview ?? job.preview) }, h("div", { class: ended ? "frame" : "frame veil" }, node.picture), node.bars);
    node.append(node.reply, node.figure, h("div", { class: "answer-head" }, node.status, !ended && h("button", { type: "button", class: "small stop", onclick: () => attempt(() => api("POST", `/jobs/${job.id}/cancel`)) }, icon("stop"), t("stop"))));
    if (ended) {
      const text = job.status === "cancelled" ? t("cancelled") : job.status === "interrupted" ? t("interrupted") : `${t("failed")}: ${job.error?.message ?? ""}${job.error?.hint ? ` · ${job.error.hint}` : ""}`;
      node.append(h("div", { class: "note bad" }, h("p", {}, text), again, gone));
    }
    if (live.kind) this.update(node, live);
    return node;
  }
  live(id) {
    const node = this.querySelector(`[data-job="${id}"]`);
    if (node) { const low = this.scrollHeight - this.scrollTop - this.clientHeight < 120; this.update(node, state.live.get(id)); if (low) this.scrollTop = this.scrollHeight; }
  }
  update(node, live) {
    if (live.reply) node.reply.textContent = live.reply;
    if (live.action === "draw") node.figure.hidden = false;
    if (live.step) {
      node.bars.classList.remove("unknown"); node.bar.style.width = `${(100 * live.step) / live.steps}%`;
      node.status.textContent = t("drawing", { step: live.step, steps: live.steps });
    } else node.status.textContent = t("working");
    if (live.preview) { node.picture.src = live.preview; node.picture.hidden = false; }
  }
}
const roll = () => Math.floor(Math.random() * 2 ** 31);

class Composer extends HTMLElement {
  connectedCallback() {
    on("language", () => this.render()); on("edit-message", (turn) => this.edit(turn)); on("story", () => this.stopEditing());
    document.addEventListener("paste", (event) => { const file = [...(event.clipboardData?.files ?? [])].find((one) => one.type.startsWith("image/")); if (file) this.attach(file); });
    for (const name of ["dragover", "drop"]) document.addEventListener(name, (event) => {
      if (![...(event.dataTransfer?.types ?? [])].includes("Files")) return;
      event.preventDefault(); this.frame.classList.toggle("drop", name === "dragover");
      if (name === "drop" && event.dataTransfer.files[0]) this.attach(event.dataTransfer.files[0]);
    });
    document.addEventListener("dragleave", () => this.frame.classList.remove("drop"));
    this.render();
  }
  render() {
    const text = this.text?.value ?? "";
    this.text = h("textarea", { id: "composer-text", rows: 1, maxlength: 2000, placeholder: t("placeholder"), "aria-label": t("message"), value: text, oninput: () => this.grow(), onkeydown: (event) => { if (event.key === "Enter" && !event.shiftKey && !event.isComposing) { event.preventDefault(); this.send(); } if (event.key === "Escape") this.stopEditing(); } });
    this.file = h("input", { type: "file", accept: "image/png,image/jpeg,image/webp", hidden: true, onchange: () => { if (this.file.files[0]) this.attach(this.file.files[0]); this.file.value = ""; } });
    this.extra = h("div", {});
    const modes = h("span", { class: "segment", role: "group", "aria-label": t("form") }, ...["auto", "picture", "text"].map((mode) => h("button", { type: "button", title: t(`mode_${mode}`), "aria-pressed": String(state.mode === mode), onclick: () => { state.mode = mode; for (const button of modes.children) button.setAttribute("aria-pressed", String(button.dataset.mode === mode)); }, "data-mode": mode }, t(mode))));
    this.button = h("button", { type: "submit", class: "main", "aria-label": t("send") }, icon("send"));
    this.frame = h("form", { class: "composer", onsubmit: (event) => { event.preventDefault(); this.send(); } }, this.extra, this.text, h("div", { class: "row" }, iconButton("clip", t("attach"), () => this.file.click()), modes, this.file, this.button));
    this.replaceChildren(this.frame); this.show(); this.grow();
  }
  grow() { this.text.style.height = "auto"; this.text.style.height = `${Math.max(40, this.text.scrollHeight)}px`; }
  show() {
    const parts = [];
    if (state.upload) {
      parts.push(h("span", { class: "attached" }, h("img", { src: state.upload.url, alt: t("picture") }), state.upload.settings && h("button", { type: "button", class: "small", onclick: () => { tell("restore", state.upload.settings); toast(t("restored")); } }, t("restore_settings")), iconButton("x", t("cancel"), () => { state.upload = null; this.show(); })));
    }
    if (this.editing) parts.push(h("span", { class: "attached quiet" }, icon("branch"), t("branch"), iconButton("x", t("cancel"), () => this.stopEditing())));
    this.extra.replaceChildren(...parts);
  }
  edit(turn) { this.editing = turn; this.text.value = turn.message; this.grow(); this.show(); this.text.focus(); }
  stopEditing() { if (this.editing) { this.editing = null; this.text.value = ""; this.grow(); this.show(); } }
  async attach(file) {
    const form = new FormData(); form.append("image", file);
    const found = await attempt(() => api("POST", "/uploads", form));
    if (found) { state.upload = found; this.show(); this.text.focus(); }
  }
  async send() {
    const text = this.text.value.trim();
    if (!text && !state.upload) return;
    const order = { text, mode: state.mode, variants: state.variants, upload: state.upload?.sha256, shown_upload: state.upload?.url };
    if (this.editing) order.parent = this.editing.parent;
    const shown = order.shown_upload; delete order.shown_upload;
    const [was, upload] = [this.text.value, state.upload];
    this.text.value = ""; state.upload = null; this.editing = null; this.grow(); this.show();
    const jobs = await say(order);
    if (!jobs) { this.text.value = was; state.upload = upload; this.grow(); this.show(); return; }
    for (const job of jobs) { const known = state.jobs.get(job.id); if (known) known.upload = shown; }
    tell("jobs");
  }
}
customElements.define("hb-conversation", Conversation); customElements.define("hb-composer", Composer);
