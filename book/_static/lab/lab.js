// The attack lab: two networks, one digit, BIM step by step. `network.js` computes, in a worker each;
// `weights.js`, written when the book is built, holds the networks and the digits.

(() => {
  "use strict";

  const lab = document.getElementById("lab");
  if (!lab || !window.advlibLab) return;
  const { networks, digits } = window.advlibLab;
  const SIDE = 28;
  const STEPS = 20;
  const PAUSE = 50; // milliseconds from one step to the next, at least: slow enough to watch

  // -- what the page shows ------------------------------------------------------------------------

  const make = (tag, options = {}, ...children) => {
    const node = document.createElement(tag);
    for (const [key, value] of Object.entries(options)) {
      if (key in node) node[key] = value;
      else node.setAttribute(key, value);
    }
    node.append(...children);
    return node;
  };

  const canvas = (label) =>
    make("canvas", {
      width: SIDE,
      height: SIDE,
      className: "lab-image",
      role: label ? "img" : "presentation", // a button's picture needs no second name
      "aria-label": label,
    });

  // `colour` turns one number into red, green and blue from 0 to 255.
  function paint(target, values, colour) {
    const context = target.getContext("2d");
    const picture = context.createImageData(SIDE, SIDE);
    values.forEach((value, i) => picture.data.set([...colour(value), 255], 4 * i));
    context.putImageData(picture, 0, 0);
  }

  const grey = (value) => Array(3).fill(Math.round(255 * value));
  // blue where pixels got darker, orange where they got brighter: Okabe and Ito's
  const signed = (most) => (value) => {
    const part = Math.min(Math.abs(value) / most, 1);
    const end = value < 0 ? [0, 114, 178] : [230, 159, 0];
    return end.map((channel) => Math.round(255 + part * (channel - 255)));
  };

  // -- the two networks ---------------------------------------------------------------------------

  // Runs in the worker. A new message ends the attack that is under way.
  function work({ network, logits, softmax, step }) {
    let net = null;
    let latest = 0;
    onmessage = async ({ data }) => {
      if (data.weights) {
        net = network(data);
        return;
      }
      const { job, clean, label, eps, alpha, steps, pause } = data;
      latest = job;
      let image = clean;
      for (let done = 0; ; done++) {
        const scores = logits(net, image);
        postMessage({ job, done, image, probabilities: softmax(scores) });
        if (done === steps) return;
        await new Promise((resolve) => setTimeout(resolve, pause));
        if (latest !== job) return;
        image = step(net, image, scores, clean, label, eps, alpha);
      }
    };
  }

  function worker(stored) {
    const source = `"use strict";\n(${work})((${advlibNetwork})());`;
    const started = new Worker(
      URL.createObjectURL(new Blob([source], { type: "text/javascript" })),
    );
    started.postMessage(stored);
    return started;
  }

  class Panel {
    constructor(name, stored) {
      this.name = name;
      this.worker = worker(stored);
      this.picture = canvas(`What the ${name} network sees`);
      this.change = canvas(`The perturbation of the ${name} network's image`);
      this.rows = Array.from({ length: 10 }, (_, digit) => {
        const bar = make("span", { className: "lab-bar" });
        const number = make("span", { className: "lab-number" });
        const row = make(
          "li",
          {},
          make("span", { textContent: digit }),
          make("span", { className: "lab-track" }, bar),
          number,
        );
        return { row, bar, number };
      });
      this.verdict = make("p", { className: "lab-verdict" });
      this.node = make(
        "section",
        { className: "lab-panel", "aria-label": `${name} network` },
        make("h3", { textContent: `${name[0].toUpperCase()}${name.slice(1)} network` }),
        make(
          "div",
          { className: "lab-pictures" },
          make("figure", {}, this.picture, make("figcaption", { textContent: "image" })),
          make("figure", {}, this.change, make("figcaption", { textContent: "perturbation" })),
        ),
        make("ol", { className: "lab-probabilities" }, ...this.rows.map(({ row }) => row)),
        this.verdict,
      );
    }

    show({ done, image, probabilities }, { clean, label, eps }) {
      paint(this.picture, image, grey);
      paint(
        this.change,
        image.map((pixel, i) => pixel - clean[i]),
        signed(eps || 1),
      );
      const answer = probabilities.indexOf(Math.max(...probabilities));
      const right = label === null || answer === label;
      this.answer = answer;
      this.rows.forEach(({ row, bar, number }, digit) => {
        bar.style.width = `${100 * probabilities[digit]}%`;
        number.textContent = probabilities[digit].toFixed(2);
        row.className = digit === answer ? (right ? "lab-right" : "lab-wrong") : "";
      });
      this.verdict.textContent = `says ${answer}, ${right ? "right ✓" : "wrong ✗"}${done ? ` after step ${done}` : ""}`;
    }
  }

  // -- choosing a digit ---------------------------------------------------------------------------

  const pixels = (text) => Float32Array.from(atob(text), (letter) => letter.charCodeAt(0) / 255);

  // A drawing as the networks know digits: the ink fitted into 20 by 20 pixels, in the middle.
  function fitted(drawing) {
    const { width } = drawing;
    const ink = drawing.getContext("2d").getImageData(0, 0, width, width).data;
    let [left, top, right, bottom] = [width, width, -1, -1];
    for (let i = 0; i < width * width; i++) {
      if (ink[4 * i + 3] < 30) continue;
      const [x, y] = [i % width, Math.floor(i / width)];
      [left, right] = [Math.min(left, x), Math.max(right, x)];
      [top, bottom] = [Math.min(top, y), Math.max(bottom, y)];
    }
    const image = new Float32Array(SIDE * SIDE);
    if (right < 0) return image;
    const size = Math.max(right - left, bottom - top) + 1;
    const scale = 20 / size;
    const small = make("canvas", { width: SIDE, height: SIDE });
    const context = small.getContext("2d");
    context.imageSmoothingQuality = "high";
    const [w, h] = [(right - left + 1) * scale, (bottom - top + 1) * scale];
    context.drawImage(
      drawing,
      left,
      top,
      right - left + 1,
      bottom - top + 1,
      (SIDE - w) / 2,
      (SIDE - h) / 2,
      w,
      h,
    );
    const found = context.getImageData(0, 0, SIDE, SIDE).data;
    return image.map((_, i) => found[4 * i + 3] / 255);
  }

  function pad(changed) {
    const board = make("canvas", {
      width: 280,
      height: 280,
      className: "lab-pad",
      "aria-label": "Draw a digit here with the mouse or a finger",
      role: "img",
    });
    const context = board.getContext("2d");
    Object.assign(context, {
      lineWidth: 24,
      lineCap: "round",
      lineJoin: "round",
      strokeStyle: "#fff",
    });
    const at = (event) => {
      const box = board.getBoundingClientRect();
      return [
        ((event.clientX - box.left) * 280) / box.width,
        ((event.clientY - box.top) * 280) / box.height,
      ];
    };
    let drawing = false;
    board.addEventListener("pointerdown", (event) => {
      board.setPointerCapture(event.pointerId);
      drawing = true;
      context.beginPath();
      context.moveTo(...at(event));
      context.lineTo(...at(event));
      context.stroke();
    });
    board.addEventListener("pointermove", (event) => {
      if (!drawing) return;
      context.lineTo(...at(event));
      context.stroke();
    });
    for (const end of ["pointerup", "pointercancel"]) {
      board.addEventListener(end, () => {
        drawing = false;
        changed(fitted(board));
      });
    }
    const clear = () => context.clearRect(0, 0, 280, 280);
    return { board, clear };
  }

  // -- putting it together ------------------------------------------------------------------------

  const state = { clean: null, label: null, eps: 0.1 };
  const panels = Object.entries(networks).map(([name, stored]) => new Panel(name, stored));
  const status = make("p", { className: "lab-status", "aria-live": "polite" });
  let job = 0;

  // Let both networks look at the image, and attack it in so many steps.
  function run(steps) {
    job += 1;
    const { clean, label, eps } = state;
    let waiting = panels.length;
    lab.dataset.state = "running";
    status.textContent = steps ? `BIM, ${steps} steps, eps ${eps.toFixed(2)}` : "";
    for (const panel of panels) {
      panel.worker.onmessage = ({ data }) => {
        if (data.job !== job) return;
        panel.show(data, { clean, label, eps });
        if (data.done < steps || --waiting) return;
        lab.dataset.state = "done";
        if (steps)
          status.textContent += `. ${panels.map((p) => `${p.name}: ${p.verdict.textContent}`).join("; ")}`;
        else if (label === null) settle();
      };
      panel.worker.postMessage({
        job,
        clean,
        label,
        eps,
        alpha: eps / 8,
        steps,
        pause: steps ? PAUSE : 0,
      });
    }
  }

  // A drawing counts as what the last network takes it for, until the reader says what it is.
  function settle() {
    meant.value = panels.at(-1).answer;
    choose(state.clean, Number(meant.value));
  }

  function choose(clean, label) {
    Object.assign(state, { clean, label });
    run(0);
  }

  function press(chosen) {
    for (const button of thumbnails) button.setAttribute("aria-pressed", String(button === chosen));
    own.hidden = chosen !== null;
  }

  const button = (text, act, className = "") => {
    const node = make("button", { type: "button", textContent: text, className });
    node.addEventListener("click", act);
    return node;
  };

  const thumbnails = digits.map(({ pixels: text, label }, i) => {
    const picture = canvas("");
    paint(picture, pixels(text), grey);
    const node = button(
      "",
      () => {
        drawing.clear();
        press(node);
        choose(pixels(text), label);
      },
      "lab-thumbnail",
    );
    node.setAttribute("aria-label", `Test image ${i + 1}, a ${label}`);
    node.append(picture);
    return node;
  });

  const drawing = pad((image) => {
    press(null);
    choose(image, null);
  });
  const meant = make(
    "select",
    { id: "lab-meant" },
    ...Array.from({ length: 10 }, (_, digit) =>
      make("option", { value: digit, textContent: digit }),
    ),
  );
  meant.addEventListener("change", () => choose(state.clean, Number(meant.value)));
  const own = make(
    "p",
    { hidden: true },
    make("label", { htmlFor: "lab-meant", textContent: "You drew a " }),
    meant,
    " ",
    button("Clear", () => thumbnails.at(-1).click()),
  );

  const shown = make("output", { htmlFor: "lab-eps", textContent: state.eps.toFixed(2) });
  const slider = make("input", {
    type: "range",
    id: "lab-eps",
    min: 0,
    max: 0.3,
    step: 0.01,
    value: state.eps,
  });
  slider.addEventListener("input", () => {
    state.eps = Number(slider.value);
    shown.textContent = state.eps.toFixed(2);
  });

  lab.replaceChildren(
    make(
      "div",
      { className: "lab-choice" },
      make(
        "div",
        { className: "lab-thumbnails", role: "group", "aria-label": "Test images" },
        ...thumbnails,
      ),
      make(
        "div",
        { className: "lab-draw" },
        drawing.board,
        make("div", {}, make("p", { textContent: "Or draw a digit." }), own),
      ),
    ),
    make(
      "div",
      { className: "lab-controls" },
      make("label", { htmlFor: "lab-eps", textContent: "eps" }),
      slider,
      shown,
      button("Attack", () => state.label !== null && run(STEPS), "lab-attack"),
      button("Reset", () => run(0)),
    ),
    status,
    make("div", { className: "lab-panels" }, ...panels.map((panel) => panel.node)),
  );
  thumbnails.at(-1).click();
})();
