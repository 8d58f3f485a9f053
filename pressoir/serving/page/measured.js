// The dashboard: how often the two are the same, and how much faster and smaller the second is.

import { get } from "./api.js";
import { bar, byId, count, element, megabytes, milliseconds, named, percent, times } from "./dom.js";

const POLL_MS = 5000;

/** The server's statistics of a pair of classifiers, as `show` takes them. */
export function fromServer(statistics, pair) {
  return {
    requests: statistics.requests,
    agreement: statistics.agreement,
    interval: statistics.agreement_interval,
    speed: pair.map((tier) => statistics.latency_p50_ms?.[tier] ?? null),
    speedup: statistics.speedup,
    sizes: pair.map((tier) => statistics.size_mb?.[tier] ?? null),
  };
}

/** Draw what was measured; `unit` says what the speed is the time of. */
export function show(measured, pair, unit) {
  byId("requests").textContent = count(measured.requests);
  byId("agreement").textContent = percent(measured.agreement);
  const interval = measured.interval;
  byId("interval").textContent = interval
    ? `95 % interval ${percent(interval[0])} to ${percent(interval[1])}`
    : "nothing compared yet";
  const plot = byId("interval-plot");
  plot.hidden = !interval;
  if (interval) {
    const whisker = plot.querySelector(".whisker"), dot = plot.querySelector(".dot");
    whisker.style.insetInlineStart = `${100 * interval[0]}%`;
    whisker.style.inlineSize = `${100 * (interval[1] - interval[0])}%`;
    dot.style.insetInlineStart = `${100 * measured.agreement}%`;
  }
  byId("speedup").textContent = times(measured.speedup);
  byId("speed-detail").textContent = Number.isFinite(measured.speedup) && measured.speedup !== null
    ? `as fast; median time ${unit}`
    : "not measured yet";
  scale(byId("speed-bars"), pair, measured.speed, milliseconds);
  const [first, second] = measured.sizes;
  const larger = second > first;
  byId("smaller").textContent = first && second ? times(larger ? second / first : first / second) : "–";
  byId("size-detail").textContent = `${larger ? "larger" : "smaller"}: weights, graph and tokenizer`;
  scale(byId("size-bars"), pair, measured.sizes, megabytes);
}

function scale(place, pair, values, format) {
  const most = Math.max(...values.map((value) => value ?? 0));
  place.replaceChildren(
    ...pair.map((tier, index) => {
      const side = "ab"[index];
      return element(
        "div",
        {},
        element("p", {}, named(side, tier), element("span", {}, format(values[index]))),
        bar(most ? (values[index] ?? 0) / most : 0, side),
      );
    }),
  );
}

/** Ask the server again and again while somebody looks; others use the same models. */
export function follow(page) {
  const refresh = async () => {
    if (document.hidden || page.task !== "text-classification" || !page.pair) return;
    const pair = page.pair;
    try {
      const found = await get(`compare/statistics?tiers=${pair.map(encodeURIComponent).join(",")}`);
      if (pair === page.pair) page.measured(found);
    } catch {
      // The next comparison tells of a server that is gone.
    }
  };
  setInterval(refresh, POLL_MS);
  document.addEventListener("visibilitychange", refresh);
  return refresh;
}
