// The page: what each part shows, from the runs' JSON.

const data = JSON.parse(document.getElementById("data").textContent);
const page = document.getElementById("page");

// Fields with a name or a unit of their own; all others appear under their key.
const kFields = {
  bits_per_weight: {title: "Bits per weight", note: "codes, scales, zero points and outliers together"},
  bits: {title: "Bits"},
  group_size: {title: "Group size", note: "columns that share a scale"},
  damping: {title: "Damping", note: "share of the mean diagonal added to the Hessian; above the chosen one where the factorization failed with it"},
  outlier_share: {title: "Outliers", note: "share of the weights kept apart in higher precision"},
  seconds: {title: "Seconds", note: "solving the layer, without calibration"},
  salient_share: {title: "Salient columns", note: "share of the columns binarized twice"},
  target_bits: {title: "Wanted bits per weight"},
  recipe: {title: "Named recipe"},
  sweeps: {title: "Sweeps"},
  curvature: {title: "Curvature"},
  asymmetric: {title: "Codes for the float input"},
  tune_epochs: {title: "Tuning epochs"},
  tuning_kl_before: {title: "KL before tuning"},
  tuning_kl_after: {title: "KL after tuning"},
  range_shrink: {title: "Range shrink"},
  act_order: {title: "Column order by power"},
  correct_drift: {title: "Drift correction"},
  one_pass: {title: "One pass per block"},
  kept_float: {title: "Left in float"},
};
const kShownElsewhere = new Set(["layers", "model", "output", "bits_per_weight", "seconds", "calibration_seconds", "widths_seconds",
                                 "peak_memory_bytes", "output_bytes", "source_bytes"]);
const kZeroIsUnused = new Set(["outlier_share", "target_bits", "sweeps", "tune_epochs", "tuning_kl_before", "tuning_kl_after"]);
const fieldTitle = key => (kFields[key] || {}).title || (key[0].toUpperCase() + key.slice(1)).replace(/_/g, " ");
const isShare = key => key.endsWith("_share");
const fieldText = (key, value) => {
  if (isNumber(value)) return isShare(key) ? percent(value) : significant(value, 4);
  if (typeof value === "boolean") return value ? "yes" : "no";
  if (Array.isArray(value)) return value.join(key === "shape" ? " × " : ", ");
  return value === undefined || value === null ? "–" : String(value);
};

const bitsText = value => isNumber(value) ? value.toFixed(3) : "–";
const perplexityText = value => isNumber(value) && Math.abs(value) < 1000 ? value.toFixed(2) : significant(value, 4);
const kMethods = {gptq: "GPTQ", rtn: "RTN", comq: "COMQ", spqr: "SpQR", billm: "BiLLM", oac: "OAC", float: "Float"};
const methodName = method => kMethods[method] || method || "?";
const folderName = path => String(path || "").replace(/\/+$/, "").split("/").pop() || "model";
const samePath = (a, b) => a && b && String(a).replace(/\/+$/, "") === String(b).replace(/\/+$/, "");

// "GPTQ + joint + drift": what tells one way of quantizing from another, whatever the width.
function wayOf(facts) {
  let name = methodName(facts.method);
  if (facts.compensation && facts.compensation !== "none") name += ` + ${facts.compensation}`;
  if (facts.correct_drift) name += " + drift";
  return facts.recipe ? `${facts.recipe}: ${name}` : name;
}
function widthOf(facts) {
  const size = facts.group_size;
  if (facts.target_bits > 0) return `${significant(facts.target_bits, 4)} bits on average`;
  return `${facts.bits} bit${facts.bits === 1 ? "" : "s"}${size === undefined ? "" : size > 0 ? `, groups of ${size}` : ", one scale a row"}`;
}

// Block and kind of a layer from its name: "model.decoder.layers.3.self_attn.q_proj" is q_proj of block 3.
function place(layer) {
  const parts = layer.name.split("."), at = parts.findIndex(part => /^\d+$/.test(part));
  if (at < 0) return {layer, block: null, kind: parts[parts.length - 1], short: layer.name};
  const kind = parts.slice(at + 1).join(".").replace(/^((self_attn|attn|mlp)\.|attention\.(?=attention\.))/, "");
  return {layer, block: Number(parts[at]), kind, short: `${parts[at]}.${kind}`};
}
// A layer's field as shown: groups as long as a row are whole rows, whatever the row's length.
const fieldOf = (layer, key) =>
  key === "group_size" && Array.isArray(layer.shape) && layer.shape[1] === layer[key] ? "whole rows" : layer[key];
function tipOf(layer) {
  const lines = [layer.name, `error ${percent(layer.error_before)} → ${percent(layer.error_after)}`];
  if (layer.error_before > 0) lines.push(`compensation ${signedPercent(layer.error_after / layer.error_before - 1)}`);
  lines.push(`${significant(layer.bits_per_weight, 4)} bits per weight`);
  return lines.join("\n");
}

const section = (title, lede, ...children) => el("section", {}, el("h2", {}, title), lede ? el("p", {class: "lede"}, lede) : null, children);
const legendItem = (mark, text) => el("li", {}, draw("svg", {viewBox: "-8 -7 16 14"}, mark), text);
function facts(items) {
  return el("dl", {class: "facts"}, items.filter(Boolean).map(([title, value, note]) =>
    el("div", {}, el("dt", {}, title), el("dd", {}, value, note ? el("small", {}, note) : null))));
}

function keyFigures(run) {
  const before = median(run.layers.map(layer => layer.error_before)), after = median(run.layers.map(layer => layer.error_after));
  const own = data.scores.filter(score => samePath(score.model, run.output));
  const calibration = run.calibration_seconds, widths = run.widths_seconds;
  return facts([
    ["Bits per weight", significant(run.bits_per_weight, 4), `stored, over ${run.layers.length} layers; scales and zero points included`],
    run.output_bytes && ["Size on disk", bytes(run.output_bytes), run.source_bytes
      ? `from ${bytes(run.source_bytes)}: ${significant(run.source_bytes / run.output_bytes)} times smaller, with what stays in float` : null],
    ["Median layer error", percent(after), `${percent(before)} before compensation`],
    ...own.slice(0, 2).map(score => ["Perplexity", perplexityText(score.perplexity), [score.dataset,
      isNumber(score.reference_perplexity) ? `float ${perplexityText(score.reference_perplexity)}` : "",
      isNumber(score.kl_mean) ? `KL ${significant(score.kl_mean)}` : ""].filter(Boolean).join("; ")]),
    isNumber(run.seconds) && ["Time", duration(run.seconds + (calibration || 0) + (widths || 0)),
      [[calibration, "calibration data"], [widths, "choosing widths"]].filter(([time]) => isNumber(time) && time >= 1)
        .map(([time, what]) => `${duration(time)} of it ${what}`).join(", ") || null],
    run.peak_memory_bytes && ["Peak memory", bytes(run.peak_memory_bytes)],
  ]);
}

function recipe(run) {
  const entries = [];
  for (const [key, value] of Object.entries(run)) {
    if (kShownElsewhere.has(key) || (kZeroIsUnused.has(key) && value === 0) || value === "") continue;
    if (Array.isArray(value)) {
      if (value.length > 0) entries.push([fieldTitle(key), fieldText(key, value), true]);
    } else if (value && typeof value === "object") {
      for (const [inner, part] of Object.entries(value))
        if (inner !== "views" || part !== 1) entries.push([`${fieldTitle(key)} ${inner.replace(/_/g, " ")}`, fieldText(inner, part)]);
    } else {
      const text = key === "group_size" && value === 0 ? "whole rows" : key === "method" ? methodName(value) : fieldText(key, value);
      entries.push([fieldTitle(key), text]);
    }
  }
  entries.push(["Source", String(run.model || "–")], ["Output", String(run.output || "–")]);
  return section("Recipe", null, el("dl", {class: "recipe"}, entries.map(([name, value, wide]) =>
    el("div", {class: wide || value.length > 34 ? "wide" : null}, el("dt", {}, name), el("dd", {}, value)))));
}

function errors(run, placed) {
  const kinds = [...new Set(placed.filter(at => at.block !== null).map(at => at.kind))];
  if (kinds.length === 0) return null;
  const inBlocks = placed.filter(at => at.block !== null);
  const positive = inBlocks.flatMap(at => [at.layer.error_before, at.layer.error_after]).filter(value => value > 0);
  if (positive.length === 0) return null;
  const removed = Math.max(...inBlocks.map(at => at.layer.error_before > 0 ? Math.abs(1 - at.layer.error_after / at.layer.error_before) : 0));
  const nice = [0.01, 0.02, 0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.8].find(value => value >= removed) || 1;
  const shared = {low: Math.min(...positive) / 1.25, high: Math.max(...positive) * 1.25, removed: nice,
                  blocks: 1 + Math.max(...inBlocks.map(at => at.block))};
  const panels = el("div", {class: "panels"});
  const highlight = block => panels.querySelectorAll(".hit").forEach(hit =>
    hit.classList.toggle("on", block !== null && hit.dataset.block === String(block)));
  for (const kind of kinds) {
    const own = inBlocks.filter(at => at.kind === kind);
    const before = median(own.map(at => at.layer.error_before)), after = median(own.map(at => at.layer.error_after));
    panels.append(el("div", {class: "card"},
      el("header", {}, el("h3", {}, kind), el("span", {}, `median ${percent(after)}, ${signedPercent(before > 0 ? after / before - 1 : NaN)}`)),
      errorPanel(`error of ${kind} by block`, own.map(at => ({block: at.block, before: at.layer.error_before,
        after: at.layer.error_after, tip: tipOf(at.layer)})), shared, highlight)));
  }
  return section("Error by layer",
    "How much of each layer’s output power is rounding error on the calibration text, E‖(W − Q)x‖² / E‖Wx‖², on a scale common to " +
    "all panels; block numbers run to the right. The bars below are the share of that error which compensation took out." +
    (run.compensation === "joint" ? " Joint compensation chooses the codes for the compensated layer, so what is shown before it is more than " +
      "codes chosen without it would give." : ""),
    el("ul", {class: "legend"},
      legendItem(draw("circle", {class: "before-mark", r: 4.2}), "before compensation"),
      legendItem(draw("circle", {class: "after-mark", r: 3.8}), "after"),
      legendItem(draw("rect", {class: "removed", x: -5, y: -5, width: 10, height: 10}), "taken out by compensation")),
    panels);
}

// Per-layer fields: those that vary get a map, the others a sentence.
function layerFields(run) {
  const keys = [...new Set(run.layers.flatMap(Object.keys))].filter(key => !["name", "shape", "error_before", "error_after"].includes(key));
  const varying = [], constant = [];
  for (const key of keys) {
    const values = run.layers.map(layer => fieldOf(layer, key));
    if (values.some(value => value !== null && typeof value === "object")) continue;
    const same = values.every(value => value === values[0]);
    (same ? constant : varying).push({key, numeric: values.every(value => isNumber(value) || value === undefined), value: values[0]});
  }
  return {varying, constant};
}

function maps(run, placed, {varying, constant}) {
  const inBlocks = placed.filter(at => at.block !== null);
  const kinds = [...new Set(inBlocks.map(at => at.kind))], blocks = 1 + Math.max(0, ...inBlocks.map(at => at.block));
  const rank = key => ["bits_per_weight", "outlier_share", "salient_share", "bits"].indexOf(key) + 1 || 9;
  const shown = varying.filter(field => field.numeric).sort((a, b) => rank(a.key) - rank(b.key));
  const charts = inBlocks.length === 0 ? [] : shown.map(({key}) => {
    const own = inBlocks.filter(at => isNumber(at.layer[key])), values = own.map(at => at.layer[key]), field = kFields[key] || {};
    if (own.length === 0) return null;
    const text = columnText(values, isShare(key) ? 100 : 1);
    return el("div", {class: "card map"},
      el("header", {}, el("h3", {}, fieldTitle(key)), el("span", {}, `${text(Math.min(...values))} to ${text(Math.max(...values))}`)),
      field.note ? el("p", {class: "legend"}, field.note) : null,
      layerMap(`${fieldTitle(key)} by layer`, kinds, blocks, own.map(at => ({row: at.kind, block: at.block, value: at.layer[key],
        text: text(at.layer[key]), tip: `${at.layer.name}\n${fieldTitle(key)}: ${fieldText(key, at.layer[key])}`}))));
  });
  const words = constant.filter(({key, value}) => !(kZeroIsUnused.has(key) && value === 0)).map(({key, value}) => `${fieldTitle(key).toLowerCase()} ${fieldText(key, value)}`);
  const same = words.length ? el("p", {class: "same"}, `The same in every layer: ${words.join(", ")}.`) : null;
  return section("Bits, outliers and the rest", "What differs between layers: kinds of layer down, blocks across, stronger colour is more.",
                 el("div", {class: blocks <= 6 ? "maps paired" : "maps"}, charts), same);
}

function layerTable(run, placed, {varying}) {
  const other = varying.filter(field => field.key !== "bits_per_weight");
  const errorText = columnText(run.layers.flatMap(layer => [layer.error_before, layer.error_after]), 100);
  const change = at => at.layer.error_before > 0 ? at.layer.error_after / at.layer.error_before - 1 : 0;
  const columns = [
    {title: "Layer", left: true, value: at => at.layer.name, text: (value, at) => at.short},
    {title: "Shape", value: at => Array.isArray(at.layer.shape) ? at.layer.shape.reduce((a, b) => a * b, 1) : 0,
     text: (value, at) => fieldText("shape", at.layer.shape)},
    {title: "Bits / weight", value: at => at.layer.bits_per_weight, text: columnText(run.layers.map(layer => layer.bits_per_weight))},
    {title: "Error before", value: at => at.layer.error_before, text: errorText},
    {title: "After", value: at => at.layer.error_after, text: errorText},
    {title: "Change", value: change, text: signedPercent, tone: value => value < -0.0005 ? "good" : value > 0.0005 ? "worse-text" : ""},
    ...other.map(({key, numeric}) => ({title: fieldTitle(key), left: !numeric, value: at => fieldOf(at.layer, key) ?? "–",
      text: numeric ? columnText(run.layers.map(layer => layer[key]), isShare(key) ? 100 : 1) : value => fieldText(key, value)})),
  ];
  return section("Every layer", null, el("p", {class: "lede screen"}, "Click a heading to sort."), sortableTable(columns, placed));
}

// Scores that may stand in one chart: same text, same windows.
function scoreGroups() {
  const groups = new Map();
  for (const score of data.scores) {
    const key = JSON.stringify([score.data_hash, score.dataset, score.protocol, score.context, score.stride, score.first_window, score.windows]);
    if (!groups.has(key)) groups.set(key, []);
    groups.get(key).push(score);
  }
  return [...groups.values()];
}

function scores(group) {
  const quantized = group.filter(score => (score.quantization || {}).method !== "float");
  const texts = new Set(quantized.map(score => String((score.quantization || {}).calibration)));
  const label = score => wayOf(score.quantization || {}) +
    (texts.size > 1 && (score.quantization || {}).calibration ? ` (${folderName(score.quantization.calibration)})` : "");
  const floats = group.filter(score => (score.quantization || {}).method === "float").map(score => score.perplexity);
  const references = [...new Set([...floats, ...group.map(score => score.reference_perplexity).filter(isNumber)])];
  const labels = [...new Set(quantized.map(label))].sort();
  const seriesFor = (value, error) => labels.map(name => ({label: name, points: quantized.filter(score => label(score) === name && value(score) > 0)
    .map(score => ({x: score.bits_per_weight, y: value(score), tip: [folderName(score.model), name, widthOf(score.quantization || {}),
      `${significant(score.bits_per_weight, 4)} bits per weight`,
      `perplexity ${perplexityText(score.perplexity)}`,
      isNumber(score.kl_mean) ? `KL ${significant(score.kl_mean)}` : ""].filter(Boolean).join("\n")}))})).filter(series => series.points.length > 0);
  const first = group[0];
  const lede = `${first.dataset}, ${first.protocol} protocol, ${significant(first.windows)} windows of ${significant(first.context)} tokens. Lower is better.`;
  const legend = labels.length < 2 ? null : el("ul", {class: "legend"}, labels.map((name, index) => legendItem(draw("g", {style: seriesColor(index)}, seriesMark(index)), name)));
  const shown = seriesFor(score => score.perplexity), byKl = seriesFor(score => score.kl_mean);
  const cards = [];
  const enough = series => series.reduce((count, one) => count + one.points.length, 0) > 1;
  if (enough(shown)) cards.push(el("div", {class: "card"}, bitsChart("Perplexity against bits per weight", "perplexity", shown,
    references.slice(0, 3).map(value => ({label: `float ${perplexityText(value)}`, y: value})))));
  if (enough(byKl)) cards.push(el("div", {class: "card"}, bitsChart("KL divergence from the float model against bits per weight",
    "KL divergence from the float model, nats", byKl, [])));
  group.sort((a, b) => a.bits_per_weight - b.bits_per_weight || a.perplexity - b.perplexity);
  const columns = [
    {title: "Model", left: true, value: score => folderName(score.model)},
    {title: "Made by", left: true, value: label},
    {title: "Bits / weight", value: score => score.bits_per_weight, text: bitsText},
    {title: "Perplexity", value: score => score.perplexity, text: (value, score) => `${perplexityText(value)}${isNumber(score.standard_error) ? ` ± ${perplexityText(score.standard_error)}` : ""}`},
  ];
  if (group.some(score => isNumber(score.kl_mean))) columns.push(
    {title: "KL", value: score => score.kl_mean, text: value => isNumber(value) ? value.toFixed(4) : "–"},
    {title: "Same top token", value: score => score.top1_agreement, text: value => isNumber(value) ? `${(100 * value).toFixed(1)}\u2009%` : "–"});
  return section(cards.length ? "Perplexity against bits" : "Perplexity", lede, cards.length ? [legend, el("div", {class: "maps"}, cards), el("p", {class: "same"})] : null, sortableTable(columns, group));
}

function runsTable() {
  const score = run => (data.scores.find(one => samePath(one.model, run.output)) || {}).perplexity;
  const before = run => median(run.layers.map(layer => layer.error_before)), after = run => median(run.layers.map(layer => layer.error_after));
  const errorText = columnText(data.runs.flatMap(run => [before(run), after(run)]), 100);
  const columns = [
    {title: "Run", left: true, value: run => folderName(run.output)},
    {title: "Made by", left: true, value: wayOf},
    {title: "Width", left: true, value: widthOf},
    {title: "Bits / weight", value: run => run.bits_per_weight, text: bitsText},
    {title: "Error before", value: before, text: errorText},
    {title: "After", value: after, text: errorText},
    {title: "Perplexity", value: run => score(run) ?? "–", text: perplexityText},
    {title: "Time", value: run => run.seconds ?? "–", text: value => isNumber(value) ? duration(value) : "–"},
  ];
  data.runs.sort((a, b) => a.bits_per_weight - b.bits_per_weight || after(b) - after(a));
  return section("Runs", "Errors are medians over the layers of a run.", sortableTable(columns, data.runs));
}

function runParts(run) {
  const placed = run.layers.map(place), fields = layerFields(run);
  return [keyFigures(run), errors(run, placed), maps(run, placed, fields), layerTable(run, placed, fields), recipe(run)];
}
const lineOf = run => `${wayOf(run)} · ${widthOf(run)}`;

function start() {
  const single = data.runs.length === 1 ? data.runs[0] : null;
  const title = single ? folderName(single.output) : data.runs.length ? `${data.runs.length} runs compared` : `${data.scores.length} models compared`;
  document.title = `${title} – Ballast report`;
  const hull = draw("svg", {viewBox: "0 0 24 24", "aria-hidden": "true"},
    draw("path", {d: "M2 9h20c-1 7-5 11-10 11S3 16 2 9Z", fill: "currentColor", opacity: ".25"}),
    draw("path", {d: "M5.2 15.5h13.6C17.300 18.400 14.900 20 12 20s-5.300-1.600-6.800-4.500Z", fill: "currentColor"}),
    draw("path", {d: "M0 9h24", stroke: "currentColor", "stroke-width": "1.6"}),
    draw("path", {d: "M12 9V2", stroke: "currentColor", "stroke-width": "1.6"}));
  page.replaceChildren(el("div", {class: "brand"}, hull, "Ballast quantization report"), el("h1", {}, title));
  if (single) page.append(el("p", {class: "recipe-line"}, lineOf(single)), ...runParts(single).slice(0, 1));
  for (const group of scoreGroups()) page.append(scores(group));
  if (single) page.append(...runParts(single).slice(1).filter(Boolean));
  if (data.runs.length > 1) {
    page.append(runsTable());
    for (const run of data.runs)
      page.append(el("details", {class: "run"}, el("summary", {}, el("h2", {}, folderName(run.output)), el("span", {}, lineOf(run))),
                     ...runParts(run).filter(Boolean)));
  }
  page.append(el("footer", {}, "Error: E‖(W − Q)x − c‖² / E‖Wx‖² over the calibration inputs x, with the compensation c and without. ",
                 "This page is one file and loads nothing."));
  addEventListener("beforeprint", () => document.querySelectorAll("details").forEach(details => { details.open = true; }));
}
start();
