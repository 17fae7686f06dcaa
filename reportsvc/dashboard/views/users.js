// The app's users: new, online and active devices by day.
import { api } from "../api.js";
import { Chart } from "../charts.js";
import { switcher } from "../controls.js";
import { h, slot } from "../dom.js";
import { day, marked, number } from "../format.js";
import { Live } from "../live.js";
import { address, replace } from "../router.js";
import { session } from "../session.js";
import { panel } from "../states.js";
import { MEASURES, platformName } from "../vocabulary.js";

/** @typedef {import("../api.js").Users} Users */

const BEAT = 30_000;
const DAY = 86_400_000;
/** Words of the switch -> days; 60 is as far as the report goes. @type {Record<string, string>} */
const SPANS = { 7: "7 days", 14: "14 days", 30: "30 days", 60: "60 days" };
const DEFAULT_SPAN = "14";

/** @param {import("../router.js").Route} route */
export function usersView(route) {
  let { days, platform } = choices(route);
  const chart = new Chart();
  const select = /** @type {HTMLSelectElement} */ (h("select", { id: "platform" }));
  const go = (/** @type {Record<string, string>} */ changes) => replace(address("users", "", { days, platform, ...changes }));
  select.addEventListener("change", () => go({ platform: select.value }));
  const spans = switcher("Days", SPANS, () => days, (value) => go({ days: value }));

  const live = new Live({
    what: "the users", beat: BEAT,
    ask: (signal) => api.users(day(Date.now() - (Number(days) - 1) * DAY, session.zone), Number(days), signal),
    explain(error) {
      if (error.kind !== "forbidden") return null;
      controls.hidden = true;
      return forbidden(error.message);
    },
    render(answer) {
      const platforms = platformsOf(answer);
      fillPlatforms(select, platforms, platform);
      if (!platforms.length) return empty();
      const items = answer.items.map((item) => ({ time: item.time, ...figures(item, platform) }));
      chart.show(chartData(items, platform));
      return [today(items[items.length - 1]), h("section", { class: "card", "aria-labelledby": "by-day", key: "chart-card" },
        h("h2", { id: "by-day" }, "By day"),
        h("p", { class: "quiet" }, `Days are of ${session.zone}, the app's timezone. A device counts once a day, however often it is seen.`),
        slot("chart", chart.element))];
    },
  });
  const controls = h("div", { class: "row" }, spans.element, h("label", { for: "platform", class: "unseen" }, "Platform"), select);
  fillPlatforms(select, [], platform);
  const element = h("div", {}, h("div", { class: "title-row" }, h("h1", { tabindex: -1 }, "Users"), controls), live.element);
  return {
    title: "Users", element,
    /** @param {import("../router.js").Route} next */
    show(next) {
      const before = days;
      ({ days, platform } = choices(next));
      spans.show();
      if (before === days) live.redraw();
      else live.restart();
    },
    stop() {
      live.stop();
      chart.stop();
    },
  };
}

/** @param {import("../router.js").Route} route */
function choices({ query }) {
  const days = query.get("days") ?? "";
  return { days: days in SPANS ? days : DEFAULT_SPAN, platform: query.get("platform") ?? "" };
}

/** @param {Users} answer @returns {string[]} */
function platformsOf({ items }) {
  return [...new Set(items.flatMap((item) => Object.keys(item).filter((key) => key !== "time")))];
}

/** @param {HTMLSelectElement} select @param {string[]} platforms @param {string} chosen */
function fillPlatforms(select, platforms, chosen) {
  const names = ["", ...new Set([...platforms, ...(chosen ? [chosen] : [])])];
  if (select.dataset.options !== names.join()) {
    select.dataset.options = names.join();
    select.replaceChildren(...names.map((name) => h("option", { value: name }, name ? platformName(name) : "All platforms")));
  }
  select.value = chosen;
}

/**
 * The figures of a day, of one platform or of all: a device is of one platform, so they add up.
 *
 * @param {Record<string, any>} item
 * @param {string} platform
 * @returns {Record<string, number | null>}
 */
function figures(item, platform) {
  const parts = Object.entries(item).filter(([key]) => key !== "time" && (!platform || key === platform)).map(([, part]) => part);
  return Object.fromEntries(Object.keys(MEASURES).map((measure) => {
    const counts = parts.map((part) => part[measure]).filter((count) => count !== undefined);
    return [measure, counts.length ? counts.reduce((sum, count) => sum + count, 0) : null];
  }));
}

/** @param {Record<string, any>} item */
function today(item) {
  return h("section", { "aria-label": `Today, ${item.time}`, key: "today" },
    h("dl", { class: "tiles users-tiles" }, Object.entries(MEASURES).map(([measure, { name }]) => h("div", { class: "tile" },
      h("dt", {}, `${name} today`), h("dd", {}, h("span", { class: "big" }, marked(number(item[measure]))),
        h("span", { class: "quiet" }, `so far on ${item.time}`))))));
}

/** @param {Record<string, any>[]} items @param {string} platform @returns {import("../charts.js").ChartData} */
function chartData(items, platform) {
  const of = platform ? ` of ${platformName(platform)}` : "";
  const last = items[items.length - 1];
  return {
    caption: `New, online and active devices${of} by day (${session.zone})`,
    summary: `New, online and active devices${of} by day, from ${items[0].time} to ${last.time}. On the last day: ${Object.entries(MEASURES)
      .map(([measure, { name }]) => `${name.toLowerCase()} ${number(last[measure])}`).join(", ")}. The numbers are in the table below.`,
    axis: "Day", times: items.map(({ time }) => time), shape: "lines",
    series: Object.entries(MEASURES).map(([measure, { name, what }]) => ({ id: measure, name: `${name} (${what})`,
      values: items.map((item) => item[measure]) })),
  };
}

/** @param {string} message */
function forbidden(message) {
  return panel("This app has no users report", [
    h("p", {}, "The service gives /v3/users to VIP apps only, and this app was made without that (", h("code", {}, "--no-vip"),
      "). Messages and devices work as ever."),
    h("p", { class: "quiet" }, "The service says: ", h("q", {}, message), " (code 2003)."),
    h("p", {}, h("a", { href: address("messages") }, "See the messages")),
  ], { tone: "warning" });
}

function empty() {
  return h("div", { key: "empty" }, panel("Nobody was here in these days", [
    h("p", {}, "A device counts as online with any event of it, a registration, or the stage ", h("code", {}, "online"), "; as active with ",
      h("code", {}, "click"), " or ", h("code", {}, "active"), "; and as new on the day it is first seen."),
    h("p", {}, h("a", { href: address("messages") }, "How to send the first event")),
  ]));
}
