// One text through two token classifiers, and the spans that each finds, underlined in the text.

import { post } from "./api.js";
import { announce, byId, element, milliseconds, percent, plural } from "./dom.js";
import { verdict } from "./compare.js";
import { note } from "./generate.js";

let turn = 0;

/** Ask both tiers for the spans of `text`, each first in its turn, and show them. */
export async function tag(page, text, signal) {
  const pair = page.pair, answers = [null, null];
  for (const index of turn++ % 2 ? [1, 0] : [0, 1]) {
    const start = performance.now();
    const { results } = await post("tag", { text, tier: pair[index] }, signal);
    answers[index] = { tier: pair[index], ...results[0], latency_ms: performance.now() - start };
  }
  answers.forEach((answer, index) => byId(`answer-${"ab"[index]}`).replaceChildren(...drawn(answer)));
  const [first, second] = answers.map(({ entities }) => JSON.stringify(entities.map(({ type, start, end }) => [type, start, end])));
  const agree = first === second;
  verdict(agree, agree ? "same spans" : "different spans");
  const said = answers.map((answer) => `${answer.tier}: ${answer.entities.map((found) => `${found.text}, ${found.type}`).join("; ") || "no span"}`);
  announce(`${said.join(". ")}. ${agree ? "The same spans." : "Different spans."}`);
  note(pair, agree, answers.map((answer) => answer.latency_ms));
  return { answers, agree };
}

function drawn({ words, entities, latency_ms }) {
  const pieces = [];
  let next = 0;
  for (const { type, start, end, text, score } of entities) {
    if (start > next) pieces.push(`${words.slice(next, start).join(" ")} `);
    pieces.push(element("mark", { title: `${type}, ${percent(score)}` }, text, element("small", {}, ` ${type}`)), " ");
    next = end;
  }
  pieces.push(words.slice(next).join(" "));
  return [
    element("div", { class: "stream", dir: "auto" }, ...pieces),
    element("p", { class: "took" }, element("b", {}, milliseconds(latency_ms)), `, with the way to the server; ${plural(entities.length, "span")}`),
  ];
}
