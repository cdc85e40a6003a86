"use strict";
const root = document.documentElement;

// Theme: the system's, unless ?theme= or the button says otherwise.
const systemDark = matchMedia("(prefers-color-scheme: dark)");
const themeButton = document.getElementById("theme");
const isDark = () => (root.dataset.theme ? root.dataset.theme === "dark" : systemDark.matches);
const nameTheme = () => {
  themeButton.textContent = isDark() ? "Light" : "Dark";
  themeButton.setAttribute("aria-label", `Use the ${isDark() ? "light" : "dark"} theme`);
};
const asked = new URLSearchParams(location.search).get("theme");
if (asked === "dark" || asked === "light") root.dataset.theme = asked;
themeButton.addEventListener("click", () => {
  root.dataset.theme = isDark() ? "light" : "dark";
  nameTheme();
});
systemDark.addEventListener("change", nameTheme);
nameTheme();

// Cover and uncover all texts of a section at once.
for (const button of document.querySelectorAll("button.uncover")) {
  const veils = button.closest("section").querySelectorAll("details.veil");
  const show = button.textContent;
  button.addEventListener("click", () => {
    const open = button.textContent === show;
    button.textContent = open ? "Cover all again" : show;
    for (const veil of veils) veil.open = open;
  });
}

// Tabs: sections with data-tab become panels. Arrow keys, Home and End move; an address with # opens
// the panel that holds its target.
for (const [set, tabs] of document.querySelectorAll(".tabs").entries()) {
  const panels = [...tabs.querySelectorAll(":scope > [data-tab]")];
  if (panels.length < 2) continue;
  const list = document.createElement("div");
  list.className = "tablist";
  list.setAttribute("role", "tablist");
  list.setAttribute("aria-label", tabs.dataset.label);
  const buttons = panels.map((panel, number) => {
    const button = document.createElement("button");
    panel.id ||= `panel-${set}-${number}`;
    panel.setAttribute("role", "tabpanel");
    panel.setAttribute("tabindex", "0");
    button.type = "button";
    button.id = `tab-${panel.id}`;
    button.textContent = panel.dataset.tab;
    button.setAttribute("role", "tab");
    button.setAttribute("aria-controls", panel.id);
    panel.setAttribute("aria-labelledby", button.id);
    button.addEventListener("click", () => choose(number));
    list.append(button);
    return button;
  });
  const choose = (chosen) => {
    for (const [number, button] of buttons.entries()) {
      button.setAttribute("aria-selected", String(number === chosen));
      button.tabIndex = number === chosen ? 0 : -1;
      panels[number].classList.toggle("away", number !== chosen);
    }
  };
  list.addEventListener("keydown", (event) => {
    const at = buttons.indexOf(document.activeElement), last = buttons.length - 1;
    const to = { ArrowRight: at === last ? 0 : at + 1, ArrowLeft: at ? at - 1 : last, Home: 0, End: last };
    if (at < 0 || !(event.key in to)) return;
    event.preventDefault();
    choose(to[event.key]);
    buttons[to[event.key]].focus();
  });
  const openTarget = () => {
    const target = document.getElementById(decodeURIComponent(location.hash.slice(1)));
    const number = panels.findIndex((panel) => panel.contains(target));
    if (target && number >= 0) choose(number);
  };
  tabs.prepend(list);
  choose(0);
  openTarget();
  addEventListener("hashchange", openTarget);
}

// Charts. The expression interpreter ("ast") lets the page's policy forbid eval.
for (const chart of document.querySelectorAll(".chart")) {
  const spec = JSON.parse(document.getElementById(chart.dataset.spec).textContent);
  vegaEmbed(chart, spec, {
    mode: "vega-lite", renderer: "svg", actions: false, ast: true, tooltip: { theme: "custom" },
  });
}
