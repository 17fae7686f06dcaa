// The bar at the top: where one is, where one can go, and whether the numbers are up to date.
import { h, icon, update } from "./dom.js";
import { second } from "./format.js";
import { lives, worstState } from "./live.js";
import { pace } from "./poll.js";
import { address } from "./router.js";
import { session } from "./session.js";
import { themeSwitch } from "./theme.js";

const PAGES = { messages: "Messages", users: "Users", device: "Device look-up" };
const PAUSE = "M5 3v10M11 3v10";
const PLAY = "M5 3l8 5-8 5z";

/** @returns {{show: (view: string) => void}} */
export function setUpHeader() {
  const header = /** @type {HTMLElement} */ (document.getElementById("header"));
  const links = Object.entries(PAGES).map(([view, name]) => h("a", { href: address(view), "data-view": view }, name));
  const freshness = h("span", { class: "freshness" });
  const pause = h("button", { type: "button", class: "quiet square" });
  pause.addEventListener("click", () => { pace.paused = !pace.paused; });
  const out = h("button", { type: "button", class: "quiet" }, "Sign out");
  out.addEventListener("click", () => session.signOut());
  header.append(
    h("a", { class: "brand", href: address("messages"), "aria-label": "reportsvc, messages" }, h("span", { class: "logo", "aria-hidden": "true" }), h("span", { "aria-hidden": "true" }, "reportsvc")),
    h("nav", { "aria-label": "Pages" }, links),
    h("div", { class: "tools" }, freshness, pause, themeSwitch(), out));

  const about = h("p");
  document.getElementById("footer")?.append(about);
  const tell = () => {
    const { text, tone } = words();
    freshness.dataset.tone = tone;
    update(freshness, text);
    const name = pace.paused ? "Go on updating" : "Stop updating";
    pause.setAttribute("aria-label", name);
    pause.setAttribute("title", name);
    update(pause, h("span", { key: name, class: "slot" }, icon(pace.paused ? PLAY : PAUSE)));
  };
  lives.addEventListener("change", tell);
  pace.addEventListener("change", tell);
  tell();
  return {
    show(view) {
      header.hidden = !session.now;
      update(about, session.now ? [`App `, h("span", { class: "id" }, session.now.key), ` · times of ${session.zone} · `,
        h("a", { href: "docs" }, "the API behind this page")] : null);
      for (const link of links) {
        if (link.dataset.view === view) link.setAttribute("aria-current", "page");
        else link.removeAttribute("aria-current");
      }
    },
  };
}

/** @returns {{text: string, tone: string}} */
function words() {
  const state = worstState();
  if (!state) return { text: "", tone: "none" };
  const at = state.updatedAt ? second(state.updatedAt, session.zone) : "";
  if (pace.paused) return { text: at ? `Stopped at ${at}` : "Stopped", tone: "paused" };
  if (state.phase === "failed" && !state.retryAt) return { text: "", tone: "none" };
  if (state.phase === "failed") return { text: at ? `As of ${at}` : "No answer", tone: "failed" };
  if (state.phase === "loading") return { text: "Loading…", tone: "loading" };
  return { text: `Live · ${at}`, tone: "live" };
}
