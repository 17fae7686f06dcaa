// The page: who is signed in, which view is shown, and where the focus goes when that changes.
import { h } from "./dom.js";
import { setUpHeader } from "./header.js";
import { address, here } from "./router.js";
import { session } from "./session.js";
import { panel } from "./states.js";
import { deviceView } from "./views/device.js";
import { messageView } from "./views/message.js";
import { messagesView } from "./views/messages.js";
import { signInView } from "./views/signin.js";
import { usersView } from "./views/users.js";

/**
 * @typedef {Object} View
 * @property {string} title
 * @property {HTMLElement} element
 * @property {(route: import("./router.js").Route) => void} [show] take another query of the same address
 * @property {() => void} stop
 */

const main = /** @type {HTMLElement} */ (document.getElementById("main"));
const header = setUpHeader();
/** @type {View | null} */
let view = null;
let shown = "";

/** @param {import("./router.js").Route} route @returns {View} */
function open(route) {
  if (!session.now) return signInView();
  if (route.view === "messages") return route.id ? messageView(route) : messagesView();
  if (route.view === "users") return usersView(route);
  if (route.view === "device") return deviceView(route);
  return {
    title: "No such page", stop: () => {},
    element: h("div", {}, h("h1", { tabindex: -1 }, "No such page"), panel("There is nothing at this address", [
      h("p", {}, h("a", { href: address("messages") }, "Go to the messages"))])),
  };
}

function show() {
  const route = here();
  header.show(session.now ? route.view : "");
  const name = session.now ? `${route.view}/${route.id}` : "sign in";
  if (name === shown && view) {
    view.show?.(route);
    return;
  }
  const isFirst = shown === "";
  shown = name;
  view?.stop();
  view = open(route);
  document.title = `${view.title} · reportsvc`;
  main.replaceChildren(view.element);
  if (isFirst) return;
  scrollTo(0, 0);
  // A screen reader reads the heading of what is new, and the keyboard goes on from there.
  main.querySelector("h1")?.focus({ preventScroll: true });
}

addEventListener("hashchange", show);
session.addEventListener("change", show);
// The link to the content is one to a place in this page, and no address of a view.
document.querySelector("a.skip")?.addEventListener("click", (event) => {
  event.preventDefault();
  main.focus();
});
show();
