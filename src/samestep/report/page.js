"use strict";
(() => {
  const data = JSON.parse(document.getElementById("data").textContent);
  const place = document.getElementById("plots");
  const several = data.names.length > 1;
  const DASHES = [[], [8, 4], [2, 3], [10, 3, 2, 3]];  // once the eight colours are taken, or where lines coincide
  const HEIGHT = 260;
  const colour = name => getComputedStyle(document.documentElement).getPropertyValue(name).trim();
  const drawn = new Map(data.drawn.map((run, slot) => [run, slot]));  // run → its colour's number
  const logarithmic = new Set(data.plots.filter(plot => plot.bent).map(plot => plot.title));
  const steps = [0, Math.max(1, ...data.plots.flatMap(plot => plot.curves.map(curve => curve.x.at(-1))))];  // of all plots alike
  let charts = [];

  function shown(value) {
    if (value == null) return "";
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

  // A ring around each curve's best point, in its colour.
  function bests(chart, curves) {
    const {ctx, bbox} = chart, ratio = devicePixelRatio;
    curves.forEach((curve, position) => {
      if (!curve.best || isGrey(curve)) return;
      const [x, y] = [chart.valToPos(curve.best[0], "x", true), chart.valToPos(curve.best[1], "y", true)];
      if (x < bbox.left - 1 || x > bbox.left + bbox.width + 1 || y < bbox.top || y > bbox.top + bbox.height) return;
      ctx.save();
      ctx.strokeStyle = look(curve, position).stroke();
      ctx.lineWidth = 2 * ratio;
      ctx.beginPath();
      ctx.arc(x, y, 6 * ratio, 0, 2 * Math.PI);
      ctx.stroke();
      ctx.restore();
    });
  }

  const isGrey = curve => several && !drawn.has(curve.run);

  function look(curve, position) {
    if (!several) {
      const best = curve.best ? ` (best ○ ${shown(curve.best[1])} at step ${shown(curve.best[0])})` : "";
      return {label: curve.name + best, stroke: () => colour(`--c${position % 8}`), width: 1.75};
    }
    if (isGrey(curve)) return {label: data.names[curve.run], stroke: () => colour("--muted"), width: 1, class: "unnamed"};
    const slot = drawn.get(curve.run);
    return {label: data.names[curve.run], stroke: () => colour(`--c${slot % 8}`), width: 1.75, turn: slot >> 3};
  }

  // How many earlier lines each one lies on, where both have points: it is dashed, and shows them through.
  function overlaps(curves, values, log) {
    const height = value => log ? Math.log(value) : value;
    const [least, most] = extent(curves.map(values));
    const close = (height(most) - height(least)) / (HEIGHT / 2);
    const points = curves.map((curve, number) => new Map(isGrey(curve) ? [] : curve.x.map((x, at) => [x, values(curve)[at]])));
    const covers = (above, below) => {
      let both = 0, near = 0;
      for (const [x, value] of points[above]) {
        const other = points[below].get(x);
        if (value == null || other == null) continue;
        both++;
        near += Math.abs(height(value) - height(other)) <= close;
      }
      return both > 1 && near >= both / 2;
    };
    return curves.map((curve, above) => curves.slice(0, above).filter((_, below) => covers(above, below)).length);
  }

  function extent(columns) {
    let least = Infinity, most = -Infinity;
    for (const column of columns) for (const value of column) if (value != null) {
      least = Math.min(least, value);
      most = Math.max(most, value);
    }
    return [least, most];
  }

  // An axis on which a value that stays the same stands in the middle, above zero.
  function span(plot, log, least, most) {
    if (least == null) return log ? [1, 10] : [0, 1];
    if (plot.zero) return [0, most * 1.08 || 1];
    const isConstant = most - least <= 1e-6 * Math.abs(most);
    const room = isConstant ? 10 : (most / least) ** 0.05;
    if (log) return [least / room, most * room];
    if (isConstant) return most ? [Math.min(0, 2 * most), Math.max(0, 2 * most)] : [-1, 1];
    return uPlot.rangeNum(least, most, 0.1, true);
  }

  function chart(plot, box) {
    const log = logarithmic.has(plot.title);
    const curves = [...plot.curves.filter(isGrey), ...plot.curves.filter(curve => !isGrey(curve))];  // colours above the greys
    const values = curve => log ? curve.y.map(value => value > 0 ? value : null) : curve.y;
    const lies = overlaps(curves, values, log);
    const joined = uPlot.join(curves.map(curve => [curve.x, values(curve)]));
    const axis = {
      stroke: () => colour("--faint"), grid: {stroke: () => colour("--grid"), width: 1}, ticks: {show: false},
      font: "12px system-ui, sans-serif", labelFont: "12px system-ui, sans-serif", labelSize: 20, labelGap: 2,
    };
    const isWhole = (least, most) => least === joined[0][0] && most === joined[0].at(-1);
    const series = (curve, position) => {
      const {turn = 0, ...looks} = look(curve, position), last = values(curve).findLast(value => value != null);
      const value = (chart, value, series, at) => shown(at == null ? last : value);  // the last, until a cursor is there
      return {...looks, dash: DASHES[lies[position] ? 1 + (lies[position] - 1) % 3 : turn % 4], points: points(curve), value};
    };
    const points = curve => ({show: curve.x.length <= 40, size: 5});
    return new uPlot({
      width: box.clientWidth, height: HEIGHT,
      scales: {x: {time: false, range: (chart, least, most) => isWhole(least, most) ? steps : [least, most]}, y: {distr: log ? 3 : 1, range: (chart, least, most) => span(plot, log, least, most)}},
      axes: [
        {...axis, label: "step", size: 28, values: (chart, found) => ticks(found)},
        {...axis, label: plot.unit || undefined, size: 58, values: (chart, found) => ticks(found)},
      ],
      series: [
        {label: "step", value: (chart, value, series, at) => shown(at == null ? joined[0].at(-1) : value)},
        ...curves.map(series),
      ],
      legend: {markers: {dash: (chart, series) => chart.series[series].dash?.length ? "dashed" : "solid"}},
      cursor: {sync: {key: "steps", scales: ["x", null]}, dataIdx: nearest, drag: {x: true, y: false}, points: {size: 7}},
      hooks: {drawAxes: [restarts], draw: [chart => bests(chart, curves)]},
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
