// Two pixels to drag: a model, the eps-square around an image, FGSM's step and BIM's path. It takes the
// place of a still picture in chapters 2 and 4, which stays where there is no script.

window.advlibPixels = (() => {
  "use strict";

  // The margin is outer * f(inner x + offsets) + last; f is tanh, or nothing for a line.
  const MODELS = {
    "a straight line": { inner: [[2, -1]], offsets: [0], outer: [1], last: -0.35, curved: false },
    "a curved network": {
      inner: [
        [-7, 6],
        [2, -4],
      ],
      offsets: [-2.3, 1.6],
      outer: [1.1, 1.2],
      last: 0.5,
      curved: true,
    },
  };
  const STEPS = 20;
  const [SIDE, CELLS] = [100, 50];
  // prettier-ignore
  const UNIT = [[-1, -1], [1, -1], [1, 1], [-1, 1]];

  // -- the models and the attacks -------------------------------------------------------------------

  const hidden = ({ inner, offsets, curved }, [a, b]) =>
    inner.map(([u, v], j) => {
      const sum = u * a + v * b + offsets[j];
      return curved ? Math.tanh(sum) : sum;
    });

  const margin = (model, x) =>
    hidden(model, x).reduce((sum, h, j) => sum + model.outer[j] * h, model.last);

  function gradient(model, x) {
    const slopes = hidden(model, x).map((h, j) => model.outer[j] * (model.curved ? 1 - h * h : 1));
    return [0, 1].map((i) => slopes.reduce((sum, s, j) => sum + s * model.inner[j][i], 0));
  }

  const clip = (value, low, high) => Math.min(Math.max(value, low), high);

  // Every image from `x` to the end of BIM. FGSM is one step of eps.
  function path(model, x, eps, alpha, steps) {
    const images = [x];
    for (let k = 0; k < steps; k++) {
      const slopes = gradient(model, images[k]);
      images.push(
        images[k].map((value, i) => {
          const moved = value - alpha * Math.sign(slopes[i]);
          return clip(x[i] + clip(moved - x[i], -eps, eps), 0, 1);
        }),
      );
    }
    return images;
  }

  // -- the picture ----------------------------------------------------------------------------------

  function make(tag, attributes = {}, ...children) {
    const drawn = /^(svg|g|path|rect|circle|text)$/.test(tag);
    const space = drawn ? "http://www.w3.org/2000/svg" : "http://www.w3.org/1999/xhtml";
    const node = document.createElementNS(space, tag);
    for (const [name, value] of Object.entries(attributes)) node.setAttribute(name, value);
    node.append(...children);
    return node;
  }

  const at = ([a, b]) => `${(SIDE * a).toFixed(2)} ${(SIDE * (1 - b)).toFixed(2)}`;
  const line = (points) => `M${points.map(at).join("L")}`;
  // the corners of a square, and the same as a cross
  const corners = ([a, b], s) => UNIT.map(([right, up]) => [a + s * right, b + s * up]);
  const square = (centre, s) => `${line(corners(centre, s))}Z`;
  function cross(centre, s = 0.018) {
    const [a, b, c, d] = corners(centre, s);
    return line([a, c]) + line([b, d]);
  }
  const dots = (points) => points.map((p) => `M${at(p)}h0`).join(""); // round caps

  // Of each small cell the part where the margin is negative, and the border through it.
  function regions(model) {
    let [wrong, border] = ["", ""];
    for (let n = 0; n < CELLS * CELLS; n++) {
      const middle = [((n % CELLS) + 0.5) / CELLS, (Math.floor(n / CELLS) + 0.5) / CELLS];
      const cell = corners(middle, 0.5 / CELLS);
      const values = cell.map((corner) => margin(model, corner));
      const [inside, crossed] = [[], []];
      cell.forEach((corner, k) => {
        const next = (k + 1) % 4;
        if (values[k] < 0) inside.push(corner);
        if (values[k] < 0 === values[next] < 0) return;
        const part = values[k] / (values[k] - values[next]);
        const point = corner.map((value, axis) => value + part * (cell[next][axis] - value));
        inside.push(point);
        crossed.push(point);
      });
      if (inside.length) wrong += `${line(inside)}Z`;
      if (crossed.length) border += line(crossed);
    }
    return { wrong, border };
  }

  // -- the widget -----------------------------------------------------------------------------------

  const PLACES = [0.16, 0.5, 0.84].flatMap((a) => [0.1, 0.5, 0.9].map((b) => [a, b]));
  const said = (value) => value.toFixed(2).replace("-", "−");
  const verdict = (value) => `${value < 0 ? "wrong ✗" : "right ✓"} (margin ${said(value)})`;

  function start(figure, { name, x, eps, both }) {
    const shapes = {};
    for (const shape of ["wrong", "border", "square", "fgsm", "bim", "dots"])
      shapes[shape] = make("path", { class: `pixels-${shape}` });
    const point = make(
      "g",
      {
        class: "pixels-point",
        role: "slider",
        tabindex: 0,
        "aria-label": "The image, moved by the arrow keys",
        "aria-valuemin": 0,
        "aria-valuemax": 1,
      },
      make("circle", { class: "pixels-reach", r: 8 }),
      make("circle", { r: 2 }),
    );
    const label = (text, more = {}) => make("text", more, text);
    const names = [label("wrong side"), label("right side")];
    const picture = make(
      "svg",
      { viewBox: "-8 -1 109 110", role: "group", "aria-label": "The plane of two pixels" },
      make("rect", { class: "pixels-right", width: SIDE, height: SIDE }),
      ...Object.values(shapes),
      ...names,
      label("pixel 1", { x: 50, y: 106 }),
      label("pixel 2", { x: -50, y: -3, transform: "rotate(-90)" }),
      point,
    );
    const budget = make("input", { type: "range", min: 0, max: 0.3, step: 0.01, value: eps });
    const number = make("span");
    const choice = make("select", {}, ...Object.keys(MODELS).map((key) => make("option", {}, key)));
    choice.value = name;
    const controls = make("div", { class: "pixels-controls" });
    if (both) controls.append(make("label", {}, "Model ", choice));
    controls.append(make("label", {}, "eps ", budget), number);
    const status = make("p", { class: "pixels-status", role: "status" });
    const help = both
      ? "Dashed, ending in a cross: FGSM's one step. Dotted: BIM's twenty steps of eps/10."
      : "Dashed, ending in a cross: a step of eps against the sign of each weight.";
    const words = make("p", {}, `Drag the point, or move it by the arrow keys. ${help}`);
    const widget = make("div", { class: "pixels" }, words, controls, picture, status);

    function show() {
      const model = MODELS[choice.value];
      eps = Number(budget.value);
      number.textContent = eps.toFixed(2);
      const single = path(model, x, eps, eps, 1);
      const many = path(model, x, eps, eps / 10, STEPS);
      const drawn = {
        square: square(x, eps),
        fgsm: line(single) + cross(single[1]),
        bim: both ? line(many) : "",
        dots: both ? dots(many) : "",
      };
      for (const [shape, d] of Object.entries(drawn)) shapes[shape].setAttribute("d", d);
      point.setAttribute("transform", `translate(${at(x)})`);
      point.setAttribute("aria-valuenow", x[0]);
      point.setAttribute("aria-valuetext", `pixel 1 ${said(x[0])}, pixel 2 ${said(x[1])}`);
      const [before, one, last] = [x, single[1], many[STEPS]].map((p) => margin(model, p));
      const ends = both
        ? `After FGSM: ${verdict(one)}. After BIM: ${verdict(last)}.`
        : `At the worst corner: ${verdict(one)}.`;
      status.textContent = `The image: ${verdict(before)}. ${ends}`;
    }

    function choose() {
      const model = MODELS[choice.value];
      for (const [shape, d] of Object.entries(regions(model))) shapes[shape].setAttribute("d", d);
      // each side's name stands where the model is surest
      const sure = PLACES.toSorted((a, b) => margin(model, a) - margin(model, b));
      [sure[0], sure.at(-1)].forEach((place, i) => {
        names[i].setAttribute("transform", `translate(${at(place)})`);
      });
      show();
    }

    function move(to) {
      x = to.map((value) => Number(clip(value, 0, 1).toFixed(3)));
      show();
    }

    function follow({ clientX, clientY }) {
      const { x: across, y: down } = new DOMPoint(clientX, clientY).matrixTransform(
        picture.getScreenCTM().inverse(),
      );
      move([across / SIDE, 1 - down / SIDE]);
    }

    const ARROWS = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowDown: [0, -1], ArrowUp: [0, 1] };
    point.addEventListener("keydown", (event) => {
      const arrow = ARROWS[event.key];
      if (!arrow) return;
      event.preventDefault();
      event.stopPropagation(); // the theme turns pages by arrows
      move(x.map((value, i) => value + (event.shiftKey ? 0.1 : 0.02) * arrow[i]));
    });
    point.addEventListener("pointerdown", (event) => point.setPointerCapture(event.pointerId));
    point.addEventListener("touchstart", (event) => event.preventDefault()); // the page stays put
    point.addEventListener("pointermove", (event) => {
      if (point.hasPointerCapture(event.pointerId)) follow(event);
    });
    picture.addEventListener("click", follow);
    budget.addEventListener("input", show);
    choice.addEventListener("change", choose);
    choose();
    figure.querySelector("img").classList.add("pixels-still");
    figure.prepend(widget);
  }

  const places = {
    "fig-linear": { name: "a straight line", x: [0.52, 0.5], eps: 0.1, both: false },
    "fig-projection": { name: "a curved network", x: [0.14, 0.8], eps: 0.15, both: true },
  };
  for (const [id, settings] of Object.entries(places)) {
    const figure = document.getElementById(id);
    if (figure) start(figure, settings);
  }
  return { MODELS, margin, path };
})();
