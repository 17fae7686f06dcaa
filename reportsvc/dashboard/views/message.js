// One message: its funnel by platform and channel, and how it spread.
import { api } from "../api.js";
import { announce, announceSeldom } from "../announce.js";
import { Chart } from "../charts.js";
import { switcher } from "../controls.js";
import { h, slot } from "../dom.js";
import { day, minute, number, percent, plural, time } from "../format.js";
import { channelRows, funnel, rates, totalsTable } from "../funnel.js";
import { Live } from "../live.js";
import { address, replace } from "../router.js";
import { session } from "../session.js";
import { panel } from "../states.js";
import { STAGES, STAGE_WORDS, channelName, kindName, platformName } from "../vocabulary.js";

/** @typedef {import("../api.js").WholeMessage} WholeMessage */
/** @typedef {import("../api.js").Timeline} Timeline */

const BEAT = 10_000;
/** Bars of more intervals than these are too thin to tell apart. */
const MOST_BARS = 30;

/** @param {import("../router.js").Route} route */
export function messageView(route) {
  const id = route.id;
  let { platform, channel, interval, mode } = choices(route);
  const chart = new Chart();
  let heard = "";

  /** @param {Record<string, string>} changes */
  const go = (changes) => replace(address("messages", id, { platform, channel, interval, mode, ...changes }));
  const part = /** @type {HTMLSelectElement} */ (h("select", { id: "part" }));
  part.addEventListener("change", () => {
    const [kind, name, of = ""] = part.value.split(":");
    go(kind === "channel" ? { platform: of, channel: name } : { platform: name ?? "", channel: "" });
  });
  const heading = h("h1", { tabindex: -1 }, "Message");

  const live = new Live({
    what: "the message", beat: BEAT,
    ask: (signal) => api.message(id, signal),
    explain: (error) => (error.kind === "not-found" ? unknown(id) : null),
    render(message) {
      heading.textContent = message.title ?? `Message ${id}`;
      document.title = `${message.title ?? id} · reportsvc`;
      fillParts(part, message, platform, channel);
      const shown = totalsOf(message, platform, channel);
      const now = JSON.stringify(message.totals);
      if (heard && now !== heard) announceSeldom(`Received ${number(message.totals.received)}, clicked ${number(message.totals.click)}.`);
      heard = now;
      return [
        facts(message),
        h("section", { class: "card", "aria-labelledby": "funnel-title", key: "funnel" },
          h("div", { class: "card-head" }, h("h2", { id: "funnel-title" }, "Funnel"),
            h("div", { class: "row" }, h("label", { for: "part" }, "Devices"), slot("part", part))),
          funnel(shown), rateLine(shown, channel !== "")),
        h("section", { class: "card", "aria-labelledby": "parts-title", key: "parts" },
          h("h2", { id: "parts-title" }, "Platforms and channels"),
          Object.keys(message.platforms).length ? [
            totalsTable("By platform", "Platform", Object.entries(message.platforms).map(([name, totals]) => ({
              key: name, name: platformName(name), href: address("messages", id, { platform: name, interval, mode }), totals }))),
            totalsTable("By channel", "Channel", channelRows(message, (of, name) =>
              address("messages", id, { platform: of, channel: name, interval, mode })), true),
            h("p", { class: "hint" }, "Received rates of channels are of what was sent over them. Targets that name no channel are "
              + "counted with the default one of their platform."),
            Object.keys(message.kinds).length > 1 ? totalsTable("By kind", "Kind", Object.entries(message.kinds).map(
              ([name, totals]) => ({ key: name, name: kindName(name), totals }))) : null,
          ] : h("p", { class: "nothing" }, "No device has been heard of yet.")),
      ];
    },
  });

  const title = h("h2", { id: "spread-title" }, "Timeline");
  const spread = new Live({
    what: "the timeline", beat: BEAT,
    ask: (signal) => api.timeline(id, { interval, platform, signal }),
    explain: (error) => (error.kind === "not-found" ? h("p", { class: "nothing" }, "No timeline.") : null),
    render(timeline) {
      if (!timeline.series.length) {
        return h("p", { class: "nothing", key: "none" }, "Nothing has happened yet that a timeline could show.");
      }
      chart.show(chartData(timeline, mode, platform));
      return [
        h("p", { class: "quiet", key: "zone" }, `Times are of ${timeline.timezone}, the app's timezone. `,
          platform ? `${platformName(platform)} devices` : "All devices",
          channel ? "; a timeline is of a whole platform, not of one channel." : ".",
          mode === "new" ? " Each device counts once at each stage, when it first reached it." : " How many devices had reached each stage by then."),
        slot("chart", chart.element),
      ];
    },
  });
  const modes = switcher("What the chart shows", { cumulative: "So far", new: "New" }, () => mode, (value) => go({ mode: value }));
  const intervals = switcher("Interval", { hour: "By hour", day: "By day" }, () => interval, (value) => go({ interval: value }));

  const element = h("div", {},
    h("nav", { "aria-label": "Way back", class: "crumbs" }, h("a", { href: address("messages") }, "← All messages")),
    heading, live.element,
    h("section", { class: "card", "aria-labelledby": "spread-title" },
      h("div", { class: "card-head" }, title, h("div", { class: "row" }, intervals.element, modes.element)), spread.element));
  return {
    title: `Message ${id}`, element,
    /** @param {import("../router.js").Route} next */
    show(next) {
      const [before, devices] = [`${platform} ${interval}`, `${platform} ${channel}`];
      ({ platform, channel, interval, mode } = choices(next));
      for (const one of [modes, intervals]) one.show();
      live.redraw();
      if (before === `${platform} ${interval}`) spread.redraw();
      else spread.restart();
      if (devices === `${platform} ${channel}`) return;
      announce(`The funnel shows ${part.selectedOptions[0].text}.`);
      element.querySelector("#funnel-title")?.scrollIntoView({ block: "nearest" });
    },
    stop() {
      live.stop();
      spread.stop();
      chart.stop();
    },
  };
}

/** @param {import("../router.js").Route} route */
function choices({ query }) {
  const word = (/** @type {string} */ name, /** @type {string[]} */ allowed) => {
    const given = query.get(name) ?? "";
    return allowed.includes(given) ? given : allowed[0];
  };
  return { platform: query.get("platform") ?? "", channel: query.get("channel") ?? "",
    interval: word("interval", ["hour", "day"]), mode: word("mode", ["cumulative", "new"]) };
}

/** @param {WholeMessage} message @param {string} platform @param {string} channel */
function totalsOf(message, platform, channel) {
  return channel ? message.channels[channel] ?? {} : platform ? message.platforms[platform] ?? {} : message.totals;
}

/** @param {HTMLSelectElement} select @param {WholeMessage} message @param {string} platform @param {string} channel */
function fillParts(select, message, platform, channel) {
  /** @param {string} of */
  const channelsOf = (of) => [...new Set(message.breakdown.filter((part) => part.platform === of && part.channel in message.channels)
    .map((part) => part.channel))];
  const options = [["", "All devices", null], ...Object.keys(message.platforms).flatMap((name) => [
    [`platform:${name}`, platformName(name), name],
    ...channelsOf(name).map((one) => [`channel:${one}:${name}`, `${platformName(name)}, ${channelName(one)}`, name])])];
  const value = channel ? `channel:${channel}:${platform}` : platform ? `platform:${platform}` : "";
  const known = options.map(([one]) => one);
  if (!known.includes(value)) options.push([value, channel || platformName(platform), null]);
  const wanted = JSON.stringify(options);
  if (select.dataset.options !== wanted) {
    select.dataset.options = wanted;
    select.replaceChildren(...options.map(([one, name]) => h("option", { value: one }, name)));
  }
  select.value = value;
}

/** @param {WholeMessage} message */
function facts(message) {
  const { audience } = message;
  const list = [
    ["Id", h("span", { class: "id" }, message.msg_id)],
    ["Registered", time(message.created_at, session.zone)],
    ["First event", time(message.first_event_at, session.zone)],
    ["Last event", time(message.last_event_at, session.zone)],
    message.expires_at ? ["Expires", time(message.expires_at, session.zone)] : null,
    message.kind ? ["Kind", kindName(message.kind)] : null,
    message.vendor ? ["Vendor", message.vendor] : null,
    audience ? ["Audience", audience === "all" ? "every device" : audience.device_ids !== undefined
      ? plural(audience.device_ids, "device") : "a part of the devices"] : null,
  ].filter((one) => one !== null);
  return h("div", { class: "facts", key: "facts" },
    h("dl", {}, list.map(([name, value]) => h("div", {}, h("dt", {}, name), h("dd", {}, value)))),
    h("p", { class: "row" }, h("a", { href: address("device", "", { msg_id: message.msg_id }), class: "button" }, "Look a device up"),
      message.payload === null || message.payload === undefined ? null
        : h("details", { class: "payload" }, h("summary", {}, "Payload"),
          h("pre", { tabindex: 0, role: "region", "aria-label": "Payload" }, JSON.stringify(message.payload, null, 2)))));
}

/** @param {import("../api.js").Totals} totals @param {boolean} ofChannel */
function rateLine(totals, ofChannel) {
  const { received, click, of } = rates(totals, ofChannel);
  return h("p", { class: "rates" }, "Received rate ", h("b", {}, percent(received)),
    of && h("span", { class: "quiet" }, ` (of ${STAGE_WORDS[of].name.toLowerCase()})`), " · click rate ", h("b", {}, percent(click)),
    h("span", { class: "quiet" }, " (of received)"));
}

/** @param {Timeline} timeline @param {string} mode @param {string} platform @returns {import("../charts.js").ChartData} */
function chartData({ series, timezone, interval }, mode, platform) {
  const key = mode === "new" ? "new" : "cumulative";
  const stages = STAGES.filter((stage) => series.some((one) => one[key][stage] !== undefined));
  const of = platform ? ` of ${platformName(platform)} devices` : "";
  const what = mode === "new" ? `Devices new at each stage, by ${interval}` : `Devices at each stage so far, by ${interval}`;
  const last = series[series.length - 1];
  return {
    caption: `${what}${of} (${timezone})`,
    summary: `${what}${of}, from ${series[0].time} to ${last.time}. At the end: ${stages.map((stage) =>
      `${STAGE_WORDS[stage].name.toLowerCase()} ${number(last.cumulative[stage])}`).join(", ")}. The numbers are in the table below.`,
    axis: interval === "day" ? "Day" : "Hour",
    times: series.map(({ time: one }) => one),
    until: interval === "day" ? day((last.start + 86_400) * 1000, timezone) : minute(last.start + 3600, timezone),
    series: stages.map((stage) => ({ id: stage, name: STAGE_WORDS[stage].name, values: series.map((one) => one[key][stage] ?? null) })),
    shape: mode === "new" && series.length <= MOST_BARS ? "bars" : mode === "new" ? "lines" : "steps",
  };
}

/** @param {string} id */
function unknown(id) {
  return panel("No such message", [
    h("p", {}, "No push and no event has the id ", h("q", {}, id), ". Statistics are forgotten a month after the last event."),
    h("p", {}, h("a", { href: address("messages") }, "See the messages there are")),
  ]);
}
