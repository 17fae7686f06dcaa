// Charts, drawn by plotly from the service's own installation of it. It is large, so it is loaded when the first chart
// is shown and kept by the browser. Every chart has its numbers in a table below it; without plotly, that is all there is.
import { h, update } from "./dom.js";
import { marked, number } from "./format.js";

/**
 * @typedef {Object} Series
 * @property {string} id a stage or a measure; its colour is that of the same name in the style sheet
 * @property {string} name
 * @property {(number | null)[]} values null is "no data", a gap
 * @typedef {Object} ChartData
 * @property {string} caption what the chart shows, for its table too
 * @property {string} summary the same in a sentence, for those who do not see it
 * @property {string} axis the heading of the first column
 * @property {string[]} times local times of the app, as plotly and people read them
 * @property {Series[]} series
 * @property {"bars" | "steps" | "lines"} shape
 * @property {string} [until] the end of the last interval, to which steps are drawn
 */

/** The one policy of the page, for the one address that becomes a script while it runs. */
const policy = /** @type {any} */ (window).trustedTypes?.createPolicy("charts",
  { createScriptURL: (/** @type {string} */ url) => url });
/** @type {Promise<any> | null} */
let library = null;

/** @returns {Promise<any>} plotly; what failed is tried again when the next chart is drawn */
function load() {
  library ??= new Promise((resolve, reject) => {
    const address = /** @type {HTMLMetaElement} */ (document.querySelector("meta[name=charts]")).content;
    const script = document.createElement("script");
    script.src = policy?.createScriptURL(address) ?? address;
    script.onload = () => resolve(/** @type {any} */ (window).Plotly);
    script.onerror = () => {
      library = null;
      reject(new Error("the charting library did not load"));
    };
    document.head.append(script);
  });
  return library;
}

/** @param {string} name @param {Element} place @returns {string} a colour of the style sheet, as it is in this theme */
function colour(name, place) {
  const probe = h("span", { hidden: true, style: { color: `var(--${name})` } });
  place.append(probe);
  const found = getComputedStyle(probe).color;
  probe.remove();
  return found;
}

export class Chart {
  /** @type {ChartData | null} */
  #data = null;
  /** @type {Set<string>} */
  #hidden = new Set();
  #drawn = "";
  #width = 0;

  constructor() {
    this.canvas = h("div", { class: "chart-canvas", role: "img" }, h("div", { class: "bone tall", "aria-hidden": "true" }));
    this.legend = h("div", { class: "legend", role: "group", "aria-label": "Lines of the chart" });
    this.table = h("div");
    this.element = h("div", { class: "chart", "data-own": "" }, this.legend, this.canvas, this.table);
    this.legend.addEventListener("change", (event) => this.#toggle(/** @type {HTMLInputElement} */ (event.target)));
    this.observer = new ResizeObserver(() => { if (this.canvas.clientWidth !== this.#width) this.#draw(true); });
    this.observer.observe(this.canvas);
    addEventListener("themechange", this.#redraw);
  }

  #redraw = () => this.#draw(true);

  /** @param {ChartData} data */
  show(data) {
    this.#data = data;
    this.canvas.setAttribute("aria-label", data.summary);
    update(this.legend, data.series.map(({ id, name }) => h("label", { key: id, style: { "--colour": `var(--${id})` } },
      h("input", { type: "checkbox", value: id, checked: !this.#hidden.has(id) }), h("span", { class: "swatch" }), name)));
    update(this.table, dataTable(data));
    this.#draw();
  }

  /** @param {HTMLInputElement} box */
  #toggle({ value, checked }) {
    if (checked) this.#hidden.delete(value);
    else this.#hidden.add(value);
    this.#draw();
  }

  async #draw(force = false) {
    const data = this.#data;
    this.#width = this.canvas.clientWidth;
    if (!data || !this.#width) return;
    const state = JSON.stringify([data, [...this.#hidden]]);
    if (state === this.#drawn && !force) return;
    this.#drawn = state;
    try {
      const plotly = await load();
      if (data !== this.#data || !this.canvas.isConnected) return;
      if (!this.canvas.classList.contains("js-plotly-plot")) this.canvas.replaceChildren();
      await plotly.react(this.canvas, traces(data, this.#hidden, this.canvas), layout(data, this.canvas),
        { displayModeBar: false, scrollZoom: false, doubleClick: false, showTips: false, showAxisDragHandles: false });
      // The picture has its text in the label and its numbers in the table.
      for (const part of this.canvas.children) part.setAttribute("aria-hidden", "true");
    } catch {
      this.canvas.replaceChildren(h("p", { class: "nothing" }, "The chart cannot be drawn here. Its numbers are below."));
      this.table.querySelector("details")?.setAttribute("open", "");
    }
  }

  stop() {
    this.observer.disconnect();
    removeEventListener("themechange", this.#redraw);
    /** @type {any} */ (window).Plotly?.purge(this.canvas);
  }
}

/** @param {ChartData} data @param {Set<string>} hidden @param {Element} place @returns {object[]} what plotly draws */
function traces({ times, series, shape, until }, hidden, place) {
  return series.filter(({ id }) => !hidden.has(id)).map(({ id, name, values }) => {
    const color = colour(id, place);
    const isStep = shape === "steps" && until !== undefined;
    const common = { x: isStep ? [...times, until] : times, y: isStep ? [...values, values[values.length - 1]] : values, name, hovertemplate: "%{y:,}<extra>%{fullData.name}</extra>" };
    if (shape === "bars") return { ...common, type: "bar", marker: { color } };
    return { ...common, type: "scatter", mode: isStep || values.length > 60 ? "lines" : "lines+markers",
      line: { color, width: 2, shape: shape === "steps" ? "hv" : "linear" }, marker: { color, size: 5 },
      connectgaps: false };
  });
}

/** @param {ChartData} data @param {HTMLElement} place @returns {object} how plotly draws it */
function layout({ axis, times }, place) {
  const [text, faint, surface] = ["text-soft", "line", "surface"].map((name) => colour(name, place));
  const width = place.clientWidth;
  const intervals = 2 + (Date.parse(times[times.length - 1]) - Date.parse(times[0])) / (axis === "Day" ? 86_400_000 : 3_600_000);
  return {
    width, height: width < 480 ? 240 : 320, autosize: false, margin: { l: 52, r: 8, t: 8, b: 40 },
    paper_bgcolor: "rgba(0,0,0,0)", plot_bgcolor: "rgba(0,0,0,0)",
    font: { family: getComputedStyle(place).fontFamily, size: 12, color: text },
    showlegend: false, hovermode: "x unified", dragmode: false, barmode: "group", bargap: 0.25,
    hoverlabel: { bgcolor: surface, bordercolor: faint, font: { color: colour("text", place) } },
    xaxis: { type: "date", fixedrange: true, gridcolor: "rgba(0,0,0,0)", linecolor: faint, tickcolor: faint,
      ticks: "outside", nticks: Math.min(Math.max(3, Math.floor(width / 90)), intervals),
      spikecolor: text, spikethickness: 1, spikedash: "dot", hoverformat: axis === "Day" ? "%Y-%m-%d" : "%Y-%m-%d %H:%M",
      ...(axis === "Day" && times.length <= width / 80 ? { tickvals: times, tickformat: "%b %-d" } : {}) },
    yaxis: { fixedrange: true, rangemode: "tozero", gridcolor: faint, zerolinecolor: faint, tickformat: width < 480 ? "~s" : ",",
      nticks: 6 },
  };
}

/** @param {ChartData} data @returns {HTMLElement} the numbers behind a chart */
function dataTable({ caption, axis, times, series }) {
  return h("details", { class: "numbers" }, h("summary", {}, "The numbers as a table"),
    h("div", { class: "scroll", tabindex: 0, role: "region", "aria-label": `${caption}, as a table` },
      h("table", {}, h("caption", {}, caption),
        h("thead", {}, h("tr", {}, h("th", { scope: "col" }, axis),
          series.map(({ name }) => h("th", { scope: "col", class: "number" }, name)))),
        h("tbody", {}, times.map((time, index) => h("tr", { key: time }, h("th", { scope: "row" }, time),
          series.map(({ values }) => h("td", { class: "number" }, marked(number(values[index]))))))))));
}
