// Top bar, the list of stories, the library of characters, and the tree of turns.
import { api, attempt, h, icon, iconButton, loadLibrary, loadStories, newStory, on, openStory, pathTo, state, t, tell, toast, goTo } from "./core.js";
import { exportMenu, gallery } from "./dialogs.js";

function theme() {
  const dark = (document.documentElement.dataset.theme || (matchMedia("(prefers-color-scheme: dark)").matches ? "dark" : "light")) === "dark";
  document.documentElement.dataset.theme = dark ? "light" : "dark";
  localStorage.setItem("hb-theme", document.documentElement.dataset.theme);
}
const pane = (name) => () => { document.body.dataset.pane === name ? document.body.removeAttribute("data-pane") : (document.body.dataset.pane = name); };

class Top extends HTMLElement {
  connectedCallback() { on("language", () => this.render()); on("queue", () => this.count()); on("jobs", () => this.count()); on("story", () => this.render()); this.render(); }
  async count() {
    clearTimeout(this.timer);
    this.timer = setTimeout(async () => {
      const jobs = await attempt(() => api("GET", "/jobs")) ?? [];
      this.queue.hidden = jobs.length < 2; this.queue.firstChild.textContent = t("queue", { n: jobs.length });
    }, 300);
  }
  render() {
    this.queue = h("span", { class: "queue", hidden: true }, h("span", {}, ""), " ", h("button", { class: "small bare", onclick: async () => { await attempt(() => api("POST", "/jobs/cancel")); toast(t("all_stopped")); } }, t("stop_all")));
    this.replaceChildren(
      iconButton("menu", t("open_stories"), pane("left"), { class: "icon bare only-small" }),
      h("h1", {}, h("img", { src: "/page/icon.svg", alt: "" }), "huaben", h("span", { lang: "zh", class: "hide-small" }, "话本")),
      this.queue,
      h("button", { class: "bare", title: t("gallery"), "aria-label": t("gallery"), onclick: gallery }, icon("grid"), h("span", { class: "hide-small" }, t("gallery"))),
      h("button", { class: "bare", title: t("export"), "aria-label": t("export"), disabled: !state.story?.turns.length, onclick: exportMenu }, icon("out"), h("span", { class: "hide-small" }, t("export"))),
      h("button", { class: "bare", lang: state.language === "en" ? "zh" : "en", onclick: () => tell("switch-language") }, t("language")),
      iconButton("moon", t("theme"), theme),
      iconButton("sliders", t("open_page"), pane("right"), { class: "icon bare only-narrow" }),
    );
  }
}

class Stories extends HTMLElement {
  connectedCallback() {
    for (const name of ["stories", "story", "library"]) on(name, () => this.fill());
    on("language", () => this.render()); this.render(); loadStories(); loadLibrary();
  }
  render() {
    let timer;
    const file = h("input", { type: "file", accept: ".zip,application/zip", hidden: true, "aria-label": t("take_in"), onchange: async () => {
      const form = new FormData(); form.append("archive", file.files[0]); file.value = "";
      const person = await attempt(() => api("POST", "/characters/import", form));
      if (person) { toast(t("kept", { name: person.name })); loadLibrary(); }
    } });
    this.search = h("input", { type: "search", placeholder: t("search_stories"), "aria-label": t("search_stories"), value: state.search, oninput: () => { clearTimeout(timer); timer = setTimeout(() => { state.search = this.search.value; loadStories(); }, 200); } });
    this.list = h("ul", { class: "story-list" }); this.people = h("ul", { class: "people" });
    this.replaceChildren(
      h("button", { class: "new", onclick: newStory }, icon("plus"), t("new_story")), this.search,
      h("h2", {}, t("stories")), this.list, h("div", { class: "head-row" }, h("h2", {}, t("library")), iconButton("plus", t("take_in"), () => file.click(), { class: "icon bare small" })), file, this.people,
    );
    this.fill();
  }
  fill() {
    const sorted = [...state.stories].sort((a, b) => b.favourite - a.favourite);
    this.list.replaceChildren(...sorted.map((story) => this.item(story)));
    this.people.replaceChildren(...(state.library.length ? state.library.map((person) => this.person(person)) : [h("li", { class: "quiet" }, t("library_empty"))]));
  }
  item(story) {
    const open = story.id === state.story?.id, title = story.title || t("untitled");
    return h("li", { "data-open": open },
      h("button", { class: "go", "aria-current": open ? "true" : null, onclick: () => openStory(story.id) }, story.cover ? h("img", { src: story.cover, alt: "", loading: "lazy" }) : h("span", { class: "blank" }), h("b", {}, title)),
      h("span", { class: "tools" },
        iconButton("star", t("favourite"), () => this.change(story, { favourite: !story.favourite }), { "aria-pressed": String(story.favourite) }),
        iconButton("pen", t("rename"), () => { const name = prompt(t("rename"), title); if (name?.trim()) this.change(story, { title: name.trim().slice(0, 200) }); }),
        iconButton("trash", t("delete"), () => this.remove(story, title))));
  }
  async change(story, values) { await attempt(() => api("PATCH", `/stories/${story.id}`, values)); loadStories(); }
  async remove(story, title) {
    if (await attempt(() => api("DELETE", `/stories/${story.id}`)) === undefined) return;
    if (state.story?.id === story.id) newStory();
    await loadStories();
    toast(t("deleted", { title: title.slice(0, 40) }), t("undo"), async () => { await attempt(() => api("POST", `/stories/${story.id}/restore`)); loadStories(); });
  }
  person(person) {
    return h("li", {},
      h("button", { title: t("library_tools", { name: person.name }), onclick: () => { tell("use-character", person); toast(t("used_next", { name: person.name })); } },
        person.picture ? h("img", { src: person.picture, alt: "" }) : icon("star"), h("span", {}, person.name)),
      h("a", { class: "button small bare", href: `/api/v1/characters/${person.id}/export`, download: "", title: t("download"), "aria-label": `${t("download")}: ${person.name}` }, icon("down")),
      h("button", { class: "small bare", title: t("forget"), "aria-label": `${t("forget")}: ${person.name}`, onclick: async () => { await attempt(() => api("DELETE", `/characters/${person.id}`)); loadLibrary(); toast(t("forgot", { name: person.name })); } }, icon("x")));
  }
}

class Tree extends HTMLElement {
  connectedCallback() { for (const name of ["story", "head", "language"]) on(name, () => this.render()); }
  render() {
    const turns = state.story?.turns ?? [];
    if (turns.length < 2) { this.replaceChildren(); return; }
    const below = Map.groupBy ? Map.groupBy(turns, (turn) => turn.parent) : turns.reduce((map, turn) => map.set(turn.parent, [...(map.get(turn.parent) ?? []), turn]), new Map());
    const place = new Map(); let rows = 0;
    const walk = (turn, row) => {
      place.set(turn.id, [turn.number - 1, row]);
      (below.get(turn.id) ?? []).forEach((child, index) => walk(child, index ? ++rows : row));
    };
    (below.get(null) ?? []).forEach((turn, index) => walk(turn, index ? ++rows : 0));
    const step = 56, path = new Set(pathTo(state.head).map((turn) => turn.id)), space = h("div", { class: "tree-space", role: "group", "aria-label": t("tree") });
    const svg = document.createElementNS("http://www.w3.org/2000/svg", "svg");
    const width = Math.max(...turns.map((turn) => turn.number)) * step, height = (rows + 1) * step - 12;
    svg.setAttribute("width", width); svg.setAttribute("height", height); space.append(svg);
    space.style.width = `${width}px`; space.style.height = `${height}px`;
    for (const turn of turns) {
      const [column, row] = place.get(turn.id), from = place.get(turn.parent);
      if (from) {
        const line = document.createElementNS("http://www.w3.org/2000/svg", "path");
        const [x0, y0, x1, y1] = [from[0] * step + 44, from[1] * step + 22, column * step, row * step + 22];
        line.setAttribute("d", `M${x0} ${y0} C${x0 + 8} ${y0} ${x0 + 2} ${y1} ${x1} ${y1}`); svg.append(line);
      }
      const node = h("button", { type: "button", title: `${t("turn", { n: turn.number })}: ${turn.message}`, "aria-label": `${t("turn", { n: turn.number })}: ${turn.message}`, "data-path": path.has(turn.id), "aria-current": turn.id === state.head ? "true" : null, onclick: () => goTo(turn.id, true) },
        turn.image ? h("img", { src: turn.image.url, alt: "", loading: "lazy" }) : `${turn.number}`);
      node.style.left = `${column * step}px`; node.style.top = `${row * step}px`;
      space.append(node);
    }
    this.replaceChildren(space);
    this.querySelector("[aria-current]")?.scrollIntoView({ block: "nearest", inline: "nearest" });
  }
}
customElements.define("hb-top", Top); customElements.define("hb-stories", Stories); customElements.define("hb-tree", Tree);
