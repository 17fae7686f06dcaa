// The status of one message on some devices.
import { api } from "../api.js";
import { h, update } from "../dom.js";
import { plural } from "../format.js";
import { Live } from "../live.js";
import { address, replace } from "../router.js";
import { session } from "../session.js";

const BEAT = 10_000;
/** As many as one question takes. */
const MOST = 1000;
/** More ids than these make an address that nobody can send to anybody. */
const MOST_IN_ADDRESS = 20;

/** status -> what it means. @type {Record<number, {name: string, tone: string, text: string}>} */
const STATUSES = {
  0: { name: "Received", tone: "good", text: "The device has the message." },
  1: { name: "Not received", tone: "warning", text: "It is a target of the message and has not received it." },
  2: { name: "Unknown device", tone: "danger", text: "It is no device of this app: never heard of, or deleted." },
  3: { name: "Not a target", tone: "plain", text: "It is a device of this app, but the message was not for it." },
  4: { name: "Cannot say now", tone: "warning", text: "The store does not answer for it at this moment." },
};

/** @param {import("../router.js").Route} route */
export function deviceView(route) {
  const message = /** @type {HTMLInputElement} */ (h("input", { id: "msg", type: "text", required: true, spellcheck: "false",
    autocapitalize: "none", autocomplete: "off", "aria-describedby": "lookup-error" }));
  const devices = /** @type {HTMLTextAreaElement} */ (h("textarea", { id: "devices", rows: 3, required: true, spellcheck: "false",
    autocapitalize: "none", autocomplete: "off", "aria-describedby": "devices-hint lookup-error" }));
  const date = /** @type {HTMLInputElement} */ (h("input", { id: "date", type: "date", "aria-describedby": "date-hint" }));
  const error = h("p", { class: "notice danger", id: "lookup-error", role: "alert", hidden: true });
  const place = h("div");
  /** @type {Live<any> | null} */
  let live = null;
  /** @type {string[]} */
  let asked = [];

  const form = h("form", { class: "card lookup", novalidate: true },
    h("div", { class: "field" }, h("label", { for: "msg" }, "Message id"), message),
    h("div", { class: "field grow" }, h("label", { for: "devices" }, "Device ids"), devices,
      h("p", { class: "hint", id: "devices-hint" }, `Registration ids, one a line, up to ${MOST.toLocaleString("en-US")}.`)),
    h("div", { class: "field" }, h("label", { for: "date" }, "As of the end of"), date,
      h("p", { class: "hint", id: "date-hint" }, `A past day in ${session.zone}. Empty: now.`)),
    error, h("button", { type: "submit", class: "primary" }, "Look up"));
  form.addEventListener("submit", (event) => {
    event.preventDefault();
    const ids = idsOf(devices.value);
    const problem = !message.value.trim() ? { text: "Type the id of a message.", input: message }
      : !ids.length ? { text: "Type the id of a device.", input: devices }
        : ids.length > MOST ? { text: `At most ${MOST} devices at once; these are ${ids.length}.`, input: devices } : null;
    for (const input of [message, devices]) input.setAttribute("aria-invalid", String(problem?.input === input));
    error.hidden = !problem;
    error.textContent = problem?.text ?? "";
    if (problem) return problem.input.focus();
    asked = ids;
    replace(address("device", "", { msg_id: message.value.trim(), date: date.value,
      device_id: ids.length <= MOST_IN_ADDRESS ? ids.join(",") : "" }));
    ask();
  });

  function ask() {
    live?.stop();
    const [id, ids, day] = [message.value.trim(), asked, date.value];
    live = new Live({
      what: "the status", beat: BEAT,
      ask: (signal) => api.status(id, ids, day, signal),
      render: (answer) => results(id, answer, day),
    });
    update(place);
    place.append(live.element);
  }

  /** @param {import("../router.js").Route} next */
  function show({ query }) {
    message.value = query.get("msg_id") ?? message.value;
    date.value = query.get("date") ?? "";
    const ids = idsOf(query.get("device_id") ?? "");
    if (ids.length && (ids.join() !== asked.join() || !live)) {
      devices.value = ids.join("\n");
      asked = ids;
      if (message.value) ask();
    }
  }

  show(route);
  const element = h("div", {}, h("h1", { tabindex: -1 }, "Device look-up"),
    h("p", { class: "quiet lead" }, "Whether a device has a message, was meant to get it, or is known at all."), form,
    h("section", { "aria-label": "Status" }, place));
  return { title: "Device look-up", element, show, stop: () => live?.stop() };
}

/** @param {string} text @returns {string[]} the ids in it, each once */
function idsOf(text) {
  return [...new Set(text.split(/[\s,]+/).filter(Boolean))];
}

/** @param {string} id @param {Record<string, {status: number}>} answer @param {string} day */
function results(id, answer, day) {
  const entries = Object.entries(answer);
  const counts = Object.entries(STATUSES).map(([status, words]) => /** @type {const} */ ([words,
    entries.filter(([, one]) => one.status === Number(status)).length])).filter(([, count]) => count);
  return h("div", { class: "card", key: "results" },
    h("h2", {}, plural(entries.length, "device")),
    h("p", { class: "row" }, counts.map(([{ name, tone }, count]) => h("span", { class: `status ${tone}` }, `${name}: ${count}`))),
    h("div", { class: "scroll", tabindex: 0, role: "region", "aria-label": "Status by device" },
      h("table", { class: "statuses" }, h("caption", {}, "Message ", h("a", { href: address("messages", id) }, id),
        day ? `, as it stood at the end of ${day} (${session.zone})` : ", as it stands now"),
      h("thead", {}, h("tr", {}, h("th", { scope: "col" }, "Device"), h("th", { scope: "col" }, "Status"))),
      h("tbody", {}, entries.map(([device, { status }]) => {
        const { name, tone, text } = STATUSES[status] ?? { name: `Status ${status}`, tone: "plain", text: "" };
        return h("tr", { key: device }, h("th", { scope: "row", class: "id" }, device),
          h("td", {}, h("span", { class: `status ${tone}` }, name), " ", h("span", { class: "meaning" }, text)));
      })))));
}
