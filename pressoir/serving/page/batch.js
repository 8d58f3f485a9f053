// Many sentences, some a request, and what the two models said to them as a table.

import { ServerError, post } from "./api.js";
import { announce, byId, count, element, median, milliseconds, named, percent, plural, wilson } from "./dom.js";
import { ordered } from "./compare.js";

const MOST_LINES = 1000;
const A_REQUEST = 8; // few, so that the progress moves and a stop is quick
const ATTEMPTS = 4;

/** Make the batch box work. */
export function batchBox(page) {
  const stop = byId("batch-stop"), progress = byId("batch-progress");
  let running = null;
  stop.addEventListener("click", () => running?.abort());

  byId("batch-form").addEventListener("submit", async (event) => {
    event.preventDefault();
    if (running) return;
    const lines = byId("lines").value.split(/\r?\n/).map((line) => line.trim()).filter(Boolean);
    if (!lines.length || lines.length > MOST_LINES) {
      page.complain(new Error(lines.length ? `These are ${count(lines.length)} lines, and ${count(MOST_LINES)} are the most.` : "There is no line to compare."));
      byId("lines").focus();
      return;
    }
    const twos = page.pairs() ? lines.map((line) => line.split("\t").map((text) => text.trim())) : null;
    const odd = twos?.find((two) => two.length !== 2 || !two.every(Boolean));
    if (odd) {
      page.complain(new Error(`A line is not two sentences with a tab between them: ${odd.join(" ")}`));
      byId("lines").focus();
      return;
    }
    page.calm();
    running = new AbortController();
    stop.hidden = progress.hidden = false;
    progress.max = lines.length;
    progress.value = 0;
    announce(`Comparing ${plural(lines.length, "line")}.`);
    const pair = page.pair, results = [];
    try {
      const size = Math.min(A_REQUEST, ...pair.map((tier) => page.tiers.get(tier).settings?.max_batch ?? A_REQUEST));
      while (results.length < lines.length) {
        const start = results.length, asked = lines.slice(start, start + size);
        const both = twos?.slice(start, start + size);
        const body = both ? { texts: both.map((two) => two[0]), text_pairs: both.map((two) => two[1]) } : { texts: asked };
        const found = await patiently(() => post("compare", { ...body, tiers: pair }, running.signal), running.signal);
        for (const result of found.results) results.push({ text: asked[result.text_index], ...ordered(result, pair) });
        page.measured(found.statistics, pair);
        progress.value = results.length;
        byId("batch-count").textContent = `${count(results.length)} of ${count(lines.length)}`;
      }
    } catch (error) {
      if (error.name !== "AbortError") page.complain(error);
    } finally {
      running = null;
      if (stop === document.activeElement) byId("batch-form").querySelector("[type=submit]").focus();
      stop.hidden = progress.hidden = true;
      byId("batch-count").textContent = "";
    }
    if (results.length) {
      const told = summary(results, pair);
      byId("batch-result").replaceChildren(...told.tables);
      announce(told.text);
      page.history.add({ kind: "batch", tiers: pair, summary: told.numbers, results });
    }
  });
}

// A full queue is not a failure: the server says when to come back.
async function patiently(send, signal) {
  for (let attempt = 1; ; attempt++) {
    try {
      return await send();
    } catch (error) {
      if (!(error instanceof ServerError) || error.status !== 429 || attempt === ATTEMPTS) throw error;
      await new Promise((resolve) => setTimeout(resolve, 1000 * Math.min(error.retryAfter ?? 1, 30)));
      signal.throwIfAborted();
    }
  }
}

function summary(results, pair) {
  const same = results.filter((result) => result.agree).length;
  const interval = wilson(same, results.length);
  const sides = pair.map((tier, index) => results.map((result) => result.answers[index]));
  const labels = [...new Set(sides.flat().map((answer) => answer.label))].sort();
  const numbers = {
    lines: results.length,
    agreement: same / results.length,
    agreement_interval: interval,
    latency_p50_ms: Object.fromEntries(pair.map((tier, index) => [tier, median(sides[index].map((answer) => answer.latency_ms))])),
  };
  const text =
    `${plural(results.length, "line")}, the same label on ${count(same)}: ` +
    `${percent(numbers.agreement)} (95 % interval ${percent(interval[0])} to ${percent(interval[1])})`;
  const rows = [
    ...labels.map((label) => [label, ...sides.map((side) => count(side.filter((answer) => answer.label === label).length))]),
    ["Mean confidence", ...sides.map((side) => percent(side.reduce((sum, answer) => sum + answer.confidence, 0) / side.length))],
    ["Median time", ...pair.map((tier) => milliseconds(numbers.latency_p50_ms[tier]))],
  ];
  const overview = table("", text, ["", ...pair.map((tier, index) => named("ab"[index], tier))], rows, "number");
  const differing = results.filter((result) => !result.agree);
  const words = differing.length ? `Where they differ (${count(differing.length)}), then the rest` : "Each line";
  const each = [...differing, ...results.filter((result) => result.agree)].map((result) => [
    result.text,
    ...result.answers.map((answer) => `${answer.label} ${percent(answer.confidence)}${answer.truncated ? ", truncated" : ""}`),
    result.agree ? "same" : "different",
  ]);
  const lines = table("lines", words, ["Sentence", ...pair.map((tier, index) => named("ab"[index], tier)), "Labels"], each, null);
  return { text, numbers, tables: [scrolling(overview, "Summary"), scrolling(lines, "Each line", "tall")] };
}

function table(name, caption, head, rows, cellClass) {
  const cells = (row) => row.slice(1).map((cell) => element("td", { class: cellClass, dir: "auto" }, cell));
  const headCell = (cell, index) => element("th", { scope: "col", class: index ? cellClass : null }, cell);
  return element(
    "table",
    { class: name },
    element("caption", {}, caption),
    element("thead", {}, element("tr", {}, ...head.map(headCell))),
    element("tbody", {}, ...rows.map((row) => element("tr", {}, element("th", { scope: "row", dir: "auto" }, row[0]), ...cells(row)))),
  );
}

// Reached by the keyboard, for it scrolls.
function scrolling(content, label, size = "") {
  return element("div", { class: `scrolls ${size}`, tabindex: "0", role: "region", "aria-label": label }, content);
}
