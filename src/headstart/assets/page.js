"use strict";
(() => {
  const root = document.documentElement, themeButton = document.getElementById("theme"), system = matchMedia("(prefers-color-scheme: dark)");

  function element(tag, className, text) {
    const made = document.createElement(tag);
    if (className) made.className = className;
    if (text !== undefined) made.textContent = text;
    if (tag === "button") made.type = "button";
    return made;
  }

  // light and dark
  const isDark = () => (root.dataset.theme || (system.matches ? "dark" : "light")) === "dark";
  function nameTheme() {
    themeButton.textContent = isDark() ? "Light" : "Dark";
    themeButton.setAttribute("aria-label", `Switch to ${isDark() ? "light" : "dark"} colours`);
  }
  themeButton.hidden = false;
  themeButton.addEventListener("click", () => {
    root.dataset.theme = isDark() ? "light" : "dark";
    try { localStorage.setItem("theme", root.dataset.theme); } catch {}
    nameTheme();
  });
  system.addEventListener("change", nameTheme);
  nameTheme();

  // tables that a click on a heading sorts
  function sortable(table) {
    const body = table.tBodies[0];
    let column = 0;
    for (const heading of table.tHead.rows[0].cells) {
      const place = column;
      column += heading.colSpan;
      if (heading.tagName !== "TH" || "unsorted" in heading.dataset) continue;
      const button = element("button", "sort", heading.textContent);
      heading.replaceChildren(button);
      button.addEventListener("click", () => {
        const direction = heading.getAttribute("aria-sort") === "ascending" ? "descending" : "ascending";
        for (const other of table.tHead.rows[0].cells) other.removeAttribute("aria-sort");
        heading.setAttribute("aria-sort", direction);
        const sign = direction === "ascending" ? 1 : -1;
        const rows = [...body.rows].map((row) => [row, valueOf(row, place)]);
        rows.sort(([, a], [, b]) => compare(a, b, sign));
        body.append(...rows.map(([row]) => row));
      });
    }
  }
  function valueOf(row, place) {
    let column = 0;
    for (const cell of row.cells) {
      if (column >= place) {
        const text = cell.dataset.value ?? cell.textContent.trim();
        const number = Number.parseFloat(text.replace(/,/g, ""));
        return cell.dataset.value !== undefined || cell.classList.contains("number") ? number : text;
      }
      column += cell.colSpan;
    }
    return "";
  }
  function compare(a, b, sign) { // cells without a number stay at the end
    if (typeof a === "string") return sign * a.localeCompare(b, "en", { numeric: true });
    if (Number.isNaN(a) || Number.isNaN(b)) return Number.isNaN(a) - Number.isNaN(b);
    return sign * (a - b);
  }
  document.querySelectorAll("table.sortable").forEach(sortable);

  // galleries: filter by class, enlarge
  function filterable(gallery) {
    const cards = [...gallery.children];
    const bar = element("p", "filters"), count = element("span", "soft");
    const lists = [["label", "True class"], ["predicted", "Predicted class"]].map(([key, title]) => {
      const names = [...new Set(cards.map((card) => card.dataset[key]))].sort((a, b) => a.localeCompare(b, "en", { numeric: true }));
      const label = element("label", "", `${title} `), list = element("select");
      list.append(new Option("all", ""), ...names.map((name) => new Option(name, `=${name}`)));
      list.addEventListener("change", show);
      label.append(list);
      bar.append(label);
      return [key, list];
    });
    count.setAttribute("role", "status");
    bar.append(count);
    gallery.before(bar);
    function show() {
      for (const card of cards) card.hidden = lists.some(([key, list]) => list.value && list.value !== `=${card.dataset[key]}`);
      count.textContent = `${cards.filter((card) => !card.hidden).length} of ${cards.length} images`;
    }
    show();
  }
  document.querySelectorAll(".gallery.filterable").forEach(filterable);

  const pictures = [...document.querySelectorAll(".enlarge")];
  if (pictures.length > 0) {
    const dialog = element("dialog", "viewer"), shown = element("div", "viewer-content"), bar = element("p", "actions");
    let at = 0;
    function show(number) {
      at = number;
      const card = pictures[at].closest("li, figure"), copy = card.cloneNode(true);
      copy.querySelectorAll(".enlarge-button").forEach((button) => button.replaceWith(...button.childNodes));
      copy.querySelectorAll(".decide, [id]").forEach((one) => one.remove());
      shown.replaceChildren(...copy.childNodes);
    }
    function step(by) {
      for (let next = at + by; pictures[next]; next += by) {
        if (pictures[next].closest("[hidden]") === null) return show(next);
      }
    }
    for (const [text, act] of [["Previous", () => step(-1)], ["Next", () => step(1)], ["Close", () => dialog.close()]]) {
      const button = element("button", "", text);
      button.addEventListener("click", act);
      bar.append(button);
    }
    dialog.setAttribute("aria-label", "Enlarged image");
    dialog.append(bar, shown);
    dialog.addEventListener("keydown", (event) => {
      if (event.key === "ArrowLeft") step(-1);
      if (event.key === "ArrowRight") step(1);
    });
    dialog.addEventListener("click", (event) => { if (event.target === dialog) dialog.close(); });
    document.body.append(dialog);
    pictures.forEach((picture, number) => {
      const button = element("button", "enlarge-button");
      button.setAttribute("aria-label", `Enlarge ${picture.dataset.name}`);
      picture.before(button);
      button.append(picture);
      button.addEventListener("click", () => { show(number); dialog.showModal(); });
    });
  }

  // heat maps of a confusion matrix: the cell under the pointer
  for (const map of document.querySelectorAll(".heat-map")) {
    const output = map.parentElement.querySelector("output");
    const { names, counts } = JSON.parse(map.parentElement.querySelector("script").textContent);
    const { x, y, width } = map.querySelector(".cells").getBBox();
    map.addEventListener("pointermove", (event) => {
      const point = new DOMPoint(event.clientX, event.clientY).matrixTransform(map.getScreenCTM().inverse());
      const [row, column] = [point.y - y, point.x - x].map((offset) => Math.floor((offset * names.length) / width));
      const line = counts[row];
      if (line?.[column] === undefined) return;
      const total = line.reduce((sum, count) => sum + count, 0);
      const share = total ? ` (${((100 * line[column]) / total).toFixed(1)}% of ${total})` : "";
      output.textContent = `True ${names[row]}, predicted ${names[column]}: ${line[column]}${share}`;
    });
  }

  // on paper, what is folded cannot be opened
  let opened = [];
  addEventListener("beforeprint", () => {
    opened = [...document.querySelectorAll("details.print:not([open])")];
    opened.forEach((one) => { one.open = true; });
  });
  addEventListener("afterprint", () => opened.forEach((one) => { one.open = false; }));
})();
