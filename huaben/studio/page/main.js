// The start: language, theme, what the studio can do, then the elements.
import { api, listen, on, openStory, state, tell } from "./core.js";
import { signIn } from "./dialogs.js";

const theme = localStorage.getItem("hb-theme");
if (theme) document.documentElement.dataset.theme = theme;
const setLanguage = (language) => { state.language = language; document.documentElement.lang = language; localStorage.setItem("hb-language", language); };
setLanguage(state.language);
on("switch-language", () => { setLanguage(state.language === "en" ? "zh" : "en"); tell("language"); });
on("sign-in", () => signIn(() => location.reload()));
document.addEventListener("keydown", (event) => { if (event.key === "Escape") document.body.removeAttribute("data-pane"); });
document.addEventListener("click", (event) => { if (document.body.dataset.pane && event.target.closest("#middle")) document.body.removeAttribute("data-pane"); });

try { state.about = await api("GET", "/studio"); } catch { state.about = null; }
if (state.about) {
  await import("./stories.js"); await import("./conversation.js"); await import("./sheet.js");
  listen();
  const id = location.hash.slice(1);
  if (/^[0-9a-f]{32}$/.test(id)) openStory(id);
  document.documentElement.dataset.ready = "true";
}
