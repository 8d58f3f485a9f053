// The page: which two tiers are compared, what is asked of them, and where answers and errors are shown.

import { ServerError, get, useKey } from "./api.js";
import { batchBox } from "./batch.js";
import { compare, showAnswers, verdict } from "./compare.js";
import { announce, byId, element, megabytes } from "./dom.js";
import { generate, measuredHere } from "./generate.js";
import { startHistory } from "./history.js";
import { follow, fromServer, show } from "./measured.js";
import { tag } from "./tag.js";

const CLASSIFY = "text-classification";
const GENERATE = "causal-lm";
const TAG = "token-classification";
const TASKS = {
  [CLASSIFY]: {
    name: "Classify",
    tagline: "Two models, the same sentence.",
    text: "Sentence",
    same: "Same label",
    where: "by this server, for these two models",
    how: "The two answer one after the other, and take turns at being first. Bars are drawn to scale.",
    unit: "a text",
    examples: {
      Positive: ["A wonderful evening, and worth every penny.", "Best film I have seen in years."],
      Negative: ["A waste of an evening and of twenty pounds.", "Dull, loud and far too long."],
      Neutral: ["The parcel came on Tuesday.", "I bought it in March."],
    },
    pairs: {
      Same: [["The film was good.", "I liked the film."]],
      Different: [["The film was good.", "The parcel came on Tuesday."]],
    },
  },
  [TAG]: {
    name: "Tag words",
    tagline: "Two models, the same sentence.",
    text: "Sentence",
    same: "Same spans",
    where: "on this page, for these two models",
    how: "The two answer one after the other, and take turns at being first. Bars are drawn to scale.",
    unit: "a text",
    examples: {
      Names: ["Maria Silva moved from Porto to Berlin.", "Siemens and Volvo met in Geneva on Friday."],
      None: ["The parcel came on time."],
    },
  },
  [GENERATE]: {
    name: "Generate",
    tagline: "Two models, the same prompt.",
    text: "Prompt",
    same: "Same text",
    where: "on this page, for these two models",
    how: "The two write one after the other, and take turns at being first. Bars are drawn to scale.",
    unit: "a token",
    examples: {
      Story: ["Once upon a time there was a little"],
      Fact: ["The capital of France is"],
      Code: ["def fibonacci(n):"],
    },
  },
};
const RUNTIMES = { onnxruntime: "ONNX Runtime", pytorch: "PyTorch" };
const RETRY_MS = 2000;

const page = {
  tiers: new Map(),
  task: null,
  pair: null,
  statistics: null,

  /** Tell of an error, in the server's own words. */
  complain(error) {
    const parts = [element("p", {}, error.message)];
    if (error.requestId) parts.push(element("p", {}, "Request ", element("code", {}, error.requestId)));
    if (error.retryAfter) parts.push(element("p", {}, `Try again in ${error.retryAfter} s.`));
    byId("alert").hidden = false;
    byId("alert").replaceChildren(...parts);
    byId("alert").scrollIntoView({ block: "nearest" });
    if (error instanceof ServerError && (error.status === 401 || error.status === 403)) byId("key-form").hidden = false;
  },

  /** Take back what `complain` said. */
  calm() {
    byId("alert").replaceChildren();
    byId("alert").hidden = true;
  },

  /** Whether the models that are compared take pairs of sentences. */
  pairs() {
    return this.task === CLASSIFY && this.pair.some((name) => this.tiers.get(name).pairs);
  },

  /** Show the server's statistics, unless another pair was chosen since it was asked. */
  measured(statistics, pair = this.pair) {
    if (pair !== this.pair || this.task !== CLASSIFY) return;
    this.statistics = statistics;
    show(fromServer(statistics, pair), pair, TASKS[CLASSIFY].unit);
  },
};

page.history = startHistory({
  again: (text, second) => submit(text, second),
  about: () => ({ task: page.task, tiers: (page.pair ?? []).map((tier) => page.tiers.get(tier)), statistics: exported() }),
});
const refresh = follow(page);
let running = null;

function exported() {
  if (!page.pair) return null;
  if (page.task === CLASSIFY) return page.statistics;
  const byTier = (values) => Object.fromEntries(page.pair.map((tier, index) => [tier, values[index]]));
  const { requests, agreement, interval, speed, speedup } = measuredHere(page.pair, sizes());
  return { requests, agreement, agreement_interval: interval, [page.task === TAG ? "latency_p50_ms" : "ms_per_token_p50"]: byTier(speed), speedup, size_mb: byTier(sizes()) };
}

// Of a folder its own name; ids and references whole.
const shortName = (model) => (/^[/~.]/.test(model) ? model.replace(/[/\\]+$/, "").split(/[/\\]/).pop() : model);

const sizes = () => page.pair.map((tier) => page.tiers.get(tier).size_mb);

/* Choosing */

async function start(again = false) {
  try {
    const { tiers, default_pair: chosen } = await get("tiers");
    page.tiers = new Map(tiers.map((tier) => [tier.tier, tier]));
    byId("key-form").hidden = true;
    page.calm();
    arrange(chosen);
  } catch (error) {
    if (!again) page.complain(error); // said once, not every time
    if (!(error instanceof ServerError) || error.status === 401 || error.status === 403) return;
    setTimeout(() => start(true), RETRY_MS);
  }
}

// Scores, and several labels per text, are not compared.
const comparable = (tier) => !tier.problem;

const ofTask = (task) => [...page.tiers.values()].filter((tier) => tier.task === task && comparable(tier)).map((tier) => tier.tier);

function arrange(found) {
  const chosen = found?.every((name) => comparable(page.tiers.get(name))) ? found : null;
  const possible = Object.keys(TASKS).filter((task) => ofTask(task).length > 1);
  if (!possible.length) {
    byId("form").hidden = true;
    page.complain(new Error("Nothing to compare here: that takes two tiers that both classify texts, both tag words, or both go on from a prompt."));
    return;
  }
  const tasks = byId("tasks");
  tasks.hidden = possible.length < 2;
  tasks.replaceChildren(tasks.querySelector("legend"), ...possible.map((task) => {
    const input = element("input", { type: "radio", name: "task", value: task });
    input.addEventListener("change", () => chooseTask(task));
    return element("label", {}, input, TASKS[task].name);
  }));
  const first = chosen ? page.tiers.get(chosen[0]).task : null;
  const task = possible.includes(first) ? first : possible[0];
  tasks.querySelector(`[value="${task}"]`).checked = true;
  chooseTask(task, task === first ? chosen : null);
}

function chooseTask(task, pair = null) {
  page.task = task;
  const words = TASKS[task];
  byId("tagline").textContent = words.tagline;
  byId("text-label").textContent = words.text;
  byId("agreement-name").textContent = words.same;
  byId("measured-where").textContent = words.where;
  byId("measured-how").textContent = words.how;
  byId("options").hidden = task !== GENERATE;
  byId("batch").hidden = task !== CLASSIFY;
  const names = ofTask(task);
  for (const side of ["a", "b"]) {
    byId(`tier-${side}`).replaceChildren(...names.map((name) => element("option", { value: name }, name)));
  }
  choosePair(pair ?? names.slice(0, 2));
}

function example(sample) {
  const [text, second = null] = [sample].flat();
  const button = element("button", { type: "button" }, [sample].flat().join(" | "));
  button.addEventListener("click", () => submit(text, second));
  return button;
}

// Models of pairs are asked for two sentences; where only one of the two is, the server says so.
function arrangeTexts() {
  const words = TASKS[page.task], two = page.pairs();
  for (const id of ["text-pair-label", "text-pair", "lines-pairs"]) byId(id).hidden = !two;
  byId("examples").replaceChildren(...Object.entries(two ? words.pairs : words.examples).map(([name, texts]) =>
    element("div", {}, element("dt", {}, name), element("dd", {}, ...texts.map(example)))));
}

function choosePair(pair) {
  running?.abort();
  page.calm();
  page.pair = pair;
  page.statistics = null;
  arrangeTexts();
  pair.forEach((name, index) => {
    const side = "ab"[index], tier = page.tiers.get(name);
    byId(`tier-${side}`).value = name;
    byId(`about-${side}`).title = tier.model;
    byId(`about-${side}`).textContent = [shortName(tier.model), RUNTIMES[tier.runtime] ?? tier.runtime, megabytes(tier.size_mb)].filter(Boolean).join(" · ");
    byId(`answer-${side}`).replaceChildren();
  });
  verdict(true, "");
  if (page.task === GENERATE) {
    const limits = pair.map((name) => page.tiers.get(name).settings?.max_new_tokens ?? 256);
    byId("tokens").max = Math.min(...limits);
    byId("tokens").value = Math.min(byId("tokens").value || 48, ...limits);
  }
  const nothing = { requests: 0, agreement: null, interval: null, speed: [null, null], speedup: null, sizes: sizes() };
  show(page.task !== CLASSIFY ? measuredHere(pair, sizes()) : nothing, pair, TASKS[page.task].unit);
  refresh();
}

for (const [index, side] of [..."ab"].entries()) {
  byId(`tier-${side}`).addEventListener("change", (event) => {
    const pair = [...page.pair];
    const other = 1 - index;
    if (pair[other] === event.target.value) pair[other] = pair[index]; // the same twice: they change sides
    pair[index] = event.target.value;
    choosePair(pair);
  });
}

/* Asking */

async function submit(text, second = null) {
  const field = byId("text");
  field.value = text;
  if (!page.pairs()) second = null;
  else byId("text-pair").value = second ?? "";
  const empty = !text.trim() ? field : page.pairs() && !second?.trim() ? byId("text-pair") : null;
  if (empty) {
    page.complain(new Error(`There is no ${empty === field ? TASKS[page.task].text.toLowerCase() : "second sentence"} yet.`));
    empty.focus();
    return;
  }
  running?.abort();
  const mine = (running = new AbortController());
  const { task, pair } = page;
  const answers = byId("answers");
  answers.setAttribute("aria-busy", String(task !== GENERATE));
  byId("stop").hidden = task !== GENERATE;
  page.calm();
  try {
    if (task === CLASSIFY) {
      const { result, statistics } = await compare(page, text, second, mine.signal);
      showAnswers(result);
      page.measured(statistics, pair);
      page.history.add({ kind: "classification", tiers: pair, text, ...(second === null ? {} : { text_pair: second }), ...result });
    } else if (task === TAG) {
      const result = await tag(page, text, mine.signal);
      show(measuredHere(pair, sizes()), pair, TASKS[task].unit);
      page.history.add({ kind: "tags", tiers: pair, text, ...result });
    } else {
      verdict(true, "");
      announce("Both models write.");
      const maxNewTokens = byId("tokens").valueAsNumber || undefined;
      const together = byId("together").checked;
      const result = await generate(page, text, { maxNewTokens, together, signal: mine.signal });
      show(measuredHere(pair, sizes()), pair, TASKS[task].unit);
      page.history.add({ kind: "generation", tiers: pair, text, ...result });
    }
  } catch (error) {
    if (error.name === "AbortError") announce("Stopped.");
    else page.complain(error);
  } finally {
    if (running === mine) {
      running = null;
      answers.setAttribute("aria-busy", "false");
      if (byId("stop") === document.activeElement) byId("submit").focus();
      byId("stop").hidden = true;
    }
  }
}

byId("form").addEventListener("submit", (event) => {
  event.preventDefault();
  submit(byId("text").value, byId("text-pair").value);
});
for (const id of ["text", "text-pair"]) {
  byId(id).addEventListener("keydown", (event) => {
    if (event.key !== "Enter" || event.shiftKey || event.isComposing) return;
    event.preventDefault();
    byId("form").requestSubmit();
  });
}
byId("stop").addEventListener("click", () => running?.abort());
byId("key-form").addEventListener("submit", (event) => {
  event.preventDefault();
  useKey(byId("key").value);
  start();
});

/* Light and dark: the system's, until the button says otherwise */

const systemDark = matchMedia("(prefers-color-scheme: dark)");
const isDark = () => (document.documentElement.dataset.theme ?? (systemDark.matches ? "dark" : "light")) === "dark";
const tellTheme = () => byId("theme").setAttribute("aria-pressed", String(isDark()));
byId("theme").addEventListener("click", () => {
  const theme = isDark() ? "light" : "dark";
  document.documentElement.dataset.theme = theme;
  try {
    localStorage.setItem("pressoir-theme", theme);
  } catch {
    // Storage may be refused; the choice holds until the page is closed.
  }
  tellTheme();
});
systemDark.addEventListener("change", tellTheme);
tellTheme();

batchBox(page);
start();
