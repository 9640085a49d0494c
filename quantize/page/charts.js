"use strict";
// Elements, numbers, scales and charts. Data reach the page as text nodes and attribute values only.

function build(element, attributes, children) {
  for (const [name, value] of Object.entries(attributes || {})) {
    if (value === undefined || value === null || value === false) continue;
    if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else element.setAttribute(name, value === true ? "" : String(value));
  }
  for (const child of children.flat(2)) if (child !== null && child !== undefined) element.append(child);
  return element;
}
const el = (tag, attributes, ...children) => build(document.createElement(tag), attributes, children);
const draw = (tag, attributes, ...children) => build(document.createElementNS("http://www.w3.org/2000/svg", tag), attributes, children);

const isNumber = value => typeof value === "number" && Number.isFinite(value);
const superscript = power => String(power).replace(/./g, c => c === "-" ? "⁻" : "⁰¹²³⁴⁵⁶⁷⁸⁹"[c]);
function significant(value, digits = 3) {
  if (!isNumber(value)) return "–";
  if (value === 0) return "0";
  const size = Math.abs(value);
  if (size < 1e-4 || size >= 1e7) {
    const power = Math.floor(Math.log10(size));
    return `${+(value / 10 ** power).toFixed(digits - 1)} × 10${superscript(power)}`;
  }
  return value.toLocaleString("en-US", {maximumSignificantDigits: Math.max(digits, Math.ceil(Math.log10(size + 1)))})
      .replace(/,/g, "\u2009");
}
const percent = (value, digits = 3) => isNumber(value) ? `${significant(100 * value, digits)}\u2009%` : "–";
const signedPercent = value =>
  !isNumber(value) ? "–" : `${value < 0 ? "−" : value > 0 ? "+" : ""}${Math.abs(100 * value).toFixed(1)}\u2009%`;
// One format for a column of numbers: as many decimals as give its largest about four digits, so that points line
// up; significant digits where the range is too wide for that.
function columnText(values, unit = 1) {
  const sizes = values.filter(isNumber).map(value => Math.abs(value * unit)).filter(value => value > 0);
  const high = Math.max(0, ...sizes), low = Math.min(...sizes);
  const decimals = sizes.every(Number.isInteger) ? 0 : Math.max(0, Math.min(6, 3 - Math.floor(Math.log10(high || 1)) - (unit === 1 ? 0 : 1)));
  const fixed = high < 1e5 && (sizes.length === 0 || low >= 10 ** -decimals);
  const suffix = unit === 100 ? "\u2009%" : "";
  return value => !isNumber(value) ? "–" : (fixed ? (value * unit).toFixed(decimals) : significant(value * unit)) + suffix;
}
function bytes(value) {
  const units = ["B", "KiB", "MiB", "GiB", "TiB"];
  let unit = 0;
  while (value >= 1024 && unit < units.length - 1) { value /= 1024; ++unit; }
  return `${significant(value)}\u2009${units[unit]}`;
}
function duration(value) {
  if (value < 120) return `${significant(value)}\u2009s`;
  const minutes = Math.round(value / 60);
  return minutes < 120 ? `${minutes}\u2009min` : `${Math.floor(minutes / 60)}\u2009h ${minutes % 60}\u2009min`;
}
function median(values) {
  const sorted = values.filter(isNumber).sort((a, b) => a - b), middle = sorted.length >> 1;
  return sorted.length === 0 ? NaN : sorted.length % 2 ? sorted[middle] : (sorted[middle - 1] + sorted[middle]) / 2;
}

// One floating label for all charts.
function tipped(node, text) {
  const tip = document.getElementById("tip");
  const show = event => {
    tip.textContent = text;
    tip.hidden = false;
    const box = tip.getBoundingClientRect();
    tip.style.left = `${Math.max(6, Math.min(event.clientX + 14, innerWidth - box.width - 6))}px`;
    tip.style.top = `${event.clientY + 18 + box.height > innerHeight ? event.clientY - box.height - 12 : event.clientY + 18}px`;
  };
  node.addEventListener("pointermove", show);
  node.addEventListener("pointerdown", show);
  node.addEventListener("pointerleave", () => { tip.hidden = true; });
  node.append(draw("title", {}, text));
  return node;
}

const linear = (low, high, from, to) => value => from + (value - low) / (high - low || 1) * (to - from);
const logarithmic = (low, high, from, to) => {
  const scale = linear(Math.log(low), Math.log(high), from, to);
  return value => scale(Math.log(Math.max(value, low)));
};
// Decades alone when there are many; else with steps between that leave at least a few ticks, even ones in a narrow range.
function logTicks(low, high, most) {
  if (high > low && high < 2 * low) return linearTicks(low, high, most);
  for (const steps of [[1, 1.5, 2, 3, 4, 5, 6, 7, 8, 9], [1, 2, 3, 5, 7], [1, 2, 5], [1, 3], [1]]) {
    const ticks = [];
    for (let power = Math.floor(Math.log10(low)); power <= Math.log10(high); ++power)
      for (const step of steps) {
        const value = step * 10 ** power;
        if (value >= low * (1 - 1e-9) && value <= high * (1 + 1e-9)) ticks.push(value);
      }
    if (ticks.length <= most) return ticks;
  }
  const all = [];
  const every = Math.ceil(Math.log10(high / low) / most);
  for (let power = Math.ceil(Math.log10(low)); power <= Math.log10(high); power += every) all.push(10 ** power);
  return all;
}
function linearTicks(low, high, most) {
  const raw = (high - low) / most, power = 10 ** Math.floor(Math.log10(raw));
  const step = [1, 2, 5, 10].map(s => s * power).find(s => s >= raw * (1 - 1e-9));
  const ticks = [];
  for (let i = Math.ceil(low / step - 1e-9); i * step <= high + step * 1e-9; ++i) ticks.push(i * step);
  return ticks;
}

// A box that draws itself anew for every width it gets.
function chart(label, paint) {
  const box = el("div", {class: "chart"});
  let drawn = 0;
  const redraw = () => {
    const width = Math.round(box.clientWidth);
    if (width < 40 || width === drawn) return;
    drawn = width;
    const image = draw("svg", {role: "img", "aria-label": label});
    const height = paint(image, width);
    image.setAttribute("viewBox", `0 0 ${width} ${height}`);
    box.replaceChildren(image);
  };
  new ResizeObserver(redraw).observe(box);
  return box;
}

// Error of one kind of layer over the blocks, before and after compensation, and the share that it removed.
// `items`: {block, before, after, tip}. `shared`: {low, high, removed} common to all panels, blocks: count.
function errorPanel(label, items, shared, highlight) {
  return chart(label, (image, width) => {
    const left = 46, right = width - 4, top = 10, bottom = 150, strip = 208, height = 228;
    const y = logarithmic(shared.low, shared.high, bottom, top);
    const slot = (right - left) / shared.blocks, x = block => left + (block + 0.5) * slot;
    const radius = Math.max(1.5, Math.min(4.2, slot * 0.3));
    for (const tick of logTicks(shared.low, shared.high, 5))
      image.append(draw("line", {class: "grid", x1: left, x2: right, y1: y(tick), y2: y(tick)}),
                   draw("text", {x: left - 7, y: y(tick) + 4, "text-anchor": "end"}, percent(tick, 2)));
    const share = linear(0, shared.removed, strip, strip - 34);
    image.append(draw("line", {class: "axis", x1: left, x2: right, y1: strip, y2: strip}),
                 draw("line", {class: "grid", x1: left, x2: right, y1: strip - 34, y2: strip - 34}),
                 draw("text", {x: left - 7, y: strip - 30, "text-anchor": "end"}, percent(shared.removed, 2)),
                 draw("text", {x: left - 7, y: strip + 4, "text-anchor": "end"}, "0"));
    const every = Math.max(1, Math.ceil(shared.blocks * 22 / (right - left)));
    for (let block = 0; block < shared.blocks; block += every)
      image.append(draw("text", {x: x(block), y: height - 5, "text-anchor": "middle"}, String(block)));
    for (const item of items) {
      const removed = item.before > 0 ? 1 - item.after / item.before : 0;
      const size = Math.min(Math.abs(removed), shared.removed);
      image.append(
          draw("rect", {class: removed < 0 ? "removed worse" : "removed", x: x(item.block) - radius, width: 2 * radius,
                        y: share(size), height: Math.max(0, strip - share(size))}),
          draw("line", {class: "link", x1: x(item.block), x2: x(item.block), y1: y(item.before), y2: y(item.after)}),
          draw("circle", {class: "before-mark", cx: x(item.block), cy: y(item.before), r: radius}),
          draw("circle", {class: "after-mark", cx: x(item.block), cy: y(item.after), r: radius * 0.8}));
    }
    for (const item of items) {
      const hit = draw("rect", {class: "hit", "data-block": item.block, x: x(item.block) - slot / 2, width: slot, y: top - 6,
                                height: strip - top + 6, rx: 3});
      hit.addEventListener("pointerenter", () => highlight(item.block));
      hit.addEventListener("pointerleave", () => highlight(null));
      image.append(tipped(hit, item.tip));
    }
    return height;
  });
}

// A cell for each layer: kinds of layer down, blocks across. `cells`: {row, block, value, text, tip}.
function layerMap(label, rows, blocks, cells) {
  const values = cells.map(cell => cell.value), low = Math.min(...values), high = Math.max(...values);
  const logs = low > 0 && high / low > 30;
  const depth = logs ? linear(Math.log(low), Math.log(high), 6, 56) : linear(low, high, 6, 56);
  return chart(label, (image, width) => {
    const names = Math.min(150, Math.max(54, 7 * Math.max(...rows.map(row => row.length)))), line = 22, gap = 1.5;
    const slot = Math.min(84, (width - names) / blocks);
    rows.forEach((row, index) => image.append(
        draw("text", {x: names - 9, y: index * line + 15, "text-anchor": "end"}, row)));
    for (const cell of cells) {
      const share = depth(logs ? Math.log(cell.value) : cell.value);
      const x = names + cell.block * slot, y = rows.indexOf(cell.row) * line;
      image.append(tipped(draw("rect", {x, y: y + gap / 2, width: Math.max(1, slot - gap), height: line - gap, rx: 2.5,
                                        style: `fill:color-mix(in srgb, var(--after) ${share.toFixed(1)}%, var(--card))`}), cell.tip));
      if (slot > 7 * cell.text.length + 4)
        image.append(draw("text", {class: "cell-text", x: x + (slot - gap) / 2, y: y + 15,
                                   "pointer-events": "none"}, cell.text));
    }
    const every = Math.max(1, Math.ceil(24 / slot));
    for (let block = 0; block < blocks; block += every)
      image.append(draw("text", {x: names + (block + 0.5) * slot - gap / 2, y: rows.length * line + 13, "text-anchor": "middle"},
                        String(block)));
    return rows.length * line + 18;
  });
}

const kShapes = [
  "M0-5A5 5 0 1 1 0 5A5 5 0 1 1 0-5Z", "M-4.4-4.4H4.4V4.4H-4.4Z", "M0-5.6L5.4 4.2H-5.4Z", "M0-6L5.4 0L0 6L-5.4 0Z",
  "M0 5.6L5.4-4.2H-5.4Z", "M-1.8-5H1.8V-1.8H5V1.8H1.8V5H-1.8V1.8H-5V-1.8H-1.8Z",
];
const seriesMark = (index, attributes) => draw("path", {class: "point", d: kShapes[index % kShapes.length], ...attributes});
const seriesColor = index => `color:var(--s${index % 8})`;

// A measure against bits per weight, a line for each series. `series`: {label, points: [{x, y, error, tip}]}; `lines`:
// {label, y} horizontal references.
function bitsChart(label, measure, series, lines) {
  return chart(label, (image, width) => {
    const names = width > 640 ? Math.min(270, 24 + 6.6 * Math.max(...series.map(s => s.label.length))) : 12;
    const left = 54, right = width - names, top = 14, height = width > 640 ? 380 : 300, bottom = height - 44;
    const points = series.flatMap(s => s.points), xs = points.map(p => p.x);
    const ys = [...points.map(p => p.y), ...lines.map(l => l.y)].filter(y => y > 0);
    const pad = Math.max(0.15, (Math.max(...xs) - Math.min(...xs)) * 0.06);
    const lowX = Math.min(...xs) - pad, highX = Math.max(...xs) + pad;
    const spread = Math.max(1.02, (Math.max(...ys) / Math.min(...ys)) ** 0.06);
    const lowY = Math.min(...ys) / spread, highY = Math.max(...ys) * spread;
    const x = linear(lowX, highX, left, right), y = logarithmic(lowY, highY, bottom, top);
    for (const tick of logTicks(lowY, highY, 8))
      image.append(draw("line", {class: "grid", x1: left, x2: right, y1: y(tick), y2: y(tick)}),
                   draw("text", {x: left - 8, y: y(tick) + 4, "text-anchor": "end"}, significant(tick)));
    for (const tick of linearTicks(lowX, highX, width > 640 ? 9 : 5))
      image.append(draw("line", {class: "axis", x1: x(tick), x2: x(tick), y1: bottom, y2: bottom + 5}),
                   draw("text", {x: x(tick), y: bottom + 19, "text-anchor": "middle"}, significant(tick)));
    image.append(draw("line", {class: "axis", x1: left, x2: right, y1: bottom, y2: bottom}),
                 draw("text", {x: (left + right) / 2, y: height - 6, "text-anchor": "middle"}, "bits per weight"),
                 draw("text", {x: 0, y: 4}, `${measure} (log scale)`));
    for (const line of lines)
      image.append(draw("line", {class: "reference", x1: left, x2: right, y1: y(line.y), y2: y(line.y)}),
                   draw("text", {x: left + 6, y: y(line.y) - 6}, line.label));
    const ends = [];
    series.forEach((one, index) => {
      const sorted = [...one.points].sort((a, b) => a.x - b.x || a.y - b.y), group = draw("g", {style: seriesColor(index)});
      if (sorted.length > 1)
        group.append(draw("path", {class: "series", d: sorted.map((p, i) => `${i ? "L" : "M"}${x(p.x)} ${y(p.y)}`).join("")}));
      for (const p of sorted) group.append(tipped(seriesMark(index, {transform: `translate(${x(p.x)} ${y(p.y)})`}), p.tip));
      image.append(group);
      const last = sorted[sorted.length - 1];
      ends.push({index, label: one.label, from: x(last.x), at: y(last.y), y: y(last.y)});
    });
    if (width <= 640) return height;
    // Labels at the ends of the lines, pushed apart where they would touch.
    ends.sort((a, b) => a.at - b.at);
    for (let i = 1; i < ends.length; ++i) ends[i].y = Math.max(ends[i].y, ends[i - 1].y + 16);
    const excess = Math.max(0, ends[ends.length - 1].y - bottom);
    for (let i = ends.length - 1; i >= 0; --i)
      ends[i].y = Math.min(ends[i].y, i + 1 < ends.length ? ends[i + 1].y - 16 : ends[i].y - excess);
    for (const end of ends)
      image.append(draw("path", {class: "grid", style: "stroke:var(--faint);fill:none",
                                 d: `M${end.from + 9} ${end.at}L${right + 4} ${end.y}H${right + 9}`}),
                   draw("text", {class: "strong", style: `fill:var(--s${end.index % 8})`, x: right + 14, y: end.y + 4}, end.label));
    return height;
  });
}

// `columns`: {title, value(row), text(value, row), left, tone(value)}.
function sortableTable(columns, rows) {
  const body = el("tbody");
  const fill = sorted => body.replaceChildren(...sorted.map(row => el("tr", {}, columns.map(column => {
    const value = column.value(row);
    const classes = [column.left ? "text" : "", column.tone ? column.tone(value) : ""].join(" ").trim();
    return el("td", {class: classes || null, title: column.left ? String(value) : null}, column.text ? column.text(value, row) : String(value));
  }))));
  const heads = columns.map(column => el("th", {scope: "col", class: column.left ? "text" : null}));
  columns.forEach((column, index) => heads[index].append(el("button", {type: "button", onclick: () => {
    const next = heads[index].getAttribute("aria-sort") === "ascending" ? "descending" : "ascending";
    for (const head of heads) head.removeAttribute("aria-sort");
    heads[index].setAttribute("aria-sort", next);
    const direction = next === "ascending" ? 1 : -1;
    fill([...rows].sort((a, b) => {
      const p = column.value(a), q = column.value(b);
      if (isNumber(p) && isNumber(q)) return direction * (p - q);
      if (isNumber(p) !== isNumber(q)) return isNumber(p) ? -1 : 1;
      return direction * String(p).localeCompare(String(q), "en", {numeric: true});
    }));
  }}, column.title)));
  fill(rows);
  return el("div", {class: "scroll", tabindex: "0", role: "region", "aria-label": "table"},
            el("table", {}, el("thead", {}, el("tr", {}, heads)), body));
}
