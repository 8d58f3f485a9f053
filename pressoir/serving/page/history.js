// What was compared since the page was opened: listed newest first, taken up again by a click, exported as JSON.

import { announce, byId, count, element, milliseconds, named, percent, plural } from "./dom.js";

const MOST_LISTED = 200;

/** The list, and its buttons. `again(text, second)` puts a text (or a pair) back; `about()` is what an export says of the models. */
export function startHistory({ again, about }) {
  const entries = [];
  const list = byId("history");

  byId("export").addEventListener("click", () => {
    const content = { format: "pressoir-comparison", version: 1, exported_at: new Date().toISOString(), ...about(), history: entries };
    download(JSON.stringify(content, null, 2), `pressoir-${content.exported_at.replace(/\D/g, "").slice(0, 14)}.json`);
    announce(`Exported ${plural(entries.length, "comparison")}.`);
  });
  byId("clear").addEventListener("click", () => {
    entries.length = 0;
    list.replaceChildren();
    byId("history-empty").hidden = false;
    announce("The history is empty.");
  });

  return {
    /** Keep a comparison: `kind` classification, tags, generation or batch. */
    add(entry) {
      entries.push({ at: new Date().toISOString(), ...entry });
      byId("history-empty").hidden = true;
      list.prepend(entry.kind === "batch" ? batchItem(entry) : item(entry, again));
      while (list.children.length > MOST_LISTED) list.lastElementChild.remove();
    },
  };
}

function item(entry, again) {
  const text = element("button", { type: "button", class: "again", dir: "auto", title: "Compare it again" }, [entry.text, entry.text_pair].filter(Boolean).join(" | "));
  text.addEventListener("click", () => again(entry.text, entry.text_pair ?? null));
  const said = entry.answers.map((answer, index) => {
    const spans = answer.entities?.map((found) => `${found.text} (${found.type})`).join(", ") || "no span";
    const short = entry.kind === "generation" ? plural(answer.tokens ?? 0, "token") : entry.kind === "tags" ? spans : `${answer.label} ${percent(answer.confidence)}`;
    const took = entry.kind === "generation" ? `${milliseconds(answer.ms_per_token)} a token` : milliseconds(answer.latency_ms);
    return element("span", {}, named("ab"[index], short), element("small", {}, `${answer.tier}, ${took}`));
  });
  return element("li", {}, text, pair(said, entry.agree));
}

function batchItem(entry) {
  const numbers = entry.summary;
  const text = element("span", {}, `${plural(numbers.lines, "line")} at once: the same label on ${percent(numbers.agreement)}`);
  const said = entry.tiers.map((tier, index) =>
    element("span", {}, named("ab"[index], tier), element("small", {}, `median ${milliseconds(numbers.latency_p50_ms[tier])}`)),
  );
  return element("li", {}, text, pair(said, numbers.agreement === 1));
}

function pair([first, second], agree) {
  const sign = element(
    "span",
    { class: "sign" },
    element("span", { "aria-hidden": "true" }, agree ? "=" : "≠"),
    element("span", { class: "unseen" }, agree ? "the same as" : "different from"),
  );
  return element("div", { class: "pair" }, first, sign, second);
}

function download(text, name) {
  const address = URL.createObjectURL(new Blob([text], { type: "application/json" }));
  const link = element("a", { href: address, download: name });
  document.body.append(link);
  link.click();
  link.remove();
  setTimeout(() => URL.revokeObjectURL(address), 10_000);
}
