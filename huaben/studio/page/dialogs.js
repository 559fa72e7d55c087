// Windows over the page: gallery, comparison, export, signing in.
import { api, attempt, h, iconButton, openStory, state, t } from "./core.js";

function open(title, body, options = {}) {
  const dialog = h("dialog", { class: options.slim ? "slim" : "", "aria-label": title }, h("header", {}, h("h2", {}, title), !options.stays && iconButton("x", t("close"), () => dialog.close())), h("div", { class: "body" }, body));
  dialog.addEventListener("close", () => dialog.remove());
  dialog.addEventListener("click", (event) => { if (event.target === dialog && !options.stays) dialog.close(); });
  if (options.stays) dialog.addEventListener("cancel", (event) => event.preventDefault());
  document.body.append(dialog); dialog.showModal();
  return dialog;
}
export async function gallery() {
  const grid = h("div", { class: "gallery" });
  let timer;
  const fill = async () => {
    const found = await attempt(() => api("GET", `/gallery?search=${encodeURIComponent(search.value)}`)) ?? [];
    grid.replaceChildren(...found.map((turn) => h("button", { type: "button", onclick: () => { dialog.close(); openStory(turn.story, turn.id); } }, h("img", { src: turn.image.url, alt: "", loading: "lazy" }), h("span", {}, turn.prompt))), ...(found.length ? [] : [h("p", { class: "quiet" }, t("empty_gallery"))]));
  };
  const search = h("input", { type: "search", placeholder: t("search_pictures"), "aria-label": t("search_pictures"), oninput: () => { clearTimeout(timer); timer = setTimeout(fill, 200); } });
  const dialog = open(t("gallery"), [search, grid]);
  fill();
}
export function compare(before, after) {
  const top = h("img", { class: "after", src: after.image.url, alt: t("after") });
  const slide = (value) => { top.style.clipPath = `inset(0 0 0 ${value}%)`; };
  slide(50);
  open(t("compare_with"), [h("div", { class: "compare" }, h("img", { src: before.image.url, alt: t("before") }), top), h("label", { class: "field" }, h("span", {}, `${t("before")} ↔ ${t("after")}`), h("input", { type: "range", min: 0, max: 100, value: 50, oninput: (event) => slide(event.target.value) }))]);
}
export function exportMenu() {
  const link = (kind) => h("a", { class: "button", href: `/api/v1/stories/${state.story.id}/export?format=${kind}${state.head ? `&turn=${state.head}` : ""}`, download: "" }, t(`export_${kind}`));
  open(t("export"), h("div", { class: "menu" }, ...["html", "pdf", "cbz", "png", "json", "zip"].map(link)), { slim: true });
}
export function signIn(done) {
  if (document.querySelector("dialog.signing")) return;
  const field = h("input", { type: "password", autocomplete: "current-password", "aria-label": t("sign_in") });
  const form = h("form", { class: "menu", onsubmit: async (event) => { event.preventDefault(); const answer = await attempt(async () => { await api("POST", "/login", { token: field.value.trim() }); return true; }); if (answer) { dialog.close(); done(); } else field.select(); } }, h("p", {}, t("sign_in_text")), field, h("button", { class: "main" }, t("accept_token")));
  const dialog = open(t("sign_in"), form, { slim: true, stays: true });
  dialog.classList.add("signing"); field.focus();
}
