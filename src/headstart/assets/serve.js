"use strict";
(() => {
  const LIMITS = document.querySelector("main").dataset;
  const AT_ONCE = 4; // requests; more files wait here, not at the server
  const PREVIEW_BYTES = 8 * 2 ** 20; // larger files get no preview
  const RETRIES = 8;
  const HEAT = {{ HEAT|tojson }}.map((color) => [1, 3, 5].map((at) => Number.parseInt(color.slice(at, at + 2), 16)));

  const find = (id) => document.getElementById(id);
  const results = find("results");
  const queue = [];
  let running = 0, added = 0, done = 0;

  function element(tag, className, text) {
    const made = document.createElement(tag);
    if (className) made.className = className;
    if (text !== undefined) made.textContent = text;
    return made;
  }

  function button(text, act) {
    const made = element("button", "quiet", text);
    made.type = "button";
    made.addEventListener("click", act);
    return made;
  }

  function percent(share) {
    if (share > 0.999 && share < 1) return "> 99.9%";
    if (share < 0.001 && share > 0) return "< 0.1%";
    return (100 * share).toFixed(1) + "%";
  }

  function either(names) {
    const shown = names.slice(0, 5);
    const more = names.length - shown.length;
    return shown.join(" or ") + (more > 0 ? ` or one of ${more} others` : "");
  }

  function announce(text) {
    find("live").textContent = text;
  }

  function count() {
    find("count").textContent = added === 0 ? "" : done < added ? `${done} of ${added} images done` : `${added} ${added === 1 ? "image" : "images"} done`;
    find("clear").hidden = results.children.length < 2;
  }

  function add(files) {
    const cards = [];
    for (const file of files) {
      added += 1;
      const card = element("li", "waiting");
      const title = element("h2", "name", file.name || "pasted image");
      title.id = `image-${added}`;
      card.setAttribute("aria-labelledby", title.id);
      const figure = element("figure");
      const picture = element("div", "picture");
      figure.append(picture);
      const body = element("div");
      body.append(title, element("p", "headline", "Waiting…"));
      card.append(figure, body);
      if (file.type.startsWith("image/") && file.size <= PREVIEW_BYTES) {
        const image = element("img");
        image.alt = "";
        image.src = URL.createObjectURL(file);
        image.addEventListener("load", () => URL.revokeObjectURL(image.src), { once: true });
        image.addEventListener("error", () => image.remove(), { once: true });
        picture.append(image);
      }
      cards.push(card);
      queue.push({ file, card, figure, picture, body, title });
    }
    results.prepend(...cards);
    count();
    next();
  }

  function next() {
    while (running < AT_ONCE && queue.length > 0) {
      running += 1;
      const item = queue.shift();
      classify(item.file)
        .then((prediction) => show(item, prediction), (problem) => refuse(item, problem.message))
        .finally(() => {
          running -= 1;
          done += 1;
          item.card.classList.remove("waiting");
          count();
          next();
        });
    }
  }

  async function classify(file) {
    if (file.size > Number(LIMITS.maxBytes)) throw new Error(`the file is larger than ${LIMITS.maxMib} MiB`);
    let content;
    try {
      content = await file.arrayBuffer();
    } catch {
      throw new Error("the browser cannot read it; to add a folder, open it and drop its images");
    }
    for (let attempt = 0; ; attempt += 1) {
      let response;
      try {
        response = await fetch("predict?top=5&gradcam=true&preprocessed=true", {
          method: "POST",
          headers: { "Content-Type": "application/octet-stream" },
          body: content,
        });
      } catch {
        throw new Error("the server cannot be reached; is it still running?");
      }
      if (response.ok) return (await response.json()).results[0];
      if (response.status !== 503 || attempt === RETRIES) {
        const problem = await response.json().catch(() => null);
        throw new Error(problem?.detail ?? `the server responded with ${response.status}`);
      }
      const seconds = Number(response.headers.get("Retry-After")) || 1;
      await new Promise((resolve) => setTimeout(resolve, 1000 * seconds * (1 + Math.random())));
    }
  }

  function show({ card, figure, picture, body, title }, prediction) {
    const image = element("img");
    image.alt = `${title.textContent} as the model received it`;
    image.src = prediction.preprocessed;
    picture.replaceChildren(image);

    const none = prediction.none_of_these === true;
    const confidence = percent(prediction.probability);
    const headline = none ? "None of these" : `${prediction.label}, ${confidence}`;
    body.replaceChildren(title, element("p", "headline", headline));
    if (none) {
      card.classList.add("doubted");
      body.append(element("p", "note warn", `Unlike the training images. The nearest class is ${prediction.label}.`));
    } else if (prediction.prediction_set?.length > 1) {
      body.append(element("p", "note", `Not certain: it may be ${either(prediction.prediction_set)}.`));
    }

    const bars = element("ol", "bars");
    bars.setAttribute("aria-label", "Probabilities");
    for (const { class: name, probability } of prediction.top) {
      const row = element("li");
      const text = element("div");
      text.append(element("span", "what", name), element("span", "share", percent(probability)));
      const track = element("span", "track");
      track.setAttribute("aria-hidden", "true");
      const bar = element("span");
      bar.style.width = `${100 * probability}%`;
      track.append(bar);
      row.append(text, track);
      bars.append(row);
    }
    body.append(bars);

    const actions = element("div", "actions");
    if (prediction.gradcam) actions.append(gradcamButton(prediction, { card, figure, picture }));
    actions.append(remover(card, title));
    body.append(actions);
    announce(`${title.textContent}: ${headline}`);
  }

  function gradcamButton(prediction, { card, figure, picture }) {
    const map = heatMap(prediction.gradcam);
    const legend = element("figcaption");
    const scale = element("p", "heat-scale soft small");
    scale.append(element("span", "", `Grad-CAM: evidence for ${prediction.label}`), element("i"), element("span", "", "none"), element("span", "", "strongest"));
    legend.append(scale);
    const look = button("Show Grad-CAM", () => {
      const on = look.getAttribute("aria-pressed") !== "true";
      look.setAttribute("aria-pressed", String(on));
      card.classList.toggle("looked", on);
      if (on) {
        picture.append(map);
        figure.append(legend);
      } else {
        map.remove();
        legend.remove();
      }
    });
    look.setAttribute("aria-pressed", "false");
    return look;
  }

  function refuse({ card, figure, body, title }, why) {
    figure.remove();
    card.classList.add("refused");
    const actions = element("div", "actions");
    actions.append(remover(card, title));
    body.replaceChildren(title, element("p", "why", `Not classified: ${why}.`), actions);
    announce(`${title.textContent} was not classified: ${why}`);
  }

  function remover(card, title) {
    const made = button("Remove", () => {
      const neighbour = card.nextElementSibling ?? card.previousElementSibling;
      card.remove();
      forget(1);
      (neighbour?.querySelector(".actions button:last-child") ?? find("pick")).focus();
      announce(`${title.textContent} removed`);
    });
    made.setAttribute("aria-label", `Remove ${title.textContent}`);
    return made;
  }

  function forget(number) {
    added -= number;
    done -= number;
    count();
  }

  // a number in 0..1 -> red, green and blue
  function heatColor(share) {
    const place = share * (HEAT.length - 1), low = Math.min(Math.floor(place), HEAT.length - 2);
    return HEAT[low].map((value, channel) => Math.round(value + (place - low) * (HEAT[low + 1][channel] - value)));
  }

  // rows of numbers in 0..1 -> a canvas over the picture
  function heatMap(rows) {
    const small = element("canvas");
    small.width = rows[0].length;
    small.height = rows.length;
    const pixels = new ImageData(small.width, small.height);
    rows.flat().forEach((share, place) => pixels.data.set([...heatColor(share), 140], 4 * place));
    small.getContext("2d").putImageData(pixels, 0, 0);
    const map = element("canvas");
    map.width = map.height = 224;
    map.setAttribute("role", "img");
    map.setAttribute("aria-label", "Grad-CAM map");
    const context = map.getContext("2d");
    context.imageSmoothingQuality = "high";
    context.drawImage(small, 0, 0, map.width, map.height);
    return map;
  }

  find("pick").addEventListener("click", () => find("files").click());
  find("files").addEventListener("change", (event) => {
    add(event.target.files);
    event.target.value = "";
  });
  find("clear").addEventListener("click", () => {
    const finished = [...results.children].filter((card) => !card.classList.contains("waiting"));
    finished.forEach((card) => card.remove());
    forget(finished.length);
    find("pick").focus();
    announce("All removed");
  });

  let inside = 0; // dragenter and dragleave come for every element on the way
  const over = (change) => {
    inside = Math.max(0, inside + change);
    document.body.classList.toggle("over", inside > 0);
  };
  addEventListener("dragenter", (event) => { event.preventDefault(); over(1); });
  addEventListener("dragleave", () => over(-1));
  addEventListener("dragover", (event) => event.preventDefault());
  addEventListener("drop", (event) => {
    event.preventDefault();
    inside = 0;
    over(0);
    const files = event.dataTransfer.files;
    if (files.length > 0) add(files);
    else showMessage("That was not a file. Save the image first, or copy it and paste it here.");
  });
  addEventListener("paste", (event) => {
    const files = event.clipboardData.files;
    if (files.length > 0) add(files);
    else showMessage("There is no image in the clipboard.");
  });

  function showMessage(text) {
    find("count").textContent = text;
    announce(text);
  }
})();
