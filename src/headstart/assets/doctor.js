(() => {
  const { key, lines } = JSON.parse(document.getElementById("lines").textContent); // lines: path, finding, suggestion
  const suggested = lines.map(([, , suggestion]) => suggestion);
  const linesOf = Map.groupBy ? Map.groupBy(lines.keys(), (number) => lines[number][0]) : grouped();
  const forms = new Map(); // by path: the controls of all places where the file is shown

  function grouped() {
    const found = new Map();
    lines.forEach(([path], number) => found.set(path, [...(found.get(path) ?? []), number]));
    return found;
  }

  function element(tag, className, text) {
    const made = document.createElement(tag);
    if (className) made.className = className;
    if (text !== undefined) made.textContent = text;
    return made;
  }

  // what a choice does to a file: with several findings, drop comes first, as in data apply
  function decisionOf(path) {
    const suggestions = linesOf.get(path).map((number) => lines[number][2]);
    return suggestions.find((one) => one === "drop") ?? suggestions.find((one) => one.startsWith("move ")) ??
      suggestions.find((one) => one.startsWith("move? ")) ?? "keep";
  }

  function decide(path, suggestion) {
    for (const number of linesOf.get(path)) lines[number][2] = suggestion;
    store();
    show();
  }

  function controls(place, number) {
    const path = lines[number][0];
    const form = element("fieldset", "decide"), row = element("div", "choices"), inputs = {};
    form.append(element("legend", "hidden", `Decision for ${path}`), row);
    const folder = element("label", "folder", "to folder "), name = element("input");
    name.type = "text";
    name.setAttribute("list", "folders");
    const target = linesOf.get(path).map((one) => suggested[one]).find((one) => one.startsWith("move"));
    name.value = target ? target.slice(target.indexOf(" ") + 1) : "";
    folder.append(name);
    for (const choice of ["keep", "move", "drop"]) {
      const label = element("label"), input = element("input");
      input.type = "radio";
      input.name = `decision-${number}`;
      input.value = choice;
      input.addEventListener("change", () => {
        if (choice === "move") { folder.hidden = false; moveTo(); if (!name.validity.valid) name.focus(); } else decide(path, choice);
      });
      label.append(input, ` ${choice}`);
      row.append(label);
      inputs[choice] = input;
    }
    function moveTo() {
      const problem = wrong(name.value.trim());
      name.setCustomValidity(problem);
      if (problem) name.reportValidity();
      else decide(path, `move ${name.value.trim()}`);
    }
    name.addEventListener("change", moveTo);
    form.append(folder);
    place.after(form);
    return { path, place, inputs, folder, name };
  }

  function wrong(folder) { // as in data apply
    if (!folder) return "Name a folder inside the data, such as train/bees";
    if (folder.startsWith("/") || folder.includes("\\") || folder.split("/").includes("..")) return "The folder must lie inside the data, such as train/bees";
    return "";
  }

  function show() {
    for (const { path, place, inputs, folder, name } of [...forms.values()].flat()) {
      const decision = decisionOf(path), [verb, ...rest] = decision.split(" ");
      for (const choice of ["keep", "move", "drop"]) inputs[choice].checked = choice === verb;
      folder.hidden = verb !== "move";
      if (verb === "move") { name.value = rest.join(" "); name.setCustomValidity(""); }
      place.hidden = verb !== "move?";
      place.textContent = verb === "move?" ? `suggestion: move to ${rest.join(" ")}?` : decision;
    }
    const count = { drop: 0, move: 0, "move?": 0, keep: 0 };
    for (const path of linesOf.keys()) count[decisionOf(path).split(" ")[0]] += 1;
    const parts = [`${count.keep} keep`, `${count.move} move`, `${count.drop} drop`];
    if (count["move?"]) parts.push(`${count["move?"]} not decided`);
    document.getElementById("tally").textContent = `${linesOf.size} ${linesOf.size === 1 ? "file" : "files"}: ${parts.join(", ")}`;
    document.getElementById("reset").hidden = lines.every(([, , now], number) => now === suggested[number]);
  }

  // a reload keeps the decisions, in this browser
  function store() {
    const changed = lines.flatMap(([, , now], number) => (now === suggested[number] ? [] : [[number, now]]));
    try { localStorage.setItem(key, JSON.stringify(changed)); } catch {}
  }
  try {
    for (const [number, now] of JSON.parse(localStorage.getItem(key) ?? "[]")) if (lines[number]) lines[number][2] = String(now);
  } catch {}

  // the dialect of Python's csv, which wrote the fixes.csv beside this page
  function csv() {
    const field = (text) => (/[",\r\n]/.test(text) ? `"${text.replaceAll('"', '""')}"` : text);
    return [["path", "finding", "suggestion"], ...lines].map((line) => line.map(field).join(",") + "\r\n").join("");
  }

  document.getElementById("download").addEventListener("click", () => {
    const invalid = document.querySelector(".folder:not([hidden]) input:invalid");
    if (invalid) return invalid.reportValidity();
    const link = element("a");
    link.href = URL.createObjectURL(new Blob([csv()], { type: "text/csv" }));
    link.download = "fixes.csv";
    link.click();
    setTimeout(() => URL.revokeObjectURL(link.href), 60000);
  });
  document.getElementById("reset").addEventListener("click", () => {
    lines.forEach((line, number) => { line[2] = suggested[number]; });
    store();
    show();
  });

  for (const place of document.querySelectorAll("main [data-line]")) {
    const number = Number(place.dataset.line), path = lines[number][0];
    forms.set(path, [...(forms.get(path) ?? []), controls(place, number)]);
  }
  show();
})();
