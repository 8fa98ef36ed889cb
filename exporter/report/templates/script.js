"use strict";
(function () {
  const root = document.documentElement;

  const theme = document.getElementById("theme");
  const system = window.matchMedia("(prefers-color-scheme: dark)");
  const remembered = {
    // A file opened from a disk may have no storage.
    get() { try { return localStorage.getItem("resnet-export-theme"); } catch { return null; } },
    set(value) { try { localStorage.setItem("resnet-export-theme", value); } catch { /* not kept */ } },
  };
  const isDark = () => (root.dataset.theme ? root.dataset.theme === "dark" : system.matches);
  const show = () => theme.setAttribute("aria-pressed", String(isDark()));
  const chosen = remembered.get();
  if (chosen === "dark" || chosen === "light") root.dataset.theme = chosen;
  theme.addEventListener("click", () => {
    root.dataset.theme = isDark() ? "light" : "dark";
    remembered.set(root.dataset.theme);
    show();
  });
  system.addEventListener("change", show);
  theme.hidden = false;
  show();

  const save = document.getElementById("save");
  save.addEventListener("click", () => {
    const blob = new Blob([document.getElementById("data").textContent], { type: "application/json" });
    const link = document.createElement("a");
    link.href = URL.createObjectURL(blob);
    link.download = "report.json";
    link.click();
    setTimeout(() => URL.revokeObjectURL(link.href), 1000);
  });
  save.hidden = false;

  const compare = (a, b, index, sign) => {
    const left = a.cells[index], right = b.cells[index];
    const keyed = "key" in left.dataset, other = "key" in right.dataset;
    // A missing number is last in either direction.
    if (keyed && other) return sign * (Number(left.dataset.key) - Number(right.dataset.key));
    if (keyed !== other) return keyed ? -1 : 1;
    return sign * left.textContent.localeCompare(right.textContent, "en", { numeric: true });
  };
  const sort = (header) => {
    const table = header.closest("table"), index = header.cellIndex;
    const direction = header.getAttribute("aria-sort") === "ascending" ? "descending" : "ascending";
    for (const each of table.tHead.rows[0].cells) each.setAttribute("aria-sort", "none");
    header.setAttribute("aria-sort", direction);
    const body = table.tBodies[0], sign = direction === "ascending" ? 1 : -1;
    body.append(...Array.from(body.rows).sort((a, b) => compare(a, b, index, sign)));
  };
  for (const button of document.querySelectorAll("button.sort")) {
    button.addEventListener("click", () => sort(button.closest("th")));
  }

  // Only what scrolls is a stop for the Tab key.
  const areas = Array.from(document.querySelectorAll(".scroll"));
  const stops = () => areas.forEach((area) => { area.tabIndex = area.scrollWidth > area.clientWidth ? 0 : -1; });
  window.addEventListener("resize", stops);
  document.addEventListener("toggle", stops, true);
  stops();

  // Paper cannot be opened.
  let opened = [];
  window.addEventListener("beforeprint", () => {
    opened = Array.from(document.querySelectorAll("details.pairs:not([open])"));
    opened.forEach((each) => { each.open = true; });
  });
  window.addEventListener("afterprint", () => opened.forEach((each) => { each.open = false; }));
})();
