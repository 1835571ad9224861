"use strict";
(() => {
  const data = JSON.parse(document.getElementById("data").textContent);
  const place = document.getElementById("plots");
  const several = data.names.length > 1;
  const DASHES = [[], [8, 4], [2, 3], [10, 3, 2, 3]];  // once the eight colours are taken
  const HEIGHT = 260;
  const colour = name => getComputedStyle(document.documentElement).getPropertyValue(name).trim();
  const drawn = new Map(data.drawn.map((run, slot) => [run, slot]));  // run → its colour's number
  const logarithmic = new Set();
  const steps = [0, Math.max(1, ...data.plots.flatMap(plot => plot.curves.map(curve => curve.x.at(-1))))];  // of all plots alike
  let charts = [];

  function shown(value) {
    if (value == null) return "-";
    const size = Math.abs(value);
    if (size && (size < 1e-3 || size >= 1e6)) return value.toExponential(3).replace(/\.?0+e/, "e");
    return value.toLocaleString("en", {maximumSignificantDigits: 5});
  }

  // A mark on an axis: short, and no two alike.
  function ticks(values) {
    const kept = values.filter(value => value != null);
    const large = Math.max(...kept.map(Math.abs));
    if (large >= 1e-3 && large < 1e5) return values.map(value => value == null ? "" : Number(value.toPrecision(6)).toLocaleString("en", {maximumFractionDigits: 8}));
    return values.map(value => value == null ? "" : Number(value.toPrecision(6)).toExponential().replace("e+", "e"));
  }

  // A curve's own point next to the cursor: curves have steps of their own.
  function nearest(chart, series, at) {
    const values = chart.data[series];
    if (!series || values[at] !== undefined) return at;
    let left = at, right = at;
    while (left >= 0 && values[left] === undefined) left--;
    while (right < values.length && values[right] === undefined) right++;
    if (left < 0) return right < values.length ? right : at;
    if (right >= values.length) return left;
    const steps = chart.data[0], cursor = chart.posToVal(chart.cursor.left, "x");
    return cursor - steps[left] <= steps[right] - cursor ? left : right;
  }

  function restarts(chart) {
    const {ctx, bbox} = chart, ratio = devicePixelRatio;
    data.restarts.forEach((steps, run) => {
      if (!drawn.has(run)) return;
      ctx.save();
      ctx.strokeStyle = several ? colour(`--c${drawn.get(run) % 8}`) : colour("--faint");
      ctx.globalAlpha = several ? 0.5 : 0.8;
      ctx.lineWidth = ratio;
      ctx.setLineDash([4 * ratio, 4 * ratio]);
      for (const step of steps) {
        const x = Math.round(chart.valToPos(step, "x", true)) + 0.5;
        if (x < bbox.left || x > bbox.left + bbox.width) continue;
        ctx.beginPath();
        ctx.moveTo(x, bbox.top);
        ctx.lineTo(x, bbox.top + bbox.height);
        ctx.stroke();
      }
      ctx.restore();
    });
  }

  function look(curve, position) {
    if (!several) return {label: curve.name, stroke: () => colour(`--c${position % 8}`), width: 1.75};
    const slot = drawn.get(curve.run);
    if (slot === undefined) return {label: data.names[curve.run], stroke: () => colour("--muted"), width: 1, class: "unnamed"};
    return {label: data.names[curve.run], stroke: () => colour(`--c${slot % 8}`), width: 1.75, dash: DASHES[(slot >> 3) % 4]};
  }

  function chart(plot, box) {
    const log = logarithmic.has(plot.title);
    const grey = curve => several && !drawn.has(curve.run);
    const curves = [...plot.curves.filter(grey), ...plot.curves.filter(curve => !grey(curve))];  // colours above the greys
    const values = curve => log ? curve.y.map(value => value > 0 ? value : null) : curve.y;
    const joined = uPlot.join(curves.map(curve => [curve.x, values(curve)]));
    const axis = {
      stroke: () => colour("--faint"), grid: {stroke: () => colour("--grid"), width: 1}, ticks: {show: false},
      font: "12px system-ui, sans-serif", labelFont: "12px system-ui, sans-serif", labelSize: 20, labelGap: 2,
    };
    const isWhole = (least, most) => least === joined[0][0] && most === joined[0].at(-1);
    const points = curve => ({show: curve.x.length <= 40, size: 5});
    return new uPlot({
      width: box.clientWidth, height: HEIGHT,
      scales: {x: {time: false, range: (chart, least, most) => isWhole(least, most) ? steps : [least, most]}, y: {distr: log ? 3 : 1}},
      axes: [
        {...axis, label: "step", size: 28, values: (chart, found) => ticks(found)},
        {...axis, label: plot.unit || undefined, size: 58, values: (chart, found) => ticks(found)},
      ],
      series: [
        {label: "step", value: (chart, value) => shown(value)},
        ...curves.map((curve, position) => ({...look(curve, position), points: points(curve), value: (chart, value) => shown(value)})),
      ],
      cursor: {sync: {key: "steps", scales: ["x", null]}, dataIdx: nearest, drag: {x: true, y: false}, points: {size: 7}},
      hooks: {drawAxes: [restarts]},
    }, joined, box);
  }

  function draw() {
    charts.forEach(chart => chart.destroy());
    place.replaceChildren();
    const boxes = data.plots.map(plot => {
      const card = document.createElement("div"), title = document.createElement("h2"), note = document.createElement("small");
      card.className = "plot";
      title.textContent = plot.title;
      note.textContent = plot.curves.some(curve => curve.thinned) ? "least and greatest of each stretch of steps" : "";
      title.append(note);
      if (plot.log) {
        const button = document.createElement("button");
        button.className = "log";
        button.textContent = "log";
        button.title = "logarithmic scale";
        button.ariaPressed = logarithmic.has(plot.title);
        button.onclick = () => {
          logarithmic.has(plot.title) ? logarithmic.delete(plot.title) : logarithmic.add(plot.title);
          draw();
        };
        title.append(button);
      }
      const box = document.createElement("div");
      card.append(title, box);
      place.append(card);
      return box;
    });
    charts = data.plots.map((plot, number) => chart(plot, boxes[number]));  // now that the grid knows its widths
    document.documentElement.dataset.charts = charts.length;
  }

  function mark() {
    for (const button of document.querySelectorAll(".mark")) {
      const slot = drawn.get(Number(button.dataset.run));
      button.style.background = slot === undefined ? "" : `var(--c${slot % 8})`;
      button.ariaPressed = slot !== undefined;
    }
  }

  function choose(run) {
    if (drawn.has(run)) drawn.delete(run);
    else {
      const taken = new Set(drawn.values());
      let slot = 0;
      while (taken.has(slot)) slot++;
      drawn.set(run, slot);
    }
    mark();
    draw();
  }

  function sort(table, column) {
    const head = table.tHead.rows[0].cells[column], body = table.tBodies[0];
    const up = head.ariaSort !== "ascending", key = row => row.cells[column].dataset.v;
    for (const cell of table.tHead.rows[0].cells) cell.ariaSort = null;
    head.ariaSort = up ? "ascending" : "descending";
    const rows = [...body.rows].sort((a, b) => {
      const [x, y] = [key(a), key(b)];
      if (x === "" || y === "") return (x === "") - (y === "");  // what is unknown comes last, either way
      const order = isNaN(x) || isNaN(y) ? x.localeCompare(y) : x - y;
      return up ? order : -order;
    });
    body.append(...rows);
  }

  for (const button of document.querySelectorAll(".mark")) button.onclick = () => choose(Number(button.dataset.run));
  for (const table of document.querySelectorAll(".runs")) {
    [...table.tHead.rows[0].cells].forEach((cell, column) => {
      cell.className = table.tBodies[0].rows[0].cells[column].className;
      cell.firstChild.onclick = () => sort(table, column);
    });
  }
  const dark = matchMedia("(prefers-color-scheme: dark)");
  const turn = theme => { document.documentElement.dataset.theme = theme; draw(); };
  dark.onchange = () => turn(dark.matches ? "dark" : "light");
  document.getElementById("theme").onclick = () => turn(document.documentElement.dataset.theme === "dark" ? "light" : "dark");
  let width = innerWidth;
  onresize = () => {
    if (innerWidth === width) return;
    width = innerWidth;
    charts.forEach(chart => chart.setSize({width: chart.root.parentElement.clientWidth, height: HEIGHT}));
  };
  mark();
  draw();
})();
