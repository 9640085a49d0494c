"use strict";
const $ = id => document.getElementById(id);
const ranges = ["temperature", "top_p", "min_p", "repetition_penalty"];
const fields = [...ranges, "top_k", "max_tokens", "seed", "stop"];
const defaults = Object.fromEntries(fields.map(id => [id, $(id).value]));
const run = { controller: null, prompt: "", text: "", tokens: [], begun: 0, first: 0, last: 0, finish: null };
const maxLogprobs = 5;

// Settings stay in this browser; the key only until the tab is closed.
function load() {
  try {
    for (const [id, value] of Object.entries(JSON.parse(localStorage.getItem("ballast-sampling") || "{}")))
      if (fields.includes(id)) $(id).value = value;
    $("key").value = sessionStorage.getItem("ballast-key") || "";
    if ($("key").value) $("key-row").hidden = false;
  } catch { /* storage may be switched off */ }
}
function save() {
  try {
    localStorage.setItem("ballast-sampling", JSON.stringify(Object.fromEntries(fields.map(id => [id, $(id).value]))));
    sessionStorage.setItem("ballast-key", $("key").value);
  } catch { /* as above */ }
}
function showValues() {
  for (const id of ranges) $(id).parentElement.querySelector("output").value = (+$(id).value).toFixed(2);
}

function headers(type = "application/json") {
  const key = $("key").value.trim();
  return { "Content-Type": type, ...(key ? { Authorization: "Bearer " + key } : {}) };
}

function request(prompt) {
  const body = { prompt, stream: true, logprobs: maxLogprobs, stream_options: { include_usage: true } };
  for (const id of ranges) body[id] = +$(id).value;
  body.top_k = Math.max(0, Math.trunc(+$("top_k").value || 0));
  body.max_tokens = Math.max(1, Math.trunc(+$("max_tokens").value || 1));
  if (/^-?\d+$/.test($("seed").value.trim())) body.seed = +$("seed").value;
  const stop = $("stop").value.split("|").map(text => text.replace(/\\n/g, "\n")).filter(Boolean);
  if (stop.length) body.stop = stop;
  return body;
}

async function* events(response) {
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let text = "";
  for (;;) {
    const { value, done } = await reader.read();
    if (done) return;
    text += value;
    for (let end; (end = text.indexOf("\n\n")) >= 0; text = text.slice(end + 2)) {
      const block = text.slice(0, end);
      if (block.startsWith("data: ")) yield block.slice(6);
    }
  }
}

function showError(message, id = "error") {
  $(id).textContent = message || "";
  $(id).hidden = !message;
}

async function failure(response) {
  let message = `${response.status} ${response.statusText}`;
  try { message = (await response.json()).error.message; } catch { /* not from the server itself */ }
  if (response.status === 401) {
    $("key-row").hidden = false;
    $("key").focus();
  }
  return message[0].toUpperCase() + message.slice(1) + ".";
}

async function generate(prompt) {
  stop();
  const controller = new AbortController();
  Object.assign(run, { controller, prompt, text: "", tokens: [], begun: performance.now(), first: 0, last: 0, finish: null });
  showError("");
  startOutput();
  setBusy(true);
  try {
    const response = await fetch("v1/completions", { method: "POST", headers: headers(), body: JSON.stringify(request(prompt)), signal: controller.signal });
    if (!response.ok) throw new Error(await failure(response));
    for await (const data of events(response)) {
      if (data === "[DONE]") break;
      const chunk = JSON.parse(data);
      if (chunk.error) throw new Error(chunk.error.message);
      if (chunk.choices.length) take(chunk.choices[0]);
    }
  } catch (error) {
    if (error.name === "AbortError") run.finish = "stopped by you";
    else showError(error.message === "Failed to fetch" ? "The server does not answer." : error.message);
  }
  if (run.controller === controller) {
    run.controller = null;
    setBusy(false);
    showStats();
  }
}

function take(choice) {
  run.last = performance.now();
  const scores = choice.logprobs;
  if (scores && scores.tokens.length && !run.first) run.first = run.last;
  if (choice.finish_reason) run.finish = { stop: "reached an end", length: "reached the limit" }[choice.finish_reason] || choice.finish_reason;
  if (choice.text) {
    run.text += choice.text;
    $("answer").append(choice.text);
  }
  if (scores) scores.tokens.forEach((text, i) => addToken({ text, logprob: scores.token_logprobs[i], top: scores.top_logprobs[i] || {} }));
  showStats();
}

function stop() {
  if (run.controller) run.controller.abort();
}

function setBusy(busy) {
  const go = $("go");
  go.classList.toggle("stop", busy);
  go.innerHTML = busy ? "Stop <kbd>Esc</kbd>" : "Generate <kbd>Ctrl ↵</kbd>";
  for (const id of ["again", "more", "copy"]) $(id).disabled = busy || !run.text;
  const caret = document.querySelector(".caret");
  if (caret && !busy) caret.remove();
}

function startOutput() {
  const echo = document.createElement("span"), answer = document.createElement("span"), caret = document.createElement("span");
  echo.className = "prompt-echo";
  echo.textContent = run.prompt;
  answer.id = "answer";
  caret.className = "caret";
  $("text").replaceChildren(echo, answer, caret);
  $("tokens").replaceChildren();
  hideTip();
}

function showStats() {
  const count = run.tokens.length, parts = [];
  if (count) parts.push(`${count} token${count > 1 ? "s" : ""}`);
  if (run.first) parts.push(`first after ${((run.first - run.begun) / 1e3).toFixed(2)} s`);
  if (count > 1 && run.last > run.first) parts.push(`${((count - 1) / (run.last - run.first) * 1e3).toFixed(1)} tokens/s`);
  if (count) {
    const mean = run.tokens.reduce((sum, token) => sum + token.logprob, 0) / count;
    parts.push(`perplexity ${Math.exp(-mean).toFixed(1)}`);
  }
  if (run.finish && !run.controller) parts.push(run.finish);
  $("stats").textContent = parts.join(" · ");
}

// A token as it can be seen: spaces, line ends, single bytes.
function visible(text) {
  if (text.startsWith("bytes:")) return text.slice(6).replace(/\\x/g, "⟨").replace(/⟨(..)/g, "⟨$1⟩");
  return text.replace(/ /g, "\u00b7").replace(/\n/g, "↵").replace(/\t/g, "⇥");
}

// Nothing for a certain token, full for one in a thousand or less.
const heat = logprob => Math.min(0.75, Math.max(0, -logprob) / Math.log(1000) * 0.75);

function addToken(token) {
  const index = run.tokens.push(token) - 1;
  const span = document.createElement("span");
  span.className = "token" + (token.text.startsWith("bytes:") ? " odd" : "");
  span.textContent = token.text.startsWith("bytes:") ? visible(token.text) : token.text.replace(/\n/g, "↵\n").replace(/^ /, "\u00a0");
  span.style.setProperty("--heat", heat(token.logprob).toFixed(3));
  span.tabIndex = index === 0 ? 0 : -1;
  span.dataset.index = index;
  span.setAttribute("aria-label", `${visible(token.text)}, ${percent(token.logprob)}`);
  $("tokens").append(span, "\u200b");
}

function percent(logprob) {
  const value = Math.exp(logprob) * 100;
  return value >= 99.95 ? "100 %" : value >= 10 ? value.toFixed(0) + " %" : value >= 0.1 ? value.toFixed(1) + " %" : "<0.1 %";
}

function showTip(span) {
  const token = run.tokens[span.dataset.index];
  const rows = Object.entries(token.top).sort((a, b) => b[1] - a[1]).map(([text, logprob]) => {
    const row = document.createElement("div"), name = document.createElement("span"), bar = document.createElement("i"), value = document.createElement("span");
    row.className = "row" + (text === token.text ? " chosen" : "");
    name.textContent = visible(text);
    bar.style.width = Math.max(1, Math.exp(logprob) * 62) + "px";
    value.textContent = percent(logprob);
    row.append(name, bar, value);
    return row;
  });
  const line = document.createElement("p");
  line.textContent = `log-probability ${token.logprob.toFixed(3)}`;
  const tip = $("tip");
  tip.replaceChildren(line, ...rows);
  tip.hidden = false;
  const box = span.getClientRects()[0] || span.getBoundingClientRect();
  const left = Math.min(Math.max(8, box.left), document.documentElement.clientWidth - tip.offsetWidth - 8);
  const below = box.bottom + 8 + tip.offsetHeight < innerHeight;
  tip.style.left = left + scrollX + "px";
  tip.style.top = (below ? box.bottom + 6 : box.top - tip.offsetHeight - 6) + scrollY + "px";
}
function hideTip() {
  $("tip").hidden = true;
}

function step(direction) {
  const spans = $("tokens").querySelectorAll(".token");
  const current = document.activeElement.dataset ? document.activeElement.dataset.index : undefined;
  const next = Math.min(spans.length - 1, Math.max(0, current === undefined ? 0 : +current + direction));
  if (!spans[next]) return;
  spans.forEach(span => { span.tabIndex = -1; });
  spans[next].tabIndex = 0;
  spans[next].focus();
}

function showTab(tokens) {
  $("tab-text").setAttribute("aria-pressed", !tokens);
  $("tab-tokens").setAttribute("aria-pressed", tokens);
  $("text").hidden = tokens;
  $("tokens").hidden = $("scale").hidden = !tokens;
  hideTip();
}

const bytes = count => count >= 2 ** 30 ? (count / 2 ** 30).toFixed(2) + " GiB" : count >= 2 ** 20 ? (count / 2 ** 20).toFixed(1) + " MiB" : (count / 2 ** 10).toFixed(0) + " KiB";
const short = count => count >= 1e9 ? (count / 1e9).toFixed(1) + " G" : count >= 1e6 ? (count / 1e6).toFixed(1) + " M" : count >= 1e3 ? (count / 1e3).toFixed(0) + " k" : count;

function showFacts(props) {
  const facts = props.facts;
  $("name").textContent = props.model_alias;
  document.title = props.model_alias + " · Ballast";
  document.body.className = facts.image ? "images" : "text";
  const rows = {
    "Bits per weight": facts.bits_per_weight && facts.bits_per_weight.toFixed(2),
    "In the blocks": facts.block_bits_per_weight !== facts.bits_per_weight && facts.block_bits_per_weight.toFixed(2),
    "Encodings": facts.encodings,
    "Weights": facts.matrix_parameters && short(facts.matrix_parameters),
    "Size": facts.bytes && bytes(facts.bytes),
    "Shape": `${facts.layers} × ${facts.hidden}, ${facts.heads} heads`,
    "Context": facts.context && `${facts.context} tokens`,
    "Images": facts.image && `${facts.image.width} × ${facts.image.height} pixels`,
    "Classes": facts.image && facts.vocab,
    "Runs on": facts.backend,
    "Version": props.build_info,
  };
  $("facts").replaceChildren(...Object.entries(rows).filter(([, value]) => value).map(([name, value]) => {
    const row = document.createElement("div"), term = document.createElement("dt"), text = document.createElement("dd");
    term.textContent = name;
    text.textContent = value;
    row.append(term, text);
    return row;
  }));
}

const rates = Array(60).fill(0);
let lastLoad = null, factsShown = false;
function showLoad(load) {
  const now = performance.now(), done = load.generated_tokens ?? load.classified_images;
  if (lastLoad && now > lastLoad.at) {
    const rate = (done - lastLoad.done) / (now - lastLoad.at) * 1e3;
    rates.push(rate);
    rates.shift();
    $("load-rate").textContent = rate >= 100 ? rate.toFixed(0) : rate.toFixed(1);
  }
  lastLoad = { at: now, done };
  const top = Math.max(1, ...rates);
  const path = rates.map((rate, i) => `${(i / 59 * 120).toFixed(1)},${(21 - rate / top * 19).toFixed(1)}`).join("L");
  document.querySelector("#spark .line").setAttribute("d", "M" + path);
  document.querySelector("#spark .area").setAttribute("d", `M0,22L${path}L120,22Z`);
  $("load-running").textContent = load.running;
  $("load-waiting").textContent = load.waiting;
  if ("cache_usage" in load) $("load-cache").textContent = (load.cache_usage * 100).toFixed(0) + " %";
}

function showState(name, good) {
  $("state").textContent = name;
  $("state").className = "state" + (good === true ? " ready" : good === false ? " down" : "");
}

async function poll() {
  if (!document.hidden) {
    try {
      const response = await fetch("props", { headers: headers() });
      if (response.ok) {
        const props = await response.json();
        if (!factsShown) showFacts(props);
        factsShown = true;
        showLoad(props.load);
        showState("ready", true);
      } else if (response.status === 401) {
        $("key-row").hidden = false;
        showState("needs an API key");
      } else {
        const health = await (await fetch("health")).json();
        showState(health.status);
      }
    } catch {
      showState("not reachable", false);
    }
  }
  setTimeout(poll, 1000);
}

$("form").addEventListener("submit", event => {
  event.preventDefault();
  if (run.controller) return stop();
  generate($("prompt").value);
});
$("again").addEventListener("click", () => generate(run.prompt));
$("more").addEventListener("click", () => {
  $("prompt").value = run.prompt + run.text;
  generate($("prompt").value);
});
$("copy").addEventListener("click", async () => {
  try {
    await navigator.clipboard.writeText(run.prompt + run.text);
    $("copy").textContent = "Copied";
  } catch {
    $("copy").textContent = "Not allowed";
  }
  setTimeout(() => { $("copy").textContent = "Copy"; }, 1200);
});
$("reset").addEventListener("click", () => {
  for (const id of fields) $(id).value = defaults[id];
  showValues();
  save();
});
$("tab-text").addEventListener("click", () => showTab(false));
$("tab-tokens").addEventListener("click", () => showTab(true));
$("tokens").addEventListener("mouseover", event => event.target.classList.contains("token") ? showTip(event.target) : hideTip());
$("tokens").addEventListener("mouseleave", hideTip);
$("tokens").addEventListener("focusin", event => event.target.classList.contains("token") && showTip(event.target));
$("tokens").addEventListener("focusout", hideTip);
$("tokens").addEventListener("click", event => event.target.classList.contains("token") && event.target.focus());
$("controls").addEventListener("input", () => { showValues(); save(); });
$("key").addEventListener("input", save);
document.addEventListener("keydown", event => {
  if ((event.ctrlKey || event.metaKey) && event.key === "Enter") {
    event.preventDefault();
    if (!run.controller) generate($("prompt").value);
  } else if (event.key === "Escape") {
    stop();
    hideTip();
  } else if (event.key === "ArrowRight" || event.key === "ArrowLeft") {
    if (!$("tokens").contains(document.activeElement)) return;
    event.preventDefault();
    step(event.key === "ArrowRight" ? 1 : -1);
  }
});
load();
showValues();
poll();
