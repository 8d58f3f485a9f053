// One prompt through two language models, as two streams side by side.
//
// One after the other unless asked otherwise, each first in its turn, for both share the same CPU; only those
// count in the speed.

import { events } from "./api.js";
import { announce, byId, element, median, milliseconds, plural, wilson } from "./dom.js";
import { verdict } from "./compare.js";

const kept = new Map(); // what was measured of each pair, since the page was opened
let turn = 0;

/** Stream both answers into the page; resolves with both texts and their times. */
export async function generate(page, prompt, { maxNewTokens, together, signal }) {
  const pair = page.pair;
  const panes = pair.map((tier, index) => new Pane(index, tier, prompt));
  const run = (pane) => pane.fill({ prompt, tier: pane.tier, max_new_tokens: maxNewTokens }, signal);
  const order = turn++ % 2 ? [...panes].reverse() : panes;
  if (together) await Promise.all(order.map(run));
  else for (const pane of order) await run(pane);

  const answers = panes.map((pane) => pane.answer);
  const [first, second] = answers.map((answer) => [...answer.text]);
  let common = 0;
  while (common < first.length && common < second.length && first[common] === second[common]) common++;
  const agree = common === first.length && common === second.length;
  if (!agree) panes.forEach((pane) => pane.part(common));
  const words = agree ? "same text" : `differ after ${plural(common, "character")}`;
  verdict(agree, words);
  announce(`${answers.map((answer) => `${answer.tier}: ${answer.text}`).join(". ")}. ${agree ? "The same text." : `They ${words}.`}`);

  note(pair, agree, together ? [] : answers.map((answer) => answer.ms_per_token));
  return { answers, agree, common_characters: common, together };
}

/** Keep what one comparison of a pair was like: whether both said the same, and the time of each. */
export function note(pair, same, times) {
  const past = measuredOf(pair);
  past.requests += 1;
  past.same += same;
  times.forEach((time, index) => past.times[index].push(time));
}

/** What this page measured of a pair, as the dashboard takes it. */
export function measuredHere(pair, sizes) {
  const past = measuredOf(pair);
  const speed = past.times.map(median);
  return {
    requests: past.requests,
    agreement: past.requests ? past.same / past.requests : null,
    interval: wilson(past.same, past.requests),
    speed,
    speedup: speed[0] && speed[1] ? speed[0] / speed[1] : null,
    sizes,
  };
}

function measuredOf(pair) {
  const name = JSON.stringify(pair);
  if (!kept.has(name)) kept.set(name, { requests: 0, same: 0, times: [[], []] });
  return kept.get(name);
}

class Pane {
  constructor(index, tier, prompt) {
    this.tier = tier;
    this.answer = { tier, text: "", tokens: null, seconds: null, first_piece_ms: null, ms_per_token: null };
    this.text = element("span");
    this.took = element("p", { class: "took" }, "waiting");
    const given = element("span", { class: "prompt" }, prompt);
    byId(`answer-${"ab"[index]}`).replaceChildren(
      element("div", { class: "stream", dir: "auto" }, given, this.text),
      this.took,
    );
  }

  async fill(request, signal) {
    const answer = this.answer, start = performance.now();
    this.took.textContent = "writing";
    for await (const event of events("generate/stream", request, signal)) {
      if (typeof event.piece === "string") {
        answer.first_piece_ms ??= performance.now() - start;
        answer.text += event.piece;
        this.text.append(event.piece);
      }
      if (event.done) {
        answer.tokens = event.tokens;
        answer.seconds = event.seconds;
      }
    }
    if (answer.tokens) answer.ms_per_token = (1000 * answer.seconds) / answer.tokens;
    this.took.replaceChildren(
      element("b", {}, milliseconds(answer.ms_per_token)),
      ` a token, ${plural(answer.tokens ?? 0, "token")}; the first after ${milliseconds(answer.first_piece_ms)}`,
    );
  }

  /** Mark what comes after the first `common` characters. */
  part(common) {
    const characters = [...this.answer.text];
    this.text.replaceChildren(characters.slice(0, common).join(""), element("mark", {}, characters.slice(common).join("")));
  }
}
