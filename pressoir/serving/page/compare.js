// One text through two classifiers, and the two answers drawn so that they can be compared at a glance.

import { post } from "./api.js";
import { announce, bar, byId, element, milliseconds, percent } from "./dom.js";

const MOST_LABELS = 5;

/** Ask for `text`, with a `second` one of models of pairs; the result has the answers in the pair's order. */
export async function compare(page, text, second, signal) {
  const pair = page.pair;
  const seconds = second === null ? {} : { text_pairs: [second] };
  const found = await post("compare", { texts: [text], ...seconds, tiers: pair }, signal);
  const result = ordered(found.results[0], pair);
  return { result, statistics: found.statistics, pair };
}

/** A result of the server, its answers in the order of `pair`. */
export function ordered(result, pair) {
  const answers = pair.map((tier) => result.answers.find((answer) => answer.tier === tier));
  return { answers, agree: result.agree };
}

/** Put both answers on the page, and say them. */
export function showAnswers({ answers, agree }) {
  const labels = shown(answers);
  answers.forEach((answer, index) => byId(`answer-${"ab"[index]}`).replaceChildren(...drawn(answer, labels)));
  verdict(agree, agree ? "same label" : "different labels");
  const said = answers.map((answer) => `${answer.tier}: ${answer.label}, ${percent(answer.confidence)}, ${milliseconds(answer.latency_ms)}`);
  announce(`${said.join("; ")}. ${agree ? "The same label." : "Different labels."}`);
}

/** What stands between the two answers. */
export function verdict(same, words) {
  byId("verdict").replaceChildren(
    ...(words ? [element("div", {}, element("b", { "aria-hidden": "true" }, same ? "=" : "≠"), element("span", {}, words))] : []),
  );
}

// The same labels in the same order on both sides, so that bars stand beside those that they are compared with.
function shown(answers) {
  const best = new Map();
  for (const answer of answers) {
    for (const [label, p] of Object.entries(answer.probabilities ?? {})) best.set(label, Math.max(best.get(label) ?? 0, p));
  }
  const all = [...best.keys()];
  const kept = new Set(all.sort((x, y) => best.get(y) - best.get(x)).slice(0, MOST_LABELS));
  return { labels: [...best.keys()].filter((label) => kept.has(label)).sort(), more: best.size - kept.size };
}

function drawn(answer, { labels, more }) {
  const rows = labels.flatMap((label) => [
    element("span", { class: "name", dir: "auto" }, label),
    bar(answer.probabilities[label]),
    element("span", { class: "value" }, percent(answer.probabilities[label] ?? null)),
  ]);
  return [
    element(
      "p",
      { class: "label" },
      element("b", { dir: "auto" }, answer.label),
      element("span", {}, percent(answer.confidence), element("small", {}, " confidence")),
    ),
    element("div", { class: "bars" }, ...rows),
    more > 0 ? element("p", { class: "hint" }, `and ${more} less probable`) : "",
    answer.truncated ? element("p", { class: "hint" }, "The text is longer than this model takes; the rest was not read.") : "",
    element("p", { class: "took" }, element("b", {}, milliseconds(answer.latency_ms)), " for this text"),
  ];
}
