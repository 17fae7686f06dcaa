// The recent messages, newest first, with their targets, received, clicked and rates.
import { api } from "../api.js";
import { announceSeldom } from "../announce.js";
import { h, slot } from "../dom.js";
import { marked, number, plural, ratio, time } from "../format.js";
import { rateBar } from "../funnel.js";
import { Live } from "../live.js";
import { address } from "../router.js";
import { session } from "../session.js";
import { command, panel } from "../states.js";
import { kindName } from "../vocabulary.js";

/** @typedef {import("../api.js").Message} Message */

const BEAT = 10_000;
const PAGE = 50;
/** What one question may ask for; messages beyond it are shown as they were when they were loaded. */
const MOST = 200;

export function messagesView() {
  /** @type {Message[]} */
  let older = [];
  let wanted = PAGE;
  let search = "";
  /** @type {string | null} */
  let next = null;
  let totalsBefore = "";

  const find = /** @type {HTMLInputElement} */ (h("input", { type: "search", id: "find", placeholder: "Title or id", autocomplete: "off", spellcheck: "false" }));
  const form = h("form", { class: "find", role: "search" }, h("label", { for: "find" }, "Find a message"), find,
    h("button", { type: "submit" }, "Open"));
  find.addEventListener("input", () => { search = find.value.trim(); live.redraw(); });
  form.addEventListener("submit", (event) => {
    event.preventDefault();
    const [only, ...others] = matching(all(live.answer?.messages ?? []), search);
    if (search) location.hash = address("messages", only && !others.length ? only.msg_id : search);
  });
  const more = h("button", { type: "button" }, "Load older messages");
  more.addEventListener("click", async () => {
    more.toggleAttribute("disabled", true);
    try {
      if (wanted < MOST) {
        wanted = Math.min(wanted + PAGE, MOST);
        await live.refresh();
      } else {
        const page = await api.messages({ limit: PAGE, before: next ?? undefined });
        older.push(...page.messages);
        next = page.next;
        live.redraw();
      }
    } catch {
      more.textContent = "That did not work: try again";
    } finally {
      more.toggleAttribute("disabled", false);
    }
  });

  /** @param {Message[]} newest @returns {Message[]} */
  const all = (newest) => {
    const known = new Set(newest.map(({ msg_id }) => msg_id));
    return [...newest, ...older.filter(({ msg_id }) => !known.has(msg_id))];
  };

  const live = new Live({
    what: "messages", beat: BEAT,
    ask: (signal) => api.messages({ limit: wanted, signal }),
    render(page) {
      if (!older.length) next = page.next;
      const messages = all(page.messages);
      form.hidden = !messages.length;
      const now = JSON.stringify(page.messages.map(({ totals }) => totals));
      if (totalsBefore && now !== totalsBefore) announceSeldom("The totals of the messages have changed.");
      totalsBefore = now;
      if (!messages.length) return empty();
      const shown = matching(messages, search);
      more.hidden = next === null;
      return [
        summary(messages, next !== null),
        shown.length ? table(shown) : none(search),
        h("div", { class: "row end", key: "more" }, h("span", { class: "quiet" }, search
          ? `${number(shown.length)} of ${plural(messages.length, "message")}` : plural(messages.length, "message")),
        slot("more", more)),
      ];
    },
  });

  const element = h("div", {}, h("div", { class: "title-row" }, h("h1", { tabindex: -1 }, "Messages"), form), live.element);
  return { title: "Messages", element, stop: () => live.stop() };
}

/** @param {Message[]} messages @param {string} search */
function matching(messages, search) {
  const words = search.toLowerCase();
  return messages.filter(({ msg_id, title }) => !words || msg_id.toLowerCase().includes(words) || title?.toLowerCase().includes(words));
}

/** @param {Message[]} messages @param {string} stage @returns {number | null} */
function sum(messages, stage) {
  const counts = messages.map(({ totals }) => totals[stage]).filter((count) => count !== null);
  return counts.length ? counts.reduce((total, count) => Number(total) + Number(count), 0) : null;
}

/** @param {Message[]} messages @param {boolean} isPart */
function summary(messages, isPart) {
  const [target, received, click] = ["target", "received", "click"].map((stage) => sum(messages, stage));
  // A rate of all compares only messages that have both numbers.
  const known = messages.filter(({ totals }) => totals.target && totals.received);
  const rate = ratio(sum(known, "received"), sum(known, "target"));
  const tiles = [
    ["Messages", number(messages.length), isPart ? "newest" : "all there are"],
    ["Targets", number(target), "once per message"],
    ["Received", number(received), rate === null ? "" : rateBar(rate, "received")],
    ["Clicked", number(click), click === null ? "" : rateBar(ratio(click, received), "click")],
  ];
  return h("dl", { class: "tiles", key: "tiles" }, tiles.map(([name, value, note]) => h("div", { class: "tile" },
    h("dt", {}, name), h("dd", {}, h("span", { class: "big" }, marked(/** @type {string} */ (value))), h("span", { class: "quiet" }, note)))));
}

/** @param {Message[]} messages */
function table(messages) {
  return h("div", { class: "card", key: "table" }, h("table", { class: "messages" },
    h("caption", { class: "unseen" }, "Recent messages, newest first"),
    h("thead", {}, h("tr", {}, h("th", { scope: "col" }, "Message"), h("th", { scope: "col", class: "wide" }, `Last event (${session.zone})`),
      h("th", { scope: "col", class: "number middle" }, "Targets"), h("th", { scope: "col", class: "number" }, "Received"),
      h("th", { scope: "col", class: "number" }, "Clicked"))),
    h("tbody", {}, messages.map(row))));
}

/** @param {Message} message */
function row({ msg_id, title, kind, vendor, last_event_at, created_at, totals, rates }) {
  const notes = [kind && kind !== "notification" ? kindName(kind) : null, vendor].filter(Boolean);
  return h("tr", { key: `m-${msg_id}` },
    h("th", { scope: "row" }, h("a", { href: address("messages", msg_id), class: "title" }, title ?? msg_id),
      title || notes.length ? h("span", { class: "note" }, title ? h("span", { class: "id" }, msg_id) : null,
        notes.map((note) => h("span", { class: "chip" }, note))) : null),
    h("td", { class: "wide" }, time(last_event_at ?? created_at, session.zone)),
    h("td", { class: "number middle" }, marked(number(totals.target))),
    h("td", { class: "number" }, marked(number(totals.received)),
      h("span", { class: "narrow-only quiet" }, totals.target === null ? "no target" : ` of ${number(totals.target)}`), totals.received === null ? null : rateBar(rates.received, "received")),
    h("td", { class: "number" }, marked(number(totals.click)), totals.click === null ? null : rateBar(rates.click, "click")));
}

/** @param {string} search */
function none(search) {
  return h("section", { class: "panel", key: "none" }, h("h2", {}, "None of these messages"),
    h("p", {}, "No loaded message has ", h("q", {}, search), " in its title or id. If it is the id of another one: ",
      h("a", { href: address("messages", search) }, "open it"), "."));
}

function empty() {
  const { key } = session.now ?? { key: "KEY" };
  const base = document.baseURI.split(/[?#]/)[0].replace(/\/$/, "");
  const push = `curl -u ${key}:$SECRET ${base}/v1/pushes \\
  -d '{"msg_id":"first","payload":{"message":"Hello"},"audience":{"device_ids":["phone-1","phone-2"]}}'`;
  const event = `curl -u ${key}:$SECRET ${base}/v1/events \\
  -d '{"msg_id":"first","stage":"received","device_id":"phone-1","platform":"android"}'`;
  return h("div", { key: "empty", "data-own": "" }, panel("No messages yet", [
    h("p", {}, "A message appears here with the first push that is registered, or the first event that names it. Paste these "
      + "into a shell, with the master secret in ", h("code", {}, "$SECRET"), "; this page shows them within seconds."),
    h("h3", {}, "Tell what was sent, and to whom"), command(push, "the command that registers a push"),
    h("h3", {}, "Tell that a device received it"), command(event, "the command that sends an event"),
  ], { tone: "plain" }));
}
